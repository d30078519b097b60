"""Text for terminals and logs: names made harmless, columns aligned, colour only where it is wanted."""

from __future__ import annotations

import os
import shutil
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO

import click

COLOURS = {"good": "green", "bad": "red", "warn": "yellow", "name": "cyan"}


@dataclass(frozen=True)
class Cell:
    """A table's cell: its text, and a style out of `COLOURS`, "bold" or "dim"."""

    text: str
    style: str = ""


def clean(text: object, *, lines: bool = False) -> str:
    """`text` with control, formatting and surrogate characters shown as escapes: a name cannot steer the terminal.

    Line breaks are kept with `lines`.
    """
    shown = []
    for char in str(text):
        if char == "\n" and lines:
            shown.append(char)
        elif unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp"):
            shown.append(char.encode("unicode_escape").decode("ascii"))
        else:
            shown.append(char)
    return "".join(shown)


def is_terminal(stream: IO[str]) -> bool:
    """Whether somebody looks at the stream, on a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def has_colour(stream: IO[str]) -> bool:
    """Whether the stream takes colour: a terminal, and NO_COLOR is not set (https://no-color.org)."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def can_draw(stream: IO[str], text: str) -> bool:
    """Whether the stream's encoding has every character of `text`."""
    try:
        text.encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def paint(text: str, style: str, colour: bool) -> str:
    """`text` in a style of `Cell`, or as it is."""
    if not colour or not style:
        return text
    if style in ("bold", "dim"):
        return click.style(text, bold=style == "bold" or None, dim=style == "dim" or None)
    return click.style(text, fg=COLOURS[style])


def width(text: str) -> int:
    """How many columns `text` takes; East Asian wide characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def table(head: Sequence[str], rows: Sequence[Sequence[str | Cell]], stream: IO[str], *, indent: int = 0) -> str:
    """Rows in aligned columns below their heads, without a line break at the end.

    The last column is wrapped to a terminal's width; without a terminal no line is ever broken.
    """
    colour = has_colour(stream)
    cells = [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in rows]
    cells = [[Cell(clean(c.text), c.style) for c in row] for row in cells]
    if head:
        cells.insert(0, [Cell(h, "dim") for h in head])
    if not cells:
        return ""
    widths = [max(width(row[n].text) for row in cells) for n in range(len(cells[0]))]
    room = None
    if is_terminal(stream):
        room = shutil.get_terminal_size().columns - indent - sum(widths[:-1]) - 2 * (len(widths) - 1)
    out = []
    for row in cells:
        last = [row[-1].text]
        if room is not None and room >= 16:
            last = textwrap.wrap(row[-1].text, room) or [""]
        for number, piece in enumerate(last):
            parts = [
                paint(c.text if number == 0 else "", c.style, colour)
                + " " * (widths[n] - width(c.text) * (number == 0))
                for n, c in enumerate(row[:-1])
            ]
            parts.append(paint(piece, row[-1].style, colour))
            out.append((" " * indent + "  ".join(parts)).rstrip())
    return "\n".join(out)


def count(number: int, word: str) -> str:
    """A number with its noun: "1 step", "2 steps"."""
    return f"{number} {word}" + ("" if number == 1 else "s")
