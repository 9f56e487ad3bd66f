"""python -m mosaickd.figures NAME RUN [RUN ...] [--out FOLDER]"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mosaickd.cli import describe_os_error, main_guard
from mosaickd.errors import UserError
from mosaickd.figures import ablations, animation, curves, domains, drawing, embedding, samples
from mosaickd.figures.drawing import Drawing
from mosaickd.figures.runs import Chosen, choose
from mosaickd.report.labels import shown

MOST = 100_000  # images, classes, pixels

Draw = Callable[[Chosen, argparse.Namespace], Drawing]


def _revived(options: argparse.Namespace) -> dict[str, Any]:
    """How a run's teacher is brought back."""
    return {"device": options.device, "allow_targets": options.allow_targets}


#: Each figure: what it shows, and whether runs that have not finished can be drawn.
FIGURES: dict[str, tuple[str, bool, Draw]] = {
    "samples": (
        "synthetic images by class, the runs side by side (the paper's Figure 6)",
        True,
        lambda runs, o: samples.draw(runs, rows=o.classes, columns=o.images, what=o.what),
    ),
    "domains": (
        "how far apart in-domain, OOD and synthetic images are, by patch size",
        True,
        lambda runs, o: domains.draw(runs, sizes=o.patches, images=o.images, **_revived(o)),
    ),
    "patch": (
        "accuracy by the discriminator's patch size (sweep=ablation_patch)",
        False,
        lambda runs, o: ablations.draw_patch(runs, evaluation=o.evaluation),
    ),
    "losses": (
        "accuracy without one loss at a time (sweep=ablation_losses)",
        False,
        lambda runs, o: ablations.draw_losses(runs, evaluation=o.evaluation),
    ),
    "curves": ("accuracy over training, by method", False, lambda runs, o: curves.draw(runs)),
    "embedding": (
        "where the teacher sees in-domain, OOD and synthetic images",
        True,
        lambda runs, o: embedding.draw(
            runs, projection=o.projection, images=o.images, **_revived(o)
        ),
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, print the files' paths; exit with 1 and a message where nothing can be drawn."""
    options = parser().parse_args(argv)
    with main_guard():
        if getattr(options, "allow_targets", None):  # the user's own code may lie here
            sys.path.append(os.getcwd())
        if options.name == "animation":
            _animate(options)
        else:
            _draw(options)


def parser() -> argparse.ArgumentParser:
    """One command a figure."""
    whole = argparse.ArgumentParser(
        prog="python -m mosaickd.figures",
        description="Figures from what runs have written: a PNG and a PDF for a paper's column, "
        "and the numbers in them as JSON.",
    )
    names = whole.add_subparsers(dest="name", required=True, metavar="NAME")
    commands = {
        name: names.add_parser(name, help=words, description=words[0].upper() + words[1:] + ".")
        for name, (words, *_) in FIGURES.items()
    }
    words = "a generator's images over the training, as a GIF or a film"
    commands["animation"] = names.add_parser("animation", help=words, description=words)
    for command in commands.values():
        command.add_argument("runs", nargs="+", type=Path, metavar="RUN",
                             help="a run's folder, or one with runs below it")  # fmt: skip
        command.add_argument("--out", type=Path, default=Path("figures"), metavar="FOLDER",
                             help="where the files go (figures)")  # fmt: skip
    add = commands["samples"].add_argument
    add("--classes", type=count, default=8, metavar="N", help="rows: at most so many classes (8)")
    add("--images", type=count, default=4, metavar="N", help="of each class at most so many (4)")
    add("--what", choices=("synthetic", "images"), default="synthetic",
        help="what the generator makes, or the images that it learns from")  # fmt: skip
    for name in ("patch", "losses"):
        commands[name].add_argument("--best", action="store_const", dest="evaluation", const="best",
                                    default="last", help="each run's best evaluation, which is "
                                    "picked on the test images, not its last")  # fmt: skip
    add = commands["domains"].add_argument
    add("--patches", type=count, nargs="+", default=[], metavar="N",
        help="sizes in pixels (2 4 8 ... up to the whole image)")  # fmt: skip
    add("--images", type=count, default=2000, metavar="N", help="of each domain at most so many")
    add = commands["embedding"].add_argument
    add("--projection", choices=("tsne", "pca"), default="tsne")
    add("--images", type=count, default=500, metavar="N", help="of each kind at most so many (500)")
    for name in ("domains", "embedding"):
        add = commands[name].add_argument
        add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
        add("--allow-targets", nargs="+", default=[], metavar="PACKAGE",
            help="packages beside torch's that the run's config may build from")  # fmt: skip
    add = commands["animation"].add_argument
    add("--mp4", action="store_const", dest="kind", const="mp4", default="gif",
        help='a film in place of a GIF (pip install "mosaickd[video]")')  # fmt: skip
    add("--seconds", type=float, default=0.4, metavar="S", help="that an evaluation is shown (0.4)")
    return whole


def count(text: str) -> int:
    """A whole number from 1 on, not out of this world."""
    number = int(text)
    if not 1 <= number <= MOST:
        raise argparse.ArgumentTypeError(f"{text} is not between 1 and {MOST}")
    return number


def _draw(options: argparse.Namespace) -> None:
    _, unfinished_too, draw = FIGURES[options.name]
    drawing_ = draw(choose(options.runs, finished=not unfinished_too), options)
    _tell(drawing_.notes)
    for path in drawing.write(drawing_, options.out, options.name):
        print(shown(path))


def _animate(options: argparse.Namespace) -> None:
    chosen = choose(options.runs, finished=False)
    _tell(chosen.notes)
    home = Path(os.path.commonpath([run.folder.resolve() for run in chosen.runs]))
    failed: list[str] = []
    for run in chosen.runs:
        # Of several runs each has a folder of its own, where it lies in what they have in common.
        folder = options.out / run.folder.resolve().relative_to(home)
        try:
            path, notes = animation.write(run, folder, kind=options.kind, seconds=options.seconds)
        except UserError as error:
            failed.append(str(error))
            continue
        except OSError as error:
            failed.append(describe_os_error(error))
            continue
        _tell(notes)
        print(shown(path))
    if len(failed) == len(chosen.runs):
        raise UserError("; ".join(failed[:5]) + (", and others" if len(failed) > 5 else ""))
    _tell([f"left out: {reason}" for reason in failed])


def _tell(notes: Sequence[str]) -> None:
    for note in notes:
        print(note, file=sys.stderr)


if __name__ == "__main__":
    main()
