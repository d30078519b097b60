"""What a delivery may take at most, or must gain: gates as a recipe states them. Pure, and without numpy.

size <= 10 MB           its files; also <= 25 %, of the source or "of parent"
speedup >= 2            times as fast as the source, or "over parent"
latency_p90 <= 5 ms     one inference at the dims' opt sizes; also p50 and p99
throughput >= 500       samples per second at those sizes, one inference after the other
peak_memory <= 300 MB   the most its process had resident, its runtime included; also <= 50 %, of the source
convert_seconds <= 60   of the passes on the way from the source, checks left out
accuracy_drop <= 0.5%   any figure of a metric that the recipe declares
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from optkit.errors import did_you_mean
from optkit.parity.bounds import Bound, BoundError, MetricInfo, parse_bound


@dataclass(frozen=True)
class Measure:
    """What a gate may be put on. units: how much of the base unit each is; "" where the number stands alone.

    relative: whether it is, with "%" or always, a share of another model's. timed: whether a race measures it.
    """

    name: str
    better: Literal["higher", "lower"]
    base: str
    units: Mapping[str, float]
    example: str
    relative: Literal["never", "percent", "always"] = "never"
    timed: bool = False


_BYTES = {"B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_TIMES = {"us": 1e-3, "ms": 1, "s": 1e3}

MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("size", "lower", "B", _BYTES, "size <= 10 MB", "percent"),
        Measure("speedup", "higher", "", {"": 1, "x": 1}, "speedup >= 2", "always", timed=True),
        *(Measure(f"latency_{q}", "lower", "ms", _TIMES, f"latency_{q} <= 5 ms", timed=True)
          for q in ("p50", "p90", "p99")),
        Measure("throughput", "higher", "samples/s", {"": 1, "samples/s": 1}, "throughput >= 500", timed=True),
        Measure("peak_memory", "lower", "B", _BYTES, "peak_memory <= 300 MB", "percent", timed=True),
        Measure("convert_seconds", "lower", "s", {"": 1, "s": 1}, "convert_seconds <= 60"),
    )
}  # fmt: skip

_ALIASES = {"latency": "latency_p90", "speed": "speedup", "time": "convert_seconds", "bytes": "size",
            "memory": "peak_memory", "peak_bytes": "peak_memory", "samples_per_second": "throughput"}  # fmt: skip


@dataclass(frozen=True)
class Gate:
    """`measure op value`, in the measure's base unit.

    relative: whose value it is a share or a multiple of, "source" or "parent"; "" for an amount.
    bound: of a gate on a task metric, the bound it is.
    """

    measure: str
    op: Literal[">=", "<="]
    value: float
    text: str
    relative: Literal["", "source", "parent"] = ""
    bound: Bound | None = None

    @property
    def timed(self) -> bool:
        """Whether the model has to be raced to know."""
        return self.bound is None and MEASURES[self.measure].timed

    @property
    def unit(self) -> str:
        """Of its value: "B", "ms", "s", "samples/s", "ratio" or "fraction"."""
        if self.bound is not None:
            return self.bound.info.unit
        return "ratio" if self.relative else MEASURES[self.measure].base

    def allows(self, measured: float) -> bool:
        """Whether what was measured is within it."""
        return measured >= self.value if self.op == ">=" else measured <= self.value

    def looser_than(self, other: Gate) -> bool:
        """Whether another gate on the same thing lets pass no more, so that this one has no effect beside it."""
        return self.value <= other.value if self.op == ">=" else self.value >= other.value

    @property
    def about(self) -> tuple[str, str]:
        """What it is put on; two gates with the same are in each other's way."""
        return self.measure, self.relative


