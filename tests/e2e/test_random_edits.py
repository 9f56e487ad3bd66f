"""Random edits of valid commands: a run starts, or one message says what is wrong.

By default a few, always the same ones. `MOSAICKD_EDITS=5000 pytest -m slow` with this file's name
tries so many, others at each `--hypothesis-seed`, and prints what became of them.
"""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from composing import composed, composing
from conftest import REPO, Cli, Outcome, Tiny, new_cli, stop
from forked import Forked
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, ListConfig

from mosaickd.command_line import GROUPS, choices_of
from mosaickd.models.weights import save_weights
from mosaickd.models.wresnet import WideResNet

STARTED = 77  # the exit code of a run that has reached its first iteration
LIMIT = 30.0  # seconds that no edit may take
MEMORY = 4 << 30  # bytes that a run may ask for beyond what its imports did
LONGEST = 1500  # characters of a message

METHODS = [
    *("balanced", "crd", "dafl", "deepinv", "dfq", "fitnet"),
    *("kd", "mosaic", "rkd", "scratch", "sskd", "zskt"),
]

# ------------------------------------------------------------------------------------- the edits

NUMBERS = [
    *("-1", "0", "1", "2", "3", "7", "1000000", "1000000000", "-1000000000000000000"),
    *("2147483648", "9223372036854775808", "1" + "0" * 30, "1" + "0" * 400, "0x10", "1_000"),
    *("0.0", "-0.0", "0.5", "1e-30", "1e30", "1e308", "1e400", "-1e400", "nan", "inf", "-inf"),
]
TEXTS = [
    *("", "''", '""', "' '", "null", "true", "false", "no", "None", "a", "a b", "ä", "名前", "🙂"),
    *("'a\nb'", "'\\'", "\\", "%s", "%(x)s", "{}", "{a: 1}", "{a: {b: [1]}}", "[]", "[null]", "[1,2]"),
    *("[[1]]", "[a]", "['']", "{1: 2}", "..", "../x", "a/b", "a/../b", ".", "~", "*", "-", "--", "+a"),
    *("'[1'", "'{'", "\"'\"", "[", "]", "{", "}", "'", '"', "a=b", "a:b", "a,b", "1,2", "a,", ","),
    *("range(1,3)", "choice(a,b)", "glob(*)", "interval(0,1)", "tag(a,1)", "shuffle(1,2)"),
    *("int(x)", "str(1)", "json_str([1])", "sort(2,1)", "float(1)", "bool(x)", "extend_list(1)"),
    *("${seed}", "${oc.env:HOME}", "${oc.env:NOWHERE}", "${nonexistent}", "${method}", "${}", "${"),
    *("${.}", "${..}", "${...name}", "${dataset.${seed}}", "${oc.decode:x}", "${unknown:1}"),
    *("${hydra:run.dir}", "${hydra.run.dir}", "${now:%Y}", "${oc.create:{a: 1}}", "\\${seed}", "???"),
    *("x" * 300, "x" * 5000, "[" * 200, "[" + "1," * 2000 + "1]", "${seed}" * 300),
]
TARGETS = [
    *("torch.nn.Identity", "torch.nn.Linear", "torch.nn.Sequential", "torch.optim.LBFGS"),
    *("torch.optim.SGD", "torch.optim.lr_scheduler.StepLR", "torch.optim", "torch.hub.load", "torch"),
    *("torchvision.models.resnet18", "torchvision.models.vgg11", "mosaickd.data.folder.read"),
    *("mosaickd.methods.kd.KD", "mosaickd.methods.base.Method", "mosaickd.engine.schedules.cosine"),
    *("mosaickd.engine.trackers.Tracker", "mosaickd.models.wresnet.WideResNet", "os.system", "x"),
    *("mosaickd.data.source.Source", "mosaickd", "mosaickd.", ".mosaickd", "", "a.b", "builtins.eval"),
]
MALFORMED = [
    *("=", "a=", "=b", "a=[", "a={b", "a='", 'a="', "a b=c", "@", "a@b=c", "a@b:c=d", "+=1", "~", ""),
    *(" ", "\n", "a=b=c", "$", "a=${", "a.=1", ".a=1", "a..b=1", "a[0]=1", "method.=1", "+", "++", "+~a"),
    *("seed", "seed:1", "~seed=1", "~method", "hydra", "hydra=1", "hydra/x=1", "hydra/launcher=nothing"),
    *("method/kd=1", "method@x=kd", "+method@x=kd", "hydra.run=1", "-x", "--x", "a" * 3000, "ü=ü"),
]
SHOWING = [
    ["--cfg", "job"], ["--cfg", "hydra"], ["--cfg", "all"], ["--cfg", "nothing"], ["--cfg"],
    ["--cfg", "job", "--resolve"], ["--cfg", "job", "--package", "method"], ["--resolve"],
    ["--cfg", "job", "--package", "nowhere"], ["--help"], ["--hydra-help"], ["--info"],
    ["--info", "defaults"], ["--info", "nothing"], ["--version"], ["--run", "--multirun"],
    ["--config-dir", "nowhere"], ["--config-name", "config"], ["--config-path", "conf"],
    ["--experimental-rerun", "x"], ["--shell-completion"], ["--package", "method"],
]  # fmt: skip
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


