"""A run's report as JUnit XML, for the test view of a CI system: a suite per delivery, a test case per bound and gate.

The elements are those of the schema by which Jenkins reads such files (junit-10.xsd of its xUnit plug-in).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from optkit.errors import OptkitError
from optkit.parity.scores import value_text
from optkit.report import write_atomically
from optkit.reports.bounds import bound_rows, problems, unbounded
from optkit.reports.layers import others, told
from optkit.reports.remedies import remedy
from optkit.reports.rows import (
    benchmark_text,
    broken,
    cost,
    deliveries,
    heat_name,
    scores,
    speed,
    stands_on,
    verdict,
    worse,
)
from optkit.reports.sentences import replay

Data = Mapping[str, Any]

_COLOUR = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))")  # ECMA-48 CSI, and titles and links
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, section 2.2


@dataclass(frozen=True)
class _Case:
    """One test case. outcome: "", "failure", "error" or "skipped"; text: its body, or what a case that passed tells."""

    step: str
    name: str
    outcome: str = ""
    message: str = ""
    text: str = ""
    kind: str = ""
    seconds: float = 0.0


def render(report: Data) -> str:
    """JUnit XML of a report's JSON; something in it fails exactly where the run's exit code is not 0.

    One suite for each delivery, and one for the other steps. A case that fails says what, where and one thing to try. A
    deferred check is skipped where the recipe says that it is the target's to make, else it fails. A blocked step is
    skipped: what blocks it fails in the same file. A waived check passes, and tells why it was skipped.
    """
    steps = {step["id"]: step for step in report.get("steps", [])}
    made = deliveries(report)
    delivered = {d.step for d in made}
    cases = {d: _cases(steps[d.step], report) for d in made if d.step in steps}
    rest = [case for step in steps.values() if step["id"] not in delivered for case in _cases(step, report)]
    every = [*(case for found in cases.values() for case in found), *rest, *_baseline(report), *_benchmark(report)]
    if report.get("exit_code") and not any(case.outcome in ("failure", "error") for case in every):
        odd = _Case("run", "ends in order", "error", verdict(report), f"exit code {report['exit_code']}", "run")
        rest, every = [*rest, odd], [*every, odd]
    name, timestamp = report.get("name", "run"), str(report.get("started", "")).removesuffix("+00:00")
    suites = [
        _suite(f"{name}.{d.step}", name, found, timestamp, _properties(steps[d.step], d.path))
        for d, found in cases.items()
    ]
    if report.get("baseline"):
        suites.append(_suite(f"{name} (baseline)", name, list(_baseline(report)), timestamp, {}))
    if report.get("benchmark"):
        suites.append(_suite(f"{name} (benchmark)", name, list(_benchmark(report)), timestamp, {}))
    if rest:
        suites.append(_suite(f"{name} (steps on the way)", name, rest, timestamp, {}))
    return _document(name, suites, every, report.get("seconds", 0.0))


def write_aborted(name: str, error: OptkitError, out: Path) -> None:
    """Write the JUnit XML of a run that an error ended which concerns all of it: there is no report to draw then.

    Where that cannot be written, the error itself is the news.
    """
    case = _Case("run", "reads the model, the data and the labels", "error", error.what, _error_text(error.to_json()),
                 type(error).__name__)  # fmt: skip
    with contextlib.suppress(OSError):
        write_atomically(out / "report.junit.xml", _document(name, [_suite(name, name, [case], "", {})], [case], 0.0))


def clean(text: object, *, lines: bool = False) -> str:
    """`text` without colour codes, and with what XML 1.0 forbids as escapes; on one line unless `lines`."""
    plain = _FORBIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), _COLOUR.sub("", str(text)))
    return plain.replace("\r\n", "\n").replace("\r", "\n") if lines else " ".join(plain.split())


def _cases(step: Data, report: Data) -> list[_Case]:
    """A step's cases; its check's seconds are spread evenly over the bounds, which one comparison measured."""
    seconds = {"run": 0.0, "check": 0.0, **(step.get("seconds") or {})}
    run, *judged = _told(step, report)
    share = seconds["check"] / len(judged) if judged else 0.0
    return [replace(run, seconds=seconds["run"]), *(replace(case, seconds=share) for case in judged)]


def _told(step: Data, report: Data) -> Iterator[_Case]:
    """What became of a step's pass, then of each thing that its check asks, then of each gate on it."""
    yield from _proven(step, report)
    yield from _gates(step, report)


