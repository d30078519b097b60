"""A step's bounds, each once: where it is nearest to being broken, and in how many cases it holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optkit.reports.rows import Judged, cases, judged

Data = Mapping[str, Any]


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
    groups: dict[tuple[str, str, bool], list[Judged]] = {}
    for one in judged(step):
        groups.setdefault((one.output, one.metric or one.text, one.reason.startswith("stated")), []).append(one)
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
