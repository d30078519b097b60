"""The shipped recipes: each loads and is planned; the CPU ones run and hold, then come from the cache."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import optkit
from optkit.cache import Cache
from optkit.errors import NotHereError
from optkit.execute import execute
from optkit.planning import make_plan
from optkit.recipe import load_recipe
from optkit.running.making import cached_steps

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_is_planned(path: Path) -> None:
    plan = make_plan(load_recipe(path))
    assert plan.deliver
    assert all(step.check is not None for step in plan.steps)


@pytest.mark.parametrize("name", ["digits", "keras-digits", "minilm", "segmentation", "vit"])
def test_recipe_runs_holds_and_is_proven_again(name: str, tmp_path: Path) -> None:
    plan = make_plan(load_recipe(ROOT / "recipes" / f"{name}.yaml"))
    cache = Cache(tmp_path / "cache")
    report = execute(plan, out=tmp_path / "out", cache=cache, jobs=2)
    statuses = {s["id"]: (s["status"], s["error"]) for s in report.steps}
    away = {s.id for s in plan.steps if s.on_target and statuses[s.id][0] == "deferred"}  # its device is not here
    assert {i: s for i, s in statuses.items() if i not in away} == {
        s.id: ("passed", None) for s in plan.steps if s.id not in away
    }
    assert report.exit_code == 0
    kinds = {c["kind"] for s in report.steps for c in s["check"]["cases"]}
    assert kinds == {"samples", "dims", "edge"}
    for metric in plan.recipe.metrics:
        measured = [
            c["scores"][metric.name] for s in report.steps for c in s["check"]["cases"] if c["kind"] == "samples"
        ]
        assert len(measured) == len(plan.steps) - len(away)
        assert all(m["interval"][0] <= m["value"] <= m["interval"][1] for m in measured)

    assert set(cached_steps(plan, cache).values()) == {True}
    again = execute(plan, out=tmp_path / "out", cache=cache, jobs=2)
    assert all(s["cached"] == {"run": True, "check": s["id"] not in away} for s in again.steps)
    # The report is wall times apart the same: what was proven does not depend on when.
    assert [s["check"] for s in again.steps] == [s["check"] for s in report.steps]

    for step in plan.deliver:
        folder = tmp_path / "out" / step
        if step in away:
            with pytest.raises(NotHereError):
                optkit.verify(folder)
            continue
        verdict = optkit.verify(folder)
        assert verdict["held"], verdict
        assert json.loads((folder / "optkit.json").read_text())["provenance"]["source"]["digest"]
        with optkit.open_artifact(folder) as model, np.load(folder / "test-vectors.npz") as vectors:
            feeds = {t.name: vectors[f"0/input/{t.name}"] for t in model.signature.inputs}
            outputs = model(feeds)
            for spec in model.signature.outputs:
                np.testing.assert_allclose(outputs[spec.name], vectors[f"0/output/{spec.name}"], rtol=1e-3, atol=1e-3)


def test_digits_are_pruned_taught_and_quantised_within_half_a_point(tmp_path: Path) -> None:
    """The whole recipe: 60 % of the multiply-accumulates gone, then int8 for three runtimes."""
    plan = make_plan(load_recipe(ROOT / "recipes" / "digits-compress.yaml"))
    report = execute(plan, out=tmp_path / "out", cache=Cache(tmp_path / "cache"), jobs=2)
    statuses = {s["id"]: s["status"] for s in report.steps}
    assert statuses == {s.id: "waived" if s.id == "pruned" else "passed" for s in plan.steps}
    steps = {s["id"]: s for s in report.steps}
    macs = steps["pruned"]["notes"]["macs"]
    assert macs["after"] <= 0.4 * macs["before"]
    weights = (ROOT / "recipes" / "models" / "digits.safetensors").stat().st_size
    for step in ("onnx-int8", "ov-int8", "lite-int8"):
        assert steps[step]["artifact"]["size_bytes"] < weights / 4
        assert "accuracy_drop <= 0.005" in steps[step]["check"]["bounds"]


def test_digits_learn_to_compute_on_integers(tmp_path: Path) -> None:
    """Scaled down: less is pruned, and little learned; what runs is what was trained all the same."""
    sets = ["steps.pruned.with.remove_macs=20%", "steps.int8.with.epochs=2", "steps.int8.check=[top1_agreement >= 90%]"]
    plan = make_plan(load_recipe(ROOT / "recipes" / "digits-qat.yaml", sets))
    report = execute(plan, out=tmp_path / "out", cache=Cache(tmp_path / "cache"), jobs=2)
    steps = {s["id"]: s for s in report.steps}
    assert {name: (s["status"], s["error"]) for name, s in steps.items()} == {
        s.id: ("waived" if s.id == "pruned" else "passed", None) for s in plan.steps
    }
    for name in ("onnx", "ov"):
        case = next(c for c in steps[name]["check"]["cases"] if c["kind"] == "samples")
        parent = case["parent"]["outputs"]["logits"]
        assert parent["cosine"]["worst"] >= 0.999
        assert parent["top1_agreement"]["value"] >= 0.995
    for name in plan.deliver:
        assert optkit.verify(tmp_path / "out" / name)["held"]


def test_minilm_is_taught_to_half_of_its_layers(tmp_path: Path) -> None:
    """Scaled down: 160 texts, seen once, which teach little; the steps, the metrics and what they measure are whole."""
    weak = 'check=["similarity >= 0.2"]'
    path = ROOT / "recipes" / "minilm-compress.yaml"
    sets = ["data.learn.kwargs.count=160", "steps.small.with.epochs=1", "steps.small.must=[smaller]", "speed=false"]
    sets += [f"steps.{step}.{weak}" for step in ("small", "ov-int8", "onnx-int8")]
    plan = make_plan(load_recipe(path, sets))
    report = execute(plan, out=tmp_path / "out", cache=Cache(tmp_path / "cache"), jobs=2)
    assert {s["id"]: (s["status"], s["error"]) for s in report.steps} == {s.id: ("passed", None) for s in plan.steps}
    small = next(s for s in report.steps if s["id"] == "small")
    assert small["notes"]["held_out_loss"]["after"] < small["notes"]["held_out_loss"]["before"]
    scores = next(c["scores"] for c in small["check"]["cases"] if c["kind"] == "samples")
    assert 0.2 < scores["similarity"]["value"] < scores["similarity"]["source"]
    assert 0 < scores["retrieval"]["value"] < 1