def _proven(step: Data, report: Data) -> Iterator[_Case]:
    name, status, error = step["id"], step["status"], step.get("error")
    run = _Case(name, f"makes {step.get('target', 'it')} by {step.get('pass')}")
    if status == "blocked":
        yield replace(run, outcome="skipped", message=f"blocked by {step.get('blocked_by')}, which did not succeed")
        return
    if status in ("interrupted", "skipped"):
        yield replace(run, outcome="skipped", message="the run was interrupted before it was done")
        return
    if status == "error":
        told = error or {"what": "it did not succeed"}
        failed = replace(run, outcome="error", message=told["what"], kind=told.get("class") or "StepError",
                         text=_error_text(told, step))  # fmt: skip
        if told.get("phase") == "check":
            yield run
            failed = replace(failed, name="can be checked")
        yield failed
        return
    yield run
    check = step.get("check") or {}
    if status == "deferred":
        why = (error or {}).get("what", "this machine cannot run it")
        meant = bool(step.get("on_target"))
        text = [why, stands_on(step), "optkit verify gives the verdict on the target"]
        if not meant:
            text.append("Try: on_target: true on the step, where that is meant")
        yield _Case(name, "is checked", "skipped" if meant else "failure", f"deferred: {why}", _lines(text), "deferred")
        return
    if check.get("waived"):
        yield _Case(name, "is checked", text=f"waived: {check['waived']}")
    found = [*_judged(step, report), *_musts(step, report)]
    gated = any(gate["status"] == "failed" for gate in step.get("gates") or ())
    if status == "failed" and not gated and not any(case.outcome for case in found):
        reasons = broken(step) or ["its check does not hold"]
        found.append(_failure(step, report, "is checked", reasons[0], reasons))
    yield from found


def _judged(step: Data, report: Data) -> Iterator[_Case]:
    for row in bound_rows(step):
        one, facts = row.worst, [f"{row.worst.spelt} at {row.where}; holds in {row.count}", row.worst.reason]
        if row.held:
            yield _Case(step["id"], row.name, text=_lines(facts))
            continue
        texts = [f"{j.case}: {j.text}" for j in sorted(row.members, key=lambda j: j is not one) if not j.held]
        yield _failure(step, report, row.name, f"{one.case}: {one.text}", [*texts, one.reason])
    kinds: dict[str, list[str]] = {}
    for case, problem in problems(step):
        output, kind = problem.get("output"), problem.get("kind") or "problem"
        kinds.setdefault(f"{output}: {kind}" if output else kind, []).append(f"{case}: {problem['text']}")
    for name, score in scores(step).items():
        if "problem" in score:
            kinds.setdefault(f"metric {name}", []).append(f"could not be measured: {score['problem']}")
    for key, texts in kinds.items():
        yield _failure(step, report, key, texts[0], texts)
    if bare := unbounded(step):
        wrong = [case["name"] for case in bare if not case.get("held")]
        key = "finite and of the right shapes"
        if wrong:
            yield _failure(step, report, key, f"not so at {', '.join(wrong)}", ())
        else:
            yield _Case(step["id"], key, text=f"at {', '.join(case['name'] for case in bare)}")


def _musts(step: Data, report: Data) -> Iterator[_Case]:
    for must in step.get("must") or ():
        key = f"must be {must['must']}"
        if must["held"]:
            yield _Case(step["id"], key, text=must["text"])
        else:
            yield _failure(step, report, key, must["text"], ())


def _gates(step: Data, report: Data) -> Iterator[_Case]:
    """A case for each gate; one that could not be judged is skipped, for what kept it from that fails by itself."""
    for gate in step.get("gates") or ():
        key = f"gate {gate['gate']}"
        if gate["status"] == "failed":
            yield replace(_failure(step, report, key, gate["text"], ()), kind="gate")
        elif gate["status"] == "held":
            yield _Case(step["id"], key, text=gate["text"])
        else:
            yield _Case(step["id"], key, "skipped", f"{gate['status']}: {gate['text']}")


def _baseline(report: Data) -> Iterator[_Case]:
    """A case for each figure of the baseline, or one that says why the two cannot be compared."""
    found = report.get("baseline") or {"problem": "", "rows": []}
    if found["problem"]:
        text = _lines([found["problem"], f"Try: {found['hint']}" if found["hint"] else ""])
        yield _Case("baseline", "can be compared", "failure", found["problem"], text, "baseline")
    bad, changed = worse(report), found.get("changes") or ()
    for row in found["rows"]:
        key = f"{row['figure']} of {row['step']}"
        if row in bad:
            text = _lines([row["text"], *(f"Changed: {what}" for what in changed)])
            yield _Case("baseline", key, "failure", row["text"], text, "baseline")
        else:
            yield _Case("baseline", key, text=row["text"])


