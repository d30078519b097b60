"""A run held against an earlier one, figure by figure: what got worse beyond tolerance and noise, and what changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optkit.comparing.figures import changes, conditions, contract, error_of, figures_of, noise_of
from optkit.errors import UserError
from optkit.parity.bounds import EQUAL_DB
from optkit.parity.scores import spell
from optkit.report import BaselineResult, BaselineRow
from optkit.reports.spelling import size, spelt
from optkit.spec.sections import Tolerance

ROUNDINGS = 16
"""How many times the source's own rounding error two faithful runs may lie apart: other kernels were measured at 0.9 to
14 times (`optkit.parity.bounds.derived_bounds`)."""

UNIT_ROUNDOFF = 2.0**-24

Data = Mapping[str, Any]


@dataclass(frozen=True)
class _Terms:
    """On what terms figures are compared. noise: the relative L2 error below which parity says nothing."""

    allowed: Tolerance
    noise: float
    same_hardware: bool


def compare(before: Data, report: Data, tolerance: Tolerance, steps: Sequence[str] | None = None) -> BaselineResult:
    """A run held against a baseline: a row for each figure of each delivery, and what else changed.

    steps: the deliveries to look at, where a run made only some; default: all in the baseline. It does not hold where a
    figure got worse by more than the tolerance and than noise explains, or is not measured any more. Raises UserError
    where the two cannot be compared.
    """
    require_comparable(before, report)
    mine = conditions(report)
    same_hardware = before["conditions"]["hardware"] == mine["hardware"]
    if tolerance.latency is not None and not same_hardware:
        was, now = (_machine(c["hardware"]) for c in (before["conditions"], mine))
        raise UserError(f"latency in ms cannot be compared: the baseline is from {was}, this run from {now}",
                        hint="leave latency: out; ratios compare on any machine", code="OPK-254")  # fmt: skip
    levels = [level for level in (before["noise"], noise_of(report)) if level is not None]
    terms = _Terms(tolerance, ROUNDINGS * max([*levels, UNIT_ROUNDOFF]), same_hardware)
    return _result(before["deliveries"], figures_of(report, [d["step"] for d in report["deliver"]]), terms, steps,
                   changes(before["conditions"], mine))  # fmt: skip


def require_comparable(before: Data, report: Data) -> None:
    """Raise UserError, with every reason, unless the figures of both mean the same thing."""
    if problems := _differences(before["contract"], contract(report)):
        raise UserError(f"this run cannot be compared with the baseline: {'; '.join(problems)}",
                        hint="where that is meant, save a new baseline: optkit baseline save RUN",
                        code="OPK-254")  # fmt: skip


def _differences(was: Data, now: Data) -> list[str]:
    found = [f"the model's {kind} differ: {_told(was[kind])} in the baseline, {_told(now[kind])} now"
             for kind in ("inputs", "outputs") if was[kind] != now[kind]]  # fmt: skip
    if was["judging data"] != now["judging data"]:
        names = ", ".join(dict.fromkeys([*was["judging data"], *now["judging data"]])) or "none"
        found.append(f"the data it is judged on differ ({names}): other samples, or other preprocessing")
    return found


def _told(tensors: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {kind}" for name, kind in tensors.items()) or "none"


def _machine(hardware: Data) -> str:
    return ", ".join(f"{value}{' cores' if key == 'cores' else ''}" for key, value in hardware.items() if value)


def _result(
    was: Mapping[str, Data], now: Mapping[str, Data], terms: _Terms, steps: Sequence[str] | None, changed: list[str]
) -> BaselineResult:
    rows: list[BaselineRow] = []
    for step_id, figures in was.items():
        if steps is not None and step_id not in steps:
            continue
        mine = now.get(step_id)
        if mine is None or mine["status"] not in ("passed", "waived", "deferred"):
            status = "not delivered any more" if mine is None else f"now {mine['status']}"
            rows.append(_row(step_id, "delivery", "missing", "", None, None, None, status))
            continue
        rows += _compared(step_id, figures, mine, terms)
    rows += [_row(i, "delivery", "new", "", None, None, None, "not in the baseline") for i in now if i not in was]
    held = not any(row["status"] in ("worse", "missing") for row in rows)
    return {"file": "", "held": held, "problem": "", "hint": "", "code": "", "rows": rows, "changes": changed,
            "tolerance": terms.allowed.model_dump()}  # fmt: skip


def _row(
    step: str, figure: str, status: str, unit: str, before: float | None, now: float | None, limit: float | None,
    text: str,
) -> BaselineRow:  # fmt: skip
    return {"step": step, "figure": figure, "status": status, "unit": unit, "before": before, "now": now,
            "limit": limit, "text": text}  # fmt: skip


def _status(worse: bool, better: bool) -> str:
    return "worse" if worse else "better" if better else "same"


def _compared(step: str, was: Data, now: Data, terms: _Terms) -> Iterator[BaselineRow]:
    """Rows for one delivery's figures, those of the baseline; one that is not measured now is missing."""
    for figure, unit, told, judge in (
        ("size_bytes", "B", size, _sized), ("sqnr_db", "dB", _parity, _paritied), ("mismatch", "fraction", _share,
         _mismatched),
    ):  # fmt: skip
        if figure not in was:
            continue
        a, b, limit = was[figure], now.get(figure), None
        name = "size" if figure == "size_bytes" else figure
        if b is None:
            yield _row(step, name, "missing", unit, a, None, limit, f"{told(a)}, not measured now")
            continue
        status, limit, more = judge(a, b, terms)
        yield _row(step, name, status, unit, a, b, limit, f"{told(a)} -> {told(b)}{more}")
    for name, score in was.get("scores", {}).items():
        yield _scored(step, name, score, now.get("scores", {}).get(name), terms.allowed)
    for against, speed in was.get("speed", {}).items():
        yield from _raced(step, against, speed, now.get("speed", {}).get(against), terms)


