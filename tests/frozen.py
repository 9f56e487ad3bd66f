"""Hold a refactoring to the bits: every method, four steps on glyphs, against a committed record.

    python -m tests.frozen           # compare with tests/golden/frozen.json
    python -m tests.frozen --record  # write it anew: only where numbers are meant to change

Each method runs whole, killed and resumed, and as two processes where it can be shared. Compared
are the hash of student.safetensors, the losses in metrics.jsonl and the keys of result.json: to the
bit on the kind of machine that made the record, elsewhere the keys exactly and the losses to 1 %.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
RECORD = REPO / "tests" / "golden" / "frozen.json"

METHODS = ["scratch", "kd", "balanced", "fitnet", "rkd", "crd", "sskd", "mosaic", "dafl", "zskt",
           "dfq", "deepinv"]  # fmt: skip
DATA_FREE = {"dafl", "zskt", "dfq", "deepinv"}
ONE_PROCESS = {"deepinv"}  # refuses to be shared

SMALL_GENERATOR = ["generator.latent_dim=16", "generator.width=8"]
SMALLER = {
    "mosaic": [*SMALL_GENERATOR, "discriminator.width=8", "method.student_steps=2",
               "train.sync_batch_norm=[]"],  # which CUDA alone has
    "dafl": SMALL_GENERATOR,
    "zskt": [*SMALL_GENERATOR, "method.student_steps=2"],
    "dfq": [*SMALL_GENERATOR, "method.student_steps=2"],
    "crd": ["method.negatives=32"],
    "deepinv": ["method.inversion_steps=2", "method.student_steps=2"],
}  # fmt: skip


def command(method: str, folder: str) -> list[str]:
    """Four steps of 16 images; the glyphs and the teacher are shared by all runs."""
    glyphs = ["root=glyphs", "reader.train_images=240", "reader.test_images=48"]
    overrides = [
        f"method={method}", "dataset=letters", "student=wrn16_1", "tracker=none",
        f"hydra.run.dir={folder}", "train.batch_size=16", "train.precision=fp32", "device=cpu",
        "train.epochs=1", "train.epoch_steps=4", "train.eval_every=2", "train.log_every=1",
        "train.checkpoint_every=1", *(f"dataset.{setting}" for setting in glyphs),
        "dataset.recipe={epochs: 2, batch_size: 48, lr: 0.05, weight_decay: 5e-4}",
    ]  # fmt: skip
    if method != "scratch":
        overrides += ["teacher=wrn16_2"]
    if method not in {"scratch", *DATA_FREE}:
        overrides += ["ood=strokes", *(f"ood.{setting}" for setting in glyphs)]
    if method in ("kd", "mosaic"):
        overrides += ["ood_subset=true", "ood_subset_size=64"]
    return [*overrides, *SMALLER.get(method, [])]


def start(work: Path, arguments: list[str], processes: int = 1) -> subprocess.Popen[bytes]:
    """Start `python run.py ARGUMENTS`, or torchrun, in `work`; its output goes to a log."""
    program = [sys.executable, str(REPO / "run.py")]
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        program = [sys.executable, *torchrun, str(REPO / "run.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with (work / "log").open("ab") as log:
        return subprocess.Popen(
            [*program, *arguments], cwd=work, env=environment, stdout=log, stderr=log
        )


def run(work: Path, arguments: list[str], processes: int = 1) -> None:
    """Run to the end. Raises SystemExit with the log's end where the run fails."""
    if start(work, arguments, processes).wait():
        raise SystemExit(f"{' '.join(arguments)} failed:\n{(work / 'log').read_text()[-3000:]}")


def kill_and_resume(work: Path, arguments: list[str], folder: str) -> None:
    """Kill the run once its first checkpoint is on the disk, then run the same command again."""
    process = start(work, arguments)
    while process.poll() is None and not (work / folder / "checkpoints" / "last.pt").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(work, arguments)


def outcome(folder: Path) -> dict[str, Any]:
    """Return what a run came to: hash of its student, losses line by line, keys of its result."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [{k: v for k, v in line.items() if k.startswith("loss/")} for line in lines]
    return {
        "student": hashlib.sha256((folder / "student.safetensors").read_bytes()).hexdigest(),
        "losses": [line for line in losses if line],
        "result": sorted(json.loads((folder / "result.json").read_text())),
    }


def outcomes(work: Path, methods: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield `method/kind` and what that run came to."""
    for method in methods:
        run(work, command(method, f"{method}/whole"))
        yield f"{method}/whole", outcome(work / method / "whole")
        kill_and_resume(work, command(method, f"{method}/resumed"), f"{method}/resumed")
        yield f"{method}/resumed", outcome(work / method / "resumed")
        if method not in ONE_PROCESS:
            run(work, command(method, f"{method}/shared"), processes=2)
            yield f"{method}/shared", outcome(work / method / "shared")


def machine() -> dict[str, str]:
    """Return what decides the bits of a float32 sum on a CPU."""
    import torch

    return {
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }


def differences(ours: dict[str, Any], recorded: dict[str, Any], exact: bool) -> list[str]:
    """Return what differs between two outcomes, a line each."""
    found = []
    if ours["result"] != recorded["result"]:
        keys = set(ours["result"]) ^ set(recorded["result"])
        found.append(f"keys of result.json: {sorted(keys)}")
    if exact and ours["student"] != recorded["student"]:
        found.append("student.safetensors")
    for step, (mine, theirs) in enumerate(zip(ours["losses"], recorded["losses"], strict=True), 1):
        if mine.keys() != theirs.keys():
            found.append(f"names of losses at step {step}: {sorted(mine.keys() ^ theirs.keys())}")
            continue
        for name, value in mine.items():
            close = math.isclose(value, theirs[name], rel_tol=0.01, abs_tol=1e-4)
            if value != theirs[name] if exact else not close:
                found.append(f"{name} at step {step}: {theirs[name]} -> {value}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.frozen",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--record", action="store_true", help="write the record anew")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    options = parser.parse_args()
    record = json.loads(RECORD.read_text()) if RECORD.exists() and not options.record else None
    exact = record is not None and record["machine"] == machine()
    found: dict[str, Any] = {}
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="mosaickd-frozen-") as work:
        for name, ours in outcomes(Path(work), options.methods):
            found[name] = ours
            lines = differences(ours, record["runs"][name], exact) if record else []
            wrong += bool(lines)
            print(f"{name}: {'; '.join(lines[:3]) or 'ok'}", flush=True)
    if record is None:
        RECORD.write_text(json.dumps({"machine": machine(), "runs": found}, indent=1) + "\n")
        print(f"recorded {len(found)} runs in {RECORD.relative_to(REPO)}")
    else:
        how = "to the bit" if exact else f"within 1 % (the record is of {record['machine']})"
        print(f"{len(found) - wrong} of {len(found)} runs as recorded, {how}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
