"""A run's folder: the names and formats of everything in it, written here and read here.

Nothing else opens these files. Each is written so that a crash at any moment leaves either the old
or the new content; readers accept what a kill may leave (a cut last line of metrics.jsonl).
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from mosaickd.errors import UserError
from mosaickd.metric_names import STEP, TOP1
from mosaickd.utils.files import read_json, remove_temporaries, write_json, write_text

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Of the environment: an id that the jobs of a sweep have in common, in all their processes.
SWEEP = "MOSAICKD_SWEEP"

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
    skipped: bool = False  # of what `launch` returns: the run was finished before; not in the file

    @property
    def provenance(self) -> dict[str, Any]:
        """Return where the numbers come from: settings, code, images and teacher."""
        names = ("config_hash", "code", "data_fingerprint", "teacher_fingerprint")
        return {name: getattr(self, name) for name in names}

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
    def launch_id(self) -> Path:
        """Return where it says which command began the run: a sweep, a queued job."""
        return self.path / ".hydra" / "begun_by.json"

    @property
    def broken(self) -> Path:
        """Return where the images are listed that were left out because they can't be read."""
        return self.path / "broken.txt"

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
    def previous_checkpoint(self) -> Path:
        """Return where the checkpoint before the newest is kept."""
        return self.path / "checkpoints" / "previous.pt"

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
            reason = f"{place}: {first['msg']}" if place else "no JSON object"
            raise UserError(
                f"{self.result} is no result of a run ({reason}): delete it, or run with force=true"
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

    def has_student(self) -> bool:
        """Return whether student.safetensors is there and can be read."""
        try:
            with safe_open(self.student, "np"):
                return True
        except (OSError, SafetensorError):
            return False

    # -------------------------------------------------------------------------------- writing

    def write_result(self, result: Result) -> None:
        """Write result.json."""
        write_json(self.result, {k: v for k, v in vars(result).items() if k != "skipped"})

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
            lines = [
                json.dumps(record) + "\n"
                for record in self.read_metrics()
                if record[STEP] <= (evaluated if TOP1 in record else step)
            ]
            write_text(self.metrics, "".join(lines))
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


# ------------------------------------------------------------------------- beginning and resuming

#: What a run writes, in the order in which an overwritten run's files are removed (which may be
#: killed in between). The teacher that a short run trains for itself stays.
PRODUCTS = (
    *("result.json", "student.safetensors", "checkpoints/last.pt", "checkpoints/previous.pt"),
    *("checkpoints/damaged.pt", "checkpoints/best.safetensors", "samples", "metrics.jsonl"),
    *("per_class.json", "config.json", "broken.txt", "wandb", "wandb.json"),
)


@dataclass(frozen=True)
class OpenedRun:
    """A run that was accepted in its folder.

    key: the settings that decide what it computes. hydra_files: names below `.hydra/` and their
    YAML. previous: the result of an earlier session to go on from, or of the finished run.
    overwrites: another run lies there, which `begin` removes, not before.
    """

    run: RunDir
    key: dict[str, Any]
    hydra_files: Mapping[str, str]
    previous: Result | None = None
    overwrites: bool = False

    @property
    def finished(self) -> bool:
        return self.previous is not None and self.previous.status == "finished"

    def begin(self, result: Result) -> None:
        """Say in result.json that the run is under way; first remove what it overwrites."""
        if self.overwrites:
            log.info("force=true: the run in %s is overwritten", self.run.path)
            remove_products(self.run)
            write_json(self.run.launch_id, _launch_id())
            self.write_settings()
        self.run.write_result(result)

    def write_settings(self) -> None:
        """Write the run's key and what Hydra would have written."""
        write_json(self.run.run_key, self.key)
        for name, text in self.hydra_files.items():
            write_text(self.run.path / ".hydra" / name, text)


def open_run_dir(
    run: RunDir,
    key: dict[str, Any],
    hydra_files: Mapping[str, str],
    *,
    force: bool,
    inputs: Mapping[str, str | None],
) -> OpenedRun:
    """Accept a run of the settings `key` in its folder, and write its settings there.

    force: overwrite what another command began. inputs: settings that name files or folders of the
    run's inputs, which must survive that. Raises UserError where another run lies there.
    """
    opened = OpenedRun(run, key, hydra_files)
    ours = run.config.exists() and _launched_by_this_command(run)
    if run.config.exists():  # nothing is removed from folders of others
        for place in ("", "checkpoints", "samples", ".hydra"):
            remove_temporaries(run.path / place)
        if force and not ours:
            _check_inputs_survive(run, inputs)
            return replace(opened, overwrites=True)
    else:
        for path in (run.run_key, run.launch_id, run.config):
            remove_temporaries(path.parent, of=path.name)
    previous = run.read_result()
    resumable = run.checkpoint.exists() or run.previous_checkpoint.exists()
    finished = previous is not None and previous.status == "finished"
    if not (resumable or finished):  # nothing to go on from
        write_json(run.launch_id, _launch_id())
        opened.write_settings()
        return opened
    if changes := differences(read_json(run.run_key) or {}, key):
        raise UserError(_conflict(run, changes, same_sweep=ours))
    opened = replace(opened, previous=previous)
    if previous is not None and finished:
        if run.has_student():
            return opened
        lost = f"{run.path} is finished, but its student.safetensors can't be read"
        if not resumable:
            log.warning("%s, and there is no checkpoint: force=true trains it anew", lost)
            return opened
        log.warning("%s: it is written again from the last checkpoint", lost)
        previous.status = "interrupted"
    opened.write_settings()
    return opened


def remove_products(run: RunDir) -> None:
    """Remove all that a run has written, except its log and its settings."""
    for name in PRODUCTS:
        path = run.path / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def withdraw(run: RunDir) -> None:
    """Remove the settings of a run that could not begin: nobody should take it for a run."""
    remove_products(run)
    if run.config.parent.is_dir():
        shutil.rmtree(run.config.parent)


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return the settings that differ between two run keys, as `path: old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            line
            for key in sorted(old.keys() | new.keys())
            for line in differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if old == new else [f"{path}: {old} -> {new}"]


def _launch_id() -> dict[str, str | None]:
    """Return what the jobs of one sweep, and a job that is queued again, have in common."""
    return {"sweep": os.environ.get(SWEEP), "job": os.environ.get("SLURM_JOB_ID")}


def _launched_by_this_command(run: RunDir) -> bool:
    """Return whether a job of the same sweep, or this job before it was requeued, began the run."""
    now = _launch_id()
    try:
        before = read_json(run.launch_id) or {}
    except UserError:  # damaged: nobody's
        return False
    requeued = os.environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0")
    same = {name for name in now if now[name] and now[name] == before.get(name)}
    return "sweep" in same or ("job" in same and requeued)


def _check_inputs_survive(run: RunDir, inputs: Mapping[str, str | None]) -> None:
    """Raise UserError where what force=true would remove is what the new run is made of."""
    products = [Path(os.path.realpath(run.path / name)) for name in PRODUCTS]
    for name, value in inputs.items():
        if value is None:
            continue
        path = Path(os.path.realpath(Path(value).expanduser()))
        if any(path == product or product in path.parents for product in products):
            raise UserError(
                f"{name}={value} is a product of the run in {run.path}, which force=true would "
                "remove: move it away, or choose another folder with hydra.run.dir=FOLDER"
            )


def _conflict(run: RunDir, changes: list[str], *, same_sweep: bool) -> str:
    shown = "; ".join(changes[:5])
    if not same_sweep:
        return (
            f"{run.path} holds a run with other settings ({shown}). Choose another folder with "
            "hydra.run.dir=FOLDER (of a sweep: hydra.sweep.dir=FOLDER), or overwrite that run with "
            "force=true"
        )
    setting = changes[0].partition(":")[0]
    name = f"{setting.rpartition('.')[2]}${{{setting}}}"
    return (
        f"{run.path} holds another cell of this sweep ({shown}): the setting is no part of the "
        "folder's name. Make it one: "
        f"'hydra.sweep.subdir=${{hydra.runtime.choices.method}}/${{cell}}/{name}/seed${{seed}}'"
    )


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
