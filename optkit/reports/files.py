"""The files that a run's report is drawn into, beside its report.json."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optkit.report import write_atomically
from optkit.reports import DRAWN

if TYPE_CHECKING:
    from optkit.report import Report


def write_reports(report: Report, out: Path) -> None:
    """Write each form of the report for people and for CI into `out`, from the report's JSON alone."""
    from optkit.reports import html, junit, markdown

    for name, draw in zip(DRAWN, (markdown.render, html.render, junit.render), strict=True):
        write_atomically(out / name, draw(report.data))
