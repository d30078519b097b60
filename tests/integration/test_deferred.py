"""Checks that this machine cannot make: what is reported and delivered here, and the verdict where it can be given."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import optkit
from optkit import registry
from optkit.cache import Cache
from optkit.cli import cli
from optkit.errors import NotHereError, UnavailableError, from_json
from optkit.events import Event, StepFinished
from optkit.execute import execute
from optkit.planning import make_plan
from optkit.recipe import load_recipe
from optkit.report import Report
from optkit.reports.markdown import render

TESTS = Path(__file__).parents[1]
RECIPE = """\
version: 1
name: toy
model: {file: m.toy}
dims: {batch: {min: 1, opt: 4, max: 8}}
data:
  fit: {npz: fit.npz}
  judge: {npz: judge.npz, label: label}
check_on: judge
steps:
"""


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a toy model and data, both plug-ins, and a machine without the device."""
    folders = [str(TESTS / "away_plugin"), str(TESTS / "toy_plugin")]
    for folder in folders:
        monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("TOY_DEVICE", str(tmp_path))
    rng = np.random.default_rng(0)
    put, got = ({"name": n, "dtype": "float32", "shape": ["batch", size]} for n, size in (("x", 3), ("y", 4)))
    weights = rng.standard_normal((4, 3)).round(4)
    (tmp_path / "m.toy").write_text(json.dumps({"weights": weights.tolist(), "input": put, "output": got}))
    x = rng.standard_normal((22, 3)).astype(np.float32)
    np.savez(tmp_path / "fit.npz", x=x[:12])
    np.savez(tmp_path / "judge.npz", x=x[12:], label=(x[12:] @ weights.T).argmax(1))
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    importlib.invalidate_caches()
    registry.passes.cache_clear()
    registry.runners.cache_clear()


def convert(base: Path, steps: str, listen: Any = lambda event: None) -> Report:
    (base / "recipe.yaml").write_text(RECIPE + steps)
    plan = make_plan(load_recipe(base / "recipe.yaml"))
    return execute(plan, out=base / "out", cache=Cache(base / "cache"), jobs=2, listen=listen)


ROUNDED = """\
  - {id: round, use: toy.round, data: fit, check: ["cosine >= 0.999", "accuracy_drop <= 5%%"]}
  - {id: gone, from: round, to: away%s}
"""


def test_a_deferred_check_is_never_passed(base: Path) -> None:
    told: list[Event] = []
    report = convert(base, ROUNDED % "", listen=told.append)
    step = report.step("gone")
    assert (step["status"], step["check"]["held"], step["check"]["cases"]) == ("deferred", False, [])
    assert (report.exit_code, report.ok) == (1, False)
    assert step["error"]["what"] == "made for a machine with the device; this one has none"
    assert step["deferred"]["beside"] == {"step": "round", "status": "passed", "provider": "numpy"}
    last = [e for e in told if isinstance(e, StepFinished)][-1]
    assert (last.step, last.status, last.text) == ("gone", "deferred", step["error"]["what"])
    text = render(report.data)
    assert "this machine cannot run it (made for a machine with the device; this one has none)" in text
    assert "round, passed (run by numpy)" in text


def test_the_recipe_may_say_that_it_is_meant(base: Path) -> None:
    report = convert(base, ROUNDED % ", on_target: true")
    assert report.step("gone")["status"] == "deferred"
    assert report.exit_code == 0
    assert Report.read(base / "out/report.json").data == report.data
    again = convert(base, ROUNDED % ", on_target: true")
    assert again.step("gone")["cached"] == {"run": True, "check": False}  # the device may be there by now
    (base / "device").touch()
    there = convert(base, ROUNDED % ", on_target: true")
    assert there.step("gone")["status"] == "passed"
    assert not there.step("gone")["deferred"]