def all_settings() -> list[str]:
    """What can be said of any of the methods, and of Hydra."""
    with composing():
        found = {
            key
            for method in METHODS
            for key in dotted(composed(f"method={method}", "dataset=letters", "ood=strokes"))
        }
    own = sorted(key for key in found if not key.startswith("hydra"))
    hydras = sorted(key for key in found if key.startswith("hydra.") and not key.startswith(LEFT))
    return [*own, *own, *own, *hydras]  # Hydra's are as many, and not ours


SETTINGS = all_settings()

plain_text = st.text(
    st.characters(blacklist_categories=("Cs",), blacklist_characters="\0/"), max_size=20
)
values = st.one_of(
    st.sampled_from(NUMBERS), st.sampled_from(TEXTS), st.sampled_from(TARGETS), plain_text,
    st.integers().map(str), st.floats().map(str), st.lists(st.integers(-2, 30)).map(str),
)  # fmt: skip
keys = st.sampled_from(SETTINGS)
groups = st.sampled_from([*GROUPS, *GROUPS, "hydra/job_logging", "hydra/hydra_logging", "hydra/output"])


@st.composite
def misspelt(draw: st.DrawFn) -> str:
    key = draw(keys)
    at = draw(st.integers(0, len(key) - 1))
    return draw(st.sampled_from([key[:at] + key[at + 1 :], key[:at] + key[at] + key[at:], key + "s"]))


@st.composite
def chosen(draw: st.DrawFn) -> str:
    group = draw(groups)
    options = [*choices_of(group), "null", "nothing", ""] if group in GROUPS else ["none", "disabled"]
    options = [o for o in options if not o.startswith("table1")]
    some = draw(st.lists(st.sampled_from(options), min_size=1, max_size=2))
    sign = draw(st.sampled_from(["", "", "", "+", "++"]))
    return f"{sign}{group}={draw(st.sampled_from(['{}', '{}', '[{}]'])).format(','.join(some))}"


edits = st.one_of(
    st.builds("{}={}".format, keys, values),
    st.builds("{}={}".format, keys, values),
    st.builds("{}={}".format, keys, st.sampled_from(NUMBERS)),
    st.builds("{}{}={}".format, st.sampled_from(["+", "++"]), keys, values),
    st.builds("{}{}.{}={}".format, st.sampled_from(["+", "++", ""]), keys, keys, values),
    st.builds("{}={},{}".format, keys, values, values),
    st.builds("~{}".format, keys),
    st.builds("~{}={}".format, keys, values),
    st.builds("{}={}".format, misspelt(), values),
    st.builds("{}_target_={}".format, st.sampled_from(
        ["method.", "student.", "teacher.", "dataset.reader.", "ood.", "tracker.", "+train.",
         "players.student.optimizer.", "players.student.schedule.", "+method.x.", "++generator."]
    ), st.sampled_from(TARGETS)),
    chosen(),
    st.sampled_from(MALFORMED),
)  # fmt: skip


@st.composite
def commands(draw: st.DrawFn) -> list[str]:
    """Which valid command, what stands before its overrides, and what is added to them."""
    base = draw(st.sampled_from([*METHODS, "quickstart", "quickstart_kd", "sweep", "headline"]))
    added = draw(st.lists(edits, min_size=1, max_size=3))
    if draw(st.integers(0, 9)) == 0:
        added.append(added[0])
    flags = draw(st.sampled_from([[]] * 8 + [["-m"]] * 2))
    if draw(st.integers(0, 14)) == 0:
        flags = [*flags, *draw(st.sampled_from(SHOWING))]
    return [base, *flags, "|", *added]


