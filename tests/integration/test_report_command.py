"""`optkit report`, and the published schema of report.json, on reports of real runs that hold and that do not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from json_schema import valid
from toy_kit import HEAD, convert, folder

from optkit.cli import cli
from optkit.report import Report
from optkit.reports import DRAWN
from optkit.reports.document import DataPart, Document, EnvironmentPart, Part, faults, report_schema

GOOD = """\
  - {id: a, use: toy.copy}
  - {id: half, from: a, use: toy.half}
  - {id: round, from: a, use: toy.round, data: fit, check: ["cosine >= 0.999"], gate: ["size <= 1 MB"]}
"""
BAD = """\
  - {id: a, use: toy.copy}
  - {id: round, from: a, use: toy.round, data: fit, check: ["cosine >= 0.9999999999"]}
  - {id: next, from: round, use: toy.half}
  - {id: plain, from: a, use: toy.half, waive: "measured by hand on the board"}
  - {id: small, from: a, use: toy.half, gate: ["size <= 1 B"]}
  - {id: raises, from: a, use: crashy.raises}
"""


@pytest.fixture
def runs(tmp_path: Path, toy_plugin: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Report]:
    found = {}
    for name, steps in (("good", GOOD), ("bad", BAD)):
        found[name] = convert(folder(tmp_path / name), steps)
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(cli, ["baseline", "save", "good/out", "--to", "good/b.json"])
    found["beside a baseline"] = convert(
        tmp_path / "good", GOOD, head=HEAD.replace("steps:", "baseline: b.json\nsteps:")
    )
    timed = HEAD.replace("steps:", "benchmark: {seconds: 0.2}\nsteps:")
    found["measured"] = convert(tmp_path / "good", GOOD, head=timed)
    return found


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["report", *arguments])


def unnamed(part: Any, at: str = "") -> Iterator[str]:
    """The keys of a report that its schema has no name for."""
    if isinstance(part, Part):
        if not isinstance(part, EnvironmentPart | DataPart):  # of which another machine or kind of data has others
            yield from (f"{at}{key}" for key in part.model_extra or {})
        for name in type(part).model_fields:
            yield from unnamed(getattr(part, name), f"{at}{name}.")
    elif isinstance(part, list | dict):
        for inner in part.values() if isinstance(part, dict) else part:
            yield from unnamed(inner, at)


def test_real_reports_meet_the_schema_and_it_names_every_key(runs: dict[str, Report]) -> None:
    assert (runs["good"].exit_code, runs["bad"].exit_code) == (0, 3)
    assert {s["status"] for s in runs["bad"].steps} == {"passed", "failed", "blocked", "waived", "error"}
    assert runs["beside a baseline"].data["baseline"]["rows"]
    assert runs["measured"].data["benchmark"]["rows"]
    schema = report_schema()
    for report in runs.values():
        data = json.loads(report.to_json())
        assert faults(data) == []
        assert valid(data, schema, schema)
        assert list(unnamed(Document.model_validate(data))) == []
        for step in data["steps"]:
            broken = json.loads(report.to_json())
            next(s for s in broken["steps"] if s["id"] == step["id"])["status"] = "fine"
            assert faults(broken)
            assert not valid(broken, schema, schema)


def test_the_command_prints_the_schema() -> None:
    shown = CliRunner().invoke(cli, ["schema", "--report"])
    assert json.loads(shown.stdout) == report_schema()


def test_a_run_is_drawn_again(runs: dict[str, Report]) -> None:
    done = invoke("bad/out/")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == "".join(f"wrote bad/out/{name}\n" for name in DRAWN)
    assert "toy: 0 of 4 deliveries hold" in Path("bad/out/report.html").read_text(encoding="utf-8")
    page = invoke("good/out/report.json", "--html", "-", "--markdown", "made/it.md", "-q")
    assert page.stdout == page.output
    assert page.stdout.startswith("<!doctype html>")
    assert Path("made/it.md").read_text(encoding="utf-8").startswith("# toy: ")
    assert not Path("good/out/report.junit.xml").exists()


def test_what_cannot_be_drawn(runs: dict[str, Report]) -> None:
    for line, said in {
        "nowhere": "error: there is no report at nowhere\n  try: name a folder that optkit convert wrote",
        "good": "there is no report at good/report.json",
        "good/out --html good/m.toy/x.html": "good/m.toy/x.html cannot be written",
        "good/out --html - --junit -": "standard output takes one report",
        "good/out --html a --junit ./a": "two reports are to go into one file",
    }.items():
        done = invoke(*line.split())
        assert done.exit_code == 2
        assert said in done.stderr
        assert "try: " in done.stderr


def test_a_damaged_report_says_where(runs: dict[str, Report]) -> None:
    data = json.loads(Path("bad/out/report.json").read_text(encoding="utf-8"))
    del data["steps"][1]["check"]["cases"][0]["held"]
    Path("bad/out/report.json").write_text(json.dumps(data), encoding="utf-8")
    done = invoke("bad/out")
    assert done.exit_code == 2
    assert "bad/out/report.json is damaged: steps.1.check.cases.0.held: Field required" in done.stderr
    assert "try: optkit convert writes it again" in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_folder_that_may_not_be_written(runs: dict[str, Report]) -> None:
    Path("good/out").chmod(0o500)
    done = invoke("good/out")
    Path("good/out").chmod(0o700)
    assert done.exit_code == 4
    assert "cannot be written" in done.stderr
    assert "try: name a file in a folder that may be written" in done.stderr
