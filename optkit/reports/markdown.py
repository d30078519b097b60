"""A run's report as Markdown: for a pull request, or whoever asks a month later what was shipped."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from optkit.reports.rows import (
    broken,
    cached,
    cases,
    cost,
    deliveries,
    remedy,
    seconds_of,
    size,
    spelt,
    stands_on,
    verdict,
)

Data = Mapping[str, Any]

_WORST = ("cosine", "sqnr_db", "rel_l2", "mismatch", "top1_agreement", "accuracy_drop")


def render(report: Data) -> str:
    """GitHub-flavoured Markdown of a report's JSON; the same report gives the same text."""
    steps = list(report.get("steps", []))
    parts = [f"# {escape(verdict(report))}", _facts(report), "## Deliveries", _deliveries(report)]
    parts += ["## Steps", _steps(steps)]
    if wrong := [s for s in steps if s["status"] in ("failed", "error", "blocked")]:
        parts += ["## What went wrong", *(_wrong(s, report) for s in wrong)]
    if waived := [s for s in steps if (s.get("check") or {}).get("waived")]:
        parts += ["## Waived checks", _list(f"{_bold(s['id'])}: {escape(s['check']['waived'])}" for s in waived)]
    if deferred := [s for s in steps if s["status"] == "deferred"]:
        parts += ["## Deferred checks", _list(_deferred(s) for s in deferred)]
    if measured := [s for s in steps if cases(s)]:
        parts += ["## Parity", *(_parity(s, report) for s in measured)]
    parts += ["## Environment", _environment(report), "## Reproduce", _reproduce(report)]
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
    data = report.get("data") or {}
    used = [
        f"{name} ({info['samples']} samples" + (", synthetic)" if info.get("synthetic") else ")")
        for name, info in data.items()
        if isinstance(info, Mapping) and "samples" in info
    ]
    facts = [
        f"Exit code {report.get('exit_code')}",
        f"{report.get('seconds', 0):.1f} s",
        f"optkit {report.get('optkit')}",
        str(report.get("started", "")),
        "data: " + ", ".join(used) if used else "",
    ]
    return escape(", ".join(f for f in facts if f)) + "."


def _deliveries(report: Data) -> str:
    rows = [
        [escape(d.step), escape(d.format), size(d.size_bytes), _status(d.status), escape(d.parity) or "-",
         _seconds(d.seconds), _yes(d.cached), escape(d.path or "-")]
        for d in deliveries(report)
    ]  # fmt: skip
    head = ("Step", "Format", "Size", "Status", "Worst parity with the source", "Seconds", "Cached", "Folder")
    return table(head, rows) if rows else "None."


def _steps(steps: Sequence[Data]) -> str:
    rows = [
        [escape(s["id"]) + (" (implied)" if s.get("implied") else ""), escape(s.get("pass")), escape(s.get("parent")),
         escape(s.get("fidelity")), _status(s["status"]), _seconds(seconds_of(s)), _yes(cached(s))]
        for s in steps
    ]  # fmt: skip
    return table(("Step", "Pass", "From", "Fidelity", "Status", "Seconds", "Cached"), rows) if rows else "None."


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
            parts.append("Run it again alone:\n\n" + fenced(f"optkit replay {shlex.quote(step['replay'])}", "sh"))
        return "\n\n".join(parts)
    reasons = [escape(reason) for reason in broken(step)]
    lost = cost(step, report)
    return "\n\n".join(
        [
            head,
            _list(reasons) if reasons else "Its check does not hold.",
            *([escape(lost[:1].upper() + lost[1:]) + "."] if lost else []),
            f"Try: {escape(remedy(step))}",
        ]
    )


def _deferred(step: Data) -> str:
    where = "meant to run on the target" if step.get("on_target") else "this machine cannot run it"
    error = (step.get("error") or {}).get("what")
    return (
        f"{_bold(step['id'])}: {where}"
        + (f" ({escape(error)})" if error else "")
        + "; `optkit verify` gives the verdict"
        + (f". {escape(text[:1].upper() + text[1:])}." if (text := stands_on(step)) else ".")
    )


