"""Task metrics through a whole run: what is measured, judged, reported, kept in the cache and refused."""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_kit import HEAD, cached, convert, folder, statuses, workers_started, wrong

import optkit
from optkit import registry
from optkit.cli.summary import metric_lines, wrongs
from optkit.errors import UserError
from optkit.parity.intervals import wilson
from optkit.report import Report
from optkit.reports.markdown import render

TESTS = Path(__file__).parents[1]
STEPS = """\
  - {id: copy, use: toy.copy}
  - {id: round, from: copy, use: toy.round, data: fit, with: {digits: %d}, check: [%s]}
"""
MINE = """
def hits(predictions, targets):
    return sum(int(p.argmax() == t) for p, t in zip(predictions, targets)) / len(targets)
"""


def forget() -> None:
    importlib.invalidate_caches()
    registry.passes.cache_clear()
    registry.runners.cache_clear()


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The toy folder with 200 labelled samples to judge on, of which the source has 171 right; both plug-ins."""
    folders = [str(TESTS / "away_plugin"), str(TESTS / "toy_plugin")]
    for plugin in folders:
        monkeypatch.syspath_prepend(plugin)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("TOY_DEVICE", str(tmp_path))
    folder(tmp_path)
    weights = np.array(json.loads((tmp_path / "m.toy").read_text())["weights"], np.float32)
    x = np.random.default_rng(5).standard_normal((200, 3)).astype(np.float32)
    labels = (x @ weights.T).argmax(1)
    labels[::7] = (labels[::7] + 1) % 4
    np.savez(tmp_path / "judge.npz", x=x, label=labels)
    (tmp_path / "mine.py").write_text(MINE)
    forget()
    yield tmp_path
    forget()


def head(metric: str, label: str = "label") -> str:
    return HEAD.replace("judge.npz}", f"judge.npz, label: {label}}}").replace("steps:", f"metric: {metric}\nsteps:")


def run(base: Path, metric: str, bounds: str = '"cosine >= 0.9"', digits: int = 1, label: str = "label") -> Report:
    return convert(base, STEPS % (digits, bounds), head=head(metric, label))


def scores(report: Report, step: str = "round") -> dict[str, Any]:
    return next(case["scores"] for case in report.step(step)["check"]["cases"] if case["kind"] == "samples")


def asked(base: Path, step: str) -> dict[str, Any]:
    """What a step's check was last asked for."""
    return json.loads((base / f"out/logs/check-{step}/step.json").read_text())


def test_every_step_is_measured_and_reported(base: Path) -> None:
    report = run(base, "[accuracy, {f1: macro}, {name: mine, python: 'mine.py:hits'}]",
                 '"cosine >= 0.9", "accuracy_drop <= 1%", "f1_lower >= 50%", "mine_drop <= 0.01"')  # fmt: skip
    assert statuses(report) == {"copy": "passed", "round": "passed"}
    copied, found = scores(report, "copy"), scores(report)
    assert (copied["accuracy"]["source"], copied["accuracy"]["value"]) == (171 / 200, 171 / 200)
    assert copied["accuracy"]["interval"] == [*wilson(171, 200)]
    assert copied["mine"]["value"] == pytest.approx(171 / 200)
    assert found["accuracy"]["change"] == pytest.approx(found["mine"]["change"], abs=1e-9)
    assert set(found) == {"accuracy", "f1", "mine"}
    assert "rel_l2" in report.step("round")["check"]["cases"][0]["source"]["outputs"]["y"], "parity remains"
    text = render(report.data)
    assert "| round | accuracy | 85.50% \\[79.95%, 89.71%\\] | " in text
    assert "not distinguishable from zero" in text
    assert "1000 resamples of 200 samples" in text
    assert Report.read(base / "out/report.json").data == report.data
    lines = metric_lines(report.data, io.StringIO()).splitlines()
    assert lines[1].startswith("round     accuracy  85.50% [79.95%, 89.71%], source 85.50%, drop ")


def test_verdicts_by_the_value_and_by_either_end_of_its_interval(base: Path) -> None:
    """One digit costs about a point, which 200 samples cannot tell from nothing."""
    bounds = {"f1_drop <= 0.01%": False, "f1_drop_lower <= 0%": True, "f1_drop_upper <= 1%": False, "f1 >= 80%": True,
              "f1_lower >= 85%": False}  # fmt: skip
    report = run(base, "{f1: macro}", ", ".join(f'"{bound}"' for bound in bounds))
    samples = report.step("round")["check"]["cases"][0]
    said = {v["bound"]: v for v in samples["verdicts"]}
    assert [v["held"] for v in said.values()] == list(bounds.values())
    drop = next(v for v in samples["verdicts"] if v["bound"].startswith("f1_drop <="))
    assert "not distinguishable from zero, needs <= 0.0001" in drop["text"]
    assert report.exit_code == 1
    assert all(v["output"] is None for v in samples["verdicts"])


