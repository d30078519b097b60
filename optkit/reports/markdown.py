"""A run's report as Markdown: for a pull request, or whoever asks a month later what was shipped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optkit.parity.scores import change_text, source_text, spell, value_text
from optkit.reports.bounds import Judged, bound_rows, margin, nearest, noted, problems, unbounded
from optkit.reports.layers import drawn, remarks, told
from optkit.reports.pruning import HEAD, LEFT_HEAD, pruned
from optkit.reports.remedies import remedy
from optkit.reports.rows import (
    against_baseline,
    benchmark_parity,
    benchmark_text,
    broken,
    cached,
    cases,
    cost,
    deliveries,
    gates,
    lost_db,
    parity,
    scores,
    seconds_of,
    speed,
    sqnr,
    verdict,
    worse,
)
from optkit.reports.sentences import caution, commands, deferral, facts, flat, replay
from optkit.reports.spelling import duration, share, size, spelt
from optkit.reports.training import trained
from optkit.reports.tuned import HEAD as TUNED_HEAD
from optkit.reports.tuned import tuned

Data = Mapping[str, Any]

_WORST = ("cosine", "sqnr_db", "rel_l2", "mismatch", "top1_agreement", "accuracy_drop")


def render(report: Data) -> str:
    """GitHub-flavoured Markdown of a report's JSON; the same report gives the same text.

    On its first screen: the verdict, what it rests on, each delivery with its size, worst sample, nearest bound and
    what its last step cost, then whatever went wrong. Below it the steps, the checks and how to repeat them.
    """
    steps = list(report.get("steps", []))
    parts = [f"# {escape(verdict(report))}", _facts(report), _caution(report), "## Deliveries", _deliveries(report)]
    if wrong := [s for s in steps if s["status"] in ("failed", "error", "blocked")]:
        parts += ["## What went wrong", *(_wrong(s, report) for s in wrong)]
    if waived := [s for s in steps if (s.get("check") or {}).get("waived")]:
        parts += ["## Waived checks", _list(f"{_bold(s['id'])}: {escape(s['check']['waived'])}" for s in waived)]
    if deferred := [s for s in steps if s["status"] == "deferred"]:
        parts += ["## Deferred checks", _list(_deferred(s) for s in deferred)]
    if any(map(scores, steps)):
        parts += ["## Task metrics", _scores(steps)]
    if gates(report):
        parts += ["## Gates", _gates(report)]
    if report.get("benchmark"):
        parts += ["## Benchmark", _benchmark(report["benchmark"])]
    if report.get("baseline"):
        parts += ["## Baseline", _baseline(report)]
    parts += ["## Steps", _steps(steps, report)]
    if measured := [s for s in steps if cases(s)]:
        parts += ["## Checks", _KEY, *(_check(s, report) for s in measured)]
    if budgeted := [s for s in steps if (s.get("notes") or {}).get("budget")]:
        parts += ["## Budgets", *(_budget(s) for s in budgeted)]
    if cut := [(s, found) for s in steps if (found := pruned(s))]:
        parts += ["## Pruning", *(_pruned(s, *found) for s, found in cut)]
    if learned := [(s, told) for s in steps if (told := trained(s))]:
        parts += ["## Training", _list(f"{escape(s['id'])}: {escape(told)}" for s, told in learned)]
    parts += ["## Reproduce", _reproduce(report), "## Environment", _environment(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: object) -> str:
    """`text` as literal inline Markdown that is safe in a table: one line, nothing of it read as markup or HTML."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*\[\]|~$])", r"\\\1", line)
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", line)  # inside a word an underscore is no markup


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the cells are Markdown already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fenced(text: str, language: str = "") -> str:
    """A code block around any text, its fence longer than every run of backticks inside."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    clean = "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)
    return f"{fence}{language}\n{clean.rstrip()}\n{fence}"


def _facts(report: Data) -> str:
    line = "; ".join(facts(report))
    return escape(line[:1].upper() + line[1:]) + "."


def _made(report: Data) -> Sequence[Data]:
    return list(report.get("steps", []))


def _caution(report: Data) -> str:
    text = caution(report)
    return f"**{escape(text)}**" if text else ""


def _deliveries(report: Data) -> str:
    steps = {step["id"]: step for step in _made(report)}
    names = list(dict.fromkeys(name for d in deliveries(report) for name in scores(steps.get(d.step, {}))))
    raced = any(d.speed for d in deliveries(report))
    rows = []
    for d in deliveries(report):
        step = steps.get(d.step, {})
        rows.append([
            _bold(d.step), escape(d.format), size(d.size_bytes), _status(d.status), _parity(step),
            *(_brief(scores(step).get(name)) for name in names), _margin(nearest(step)),
            *([_speed(step)] if raced else []), _cost(step, report),
            escape(d.path or "-"),
        ])  # fmt: skip
    head = ("Delivery", "Format", "Size", "Verdict", "Worst sample against the source",
            *(escape(name[:1].upper() + name[1:]) for name in names), "Nearest bound",
            *(("Speed",) if raced else ()), "Its last step cost", "Folder")  # fmt: skip
    return table(head, rows) if rows else "None."


def _brief(score: Data | None) -> str:
    """A metric of a delivery: its value and the source's."""
    if score is None:
        return "-"
    if "problem" in score:
        return "**not measured**"
    return escape(f"{value_text(score)} (source {spell(score, score['source'])})")


