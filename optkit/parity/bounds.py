"""Bounds on parity metrics: parse them, judge a measured result by them, derive them for faithful steps.

Needs no numpy: planning imports this to find a wrong bound before anything runs.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from optkit.parity.scores import UNCLEAR, difference, part_of


class BoundError(ValueError):
    """A bound that cannot be meant. `hint` is one thing to try."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True)
class MetricInfo:
    """One metric. `worst`: the worst sample is judged; `fraction`: one value counted over the whole case; `task`: a
    part of what a metric declared under `metric:` measured over the judging set.

    `low` and `high` limit the values it can take; a bound that no value, or every value, meets is an error.
    task, part: of a task metric, the name it is declared by, and which of its figures: "value", "change" (the drop, or
    the rise where lower is better), or an end of the confidence interval of either, as in "change_upper".
    """

    name: str
    better: Literal["higher", "lower"]
    aggregate: Literal["worst", "fraction", "task"]
    unit: str
    low: float
    high: float
    meaning: str
    source: str
    task: str = ""
    part: str = ""


_HIGHAM = "normwise relative error: Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 1.2"
_WIDROW = "signal to quantisation noise ratio: Widrow and Kollar, Quantization Noise, 2008"
_COUNTED = "counted, over the last axis"
_KL = "Kullback and Leibler, On Information and Sufficiency, 1951"

EQUAL_DB = 300.0
"""What stands for an SQNR without any noise, and negative for one without any signal."""

METRICS: dict[str, MetricInfo] = {
    info.name: info
    for info in (
        MetricInfo("rel_l2", "lower", "worst", "ratio", 0, math.inf, "||c - r|| / ||r||", _HIGHAM),
        MetricInfo("sqnr_db", "higher", "worst", "dB", -EQUAL_DB, EQUAL_DB, "-20 log10(rel_l2)", _WIDROW),
        MetricInfo("cosine", "higher", "worst", "", -1, 1, "cosine between c and r", "inner product"),
        MetricInfo("centred_cosine", "higher", "worst", "", -1, 1, "cosine, means removed", "Pearson, 1895"),
        MetricInfo("max_abs", "lower", "worst", "the output's", 0, math.inf, "max |c - r|", "max norm"),
        MetricInfo("kl", "lower", "worst", "nat", 0, math.inf, "KL of softmax(r) || softmax(c)", _KL),
        MetricInfo("mismatch", "lower", "worst", "fraction", 0, 1, "unequal elements", "counted"),
        MetricInfo("top1_agreement", "higher", "fraction", "fraction", 0, 1, "same argmax", _COUNTED),
        MetricInfo("top5_agreement", "higher", "fraction", "fraction", 0, 1, "r's 1st in c's 5", _COUNTED),
        MetricInfo("accuracy", "higher", "fraction", "fraction", 0, 1, "argmax is the label", _COUNTED),
        MetricInfo("accuracy_drop", "lower", "fraction", "fraction", -1, 1, "accuracy, r minus c", _COUNTED),
    )
}
"""Every metric by name; c is the candidate's output, r the reference's."""

TASKS = ("accuracy", "top_k", "f1", "iou", "map", "wer", "perplexity", "retrieval", "similarity")
"""What a recipe may declare under `metric:` by that name (`optkit.spec.metricspec`)."""

# For "did you mean" only, where spelling is too far for difflib.
_ALIASES = {"cos": "cosine", "snr": "sqnr_db", "psnr": "sqnr_db", "l2": "rel_l2", "rtol": "rel_l2"}
_ALIASES |= {"atol": "max_abs", "top1": "top1_agreement", "top5": "top5_agreement", "acc": "accuracy"}


@dataclass(frozen=True)
class Bound:
    """`[output.]metric op value`: what one output, or (None) each that has the metric, must hold.

    Raises BoundError for an unknown metric, an op against the metric's direction, or a value that no
    measurement, or every measurement, would meet.
    """

    metric: str
    op: Literal[">=", "<="]
    value: float
    output: str | None = None
    reason: str = ""
    declared: MetricInfo | None = field(default=None, compare=False, repr=False)

    @property
    def info(self) -> MetricInfo:
        """The metric it bounds: a task metric as the recipe declares it, else one of METRICS."""
        return self.declared or _metric(self.metric)

    def __post_init__(self) -> None:
        info = self.info
        right = ">=" if info.better == "higher" else "<="
        if self.op != right:
            raise BoundError(
                f"{self}: {self.metric} is better when {info.better}, so it is bounded with {right}",
                f"write {self.metric} {right} {_number(self.value)}",
            )
        if not math.isfinite(self.value):
            raise BoundError(f"{self}: the value is not finite", "give a finite number")
        lower = info.better == "lower"
        impossible = self.value < info.low if lower else self.value > info.high
        vacuous = self.value >= info.high if lower else self.value <= info.low
        if impossible or vacuous:
            percent = info.unit == "fraction" and 1 < self.value <= 100
            inside = f"give a value inside {info.low:g} to {info.high:g}"
            raise BoundError(
                f"{self}: {'no' if impossible else 'every'} model meets this",
                f"did you mean {_number(self.value)}%?" if percent else inside,
            )

    def __str__(self) -> str:
        """The text form; `parse_bound` reads it back (the reason aside)."""
        prefix = "" if self.output is None else f"{self.output}."
        return f"{prefix}{self.metric} {self.op} {_number(self.value)}"


