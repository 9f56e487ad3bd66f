"""wandb, in a process of its own: `trackers.WandbTracker` starts this file as a script.

Reads orders from stdin and answers on stdout, one JSON object a line:

    first      {"settings": ..., "config": ..., "argv": [...]}
               -> {"begun": DIRECTORY}, {"missing": TEXT}, {"mistake": TEXT} or {"trouble": TEXT}
    then       {"step": N, "record": {...}}: numbers, and lists of counts, which are histograms;
               "time" beside them: when that was, if it isn't now
               {"step": N, "image": NAME, "path": FILE}
               {"table": NAME, "columns": [...], "rows": [[...], ...]}
               {"step": N, "artifact": NAME, "kind": TYPE, "path": FILE, "file": NAME THERE}:
               FILE is taken and removed
               {"orders": [...]}: several of these
    last       {"finish": STATUS, "summary": {...}}
    any time   -> {"trouble": TEXT}: the last that is heard of this process

It outlives the process that started it only to close W&B's files.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

OUTBOX = "outbox"  # of W&B's folder for a session: files on their way to become artifacts
GRACE = 10.0  # seconds beyond wandb's own time for finishing, after which nobody waits any more

Order = dict[str, Any]
Tell = Callable[..., None]


def own_streams() -> tuple[Iterator[Order], Tell]:
    """Orders and the way to answer. Whoever prints, or inherits stdin and stdout, as W&B's
    service does, gets the null device instead."""
    orders = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)

    def tell(**answer: str) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    return (json.loads(line) for line in orders), tell


def begin(order: Order, tell: Tell) -> tuple[Any, float]:
    """-> wandb's run, and how long it may take to finish."""
    sys.argv = order["argv"]  # what W&B shows as the command
    # Where artifacts wait to be sent, offline until `wandb sync`: with the run, not in a home.
    os.environ.setdefault("WANDB_DATA_DIR", os.path.join(order["settings"]["root_dir"], "wandb"))
    try:
        import wandb
    except ImportError as error:
        tell(missing=str(error))
        sys.exit()
    known = wandb.Settings.model_fields  # older ones can't bound their end, and are killed
    try:
        settings = wandb.Settings(**{k: v for k, v in order["settings"].items() if k in known})
    except (ValueError, wandb.errors.UsageError) as error:
        tell(mistake=" ".join(str(error).split()))
        sys.exit()
    config = beside(order["config"], given_by_agent())
    run = wandb.init(settings=settings, config=config)
    run.summary["status"] = "running"  # not what an earlier session came to
    tell(begun=os.path.dirname(run.dir))
    return run, order["settings"]["finish_timeout"]


def given_by_agent() -> set[str]:
    """Parameters that an agent of a W&B sweep has chosen; wandb puts them into the config."""
    import yaml

    try:
        with open(os.environ["WANDB_SWEEP_PARAM_PATH"], encoding="utf-8") as file:
            return {str(name) for name in yaml.safe_load(file)}
    except (KeyError, OSError, TypeError, yaml.YAMLError):
        return set()


