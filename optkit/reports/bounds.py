"""A step's verdicts on its bounds: each one, and each bound once, with how near it is to being broken."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optkit.parity.bounds import EQUAL_DB, METRICS, Bound, BoundError, MetricInfo, parse_bound
from optkit.reports.rows import cases
from optkit.reports.spelling import share, spelt
from optkit.spec.metricspec import bound_table, metrics_of

Data = Mapping[str, Any]


@dataclass(frozen=True)
class Judged:
    """One verdict of a check, with the case it is from.

    used: the share of what the bound allows that was used up; above 1 it does not hold; None where there is no share.
    """

    case: str
    output: str
    bound: str
    metric: str
    measured: float | None
    sample: int | None
    used: float | None
    held: bool
    reason: str
    text: str
    percent: bool = False
    against: str = "source"

    @property
    def spelt(self) -> str:
        """What was measured, for people."""
        if self.measured is None:
            return self.text
        return f"{self.metric} {self.measured:.2%}" if self.percent else spelt(self.metric, self.measured)


def judged(step: Data) -> list[Judged]:
    """Every verdict on a bound, case by case."""
    made = []
    table = table_of(step)
    for case in cases(step):
        for verdict_ in case.get("verdicts") or ():
            text, measured = verdict_.get("bound"), verdict_.get("measured")
            bound = bound_of(text, table)
            told = verdict_.get("reason") or ""
            if not told and verdict_.get("stated_by"):
                told = f"stated by {verdict_['stated_by']}"
            made.append(Judged(
                case["name"], verdict_.get("output") or "", text or "", bound.metric if bound else "", measured,
                verdict_.get("worst_sample"), used(bound, measured), verdict_["held"], told, verdict_["text"],
                bool(bound and bound.info.unit == "fraction"), verdict_.get("against") or "source",
            ))  # fmt: skip
    return made


def used(bound: Bound | None, measured: float | None) -> float | None:
    """How much of what a bound allows was used up: 0 for a perfect match, 1 at the bound, above 1 beyond it."""
    if bound is None or measured is None:
        return None
    if bound.metric == "sqnr_db":  # decibels of a ratio: compare the ratios
        return 0.0 if measured >= EQUAL_DB else float(10 ** ((bound.value - measured) / 20))
    best = bound.info.high if bound.op == ">=" else max(0.0, bound.info.low)
    if math.isinf(best):
        return None
    allowed = abs(best - bound.value)
    if not allowed or (bound.op == "<=" and bound.value < 0):
        return None
    return max(0.0, (best - measured if bound.op == ">=" else measured) / allowed)


def nearest(step: Data) -> Judged | None:
    """The verdict that is nearest to its bound, or farthest beyond it; None where no bound was judged."""
    found = [j for j in judged(step) if j.used is not None or not j.held]
    return max(found, key=lambda j: (not j.held, j.used if j.used is not None else math.inf), default=None)


def margin(one: Judged | None) -> str:
    """How near a verdict is to its bound: "88 % used", "10 times over", "54.2 dB short"; "-" where that is unknown."""
    if one is None or one.used is None or one.measured is None:
        return "-"
    bound = bound_of(one.bound, METRICS) if one.metric == "sqnr_db" else None
    if not one.held and bound is not None:
        return f"{bound.value - one.measured:.1f} dB short"
    return share(one.used, one.held) + (" over" if one.used >= 2 else " used")


def table_of(step: Data) -> Mapping[str, MetricInfo]:
    """The metrics that a step's bounds may name, by name."""
    try:
        return bound_table(metrics_of(step.get("check") or {}))
    except (ValueError, TypeError, KeyError, StopIteration):  # of a report that another optkit wrote
        return METRICS


def bound_of(text: str | None, table: Mapping[str, MetricInfo]) -> Bound | None:
    """A bound from its text; None where it is none."""
    try:
        return parse_bound(text, table) if text else None
    except BoundError:  # of a report that another optkit wrote
        return None


@dataclass(frozen=True)
class BoundRow:
    """One bound on one output over all cases. `worst` is the case that is nearest to breaking it, or breaks it most."""

    worst: Judged
    members: tuple[Judged, ...]

    @property
    def held(self) -> bool:
        """Whether it holds in every case."""
        return all(one.held for one in self.members)

    @property
    def name(self) -> str:
        """What it is called, the same in every run: "logits: cosine >= 0.98"; the metric alone of a derived bound."""
        one = self.worst
        bound = one.bound if one.reason.startswith("stated") else one.metric
        bound = (bound or one.bound or "check").removeprefix(f"{one.output}.")
        bound += "" if one.against == "source" else f" against {one.against}"
        return f"{one.output}: {bound}" if one.output else bound

    @property
    def where(self) -> str:
        """The case, and the sample where one is to blame: "samples, sample 118"."""
        return self.worst.case + ("" if self.worst.sample is None else f", sample {self.worst.sample}")

    @property
    def count(self) -> str:
        """In how many cases it holds: "6 of 7 cases"."""
        return f"{sum(one.held for one in self.members)} of {len(self.members)} cases"


def bound_rows(step: Data) -> list[BoundRow]:
    """A step's bounds in the order in which they were judged.

    A bound that derives from precision differs a little from case to case: it is one row by its metric.
    """
    groups: dict[tuple[str, str, bool, str], list[Judged]] = {}
    for one in judged(step):
        key = (one.output, one.metric or one.text, one.reason.startswith("stated"), one.against)
        groups.setdefault(key, []).append(one)
    return [
        BoundRow(max(members, key=lambda j: (not j.held, -1.0 if j.used is None else j.used)), tuple(members))
        for members in groups.values()
    ]


def problems(step: Data) -> list[tuple[str, Data]]:
    """What no bound is needed for, such as a NaN or a missing output: the case's name and the problem."""
    return [(case["name"], p) for case in cases(step) for p in (case.get("source") or {}).get("problems", [])]


def noted(step: Data) -> list[str]:
    """What the check noticed and nothing fails for, such as labels that fit no output, with where: each once."""
    found: dict[str, list[str]] = {}
    for case in cases(step):
        for note in (case.get("source") or {}).get("notes", []):
            text = re.sub(r" \(first of \d+\)$", "", note["text"])
            found.setdefault(f"{note['output']}: {text}" if note.get("output") else text, []).append(case["name"])
    return [f"{text} ({names[0]}{f', and {len(names) - 1} more' if len(names) > 1 else ''})"
            for text, names in found.items()]  # fmt: skip


def unbounded(step: Data) -> list[Data]:
    """The cases that no bound is put on: an edge value after a lossy step has to be finite and of the right shape."""
    return [c for c in cases(step) if not c.get("verdicts") and not (c.get("source") or {}).get("problems")]
