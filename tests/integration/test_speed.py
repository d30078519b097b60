"""Races of a step with the one it comes from, and what `must:` makes of them. Toy models sleep as long as they say."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_kit import HEAD, convert, folder, model, statuses

from optkit.cli.summary import slower_notes
from optkit.errors import RecipeError
from optkit.events import Event, StepFinished, StepStarted
from optkit.planning import make_plan
from optkit.recipe import load_recipe
from optkit.report import Report
from optkit.reports.markdown import render
from optkit.reports.rows import broken
from optkit.running.racing import heats

TIMED = HEAD.replace("speed: false\n", "")
STEP = (
    '  - {{id: r, use: toy.round, data: fit, check: ["cosine >= 0.99"], must: [{must}], '
    "with: {{milliseconds: {ms}}}}}\n"
)


@pytest.fixture
def base(tmp_path: Path, toy_plugin: Path) -> Path:
    base = folder(tmp_path / "base")
    model(base, milliseconds=4)
    return base


def raced(base: Path, ms: float, must: str = "", **kwargs: object) -> Report:
    return convert(base, STEP.format(ms=ms, must=must), head=TIMED, **kwargs)  # type: ignore[arg-type]


def test_a_faster_step_says_by_how_much(base: Path) -> None:
    told: list[Event] = []
    report = raced(base, 1, "faster", listen=told.append)
    step = report.step("r")
    assert (report.exit_code, step["status"]) == (0, "passed")
    assert 2 < step["speed"]["ratio"]["value"] < 4.5
    assert step["speed"]["verdict"] == "faster"
    assert step["speed"]["sizes"] == {"batch": 4}
    assert 1 <= step["speed"]["latency_ms"]["p50"] <= step["speed"]["latency_ms"]["p99"]
    assert [m["held"] for m in step["must"]] == [True]
    assert "x source (" in render(report.data)
    assert ("source", "race") in {(e.step, e.phase) for e in told if isinstance(e, StepStarted)}
    again: list[Event] = []
    assert raced(base, 1, "faster", listen=again.append).step("r")["speed"] == step["speed"], "it was cached"
    assert not any(e.phase == "race" for e in again if isinstance(e, StepStarted))


def test_a_slower_step_is_told_and_fails_where_it_must_be_faster(base: Path) -> None:
    report = raced(base, 12)
    assert (report.exit_code, report.step("r")["speed"]["verdict"]) == (0, "slower")
    assert ["r is slower than source" in note for note in slower_notes(report.data)] == [True]
    told: list[Event] = []
    report = raced(base, 12, "faster", listen=told.append)
    assert (report.exit_code, statuses(report)) == (1, {"r": "failed"})
    assert broken(report.step("r"))[0].startswith("must be faster: slower: 0.3")
    assert not (base / "out/r").exists(), "what failed is not delivered"
    assert [e.status for e in told if isinstance(e, StepFinished)][-1] == "failed"


def test_an_equally_fast_step_is_not_faster(base: Path) -> None:
    report = raced(base, 4, "faster")
    assert (report.exit_code, report.step("r")["speed"]["verdict"]) == (1, "same")
    assert "no faster" in broken(report.step("r"))[0]


def test_smaller_compares_bytes(base: Path) -> None:
    report = raced(base, 1, "smaller")
    step = report.step("r")
    assert (report.exit_code, step["must"][0]["held"]) == (1, False), "the toy writes one more key"
    assert broken(step)[0].startswith("must be smaller: ")


def test_what_is_raced_by_itself(base: Path) -> None:
    steps = STEP.format(ms=1, must="") + "  - {id: bin, from: r, to: toybin}\n  - {id: c, use: toy.copy}\n"
    (base / "recipe.yaml").write_text(TIMED + steps + "deliver: [r, bin, c]\n")
    plan = make_plan(load_recipe(base / "recipe.yaml"))
    assert {parent: [s.id for s in found] for parent, found in heats(plan).items()} == {"source": ["r"]}
    (base / "recipe.yaml").write_text(TIMED + steps + "deliver: [bin]\n")
    assert not heats(make_plan(load_recipe(base / "recipe.yaml")))
    (base / "recipe.yaml").write_text(TIMED + steps + "deliver: [r]\nspeed: false\n")
    assert not heats(make_plan(load_recipe(base / "recipe.yaml")))
    must = steps.replace("use: toy.copy", "use: toy.copy, must: [faster]")
    (base / "recipe.yaml").write_text(TIMED + must + "speed: false\n")
    assert list(heats(make_plan(load_recipe(base / "recipe.yaml")))) == ["source"], "what is asked for is measured"


def test_what_cannot_be_meant(base: Path) -> None:
    path = base / "recipe.yaml"
    for must, said in (("quicker", "quicker"), ("faster, 3", "must")):
        path.write_text(TIMED + STEP.format(ms=1, must=must))
        with pytest.raises(RecipeError, match=said):
            load_recipe(path)
    head = TIMED.replace("file: m.toy", "onnx: m.onnx").replace("name: toy", "speed: often")
    path.write_text(head + "  - {id: q, use: onnx.quantize, with: {for: tensorrt}, data: fit, must: [faster], "
                    'check: ["cosine >= 0.9"]}\n')  # fmt: skip
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert "how fast it is cannot be seen here" in str(error.value)
    assert "speed: got 'often'" in str(error.value)


def test_a_race_that_breaks_leaves_what_was_proven(base: Path) -> None:
    model(base, milliseconds=4, breaks_in_a_race=True)
    report = raced(base, 1)
    assert (report.exit_code, report.step("r")["speed"]) == (0, None)
    report = raced(base, 1, "faster")
    assert report.exit_code == 1
    assert "its speed could not be measured" in broken(report.step("r"))[0]
