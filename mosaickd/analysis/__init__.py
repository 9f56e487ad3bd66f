"""What runs came to: tables, the page, status and figures. Reads run folders only; no torch."""

from __future__ import annotations

from mosaickd.analysis.terminal import console, show_run, show_sweep

__all__ = ["console", "show_run", "show_sweep"]
