"""Images that cannot be used: how many are too many, and what is said about them."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from mosaickd.errors import UserError

#: (place, reason) of each, in the set's order. Places are raw: a file's name may hold anything.
Broken = tuple[tuple[str, str], ...]

SHOWN = 3  # of them in a message
ADVICE = "repair or remove what is broken, or get it again"
#: Signs that turn the direction of what follows: a name could show another one's ending.
TURNING = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Unreadable(ValueError):
    """No image to be had, and why: the message follows the image's place, in brackets."""


def refuse_too_many(broken: Broken, count: int, max_broken: float, what: str) -> None:
    """UserError where all of count images are broken, or a larger share than max_broken."""
    if not broken or (len(broken) < count and len(broken) / count <= max_broken):
        return
    share = math.ceil(len(broken) / count * 1000) / 1000
    leave = f", or leave them out with dataset.max_broken={share:g} (or ood.max_broken=)"
    advice = f"{ADVICE}{leave if len(broken) < count else ''}"
    raise UserError(
        f"{len(broken)} of {count} images of {escaped(what)} are broken, more than "
        f"max_broken={max_broken:g} of them: {summary(broken)}; {advice}"
    )


def summary(broken: Broken) -> str:
    """The first few with their reasons, on one line."""
    first = ", ".join(f"{escaped(place)} ({reason})" for place, reason in broken[:SHOWN])
    return first + (f", and {len(broken) - SHOWN} more" if len(broken) > SHOWN else "")


def listing(by_split: Mapping[str, Broken]) -> bytes:
    """A line each: split, place and reason, with tabs between them; names keep their own bytes."""
    lines = (
        f"{split}\t{escaped(place, raw=True)}\t{reason}\n"
        for split, broken in by_split.items()
        for place, reason in broken
    )
    return "".join(lines).encode(errors="surrogateescape")


def escaped(text: object, *, raw: bool = False) -> str:
    """On one line, and harmless to a terminal: what steers it is written as \\n, \\x1b, \\u202e.

    Bytes of a file's name that are no text become \\xff; raw leaves them, as surrogates.
    """
    return "".join(_signs(str(text), raw))


def _signs(text: str, raw: bool) -> Iterator[str]:
    for sign in text:
        if "\udc80" <= sign <= "\udcff":
            yield sign if raw else f"\\x{ord(sign) - 0xDC00:02x}"
        elif unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") or sign in TURNING:
            yield sign.encode("unicode_escape").decode()
        else:
            yield sign


def alike(names: Sequence[str]) -> list[list[str]]:
    """Names that look the same to a person: they differ in case or Unicode's normal form only."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(unicodedata.normalize("NFKC", name).casefold(), []).append(name)
    return [group for group in groups.values() if len(group) > 1]
