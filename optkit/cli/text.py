"""Text for terminals and logs: names made harmless, columns aligned, colour only where it is wanted."""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
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


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether somebody looks at the stream, on a terminal that can move its cursor. None: a stream that is closed."""
    try:
        return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed meanwhile
        return False


def has_colour(stream: IO[str] | None) -> bool:
    """Whether the stream takes colour: a terminal, and NO_COLOR is not set (https://no-color.org)."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def can_draw(stream: IO[str] | None, text: str) -> bool:
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


def columns_of(stream: IO[str]) -> int:
    """How many columns a terminal has: COLUMNS where it is set, 80 where that cannot be told."""
    with contextlib.suppress(ValueError):
        if (columns := int(os.environ.get("COLUMNS", ""))) > 0:
            return columns
    with contextlib.suppress(OSError, ValueError):  # not shutil's, which asks standard output whatever the stream
        return os.get_terminal_size(stream.fileno()).columns or 80
    return 80


def table(head: Sequence[str], rows: Sequence[Sequence[str | Cell]], stream: IO[str] | None, *, indent: int = 0) -> str:
    """Rows in aligned columns below their heads, without a line break at the end.

    The last column is wrapped to a terminal's width. On a terminal too narrow for the others, each row's cells run on
    below the second column instead, without heads. Without a terminal no line is ever broken.
    """
    colour = has_colour(stream)
    cells = [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in rows]
    cells = [[Cell(clean(c.text), c.style) for c in row] for row in cells]
    if not cells and not head:
        return ""
    titled = [[Cell(h, "dim") for h in head], *cells] if head else cells
    widths = [max(width(row[n].text) for row in titled) for n in range(len(titled[0]))]
    columns = columns_of(stream) - indent if stream is not None and is_terminal(stream) else None
    room = None if columns is None else columns - sum(widths[:-1]) - 2 * (len(widths) - 1)
    if columns is not None and room is not None and room < min(28, widths[-1]):
        made = [line for row in cells for line in _run_on(row, widths[0], columns, colour)]
    else:
        made = [line for row in titled for line in _aligned(row, widths, room, colour)]
    return "\n".join((" " * indent + line).rstrip() for line in made)


def _aligned(row: Sequence[Cell], widths: Sequence[int], room: int | None, colour: bool) -> Iterator[str]:
    """A row's lines: one, or as many as its last cell needs in `room` columns."""
    pieces = [row[-1].text] if room is None else textwrap.wrap(row[-1].text, room, break_on_hyphens=False) or [""]
    for number, piece in enumerate(pieces):
        parts = [
            paint(c.text if number == 0 else "", c.style, colour) + " " * (widths[n] - width(c.text) * (number == 0))
            for n, c in enumerate(row[:-1])
        ]
        yield "  ".join([*parts, paint(piece, row[-1].style, colour)])


def _run_on(row: Sequence[Cell], first: int, columns: int, colour: bool) -> Iterator[str]:
    """A row's lines on a narrow terminal: its first cell, and the others one after the other beside or below it."""
    line = paint(row[0].text, row[0].style, colour)
    beside = first + 2 <= columns // 2
    start = first + 2 if beside else 4
    if beside:
        line += " " * (start - width(row[0].text))
    else:
        yield line
        line = " " * start
    used = start
    for cell in row[1:]:
        for number, word in enumerate(cell.text.split()):
            gap = 0 if used == start else 2 if number == 0 else 1
            if gap and used + gap + width(word) > columns:
                yield line
                line, used, gap = " " * start, start, 0
            line += " " * gap + paint(word, cell.style, colour)
            used += gap + width(word)
    if beside or used > start:
        yield line


def count(number: int, word: str) -> str:
    """A number with its noun: "1 step", "2 steps"."""
    return f"{number} {word}" + ("" if number == 1 else "s")


def tell(text: str, *, end: str = "\n") -> None:
    """Write to standard error. Whoever stopped reading it does not stop the work: from then on nothing is written."""
    try:
        click.echo(text + end, err=True, nl=False)
    except (OSError, ValueError):
        silence(sys.stderr)


def silence(stream: IO[str] | None) -> None:
    """Point a stream that cannot be written to at nothing, so that the interpreter's last flush does not fail too."""
    if stream is None:
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no file behind it, or closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