def beside(config: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """The config without what is `given`: `method=kd` and a section `method` have one name, which
    the sweep needs. The section's settings become method.name, ..., as W&B shows them anyway."""
    spread: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and any(f"{name}.".startswith(f"{key}.") for name in given):
            spread |= {f"{key}.{name}": content for name, content in value.items()}
        else:
            spread[key] = value
    return {key: value for key, value in spread.items() if key not in given}


class Row:
    """What is known of one step; W&B gets it when the next step begins, and takes no step twice.

    A session that goes on online with W&B's own copy of the run begins after the last step that
    is there: what was logged of earlier ones stays as it is.
    """

    def __init__(self, run: Any) -> None:
        self.run = run
        self.begins: int = run.starting_step
        self.step = self.begins
        self.content: dict[str, Any] = {}

    def takes(self, step: int) -> bool:
        """Whether that step is still to be sent; what came before it is sent now."""
        if step > self.step:
            self.send()
            self.step = step
        return step == self.step and step >= self.begins

    def send(self) -> None:
        content, self.content = self.content, {}
        if content:
            self.run.log(content, step=self.step)

    def end(self, finished: bool) -> None:
        """A session that stops may stop in the middle of a step: online nothing could be added to
        it later, so that the session that goes on sends it, from metrics.jsonl."""
        if finished or self.run.offline:
            self.send()


def follow(run: Any, orders: Iterator[Order], troubles: list[str]) -> bool:
    """Log until the last order. -> whether the run has finished; one that goes silent has not.

    troubles: gets what is no reason to stop, an artifact that can't be logged. wandb asks its
    server about each, and needs 20 seconds to find that nobody answers: no second one then.
    """
    row = Row(run)
    status = "stopped"
    try:
        for order in (each for one in orders for each in one.get("orders", [one])):
            if "finish" in order:
                status = order["finish"]
                row.end(finished=status != "interrupted")
                run.summary.update({"status": status, **order["summary"]})
                break
            if "artifact" not in order and not row.takes(order.get("step", row.step)):
                continue  # artifacts come when their files are written, in the midst of later steps
            try:
                take(run, row, order, missing=bool(troubles))
            except Exception as error:
                if "table" not in order and "artifact" not in order:
                    raise
                troubles.append(in_words(error))
        else:  # the run was killed
            row.end(finished=False)
    except Exception:
        row.send()  # what was logged before an order that can't be carried out
        raise
    return bool(status == "finished")


def take(run: Any, row: Row, order: Order, missing: bool) -> None:
    """Carry out one order. missing: artifacts can't be logged."""
    import wandb

    if "artifact" in order:
        if not missing:
            keep(run, order)
    elif "table" in order:  # which becomes an artifact
        row.send()
        if not missing:
            run.log({order["table"]: wandb.Table(order["columns"], order["rows"])}, step=row.step)
    elif "image" in order:
        row.content[order["image"]] = wandb.Image(order["path"])
    else:
        for name, value in order["record"].items():
            row.content[name] = histogram(value) if isinstance(value, list) else value
        if "time" in order:
            row.content["_timestamp"] = order["time"]


def histogram(counts: list[int]) -> Any:
    """Bar i holds counts[i]; of more than W&B can draw, neighbours share a bar."""
    import numpy as np
    import wandb

    width = -(-len(counts) // wandb.Histogram.MAX_LENGTH)
    bars = [sum(counts[i : i + width]) for i in range(0, len(counts), width)]
    edges = [width * i - 0.5 for i in range(len(bars) + 1)]
    return wandb.Histogram(np_histogram=(np.array(bars), np.array(edges)))


def keep(run: Any, order: Order) -> None:
    """A version of an artifact: W&B copies the file into its own folder first."""
    import wandb

    artifact = wandb.Artifact(order["artifact"], order["kind"], metadata={"step": order["step"]})
    artifact.add_file(order["path"], order["file"], skip_cache=True)
    run.log_artifact(artifact, aliases=["latest", f"step{order['step']}"])
    with contextlib.suppress(OSError):
        os.unlink(order["path"])


def in_words(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def close_files() -> None:
    """Wait until the service has ended: it writes the last of a run's file then."""
    import wandb

    with contextlib.suppress(BaseException):  # it may be gone, or end with an error code
        wandb.teardown()


def end_within(seconds: float, tell: Tell) -> None:
    """End this process then, whatever it waits for."""

    def end() -> None:
        try:
            tell(trouble=f"it has not finished within {seconds:g} s")
        finally:
            os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def main() -> None:
    orders, tell = own_streams()
    try:
        run, seconds = begin(next(orders), tell)
        finished, troubles = False, list[str]()
        try:
            finished = follow(run, orders, troubles)
        finally:  # also after an error: what is already logged goes into W&B's files
            end_within(seconds + GRACE, tell)
            try:
                shutil.rmtree(os.path.join(os.path.dirname(run.dir), OUTBOX), ignore_errors=True)
                run.finish(exit_code=0 if finished else 1)
            finally:
                close_files()
        if troubles:
            tell(trouble=troubles[0])
    except SystemExit:
        raise
    except BaseException as error:
        try:
            tell(trouble=in_words(error))
        finally:
            os._exit(1)  # wandb's own hooks at exit may wait


if __name__ == "__main__":
    main()
