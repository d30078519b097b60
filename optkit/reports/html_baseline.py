"""The HTML report's part about the baseline: each figure before and now, and what changed since."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optkit.reports.html_kit import link, table
from optkit.reports.markup import Safe, join, tag
from optkit.reports.rows import against_baseline, worse

Data = Mapping[str, Any]

_WORDS = {"same": ("= same", "good"), "better": ("✓ better", "good"), "worse": ("✗ worse", "bad"),
          "missing": ("✗ missing", "bad"), "new": ("+ new", "warn")}  # fmt: skip


def baseline_fell(report: Data) -> Safe | None:
    """Why the run is worse than its baseline, or cannot be compared; None where it holds, or the recipe names none."""
    found = report.get("baseline")
    if not found or found["held"]:
        return None
    reasons = [tag("li", row["step"], ": ", row["text"]) for row in worse(report)]
    said = found["problem"] or f"Worse than {found['file']}."
    title = tag("h3", tag("a", "baseline", href="#baseline"), " ", tag("span", "✗ failed", class_="status bad"))
    return tag("div", title, tag("p", said), tag("ul", *reasons) if reasons else None,
               tag("p", f"Try: {found['hint']}") if found["hint"] else None, class_="wrong")  # fmt: skip


def baseline_part(report: Data) -> Safe | None:
    """How the run compares with its baseline: a row for each figure, and what else is not the same."""
    found = report.get("baseline")
    if not found:
        return None
    said = against_baseline(report)
    made = {step["id"] for step in report.get("steps", [])}
    rows: list[list[object]] = []
    for row in found["rows"]:
        word, look = _WORDS.get(row["status"], (row["status"], "warn"))
        name = link(row["step"]) if row["step"] in made else row["step"]
        rows.append([join([name]), row["figure"], tag("span", word, class_=f"status {look}"), row["text"]])
    parts = [tag("p", f"{said[:1].upper()}{said[1:]}.", class_="dim")]
    if rows:
        parts.append(table(("Delivery", "Figure", "Verdict", "Baseline and now"), rows))
    if found["changes"]:
        parts += [tag("p", "Changed since:"), tag("ul", *(tag("li", text) for text in found["changes"]))]
    return join(parts)
