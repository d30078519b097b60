"""A whole run over the toy plug-in: what is judged, what is run again, what is delivered, what is left alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_kit import GRAPH, HEAD, LEAVES, cached, convert, folder, model, recipe, statuses, workers_started, wrong

import optkit
from optkit.artifact import Artifact, digest_file
from optkit.caching import keys
from optkit.errors import DataError, SourceError, UnavailableError
from optkit.events import Event, RunFinished, RunStarted, StepFinished, StepStarted
from optkit.planning import make_plan
from optkit.recipe import load_recipe
from optkit.report import Report
from optkit.reports import markdown
from optkit.reports.rows import broken


@pytest.fixture
def base(tmp_path: Path, toy_plugin: Path) -> Path:
    return folder(tmp_path / "base")


def test_a_graph_that_holds(base: Path) -> None:
    told: list[Event] = []
    report = convert(base, GRAPH, listen=told.append)
    assert statuses(report) == dict.fromkeys(["a", "bin", "half", "round", "pack"], "passed")
    assert (report.exit_code, report.ok) == (0, True)
    assert report.step("round")["notes"]["samples"] == 12
    assert [(d["step"], d["path"]) for d in report.data["deliver"]] == [(s, str(base / "out" / s)) for s in LEAVES]
    assert [c["name"] for c in report.step("half")["check"]["cases"]] == [
        "samples", "batch=1", "batch=4", "batch=8", "batch=5", "zeros"]  # fmt: skip
    assert all(c["verdicts"] for s in report.steps for c in s["check"]["cases"] if c["kind"] != "edge")
    assert report.step("half")["check"]["precision"] == "float16"
    assert report.data["source"]["noise"]["samples"]["y"] < 1e-6
    assert report.data["data"]["judge"]["samples"] == 10
    assert told[0] == RunStarted("toy", ("a", "bin", "half", "round", "pack"))
    assert isinstance(told[-1], RunFinished)
    finished = [e for e in told if isinstance(e, StepFinished)]
    assert [e.status for e in finished] == ["passed"] * 5
    assert {(e.step, e.phase) for e in told if isinstance(e, StepStarted)} >= {("a", "run"), ("a", "check")}
    assert Report.read(base / "out/report.json").data == report.data


def test_a_second_run_starts_no_worker(base: Path) -> None:
    first = convert(base, GRAPH)
    assert workers_started(base) > 0
    digests = {s: digest_file(base / "out" / s / "test-vectors.npz") for s in LEAVES}
    second = convert(base, GRAPH)
    assert workers_started(base) == 0
    assert set(cached(second).values()) == {(True, True)}
    assert second.exit_code == 0
    assert digests == {s: digest_file(base / "out" / s / "test-vectors.npz") for s in LEAVES}
    for key in ("check", "artifact", "notes"):
        assert [s[key] for s in first.steps] == [s[key] for s in second.steps]


def test_a_bound_is_changed_without_running_a_model(base: Path) -> None:
    assert convert(base, GRAPH).ok
    failed = convert(base, GRAPH.replace("0.999", "0.99999999999"))
    assert workers_started(base) == 0
    assert statuses(failed)["round"] == "failed"
    assert failed.exit_code == 1
    assert any("cosine" in text and "needs >= 0.99999999999" in text for text in wrong(failed.step("round")))
    assert convert(base, GRAPH, sets=["steps.round.check=[rel_l2 <= 0.5]"]).ok
    assert workers_started(base) == 0


def test_a_lossy_step_that_fails_blocks_what_comes_after_it_alone(base: Path) -> None:
    steps = GRAPH.replace("data: fit,", "data: fit, with: {digits: 0},") + "  - {id: after, from: round, to: toypack}\n"
    report = convert(base, steps)
    assert statuses(report) == {"a": "passed", "bin": "passed", "half": "passed", "round": "failed", "pack": "passed",
                                "after.toybin": "blocked", "after": "blocked"}  # fmt: skip
    assert report.exit_code == 1
    assert report.step("after")["blocked_by"] == "round"
    assert report.step("after")["artifact"] is None
    assert {d["step"]: d["path"] is not None for d in report.data["deliver"]} == {
        "half": True, "pack": True, "after": False}  # fmt: skip
    assert not (base / "out/after").exists()


def marks(path: Path) -> list[str]:
    """What the toy.copy steps that ran wrote, one line each."""
    return sorted(path.read_text(encoding="utf-8").split()) if path.exists() else []


def chain(mark: Path, **notes: str) -> str:
    parents = {"one": "source", "two": "one", "three": "two", "aside": "source"}
    return "".join(
        f"  - {{id: {step}, from: {parent}, use: toy.copy, with: {{note: '{notes.get(step, step)}', mark: {mark}}}}}\n"
        for step, parent in parents.items()
    )


def test_an_option_changed_runs_its_step_again(base: Path) -> None:
    mark = base / "marks"
    assert convert(base, chain(mark)).ok
    assert marks(mark) == ["aside", "one", "three", "two"]
    mark.unlink()
    report = convert(base, chain(mark, two="other"))
    assert marks(mark) == ["other"], "the output's bytes are the same, so what comes after it is not run again"
    assert cached(report) == {"one": (True, True), "two": (False, True), "three": (True, True), "aside": (True, True)}


def test_other_output_bytes_run_the_descendants_again(base: Path) -> None:
    steps = GRAPH + "  - {id: end, from: round, use: toy.copy}\n"
    assert convert(base, steps).ok
    report = convert(base, steps, sets=["steps.round.with.digits=2"])
    ran = [step for step, (run, _) in cached(report).items() if not run]
    assert ran == ["round", "end"]


def test_another_source_runs_everything_again(base: Path) -> None:
    assert convert(base, GRAPH).ok
    model(base, weights=np.random.default_rng(9).standard_normal((4, 3)).tolist())
    report = convert(base, GRAPH)
    assert set(cached(report).values()) == {(False, False)}


def test_other_judging_data_runs_checks_again_and_no_pass(base: Path) -> None:
    assert convert(base, GRAPH).ok
    x = np.random.default_rng(5).standard_normal((6, 3)).astype(np.float32)
    np.savez(base / "judge.npz", x=x)
    report = convert(base, GRAPH)
    assert set(cached(report).values()) == {(True, False)}
    assert report.data["data"]["judge"]["samples"] == 6


def test_only_some_steps(base: Path) -> None:
    report = convert(base, GRAPH, only=["pack"])
    assert list(statuses(report)) == ["a", "bin", "pack"]
    assert [d["step"] for d in report.data["deliver"]] == ["pack"]
    assert report.data["recipe"]["only"] == ["pack"]


def test_one_worker_does_what_several_do(base: Path, tmp_path: Path) -> None:
    several = convert(base, GRAPH, jobs=4)
    one = convert(folder(tmp_path / "other"), GRAPH, jobs=1)
    assert [s["artifact"]["digest"] for s in several.steps] == [s["artifact"]["digest"] for s in one.steps]
    assert workers_started(tmp_path / "other") == 1


# --- wrong models


@pytest.mark.parametrize(
    ("step", "words"),
    [("nan_output", "finite"), ("sign_flip", "rel_l2 2")],
)
def test_a_wrong_model_fails_its_check(step: str, words: str, base: Path) -> None:
    steps = f"  - {{id: bad, use: crashy.{step}}}\n  - {{id: next, from: bad, use: toy.copy}}\n"
    report = convert(base, steps)
    assert statuses(report) == {"bad": "failed", "next": "blocked"}
    assert report.exit_code == 1
    assert any(words in text for text in wrong(report.step("bad"))), wrong(report.step("bad"))


@pytest.mark.parametrize("bounds", ['check: ["cosine >= 0.9", "rel_l2 <= 0.5"]', "waive: trained again on the device"])
def test_a_conversion_cannot_hide_behind_a_lossy_steps_bounds(bounds: str, base: Path) -> None:
    steps = f"""\
  - {{id: small, use: crashy.shrinks, {bounds}}}
  - {{id: good, from: small, use: toy.copy}}
  - {{id: bad, from: good, use: crashy.drifts}}