def _parity(step: Data, report: Data) -> str:
    check = step["check"]
    facts = [
        f"against {check.get('against') or 'the source'}",
        f"on {check.get('data')}" if check.get("data") else "",
        f"precision {check['precision']}" if check.get("precision") else "",
        f"run by {check['provider']}" if check.get("provider") else "",
        cost(step, report),
    ]
    rows = []
    for case in cases(step):
        result = case.get("source") or {}
        for verdict_ in case.get("verdicts", []) or [{}]:
            rows.append([escape(case["name"]), str(case.get("samples", "-")), *_judged(verdict_, case)])
        rows += [
            [
                escape(case["name"]),
                str(case.get("samples", "-")),
                escape(p.get("output") or "-"),
                "-",
                escape(p["text"]),
                "**no**",
                "",
            ]
            for p in result.get("problems", [])
        ]
    head = ("Case", "Samples", "Output", "Bound", "Measured", "Held", "Reason")
    return "\n\n".join([
        f"### {escape(step['id'])}", escape("; ".join(f for f in facts if f)) + ".",
        table(head, rows), _measures(cases(step)),
    ])  # fmt: skip


def _judged(verdict_: Data, case: Data) -> list[str]:
    if not verdict_:  # edge values of a lossy step: its ranges were fitted on real samples
        return ["-", "-", "-", "yes" if case.get("held") else "**no**", "finite, and of the right shapes"]
    measured = verdict_.get("measured")
    shown = verdict_["text"] if measured is None else f"{measured:.6g}"
    if verdict_.get("worst_sample") is not None and measured is not None:
        shown += f" (sample {verdict_['worst_sample']})"
    reason = verdict_.get("reason") or (f"stated by {verdict_['stated_by']}" if verdict_.get("stated_by") else "")
    return [escape(verdict_.get("output") or "-"), escape(verdict_.get("bound") or "-"), escape(shown),
            "yes" if verdict_["held"] else "**no**", escape(reason)]  # fmt: skip


def _measures(step_cases: Sequence[Data]) -> str:
    rows = []
    for case in step_cases:
        roles = {role: (case.get(role) or {}).get("outputs") or {} for role in ("source", "parent")}
        for output in {**roles["source"], **roles["parent"]}:
            rows.append([escape(case["name"]), escape(output), *(_worst(roles[r].get(output) or {}) for r in roles)])
    return table(("Case", "Output", "Worst against the source", "Worst against the parent"), rows) if rows else ""


def _worst(metrics: Data) -> str:
    values = {name: metrics[name].get("worst", metrics[name].get("value")) for name in _WORST if name in metrics}
    return escape(", ".join(spelt(name, value) for name, value in values.items() if value is not None)) or "-"


def _environment(report: Data) -> str:
    rows = [[escape(key), escape(value)] for key, value in _flat(report.get("environment") or {})]
    return table(("", ""), rows) if rows else "Not recorded."


def _flat(data: Data, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key} ")
        elif value not in (None, "", []):
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _reproduce(report: Data) -> str:
    recipe = report.get("recipe") or {}
    path = recipe.get("path")
    flags = [part for text in recipe.get("set", ()) for part in ("--set", text)]
    flags += [part for step in recipe.get("only", ()) for part in ("--only", step)]
    lines = [
        shlex.join(["optkit", "convert", path, *flags])
        if path
        else "# made without a recipe file; optkit init writes one"
    ]
    lines += [f"optkit verify {shlex.quote(d.path)}" for d in deliveries(report) if d.path]
    return fenced("\n".join(lines), "sh")


def _status(status: str) -> str:
    return status if status == "passed" else f"**{escape(status)}**"


def _bold(name: object) -> str:
    return f"**{escape(name)}**"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)
