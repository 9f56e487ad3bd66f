"""Random edits of valid commands: a run starts, or one message says what is wrong.

By default a few, always the same ones. `MOSAICKD_EDITS=5000 pytest -m slow` with this file's name
tries so many, others at each `--hypothesis-seed`; `-s` prints what became of them.
"""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from random import Random

import pytest
import torch
from composing import choices, composed, composing
from conftest import REPO, Outcome, Tiny
from forked import Forked
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, ListConfig, OmegaConf

from mosaickd.cli.overrides import GROUPS, choices_of
from mosaickd.config.schema import CONF
from mosaickd.models.weights import save_weights
from mosaickd.models.wresnet import WideResNet

STARTED = 77  # the exit code of a run that has reached its first iteration
LIMIT = 30.0  # seconds that no edit may take
MEMORY = 4 << 30  # bytes that a run may ask for beyond what its imports did
LONGEST = 3200  # characters of a message

METHODS = choices(CONF / "method")

# ------------------------------------------------------------------------------------- the edits

USUAL = ["1", "2", "3", "5", "16", "17", "100", "0.1", "0.5", "1.5", "true", "false", "null"]
NUMBERS = [
    *("-1", "0", "1", "7", "100000", "1000000000", "-1000000000000000000", "2147483648"),
    *("9223372036854775808", "1" + "0" * 30, "1" + "0" * 400, "0x10", "1_000", "-0.0", "0.5"),
    *("1e-30", "1e30", "1e308", "1e400", "-1e400", "nan", "inf", "-inf"),
]
TEXTS = [
    *("", "''", "' '", "None", "a b", "ä", "名前", "🙂", "'a\nb'", "\\", "%s", "{}", "{a: 1}"),
    *("[]", "[null]", "[1,2]", "[[1]]", "['']", "{1: 2}", "..", "a/../b", "~", "*", "--", "'[1'"),
    *("'{'", "[", "]", "'", '"', "a=b", "a:b", "a,b", "a,", "range(1,3)", "glob(*)", "int(x)"),
    *("${seed}", "${oc.env:HOME}", "${oc.env:NOWHERE}", "${nonexistent}", "${method}", "${"),
    *("${.}", "${dataset.${seed}}", "${hydra:run.dir}", "${oc.create:{a: 1}}", "\\${seed}"),
    *("???", "x" * 5000, "[" * 200, "[" + "1," * 2000 + "1]", "${seed}" * 300),
]
TARGETS = [
    *("torch.nn.Identity", "torch.nn.Linear", "torch.optim.LBFGS", "torch.optim", "torch.hub.load"),
    *("torch.optim.lr_scheduler.StepLR", "torchvision.models.vgg11", "mosaickd.data.folder.read"),
    *("mosaickd.methods.kd.KD", "mosaickd.methods.base.Method", "mosaickd.engine.schedules.cosine"),
    *("mosaickd.engine.trackers.Tracker", "mosaickd.data.source.Source", "os.system", "x", ""),
    *("mosaickd.", ".mosaickd", "builtins.eval"),
]
#: By the type of the present value, so that most are found wrong late, or not at all.
PLAUSIBLE = {
    bool: ["true", "false"],
    int: ["0", "1", "2", "3", "4", "8", "15", "16", "17", "32", "1000"],
    float: ["0", "1", "-1", "0.001", "0.5", "0.999", "20", "1e-9", "1e9"],
    ListConfig: ["[]", "[0]", "[0,1]", "[1,0]", "[0.5,0.5,0.5]", "[a]", "[conv1]"],
    str: ["a", "auto", "cpu", "fp32", "bf16", "ood", "dataset", "letters", "strokes", "1", "fc"],
}
MALFORMED = [
    *("=", "a=", "=b", "a=[", "a={b", "a='", "a b=c", "@", "a@b=c", "a@b:c=d", "+=1", "~", ""),
    *("\n", "a=b=c", "$", "a=${", "a.=1", ".a=1", "a..b=1", "a[0]=1", "method.=1", "++", "+~a"),
    *("seed", "seed:1", "~method", "hydra", "hydra/x=1", "hydra/launcher=nothing", "-x", "--x"),
    *("method/kd=1", "method@x=kd", "hydra.run=1", "a" * 3000, "ü=ü"),
]
#: Settings that say which files are written, or which processes are started: left as they are.
LEFT = ("hydra.launcher", "hydra.sweeper", "hydra.job.", "hydra.callbacks", "hydra.job_logging",
        "hydra.hydra_logging", "hydra.searchpath", "hydra.overrides")  # fmt: skip


def dotted(node: DictConfig, path: str = "") -> Iterator[str]:
    """Yield all settings and sections below `node`."""
    for key in node:
        yield f"{path}{key}"
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            yield from dotted(child, f"{path}{key}.")


@cache
def config_of(method: str) -> DictConfig:
    with composing():
        return composed(f"method={method}", "dataset=letters", "ood=strokes")


@cache
def settings_of(method: str) -> list[str]:
    return [key for key in sorted(dotted(config_of(method))) if not key.startswith(LEFT)]


def random_value(random: Random) -> str:
    return random.choice(random.choice([USUAL, NUMBERS, NUMBERS, TEXTS, TEXTS, TARGETS]))


def plausible_edit(random: Random, method: str) -> str:
    key = random.choice([k for k in settings_of(method) if not k.startswith("hydra")])
    present = OmegaConf.select(config_of(method), key, throw_on_missing=False)
    return f"{key}={random.choice(PLAUSIBLE.get(type(present), USUAL))}"


def group_edit(random: Random) -> str:
    group = random.choice([*GROUPS])
    known = [name for name in choices_of(group) if not name.startswith("table1")] * 2
    return f"{group}={random.choice([*known, 'null', 'nothing', ''])}"


