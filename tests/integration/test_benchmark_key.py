"""`benchmark:` in a recipe: deliveries beside the source once they are made. Toy models sleep as long as they say."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from toy_kit import HEAD, convert, folder, model

from optkit.cli.summary import benchmark_lines
from optkit.errors import RecipeError, UserError
from optkit.events import Event, StepStarted
from optkit.report import Report
from optkit.reports.markdown import render

STEPS = '  - {id: r, use: toy.round, data: fit, check: ["cosine >= 0.9"], with: {milliseconds: 2}}\n'


@pytest.fixture
def base(tmp_path: Path, toy_plugin: Path) -> Path:
    base = folder(tmp_path / "base")
    model(base, milliseconds=6)
    return base


def measured(base: Path, spec: str, steps: str = STEPS, **kwargs: object) -> Report:
    head = HEAD.replace("steps:\n", f"benchmark: {spec}\nsteps:\n")
    return convert(base, steps, head=head, **kwargs)  # type: ignore[arg-type]


def test_deliveries_beside_the_source(base: Path) -> None:
    report = measured(base, "{batch: [1, 8], threads: [1], seconds: 0.2}")
    found = report.data["benchmark"]
    assert (report.exit_code, found["against"], found["notes"], found["error"]) == (0, "source", [], None)
    assert [(r["artifact"], r["batch"], r["threads"]) for r in found["rows"]] == [
        ("source", 1, 1), ("r", 1, 1), ("source", 8, 1), ("r", 8, 1)
    ]  # fmt: skip
    assert [r["verdict"] for r in found["rows"]] == [None, "faster", None, "faster"]
    text = render(report.data)
    assert "## Benchmark\n" in text
    assert "| Speed over source |" in text
    assert len(benchmark_lines(report.data, io.StringIO()).splitlines()) == 5
    told: list[Event] = []
    again = measured(base, "{batch: [1, 8], threads: [1], seconds: 0.2}", listen=told.append)
    assert again.data["benchmark"] == found, "figures are kept"
    assert not [e for e in told if isinstance(e, StepStarted)]


def test_against_a_delivery_and_without_those_that_failed(base: Path) -> None:
    steps = STEPS + '  - {id: bad, use: toy.round, data: fit, check: ["cosine >= 0.99999999"], with: {digits: 0}}\n'
    report = measured(base, "{against: r, seconds: 0.2}", steps)
    found = report.data["benchmark"]
    assert [(r["artifact"], r["verdict"]) for r in found["rows"]] == [("r", None), ("source", "slower")]
    assert found["notes"] == ["bad: not measured, it did not hold or runs elsewhere"]
    assert report.exit_code == 1


def test_a_race_that_breaks_is_an_error_of_the_run(base: Path) -> None:
    model(base, milliseconds=1, breaks_in_a_race=True)
    report = measured(base, "{seconds: 0.2}")
    error = report.data["benchmark"]["error"]
    assert (report.exit_code, error["code"]) == (3, "OPK-301")
    assert "source stopped while its speed was measured" in error["what"]
    assert "**Not measured:** source stopped" in render(report.data)
    assert "not measured: source stopped" in benchmark_lines(report.data, io.StringIO())
    assert report.step("r")["status"] == "passed"
    assert report.path("r").is_dir()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("{batches: [1]}", "did you mean 'batch'?"),
        ("{batch: [0]}", "0 is no size"),
        ("{batch: [2, 2]}", "names a size twice"),
        ("{batch: [9]}", "benchmark.batch: 9 is in the range of no dim"),
        ("{against: x}", "benchmark.against: 'x' is not delivered"),
        ("{settings: {onnx: {execution_mode: parallel}}}", "nothing that is measured is 'onnx'"),
        ("{settings: {toy: {fast: true}}}", "the runner of toy has no settings"),
        ("{seconds: 0}", "seconds"),
    ],
)
def test_planning_refuses_what_cannot_be_measured(base: Path, spec: str, said: str) -> None:
    with pytest.raises(RecipeError) as told:
        measured(base, spec)
    assert said in str(told.value)
    assert "recipe.yaml:" in str(told.value)


def test_more_threads_than_cores_and_another_batch_than_the_models_are_told_at_once(base: Path) -> None:
    with pytest.raises(UserError, match=r"benchmark\.threads: 4096, and this process may use"):
        measured(base, "{threads: [4096]}")
    put, got = ({"name": n, "dtype": "float32", "shape": [1, s]} for n, s in (("x", 3), ("y", 4)))
    model(base, input=put, output=got)
    head = HEAD.replace("dims: {batch: {min: 1, opt: 4, max: 8}}\n", "")
    with pytest.raises(UserError, match=r"benchmark\.batch: 4, and the model is fixed at 1") as told:
        convert(base, STEPS, head=head.replace("steps:\n", "benchmark: {batch: [4]}\nsteps:\n"))
    assert str(told.value.where).endswith("recipe.yaml:9:13")