@dataclass(frozen=True)
class Verdict:
    """Whether one bound holds on one output. `bound` is None where the lack of a bound is the failure.

    `measured` is None where there was nothing to measure; `text` says all of it in one line.
    """

    bound: Bound | None
    output: str | None
    held: bool
    measured: float | None
    worst_sample: int | None
    text: str


def parse_bound(text: str, table: Mapping[str, MetricInfo] = METRICS) -> Bound:
    """The bound that `[output.]metric (>=|<=) number` states, as in `logits.cosine >= 0.99`.

    The metric is the last dot-separated word, so an output name may hold dots, slashes and colons. A number
    may end in % for fractions and ratios. table: the metrics there are, where a recipe declares its own. Raises
    BoundError, with a hint, for anything else.
    """
    match = re.fullmatch(r"\s*(.*?)\s*([<>=!~≤≥]+)\s*([^<>=!~≤≥]*?)\s*", text, re.DOTALL)
    if match is None:
        raise BoundError(f"{text!r} is not a bound: it has no >= or <=", "write it like: cosine >= 0.99")
    left, op, number = match.groups()
    prefix, dot, metric = left.rpartition(".")
    prefix, metric = prefix.strip(), metric.strip()
    if not metric or (dot and not prefix):
        raise BoundError(f"{text!r}: a name is missing before {op}", "write it like: logits.cosine >= 0.99")
    info = _metric(metric, table)
    right: Literal[">=", "<="] = ">=" if info.better == "higher" else "<="
    if op not in (">=", "<="):
        raise BoundError(f"{text!r}: a bound has >= or <=, not {op}", f"write {left} {right} {number}")
    try:
        percent = number.endswith("%")
        # Decimal, because 99.9 / 100 is above 0.999 in binary and would refuse 999 of 1000.
        value = float(Decimal(number.removesuffix("%").strip()) / (100 if percent else 1))
    except (ArithmeticError, ValueError):
        points = re.fullmatch(r"([\d.]+)\s*(points?|pp|pt|percent)", number)
        hint = f"write {left} {op} {points[1]}%" if points else f"write {left} {op} and a number"
        raise BoundError(f"{text!r}: {number!r} is not a number", hint) from None
    if percent and info.unit not in ("fraction", "ratio"):
        raise BoundError(f"{text!r}: {metric} takes no %", f"write {left} {op} {value:g}")
    if info.task and prefix:
        raise BoundError(
            f"{text!r}: {info.task} is declared under metric:, its output with it", f"write {metric} {op} {number}"
        )
    return Bound(metric, ">=" if op == ">=" else "<=", value, prefix or None, declared=info if info.task else None)


def judge(
    result: Mapping[str, Any], bounds: Sequence[Bound], scores: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Verdict]:
    """A verdict for every bound on every output it applies to; `result` is what `Comparison.result` returned.

    scores: what the task metrics measured, by the names they are declared by (`optkit.scoring`).

    A bound without an output applies to each output that has its metric. Not held: a bound that applies to no
    output; a named output that is not there; a measurement that is missing or not finite; an output that no
    bound covers; no bounds at all.
    """
    outputs: Mapping[str, Mapping[str, Any]] = result["outputs"]
    if not bounds:
        return [Verdict(None, None, False, None, None, "no bounds: nothing was asked of this step")]
    verdicts: list[Verdict] = []
    covered: set[str | None] = set()
    for bound in bounds:
        if bound.info.task:
            score = (scores or {}).get(bound.info.task, {})
            verdicts.append(task_verdict(bound, score))
            covered |= set(score.get("outputs", ()))
            continue
        names = [name for name in outputs if bound.output in (None, name) and bound.metric in outputs[name]]
        verdicts += [_verdict(bound, name, outputs[name][bound.metric]) for name in names]
        if not names:
            have = ", ".join(outputs) or "none"
            if bound.output is None:
                text = f"{bound}: no output has {bound.metric} (outputs: {have})"
            elif bound.output in outputs:
                defined = ", ".join(outputs[bound.output]) or "no metrics"
                text = f"{bound}: output {bound.output!r} has no {bound.metric} (it has {defined})"
            else:
                text = f"{bound}: there is no output {bound.output!r} (outputs: {have})"
            verdicts.append(Verdict(bound, bound.output, False, None, None, text))
    covered |= {verdict.output for verdict in verdicts}
    for name in outputs:
        if name not in covered:
            defined = ", ".join(outputs[name]) or "nothing: it could not be compared"
            text = f"output {name!r}: no bound covers it (measured: {defined})"
            verdicts.append(Verdict(None, name, False, None, None, text))
    return verdicts


