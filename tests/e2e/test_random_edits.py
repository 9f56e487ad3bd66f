"""Random edits of valid commands: a run starts, or one message says what is wrong.

By default a few, always the same ones. `MOSAICKD_EDITS=5000 pytest -m slow` with this file's name
tries so many, others at each `--hypothesis-seed`; `-s` prints what became of them, and a file that
MOSAICKD_EDITS_LOG names tells of each.
"""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import pytest
import torch
from composing import composed, composing
from conftest import REPO, Cli, Outcome, Tiny, new_cli, stop
from forked import Forked
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, ListConfig, OmegaConf

from mosaickd.cli import GROUPS, choices_of
from mosaickd.models.weights import save_weights
from mosaickd.models.wresnet import WideResNet

STARTED = 77  # the exit code of a run that has outputs its first iteration
LIMIT = 30.0  # seconds that no edit may take
MEMORY = 4 << 30  # bytes that a run may ask for beyond what its imports did
LONGEST = 3200  # characters of a message

METHODS = [
    *("balanced", "crd", "dafl", "deepinv", "dfq", "fitnet"),
    *("kd", "mosaic", "rkd", "scratch", "sskd", "zskt"),
]

# ------------------------------------------------------------------------------------- the edits

NUMBERS = [
    *("-1", "0", "1", "2", "3", "7", "100000", "1000000000", "-1000000000000000000"),
    *("2147483648", "9223372036854775808", "1" + "0" * 30, "1" + "0" * 400, "0x10", "1_000"),
    *("0.0", "-0.0", "0.5", "1e-30", "1e30", "1e308", "1e400", "-1e400", "nan", "inf", "-inf"),
]
USUAL = ["1", "2", "3", "5", "16", "17", "100", "0.1", "0.5", "1.5", "true", "false", "null"]
PLAUSIBLE = {
    bool: ["true", "false"],
    int: ["0", "1", "2", "3", "4", "5", "8", "10", "15", "16", "17", "24", "32", "64", "1000"],
    float: ["0", "1", "-1", "0.001", "0.5", "0.999", "1.5", "20", "1e-9", "1e9", "1e30"],
    ListConfig: [
        "[]",
        "[0]",
        "[1]",
        "[0,1]",
        "[1,0]",
        "[0.5,0.5,0.5]",
        "[0.1,2]",
        "[a]",
        "[conv1]",
    ],
    str: [
        "a",
        "auto",
        "cpu",
        "fp32",
        "bf16",
        "ood",
        "dataset",
        "letters",
        "strokes",
        "a b",
        "1",
        "fc",
    ],
}
TEXTS = [
    *("", "''", '""', "' '", "null", "true", "false", "no", "None", "a", "a b", "ä", "名前", "🙂"),
    *(
        "'a\nb'",
        "'\\'",
        "\\",
        "%s",
        "%(x)s",
        "{}",
        "{a: 1}",
        "{a: {b: [1]}}",
        "[]",
        "[null]",
        "[1,2]",
    ),
    *(
        "[[1]]",
        "[a]",
        "['']",
        "{1: 2}",
        "..",
        "../x",
        "a/b",
        "a/../b",
        ".",
        "~",
        "*",
        "-",
        "--",
        "+a",
    ),
    *("'[1'", "'{'", '"\'"', "[", "]", "{", "}", "'", '"', "a=b", "a:b", "a,b", "1,2", "a,", ","),
    *("range(1,3)", "choice(a,b)", "glob(*)", "interval(0,1)", "tag(a,1)", "shuffle(1,2)"),
    *("int(x)", "str(1)", "json_str([1])", "sort(2,1)", "float(1)", "bool(x)", "extend_list(1)"),
    *("${seed}", "${oc.env:HOME}", "${oc.env:NOWHERE}", "${nonexistent}", "${method}", "${}", "${"),
    *("${.}", "${..}", "${...name}", "${dataset.${seed}}", "${oc.decode:x}", "${unknown:1}"),
    *(
        "${hydra:run.dir}",
        "${hydra.run.dir}",
        "${now:%Y}",
        "${oc.create:{a: 1}}",
        "\\${seed}",
        "???",
    ),
    *("x" * 300, "x" * 5000, "[" * 200, "[" + "1," * 2000 + "1]", "${seed}" * 300),
]
TARGETS = [
    *("torch.nn.Identity", "torch.nn.Linear", "torch.nn.Sequential", "torch.optim.LBFGS"),
    *(
        "torch.optim.SGD",
        "torch.optim.lr_scheduler.StepLR",
        "torch.optim",
        "torch.hub.load",
        "torch",
    ),
    *("torchvision.models.resnet18", "torchvision.models.vgg11", "mosaickd.data.folder.read"),
    *("mosaickd.methods.kd.KD", "mosaickd.methods.base.Method", "mosaickd.engine.schedules.cosine"),
    *("mosaickd.engine.trackers.Tracker", "mosaickd.models.wresnet.WideResNet", "os.system", "x"),
    *(
        "mosaickd.data.source.Source",
        "mosaickd",
        "mosaickd.",
        ".mosaickd",
        "",
        "a.b",
        "builtins.eval",
    ),
]
MALFORMED = [
    *(
        "=",
        "a=",
        "=b",
        "a=[",
        "a={b",
        "a='",
        'a="',
        "a b=c",
        "@",
        "a@b=c",
        "a@b:c=d",
        "+=1",
        "~",
        "",
    ),
    *(
        " ",
        "\n",
        "a=b=c",
        "$",
        "a=${",
        "a.=1",
        ".a=1",
        "a..b=1",
        "a[0]=1",
        "method.=1",
        "+",
        "++",
        "+~a",
    ),
    *(
        "seed",
        "seed:1",
        "~seed=1",
        "~method",
        "hydra",
        "hydra=1",
        "hydra/x=1",
        "hydra/launcher=nothing",
    ),
    *("method/kd=1", "method@x=kd", "+method@x=kd", "hydra.run=1", "-x", "--x", "a" * 3000, "ü=ü"),
]
SHOWING = [
    ["--cfg", "job"], ["--cfg", "hydra"], ["--cfg", "all"], ["--cfg", "nothing"], ["--cfg"],
    ["--cfg", "job", "--resolve"], ["--cfg", "job", "--package", "method"], ["--resolve"],
    ["--help"], ["--hydra-help"], ["--info"],
    ["--info", "defaults"], ["--info", "nothing"], ["--version"], ["--run", "--multirun"],
    ["--config-dir", "nowhere"], ["--config-name", "config"], ["--config-path", "conf"],
    ["--experimental-rerun", "x"], ["--shell-completion"], ["--package", "method"],
]  # fmt: skip
SHOWN = {argument for arguments in SHOWING for argument in arguments}
CHARACTERS = "aZ09 _.,:;=+-~!?@#$%^&*()[]{}<>|\\'\"`\t\näß名🙂\u200b\x7f"
#: Where a value may say which files are written, or which processes are started: left as it is.
LEFT = ("hydra.launcher", "hydra.sweeper._target_", "hydra.job.env")