def test_a_drop_that_is_not_shown_asks_for_more_samples(base: Path) -> None:
    report = run(base, "{f1: macro}", '"f1_drop <= 0.01%"')
    assert statuses(report)["round"] == "failed"
    (text,) = wrongs(report.data, io.StringIO())
    assert "more samples, which tell the change better; or bound what is certain of it: f1_drop_lower <= 0.0001" in text
    strict = run(base, "{f1: macro}", '"f1_drop_upper <= 1%"')
    said = "more samples, which tell the change better; or bound the change itself: f1_drop <= 0.01"
    assert said in "\n".join(wrongs(strict.data, io.StringIO()))


def test_a_real_loss_is_called_one(base: Path) -> None:
    report = run(base, "accuracy", '"accuracy_drop_lower <= 1%"', digits=0)
    assert statuses(report)["round"] == "failed"
    found = scores(report)["accuracy"]
    assert found["change_interval"][0] > 0
    assert "not distinguishable" not in render(report.data).partition("| round | accuracy |")[2].partition("\n")[0]
    assert wrong(report.step("round"))[0].startswith("accuracy_drop_lower ")


def test_only_a_new_metric_is_measured_and_only_on_the_judging_set(base: Path) -> None:
    run(base, "accuracy")
    assert asked(base, "round")["scores_only"] is False
    again = run(base, "accuracy", '"cosine >= 0.91", "accuracy >= 50%"')
    assert cached(again) == {"copy": (True, True), "round": (True, True)}, "a bound runs nothing"
    assert workers_started(base) == 0
    shutil.rmtree(base / "out/logs/record")
    more = run(base, "[accuracy, {f1: macro}]")
    assert cached(more) == {"copy": (True, False), "round": (True, False)}
    step = asked(base, "round")
    assert (step["scores_only"], [c["kind"] for c in step["cases"]]) == (True, ["samples"])
    assert [list(metric)[1] for metric in step["metrics"]] == ["f1"]
    assert list(step["references"]) == ["source"]
    assert not (base / "out/logs/record").exists(), "the source's answers are on its tape"
    assert set(scores(more)) == {"accuracy", "f1"}
    assert (base / "out/round/test-vectors.npz").is_file()
    assert cached(run(base, "{f1: macro}"))["round"] == (True, True)
    assert cached(run(base, "{f1: {average: micro}}"))["round"] == (True, False)
    assert scores(run(base, "{f1: {average: micro}}"))["f1"]["value"] == scores(more)["accuracy"]["value"]


def test_a_changed_callable_or_label_is_never_answered_from_the_cache(base: Path) -> None:
    metric = "{python: {call: 'mine.py:hits', resamples: 100}}"
    first = scores(run(base, metric))["hits"]
    (base / "mine.py").write_text(MINE.replace("/ len", "* 2 / len"))
    second = run(base, metric)
    assert cached(second)["round"] == (True, False)
    assert scores(second)["hits"]["value"] == pytest.approx(2 * first["value"])
    with np.load(base / "judge.npz") as stored:
        x, label = stored["x"], stored["label"]
    np.savez(base / "judge.npz", x=x, label=(label + 1) % 4)
    assert scores(run(base, metric))["hits"]["source"] < first["source"]


def test_labels_that_are_no_class_numbers_feed_a_metric_of_their_own(base: Path) -> None:
    with np.load(base / "judge.npz") as stored:
        x, label = stored["x"], stored["label"]
    np.savez(base / "judge.npz", x=x, label=label, near=np.eye(4)[label])
    (base / "mine.py").write_text(
        "import numpy as np\ndef error(predictions, targets):\n"
        "    return float(np.mean([np.abs(p - t).mean() for p, t in zip(predictions, targets)]))\n"
    )
    metric = "{python: {call: 'mine.py:error', better: lower, resamples: 100, target: near}}"
    report = run(base, metric, '"error_rise <= 0.5"', label="[label, near]")
    assert statuses(report) == {"copy": "passed", "round": "passed"}
    assert scores(report)["error"]["better"] == "lower"
    assert "rise" in render(report.data)
    (base / "alone.npz").write_bytes((base / "judge.npz").read_bytes())
    alone = head(metric.replace(", target: near", "")).replace(
        "judge.npz, label: label", "judge.npz, label: near, ignore: [label]"
    )
    assert statuses(convert(base, STEPS % (1, '"error_rise <= 0.5"'), head=alone))["round"] == "passed"