"""
    report = convert(base, steps)
    assert (report.step("good")["status"], report.step("bad")["status"], report.exit_code) == ("passed", "failed", 1)
    (told,) = broken(report.step("bad"))
    assert "rel_l2 0.01 at sample" in told
    assert "against good" in told
    assert "a conversion answers as what it is made from" in markdown.render(report.data)


def test_a_waived_check_is_never_called_passed(base: Path) -> None:
    steps = "  - {id: bad, use: crashy.sign_flip, waive: the sign is what we want}\n"
    report = convert(base, steps + "  - {id: next, from: bad, use: toy.copy}\n")
    assert statuses(report) == {"bad": "waived", "next": "failed"}
    assert report.step("bad")["check"]["waived"] == "the sign is what we want"
    assert report.step("bad")["check"]["held"] is False
    assert report.exit_code == 1
    report = convert(base, steps)
    assert (statuses(report), report.exit_code) == ({"bad": "waived"}, 0)
    record = json.loads((base / "out/bad/optkit.json").read_text(encoding="utf-8"))
    assert (record["status"], record["vectors"]) == ("waived", None)
    told = optkit.verify(base / "out/bad")
    assert not told["held"]
    assert "the sign is what we want" in told["problems"][0]


def test_a_step_that_says_what_is_wrong_has_its_place(base: Path) -> None:
    report = convert(base, "  - id: a\n    use: toy.copy\n    with:\n      note: x\n      fail: true\n")
    error = report.step("a")["error"]
    assert error["what"] == "the toy was asked to fail"
    assert error["where"].endswith("recipe.yaml:15:7")
    assert report.exit_code == 3


# --- whole-run errors


def test_samples_that_fit_and_judge(base: Path) -> None:
    x = np.load(base / "judge.npz")["x"]
    np.savez(base / "fit.npz", x=np.concatenate([np.load(base / "fit.npz")["x"][:3], x[4:6]]))
    with pytest.raises(DataError) as caught:
        convert(base, GRAPH)
    assert "2 samples of 'fit' are also in 'judge'" in caught.value.what
    assert "(round)" in caught.value.what
    assert "number 3, number 4 there" in caught.value.what
    assert str(caught.value.where).endswith("recipe.yaml:6:3")
    assert not (base / "out/report.json").exists()


def test_data_that_does_not_fit_the_model(base: Path) -> None:
    np.savez(base / "judge.npz", x=np.zeros((4, 5), np.float32))
    with pytest.raises(DataError) as caught:
        convert(base, GRAPH)
    assert caught.value.hint
    assert str(caught.value.where).endswith("recipe.yaml:7:3")


@pytest.mark.parametrize(
    ("head", "what", "line"),
    [
        (HEAD.replace("dims:", "inputs: {x: {shape: [batch, 5]}}\ndims:"), "axis 1: the model is fixed at 3", 4),
        (HEAD.replace("dims:", "inputs: {z: {shape: [batch, 3]}}\ndims:"), "the model has no input 'z'", 4),
        (HEAD.replace("dims:", "outputs: [z]\ndims:"), "the model's outputs are y, the recipe says z", 4),
        (HEAD.replace("max: 8}", "max: 8}, seq: {max: 4}"), "the model has no dynamic dim of this name", 4),
    ],
)
def test_a_source_that_is_not_as_the_recipe_says(head: str, what: str, line: int, base: Path) -> None:
    with pytest.raises(SourceError) as caught:
        convert(base, GRAPH, head=head)
    assert what in caught.value.what
    assert caught.value.hint
    assert caught.value.where is not None
    assert f"recipe.yaml:{line}" in str(caught.value.where)


def test_a_damaged_source(base: Path) -> None:
    (base / "m.toy").write_text("{", encoding="utf-8")
    with pytest.raises(SourceError, match="is no toy model"):
        convert(base, GRAPH)


def test_a_tool_that_is_not_installed(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import optkit_toy

    monkeypatch.setattr(optkit_toy.COPY.__class__, "tools", ("nosuchtool",), raising=False)
    object.__setattr__(optkit_toy.COPY, "tools", ("nosuchtool",))
    try:
        with pytest.raises(UnavailableError, match="nosuchtool") as caught:
            convert(base, GRAPH)
        assert "pip install nosuchtool" in caught.value.hint
    finally:
        object.__setattr__(optkit_toy.COPY, "tools", ("numpy",))


# --- deliveries


def test_a_damaged_cache_is_made_good(base: Path) -> None:
    assert convert(base, GRAPH).ok
    broken = 0
    for path in (base / "cache/entries").rglob("model.toy*"):
        os.truncate(path, 10)
        broken += 1
    assert broken >= 5
    report = convert(base, GRAPH)
    assert report.ok
    assert set(cached(report).values()) == {(False, True)}


# --- models without a batch axis, and other shapes of signatures


def static(base: Path, put: list[Any], got: list[Any], samples: tuple[int, ...]) -> None:
    def tensor(name: str, shape: list[Any]) -> dict[str, Any]:
        return {"name": name, "dtype": "float32", "shape": shape}

    model(base, input=tensor("x", put), output=tensor("y", got))
    rng = np.random.default_rng(3)
    for name in ("fit", "judge"):
        np.savez(base / f"{name}.npz", x=rng.standard_normal(samples).astype(np.float32))


STATIC = HEAD.replace("dims: {batch: {min: 1, opt: 4, max: 8}}\n", "")
LAST_ROW_WRONG = "  - {id: a, use: crashy.last_row}\n"


@pytest.mark.parametrize(
    ("put", "got", "samples"),
    [
        ([5, 3], [5, 4], (10, 5, 3)),  # no batch axis: a sample is the whole input
        ([5, 3], [5, 4], (12, 3)),  # a batch axis of five: the last feed is filled up
    ],
)
def test_models_of_fixed_size(put: list[Any], got: list[Any], samples: tuple[int, ...], base: Path) -> None:
    static(base, put, got, samples)
    report = convert(base, "  - {id: a, use: toy.copy}\n  - {id: half, use: toy.half}\n", head=STATIC)
    assert statuses(report) == {"a": "passed", "half": "passed"}
    (case, zeros) = report.step("a")["check"]["cases"]
    assert case["source"]["samples"] == samples[0]
    assert zeros["kind"] == "edge"
    assert optkit.verify(base / "out/half")["held"]


def test_the_whole_of_an_output_without_a_batch_axis_is_compared(base: Path) -> None:
    """Axis 0 is no sample axis there: a model that is wrong in its last row alone must not hold."""
    static(base, [5, 3], [5, 4], (10, 5, 3))
    report = convert(base, LAST_ROW_WRONG, head=STATIC)
    assert statuses(report) == {"a": "failed"}


PULL = """\
  - {id: r, use: toy.round, data: fit, with: {digits: 1}, check: ["cosine >= 0.9"]}
  - {id: p, from: r, use: toy.pull, with: {turns: 4, die_at: DIE}, check: ["cosine >= 0.9"]}
