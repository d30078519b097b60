"""A pruning as the reports tell it: what is gone, what was measured, and what could not be pruned."""

from __future__ import annotations

from typing import Any

from optkit.reports.pruning import pruned


def step(**notes: Any) -> dict[str, Any]:
    whole = {
        "layers": [{"layer": "stem", "with": ["skip"], "channels": [32, 16]},
                   {"layer": "deep", "with": [], "channels": [64, 64]}],
        "left": [{"layer": "head", "why": "it is an output of the model"}],
        "macs": {"before": 1000, "after": 400}, "parameters": {"before": 200, "after": 100}, **notes,
    }  # fmt: skip
    return {"id": "small", "options": {"runtime": "onnx"}, "notes": whole}


def test_a_pruning_is_told() -> None:
    found = pruned(step())
    assert found is not None
    said, rows, left = found
    assert said == (
        "60.0% of the multiply-accumulates are gone (1,000 to 400); 50.0% of the parameters are gone (200 to 100)."
    )
    assert rows == [["stem", "32 to 16", "skip"], ["deep", "64, all kept", ""]]
    assert left == [["head", "it is an output of the model"]]


def test_a_measured_latency_and_recoveries_are_told() -> None:
    met = {"macs_gone": 0.6, "latency": 0.58, "between": [0.56, 0.6], "speedup": {"rounds": 40}}
    found = pruned(step(
        latency={**met, "tried": [met, met, met]},
        recovered=[{"after_round": 1, "held_out_loss": {"before": 1.0, "after": 0.25}}],
    ))  # fmt: skip
    assert found is not None
    assert "the latency on onnx is 58.0% (56.0% to 60.0%) of the unpruned model's, raced in 40 rounds" in found[0]
    assert "after 2 other candidates" in found[0]
    assert "after round 1 the held-out loss was 1, and after recovery 0.25" in found[0]


def test_other_steps_are_not() -> None:
    assert pruned({"id": "int8", "notes": {"layers": []}}) is None
    assert pruned({"id": "onnx"}) is None
    assert pruned({"id": "sparse", "notes": {"zeros": {}, "macs": {"before": 1, "after": 1}}}) is None