def task_verdict(bound: Bound, score: Mapping[str, Any]) -> Verdict:
    """The verdict on a bound on a task metric; not held where the metric has no such figure."""
    info, needs = bound.info, f"needs {bound.op} {_number(bound.value)}"
    value = None if "problem" in score else part_of(score, info.part)
    if value is None or not math.isfinite(value):
        why = score.get("problem") or score.get("method") or "it was not measured"
        return Verdict(bound, None, False, None, None, f"{bound.metric} has no value ({why}), {needs}")
    ok = value >= bound.value if bound.op == ">=" else value <= bound.value
    change = info.part.startswith("change")
    text = f"{bound.metric} {value:.6g}"
    if interval := score["change_interval" if change else "interval"]:
        text += f" in [{interval[0]:.6g}, {interval[1]:.6g}]"
    if change and difference(score) == "unclear":
        text += f", {UNCLEAR}"
    if not change:
        text += f", the source's {score['source']:.6g}"
    return Verdict(bound, None, bool(ok), float(value), None, f"{text}, {needs}")


def held(
    result: Mapping[str, Any], verdicts: Sequence[Verdict], scores: Mapping[str, Mapping[str, Any]] | None = None
) -> bool:
    """Whether the case holds: something was compared, no problem was found, every verdict is held, and each task
    metric has a value.
    """
    return (
        not any("problem" in score for score in (scores or {}).values())
        and result.get("samples", 0) > 0
        and result.get("problems") == []
        and bool(verdicts)
        and all(verdict.held for verdict in verdicts)
    )


# precision -> (unit roundoff u, factor on a * u, floor in u, cap, bound when noise is unmeasured)
_ROUNDING: dict[str, tuple[float, float, float, float, float]] = {
    "float64": (2.0**-53, 32, 256, 1e-2, 1e-10),
    "float32": (2.0**-24, 32, 256, 1e-2, 1e-4),
    "float16": (2.0**-11, 4, 8, 0.05, 0.02),
    "bfloat16": (2.0**-8, 4, 8, 0.1, 0.1),
}


def default_bounds(
    precision: str,
    noise: Mapping[str, float | None] | None,
    *,
    integers: Collection[str] = (),
    edge: bool = False,
) -> list[Bound]:
    """The bounds of a faithful (rounding) step that computes in `precision`, each with its reason.

    noise: output name -> the source's own worst-sample rel_l2 between its float32 and its float64 run on this
    case; None, for one output or for all, where that could not be measured. integers: the integer and bool
    outputs. edge: the case is one of edge values. Raises BoundError for an unknown precision.

    Why these. To first order an output's relative error is a * u: u the unit roundoff, a how much the network
    amplifies rounding (Higham 2002, section 1.6: conditioning times backward error). The source's own noise
    measures a: noise = a * 2**-24, and a >= 1 since the output is itself rounded.

    - float32, float64: rel_l2 <= 32 a u. Reference and candidate each carry such an error; 32 leaves room for
      another summation order, fusion and Winograd, each costing up to about ten times. Never below 256 u:
      approximate exp, erf or tanh are good to about 1e-6 whatever the network does, and a lucky noise says
      nothing about another kernel. TF32 (u = 2**-11) does not fit, and should not: it is another precision.
    - float16, bfloat16: rel_l2 <= 4 a u. Sums are kept in float32 there, so a, which includes summation,
      already overstates; 4 covers that weights are rounded too, which the measured noise does not see.
      Never below 8 u: input, weights and each layer's activations round independently.
    - The caps say where rounding stops being an excuse: 1e-2 (40 dB), for float16 0.05 (26 dB), for bfloat16
      0.1 (20 dB). A source noisier than its cap fails, because nothing could then be told from a bug. Not so on
      edge values: a constant waveform under a layer norm divides by a variance that is rounding alone, and float32
      speech encoders are 0.7 % off float64 there, while real speech gives 3e-7. There the cap is 1, where nothing
      of the answer is left.
    - Seen on a ResNet, a plain CNN, a transformer and MiniLM: float32 onnxruntime or another attention kernel
      at 0.9 to 14 times the noise; float16 at 0.6 to 3.2 u, bfloat16 at 0.6 to 3.3 u (torch, CPU); a
      batch-norm epsilon of 1e-3 for 1e-5 at 17 times the float32 bound.
    - Unmeasured: a is taken as 50 in float32 (trained networks show noise of 1e-7 to 3e-6), 10 or less in the
      short formats.
    - rel_l2 = e implies sqnr_db = -20 log10(e) and cosine >= sqrt(1 - e**2), so neither is bounded again.
    - Integer outputs are decisions (argmax, comparison): one flips where its margin is below the rounding
      error, so about that share of elements may: mismatch <= the loosest rel_l2 bound. An output of one
      element, or a few, must therefore be equal.
    """
    if precision not in _ROUNDING:
        near = difflib.get_close_matches(precision, _ROUNDING, 1, 0.4)
        hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(_ROUNDING)}"
        raise BoundError(f"no default bounds for precision {precision!r}", hint)
    u, factor, floor, cap, unmeasured = _ROUNDING[precision]
    cap = 1.0 if edge else cap
    reason = f"{precision} rounding; the source's own noise was not measured"
    bounds: list[Bound] = []
    for name, level in (noise or {}).items():
        if name in integers:
            continue
        if level is None or not math.isfinite(level) or level < 0:
            bounds.append(Bound("rel_l2", "<=", unmeasured, name, reason))
            continue
        raw = factor * max(1.0, level / 2.0**-24) * u
        value = _round_up(min(max(raw, floor * u), cap))
        why = f"{precision} rounding: {factor:g} x the source's noise {level:.2g} (float32 against float64)"
        why += "" if u == 2.0**-24 else f" x {u / 2.0**-24:.3g} for the unit roundoff"
        why += f", at least {floor:g} unit roundoffs" if raw < floor * u else ""
        why += f", capped at {cap:g}" if raw > cap else ""
        bounds.append(Bound("rel_l2", "<=", min(value, cap), name, why))
    if noise is None:
        bounds.append(Bound("rel_l2", "<=", unmeasured, None, reason))
    share = max((bound.value for bound in bounds), default=unmeasured)
    why = f"{precision} rounding: a decision flips only where its margin is within the error, about {share:g}"
    return bounds + [Bound("mismatch", "<=", share, name, why) for name in integers]