def dotted(node: DictConfig, path: str = "") -> Iterator[str]:
    """All settings and sections below `node`."""
    for key in node:
        yield f"{path}{key}"
        child = node._get_node(key)
        if isinstance(child, ListConfig) and not child._is_none() and len(child):
            yield f"{path}{key}.0"
        if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
            yield from dotted(child, f"{path}{key}.")


@cache
def config_of(method: str) -> DictConfig:
    with composing():
        return composed(f"method={method}", "dataset=letters", "ood=strokes")


@cache
def settings_of(method: str) -> tuple[list[str], list[str]]:
    """What can be said of a run, and of Hydra."""
    found = sorted(dotted(config_of(method)))
    hydras = [key for key in found if key.startswith("hydra.") and not key.startswith(LEFT)]
    return [key for key in found if not key.startswith("hydra")], hydras


@dataclass
class Editor:
    """Draws edits of a command that chooses `method`."""

    random: Random
    method: str

    def key(self) -> str:
        own, hydras = settings_of(self.method)
        if self.random.random() < 0.05:
            own = settings_of(self.random.choice(METHODS))[0]
        return self.random.choice(hydras if self.random.random() < 0.2 else own)

    def value(self) -> str:
        pool = self.random.choice(
            [USUAL, USUAL, NUMBERS, NUMBERS, TEXTS, TEXTS, TEXTS, TARGETS, []]
        )
        if pool:
            return self.random.choice(pool)
        return "".join(self.random.choices(CHARACTERS, k=self.random.randint(1, 12)))

    def plausible(self) -> str:
        """Another value of the same type, so that most are found wrong late, or not at all."""
        key = self.random.choice(settings_of(self.method)[0])
        present = OmegaConf.select(config_of(self.method), key, throw_on_missing=False)
        pool = PLAUSIBLE.get(type(present), USUAL)
        return f"{key}={self.random.choice(pool)}"

    def misspelt(self) -> str:
        key = self.key()
        at = self.random.randrange(len(key))
        return self.random.choice(
            [key[:at] + key[at + 1 :], key[:at] + key[at] + key[at:], key + "s"]
        )

    def choice(self) -> str:
        group = self.random.choice([*GROUPS, "hydra/job_logging", "hydra/hydra_logging"])
        known = choices_of(group) if group in GROUPS else ["none", "disabled", "default"]
        known = [name for name in known if not name.startswith("table1")] * 2
        some = self.random.choices(
            [*known, "null", "nothing", ""], k=self.random.choice([1, 1, 1, 2])
        )
        form = self.random.choice(["{}", "{}", "{}", "[{}]"])
        return f"{group}={form.format(','.join(some))}"

    def edit(self) -> str:
        key, value = self.key(), self.value()
        target = self.random.choice(
            ["method", "student", "teacher", "dataset", "dataset.reader", "tracker", "+train",
             "players.student.optimizer", "players.student.schedule", "+method.x", "++generator"]
        )  # fmt: skip
        forms = [
            (8, f"{key}={value}"),
            (4, f"{key}={self.random.choice(NUMBERS)}"),
            (20, self.plausible()),
            (2, f"++{key}={value}"),
            (1, f"+{key}={value}"),
            (1, f"{self.random.choice(['', '+', '++'])}{key}.{self.key()}={value}"),
            (1, f"{key}={value},{self.value()}"),
            (2, f"~{key}"),
            (1, f"~{key}={value}"),
            (1, f"{self.misspelt()}={value}"),
            (2, f"{target}._target_={self.random.choice(TARGETS)}"),
            (3, self.choice()),
            (1, self.random.choice(MALFORMED)),
        ]
        return self.random.choices([form for _, form in forms], [weight for weight, _ in forms])[0]

    def edits(self) -> list[str]:
        some = [self.edit() for _ in range(self.random.choice([1, 1, 1, 2, 3]))]
        return [*some, some[0]] if self.random.random() < 0.05 else some

    def flags(self) -> list[str]:
        flags = ["-m"] if self.random.random() < 0.15 else []
        return flags + (self.random.choice(SHOWING) if self.random.random() < 0.05 else [])


