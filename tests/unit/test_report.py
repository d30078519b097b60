"""The report's document, and the exit code a run deserves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optkit.errors import UserError
from optkit.report import SCHEMA, Report, exit_code_of, write_atomically


def step(status: str, error: str = "", **more: Any) -> dict[str, Any]:
    return {"id": status, "status": status, "error": {"class": error, "what": "x"} if error else None, **more}


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ([], 0),
        ([step("passed")], 0),
        ([step("passed"), step("waived")], 0),
        ([step("passed"), step("failed"), step("blocked")], 1),
        ([step("blocked")], 1),
        ([step("deferred")], 1),
        ([step("deferred", on_target=True)], 0),
        ([step("deferred", on_target=True), step("failed")], 1),
        ([step("error", "StepError"), step("blocked")], 3),
        ([step("failed"), step("error", "StepCrashed")], 3),
        ([step("error", "StepTimeout"), step("failed")], 3),
        ([step("error", "NobodyKnows")], 3),
        ([step("error")], 3),
        ([step("error", "DataError")], 2),
        ([step("error", "SourceError"), step("failed")], 2),
        ([step("error", "UnavailableError")], 4),
        ([step("error", "StepError"), step("error", "UnavailableError"), step("error", "DataError")], 4),
    ],
)
def test_the_exit_code_is_that_of_the_worst_step(steps: list[dict[str, Any]], code: int) -> None:
    assert exit_code_of(steps) == code
    assert exit_code_of(steps[::-1]) == code


REPORT = Report({
    "schema": SCHEMA,
    "exit_code": 1,
    "steps": [step("passed"), step("failed")],
    "deliver": [{"step": "passed", "path": "out/passed"}, {"step": "failed", "path": None}],
})  # fmt: skip


def test_what_a_program_asks_of_a_report(tmp_path: Path) -> None:
    assert (REPORT.ok, REPORT.exit_code) == (False, 1)
    assert REPORT.step("failed")["status"] == "failed"
    assert REPORT.path("passed") == Path("out/passed")
    for ask in (lambda: REPORT.path("failed"), lambda: REPORT.path("nothing"), lambda: REPORT.step("nothing")):
        with pytest.raises(KeyError):
            ask()
    REPORT.write(tmp_path / "new/report.json")
    assert json.loads((tmp_path / "new/report.json").read_text(encoding="utf-8")) == REPORT.data


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", "null", '{"schema": 99}'])
def test_a_file_that_is_no_report(text: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="report") as caught:
        Report.read(path)
    assert caught.value.hint


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, said in (("nothing", "there is no report at"), ("binary", "cannot be read"), (".", "cannot be read")):
        with pytest.raises(UserError, match=said):
            Report.read(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 2}, r"has report schema 2, of a newer optkit \(0.9\); this one reads 1"),
        ({"schema": 0}, "of an older optkit"),
        ({"schema": True}, "states no schema"),
        ({}, r"is damaged: name: Field required \(and \d+ more\)"),
    ],
)
def test_a_report_that_this_optkit_cannot_read(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps({"schema": 1, "optkit": "0.9"} | change), encoding="utf-8")
    with pytest.raises(UserError, match=said) as caught:
        Report.read(tmp_path / "r.json")
    assert caught.value.hint


def test_a_name_that_is_no_text_is_still_json(tmp_path: Path) -> None:
    report = Report({"schema": SCHEMA, "path": "caf\udce9", "text": "café"})
    report.write(tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8")) == report.data


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with pytest.raises(TypeError):
        write_atomically(path, None)  # type: ignore[arg-type]
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_report_holds_finite_numbers_only() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Report({"schema": SCHEMA, "seconds": float("nan")}).to_json()
