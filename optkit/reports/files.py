"""The files that a run's report is drawn into, beside its report.json."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.report import write_atomically
from optkit.reports import DRAWN

if TYPE_CHECKING:
    from optkit.report import Report

FORMS = {"markdown": DRAWN[0], "html": DRAWN[1], "junit": DRAWN[2]}
"""What a report is drawn as, each by the module of that name, and the file it has beside report.json."""


def draw(form: str, data: Mapping[str, Any]) -> str:
    """A report's JSON as one of `FORMS`."""
    text: str = importlib.import_module(f"optkit.reports.{form}").render(data)
    return text


def write_reports(report: Report, out: Path) -> None:
    """Write each form of the report for people and for CI into `out`, from the report's JSON alone."""
    for form, name in FORMS.items():
        write_atomically(out / name, draw(form, report.data))
