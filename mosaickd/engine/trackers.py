"""Where a run's numbers and pictures go, beside its own folder."""

from __future__ import annotations

import netrc
import os
import uuid
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mosaickd.errors import UserError
from mosaickd.files import read_json, write_json


@runtime_checkable
class Tracker(Protocol):
    """What the loop asks of a tracker."""

    def log(self, step: int, record: dict[str, Any]) -> None:
        """Numbers of a step; nested dicts are allowed."""

    def image(self, step: int, name: str, path: Path) -> None:
        """A picture that was written at `path`."""

    def finish(self, status: str, summary: dict[str, Any]) -> None:
        """The run's last word. status: finished, interrupted or failed."""


class NoTracker:
    """Keeps nothing: metrics.jsonl and samples/ in the run's folder are all there is."""

    def __init__(
        self, *, folder: Path, settings: dict[str, Any], run_name: str, group: str | None
    ) -> None:
        del folder, settings, run_name, group  # every tracker is built with these

    def log(self, step: int, record: dict[str, Any]) -> None: ...
    def image(self, step: int, name: str, path: Path) -> None: ...
    def finish(self, status: str, summary: dict[str, Any]) -> None: ...


class WandbTracker:
    """Weights & Biases; offline where there is no API key, and never with a prompt.

    The run's id lies in the run's folder, so that a resumed run continues the same curve.
    """

    def __init__(
        self,
        *,
        folder: Path,
        settings: dict[str, Any],
        run_name: str,
        group: str | None,
        project: str = "mosaickd",
        entity: str | None = None,
        tags: list[str] | None = None,
    ) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                f"tracker=wandb: wandb can't be imported ({error}); pip install wandb, or choose "
                "tracker=none"
            ) from error

        self.wandb = wandb
        id_file = folder / "wandb.json"
        run_id = (read_json(id_file) or {}).get("id") or uuid.uuid4().hex[:8]
        write_json(id_file, {"id": run_id})
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_api_key() else "offline")
        self.run = wandb.init(
            project=project,
            entity=entity,
            id=run_id,
            resume="allow" if mode == "online" else None,
            name=run_name,
            group=group,
            tags=tags or None,
            config=settings,
            dir=folder,
            mode=mode,  # type: ignore[arg-type]
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, step: int, record: dict[str, Any]) -> None:
        self.run.log(_flatten(record), step=step)

    def image(self, step: int, name: str, path: Path) -> None:
        self.run.log({name: self.wandb.Image(str(path))}, step=step)

    def finish(self, status: str, summary: dict[str, Any]) -> None:
        self.run.summary.update({"status": status, **_flatten(summary)})
        self.run.finish(exit_code=0 if status == "finished" else 1)


def _has_api_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _flatten(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
