"""Where runs lie below some folders, and where nobody looks for them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mosaickd.errors import UserError, printable
from mosaickd.locks import OWNER

RESULT, METRICS, LOG, CONFIG = "result.json", "metrics.jsonl", "run.log", ".hydra/config.yaml"

#: Of a run's folder: no runs of their own.
INSIDE = {"checkpoints", "samples", "wandb", "teacher", ".hydra"}


def check_folders(roots: Iterable[Path], missing: str = "no run") -> None:
    """Raise a UserError for what is no folder. missing: how it begins."""
    for root in roots:
        if not os.path.isdir(root):
            exists = os.path.lexists(root)
            what = "it is a file, not a folder" if exists else "there is no such folder"
            raise UserError(f"{missing} below {root}: {what}")


def files_below(root: Path, name: str) -> Iterator[Path]:
    """Files of that name, but not those of a teacher that a run trained for itself."""
    for path in sorted(root.rglob(name)):
        if path.exists() and not path.is_file():
            continue  # a pipe would be waited for
        *_, home, folder = ("", "", *path.parent.relative_to(root).parts)
        if not (home == "teacher" and folder.endswith("-training")):
            yield path


def run_folders(roots: Iterable[Path]) -> Iterator[tuple[Path, Path]]:
    """(root, folder) of each run below the roots, once, also of those that have no result yet."""
    seen: set[str] = set()
    for root in roots:
        for folder, is_run, _ in _walk(root):
            if is_run and (real := os.path.realpath(folder)) not in seen:
                seen.add(real)
                yield root, folder


def linked_folders(roots: Sequence[Path]) -> list[Path]:
    """Links below the roots to folders elsewhere: nobody looks into these for runs."""
    homes = [Path(os.path.realpath(root)) for root in roots]
    found: dict[str, Path] = {}
    for root in roots:
        for _, _, links in _walk(root):
            for link in links:
                target = os.path.realpath(link)
                if not any(Path(target).is_relative_to(home) for home in homes):
                    found.setdefault(target, link)
    return list(found.values())


def about_links(links: Sequence[Path]) -> str:
    """What to do about them."""
    some = ", ".join(printable(str(link), 200) for link in links[:3])
    if len(links) == 1:
        return f"not looked into, as it is a link: {some}; name it as well, if its runs count"
    some += f" and {len(links) - 3} more" if len(links) > 3 else ""
    return f"not looked into, as they are links: {some}; name them as well, if their runs count"


def _walk(root: Path) -> Iterator[tuple[Path, bool, list[Path]]]:
    """Each folder, whether a run's, and the links to folders in it."""
    for place, folders, names in os.walk(root):
        folder = Path(place)
        is_run = not {RESULT, METRICS, LOG, OWNER}.isdisjoint(names)
        is_run = is_run or (".hydra" in folders and (folder / CONFIG).exists())
        if is_run:
            folders[:] = [name for name in folders if name not in INSIDE]
        folders.sort()
        yield folder, is_run, [link for name in folders if (link := folder / name).is_symlink()]