def _scores(steps: Sequence[Data]) -> str:
    """One row for each metric of each step."""
    rows, told = [], []
    for step in steps:
        for name, score in scores(step).items():
            cells = ["-", "-", f"**not measured:** {escape(score['problem'])}"] if "problem" in score else [
                escape(source_text(score)), escape(value_text(score)), escape(change_text(score))
            ]  # fmt: skip
            rows.append([escape(step["id"]), escape(name), *cells])
            if score.get("method"):
                told.append(f"{name}: {score['method']}")
    head = ("Step", "Metric", "Source", "Artifact", "Drop, or rise where lower is better")
    return "\n\n".join([table(head, rows), f"{_INTERVALS} {escape('; '.join(dict.fromkeys(told)))}."])


_INTERVALS = (
    "In brackets the confidence interval. A change whose interval holds zero is not distinguishable from none with so "
    "few samples."
)


def _parity(step: Data) -> str:
    case = next((c for c in cases(step) if c.get("kind") == "samples"), None)
    text = parity(step)
    if case is None or not text:
        return "-"
    outputs = (case.get("source") or {}).get("outputs") or {}
    # The sample that is worst by relative distance, of the output where that is largest.
    worst_of = [m for output in outputs.values() for m in [output.get("sqnr_db") or output.get("mismatch") or {}]]
    sample = min(worst_of, key=lambda m: m.get("worst", 0.0), default={}).get("worst_sample")
    return escape(text + ("" if sample is None else f", sample {sample}"))


def _speed(step: Data) -> str:
    if not (found := step.get("speed")):
        return "-"
    r, sizes = found["ratio"], "".join(f", {name} {size}" for name, size in found["sizes"].items())
    text = f"{speed(step)} ({r['low']:.2f} to {r['high']:.2f}){sizes}, {found['threads']} threads"
    return f"**{escape(text)}**" if found["verdict"] == "slower" else escape(text)


def _margin(judged_: Judged | None) -> str:
    if judged_ is None:
        return "-"
    if judged_.used is None or judged_.measured is None:
        return escape(judged_.bound or judged_.text)
    where = "" if judged_.case == "samples" else f" at {judged_.case}"
    return escape(f"{judged_.bound}: {margin(judged_)}{where}")


def _cost(step: Data, report: Data) -> str:
    lost = lost_db(step, report)
    if lost is None:
        return "-"
    return "nothing" if lost < 0.5 else f"{lost:.1f} dB"


def _steps(steps: Sequence[Data], report: Data) -> str:
    rows = [
        [escape(s["id"]) + (" (implied)" if s.get("implied") else ""), escape(s.get("pass")), escape(s.get("parent")),
         escape(s.get("fidelity")), _status(s["status"]), _decibels(sqnr(s)), _cost(s, report),
         "cached" if cached(s) else duration(seconds_of(s))]
        for s in steps
    ]  # fmt: skip
    head = ("Step", "Pass", "From", "Fidelity", "Verdict", "SQNR after it", "It cost", "Time")
    return table(head, rows) if rows else "None."


def _decibels(value: float | None) -> str:
    return "-" if value is None else spelt("sqnr_db", value)


def _gates(report: Data) -> str:
    rows = [
        [_bold(step_id), escape(gate["gate"]), gate["status"] if gate["status"] == "held" else _bold(gate["status"]),
         escape(gate["text"]), "all deliveries" if gate["scope"] == "recipe" else "this step"]
        for step_id, gate in gates(report)
    ]  # fmt: skip
    return table(("Delivery", "Gate", "", "Measured", "On"), rows)