def random_edit(random: Random, method: str) -> str:
    key, value = random.choice(settings_of(method)), random_value(random)
    at = random.randrange(len(key))
    section = random.choice(
        ["method", "student", "teacher", "dataset", "dataset.reader", "tracker", "+train",
         "players.student.optimizer", "players.student.schedule", "+method.x", "++generator"]
    )  # fmt: skip
    forms = {
        f"{key}={value}": 8,
        f"{key}={random.choice(NUMBERS)}": 4,
        plausible_edit(random, method): 20,
        f"++{key}={value}": 2,
        f"+{key}.x={value}": 1,
        f"{key}={value},{random_value(random)}": 1,
        f"~{key}": 2,
        f"{key[:at]}{key[at + 1 :]}={value}": 1,
        f"{section}._target_={random.choice(TARGETS)}": 3,
        group_edit(random): 3,
        random.choice(MALFORMED): 1,
    }
    return random.choices([*forms], [*forms.values()])[0]


# ----------------------------------------------------------------------------------- running them


def stop_after_the_first_iteration() -> None:
    """In the process of a command: one iteration, and no more memory than a laptop has."""
    from mosaickd.engine.loop import TrainingLoop

    play = TrainingLoop.play

    def once(self: TrainingLoop) -> None:
        signal.signal(signal.SIGALRM, lambda *_: os._exit(STARTED))
        signal.alarm(5)  # student_steps=1000000000 has begun, too
        play(self)
        sys.exit(STARTED)

    TrainingLoop.play = once  # type: ignore[method-assign]
    torch._dynamo.config.disable = True  # compiling takes longer than the limit
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def command(random: Random, tiny: Tiny, folder: Path) -> list[str]:
    """Return a valid command, edited."""
    base = random.choice([*METHODS, *METHODS, "quickstart", "quickstart_kd", "sweep"])
    method = {"quickstart_kd": "kd"}.get(base, base if base in METHODS else "mosaic")
    edits = [random_edit(random, method) for _ in range(random.choice([1, 1, 1, 2, 3]))]
    flags = ["-m"] if random.random() < 0.15 else []
    if base == "quickstart":
        return [*flags, *tiny.mosaic(), *edits]
    if base == "quickstart_kd":
        return [*flags, *tiny.distil("kd"), *edits]
    if base == "sweep":
        return ["-m", "sweep=quickstart", *tiny.mosaic()[1:], *edits]
    teacher = [f"teacher.checkpoint={tiny.teacher}"] if base != "scratch" else []
    conf = ["--config-dir", str(folder / "conf")]
    return [*conf, *flags, "experiment=tiny", f"method={base}", *teacher, *edits]


def run(arguments: list[str], forked: Forked, shared: Path) -> str:
    """Run a command in a folder of its own -> started, refused, or what was wrong."""
    forked.folder = shared / "edited" / "a" / "b"
    forked.folder.mkdir(parents=True)
    before = files_around(shared)
    try:
        outcome = forked.start(*arguments, before=stop_after_the_first_iteration).wait(LIMIT)
        problem, text = problem_of(outcome), outcome.text
    except TimeoutError as error:
        outcome, problem, text = None, str(error), ""
    if any("Traceback" in log.read_text() for log in forked.folder.rglob("run.log")):
        problem = problem or "a traceback in run.log"
    if new := files_around(shared) ^ before:
        problem = f"it left {new}"
    shutil.rmtree(shared / "edited")
    if problem:
        return f"{shlex.join(arguments)}\n{problem}\n{text[-4000:]}"
    return "started" if outcome and outcome.code == STARTED else "refused"


def files_around(folder: Path) -> set[str]:
    """Return what lies where a command could write by mistake."""
    places = [REPO, REPO / "conf", REPO / "tests", folder, folder.parent]
    ours = {"__pycache__", ".hypothesis"}  # folders that the tests themselves make
    return {str(path) for place in places for path in place.iterdir() if path.name not in ours}


def problem_of(outcome: Outcome) -> str | None:
    """Return what is wrong with how a command ended."""
    if "Traceback" in outcome.text:
        return "a traceback"
    if outcome.code == STARTED:
        return None
    if outcome.code not in (1, 2):
        return f"exit code {outcome.code}"
    messages = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    if len(messages) != 1:
        return f"{len(messages)} messages"
    length = len(outcome.err[outcome.err.index("error: ") :].strip())
    return None if 20 <= length <= LONGEST else f"a message of {length} characters"


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_edited_commands(tmp_path: Path) -> None:
    """Edits are not shrunk, but run to the end: what is wrong is reported all at once."""
    tiny = Tiny(tmp_path / "glyphs", tmp_path / "teacher.safetensors")
    tiny.glyphs.mkdir()
    assert tiny.teacher
    save_weights(WideResNet(depth=16, widen_factor=2, num_classes=24), tiny.teacher, {})
    tiny.experiment(tmp_path)
    logs = tmp_path / "logs"
    logs.mkdir()
    forked = Forked(tmp_path, logs)
    edits = os.environ.get("MOSAICKD_EDITS")
    count = int(edits or 12)
    outcomes: list[str] = []

    @settings(
        max_examples=count, derandomize=not edits, database=None, deadline=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.randoms(use_true_random=True))
    def run_one(random: Random) -> None:
        outcomes.append(run(command(random, tiny, tmp_path), forked, tmp_path))

    run_one()
    wrong = [outcome for outcome in outcomes if outcome not in ("started", "refused")]
    print(f"{count} edited commands: {outcomes.count('started')} started, {len(wrong)} went wrong")
    assert not wrong, "\n\n".join(wrong[:5])
    assert outcomes.count("started") >= count // 24
    assert outcomes.count("refused") >= count // 3
