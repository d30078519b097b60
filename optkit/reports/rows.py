"""What the terminal and the Markdown report both show, read out of a report's JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optkit.metricspec import bound_table, metrics_of
from optkit.parity.bounds import METRICS, Bound, BoundError, MetricInfo, parse_bound
from optkit.parity.scores import change_text, spell, value_text

Data = Mapping[str, Any]

EQUAL_DB = 300.0
"""What stands for an SQNR without any noise."""

_METRICS = ("cosine", "sqnr_db", "mismatch")  # shown of a case at a glance, where they were measured


@dataclass(frozen=True)
class Delivery:
    """One delivery at a glance. size_bytes and path are None where nothing was delivered."""

    step: str
    format: str
    size_bytes: int | None
    status: str
    parity: str
    seconds: float | None
    cached: bool
    path: str | None
    speed: str = ""


def deliveries(report: Data) -> list[Delivery]:
    """The report's deliveries, in its order."""
    steps = {step["id"]: step for step in report.get("steps", [])}
    made = []
    for item in report.get("deliver", []):
        step = steps.get(item["step"], {})
        size_bytes = item.get("size_bytes") or (step.get("artifact") or {}).get("size_bytes")
        made.append(Delivery(
            item["step"], step.get("target", "?"), size_bytes, step.get("status", "not run"), parity(step),
            seconds_of(step), cached(step), item.get("path"), speed(step),
        ))  # fmt: skip
    return made


def seconds_of(step: Data) -> float | None:
    """Seconds of a step's pass and check together, or None where neither was reached."""
    parts = [v for v in (step.get("seconds") or {}).values() if v is not None]
    return sum(parts) if parts and step.get("status") not in ("blocked", "skipped") else None


def cached(step: Data) -> bool:
    """Whether a step's pass, and its check where it had one, came out of the cache."""
    parts = [v for v in (step.get("cached") or {}).values() if v is not None]
    return bool(parts) and all(parts)


def parity(step: Data) -> str:
    """A step's worst parity with the source on real samples: "cosine 0.9982, 34.2 dB"; "" where none was measured."""
    result = next((c.get("source") for c in cases(step) if c.get("kind") == "samples"), None)
    return ", ".join(spelt(name, value) for name, value in worst(result or {}).items())


def scores(step: Data) -> dict[str, Data]:
    """What the task metrics measured of a step, by name; without any declared, its accuracy where there are labels."""
    case = next((c for c in cases(step) if c.get("kind") == "samples"), {})
    if case.get("scores"):
        return dict(case["scores"])
    outputs = {n: m for n, m in ((case.get("source") or {}).get("outputs") or {}).items() if "accuracy" in m}
    return {"accuracy" if len(outputs) == 1 else f"{name}.accuracy": _as_score(m) for name, m in outputs.items()}


def _as_score(measured: Data) -> Data:
    own, drop = measured["accuracy"], measured.get("accuracy_drop") or {}
    return {
        "value": own["value"], "interval": own.get("interval"), "source": own["reference"],
        "source_interval": own.get("reference_interval"), "change": own["reference"] - own["value"],
        "change_interval": drop.get("interval"), "better": "higher", "unit": "fraction",
        "method": drop.get("method", ""),
    }  # fmt: skip


def score_text(score: Data) -> str:
    """A score in one line: "99.17% [97.58%, 99.72%], source 99.44%, drop 0.28 points [-0.72, 1.55], not ..."."""
    if "problem" in score:
        return f"not measured: {score['problem']}"
    return f"{value_text(score)}, source {spell(score, score['source'])}, {change_text(score)}"


def cases(step: Data) -> list[Data]:
    """The cases of a step's check; none where there was no check."""
    return list((step.get("check") or {}).get("cases") or [])


def worst(result: Data) -> dict[str, float]:
    """The worst value over all outputs of each metric shown at a glance."""
    found: dict[str, float] = {}
    for output in (result.get("outputs") or {}).values():
        for name in _METRICS:
            value = (output.get(name) or {}).get("worst")
            if value is not None:
                pick = max if name == "mismatch" else min
                found[name] = pick(found[name], value) if name in found else value
    return found


def spelt(metric: str, value: float) -> str:
    """A metric for people: "cosine 0.99820", "34.2 dB", "equal to the last bit", "top1_agreement 98.7%"."""
    if metric == "sqnr_db":
        return "equal to the last bit" if value >= EQUAL_DB else f"{value:.1f} dB"
    if metric in ("mismatch", "accuracy", "accuracy_drop") or metric.endswith("_agreement"):
        return f"{metric} {value:.2%}"
    if metric.endswith("cosine"):
        return f"{metric} {cosine(value)}"
    return f"{metric} {value:.3g}"


