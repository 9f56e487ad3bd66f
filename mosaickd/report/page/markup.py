"""Pieces of a page. Whatever a file says goes through `escape`: it is text, never markup."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

__all__ = ["escape", "facts", "figure", "open_table", "paragraph"]


def open_table(kind: str, label: str) -> list[str]:
    """Scrolls sideways by itself, with the keyboard too, so that the page never has to."""
    label = escape(label)
    return [f'<div class=scroll role=region tabindex=0 aria-label="{label}"><table class={kind}>']


def figure(svg: str, title: str, caption: str, alt: str, kind: str = "panel") -> str:
    """The title above the picture, the caption below it: one of them is the figcaption."""
    above = f"<b>{escape(title)}</b>"
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    if title:
        above = above if caption else f"<figcaption>{above}</figcaption>"
    picture = f'<div role=img aria-label="{escape(alt)}">{svg}</div>'
    return f"<figure class={kind}>{above if title else ''}{picture}{words}</figure>"


def facts(pairs: Iterable[tuple[str, str]], kind: str) -> str:
    """Names and what they are, side by side; what is empty is left out."""
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in pairs if text
    )
    return f"<dl class={kind}>{items}</dl>" if items else ""


def paragraph(text: str, kind: str = "quiet") -> str:
    return f"<p class={kind}>{escape(text)}</p>"