"""


def test_a_killed_step_goes_on_from_its_checkpoint(base: Path) -> None:
    report = convert(base, PULL.replace("DIE", "2"))
    assert report.step("p")["status"] == "error"
    assert "exit code 9" in report.step("p")["error"]["what"]
    report = convert(base, PULL.replace("DIE", "2"))
    assert (report.step("p")["status"], report.step("p")["notes"]) == ("passed", {"resumed_at": 2})
    straight = convert(base, PULL.replace("DIE", "null"))
    assert straight.step("p")["notes"] == {"resumed_at": 0}, "other options are another step"
    assert straight.step("p")["artifact"]["digest"] == report.step("p")["artifact"]["digest"]
    assert not [p for p in (base / "cache/partial").iterdir() if any(p.iterdir())], "a finished step leaves none"


def test_a_step_that_learns_from_the_source_depends_on_it(base: Path) -> None:
    plan = make_plan(load_recipe(recipe(base, PULL.replace("DIE", "null"))))
    one, other, parent = (Artifact("toy", base / "m.toy", digest) for digest in ("one", "other", "parent"))
    for step_id, same in (("p", False), ("r", True)):
        made = [keys.step_key(plan, plan.step(step_id), parent, None, source) for source in (one, other)]
        assert (made[0] == made[1]) is same
