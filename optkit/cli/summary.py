"""A finished run in a few lines: its verdict, its deliveries, and what went wrong with one thing to try."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from optkit.cli.common import relative
from optkit.cli.console import STYLES
from optkit.cli.failure import remedy as remedy_lines
from optkit.cli.failure import why
from optkit.cli.text import Cell, clean, has_colour, paint, table
from optkit.reports.bounds import margin, nearest
from optkit.reports.layers import others, told
from optkit.reports.remedies import remedy
from optkit.reports.rows import (
    against_baseline,
    benchmark_parity,
    benchmark_text,
    broken,
    cases,
    cost,
    deliveries,
    gates,
    score_text,
    scores,
    stands_on,
    verdict,
)
from optkit.reports.spelling import duration, size
from optkit.reports.tuned import tuned

MOST_REASONS = 5  # of a failed check; the report has them all

Data = Mapping[str, Any]


def verdict_line(report: Data, stream: IO[str]) -> str:
    """The run's verdict: "digits: all 4 deliveries hold (12.3 s)"."""
    style = "good" if report["exit_code"] == 0 else "bad"
    return f"{paint(clean(verdict(report)), style, has_colour(stream))} ({duration(report.get('seconds'))})"


def deliveries_table(report: Data, stream: IO[str]) -> str:
    """The deliveries, one per line; "" when there are none."""
    steps = {step["id"]: step for step in report.get("steps", [])}
    shown = deliveries(report)
    columns: dict[str, list[str | Cell]] = {
        "delivery": [d.step for d in shown],
        "format": [d.format for d in shown],
        "size": [size(d.size_bytes) for d in shown],
        "status": [Cell(d.status, STYLES.get(d.status, "")) for d in shown],
        "worst parity": [d.parity or "-" for d in shown],
        "nearest bound": [margin(nearest(steps.get(d.step, {}))) for d in shown],
        "speed": [d.speed or "-" for d in shown],
        "time": ["cached" if d.cached else duration(d.seconds) for d in shown],
        "folder": [relative(Path(d.path)) if d.path else "-" for d in shown],
    }
    if not any(d.speed for d in shown):
        del columns["speed"]
    rows = list(zip(*columns.values(), strict=True))
    head = tuple(columns)
    return table(head, rows, stream) if rows else ""


def metric_lines(report: Data, stream: IO[str]) -> str:
    """The task metrics of each delivery, one per line: the value and its interval, the source's, and the drop."""
    steps = {step["id"]: step for step in report.get("steps", [])}
    rows = [
        (d.step, name, Cell(clean(score_text(score)), "bad" if "problem" in score else ""))
        for d in deliveries(report) for name, score in scores(steps.get(d.step, {})).items()
    ]  # fmt: skip
    return table(("delivery", "metric", "value [interval]"), rows, stream) if rows else ""


def gate_lines(report: Data, stream: IO[str]) -> str:
    """The gates, one per line."""
    styles = {"held": "good", "failed": "bad"}
    rows = [
        (step_id, gate["gate"], Cell(gate["status"], styles.get(gate["status"], "warn")), gate["text"])
        for step_id, gate in gates(report)
    ]
    return table(("delivery", "gate", "", "measured"), rows, stream) if rows else ""


def benchmark_lines(report: Data, stream: IO[str]) -> str:
    """The benchmark: a line for each artifact, batch and number of threads."""
    found = report.get("benchmark") or {}
    styles = {"faster": "good", "slower": "bad"}
    rows = [
        (row["artifact"], str(row["batch"]), str(row["threads"]), f"{row['latency_ms']['p50']:.3g}",
         f"{row['samples_per_second']:.4g}", Cell(benchmark_text(row), styles.get(row["verdict"] or "", "")),
         clean(row["provider"]), clean(benchmark_parity(row) or "-"))
        for row in found.get("rows", ())
    ]  # fmt: skip
    head = ("measured", "batch", "threads", "p50 ms", "samples/s", "speed", "run by", "answers")
    lines = [table(head, rows, stream)] if rows else []
    if found.get("error"):
        lines.append(f"{paint('not measured', 'bad', has_colour(stream))}: {clean(found['error']['what'])}")
    return "\n".join([*lines, *(f"note: {clean(note)}" for note in found.get("notes", ()))])


def baseline_lines(report: Data, stream: IO[str]) -> str:
    """The run beside its baseline: a line for each figure; "" where its recipe names none."""
    found = report.get("baseline") or {}
    styles = {"worse": "bad", "missing": "bad", "better": "good"}
    rows = [
        (row["step"], row["figure"], Cell(row["status"], styles.get(row["status"], "")), row["text"])
        for row in found.get("rows", ())
    ]
    return table(("delivery", "figure", "", "baseline and now"), rows, stream) if rows else ""


def baseline_wrong(report: Data, stream: IO[str]) -> str:
    """What got worse since the baseline, what changed, and one thing to try; "" where it holds or there is none."""
    found = report.get("baseline")
    if not found or found["held"]:
        return ""
    what = clean(against_baseline(report))
    lines = [f"{paint('baseline', 'bold', has_colour(stream))} {paint('does not hold', 'bad', has_colour(stream))}",
             f"  {what}", *(f"  changed: {clean(text)}" for text in found["changes"])]  # fmt: skip
    hint = found["hint"] or "what changed; where it is meant, optkit baseline save RUN makes this run the baseline"
    return "\n".join([*lines, f"  try: {clean(hint)}", f"  {why(found['code'] or 'OPK-104')}"])