def cosine(value: float) -> str:
    """A cosine with two digits of its distance from 1: "0.9733", "0.99988", "0.9999983", "1"."""
    if value <= 0.999:
        return f"{value:.4f}"
    digits = min(9, 1 - math.floor(math.log10(1 - value))) if value < 1 else 0
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")


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

    @property
    def spelt(self) -> str:
        """What was measured, for people."""
        if self.measured is None:
            return self.text
        return f"{self.metric} {self.measured:.2%}" if self.percent else spelt(self.metric, self.measured)


def judged(step: Data) -> list[Judged]:
    """Every verdict on a bound, case by case."""
    made = []
    table = _table(step)
    for case in cases(step):
        for verdict_ in case.get("verdicts") or ():
            text, measured = verdict_.get("bound"), verdict_.get("measured")
            bound = _bound(text, table)
            told = verdict_.get("reason") or ""
            if not told and verdict_.get("stated_by"):
                told = f"stated by {verdict_['stated_by']}"
            made.append(Judged(
                case["name"], verdict_.get("output") or "", text or "", bound.metric if bound else "", measured,
                verdict_.get("worst_sample"), used(bound, measured), verdict_["held"], told, verdict_["text"],
                bool(bound and bound.info.unit == "fraction"),
            ))  # fmt: skip
    return made


def used(bound: Bound | None, measured: float | None) -> float | None:
    """How much of what a bound allows was used up: 0 for a perfect match, 1 at the bound, above 1 beyond it."""
    if bound is None or measured is None:
        return None
    if bound.metric == "sqnr_db":  # decibels of a ratio: compare the ratios
        return 0.0 if measured >= 300 else float(10 ** ((bound.value - measured) / 20))
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


def share(part: float | None, held: bool = True) -> str:
    """`Judged.used` as text: "89 %", "12 times"; rounded so that it stays on its side of the bound."""
    if part is None:
        return "-"
    if part >= 2:
        return f"{part:.0f} times" if part < 999 else "over 999 times"
    percents = part * 100
    whole = math.floor(percents) if held else math.ceil(percents)
    return f"{whole} %" if whole >= 1 or part == 0 else "under 1 %"


def margin(one: Judged | None) -> str:
    """How near a verdict is to its bound: "88 % used", "10 times over", "54.2 dB short"; "-" where that is unknown."""
    if one is None or one.used is None or one.measured is None:
        return "-"
    bound = _bound(one.bound, METRICS) if one.metric == "sqnr_db" else None
    if not one.held and bound is not None:
        return f"{bound.value - one.measured:.1f} dB short"
    return share(one.used, one.held) + (" over" if one.used >= 2 else " used")


def _table(step: Data) -> Mapping[str, MetricInfo]:
    try:
        return bound_table(metrics_of(step.get("check") or {}))
    except (ValueError, TypeError, KeyError, StopIteration):  # of a report that another optkit wrote
        return METRICS


def _bound(text: str | None, table: Mapping[str, MetricInfo]) -> Bound | None:
    try:
        return parse_bound(text, table) if text else None
    except BoundError:  # of a report that another optkit wrote
        return None


def speed(step: Data) -> str:
    """A step's speed beside its parent's: "2.31x slim", "0.35x slim, slower"; "" where it was not measured."""
    found = step.get("speed")
    if not found:
        return ""
    text = f"{found['ratio']['value']:.2f}x {found['against']}"
    return text if found["verdict"] == "faster" else f"{text}, {'slower' if found['verdict'] == 'slower' else 'same'}"


def gates(report: Data) -> list[tuple[str, Data]]:
    """Every gate of a report, with the step it is on."""
    return [(step["id"], gate) for step in report.get("steps", []) for gate in step.get("gates") or ()]


def benchmark_text(row: Data) -> str:
    """A row's speed beside what it is measured against: "2.31x [2.25, 2.40]"; "1" for that itself."""
    r = row["ratio"]
    return "1" if r is None else f"{r['value']:.2f}x [{r['low']:.2f}, {r['high']:.2f}]"


def heat_name(row: Data) -> str:
    """What a row was measured at: "batch 8, 1 thread"; rows with the same ran in turns."""
    return f"batch {row['batch']}, {row['threads']} thread{'s' if row['threads'] != 1 else ''}"