def _metric(name: str, table: Mapping[str, MetricInfo] = METRICS) -> MetricInfo:
    if name in table:
        return table[name]
    if name in METRICS:
        raise BoundError(f"{name!r} is not declared under metric:", "add accuracy to metric:, or bound what is there")
    lowered = name.lower()
    task = re.fullmatch(rf"(top\d+|{'|'.join(TASKS)})(_drop|_rise)?(_lower|_upper)?", lowered)
    if task and lowered not in _ALIASES and not any(info.task == task[1] for info in table.values()):
        kind = task[1] if task[1] in TASKS else f"{{top_k: {task[1][3:]}}}"
        raise BoundError(f"{name!r} is of a metric that the recipe does not declare", f"add `metric: {kind}`")
    alias = _ALIASES.get(lowered) or (lowered.replace("_drop", "_rise") if "_drop" in lowered else
                                      lowered.replace("_rise", "_drop"))  # fmt: skip
    near = [alias] if alias in table else difflib.get_close_matches(lowered, table, 1, 0.5)
    hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(table)}"
    raise BoundError(f"unknown metric {name!r}", hint)


def _verdict(bound: Bound, output: str, measured: Mapping[str, Any]) -> Verdict:
    value = measured.get("value" if bound.info.aggregate == "fraction" else "worst")
    sample = measured.get("worst_sample")
    needs = f"needs {bound.op} {_number(bound.value)}"
    if value is None or not math.isfinite(value):
        return Verdict(bound, output, False, None, sample, f"{output}: {bound.metric} has no value, {needs}")
    ok = value >= bound.value if bound.op == ">=" else value <= bound.value
    at = "" if sample is None else f" at sample {sample}"
    if "disagreeing" in measured:
        at = f" ({measured['disagreeing']} of {measured['total']} differ{at and ', first' + at})"
    elif measured.get("mean") is not None:
        at += f" (mean {measured['mean']:.6g})"
    elif interval := measured.get("interval"):
        at += f" in [{interval[0]:.6g}, {interval[1]:.6g}]"
        unclear = difference({"change": value, "change_interval": interval}) == "unclear"
        at += f", {UNCLEAR}" if unclear and bound.metric == "accuracy_drop" else ""
    text = f"{output}: {bound.metric} {value:.6g}{at}, {needs}"
    return Verdict(bound, output, bool(ok), float(value), sample, text)


def _number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def _round_up(value: float) -> float:
    """`value` rounded up to two significant digits, so that a report is readable."""
    unit = Decimal(10) ** (Decimal(value).adjusted() - 1)
    return float((Decimal(value) / unit).to_integral_value("ROUND_CEILING") * unit)
