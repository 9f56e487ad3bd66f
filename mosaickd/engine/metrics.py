"""metrics.jsonl: one JSON object a line, each with the step it belongs to. And where the picture of
a step lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mosaickd.files import write_atomically
from mosaickd.metric_names import STEP, TOP1, renamed


def sample_grid(folder: Path, step: int) -> Path:
    """Of a run's folder: the sample grid that an evaluation has drawn, if it drew one."""
    return folder / "samples" / f"step{step:07d}.png"


class MetricsFile:
    """Append-only while a run lasts; a resumed run first drops what lies after its checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All whole lines by today's names: a kill may have cut the last one short."""
        if not self.path.exists():
            return []
        records = []
        for line in self.path.read_text().splitlines():
            try:
                records.append(renamed(json.loads(line)))
            except ValueError:
                break
        return records

    def truncate(self, step: int, evaluated: int) -> None:
        """Keep what lies before a checkpoint: its step, and the last that was evaluated before it.
        Where it was written before its step's evaluation, that one is to come again."""
        if not self.path.exists():
            return
        kept = [
            json.dumps(r) + "\n"
            for r in self.read()
            if r[STEP] <= (evaluated if TOP1 in r else step)
        ]
        write_atomically(self.path, lambda file: file.write("".join(kept).encode()))