def benchmark_parity(row: Data) -> str:
    """What the settings of a row did to its answers: "same answers", "cosine 0.99998, 47.1 dB"; "" without settings."""
    parity = row.get("parity")
    if not parity:
        return ""
    told = [spelt(name, parity[name]) for name in _METRICS if name in parity]
    return "same answers" if parity["equal"] else ", ".join([*told, *parity["problems"]])


def worse(report: Data) -> list[Data]:
    """The rows of a report's baseline that do not hold."""
    return [row for row in (report.get("baseline") or {}).get("rows", ()) if row["status"] in ("worse", "missing")]


def against_baseline(report: Data) -> str:
    """What became of a run beside its baseline, in one line; "" where its recipe names none."""
    found = report.get("baseline")
    if not found:
        return ""
    if found["problem"]:
        return str(found["problem"])
    named = [f"{row['step']} {row['figure']}" for row in worse(report)]
    if not named:
        return f"no worse than {found['file']}"
    return f"worse than {found['file']}: {', '.join(named)}"


def broken(step: Data) -> list[str]:
    """Every reason why a step does not hold, one line each: the first case in full, the others by name."""
    found: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for demand in step.get("must") or ():
        if not demand["held"]:
            key = f"must {demand['must']}"
            first[key], found[key] = f"must be {demand['must']}: {demand['text']}", [""]
    for gate in step.get("gates") or ():
        if gate["status"] == "failed":
            first[gate["gate"]], found[gate["gate"]] = f"gate {gate['gate']}: {gate['text']}", [""]
    for case in cases(step):
        for key, text in reasons(case):
            first.setdefault(key, f"{case['name']}: {text}")
            found.setdefault(key, []).append(case["name"])
    return [
        first[key] + (f"; also at {', '.join(names[1:])}" if len(names) > 1 else "") for key, names in found.items()
    ]


def reasons(case: Data) -> Iterator[tuple[str, str]]:
    """Why a case does not hold: problems, then bounds; each with a key that is the same in every case."""
    for problem in (case.get("source") or {}).get("problems", []):
        output = problem.get("output")
        yield f"{output} {problem.get('kind')}", f"{output}: {problem['text']}" if output else problem["text"]
    for name, score in (case.get("scores") or {}).items():
        if "problem" in score:
            yield f"metric {name}", f"metric {name} could not be measured: {score['problem']}"
    for judged in case.get("verdicts", []):
        if not judged["held"]:
            yield f"{judged.get('output')} {judged.get('bound')}", judged["text"]


def cost(step: Data, report: Data) -> str:
    """What a step itself lost, by its parent's parity on real samples: the blame. "" where that cannot be said."""
    parent = next((s for s in report.get("steps", []) if s["id"] == step.get("parent")), None)
    if parent is None or sqnr(step) is None:
        return ""
    name, before, lost, against = parent["id"], sqnr(parent), lost_db(step, report), sqnr(step, "parent")
    if against is not None and against >= EQUAL_DB:
        return f"equal to its parent {name} to the last bit"
    if lost is None or before is None:
        return "" if against is None else f"{against:.1f} dB against its parent {name}"
    if before >= EQUAL_DB:
        return f"this step lost all of it: its parent {name} equals the source to the last bit"
    if lost < 0.5:
        return f"this step cost nothing: its parent {name} has {before:.1f} dB too"
    return f"this step cost {lost:.1f} dB: its parent {name} has {before:.1f} dB"


def stands_on(step: Data) -> str:
    """What speaks for a step whose check is deferred: its nearest ancestor that did run, "" where none did."""
    near = (step.get("deferred") or {}).get("beside")
    if not near:
        return ""
    return f"its nearest ancestor that runs here, {near['step']}, {near['status']} (run by {near['provider']})"


def lost_db(step: Data, report: Data) -> float | None:
    """How many dB of SQNR a step lost against its parent step, on the worst real sample; None where that is unknown."""
    parent = next((s for s in report.get("steps", []) if s["id"] == step.get("parent")), None)
    mine, before = sqnr(step), sqnr(parent or {})
    return None if mine is None or before is None else max(0.0, before - mine)


def sqnr(step: Data, role: str = "source") -> float | None:
    """A step's SQNR in dB against the source, or its parent, on the worst real sample; `EQUAL_DB` where equal."""
    case = next((c for c in cases(step) if c.get("kind") == "samples"), {})
    return worst(case.get(role) or {}).get("sqnr_db")


