"""A pruning as the reports tell it: what is gone, what was measured, and what could not be pruned."""

from __future__ import annotations

from typing import Any

from optkit.reports.pruning import pruned
from optkit.reports.training import trained


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


def test_zeros_are_told() -> None:
    found = pruned({"notes": {"zeros": {"up.weight": [50, 100], "down.weight": [5, 100]}, "zero_share": 0.275,
                              "left": [{"layer": "table.weight", "why": "it is an embedding's table"}],
                              "macs": {"before": 5, "after": 5}}})  # fmt: skip
    assert found is not None
    said, rows, left = found
    assert said == "27.5% of 200 weights are zero, in 2 layers."
    assert rows[0] == ["up.weight", "50 of 100 weights", ""]
    assert left == [["table.weight", "it is an embedding's table"]]


def test_a_training_is_told() -> None:
    notes: dict[str, Any] = {
        "held_out_loss": {"before": 1.5, "after": 0.25}, "samples": {"learned_from": 90, "held_out": 10}, "steps": 30,
        "epochs": {"best": {"epoch": 9}}, "stopped": "after 3 epochs in which it did not fall, 40 steps were planned",
        "held_out_metrics": {"accuracy": {"before": 0.5, "after": 0.9, "source": 1.0}, "wer": {"problem": "no text"}},
    }  # fmt: skip
    assert trained({"notes": notes}) == (
        "30 steps on 90 samples; on 10 others the loss went from 1.5 to 0.25, its lowest, after epoch 9; accuracy from "
        "0.5 to 0.9, where the source model has 1; wer could not be measured on these: no text; stopped after 3 epochs "
        "in which it did not fall, 40 steps were planned."
    )
    assert trained({"notes": {"losses": []}}) is None
