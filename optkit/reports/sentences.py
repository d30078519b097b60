"""What the Markdown and the HTML report say in the same words, as plain text."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from optkit.reports.rows import cases, deliveries, stands_on
from optkit.reports.spelling import duration

Data = Mapping[str, Any]


def facts(report: Data) -> list[str]:
    """What a run's verdict rests on: the source, the data, the exit code, how long it took, with what and when."""
    used = [
        f"{name} ({info['samples']} samples" + (", random)" if info.get("synthetic") else ")")
        for name, info in (report.get("data") or {}).items()
        if isinstance(info, Mapping) and "samples" in info
    ]
    source = (report.get("source") or {}).get("format", "source")
    found = [
        f"Every step was run against the {source} model" if any(map(cases, report.get("steps", []))) else "",
        "data: " + ", ".join(used) if used else "",
        f"exit code {report.get('exit_code')}",
        duration(report.get("seconds", 0)),
        f"optkit {report.get('optkit')}",
        str(report.get("started", "")).replace("T", " ").removesuffix("+00:00") + " UTC",
    ]
    return [fact for fact in found if fact]


def caution(report: Data) -> str:
    """What random data leave unproven; "" where all data are real."""
    made_up = [name for name, info in (report.get("data") or {}).items() if info.get("synthetic")]
    steps = report.get("steps", [])
    if any((step.get("check") or {}).get("data") in made_up for step in steps):
        return "Judged on random data: this shows that the models convert, not how accurate they are on real inputs."
    if fitted := [step["id"] for step in steps if step.get("data") in made_up]:
        return f"Fitted on random data: {', '.join(fitted)}. Real samples give a better model."
    return ""


def deferral(step: Data) -> str:
    """Why a step's check was deferred, and what speaks for the step meanwhile."""
    where = "meant to run on the target" if step.get("on_target") else "this machine cannot run it"
    error, stands = (step.get("error") or {}).get("what"), stands_on(step)
    return where + (f" ({error})" if error else "") + "; `optkit verify` gives the verdict." + (
        f" {stands[:1].upper() + stands[1:]}." if stands else ""
    )  # fmt: skip


def commands(report: Data) -> list[str]:
    """The commands that repeat the run and prove its deliveries again."""
    recipe = report.get("recipe") or {}
    path = recipe.get("path")
    flags = [part for text in recipe.get("set", ()) for part in ("--set", text)]
    flags += [part for step in recipe.get("only", ()) for part in ("--only", step)]
    convert = shlex.join(["optkit", "convert", str(path), *flags])
    verify = [f"optkit verify {shlex.quote(d.path)}" for d in deliveries(report) if d.path]
    return [convert if path else "# made without a recipe file; optkit init writes one", *verify]


def replay(step: Data) -> str:
    """The command that runs a step again alone, "" where it was not run."""
    return f"optkit replay {shlex.quote(step['replay'])}" if step.get("replay") else ""


def flat(data: Data, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested facts as names and texts, without those that are empty."""
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key} ")
        elif value not in (None, "", []):
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