def verdict(report: Data) -> str:
    """The run's verdict in one line: "digits: all 4 deliveries hold"."""
    made = deliveries(report)
    name, total = report.get("name", "run"), len(made)
    if report.get("exit_code") == 130:
        return f"{name}: interrupted"
    good = sum(d.status == "passed" for d in made)
    fell = _fell(report)
    if total and good == total and (fell or report.get("exit_code") == 0):
        text = {1: "the delivery holds", 2: "both deliveries hold"}.get(total, f"all {total} deliveries hold")
        return f"{name}: {text}" + (f", but {fell}" if fell else "")
    others: dict[str, list[str]] = {}
    for item in made:
        if item.status != "passed":
            others.setdefault(item.status, []).append(item.step)
    text = ", ".join(f"{status}: {' '.join(ids)}" for status, ids in others.items())
    return f"{name}: {good} of {total} deliveries hold" + (f"; {text}" if text else "")


def _fell(report: Data) -> str:
    """What does not hold of a run beside its deliveries: "worse than the baseline"; "" where all does."""
    baseline = report.get("baseline") or {"held": True}
    said = []
    if not baseline["held"]:
        said.append("cannot be compared with the baseline" if baseline["problem"] else "worse than the baseline")
    if (report.get("benchmark") or {}).get("error"):
        said.append("the benchmark could not be measured")
    return " and ".join(said)


def remedy(step: Data) -> str:
    """One thing to try for a step whose check did not hold."""
    lossy = step.get("fidelity") == "lossy"
    kinds = {case.get("kind") for case in cases(step) if not case.get("held")}
    if missed := [m["must"] for m in step.get("must") or () if not m["held"]]:
        return (
            f"other options (optkit passes {step.get('pass')}) or another runtime; without must: [{', '.join(missed)}] "
            "it ships as it is"
        )
    if any(g["status"] == "failed" for g in step.get("gates") or ()):
        return (
            f"other options (optkit passes {step.get('pass')}) or another runtime, or a gate that fits what is measured"
        )
    if kinds == {"dims"}:
        return "the model takes another way at that size: export it without size-dependent control flow"
    if unclear := _unclear(step):
        return unclear
    if lossy and (left_out := _left_out(step)):
        return f"leave that layer in float, {left_out}; or other options (optkit passes {step.get('pass')})"
    if lossy:
        return f"other options (optkit passes {step.get('pass')}), more or better data to fit on, or a looser bound"
    return (
        "state bounds of your own with check: if this much deviation is expected, else look at the first step it cost"
    )


_LEAVING = {
    "onnx.quantize": ("with: {{exclude: [{}]}}", ("Conv", "ConvTranspose", "Gemm", "MatMul")),
    "onnx.compress_weights": ("with: {{exclude: [{}]}}", ("MatMul", "Gemm", "MatMulNBits")),
    "openvino.quantize": ("with: {{ignored: {{names: [{}]}}}}", ("Convolution", "GroupConvolution", "MatMul")),
}


def _left_out(step: Data) -> str:
    """The option that leaves the layer to blame as it was; "" where there is no such layer or option."""
    from optkit.reports.layers import culprit

    layer, (option, operators) = culprit(step), _LEAVING.get(str(step.get("pass")), ("", ()))
    return option.format(json.dumps(layer["node"])) if layer and layer["operator"] in operators else ""


def _unclear(step: Data) -> str:
    """What to try where all that is broken are bounds on changes that the samples cannot tell from one within them."""
    found, table = [], _table(step)
    for one in (j for j in judged(step) if not j.held):
        bound, score = _bound(one.bound, table), scores(step).get(table[one.metric].task if one.metric in table else "")
        if bound is None or not score or bound.info.part != "change" or not score.get("change_interval"):
            return ""
        if score["change_interval"][0] > bound.value:
            return ""
        found.append(f"{one.metric}_lower {bound.op} {bound.value:g}")
    return (
        f"more samples, which tell the change better; or bound what is certain of it: {', '.join(found)}"
        if found
        else ""
    )


def size(size_bytes: float | None) -> str:
    """A byte count for people: "512 B", "3.4 MB", powers of 1000."""
    if size_bytes is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 999.5 or unit == "GB":
            return f"{size_bytes:.0f} {unit}" if unit == "B" or size_bytes >= 99.95 else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    raise AssertionError("unreachable")


def duration(value: float | None) -> str:
    """A duration for people: "0.42 s", "12.3 s", "4 min 05 s"."""
    if value is None:
        return "-"
    if value < 9.995:
        return f"{value:.2f} s"
    if value < 119.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
