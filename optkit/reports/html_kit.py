"""What every part of the HTML report is put together from: a status, a table, a cell's chart."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optkit.parity.bounds import EQUAL_DB
from optkit.reports.markup import Safe, join, tag

Data = Mapping[str, Any]

SYMBOLS = {
    "passed": "✓", "failed": "✗", "error": "!", "blocked": "⊘", "deferred": "…", "waived": "~",
    "interrupted": "■", "skipped": "–",
}  # fmt: skip
"""A status' sign beside its word, so that neither colour nor sign is needed alone."""

WIDE, HIGH = 200, 18
"""Pixels of a chart in a table's cell."""


def sign(status: str) -> str:
    """The symbol of a status."""
    return SYMBOLS.get(status, "?")


def status(word: str) -> Safe:
    """A status by symbol, word and colour."""
    return tag("span", f"{sign(word)} {word}", class_=f"status {word if word in SYMBOLS else 'skipped'}")


def anchor(step_id: str) -> str:
    """The id of a step's section: of letters, digits, dashes and dots alone."""
    return "step-" + re.sub(r"[^A-Za-z0-9-]", lambda found: f".{ord(found[0]):x}.", str(step_id))


def link(step_id: str) -> Safe:
    """A link to a step's section."""
    return tag("a", step_id, href=f"#{anchor(step_id)}")


def table(head: Sequence[str], rows: Iterable[Sequence[object]], *, cards: bool = True) -> Safe:
    """A table whose first column names the row. On a phone each row is a card, or else the table scrolls sideways."""
    labels = [tag("th", name, scope="col") for name in head]
    body = [
        tag("tr", tag("th", row[0], scope="row"), *(
            tag("td", tag("div", cell), data_label=name or None)
            for name, cell in zip(head[1:], row[1:], strict=True)
        ))
        for row in rows
    ]  # fmt: skip
    made = tag("table", tag("thead", tag("tr", *labels)), tag("tbody", *body), class_="cards" if cards else None)
    return tag("div", made, class_="scroll")


def facts(pairs: Iterable[tuple[str, object]]) -> Safe:
    """Names with their values, those without a value left out."""
    return tag("dl", *(join([tag("dt", name), tag("dd", value)]) for name, value in pairs if value not in (None, "")))


def command(text: str) -> Safe:
    """A command to copy."""
    return tag("div", tag("pre", text), class_="command")


def folded(summary: str, *inner: object, told: bool = False) -> Safe:
    """What is shown on a click; `told`: on paper too."""
    return tag("details", tag("summary", summary), *inner, class_="told" if told else None)


def chart(said: str, *inner: object) -> Safe:
    """A chart of a cell's size. said: the same in words."""
    return tag("svg", tag("title", said), *inner, viewBox=f"0 0 {WIDE} {HIGH}", width=WIDE, height=HIGH, role="img",
               aria_label=said)  # fmt: skip


def bar(part: float, said: str, *, over: bool = False, lost: float = 0.0) -> Safe:
    """A bar over `part` of its track, 0 to 1. lost: how much more of it there was before, hatched."""
    at = WIDE * _within(part)
    more = WIDE * _within(part + lost) - at
    return chart(
        said, tag("rect", class_="track", x=0, y=5, width=WIDE, height=8, rx=2),
        tag("rect", class_="over" if over else "bar", x=0, y=5, width=number(max(at, 1.5)), height=8, rx=2),
        tag("rect", class_="lost", x=number(at), y=5, width=number(more), height=8) if more > 1 else None,
    )  # fmt: skip


def whiskers(low: float, value: float, high: float, said: str, *, scale: tuple[float, float], tick: float | None = None,
             source: tuple[float, float] | None = None) -> Safe:  # fmt: skip
    """A value with its interval on a scale. tick: what it is held against; source: that one's own interval, above."""

    def x(at: float) -> str:
        span = scale[1] - scale[0]
        return number(4 + (WIDE - 8) * _within((at - scale[0]) / span if span else 0.5))

    return chart(
        said, tag("line", class_="grid", x1=0, x2=WIDE, y1=11, y2=11),
        tag("line", class_="source", x1=x(tick), x2=x(tick), y1=1, y2=17) if tick is not None else None,
        tag("line", class_="thin", x1=x(source[0]), x2=x(source[1]), y1=4, y2=4) if source else None,
        tag("line", class_="line", x1=x(low), x2=x(high), y1=11, y2=11),
        *(tag("line", class_="line", x1=x(end), x2=x(end), y1=7, y2=15) for end in (low, high)),
        tag("circle", class_="mark", cx=x(value), cy=11, r=4),
    )  # fmt: skip


def histogram(bins: Data, worst: float, said: str, *, scale: tuple[float, float]) -> Safe:
    """How samples are spread over a scale: a column for each bin, on the scale of all rows; a disc at the worst."""
    counts, low = bins["counts"], float(bins["low"])
    step = (float(bins["high"]) - low) / len(counts)
    most = max([1, *counts])

    def x(at: float) -> float:
        span = scale[1] - scale[0]
        return 5 + (WIDE - 10) * _within((at - scale[0]) / span if span else 0.5)

    columns = [
        tag("rect", class_="bar", x=number(x(low + step * n)), y=number(15 - 14 * count / most),
            width=number(max(1.5, x(low + step * (n + 1)) - x(low + step * n))), height=number(14 * count / most))
        for n, count in enumerate(counts) if count
    ]  # fmt: skip
    return chart(said, tag("line", class_="axis", x1=0, x2=WIDE, y1=15, y2=15), *columns,
                 tag("circle", class_="worst", cx=number(x(worst)), cy=15, r=2.8))  # fmt: skip


def decibels(value: float | None) -> str:
    """An SQNR for people."""
    return "-" if value is None else "equal to the last bit" if value >= EQUAL_DB else f"{value:.1f} dB"


def number(value: float) -> str:
    """A coordinate: one decimal; anything that is no number is 0."""
    return f"{value:.1f}".removesuffix(".0") if math.isfinite(value) else "0"


def _within(part: float) -> float:
    return min(1.0, max(0.0, part)) if not math.isnan(part) else 0.0
