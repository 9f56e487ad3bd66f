"""python -m mosaickd.figures NAME RUN [RUN ...] [--out FOLDER]"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context

from mosaickd.analysis.figures import ablations, curves, domains, embedding, samples
from mosaickd.analysis.figures.animation import write_animation
from mosaickd.analysis.figures.drawing import STYLE, Drawing, write_drawing
from mosaickd.analysis.figures.runs import Run, log, select_runs, warn_left_out
from mosaickd.cli import main_guard
from mosaickd.errors import UserError

#: Each figure, and what it shows.
FIGURES = {
    "samples": "synthetic images by class, the runs side by side (the paper's Figure 6)",
    "domains": "how far apart in-domain, OOD and synthetic images are, by patch size",
    "patch": "accuracy by the discriminator's patch size (sweep=ablation_patch)",
    "losses": "accuracy without one loss at a time (sweep=ablation_losses)",
    "curves": "accuracy over training, by method",
    "embedding": "where the teacher sees in-domain, OOD and synthetic images",
    "animation": "a generator's images over the training, as a GIF or a film",
}
#: Those that compare accuracies, so that only finished runs can be drawn.
FINISHED_ONLY = ("patch", "losses", "curves")


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, print the files' paths; exit with 1 and a message where nothing can be drawn."""
    options = parse(argv)
    logging.basicConfig(format="%(message)s")  # what is left out, to stderr
    with main_guard():
        runs = select_runs(options.runs, finished=options.name in FINISHED_ONLY)
        if options.name == "animation":
            animate(runs, options)
            return
        with rc_context(STYLE):
            for path in write_drawing(draw(runs, options), options.out, options.name):
                print(path)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line: one command a figure."""
    parser = argparse.ArgumentParser(
        prog="python -m mosaickd.figures",
        description="Figures from what runs have written: a PNG and a PDF for a paper's column, "
        "and the numbers in them as JSON.",
    )
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    commands = {}
    for name, text in FIGURES.items():
        command = names.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.add_argument("runs", nargs="+", type=Path, metavar="RUN",
                             help="a run's folder, or one with runs below it")  # fmt: skip
        command.add_argument("--out", type=Path, default=Path("figures"), metavar="FOLDER",
                             help="where the files go (figures)")  # fmt: skip
        commands[name] = command
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
    add("--seconds", type=seconds, default=0.4, metavar="S",
        help="that an evaluation is shown (0.4)")  # fmt: skip
    return parser.parse_args(argv)


def count(text: str) -> int:
    """Return a whole number from 1 on."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return int(text)


def seconds(text: str) -> float:
    """Return a time that a frame of an animation can be shown."""
    if not 0.02 <= float(text) <= 60:
        raise argparse.ArgumentTypeError(f"{text} is not between 0.02 and 60")
    return float(text)


def draw(runs: Sequence[Run], options: argparse.Namespace) -> Drawing:
    """Return the figure that the command asks for."""
    match options.name:
        case "samples":
            return samples.draw(
                runs, rows=options.classes, columns=options.images, what=options.what
            )
        case "patch":
            return ablations.draw_patch(runs, evaluation=options.evaluation)
        case "losses":
            return ablations.draw_losses(runs, evaluation=options.evaluation)
        case "curves":
            return curves.draw(runs)
    return draw_with_teacher(runs, options)


def draw_with_teacher(runs: Sequence[Run], options: argparse.Namespace) -> Drawing:
    """Return the figure of the first run that asks its teacher and its generator."""
    from mosaickd.loaded_run import LoadedRun  # imports torch

    run, *others = runs
    for other in others:
        warn_left_out(other.run_dir, "one run is drawn")
    loaded = LoadedRun(run.run_dir.path, device=options.device, allow_targets=options.allow_targets)
    if options.name == "domains":
        pools = {"domain": loaded.domain(2 * options.images), "ood": loaded.ood(options.images),
                 "synthetic": loaded.synthetic(options.images)}  # fmt: skip
        return domains.draw(run, pools, loaded.embed, sizes=options.patches)
    pools = {"domain": loaded.domain(options.images)}
    for kind, read in {"ood": loaded.ood, "synthetic": loaded.synthetic}.items():
        try:
            pools[kind] = read(options.images)
        except UserError as error:  # a method may do without
            log.warning("%s", error)
    return embedding.draw(run, pools, loaded.embed, projection=options.projection)


def animate(runs: Sequence[Run], options: argparse.Namespace) -> None:
    """Write an animation of each run; of several each has a folder of its own."""
    folders = [run.run_dir.path.resolve() for run in runs]
    home = Path(os.path.commonpath(folders))
    written = 0
    for run, folder in zip(runs, folders, strict=True):
        out = options.out / folder.relative_to(home)
        try:
            print(write_animation(run, out, kind=options.kind, seconds=options.seconds))
            written += 1
        except UserError as error:
            warn_left_out(run.run_dir, str(error))
    if not written:
        raise UserError("none of these runs can be drawn")


if __name__ == "__main__":
    main()
