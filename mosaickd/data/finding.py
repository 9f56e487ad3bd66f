"""Finding image files in a folder that anybody may have filled: links, pipes, other files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mosaickd.data.broken import escaped
from mosaickd.data.pictures import SUFFIXES
from mosaickd.errors import UserError

SHOWN = 8  # kinds of files in a message


@dataclass
class Found:
    """files: what has the suffix of an image, and links that are not followed, in order.
    refused: which of them must not be opened, and why. strays: what else lies there, by kind."""

    files: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    strays: Counter[str] = field(default_factory=Counter)

    def add(self, other: Found) -> None:
        self.files += other.files
        self.refused |= other.refused
        self.strays += other.strays

    def left_alone(self) -> str:
        """The strays in a few words, the most frequent first."""
        kinds = [f"{number} {escaped(kind)}" for kind, number in self.strays.most_common(SHOWN)]
        return ", ".join([*kinds, "others"] if len(self.strays) > SHOWN else kinds)


class Tree:
    """A folder of images, and what in it may be looked at.

    root: links in it are followed as long as they stay in it; out of it only if follow_links,
    the name of whose setting is in `advice`. It may be a link itself.
    """

    def __init__(self, root: str | os.PathLike[str], follow_links: bool, advice: str) -> None:
        self.inside = os.path.join(os.path.realpath(root), "")
        self.follow_links = follow_links
        self.advice = advice

    def refusal(self, entry: os.DirEntry[str] | Path) -> str | None:
        """Why something directly in the tree is not to be looked at; None where it may be."""
        if self.follow_links or not entry.is_symlink():
            return None
        if os.path.join(os.path.realpath(entry), "").startswith(self.inside):
            return None
        return f"a link that leads out of {escaped(self.inside)}; {self.advice}"

    def image_files(self, folder: str | os.PathLike[str]) -> Found:
        """All below a folder of the tree, at any depth: the files of a folder in sorted order,
        then those of its sub-folders. Hidden ones are left out.

        Raises UserError for a folder that can't be listed.
        """
        found = Found()
        been: set[tuple[int, int]] = set()  # links may lead round in a circle
        ahead = [os.fspath(folder)] if os.path.isdir(folder) else []
        while ahead:
            place = ahead.pop()
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in been:
                found.strays["link to a folder that is read already"] += 1
                continue
            been.add((status.st_dev, status.st_ino))
            folders = []
            for entry in listed(place):
                if entry.name.startswith("."):
                    continue
                suffix = os.path.splitext(entry.name)[1].lower()
                is_folder = _is_folder(entry)
                if not is_folder and suffix not in SUFFIXES:
                    found.strays[suffix or "without a suffix"] += 1
                elif refusal := self.refusal(entry):
                    found.files.append(entry.path)
                    found.refused[entry.path] = refusal
                elif is_folder:
                    folders.append(entry.path)
                else:
                    found.files.append(entry.path)
            ahead += reversed(folders)
        return found

    def class_folders(
        self, folder: Path, skip: Sequence[str] = ()
    ) -> tuple[list[str], Counter[str]]:
        """Names of the sub-folders, sorted; and what lies beside them, by kind.

        Raises UserError for one that is a link out of the tree: without its class the others
        would get other numbers.
        """
        names, beside = [], Counter[str]()
        for entry in listed(folder):
            if entry.name.startswith((".", "__")) or entry.name in skip:
                continue
            if _is_folder(entry):
                self.enter(Path(entry.path))
                names.append(entry.name)
            else:
                suffix = os.path.splitext(entry.name)[1].lower() or "file"
                beside[f"{suffix} beside the class folders"] += 1
        return names, beside

    def enter(self, folder: Path) -> None:
        """UserError for a folder that must not be looked at, and can't be done without."""
        if refusal := self.refusal(folder):
            raise UserError(f"{escaped(folder)} is {refusal}")


def listed(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """What a folder holds, sorted by name. Raises UserError."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(
            f"cannot list the folder {escaped(folder)}: {error.strerror or error}"
        ) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
