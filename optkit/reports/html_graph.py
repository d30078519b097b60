"""The graph of passes as SVG: each step a box with its verdict, time and parity, that leads to its section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optkit.reports.html_kit import SYMBOLS, anchor, decibels, number, sign
from optkit.reports.markup import Safe, tag
from optkit.reports.rows import cached, deliveries, seconds_of, sqnr
from optkit.reports.spelling import duration

Data = Mapping[str, Any]

WIDE, HIGH, BETWEEN, BELOW = 192, 68, 30, 12
_LETTERS = 23  # of a bold line in a box


def lineage(steps: Sequence[Data]) -> list[tuple[Data, int]]:
    """Steps depth first below the source, each with its depth from 1; those without a way to it have depth 1."""
    ids = {step["id"] for step in steps}
    below: dict[str, list[Data]] = {}
    for step in steps:
        parent = str(step.get("parent"))
        below.setdefault(parent if parent in ids and parent != step["id"] else "", []).append(step)
    found: list[tuple[Data, int]] = []
    waiting = [(step, 1) for step in reversed(below.get("", []))]
    while waiting:
        step, depth = waiting.pop()
        found.append((step, depth))
        waiting += [(child, depth + 1) for child in reversed(below.pop(step["id"], []))]
    below.pop("", None)
    return found + [(step, 1) for circle in below.values() for step in circle]


def graph(report: Data) -> Safe:
    """The SVG. A tree from left to right: every step has one parent."""
    ordered = lineage(report.get("steps", []))
    delivered = {d.step for d in deliveries(report)}
    rows: dict[str, float] = {}
    children: dict[str, list[str]] = {}
    for step, depth in ordered:
        children.setdefault(step["parent"] if depth > 1 else "", []).append(step["id"])
    leaves = 0
    for step, _ in ordered:
        if step["id"] not in children:
            rows[step["id"]] = leaves
            leaves += 1
    for step, _ in reversed(ordered):
        if below := children.get(step["id"]):
            rows[step["id"]] = (rows[below[0]] + rows[below[-1]]) / 2
    tops = children.get("", [])
    middle = (rows[tops[0]] + rows[tops[-1]]) / 2 if tops else 0.0
    places = {"": (0, middle), **{step["id"]: (depth, rows[step["id"]]) for step, depth in ordered}}
    edges = [_edge(places[step["parent"] if depth > 1 else ""], places[step["id"]]) for step, depth in ordered]
    boxes = [_step(step, *places[step["id"]], step["id"] in delivered) for step, _ in ordered]
    width = 4 + (1 + max((depth for _, depth in ordered), default=0)) * (WIDE + BETWEEN) - BETWEEN + 4
    height = 8 + max(1, leaves) * (HIGH + BELOW) - BELOW
    said = "The graph of passes: " + ", ".join(f"{s['id']} from {s['parent']} {s['status']}" for s, _ in ordered)
    return tag("svg", *edges, _source(report, middle), *boxes, viewBox=f"0 0 {width} {height}", width=width,
               height=height, role="group", aria_label=said)  # fmt: skip


def legend() -> str:
    """What the boxes' signs mean."""
    signs = ", ".join(f"{symbol} {word}" for word, symbol in SYMBOLS.items())
    return f"A double outline is a delivery; {signs}. SQNR is that of the worst real sample against the source."


def _corner(depth: int, row: float) -> tuple[float, float]:
    return 4 + depth * (WIDE + BETWEEN), 4 + row * (HIGH + BELOW)


def _edge(start: tuple[int, float], end: tuple[int, float]) -> Safe:
    (x0, y0), (x1, y1) = _corner(*start), _corner(*end)
    x0, y0, y1 = x0 + WIDE, y0 + HIGH / 2, y1 + HIGH / 2
    half = (x0 + x1) / 2
    path = (
        f"M{number(x0)} {number(y0)}C{number(half)} {number(y0)} {number(half)} {number(y1)} {number(x1)} {number(y1)}"
    )
    return tag("path", class_="edge", d=path)


def _source(report: Data, row: float) -> Safe:
    x, y = _corner(0, row)
    name, source = str(report.get("name", "source")), report.get("source") or {}
    return tag("g", tag("rect", class_="box", x=number(x), y=number(y), width=WIDE, height=HIGH, rx=6),
               _line(x, y, 0, _short(name), "strong"),
               _line(x, y, 1, _short(f"source, {source.get('format')}"), "small"),
               _line(x, y, 2, _short(str(source.get("provider") or "")), "small"))  # fmt: skip


def _step(step: Data, depth: int, row: float, delivered: bool) -> Safe:
    x, y = _corner(depth, row)
    word = step["status"] if step["status"] in SYMBOLS else "skipped"
    parity = sqnr(step)
    took = "cached" if cached(step) else duration(seconds_of(step))
    last = [step["status"], took if took != "-" else "", decibels(parity).replace("equal to the last bit", "equal")]
    title = f"{step['id']}: {step.get('pass')}, {step['status']}, {took}, SQNR {decibels(parity)}"
    ring = tag("rect", class_="ring", x=number(x + 3.5), y=number(y + 3.5), width=WIDE - 7, height=HIGH - 7, rx=4)
    return tag(
        "a", tag("title", title),
        tag("rect", class_=f"box {word}", x=number(x), y=number(y), width=WIDE, height=HIGH, rx=6),
        ring if delivered else None,
        _line(x, y, 0, f"{sign(step['status'])} {_short(step['id'], 21)}", f"strong {word}"),
        _line(x, y, 1, _short(str(step.get("pass")), 27), "small"),
        _line(x, y, 2, " · ".join(part for part in last if part not in ("", "-"))), href=f"#{anchor(step['id'])}",
    )  # fmt: skip


def _line(x: float, y: float, number_: int, text: str, class_: str | None = None) -> Safe:
    return tag("text", text, class_=class_, x=number(x + 13), y=number(y + 22 + 17 * number_))


def _short(text: str, letters: int = _LETTERS) -> str:
    return text if len(text) <= letters else f"{text[: letters - 1]}…"
