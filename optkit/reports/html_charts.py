"""Accuracy against size and speed as SVG, with the Pareto front, each point marked by shape and named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optkit.parity.bounds import EQUAL_DB
from optkit.reports.html_kit import number
from optkit.reports.markup import Safe, join, tag
from optkit.reports.rows import Delivery, heat_name, scores, sqnr
from optkit.reports.spelling import size

Data = Mapping[str, Any]

WIDE, HIGH = 480, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 448, 14, 256


@dataclass(frozen=True)
class Point:
    """A delivery in a chart: what it costs (`x`, less is better), what it gives (`y`) and the interval of that."""

    name: str
    x: float
    y: float
    low: float
    high: float
    proven: bool


@dataclass(frozen=True)
class Axis:
    """A scale. kind: "bytes", "ms", "fraction", "dB" or ""; up: whether more is better."""

    title: str
    kind: str
    up: bool = True


def front(points: Sequence[Point], up: bool = True) -> list[Point]:
    """The proven points that no other proven one beats in both, by falling `x`: the Pareto front."""
    way = 1 if up else -1
    proven = sorted((p for p in points if p.proven), key=lambda p: (p.x, -way * p.y))
    found: list[Point] = []
    for point in proven:
        if not found or way * point.y > way * found[-1].y:
            found.append(point)
    return found


def panels(
    steps: Mapping[str, Data], made: Sequence[Delivery], benchmark: Data | None = None
) -> list[tuple[str, Safe]]:
    """What was given up for size and speed, a title and a chart each, for whatever was measured of two deliveries."""
    gains: list[tuple[Axis, dict[str, tuple[float, float, float]]]] = []
    names = dict.fromkeys(name for d in made for name in scores(steps.get(d.step, {})))
    for name in names:
        known = {d.step: s for d in made if (s := scores(steps.get(d.step, {})).get(name)) and "problem" not in s}
        first = next(iter(known.values()), None)
        if first:
            kind, better = ("fraction" if first["unit"] == "fraction" else ""), first["better"] == "higher"
            gains.append((Axis(name, kind, better), {i: _ends(s) for i, s in known.items()}))
    noise = {d.step: value for d in made if (value := sqnr(steps.get(d.step, {}))) is not None}
    top = max((v for v in noise.values() if v < EQUAL_DB), default=0.0) + 20  # where equal to the last bit is drawn
    gains.append((Axis("SQNR, worst sample", "dB"), {i: (min(v, top),) * 3 for i, v in noise.items()}))
    sizes = {d.step: float(d.size_bytes) for d in made if d.size_bytes}
    costs = [(Axis("size", "bytes"), sizes), (Axis("latency, median", "ms"), _latencies(steps, made, benchmark))]
    found = []
    for cost, costly in costs:
        for gain, given in gains:
            points = [
                Point(d.step, costly[d.step], given[d.step][1], given[d.step][0], given[d.step][2],
                      d.status in ("passed", "waived"))
                for d in made if d.step in costly and d.step in given
            ]  # fmt: skip
            if len(points) > 1:
                found.append((f"{gain.title} against {cost.title}", scatter(points, cost, gain)))
    return found


def _ends(score: Data) -> tuple[float, float, float]:
    low, high = score.get("interval") or (score["value"], score["value"])
    return low, score["value"], high


def _heat(benchmark: Data | None) -> list[Data]:
    """The first rows of a benchmark that were measured in turns with each other."""
    rows = (benchmark or {}).get("rows") or []
    return [row for row in rows if (row["batch"], row["threads"]) == (rows[0]["batch"], rows[0]["threads"])]


def timed_by(report: Data) -> str:
    """How the latencies in the charts were measured."""
    if rows := _heat(report.get("benchmark")):
        return f"Latencies are the benchmark's, at {heat_name(rows[0])}."
    return "Latencies of different runtimes were measured one after the other, those of one runtime in turns."


def _latencies(steps: Mapping[str, Data], made: Sequence[Delivery], benchmark: Data | None) -> dict[str, float]:
    """Milliseconds by step: the benchmark's where there is one, else of each raced step and what it raced against."""
    if rows := _heat(benchmark):
        return {row["artifact"]: row["latency_ms"]["p50"] for row in rows}
    found: dict[str, float] = {}
    for step in steps.values():
        if race := step.get("speed"):
            found[race["against"]] = race["parent_latency_ms"]["p50"]
            found[step["id"]] = race["latency_ms"]["p50"]
    return {d.step: found[d.step] for d in made if d.step in found}