def _benchmark(found: Data) -> str:
    """One row for each artifact, batch and number of threads; speeds are ratios, measured in turns."""
    rows = [
        [_bold(row["artifact"]), str(row["batch"]), str(row["threads"]),
         " / ".join(f"{row['latency_ms'][name]:.3g}" for name in ("p50", "p90", "p99")),
         f"{row['samples_per_second']:.4g}", escape(benchmark_text(row)),
         duration(row["open_seconds"] + row["first_seconds"]), size(row["peak_bytes"]), size(row["size_bytes"]),
         escape(row["provider"]), escape(benchmark_parity(row) or "-"), escape(row["unsteady"] or "-")]
        for row in found["rows"]
    ]  # fmt: skip
    head = ("Artifact", "Batch", "Threads", "p50 / p90 / p99 ms", "Samples/s", f"Speed over {escape(found['against'])}",
            "Start", "Memory", "Size", "Run by", "Answers beside its own without settings", "Not steady")  # fmt: skip
    parts = [table(head, rows)] if rows else []
    if found["error"]:
        parts.append(f"**Not measured:** {escape(found['error']['what'])}")
    return "\n\n".join([*parts, *([_list(map(escape, found["notes"]))] if found["notes"] else [])])


def _baseline(report: Data) -> str:
    """How the run compares with its baseline: a row for each figure, and what else is not the same."""
    found, said = report["baseline"], against_baseline(report)
    parts = [f"**{escape(said)}**" if not found["held"] else escape(said[:1].upper() + said[1:]) + "."]
    if found["problem"] and found["hint"]:
        parts.append(f"Try: {escape(found['hint'])}")
    bad = worse(report)
    rows = [
        [_bold(row["step"]), escape(row["figure"]), _bold(row["status"]) if row in bad else row["status"],
         escape(row["text"])]
        for row in found["rows"]
    ]  # fmt: skip
    if rows:
        parts.append(table(("Delivery", "Figure", "", "Baseline and now"), rows))
    if found["changes"]:
        parts.append("Changed since:\n\n" + _list(escape(text) for text in found["changes"]))
    return "\n\n".join(parts)


def _wrong(step: Data, report: Data) -> str:
    head = f"### {escape(step['id'])}: {escape(step['status'])}"
    if step["status"] == "blocked":
        return f"{head}\n\nNot run: it waits for {_bold(step.get('blocked_by') or '?')}, which did not succeed."
    error = step.get("error")
    if error:
        parts = [head, escape(error["what"])]
        if error.get("where"):
            parts.append(f"At {escape(error['where'])}.")
        if error.get("hint"):
            parts.append(f"Try: {escape(error['hint'])}")
        if error.get("details"):
            parts.append(f"<details><summary>Details</summary>\n\n{fenced(error['details'])}\n\n</details>")
        if step.get("replay"):
            parts.append("Run it again alone:\n\n" + fenced(replay(step), "sh"))
        return "\n\n".join(parts)
    reasons = [escape(reason) for reason in broken(step)]
    lost = cost(step, report)
    return "\n\n".join(
        [
            head,
            _list(reasons) if reasons else "Its check does not hold.",
            *([escape(lost[:1].upper() + lost[1:]) + "."] if lost else []),
            *_layers(step),
            f"Try: {escape(remedy(step))}",
        ]
    )


def _layers(step: Data) -> Iterable[str]:
    """Which layer made a check fail, and the layers drawn."""
    if text := told(step):
        yield f"**{escape(text[:1].upper() + text[1:])}.**"
    found = step.get("blame") or {}
    if lines := drawn(found) if found else []:
        body = f"{escape('; '.join(remarks(found)))}.\n\n{fenced(chr(10).join(lines))}"
        yield f"<details><summary>The layers</summary>\n\n{body}\n\n</details>"


def _deferred(step: Data) -> str:
    return f"{_bold(step['id'])}: {escape(deferral(step)).replace(_VERIFY, '`optkit verify`')}"


_VERIFY = escape("`optkit verify`")
_KEY = (
    "Each bound is shown where it is nearest to being broken: the case, the sample, and how much of what it allows was "
    "used up. SQNR is that of the worst sample."
)


def _check(step: Data, report: Data) -> str:
    check = step["check"]
    facts = [
        f"Against {check.get('against') or 'the source'}",
        f"on {check['data']}" if check.get("data") else "",
        f"precision {check['precision']}" if check.get("precision") else "",
        f"run by {check['provider']}" if check.get("provider") else "",
        cost(step, report),
    ]
    head = ("Output", "Bound", "Measured", "Where", "Used", "Held", "Why this bound")
    every = f"<details><summary>Every case</summary>\n\n{_measures(cases(step))}\n\n</details>"
    return "\n\n".join([
        f"### {escape(step['id'])}: {escape(step['status'])}", escape("; ".join(f for f in facts if f)) + ".",
        table(head, _verdicts(step)), *(f"Noted, and no failure: {escape(text)}" for text in noted(step)), every,
    ])  # fmt: skip


