"""What the terminal and the Markdown report both show, read out of a report's JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from optkit.parity.bounds import EQUAL_DB
from optkit.parity.scores import change_text, spell, value_text
from optkit.report import INTERRUPTED
from optkit.reports.spelling import spelt

Data = Mapping[str, Any]

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
    return sum(parts) if parts and step.get("status") not in ("blocked", "interrupted", "skipped") else None


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
            yield f"{judged.get('output')} {judged.get('bound')} {judged.get('against')}", judged["text"]


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
    if report.get("exit_code") == INTERRUPTED:
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
