"""The settings that a step tried for itself, fastest first, and the one it took: rows for every form of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Data = Mapping[str, Any]

HEAD = ("Settings", "Mean relative error", "Reached", "")


def tuned(step: Data) -> tuple[str, list[tuple[str, str, str, str]]] | None:
    """A sentence, and a row for each way tried; None where the step tried none."""
    found = (step.get("notes") or {}).get("tuned")
    if not found:
        return None
    rows = [
        (row["way"], "-" if row["error"] is None else f"{row['error']:.2g}", row["reached"] or row["problem"] or "",
         "taken" if row["way"] == found["way"] else "")
        for row in found["tried"]
    ]  # fmt: skip
    holds = any(row["held"] for row in found["tried"])
    end = "the first that holds the budget" if holds else "none holds the budget alone, this comes nearest"
    count = f"{len(rows)} way{'s' if len(rows) > 1 else ''} to quantise tried"
    return f"{count} on {step.get('data') or 'the fitting data'}; taken: {found['way']} ({end}).", rows