def parse_gate(text: str, table: Mapping[str, MetricInfo]) -> Gate:
    """The gate that `measure (<=|>=) number [unit] [of|over source|parent]` states, or a bound on a task metric.

    table: the metrics there are (`bound_table`). Raises BoundError, with a hint, for anything else.
    """
    match = re.fullmatch(r"\s*(.*?)\s*([<>=!~≤≥]+)\s*([^<>=!~≤≥]*?)\s*", text, re.DOTALL)
    if match is None:
        raise BoundError(f"{text!r} is not a gate: it has no >= or <=", "write it like: size <= 10 MB")
    name, op, rest = match.groups()
    if name in table and table[name].task:
        bound = parse_bound(text, table)
        return Gate(name, bound.op, bound.value, " ".join(text.split()), "", bound)
    measure = MEASURES.get(name)
    if measure is None:
        raise BoundError(f"{text!r}: nothing called {name!r} can be measured", _hint(name, table))
    right = ">=" if measure.better == "higher" else "<="
    if op != right:
        what = f"{name} is better when {measure.better}, so its gate has {right}"
        raise BoundError(f"{text!r}: {what}", f"write {name} {right} {rest}" if rest else measure.example)
    value, relative = _amount(text, measure, rest)
    if value <= 0:
        raise BoundError(f"{text!r}: {'every' if op == '>=' else 'no'} model meets this", measure.example)
    return Gate(name, ">=" if op == ">=" else "<=", value, " ".join(text.split()), relative)


def _hint(name: str, table: Mapping[str, MetricInfo]) -> str:
    if name.rpartition(".")[2] in table:
        return f"{name} is a bound on outputs: put it under check:, or declare a metric: and gate that"
    if name in _ALIASES:
        return f"did you mean {_ALIASES[name]!r}?"
    return did_you_mean(name, [*MEASURES, *(n for n, info in table.items() if info.task)])


def _amount(text: str, measure: Measure, rest: str) -> tuple[float, Literal["", "source", "parent"]]:
    """A gate's value in the base unit, and whose it is relative to."""
    match = re.fullmatch(
        r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([A-Za-z%/]*?)(?:\s+(?:of|over)\s+(\w+))?", rest
    )
    if match is None:
        raise BoundError(f"{text!r}: {rest!r} is no amount", f"write it like: {measure.example}")
    number, unit, whose = match.groups()
    percent = unit == "%" and measure.relative == "percent"
    if not percent and unit not in measure.units:
        known = ", ".join([u for u in measure.units if u] + (["%"] if measure.relative == "percent" else []))
        what = f"{unit!r} is no unit of {measure.name}" if unit else f"{measure.name} needs a unit"
        raise BoundError(f"{text!r}: {what}", f"one of {known}; for example {measure.example}")
    relative = percent or measure.relative == "always"
    if whose is not None and not relative:
        raise BoundError(f"{text!r}: {measure.name} in {unit or 'numbers'} is not relative to anything",
                         f"leave out the words behind {number}{unit}")  # fmt: skip
    if whose not in (None, "source", "parent"):
        raise BoundError(f"{text!r}: {whose!r} is not what it can be relative to", "source or parent")
    value = float(Decimal(number) / 100) if percent else float(Decimal(number) * Decimal(str(measure.units[unit])))
    return value, ("parent" if whose == "parent" else "source") if relative else ""


def clashes(gates: Sequence[Gate]) -> list[tuple[int, Gate]]:
    """Gates on what an earlier one of the list is on already: the place of each, and the earlier one."""
    first: dict[tuple[str, str], Gate] = {}
    found = []
    for index, gate in enumerate(gates):
        earlier = first.setdefault(gate.about, gate)
        if earlier is not gate:
            found.append((index, earlier))
    return found


def pattern(names: Sequence[str]) -> str:
    """A regular expression (ECMA 262) for gates; `names` is what names of task metrics look like, as patterns."""
    number = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*"
    whose = r"(\s+(of|over)\s+(source|parent))?"
    forms = [
        rf"size\s*<=\s*{number}({'|'.join(_BYTES)})",
        rf"size\s*<=\s*{number}%{whose}",
        rf"speedup\s*>=\s*{number}x?{whose}",
        rf"throughput\s*>=\s*{number}(samples/s)?",
        rf"peak_memory\s*<=\s*{number}({'|'.join(_BYTES)})",
        rf"peak_memory\s*<=\s*{number}%{whose}",
        rf"latency_(p50|p90|p99)\s*<=\s*{number}({'|'.join(_TIMES)})",
        rf"convert_seconds\s*<=\s*{number}s?",
        *(rf"{name}\s*(>=|<=)\s*{number}%?" for name in names),
    ]
    return rf"^\s*({'|'.join(forms)})\s*$"
