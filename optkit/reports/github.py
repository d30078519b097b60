"""A run's report for GitHub Actions: a job summary, and an annotation at the recipe's line of each failed step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optkit.errors import OptkitError, RecipeError
from optkit.reports import markdown
from optkit.reports.layers import told
from optkit.reports.remedies import remedy
from optkit.reports.rows import broken, worse

Data = Mapping[str, Any]

MOST_BYTES = 1024 * 1024 - 1024
"""Of a summary: GitHub drops one of more than 1 MiB for a step whole."""


def summary(report: Data, room: int = MOST_BYTES) -> str:
    """The Markdown report, without its longest parts where it would be over `room` bytes."""
    text = markdown.render(report)
    if len(text.encode(errors="replace")) <= room:
        return text
    told = "\n\nThe rest is left out: it is over what a job summary takes. report.md has it.\n"
    # Whole parts, so that no table, fence or <details> is left open.
    parts, kept = text.split("\n## "), 0
    used = len(told.encode())
    for part in parts:
        used += len(part.encode(errors="replace")) + 4
        if used > room:
            break
        kept += 1
    return "\n## ".join(parts[:kept]) + told


def annotated(report: Data, root: Path) -> Iterator[str]:
    """A workflow command for each step that fails the run, the first being those that GitHub shows.

    root: the checkout's folder; files in it are named from there. Blocked steps have none: what blocks them has one.
    """
    for step in report.get("steps", []):
        error, name = step.get("error") or {}, step["id"]
        where = error.get("where") or step.get("where") or ""
        if step["status"] == "error":
            yield annotation(f"{name}: {error.get('code', 'error')}", _tell(error.get("what", ""), error.get("hint")),
                             where, root)  # fmt: skip
        elif step["status"] == "failed":
            reasons = [*(broken(step) or ["its check does not hold"]), *filter(None, [told(step)])]
            yield annotation(f"{name} failed", _tell("\n".join(reasons), remedy(step)), where, root)
        elif step["status"] == "deferred" and not step.get("on_target"):
            what = error.get("what", "this machine cannot run its check")
            yield annotation(f"{name} is deferred", _tell(what, "on_target: true on the step, where that is meant"),
                             where, root)  # fmt: skip
    yield from _baseline(report, root)
    yield from _benchmark(report, root)


def _baseline(report: Data, root: Path) -> Iterator[str]:
    found = report.get("baseline") or {"held": True}
    if not found["held"]:
        what = found["problem"] or "\n".join(f"{row['step']}: {row['text']}" for row in worse(report))
        path = (report.get("recipe") or {}).get("path")
        yield annotation("worse than the baseline", _tell(what, found["hint"]), f"{path}:1" if path else "", root)


def _benchmark(report: Data, root: Path) -> Iterator[str]:
    error = (report.get("benchmark") or {}).get("error")
    if error:
        path = (report.get("recipe") or {}).get("path")
        where = error.get("where") or (f"{path}:1" if path else "")
        yield annotation(
            f"benchmark: {error.get('code', 'error')}", _tell(error["what"], error.get("hint")), where, root
        )


def of_error(error: OptkitError, root: Path) -> Iterator[str]:
    """A workflow command for each thing an error says that ended the command."""
    if isinstance(error, RecipeError):
        for problem in error.problems:
            yield annotation(problem.code, _tell(problem.what, problem.hint), str(problem.where or ""), root)
    else:
        yield annotation(error.code, _tell(error.what, error.hint), str(error.where or ""), root)


def annotation(title: str, message: str, where: str, root: Path) -> str:
    """`::error file=,line=,col=,title=::message`, escaped as the runner reads it.

    where: "FILE:LINE:COLUMN"; what has no line names no file.
    """
    file, *numbers = _place(where)
    named = {"file": _from(root, file) if numbers else "", **dict(zip(("line", "col"), numbers, strict=False)),
             "title": title}  # fmt: skip
    properties = ",".join(f"{key}={_property(value)}" for key, value in named.items() if value)
    return f"::error {properties}::{_data(message)}"


def _place(where: str) -> list[str]:
    """A file and up to two numbers after it; the file's own name may hold colons."""
    numbers: list[str] = []
    while len(numbers) < 2:
        rest, colon, last = where.rpartition(":")
        if not colon or not last.isdecimal():
            break
        where, numbers = rest, [last, *numbers]
    return [where, *numbers]


def _from(root: Path, file: str) -> str:
    try:
        return Path(file).resolve().relative_to(root.resolve()).as_posix()
    except ValueError:
        return file


def _tell(what: str, hint: str | None) -> str:
    return f"{what}\nTry: {hint}" if hint else what


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