# ------------------------------------------------------------------------------------ playing them


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


class Playground:
    """Plays commands, each in a folder of its own."""

    def __init__(self, cli: Cli) -> None:
        self.cli = cli
        self.tiny = Tiny(cli.folder / "glyphs", cli.folder / "teacher.safetensors")
        self.tiny.glyphs.mkdir()
        assert self.tiny.teacher
        torch.manual_seed(0)
        save_weights(WideResNet(depth=16, widen_factor=2, num_classes=24), self.tiny.teacher, {})
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.forked = Forked(cli.folder, cli.logs)
        self.tiny.experiment(cli.folder)

    def command(self, random: Random) -> list[str]:
        """A valid command, edited."""
        base = random.choice(
            [*METHODS, *METHODS, "quickstart", "quickstart_kd", "sweep", "headline"]
        )
        method = {"quickstart_kd": "kd"}.get(base, base if base in METHODS else "mosaic")
        editor = Editor(random, method)
        flags, added = editor.flags(), editor.edits()
        teacher = [f"teacher.checkpoint={self.tiny.teacher}"] if base != "scratch" else []
        own = ["--config-dir", str(self.cli.folder / "conf"), *flags, "experiment=tiny"]
        if base == "headline":
            return [*flags, *added]
        if base == "quickstart":
            return [*flags, *self.tiny.mosaic(), *added]
        if base == "quickstart_kd":
            return [*flags, *self.tiny.distil("kd"), *added]
        if base == "sweep":
            return ["-m", *flags, "sweep=quickstart", *self.tiny.mosaic()[1:], *added]
        return [*own, f"method={base}", *teacher, *added]

    def play(self, arguments: list[str]) -> None:
        number = sum(self.outcomes.values())
        work = self.cli.folder / str(number) / "a" / "b" / "c" / "work"
        work.mkdir(parents=True)
        self.forked.folder = work
        before = seen_from(self.cli.folder)
        try:
            outcome = self.forked.start(*arguments, before=stop_after_the_first_iteration).wait(
                LIMIT
            )
            said = complaint(outcome, arguments)
        except TimeoutError as error:
            outcome, said = None, f"{error}"
        if said is None and any("Traceback" in read(log) for log in work.rglob("run.log")):
            said = "a traceback in run.log"
        if seen_from(self.cli.folder) != before:
            said = f"it left {seen_from(self.cli.folder) ^ before}"
        started = outcome is not None and outcome.code == STARTED
        self.outcomes["wrong" if said else "started" if started else "refused"] += 1
        if outcome:
            said = said and f"{said}\n{outcome.out[-1500:]}\n{outcome.err[-3000:]}"
            self.tell(f"{outcome.code} in {outcome.seconds:.1f} s: {outcome.err[-300:]}", arguments)
        if said:
            self.wrong.append(f"{shlex.join(arguments)}\n{said}")
            self.tell(f"WRONG {said}\n{'=' * 80}", arguments)
        shutil.rmtree(self.cli.folder / str(number))
        for log in self.cli.logs.glob("[0-9]*"):
            log.unlink()

    def tell(self, what: str, arguments: list[str]) -> None:
        """Thousands take hours: what has become of them so far."""
        if log := os.environ.get("MOSAICKD_EDITS_LOG"):
            with open(log, "a") as file:
                file.write(f"{shlex.join(arguments)}\n    {what.strip()}\n")


