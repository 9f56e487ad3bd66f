"""Whether this machine has an account at Weights & Biases; nothing here asks for one."""

from __future__ import annotations

import netrc
import os
from pathlib import Path


def server() -> str:
    """Return the address of W&B's server."""
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


def has_api_key() -> bool:
    """Return whether there is a key in the environment, or where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = server().split("//")[-1].split("/")[0]
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
