"""torch.distill: students learn, by every kind of loss, and what was zero stays zero."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import distill_kit as kit
import numpy as np
import pytest
import torch
import torch_kit
from distill_kit import DATA, LABELLED, QUICK, ZOO, Turn, losses

from optkit.artifact import Artifact, Dim
from optkit.errors import StepError
from optkit.formats.torch import model as torch_model
from optkit.formats.torch import structure as torch_structure
from optkit.formats.torch.structure import Stage
from optkit.passes import torch_prune, torch_qat, torch_train
from optkit.passes.torch_distill import PASS
from optkit.testing import ListSamples


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return kit.source(tmp_path_factory.mktemp("teacher"))


# ------------------------------------------------------------------------------------------------ it learns


def test_a_student_learns_and_says_what_it_learned_by(teacher: Artifact, tmp_path: Path) -> None:
    turn = Turn(PASS, teacher, tmp_path, {**QUICK, "epochs": 15})
    notes = turn.run()
    held = notes["held_out_loss"]
    assert held["after"] < held["before"] / 20
    assert notes["losses"] == [{"kind": "mse", "output": "scores"}]
    assert notes["chosen"].startswith("no losses were named")
    assert notes["samples"] == {"learned_from": 180, "held_out": 20}
    assert notes["steps"] == 15 * 6
    assert notes["parameters"] == {"student": 340, "teacher": 1540}
    assert notes["epochs"]["best"]["held_out"]["loss"] == held["after"]
    texts = [text for text, fraction in turn.told if fraction is not None]
    assert any("held out" in text and text.endswith(" left") for text in texts)
    fractions = [fraction for _, fraction in turn.told if fraction is not None]
    assert fractions == sorted(fractions)


def test_equal_seeds_give_equal_bytes_and_others_do_not(teacher: Artifact, tmp_path: Path) -> None:
    made = {name: Turn(PASS, teacher, tmp_path / name, QUICK, seed=seed) for name, seed in
            (("one", 7), ("again", 7), ("other", 8))}  # fmt: skip
    before = torch.get_rng_state()
    for turn in made.values():
        turn.run()
    assert torch.equal(before, torch.get_rng_state())
    assert made["one"].weights == made["again"].weights
    assert made["one"].artifact.digest == made["again"].artifact.digest
    assert made["one"].weights != made["other"].weights


def test_a_pruned_student_keeps_its_structure_in_a_fresh_process(teacher: Artifact, tmp_path: Path) -> None:
    folder = tmp_path / "pruned"
    folder.mkdir()
    model = torch_model.load(teacher.path)
    stay = list(range(0, 32, 3))
    stage = Stage(
        {"first.weight": {0: stay}, "first.bias": {0: stay}, "norm.weight": {0: stay}, "norm.bias": {0: stay},
         "norm.running_mean": {0: stay}, "norm.running_var": {0: stay}, "second.weight": {1: stay}},
        {"first": {"out_features": len(stay)}, "norm": {"num_features": len(stay)},
         "second": {"in_features": len(stay)}},
    )  # fmt: skip
    torch_structure.cut(model.source.module, stage)
    torch_structure.save(model.source.module, torch_model.read_descriptor(teacher.path), "t", [stage], folder)
    parent = Artifact("torch", folder / "torch.json", "p", torch_kit.describe(folder / "torch.json"))
    turn = Turn(PASS, teacher, tmp_path / "turn", {"epochs": 6, "lr": 0.01}, parent=parent)
    notes = turn.run()
    assert notes["held_out_loss"]["after"] < notes["held_out_loss"]["before"] / 3
    code = (
        "import json, sys; from pathlib import Path; from optkit.formats.torch import model as torch_model\n"
        "m = torch_model.load(Path(sys.argv[1]))\n"
        "print(json.dumps({n: list(p.shape) for n, p in m.source.module.named_parameters()}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(turn.out / "torch.json")], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )  # fmt: skip
    assert json.loads(done.stdout)["second.weight"] == [32, len(stay)]


@pytest.mark.parametrize("use", [PASS, torch_qat.PASS, torch_train.PASS, torch_prune.PASS], ids=lambda use: use.name)
def test_a_model_that_keeps_things_in_evaluation_mode_is_judged_by_its_present_weights(
    use: Any, teacher: Artifact, tmp_path: Path
) -> None:
    own = kit.source(tmp_path / "own", "keeps")
    options: dict[str, Any] = {
        PASS.name: {**QUICK, "student": {"torch": f"{ZOO}:keeps"}},
        torch_qat.PASS.name: {"epochs": 4, "lr": 0.01},
        torch_train.PASS.name: {"call": f"{kit.TRAIN_ZOO}:averaged"},
        torch_prune.PASS.name: {"ratio": 0.5, "rounds": 2, "importance": "taylor",
                                "recover": {"epochs": 4, "lr": 0.02, "losses": [{"kind": "mse"}]}},
    }[use.name]  # fmt: skip
    turn = Turn(use, teacher, tmp_path / "turn", options, parent=own)
    turn.run()
    model = torch_model.load(turn.artifact.path)
    gains = model.source.module.gains
    assert not torch.equal(gains, torch.ones_like(gains))
    x = torch.from_numpy(np.stack([sample["x"] for sample in DATA.items[:8]]))
    first = model.call({"x": x})["scores"]
    model.source.module.train()
    model.source.module.eval()
    assert torch.equal(model.call({"x": x})["scores"], first)


@pytest.mark.parametrize("more", [
    {"optimizer": "sgd", "schedule": "constant", "warmup": 0, "clip_norm": None},
    {"precision": "bfloat16"},
    {"steps": 40, "epochs": None},
    {"freeze": ["norm.*"]},
])  # fmt: skip
def test_ways_to_train(teacher: Artifact, tmp_path: Path, more: dict[str, Any]) -> None:
    turn = Turn(PASS, teacher, tmp_path, {**QUICK, **more})
    notes = turn.run()
    assert notes["held_out_loss"]["after"] < notes["held_out_loss"]["before"] / 3
    if "steps" in more:
        assert notes["steps"] == 40
    if "freeze" in more:
        first = torch_model.load_described(
            {"kind": "factory", "factory": f"{ZOO}:student", "inputs": [torch_kit.X.to_json()]}
        ).source.module.state_dict()
        state = torch_model.load(turn.out / "torch.json").source.module.state_dict()
        assert torch.equal(state["norm.weight"], first["norm.weight"])
        assert not torch.equal(state["first.weight"], first["first.weight"])


def test_it_stops_when_nothing_falls_any_more(teacher: Artifact, tmp_path: Path) -> None:
    more = {"epochs": 200, "patience": 2, "schedule": "constant", "lr": 0.05}
    notes = Turn(PASS, teacher, tmp_path, {**QUICK, **more}).run()
    assert notes["steps"] < 200 * 6
    assert notes["stopped"].startswith("after 2 epochs")
    assert notes["epochs"]["best"]["epoch"] == notes["epochs"]["last"]["epoch"] - 2


# ------------------------------------------------------------------------------------------------ losses


@pytest.mark.parametrize("loss", [
    {"kind": "kl", "temperature": 2},
    {"kind": "cosine"},
    {"kind": "mse"},
    {"kind": "hidden", "layers": {"second": "second"}},
    {"kind": "hidden", "layers": {"second": "second", "first": "first"}, "distance": "cosine"},
], ids=lambda loss: f"{loss['kind']}-{loss.get('distance', '')}")  # fmt: skip
def test_a_loss_falls(teacher: Artifact, tmp_path: Path, loss: dict[str, Any]) -> None:
    turn = Turn(PASS, teacher, tmp_path, losses(loss))
    notes = turn.run()
    assert notes["held_out_loss"]["after"] < notes["held_out_loss"]["before"] / 2
    assert "chosen" not in notes
    state = torch_model.load(turn.out / "torch.json").source.module.state_dict()
    assert set(state) == set(torch_model.load(teacher.path).source.module.state_dict())  # no projection is left in it


def test_labels_are_mixed_in(teacher: Artifact, tmp_path: Path) -> None:
    mixed = losses({"kind": "kl", "weight": 0.5}, {"kind": "labels"}, epochs=12)
    turn = Turn(PASS, teacher, tmp_path, mixed, data=LABELLED)
    notes = turn.run()
    assert set(notes["epochs"]["best"]["held_out"]) == {"loss", "kl", "labels"}
    model = torch_model.load(turn.out / "torch.json")
    scores = model.call({"x": torch.from_numpy(np.stack([s["x"] for s in LABELLED.items]))})["scores"]
    assert LABELLED.labels is not None
    assert (scores.argmax(-1) == torch.tensor(LABELLED.labels)).float().mean() > 0.8


@pytest.mark.parametrize("named", [True, False], ids=["dict", "tuple"])
def test_several_outputs(tmp_path: Path, named: bool) -> None:
    teacher = kit.source(tmp_path / "t", "several", outputs=("scores", "embedding", "best"), kwargs={"named": named})
    small = {"torch": f"{ZOO}:several", "kwargs": {"width": 8, "named": not named}}
    if named:  # the student gives a tuple: the recipe's outputs name its parts
        small["kwargs"]["named"] = False
    notes = Turn(PASS, teacher, tmp_path / "run", {**QUICK, "student": small}).run()
    assert notes["losses"] == [{"kind": "mse", "output": "scores"}, {"kind": "cosine", "output": "embedding"}]
    assert notes["held_out_loss"]["after"] < notes["held_out_loss"]["before"] / 2


def test_attention_maps_and_hidden_states_under_a_mask(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    items = []
    for _ in range(60):
        ids, length = rng.integers(0, 20, 9), int(rng.integers(3, 10))
        mask = (np.arange(9) < length).astype(np.int64)
        items.append({"input_ids": ids * mask, "attention_mask": mask})
    teacher = kit.source(tmp_path / "t", "attending", (torch_kit.IDS, torch_kit.MASK))
    wanted = {
        "student": {"torch": f"{ZOO}:attending", "kwargs": {"width": 8, "heads": 2}}, "epochs": 10, "lr": 0.02,
        "mask": "attention_mask", "batch_size": 8,
        "losses": [{"kind": "attention", "layers": {"attention": "attention"}},
                   {"kind": "hidden", "layers": {"mix": "mix"}}, {"kind": "mse"}],
    }  # fmt: skip
    notes = Turn(PASS, teacher, tmp_path / "run", wanted, data=ListSamples(items)).run()
    first, best = notes["epochs"]["first"]["held_out"], notes["epochs"]["best"]["held_out"]
    assert best["hidden"] < first["hidden"]
    assert best["loss"] < notes["held_out_loss"]["before"] / 1.5


def test_channels_of_images_are_projected(tmp_path: Path) -> None:
    from optkit.artifact import TensorSpec

    rng = np.random.default_rng(2)
    items = [{"image": rng.standard_normal((3, 8, 8)).astype(np.float32)} for _ in range(60)]
    teacher = kit.source(tmp_path / "t", "images", (TensorSpec("image", "float32", ("batch", 3, 8, 8)),))
    small = {"student": {"torch": f"{ZOO}:images", "kwargs": {"width": 5}}, "epochs": 8, "lr": 0.02}
    wanted = {**small, "losses": [{"kind": "hidden", "layers": {"conv": "conv"}}, {"kind": "mse"}]}
    notes = Turn(PASS, teacher, tmp_path / "run", wanted, data=ListSamples(items)).run()
    assert notes["held_out_loss"]["after"] < notes["held_out_loss"]["before"] / 2


# ------------------------------------------------------------------------------------------------ exported teachers


def test_an_exported_teacher_is_asked_for_no_more_than_it_was_exported_for(teacher: Artifact, tmp_path: Path) -> None:
    """As the teacher of a live module is: a graph for the dims' range."""
    dims, path = {"batch": Dim(1, 8, 16)}, tmp_path / "teacher.pt2"
    module = torch_model.load(teacher.path).source.module
    axes = ({0: torch.export.Dim("batch", min=1, max=16)},)
    torch.export.save(torch.export.export(module, (torch.zeros(2, 8),), dynamic_shapes=axes), path)
    spec = torch_kit.descriptor(tmp_path, [torch_kit.X], "", ["scores"], kind="exported", path=str(path))
    exported = torch_kit.artifact(spec, dims)

    def turn(folder: str, **options: Any) -> Turn:
        made = Turn(PASS, exported, tmp_path / folder, {**QUICK, "epochs": 2, **options})
        made.context = replace(made.context, dims=dims)
        return made

    assert turn("run").run()["batch_size"] == 16
    with pytest.raises(StepError, match=r"batches of 64 were asked for; .* for 16 at most"):
        turn("large", batch_size=64).run()