@pytest.mark.parametrize(
    ("metric", "labels", "what"),
    [
        ("accuracy", np.full(200, 4), "metric accuracy: sample 0 has the label 4, but output 'y' has 4 classes"),
        ("accuracy", np.zeros((200, 3), int), "metric accuracy: output 'y' has shape (4, 4), which is not the labels'"),
        ("accuracy", np.full(200, 0.5), "metric accuracy: labels are float64, not class numbers"),
        ("{perplexity: x}", np.zeros(200, int), "metric perplexity: output 'y' has float32 of shape (4, 4), not"),
        ("{python: 'mine.py:hit'}", np.zeros(200, int), "metric hit: mine.py has no 'hit'"),
        ("{accuracy: {output: z}}", np.zeros(200, int), "metric accuracy: there is no output 'z'"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_ends_the_run_by_name(base: Path, metric: str, labels: Any, what: str) -> None:
    with np.load(base / "judge.npz") as stored:
        np.savez(base / "judge.npz", x=stored["x"], label=labels)
    with pytest.raises(UserError) as caught:
        run(base, metric)
    assert caught.value.what.startswith(what)
    assert caught.value.hint
    assert caught.value.where is not None
    assert caught.value.where.line == 10


def test_an_accuracy_that_no_recipe_declares_has_an_interval_too(base: Path) -> None:
    undeclared = HEAD.replace("judge.npz}", "judge.npz, label: label}")
    report = convert(base, STEPS % (1, '"cosine >= 0.9", "accuracy_drop <= 2%"'), head=undeclared)
    case = report.step("round")["check"]["cases"][0]
    assert case["source"]["outputs"]["y"]["accuracy"]["reference_interval"] == [*wilson(171, 200)]
    assert "85.50% \\[79.95%, 89.71%\\]" in render(report.data)
    assert metric_lines(report.data, io.StringIO()).splitlines()[1].split()[:2] == ["round", "accuracy"]


DEFERRED = """\
  - {id: round, use: toy.round, data: fit, check: ["cosine >= 0.9", "accuracy_drop <= 5%%"%s]}
  - {id: gone, from: round, to: away, on_target: true}
"""


def test_a_deferred_delivery_is_measured_on_its_target(base: Path) -> None:
    convert(base, DEFERRED % "", head=head("[accuracy, {f1: macro}]"))
    (base / "device").touch()
    found = optkit.verify(base / "out/gone")
    assert found["held"], found
    samples = found["cases"][0]
    assert samples["scores"]["accuracy"]["source"] == 171 / 200
    assert {"accuracy_drop <= 0.05"} < {v["bound"] for v in samples["verdicts"]}


def test_a_metric_that_needs_the_recipes_files_is_not_passed_on_the_target(base: Path) -> None:
    convert(
        base, DEFERRED % ', "hits_drop <= 5%%"'.replace("%%", "%"), head=head("[accuracy, {python: 'mine.py:hits'}]")
    )
    (base / "device").touch()
    found = optkit.verify(base / "out/gone")
    assert not found["held"]
    verdict = next(v for v in found["cases"][0]["verdicts"] if v["bound"].startswith("hits_drop"))
    assert "it needs mine.py:hits, which is not part of the delivery" in verdict["text"]


def test_a_delivery_with_bounds_on_metrics_verifies(base: Path) -> None:
    run(base, "{f1: macro}", '"f1_drop <= 5%", "cosine >= 0.9"')
    found = optkit.verify(base / "out/round")
    assert found["held"]
    assert all("f1" not in (v["bound"] or "") for case in found["cases"] for v in case["verdicts"])


def test_the_python_api_takes_a_metric(base: Path) -> None:
    with np.load(base / "judge.npz") as stored:
        arrays = dict(stored)
    report = optkit.convert(base / "m.toy", to="toybin", data=arrays, metric=["accuracy", {"top_k": 2}],
                            dims={"batch": (1, 4, 8)}, out=base / "out", cache=base / "cache")  # fmt: skip
    assert set(scores(report, "toybin")) == {"accuracy", "top2"}
    with pytest.raises(UserError, match="metric has no place beside a recipe"):
        optkit.convert(base / "recipe.yaml", metric="accuracy")