def synthetic_note(report: Data) -> str:
    """What synthetic samples leave unproven; "" where all samples are real."""
    made_up = [name for name, info in (report.get("data") or {}).items() if info.get("synthetic")]
    steps = report.get("steps", [])
    way = "data: in the recipe" if (report.get("recipe") or {}).get("path") else "--data FILE.npz"
    for name in made_up:
        if any((step.get("check") or {}).get("data") == name for step in steps):
            return (
                "note: judged on random data, which shows that the model converts, not how accurate it is\n"
                f"  try: real samples, with {way}"
            )
    for name in made_up:
        if fitted := [step["id"] for step in steps if step.get("data") == name]:
            return f"note: {clean(', '.join(fitted))}: fitted on random data; real samples give a better model"
    return ""


def slower_notes(report: Data) -> Iterator[str]:
    """A note for each step that was to make a model lighter, and made it slower."""
    for step in report.get("steps", []):
        found = step.get("speed") or {}
        if found.get("verdict") == "slower" and step["status"] == "passed":
            r = found["ratio"]
            yield (
                f"note: {clean(step['id'])} is slower than {clean(found['against'])} on this machine: "
                f"{r['value']:.2f} times as fast ({r['low']:.2f} to {r['high']:.2f})\n"
                "  try: must: [faster] on the step fails such a result; other options or another runtime may mend it"
            )


def budget_notes(report: Data) -> Iterator[str]:
    """A note for each step that looked for settings, or kept operators in higher precision, to hold its budget."""
    for step in report.get("steps", []):
        found = (step.get("notes") or {}).get("budget") or {}
        ranking = found.get("ranking") or []
        if ways := tuned(step):
            yield f"note: {clean(step['id'])}: {clean(ways[0].removesuffix('.'))}"
        if kept := sum(row["kept"] for row in ranking):
            yield (
                f"note: {clean(step['id'])} keeps {kept} of {len(ranking)} groups in higher precision: "
                f"{clean(' and '.join(found['bounds']))} held on {found['samples']} samples of "
                f"{clean(step.get('data') or 'the fitting data')}"
            )


def wrongs(report: Data, stream: IO[str]) -> Iterator[str]:
    """A few lines for each step that failed, and one for those that wait for it."""
    steps = report.get("steps", [])
    colour = has_colour(stream)
    for step in steps:
        if step["status"] == "error":
            yield error_text(step, colour)
        elif step["status"] == "failed":
            yield failed_text(step, report, colour)
        elif step["status"] == "deferred" and not step.get("on_target"):
            yield deferred_text(step, colour)
    blocked: dict[str, list[str]] = {}
    for step in steps:
        if step["status"] == "blocked":
            blocked.setdefault(step.get("blocked_by") or "?", []).append(step["id"])
    for cause, ids in blocked.items():
        yield f"{paint('blocked', 'warn', colour)}: {clean(', '.join(ids))}, because {clean(cause)} did not succeed"


def head(step: Data, what: str, colour: bool) -> str:
    """The first lines about a step: what happened to it, and where it stands in the recipe."""
    error = step.get("error") or {}
    where = error.get("where") or step.get("where")
    return f"{paint(clean(step['id']), 'bold', colour)} {paint(what, 'bad', colour)}" + (
        f"\n  at {clean(where)}" if where else ""
    )


def error_text(step: Data, colour: bool) -> str:
    """What stopped a step."""
    error = step.get("error") or {}
    doing = {"check": "could not be checked", "run": f"failed in {clean(step.get('pass'))}"}
    first, *rest = clean(error.get("what", "no reason was given"), lines=True).splitlines() or [""]
    lines = [head(step, doing.get(error.get("phase", ""), "failed"), colour), f"  {first}", *(f"  {x}" for x in rest)]
    lines += [f"  {line}" for line in remedy_lines(error.get("hint", ""))]
    if step.get("replay"):
        lines.append(f"  again, alone: optkit replay {clean(shlex.quote(relative(Path(step['replay']))))}")
    return "\n".join([*lines, f"  {why(error['code'])}"] if error.get("code") else lines)


def deferred_text(step: Data, colour: bool) -> str:
    """Why a step's check is left to another machine, and what speaks for it meanwhile."""
    lines = [head(step, "deferred, this machine cannot run its check", colour)]
    lines += [f"  {clean(text)}" for text in ((step.get("error") or {}).get("what"), stands_on(step)) if text]
    return "\n".join([*lines, "  try: on_target: true on the step if that is meant, then optkit verify on the target",
                      f"  {why('OPK-102')}"])  # fmt: skip


def failed_text(step: Data, report: Data, colour: bool) -> str:
    """Why a step's check does not hold."""
    reasons = [clean(reason) for reason in broken(step)]
    said = any(not m["held"] for m in step.get("must") or ())
    said |= any(gate["status"] == "failed" for gate in step.get("gates") or ())
    lines = [
        head(step, "is not what it must be" if said else "failed its check", colour),
        *(f"  {r}" for r in reasons[:MOST_REASONS]),
    ]
    if len(reasons) > MOST_REASONS:
        lines.append(f"  and {len(reasons) - MOST_REASONS} more, in the report")
    unlike = not said or any(not case.get("held") for case in cases(step))
    if unlike and (lost := cost(step, report)):
        lines.append(f"  {clean(lost)}")
    lines += [f"  {clean(text)}" for text in (told(step), others(step)) if text]
    return "\n".join([*lines, f"  try: {clean(remedy(step))}", f"  {why('OPK-103' if said else 'OPK-101')}"])