# ------------------------------------------------------------------------------------------------ zeros


@pytest.fixture(scope="module")
def sparse(teacher: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The teacher with two of every four weights set to zero."""
    turn = Turn(torch_prune.PASS, teacher, tmp_path_factory.mktemp("sparse"), {"how": "2:4"})
    turn.run()
    return turn.artifact


def zeros_in(folder: Path) -> dict[str, Any]:
    state = torch_structure.read_weights(folder / "weights.safetensors")
    return {name.removesuffix("_quantised"): tensor == 0 for name, tensor in state.items() if tensor.dim() > 1}


@pytest.mark.parametrize("use", [PASS, torch_qat.PASS], ids=lambda use: use.name)
def test_what_was_set_to_zero_stays_zero(use: Any, teacher: Artifact, sparse: Artifact, tmp_path: Path) -> None:
    turn = Turn(use, teacher, tmp_path, {"epochs": 3, "lr": 0.005}, parent=sparse)
    notes = turn.run()
    before, after = zeros_in(sparse.path.parent), zeros_in(turn.out)
    assert sum(int(mask.sum()) for mask in before.values()) > 100
    assert all((after[name] | ~mask).all() for name, mask in before.items())
    if use is PASS:
        assert notes["zeros_kept"] == sum(int(mask.sum()) for mask in before.values())


def test_a_function_of_ones_own_that_loses_zeros_is_refused(
    teacher: Artifact, sparse: Artifact, tmp_path: Path
) -> None:
    turn = Turn(torch_train.PASS, teacher, tmp_path, {"call": f"{kit.TRAIN_ZOO}:train"}, parent=sparse)
    with pytest.raises(StepError, match=r"weight.* has values where torch\.prune had set zeros") as caught:
        turn.run()
    assert "masked_fill_" in caught.value.hint