# ------------------------------------------------------------------------------------ playing them


def stop_at_the_first_iteration() -> None:
    """In the process of a command: no iterations, and no more memory than a laptop has."""
    from mosaickd.engine.loop import Loop

    def fit(self: Loop) -> None:
        self.resume()
        sys.exit(STARTED)

    Loop.fit = fit  # type: ignore[assignment, method-assign]
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

    def arguments(self, command: list[str]) -> list[str]:
        base, *flags = command[: command.index("|")]
        added = command[command.index("|") + 1 :]
        teacher = f"teacher.checkpoint={self.tiny.teacher}"
        own = ["--config-dir", str(self.cli.folder / "conf"), *flags, "experiment=tiny"]
        if base == "headline":
            return [*flags, *added]
        if base == "quickstart":
            return [*flags, *self.tiny.mosaic(), *added]
        if base == "quickstart_kd":
            return [*flags, *self.tiny.distil("kd"), *added]
        if base == "sweep":
            return ["-m", *flags, "sweep=quickstart", teacher, *added]
        if base == "scratch":
            return [*own, "method=scratch", *added]
        return [*own, f"method={base}", teacher, *added]

    def play(self, command: list[str]) -> None:
        number = sum(self.outcomes.values())
        work = self.cli.folder / str(number) / "a" / "b" / "c" / "work"
        work.mkdir(parents=True)
        arguments = self.arguments(command)
        self.forked.folder = work
        before = seen_from(self.cli.folder)
        try:
            outcome = self.forked.start(*arguments, before=stop_at_the_first_iteration).wait(LIMIT)
            said = complaint(outcome, command)
        except TimeoutError as error:
            outcome, said = None, f"{error}"
        if said is None and any("Traceback" in read(log) for log in work.rglob("run.log")):
            said = "a traceback in run.log"
        if seen_from(self.cli.folder) != before:
            said = f"it left {seen_from(self.cli.folder) ^ before}"
        started = outcome is not None and outcome.code == STARTED
        self.outcomes["wrong" if said else "started" if started else "refused"] += 1
        if said:
            text = f"\n{outcome.code} {outcome.out[-1500:]}\n{outcome.err[-3000:]}" if outcome else ""
            self.wrong.append(f"{shlex.join(arguments)}\n{said}{text}")
            if log := os.environ.get("MOSAICKD_EDITS_LOG"):
                with open(log, "a") as file:
                    file.write(self.wrong[-1] + "\n" + "=" * 100 + "\n")
        shutil.rmtree(self.cli.folder / str(number))
        for log in self.cli.logs.glob("[0-9]*"):
            log.unlink()


def read(path: Path) -> str:
    return path.read_text(errors="replace")


def seen_from(folder: Path) -> set[str]:
    """What lies where a command could reach by mistake."""
    places = [REPO, REPO / "conf", REPO / "tests", folder, folder.parent]
    return {str(path) for place in places for path in place.iterdir() if path.name != "__pycache__"}


def complaint(outcome: Outcome, command: list[str]) -> str | None:
    """What is wrong with how a command ended."""
    if "Traceback" in outcome.text:
        return "a traceback"
    if outcome.code == STARTED or (outcome.code == 0 and {*command} & {*sum(SHOWING, [])}):
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
    """Edits are not shrunk, but played to the end: what is wrong is told all at once."""

    @settings(
        max_examples=count, derandomize=same, database=None, deadline=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(commands())
    def playing(command: list[str]) -> None:
        playground.play(command)

    playing()
    print(f"{sum(playground.outcomes.values())} edited commands: {dict(playground.outcomes)}")
    assert not playground.wrong, "\n\n".join(playground.wrong[:5])
    assert playground.outcomes["started"] >= count // 50
    assert playground.outcomes["refused"] >= count // 3


def test_some_edits(playground: Playground) -> None:
    play_some(playground, 30, same=True)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_many_edits(playground: Playground) -> None:
    play_some(playground, int(os.environ.get("MOSAICKD_EDITS", "300")), same=False)
