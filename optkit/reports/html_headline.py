"""The figures that a reader of the HTML report wants first: what holds, how small, how fast, and what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from optkit.parity.bounds import EQUAL_DB
from optkit.parity.scores import UNCLEAR, difference
from optkit.reports.html_kit import decibels, link
from optkit.reports.markup import Safe, join, tag
from optkit.reports.rows import cached, deliveries, scores, sqnr
from optkit.reports.spelling import duration, size

Data = Mapping[str, Any]


def headline(report: Data) -> Safe | None:
    """A row of tiles, each a figure with what it is of; None where nothing was made."""
    steps = {step["id"]: step for step in report.get("steps", [])}
    holding = {d.step: steps[d.step] for d in deliveries(report) if d.status == "passed" and d.step in steps}
    tiles = [*_smallest(holding, steps), *_fastest(report, holding), *_parity(holding), *_metric(holding),
             *_time(report)]  # fmt: skip
    return tag("div", *tiles, class_="tiles") if holding else None


def _tile(name: str, figure: str, of: Safe | str) -> Safe:
    return tag("div", tag("div", name, class_="dim"), tag("div", figure, class_="figure"), tag("div", of, class_="dim"))


def _smallest(holding: Mapping[str, Data], steps: Mapping[str, Data]) -> Iterator[Safe]:
    """The delivery with the fewest bytes, beside the largest of the run's."""
    sizes = {i: step["artifact"]["size_bytes"] for i, step in holding.items() if step.get("artifact")}
    if len(sizes) > 1:
        least, most = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
        share = f", {sizes[least] / sizes[most]:.0%} of " if sizes[most] else ", "
        yield _tile("smallest", size(sizes[least]), join([link(least), share, link(most)]))


def _fastest(report: Data, holding: Mapping[str, Data]) -> Iterator[Safe]:
    """The surest speed-up that was measured: of a benchmark if there is one, else of a race against the parent."""
    rows = [row for row in (report.get("benchmark") or {}).get("rows", ()) if row["ratio"]]
    found = [(row["ratio"], row["artifact"], report["benchmark"]["against"]) for row in rows] or [
        (step["speed"]["ratio"], i, step["speed"]["against"]) for i, step in holding.items() if step.get("speed")
    ]
    if found:
        ratio, name, against = max(found, key=lambda one: one[0]["low"])
        step = name.partition(" [")[0]
        shown = join([link(step), name.removeprefix(step)]) if step in holding else name
        yield _tile("fastest", f"{ratio['value']:.2f}x", join([shown, f" over {against}"]))


def _parity(holding: Mapping[str, Data]) -> Iterator[Safe]:
    known = {i: value for i, step in holding.items() if (value := sqnr(step)) is not None}
    if known:
        least = min(known, key=known.__getitem__)
        said = decibels(known[least]) if known[least] < EQUAL_DB else "equal"
        yield _tile("least signal to noise", said, join(["worst sample of ", link(least)]))


def _metric(holding: Mapping[str, Data]) -> Iterator[Safe]:
    """What the first task metric lost at most."""
    known = [(name, i, s) for i, step in holding.items() for name, s in scores(step).items() if "problem" not in s]
    if known:
        first = known[0][0]
        _, least, score = max((k for k in known if k[0] == first), key=lambda k: k[2]["change"])
        lost, points = score["change"], score["unit"] == "fraction"
        figure = "nothing" if lost <= 0 else f"{100 * lost:.2f} points" if points else f"{lost:.4g}"
        unsure = f", {UNCLEAR}" if lost > 0 and difference(score) == "unclear" else ""
        yield _tile(f"most {first} lost" if score["better"] == "higher" else f"largest rise of {first}", figure,
                    join(["by ", link(least), unsure]) if lost > 0 else "by no delivery")  # fmt: skip


def _time(report: Data) -> Iterator[Safe]:
    steps = list(report.get("steps", []))
    kept = sum(map(cached, steps))
    more = f", {kept} of them cached" if kept else ""
    yield _tile("convert and prove", duration(report.get("seconds")), f"{len(steps)} steps{more}")
