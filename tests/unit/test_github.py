"""What GitHub Actions is told: workflow commands as its runner reads them, and a summary that it takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from report_kit import (
    BAD,
    BASELINE,
    BLOCKED,
    DEFERRED,
    ERROR,
    FAILED,
    GATED,
    GOOD,
    NOT_HERE,
    SKIPPED,
    UNMEASURED,
    WAIVED,
    report,
    spoilt,
)

from optkit.cli import cli
from optkit.errors import Location, Problem, RecipeError, UserError
from optkit.reports import markdown
from optkit.reports.github import annotated, annotation, of_error, summary

HERE = Path.cwd()


def read(line: str) -> tuple[dict[str, str], str]:
    """Properties and message of a workflow command, read as the runner does: split first, unescaped then."""
    found = re.fullmatch(r"::error (.*?)::(.*)", line)
    assert found is not None, line
    pairs = dict(part.split("=", 1) for part in found[1].split(","))
    return {key: unescaped(value, ":,") for key, value in pairs.items()}, unescaped(found[2])


def unescaped(text: str, more: str = "") -> str:
    for char in "\r\n" + more:
        text = text.replace(f"%{ord(char):02X}", char)
    return text.replace("%25", "%")


def told(*steps: dict[str, Any]) -> list[tuple[dict[str, str], str]]:
    return [read(line) for line in annotated(report(*steps), HERE)]


def test_a_failure_stands_at_its_line_of_the_recipe() -> None:
    (found,) = told(FAILED)
    assert found[0] == {"file": "recipe.yaml", "line": "9", "col": "5", "title": "int8 failed"}
    assert found[1].startswith("samples: y: cosine 0.9 at sample 3, needs >= 0.99; also at batch=1\n")
    assert "\nTry: other options" in found[1]
    assert told(ERROR) == [
        ({"file": "recipe.yaml", "line": "12", "col": "5", "title": "ov: error"},
         "no kernel for | and `x`\nTry: another opset")
    ]  # fmt: skip
    assert told(GATED)[0][1].startswith("gate size <= 100 kB: 138.3 kB\nTry: ")


def test_what_fails_the_run_is_told_and_nothing_else() -> None:
    assert told(GOOD, WAIVED, DEFERRED, BLOCKED, SKIPPED) == []
    assert [properties["title"] for properties, _ in told(NOT_HERE)] == ["board is deferred"]


def test_a_baseline_that_does_not_hold_is_told() -> None:
    (line,) = annotated(report(GOOD) | {"baseline": BASELINE}, HERE)
    assert read(line) == (
        {"file": "recipe.yaml", "line": "1", "title": "worse than the baseline"},
        "onnx: size 12 B, was 10 B\ngone: it is not delivered any more\nTry: optkit baseline save",
    )
    assert list(annotated(report(GOOD) | {"baseline": BASELINE | {"held": True}}, HERE)) == []


def test_a_benchmark_that_was_not_measured_is_told() -> None:
    (line,) = annotated(report(GOOD) | {"benchmark": UNMEASURED}, HERE)
    assert read(line) == (
        {"file": "recipe.yaml", "line": "1", "title": "benchmark: OPK-301"},
        "source stopped while its speed was measured\nTry: run it alone",
    )


def test_no_text_ends_a_command_or_starts_another() -> None:
    lines = list(annotated(spoilt(BAD), HERE))
    assert len(lines) == len(told(*BAD["steps"]))
    assert not any("\n" in line or "\r" in line for line in lines)
    nasty = "50 %, a:b,c=d::set-env %0A\r\n::warning::x"
    assert read(annotation(nasty, nasty, "a:b.yaml:3:4", HERE)) == (
        {"file": "a:b.yaml", "line": "3", "col": "4", "title": nasty}, nasty
    )  # fmt: skip


def test_a_file_of_the_checkout_is_named_from_it(tmp_path: Path) -> None:
    line = annotation("t", "m", f"{tmp_path}/recipes/net.yaml:7", tmp_path)
    assert read(line)[0] == {"file": "recipes/net.yaml", "line": "7", "title": "t"}
    assert read(annotation("t", "m", "--set steps.a.x=3", tmp_path))[0] == {"title": "t"}


def test_each_mistake_of_a_recipe_is_told() -> None:
    problems = [Problem("no such pass", Location(HERE / "r.yaml", 3, 5), "did you mean onnx?"), Problem("no steps")]
    assert [read(line) for line in of_error(RecipeError(problems), HERE)] == [
        ({"file": "r.yaml", "line": "3", "col": "5", "title": "OPK-210"}, "no such pass\nTry: did you mean onnx?"),
        ({"title": "OPK-210"}, "no steps"),
    ]
    assert [read(line) for line in of_error(UserError("bad", hint="good"), HERE)] == [
        ({"title": "OPK-200"}, "bad\nTry: good")
    ]


def test_a_summary_is_cut_between_parts_where_it_is_too_long() -> None:
    data = report(GOOD, FAILED, GATED)
    whole = markdown.render(data)
    assert summary(data) == whole
    cut = summary(data, len(whole.encode()) - 10)
    assert len(cut.encode()) <= len(whole.encode()) - 10
    assert cut.startswith(whole[:200])
    assert cut.count("```") % 2 == 0
    assert cut.count("<details>") == cut.count("</details>")
    assert cut.endswith("report.md has it.\n")


@pytest.mark.parametrize("there", [True, False])
def test_convert_speaks_to_github_only_there(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_ACTIONS", "true" if there else "false")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    Path("r.yaml").write_text("version: 1\nname: net\n", encoding="utf-8")
    done = CliRunner().invoke(cli, ["convert", "r.yaml"])
    assert done.exit_code == 2
    assert ("::error file=r.yaml,line=1" in done.stderr) == there
    assert "error: " in done.stderr.replace("::error ", "")
