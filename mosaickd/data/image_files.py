"""The image files below a folder; links that lead out of it are followed only if asked for."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from mosaickd.errors import UserError, printable

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff"}


@dataclass
class ImageFiles:
    """files: paths, with the links that lead out; outside: these links; skipped: what else lies
    there, by kind."""

    files: list[str] = field(default_factory=list)
    outside: set[str] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)

    def add(self, folder: str | Path, root: Path, follow_links: bool) -> None:
        """Add the images below a folder, which is below `root`, without the hidden ones.

        The files of a folder come in sorted order, then those of its sub-folders. Raises UserError
        for a folder that can't be listed.
        """
        ahead, visited = [str(folder)] if os.path.isdir(folder) else [], set[str]()
        while ahead:
            place = ahead.pop()
            real = os.path.realpath(place)
            if real in visited:  # links may lead round in a circle
                self.skipped["link to a folder that is read already"] += 1
                continue
            visited.add(real)
            folders: list[str] = []
            for entry in list_folder(place):
                suffix = os.path.splitext(entry.name)[1].lower()
                if not is_folder(entry) and suffix not in SUFFIXES:
                    self.skipped[suffix or "without a suffix"] += 1
                elif not follow_links and entry.is_symlink() and leads_outside(entry.path, root):
                    self.files.append(entry.path)
                    self.outside.add(entry.path)
                else:
                    (folders if is_folder(entry) else self.files).append(entry.path)
            ahead += reversed(folders)

    def describe_skipped(self) -> str:
        """Return the kinds that were skipped, the most frequent first."""
        return ", ".join(f"{number} {printable(k)}" for k, number in self.skipped.most_common(8))


def leads_outside(path: str | Path, root: Path) -> bool:
    """Return whether a path, its links resolved, lies outside of `root`."""
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root))


def list_folder(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return what a folder holds, sorted by name, without hidden entries. Raises UserError."""
    try:
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(
            f"cannot list the folder {printable(str(folder))}: {error.strerror or error}"
        ) from error
    return sorted(visible, key=lambda entry: entry.name)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