def _parity(sqnr_db: float) -> str:
    return spelt("sqnr_db", sqnr_db)


def _share(value: float) -> str:
    return f"{value:.2%} of elements"


def _sized(a: float, b: float, terms: _Terms) -> tuple[str, float, str]:
    limit = a * (1 + terms.allowed.size)
    return _status(b > limit, b < a), limit, f" ({b / a - 1:+.1%})" if a else ""


def _paritied(a: float, b: float, terms: _Terms) -> tuple[str, float, str]:
    lost, real = a - b > terms.allowed.sqnr_db, error_of(b) - error_of(a) > terms.noise
    more = ", within rounding" if lost and not real else ""
    if EQUAL_DB not in (a, b):
        more = f" ({b - a:+.1f} dB){more}"
    better = b - a > terms.allowed.sqnr_db and error_of(a) - error_of(b) > terms.noise
    return _status(lost and real, better), a - terms.allowed.sqnr_db, more


def _mismatched(a: float, b: float, terms: _Terms) -> tuple[str, float, str]:
    limit = a + terms.allowed.metric
    return _status(b > limit, b < a), limit, ""


def _scored(step: str, name: str, was: Data, now: Data | None, allowed: Tolerance) -> BaselineRow:
    a, unit = was["value"], was["unit"]
    if now is None:
        return _row(step, name, "missing", unit, a, None, None, f"{spell(was, a)}, not measured now")
    b, sign = now["value"], 1 if now["better"] == "higher" else -1
    room = allowed.metric if unit == "fraction" else allowed.metric * abs(a)
    lost, more, status = sign * (a - b), "", "same"
    if lost > room:
        # The change is paired, source against artifact on the same samples: the sharper of the two intervals.
        kind = "change" if now.get("change_interval") and was.get("change") is not None else "value"
        ends = now.get("change_interval" if kind == "change" else "interval")
        status = "same" if ends is not None and ends[0] <= was[kind] <= ends[1] else "worse"
        more = ", within what so few samples can tell" if status == "same" else ""
    elif lost < 0:
        status = "better"
    if interval := now.get("interval"):
        more = f" [{spell(now, interval[0])}, {spell(now, interval[1])}]{more}"
    return _row(step, name, status, unit, a, b, a - sign * room, f"{spell(was, a)} -> {spell(now, b)}{more}")


def _raced(step: str, against: str, was: Data, now: Data | None, terms: _Terms) -> Iterator[BaselineRow]:
    figure, a = f"speed over {against}", was["ratio"]
    if now is None:
        text = f"{a['value']:.2f}x, not measured now"
        yield _row(step, figure, "missing", "ratio", a["value"], None, None, text)
        return
    if (was["sizes"], was["threads"]) != (now["sizes"], now["threads"]):
        text = f"cannot be compared: measured at {_at(was)} in the baseline, at {_at(now)} now"
        yield _row(step, figure, "missing", "ratio", a["value"], None, None, text)
        return
    b, limit = now["ratio"], a["value"] * (1 - terms.allowed.speed)
    text = f"{a['value']:.2f}x -> {b['value']:.2f}x [{b['low']:.2f}, {b['high']:.2f}]"
    slower, certain = b["value"] < limit, b["high"] < a["low"]
    if slower and not certain:
        text += ", within the noise of its measurement"
    status = _status(slower and certain, b["value"] > a["value"] * (1 + terms.allowed.speed) and b["low"] > a["high"])
    yield _row(step, figure, status, "ratio", a["value"], b["value"], limit, text)
    if terms.same_hardware:
        share = terms.allowed.latency
        c, d = was["latency_ms"]["p50"], now["latency_ms"]["p50"]
        top = None if share is None else c * (1 + share)
        told = f"{c:.3g} ms -> {d:.3g} ms" + ("" if top is not None else ", not judged without a tolerance")
        late = top is not None and d > top
        yield _row(step, f"latency p50 beside {against}", "worse" if late else "same", "ms", c, d, top, told)


def _at(speed: Data) -> str:
    sizes = ", ".join(f"{name} {count}" for name, count in speed["sizes"].items())
    return f"{sizes or 'fixed sizes'}, {speed['threads']} threads"