def read(path: Path) -> str:
    return path.read_text(errors="replace")


OTHERS = {"__pycache__", ".hypothesis"}  # folders that the tests themselves make


def seen_from(folder: Path) -> set[str]:
    """What lies where a command could reach by mistake."""
    places = [REPO, REPO / "conf", REPO / "tests", folder, folder.parent]
    return {str(path) for place in places for path in place.iterdir() if path.name not in OTHERS}


def complaint(outcome: Outcome, arguments: list[str]) -> str | None:
    """What is wrong with how a command ended."""
    if "Traceback" in outcome.text:
        return "a traceback"
    if outcome.code == STARTED or (outcome.code == 0 and {*arguments} & SHOWN):
        return None
    if outcome.code not in (1, 2):
        return f"exit code {outcome.code}"
    messages = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    if len(messages) != 1:
        return f"{len(messages)} messages"
    message = outcome.err[outcome.err.index("error: ") :].strip()
    if len(message) > LONGEST:
        return f"a message of {len(message)} characters"
    if len(message) < 20:
        return "a message that says nothing"
    return None


@pytest.fixture(scope="module")
def playground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Playground]:
    cli = new_cli(tmp_path_factory.mktemp("edits"))
    yield Playground(cli)
    stop(cli)


def play_some(playground: Playground, count: int, *, same: bool) -> None:
    """Edits are not shrunk, but outputs to the end: what is wrong is told all at once."""

    @settings(
        max_examples=count, derandomize=same, database=None, deadline=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.randoms(use_true_random=True))
    def playing(random: Random) -> None:
        playground.play(playground.command(random))

    playing()
    print(f"{sum(playground.outcomes.values())} edited commands: {dict(playground.outcomes)}")
    assert not playground.wrong, "\n\n".join(playground.wrong[:5])
    assert playground.outcomes["started"] >= count // 24
    assert playground.outcomes["refused"] >= count // 3


@pytest.mark.slow
def test_some_edits(playground: Playground) -> None:
    play_some(playground, 6, same=True)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_many_edits(playground: Playground) -> None:
    play_some(playground, int(os.environ.get("MOSAICKD_EDITS", "300")), same=False)