_BAR = 24  # characters of the longest bar
_RANKED = 24  # groups drawn


def _budget(step: Data) -> str:
    """Which operators stayed in higher precision to hold a step's budget: the groups by the damage they do, drawn."""
    found = step["notes"]["budget"]
    ranking = found["ranking"]
    kept = sum(row["kept"] for row in ranking)
    head = f"### {escape(step['id'])}: {escape(' and '.join(found['bounds']))}"
    if ways := tuned(step):
        tried = table(TUNED_HEAD, ([escape(cell) for cell in row] for row in ways[1]))
        head = "\n\n".join([head, escape(ways[0]), tried])
    trials = f"{found['trials']} trial{'s' if found['trials'] > 1 else ''}"
    how = f"{trials} on {found['samples']} samples of {escape(step.get('data') or 'the fitting data')}"
    if not ranking:
        return f"{head}\n\nHeld with nothing kept in higher precision ({how}): {escape(found['reached'])}."
    most = max((row["error"] or 0.0 for row in ranking), default=0.0) or 1.0
    lines = []
    for row in ranking[:_RANKED]:
        error = row["error"]
        bar = "#" * (_BAR if error is None else max(1, round(_BAR * error / most)))
        value = "not finite" if error is None else f"{error:.2g}"
        lines.append(f"{bar:<{_BAR}} {value:>10}  {'kept' if row['kept'] else '    '}  {row['group']}")
    if len(ranking) > _RANKED:
        lines.append(f"{'':<{_BAR}} and {len(ranking) - _RANKED} more")
    said = (
        f"{kept} of {len(ranking)} groups kept in higher precision, after {how}; reached there: "
        f"{escape(found['reached'])}. The relative error that each group causes alone:"
    )
    return "\n\n".join([head, said, fenced("\n".join(lines))])


def _pruned(step: Data, said: str, rows: Iterable[Sequence[str]], left: Sequence[Sequence[str]]) -> str:
    """How much a pruning removed, of which layers, and what could not be pruned."""
    tables = [(HEAD, rows), *([(LEFT_HEAD, left)] if left else [])]
    drawn = [table(head, ([escape(cell) for cell in row] for row in body)) for head, body in tables]
    return "\n\n".join([f"### {escape(step['id'])}", escape(said), *drawn])


def _verdicts(step: Data) -> Iterable[Sequence[str]]:
    """One row for each bound, at its worst; one for each problem; one for the cases that no bound is put on."""
    for row in bound_rows(step):
        one = row.worst
        yield [escape(one.output or "-"), escape(one.bound or "-"), escape(one.spelt), escape(row.where),
               escape(share(one.used, one.held)), row.count if row.held else f"**{row.count}**",
               escape(one.reason)]  # fmt: skip
    for case, problem in problems(step):
        yield [escape(problem.get("output") or "-"), "-", escape(problem["text"]), escape(case), "-", "**no**", ""]
    if bare := unbounded(step):
        good = sum(bool(c.get("held")) for c in bare)
        held = f"{good} of {len(bare)} cases"
        yield ["-", "finite, of the right shapes", "-", escape(", ".join(c["name"] for c in bare)), "-",
               held if good == len(bare) else f"**{held}**", "a lossy step is fitted on real samples"]  # fmt: skip


def _measures(step_cases: Sequence[Data]) -> str:
    rows = []
    for case in step_cases:
        samples = str(case.get("samples", "-"))
        roles = {role: (case.get(role) or {}).get("outputs") or {} for role in ("source", "parent")}
        for output in {**roles["source"], **roles["parent"]}:
            both = (_worst(roles[role].get(output) or {}) for role in roles)
            rows.append([escape(case["name"]), samples, escape(output), *both])
    head = ("Case", "Samples", "Output", "Worst against the source", "Worst against the parent")
    return table(head, rows) if rows else "Nothing was measured."


def _worst(metrics: Data) -> str:
    values = {name: metrics[name].get("worst", metrics[name].get("value")) for name in _WORST if name in metrics}
    return escape(", ".join(spelt(name, value) for name, value in values.items() if value is not None)) or "-"


def _environment(report: Data) -> str:
    rows = [[escape(key), escape(value)] for key, value in flat(report.get("environment") or {})]
    return table(("", ""), rows) if rows else "Not recorded."


def _reproduce(report: Data) -> str:
    return fenced("\n".join(commands(report)), "sh")


def _status(status: str) -> str:
    return status if status == "passed" else f"**{escape(status)}**"


def _bold(name: object) -> str:
    return f"**{escape(name)}**"


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)
