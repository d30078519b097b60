"""Baselines over whole runs and on the command line. Toy models sleep as long as they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from toy_kit import HEAD, convert, folder, model

from optkit.cli import cli
from optkit.errors import RecipeError
from optkit.report import Report

STEPS = '  - {id: r, use: toy.round, data: fit, check: ["cosine >= 0.9"], with: {digits: 2}}\n'


@pytest.fixture
def base(tmp_path: Path, toy_plugin: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return folder(tmp_path / "base")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["baseline", *arguments])


def against(base: Path, extra: str = "", **kwargs: object) -> Report:
    head = HEAD.replace("steps:\n", f"baseline: {{file: b.json{extra}}}\nsteps:\n")
    return convert(base, STEPS, head=head, **kwargs)  # type: ignore[arg-type]


def test_a_run_is_held_against_the_baseline_that_an_earlier_one_left(base: Path) -> None:
    with pytest.raises(RecipeError, match="there is no baseline at") as told:
        against(base)
    assert told.value.code == "OPK-250"
    assert convert(base, STEPS).data["baseline"] is None
    saved = invoke("save", "base/out", "--to", "base/b.json")
    assert (saved.exit_code, saved.stderr) == (0, "saved 1 delivered step: base/b.json\n")
    report = against(base)
    found = report.data["baseline"]
    assert (report.exit_code, found["held"], found["changes"]) == (0, True, [])
    assert [(row["figure"], row["status"]) for row in found["rows"]] == [("size", "same"), ("sqnr_db", "same")]

    report = against(base, sets=["steps.r.with.digits=1"])
    found = report.data["baseline"]
    assert (report.exit_code, found["held"], found["changes"]) == (1, False, ["the recipe changed"])
    (row,) = [row for row in found["rows"] if row["status"] == "worse"]
    assert row["figure"] == "sqnr_db"
    assert row["now"] < row["limit"] == row["before"] - 1.0
    assert report.step("r")["status"] == "passed"
    assert report.path("r").is_dir(), "it holds by itself: whoever accepts it finds it there"
    assert against(base, ", sqnr_db: 60", sets=["steps.r.with.digits=1"]).exit_code == 0

    assert invoke("save", "base/out", "--to", "base/b.json").exit_code == 0, "so a regression is accepted"
    assert against(base, sets=["steps.r.with.digits=1"]).exit_code == 0


def test_the_command_line_tells_what_got_worse_and_why(base: Path) -> None:
    convert(base, STEPS)
    assert invoke("save", "base/out").exit_code == 0
    shown = invoke("show")
    assert shown.exit_code == 0
    assert "sqnr_db" in shown.stdout
    assert json.loads(invoke("show", "--json").stdout)["kind"] == "optkit baseline"
    same = invoke("diff", "base/out")
    assert (same.exit_code, same.stderr) == (0, "")
    assert "no worse than baseline.json" in same.stdout
    convert(base, STEPS, sets=["steps.r.with.digits=1"])
    worse = invoke("diff", "base/out/report.json")
    assert worse.exit_code == 1
    assert (
        "baseline does not hold\n  worse than baseline.json: r sqnr_db\n  changed: the recipe changed\n" in worse.stderr
    )
    assert "why: optkit explain OPK-104" in worse.stderr
    assert invoke("diff", "base/out", "--allow", "sqnr_db=60").exit_code == 0
    assert json.loads(invoke("diff", "base/out", "--json").stdout)["held"] is False
    for arguments, code in (
        (["diff", "base/out", "--allow", "sise=2%"], "OPK-201"), (["diff", "base/out", "--allow", "size"], "OPK-201"),
        (["diff", "base/out", "--allow", "size=big"], "OPK-201"),
        (["diff", "base/out", "--allow", "speed=2"], "OPK-201"),
        (["diff", "base/out", "--allow", "latency=10%"], "OPK-255"), (["diff", "base/out", "no.json"], "OPK-250"),
        (["diff", "base/out", "base/out/report.json"], "OPK-252"), (["save", "base"], "OPK-200"),
    ):  # fmt: skip
        wrong = invoke(*arguments)
        assert (wrong.exit_code, code in wrong.stderr, "Traceback" in wrong.stderr) == (2, True, False), arguments


def test_what_cannot_be_compared_fails_by_name(base: Path) -> None:
    convert(base, STEPS)
    invoke("save", "base/out", "--to", "base/b.json")
    np.savez(base / "judge.npz", x=np.random.default_rng(7).standard_normal((9, 3)).astype(np.float32))
    report = against(base)
    assert (report.exit_code, report.data["baseline"]["code"]) == (2, "OPK-254")
    assert "the data it is judged on differ (judge)" in report.data["baseline"]["problem"]
    result = CliRunner().invoke(cli, ["convert", "base/recipe.yaml", "--out", "base/out", "--cache", "base/cache"])
    assert result.exit_code == 2
    assert "the delivery holds, but cannot be compared with the baseline" in result.stderr
    assert "why: optkit explain OPK-254" in result.stderr


def test_planning_refuses_tolerances_on_what_was_not_measured(base: Path) -> None:
    convert(base, STEPS)
    invoke("save", "base/out", "--to", "base/b.json")
    for name, amount in (("metric", "1%"), ("speed", "5%"), ("latency", "5%")):
        with pytest.raises(RecipeError, match=f"baseline.{name}: b.json holds nothing that it is") as told:
            against(base, f", {name}: {amount}")
        assert told.value.code == "OPK-255"
    with pytest.raises(RecipeError, match="did you mean 'size'"):
        against(base, ", sise: 2%")
    with pytest.raises(RecipeError, match="no share"):
        against(base, ", size: a bit%")
    with pytest.raises(RecipeError, match="has a delivery 'r', which this recipe does not make"):
        convert(base, "  - {id: other, use: toy.copy}\n", head=HEAD.replace("steps:\n", "baseline: b.json\nsteps:\n"))


def test_a_slower_delivery_is_a_regression(base: Path) -> None:
    model(base, milliseconds=8)
    head = HEAD.replace("speed: false\n", "")
    step = STEPS.replace("digits: 2", "milliseconds: 2")
    assert convert(base, step, head=head).exit_code == 0
    invoke("save", "base/out", "--to", "base/b.json")
    head = head.replace("steps:\n", "baseline: {file: b.json, speed: 20%}\nsteps:\n")
    report = convert(base, step, head=head)
    assert report.exit_code == 0, report.data["baseline"]
    report = convert(base, step, head=head, sets=["steps.r.with.milliseconds=4"])
    assert report.exit_code == 1
    assert {r["figure"] for r in report.data["baseline"]["rows"] if r["status"] == "worse"} == {"speed over source"}
