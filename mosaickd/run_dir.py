"""A run's folder: the names and formats of everything in it, written here and read here.

Nothing else opens these files. Each is written so that a crash at any moment leaves either the old
or the new content; readers accept what a kill may leave (a cut last line of metrics.jsonl).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from mosaickd.errors import UserError
from mosaickd.files import read_json, write_atomically, write_json
from mosaickd.metric_names import STEP, TOP1

T = TypeVar("T")

Percent = Annotated[float, Field(ge=0, le=100)]


def no_accuracy() -> dict[str, Any]:
    """Return the accuracy of a student that was not evaluated yet."""
    return {"last": None, "best": None, "best_step": None, "top5_last": None}


@dataclass
class Result:
    """What result.json holds: the one summary of a run. Accuracies in percent, times in seconds.

    status: preparing, running, finished, interrupted or failed. variant: how the command departs
    from its method's recipe, None where it doesn't. accuracy: last, best, best_step, top5_last of
    the student. code, data_fingerprint, teacher_fingerprint: where the numbers come from.
    """

    status: str
    method: str
    dataset: str
    student: str
    seed: int
    ood: str | None = None
    ood_subset: bool = False
    teacher: str | None = None
    variant: str | None = None
    accuracy: dict[str, Percent | int | None] = field(default_factory=no_accuracy)
    teacher_accuracy: Percent | None = None
    steps: Annotated[int, Field(ge=0)] = 0
    total_steps: int | None = None
    seconds: Annotated[float, Field(ge=0)] = 0.0
    seconds_per_step: float | None = None
    broken_images: dict[str, int] = field(default_factory=dict)
    device: str | None = None
    memory_mb: float | None = None
    processes: int = 1
    versions: dict[str, str] = field(default_factory=dict)
    config_hash: str = ""
    code: dict[str, Any] = field(default_factory=dict)
    data_fingerprint: dict[str, str] | None = None
    teacher_fingerprint: str | None = None
    error: str | None = None

    @property
    def last(self) -> float | None:
        """Return the accuracy after the last step, in percent."""
        return self.accuracy.get("last")

    @property
    def best(self) -> float | None:
        """Return the highest accuracy of all evaluations, in percent: picked on the test images."""
        return self.accuracy.get("best")


@cache
def _result_adapter() -> TypeAdapter[Result]:
    return TypeAdapter(Result)


@dataclass(frozen=True)
class RunDir:
    """The folder of one run. Paths are properties; reading and writing are methods."""

    path: Path

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def metrics(self) -> Path:
        """Return where one JSON object a line lies, each with the step it belongs to."""
        return self.path / "metrics.jsonl"

    @property
    def per_class(self) -> Path:
        return self.path / "per_class.json"

    @property
    def run_key(self) -> Path:
        """Return where the settings lie that decide what the run computes."""
        return self.path / "config.json"

    @property
    def config(self) -> Path:
        return self.path / ".hydra" / "config.yaml"

    @property
    def overrides(self) -> Path:
        return self.path / ".hydra" / "overrides.yaml"

    @property
    def log(self) -> Path:
        return self.path / "run.log"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoints" / "last.pt"

    @property
    def best_student(self) -> Path:
        return self.path / "checkpoints" / "best.safetensors"

    @property
    def student(self) -> Path:
        return self.path / "student.safetensors"

    @property
    def tracker_id(self) -> Path:
        """Return where the id of this run at W&B is kept."""
        return self.path / "wandb.json"

    def sample(self, step: int) -> Path:
        """Return where the picture of samples lies that the evaluation at `step` draws."""
        return self.samples / f"step{step:07d}.png"

    # -------------------------------------------------------------------------------- reading

    def read_result(self) -> Result | None:
        """Return the run's result, or None where there is none.

        Raises UserError where result.json is damaged or no result of a run.
        """
        content = read_json(self.result)
        if content is None:
            return None
        try:
            return _result_adapter().validate_python(content)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise UserError(
                f"{self.result} is not a run's result ({place}: {first['msg']})"
            ) from error

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl in order; what follows a damaged line is left out."""
        records: list[dict[str, Any]] = []
        try:
            text = self.metrics.read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return records
        for line in text.splitlines():
            try:
                record = json.loads(line)
                if not isinstance(record[STEP], int):
                    break
            except (ValueError, TypeError, LookupError, RecursionError):
                break
            records.append(record)
        return records

    def read_per_class(self) -> list[dict[str, Any]]:
        """Return one {"class", "images", "right"} a class of the last evaluation, or []."""
        content = read_json(self.per_class) or {}
        return list(content.get("classes", []))

    def read_run_key(self) -> dict[str, Any]:
        """Return the settings that decide what the run computes, or {}."""
        content = read_json(self.run_key)
        return content if isinstance(content, dict) else {}

    def read_config(self) -> dict[str, Any]:
        """Return the run's whole config as Hydra has composed it, or {}."""
        return _read_yaml(self.config, dict)

    def read_overrides(self) -> list[str]:
        """Return the overrides of the run's command, or []."""
        return _read_yaml(self.overrides, list)

    def read_log_tail(self, lines: int = 40) -> str:
        """Return the last lines of run.log, or ""."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - 2**14))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def sample_paths(self) -> list[Path]:
        """Return the pictures of samples, in the order of their steps."""
        return sorted(self.samples.glob("step*.png"))

    # -------------------------------------------------------------------------------- writing

    def write_result(self, result: Result) -> None:
        """Write result.json."""
        write_json(self.result, vars(result))

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        self.path.mkdir(parents=True, exist_ok=True)
        with self.metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def truncate(self, step: int, evaluated: int) -> None:
        """Drop metrics and samples that lie after a checkpoint: they are to come again.

        step: of the checkpoint; evaluated: the last step that was evaluated before it (-1: none).
        """
        if self.metrics.exists():
            kept = [
                json.dumps(record) + "\n"
                for record in self.read_metrics()
                if record[STEP] <= (evaluated if TOP1 in record else step)
            ]
            write_atomically(self.metrics, lambda file: file.write("".join(kept).encode()))
        for path in self.sample_paths():
            if path > self.sample(evaluated):
                path.unlink()
        if evaluated < 0:
            self.per_class.unlink(missing_ok=True)

    def write_per_class(self, step: int, classes: list[dict[str, Any]]) -> None:
        """Write per_class.json: of each class its test images, and how many of them are right."""
        write_json(self.per_class, {"step": step, "classes": classes})


def find_run_dirs(root: Path) -> Iterator[RunDir]:
    """Yield all runs at and below `root`, in order of their paths.

    A run is a folder with `.hydra/config.yaml`: it was accepted there. Not looked into: what lies
    inside of a run (also the teacher that it trained for itself), and links to folders.
    """
    for place, folders, _ in os.walk(root):
        run = RunDir(Path(place))
        if run.config.exists():
            folders.clear()
            yield run
        folders.sort()


def _read_yaml(path: Path, kind: type[T]) -> T:
    import yaml

    try:
        content = yaml.safe_load(path.read_bytes())
    except FileNotFoundError:
        return kind()
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(
            f"{path} is not valid YAML ({' '.join(str(error).split())[:200]})"
        ) from error
    return content if isinstance(content, kind) else kind()