def scatter(points: Sequence[Point], cost: Axis, gain: Axis) -> Safe:
    """Points with their intervals: discs and a line on the Pareto front, squares off it, crosses where not proven."""
    best = front(points, gain.up)
    logarithmic = max(p.x for p in points) > 20 * min(p.x for p in points) > 0
    xs = _scale([p.x for p in points], _LEFT, _RIGHT, zero=not logarithmic, logarithmic=logarithmic)
    low, high = min(p.low for p in points), max(p.high for p in points)
    ys = _scale([low, high], *((_BOTTOM, _TOP) if gain.up else (_TOP, _BOTTOM)))
    said = f"{gain.title} against {cost.title}: " + "; ".join(
        f"{p.name} {_spell(p.y, gain)} at {_spell(p.x, cost)}" + (", on the Pareto front" if p in best else "")
        + ("" if p.proven else ", not proven")
        for p in points
    )  # fmt: skip
    parts: list[Safe] = [*_grid(xs, ys, cost, gain)]
    if len(best) > 1:
        steps = [f"M{number(xs.at(best[0].x))} {number(ys.at(best[0].y))}"]
        steps += [f"H{number(xs.at(p.x))}V{number(ys.at(p.y))}" for p in best[1:]]
        parts.append(tag("path", class_="line", d="".join(steps), stroke_dasharray="4 3"))
    for p in points:
        x, y = xs.at(p.x), ys.at(p.y)
        if p.low != p.high:
            parts.append(tag("line", class_="thin", x1=number(x), x2=number(x), y1=number(ys.at(p.low)),
                             y2=number(ys.at(p.high))))  # fmt: skip
        parts.append(_mark(x, y, p.proven, p in best))
    parts += _labels([(p.name, xs.at(p.x), ys.at(p.y)) for p in points])
    return tag("svg", tag("title", said), *parts, viewBox=f"0 0 {WIDE} {HIGH}", role="img", aria_label=said)


def _mark(x: float, y: float, proven: bool, best: bool) -> Safe:
    if not proven:
        return tag("path", class_="cross", d=f"M{number(x - 5)} {number(y - 5)}l10 10m0 -10l-10 10")
    if best:
        return tag("circle", class_="mark", cx=number(x), cy=number(y), r=5.5)
    return tag("rect", class_="hollow", x=number(x - 4.5), y=number(y - 4.5), width=9, height=9)


def _labels(named: Sequence[tuple[str, float, float]]) -> list[Safe]:
    """A name beside each point, moved up or down until it is clear of the others, with a line to its point."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for _, x, y in named]
    made = []
    for name, x, y in named:
        wide = 6.6 * len(name) + 4
        box, anchor_at = (0.0, 0.0, 0.0, 0.0), x
        for shift in (0, -15, 15, -30, 30, -45, 45, -60, 60, -75, 75, -90, 90):
            for left in (x + 9, x - 9 - wide):
                box, anchor_at = (left, y + shift - 7, left + wide, y + shift + 7), left
                inside = box[0] >= _LEFT and box[2] <= WIDE and box[1] >= 0 and box[3] <= _BOTTOM
                if inside and not any(_overlap(box, other) for other in taken):
                    break
            else:
                continue
            break
        taken.append(box)
        middle = (box[1] + box[3]) / 2
        if abs(middle - y) > 8:
            near = box[0] - 2 if anchor_at > x else box[2] - 2
            made.append(tag("line", class_="grid", x1=number(x), y1=number(y), x2=number(near), y2=number(middle)))
        made.append(tag("text", name, class_="halo", x=number(anchor_at), y=number(middle + 4)))
    return made


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float
    logarithmic: bool
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """The coordinate of a value."""
        turn = math.log10 if self.logarithmic else float
        low, high = turn(self.low), turn(self.high)
        return self.start + (self.end - self.start) * ((turn(value) - low) / (high - low) if high > low else 0.5)


def _scale(
    values: Sequence[float], start: float, end: float, *, zero: bool = False, logarithmic: bool = False
) -> _Scale:
    low, high = min(values), max(values)
    if logarithmic:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        ticks = tuple(10.0**power for power in range(first, last + 1))
        return _Scale(ticks[0], ticks[-1], start, end, True, ticks)
    if zero:
        low = min(0.0, low)
    if high == low:
        low, high = low - abs(low) * 0.01 - 1e-6, high + abs(high) * 0.01 + 1e-6
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    unit = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw)
    first, last = math.floor(low / unit), math.ceil(high / unit)
    ticks = tuple(unit * n for n in range(first, last + 1))
    return _Scale(ticks[0], ticks[-1], start, end, False, ticks)


def _grid(xs: _Scale, ys: _Scale, cost: Axis, gain: Axis) -> list[Safe]:
    parts = []
    for tick in ys.ticks:
        y = number(ys.at(tick))
        parts.append(tag("line", class_="grid", x1=_LEFT, x2=_RIGHT, y1=y, y2=y))
        parts.append(tag("text", _spell(tick, gain, xs=ys), class_="small", x=_LEFT - 6, y=number(ys.at(tick) + 4),
                         text_anchor="end"))  # fmt: skip
    for tick in xs.ticks:
        x = number(xs.at(tick))
        parts.append(tag("line", class_="grid", x1=x, x2=x, y1=_TOP, y2=_BOTTOM))
        parts.append(tag("text", _spell(tick, cost, xs=xs), class_="small", x=x, y=_BOTTOM + 16, text_anchor="middle"))
    parts.append(tag("line", class_="axis", x1=_LEFT, x2=_RIGHT, y1=_BOTTOM, y2=_BOTTOM))
    title = f"{cost.title}: left is better; up is better" + ("" if gain.up else " (the scale runs downwards)")
    parts.append(tag("text", title, class_="small", x=(_LEFT + _RIGHT) / 2, y=HIGH - 8, text_anchor="middle"))
    return [join(parts)]


def _spell(value: float, axis: Axis, xs: _Scale | None = None) -> str:
    if axis.kind == "bytes":
        return size(value) if value else "0"
    if axis.kind == "fraction":
        gap = xs.ticks[1] - xs.ticks[0] if xs and len(xs.ticks) > 1 else 0.0001
        return f"{value:.{min(4, max(0, -math.floor(math.log10(gap * 100) + 1e-9)))}%}"
    return f"{value:.4g}" + (f" {axis.kind}" if axis.kind else "")