def test_a_deferred_delivery_gets_its_verdict_on_the_target(base: Path) -> None:
    convert(base, ROUNDED % "")
    folder = base / "out/gone"
    record = json.loads((folder / "optkit.json").read_text())
    assert record["status"] == "deferred"
    assert record["deferred"]["reason"] == "made for a machine with the device; this one has none"
    assert sorted(p.name for p in folder.iterdir()) == ["model.away", "optkit.json", "test-vectors.npz"]
    with np.load(folder / "test-vectors.npz") as vectors:
        weights = np.array(json.loads((base / "m.toy").read_text())["weights"], np.float32)
        np.testing.assert_allclose(vectors["0/0/source/y"], vectors["0/0/input/x"] @ weights.T, rtol=1e-5, atol=1e-6)
        assert sum(len(vectors[f"0/{n}/labels"]) for n in range(3)) == 10

    with pytest.raises(NotHereError, match="this one has none"):
        optkit.verify(folder)
    said = CliRunner().invoke(cli, ["verify", str(folder)])
    assert said.exit_code == 4
    assert "not here" in said.stdout

    (base / "device").touch()
    verdict = optkit.verify(folder)
    assert verdict["held"], verdict
    said = CliRunner().invoke(cli, ["verify", str(folder)])
    assert said.exit_code == 0
    assert "its check, made here: 6 cases hold, 10 samples" in said.stdout
    names = [case["name"] for case in verdict["cases"]]
    assert names == ["samples", "batch=1", "batch=4", "batch=8", "batch=5", "zeros"]
    bounds = {v["bound"] for v in verdict["cases"][0]["verdicts"]}
    assert bounds == {"cosine >= 0.999", "accuracy_drop <= 0.05"}
    assert verdict["cases"][0]["samples"] == 10


def test_a_wrong_artifact_fails_on_the_target(base: Path) -> None:
    convert(base, "  - {id: gone, use: toy.to_away, with: {off: 0.1}}\n")
    (base / "device").touch()
    verdict = optkit.verify(base / "out/gone")
    assert not verdict["held"]
    failed = {case["name"] for case in verdict["cases"] if not case["held"]}
    assert {"samples", "batch=1", "batch=8"} <= failed


def test_the_verdict_there_is_the_one_that_a_run_there_gives(base: Path) -> None:
    convert(base, ROUNDED % "")
    (base / "device").touch()
    late = optkit.verify(base / "out/gone")["cases"]
    early = convert(base, ROUNDED % "").step("gone")["check"]["cases"]
    assert [(c["name"], c["samples"], c["verdicts"]) for c in late] == [
        (c["name"], c["samples"], c["verdicts"]) for c in early
    ]


def test_steps_after_it_wait_unless_it_is_meant(base: Path) -> None:
    steps = "  - {id: gone, to: away%s}\n  - {id: more, from: gone, use: away.again%s}\n"
    report = convert(base, steps % ("", ", on_target: true"))
    assert [s["status"] for s in report.steps] == ["deferred", "blocked"]
    assert report.step("more")["blocked_by"] == "gone"
    report = convert(base, steps % (", on_target: true", ", on_target: true"))
    assert [s["status"] for s in report.steps] == ["deferred", "deferred"]
    assert report.step("more")["deferred"]["beside"] is None
    assert report.exit_code == 0


def test_a_missing_package_is_no_reason_to_defer(base: Path) -> None:
    (base / "uninstalled").touch()
    report = convert(base, "  - {id: gone, to: away, on_target: true}\n")
    assert report.step("gone")["status"] == "error"
    assert report.exit_code == 4
    assert not (base / "out/gone").exists()


def test_the_summary_says_why_and_what_to_do(base: Path) -> None:
    (base / "recipe.yaml").write_text(RECIPE + ROUNDED % "")
    said = CliRunner().invoke(
        cli, ["convert", str(base / "recipe.yaml"), "--out", str(base / "o"), "--cache", str(base / "c")]
    )
    assert said.exit_code == 1
    assert "gone deferred, this machine cannot run its check" in said.stderr
    assert "made for a machine with the device; this one has none" in said.stderr
    assert "round, passed (run by numpy)" in said.stderr
    assert "on_target: true" in said.stderr


def test_the_api_raises_with_the_reason(base: Path) -> None:
    (base / "recipe.yaml").write_text(RECIPE + ROUNDED % "")
    with pytest.raises(optkit.CheckError, match="gone: deferred, made for a machine with the device"):
        optkit.convert(base / "recipe.yaml", out=base / "o", cache=base / "c")


def test_comparing_and_opening_it_is_no_verdict_either(base: Path) -> None:
    report = convert(base, "  - {id: same, use: toy.copy}\n  - {id: gone, to: away}\n")
    for made in (
        lambda: optkit.compare(base / "out/same", base / "out/gone"),
        lambda: optkit.compare(base / "out/gone", base / "out/same"),
        lambda: optkit.open_artifact(base / "out/gone"),
    ):
        with pytest.raises(NotHereError, match="this one has none"):
            made()
    said = CliRunner().invoke(cli, ["replay", report.step("gone")["replay"], "--out", str(base / "again")])
    assert said.exit_code == 4
    assert "this one has none" in said.stderr


def test_the_error_survives_its_way_between_processes() -> None:
    error = from_json(NotHereError("elsewhere", hint="go there").to_json())
    assert type(error) is NotHereError
    assert isinstance(error, UnavailableError)
    assert (error.what, error.hint, error.exit_code) == ("elsewhere", "go there", 4)