def _benchmark(report: Data) -> Iterator[_Case]:
    """A case for each artifact, batch and number of threads that was measured, and one for what kept others from it."""
    found = report.get("benchmark") or {"rows": (), "error": None}
    for row in found["rows"]:
        key = f"{row['artifact']}, {heat_name(row)}"
        lines = [
            f"median {row['latency_ms']['p50']:.3g} ms, {row['samples_per_second']:.4g} samples/s",
            f"speed over {found['against']}: {benchmark_text(row)}" if row["ratio"] else "",
            row["unsteady"],
        ]
        yield _Case("benchmark", key, text=_lines(lines))
    if error := found["error"]:
        yield _Case("benchmark", "is measured", "error", error["what"], _error_text(error),
                    error.get("class") or "StepError")  # fmt: skip


def _failure(step: Data, report: Data, name: str, message: str, more: Iterable[str]) -> _Case:
    text = [
        *more,
        cost(step, report),
        told(step),
        others(step),
        f"At {step['where']}" if step.get("where") else "",
        f"Try: {remedy(step)}",
    ]
    return _Case(step["id"], name, "failure", message, _lines([*text, _again(step)]), "bound")


def _error_text(error: Data, step: Data | None = None) -> str:
    hint, where = error.get("hint"), error.get("where") or (step or {}).get("where")
    return _lines([
        error.get("what", ""), f"At {where}" if where else "", f"Try: {hint}" if hint else "", _again(step or {}),
        error.get("details") or "",
    ])  # fmt: skip


def _again(step: Data) -> str:
    return f"Run it again alone: {command}" if (command := replay(step)) else ""


def _lines(parts: Iterable[str]) -> str:
    return "\n".join(part for part in parts if part)


def _properties(step: Data, path: str | None) -> dict[str, str]:
    """What a dashboard may want of a delivery beside its verdicts."""
    size = (step.get("artifact") or {}).get("size_bytes")
    return {
        "status": step["status"], "pass": str(step.get("pass")), "format": str(step.get("target")),
        **({"size_bytes": str(size)} if size is not None else {}), **({"path": path} if path else {}),
        **{f"metric {name}": value_text(score) for name, score in scores(step).items() if "problem" not in score},
        **({"speed": text} if (text := speed(step)) else {}),
    }  # fmt: skip


def _counts(cases: Sequence[_Case]) -> dict[str, str]:
    def count(outcome: str) -> str:
        return str(sum(case.outcome == outcome for case in cases))

    return {"tests": str(len(cases)), "failures": count("failure"), "errors": count("error")}


def _suite(
    title: str, run: str, cases: Sequence[_Case], timestamp: str, properties: Mapping[str, str]
) -> ElementTree.Element:
    skipped = str(sum(case.outcome == "skipped" for case in cases))
    suite = ElementTree.Element("testsuite", {
        "name": clean(title), **_counts(cases), "skipped": skipped,
        "time": _seconds(sum(case.seconds for case in cases)),
        **({"timestamp": clean(timestamp)} if timestamp else {}),
    })  # fmt: skip
    if properties:
        listed = ElementTree.SubElement(suite, "properties")
        for name, value in properties.items():
            ElementTree.SubElement(listed, "property", {"name": clean(name), "value": clean(value)})
    for case in cases:
        named = {"name": clean(case.name), "classname": clean(f"{run}.{case.step}"), "time": _seconds(case.seconds)}
        element = ElementTree.SubElement(suite, "testcase", named)
        if case.outcome:
            kind = {"type": clean(case.kind)} if case.kind else {}
            inner = ElementTree.SubElement(element, case.outcome, {"message": clean(case.message), **kind})
            inner.text = clean(case.text, lines=True) or None
        elif case.text:
            ElementTree.SubElement(element, "system-out").text = clean(case.text, lines=True)
    return suite


def _document(name: str, suites: Sequence[ElementTree.Element], cases: Sequence[_Case], seconds: float) -> str:
    root = ElementTree.Element("testsuites", {"name": clean(name), **_counts(cases), "time": _seconds(seconds)})
    root.extend(suites)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _seconds(value: float) -> str:
    return f"{value:.3f}"
