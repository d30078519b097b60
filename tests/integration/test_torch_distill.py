"""torch.distill: students learn, a killed run goes on bit for bit, and what cannot be learned is said by name."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import distill_kit as kit
import numpy as np
import pytest
import torch
import torch_kit
from distill_kit import DATA, LABELLED, ZOO, Turn
from pydantic import ValidationError

from optkit.artifact import Artifact, Dim
from optkit.errors import DataError, OptkitError, SourceError, StepError
from optkit.formats.torch import model as torch_model
from optkit.formats.torch import structure as torch_structure
from optkit.formats.torch.structure import Stage
from optkit.formats.torch_training import checkpoint as torch_checkpoint
from optkit.passes import torch_prune, torch_qat, torch_train
from optkit.passes.torch_distill import PASS
from optkit.scoring.held import HeldOut
from optkit.spec.metricspec import metric_of
from optkit.testing import ListSamples

QUICK: dict[str, Any] = {"student": {"torch": f"{ZOO}:student"}, "epochs": 6, "lr": 0.02}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return kit.source(tmp_path_factory.mktemp("teacher"))


def losses(*items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**QUICK, "losses": list(items), **more}


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


# ------------------------------------------------------------------------------------------------ killed


CHILD = """
import sys
from pathlib import Path
import distill_kit as kit
from optkit.spec.metricspec import metric_of
from optkit.passes import torch_prune, torch_qat, torch_train
from optkit.passes.torch_distill import PASS
from optkit.scoring.held import HeldOut
base, name, options = Path(sys.argv[1]), sys.argv[2], eval(sys.argv[3])
teacher = kit.source(base / f"teacher-{name}")
kit.Turn(PASS, teacher, base / name, options, kept=base / "kept").run()
"""


def child(base: Path, name: str, options: dict[str, Any]) -> subprocess.Popen[bytes]:
    paths = os.pathsep.join([str(Path(__file__).parent), *(p for p in sys.path if p)])
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(base), name, repr(options)], env={**os.environ, "PYTHONPATH": paths}
    )


def test_killed_at_any_moment_it_goes_on_to_the_same_bits(teacher: Artifact, tmp_path: Path) -> None:
    options = losses(
        {"kind": "kl"}, {"kind": "hidden", "layers": {"second": "second"}}, epochs=15, checkpoint_seconds=0
    )
    (tmp_path / "kept").mkdir()
    whole = Turn(PASS, teacher, tmp_path / "whole", options)
    notes = whole.run()
    running = child(tmp_path, "killed", options)
    until = time.monotonic() + 120
    while time.monotonic() < until and running.poll() is None:
        state = torch_checkpoint.load(tmp_path / "kept")
        if state is not None and state["state"]["step"] >= 7:  # in the second epoch
            break
        time.sleep(0.01)
    assert running.poll() is None, "it was to be killed while it ran"
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    state = torch_checkpoint.load(tmp_path / "kept")
    assert state is not None
    seen = state["state"]["step"]
    assert 7 <= seen < notes["steps"]
    rest = Turn(PASS, teacher, tmp_path / "rest", options, kept=tmp_path / "kept")
    after = rest.run()
    assert after["resumed_at_step"] == seen
    assert rest.weights == whole.weights
    assert after["held_out_loss"] == notes["held_out_loss"]
    assert after["epochs"] == notes["epochs"]


@pytest.mark.parametrize("stops", [(1, 2, 3), (6, 7), (11, 12, 13, 35, 36)], ids=str)
def test_stopped_again_and_again(teacher: Artifact, tmp_path: Path, stops: tuple[int, ...]) -> None:
    """At the first step, at both sides of an epoch's end, and at the last one."""
    options = {**QUICK, "checkpoint_seconds": 0, "optimizer": "sgd"}
    (tmp_path / "kept").mkdir()
    whole = Turn(PASS, teacher, tmp_path / "whole", options)
    whole.run()
    for stop in stops:
        turn = Turn(PASS, teacher, tmp_path / f"to-{stop}", options, kept=tmp_path / "kept")

        def tell(text: str, fraction: float | None, stop: int = stop) -> None:
            if fraction is not None and round(fraction * 36) >= stop:
                raise KeyboardInterrupt

        turn.context = replace(turn.context, progress=tell)
        with pytest.raises(KeyboardInterrupt):
            turn.run()
    rest = Turn(PASS, teacher, tmp_path / "rest", options, kept=tmp_path / "kept")
    rest.run()
    assert rest.weights == whole.weights


def test_what_is_finished_is_not_trained_again(teacher: Artifact, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    one = Turn(PASS, teacher, tmp_path / "one", QUICK, kept=tmp_path / "kept")
    two = Turn(PASS, teacher, tmp_path / "two", QUICK, kept=tmp_path / "kept")
    assert one.run()["steps"] == two.run()["resumed_at_step"] == 36
    assert one.weights == two.weights


def test_a_damaged_checkpoint_costs_time_alone(teacher: Artifact, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / torch_checkpoint.FILE).write_bytes(b"PK half a file")
    one = Turn(PASS, teacher, tmp_path / "one", QUICK, kept=tmp_path / "kept")
    assert "resumed_at_step" not in one.run()


def test_a_full_disk_is_an_os_error_with_its_place(tmp_path: Path) -> None:
    torch_checkpoint.save({"a": torch.zeros(3)}, tmp_path)
    (tmp_path / f"{torch_checkpoint.FILE}.tmp").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        torch_checkpoint.save({"a": torch.ones(1_000_000)}, tmp_path)
    assert caught.value.filename.startswith(str(tmp_path))
    kept = torch_checkpoint.load(tmp_path)
    assert kept is not None
    assert torch.equal(kept["a"], torch.zeros(3))  # the one before is whole


# ------------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize(("options", "error", "what", "hint"), [
    (losses({"kind": "hidden", "layers": {"secnd": "second"}}), StepError, r"student has no layer 'secnd'",
     "did you mean 'second'"),
    (losses({"kind": "hidden", "layers": {"second": "thrid"}}), StepError, r"teacher has no layer 'thrid'", ""),
    (losses({"kind": "kl", "output": "score"}), StepError, r"no float output 'score'", "did you mean 'scores'"),
    (losses({"kind": "attention", "layers": {"second": "second"}}), StepError, r"gives no attention map", "eager"),
    (losses({"kind": "labels"}), DataError, r"the fit set has no labels", "label: NAME"),
    (losses({"kind": "kl", "axis": 2}), StepError, r"axis 2 of an output of shape", ""),
    (losses(mask="mask"), StepError, r"the model has no input 'mask'", ""),
    (losses(mask="x"), StepError, r"nothing that is compared has the axes of x", ""),
    ({**QUICK, "student": {"torch": f"{ZOO}:five"}}, StepError,
     r"output 'scores' of the student is float32\[30, 5\], of the teacher float32\[30, 4\]", ""),
    ({**QUICK, "student": {"torch": f"{ZOO}:studnt"}}, SourceError, r"no callable 'studnt'", "did you mean 'student'"),
    ({"epochs": 1}, StepError, r"the student is the source model itself", "torch.prune"),
    ({**QUICK, "batch_size": 500}, StepError, r"batches of 500 .* there are 180 samples", "batch_size: 180"),
    ({**QUICK, "freeze": ["nrom.*"]}, StepError, r"no parameter is called 'nrom", ""),
    ({**QUICK, "freeze": ["*"]}, StepError, r"no parameter of the student could learn", ""),
    ({**QUICK, "student": {"torch": f"{ZOO}:diverges"}, "lr": 50, "clip_norm": None, "optimizer": "sgd", "warmup": 0},
     StepError, r"is (nan|inf|not finite).* at step \d+ of 36", "a smaller lr"),
    ({**QUICK, "student": {"torch": f"{ZOO}:teacher"}}, StepError,
     r"nothing was learned: the held-out loss was 0 at first", "more epochs"),
])  # fmt: skip
def test_what_cannot_be(
    teacher: Artifact, tmp_path: Path, options: dict[str, Any], error: type[OptkitError], what: str, hint: str
) -> None:
    with pytest.raises(error, match=what) as caught:
        Turn(PASS, teacher, tmp_path, options).run()
    assert caught.value.hint
    assert hint in caught.value.hint


def test_a_loss_that_leaves_the_floats_keeps_the_last_good_checkpoint(teacher: Artifact, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    options = {**QUICK, "student": {"torch": f"{ZOO}:diverges"}, "lr": 50, "clip_norm": None, "optimizer": "sgd",
               "checkpoint_seconds": 0}  # fmt: skip
    with pytest.raises(StepError, match=r"at step \d+ of 36"):
        Turn(PASS, teacher, tmp_path / "run", options, kept=tmp_path / "kept").run()
    state = torch_checkpoint.load(tmp_path / "kept")
    if state is not None:  # it may diverge in the first step
        assert all(torch.isfinite(tensor).all() for tensor in state["learner"].values())


@pytest.mark.parametrize(("student", "subject", "what"), [
    ({"torch": f"{ZOO}:studnt"}, "with.student.torch", "the student: "),
    ({"torch": f"{ZOO}:student", "kwargs": {"widht": 3}}, "with.student.kwargs.widht", "the student: "),
    ({"torch": f"{ZOO}:untouched"}, "with.student", "the loss depends on no parameter that learns"),
])  # fmt: skip
def test_what_is_wrong_with_the_student_is_not_said_of_the_model(
    teacher: Artifact, tmp_path: Path, student: dict[str, Any], subject: str, what: str
) -> None:
    with pytest.raises(OptkitError) as caught:
        Turn(PASS, teacher, tmp_path, {**QUICK, "student": student}).run()
    assert caught.value.subject == subject
    assert caught.value.what.startswith(what)


def test_what_was_learned_before_that_is_kept_as_weights(teacher: Artifact, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    student = {"torch": f"{ZOO}:student"}
    options = {"epochs": 60, "student": student, "lr": 2, "clip_norm": None, "optimizer": "sgd", "warmup": 0.99}
    with pytest.raises(StepError, match=r"the loss|held-out") as caught:
        Turn(PASS, teacher, tmp_path / "run", options, kept=tmp_path / "kept").run()
    path = tmp_path / "kept" / "best.safetensors"
    assert f"are kept in {path}" in caught.value.hint
    again = {"epochs": 1, "lr": 1e-4, "student": {**student, "weights": str(path)}}
    losses = Turn(PASS, teacher, tmp_path / "again", again).run()["held_out_loss"]
    assert f"with a held-out loss of {losses['before']:.4g}" in caught.value.hint


@pytest.mark.parametrize(("data", "what"), [
    (ListSamples([]), "has no samples"),
    (ListSamples(DATA.items[:1]), "has 1 sample"),
    (ListSamples([DATA.items[0]] * 5), "5 samples, all the same"),
], ids=["none", "one", "equal"])  # fmt: skip
def test_too_little_data(teacher: Artifact, tmp_path: Path, data: ListSamples, what: str) -> None:
    with pytest.raises(DataError, match=what):
        Turn(PASS, teacher, tmp_path, QUICK, data=data).run()


@pytest.mark.parametrize(("label", "what"), [
    (lambda n: "ab" * n, "labels cannot be learned from: <U"),
    (lambda n: [[0.0] * (n + 1), [1.0]], "a label is no array"),
    (lambda n: np.zeros((n, 4)), "labels cannot be learned from: float64"),
    (lambda n: {"boxes": np.zeros((n, 4)), "said": "no"}, "label '(boxes|said)' cannot be learned from"),
], ids=["text", "ragged", "boxes", "several"])  # fmt: skip
def test_labels_that_nobody_learns_from_may_be_of_any_kind(
    teacher: Artifact, tmp_path: Path, label: Any, what: str
) -> None:
    """A metric may read them."""
    data = ListSamples(DATA.items[:40], [label(n) for n in range(40)])
    Turn(PASS, teacher, tmp_path / "none", {**QUICK, "epochs": 2}, data=data).run()
    named = {"label": "boxes"} if what.startswith("label '") else {}
    with pytest.raises(DataError, match=what):
        Turn(PASS, teacher, tmp_path / "some", losses({"kind": "labels", **named}), data=data).run()


def test_metrics_of_the_held_out_samples_are_told_and_change_nothing(teacher: Artifact, tmp_path: Path) -> None:
    feeds = {"x": torch.from_numpy(np.stack([sample["x"] for sample in DATA.items]))}
    said = torch_model.load(teacher.path).call(feeds)["scores"].argmax(-1)
    data = ListSamples(DATA.items, [int(label) for label in said])
    plain = Turn(PASS, teacher, tmp_path / "plain", QUICK, data=data)
    plain.run()
    turn = Turn(PASS, teacher, tmp_path / "scored", QUICK, data=data)
    turn.context = replace(turn.context, score=HeldOut([metric_of({"accuracy": {}})], tmp_path))
    found = turn.run()["held_out_metrics"]["accuracy"]
    assert 0 <= found["before"] < found["after"] <= found["source"] == 1
    assert any(re.search(r"held out [0-9.]+.*, accuracy [0-9.]+%, .* left", text) for text, _ in turn.told)
    assert turn.weights == plain.weights


def test_a_metric_that_the_fit_set_cannot_feed_is_no_mistake(teacher: Artifact, tmp_path: Path) -> None:
    turn = Turn(PASS, teacher, tmp_path, QUICK)
    turn.context = replace(
        turn.context, score=HeldOut([metric_of({"accuracy": {}}), metric_of({"similarity": {}})], tmp_path)
    )
    found = turn.run()["held_out_metrics"]
    assert found["accuracy"] == {"problem": "sample 0 has no label"}
    assert found["similarity"]["before"] < found["similarity"]["after"]
    assert not any("accuracy" in text for text, _ in turn.told)


def test_labels_that_are_no_classes(teacher: Artifact, tmp_path: Path) -> None:
    wrong = ListSamples(DATA.items, [7] * len(DATA.items))
    with pytest.raises(DataError, match="label 7 is none of the 4 classes of 'scores'"):
        Turn(PASS, teacher, tmp_path / "seven", losses({"kind": "labels"}), data=wrong).run()
    wrong = ListSamples(DATA.items, [0.5] * len(DATA.items))
    with pytest.raises(DataError, match="labels are float64"):
        Turn(PASS, teacher, tmp_path / "half", losses({"kind": "labels"}), data=wrong).run()


@pytest.mark.parametrize(("options", "what"), [
    ({"epochs": 1, "steps": 1}, "epochs or steps, not both"),
    ({"losses": [{"kind": "hidden"}]}, "needs layers"),
    ({"losses": [{"kind": "mse", "temperature": 2}]}, "a loss of kind mse takes no temperature"),
    ({"losses": [{"kind": "kl", "wieght": 2}]}, "wieght"),
    ({"held_out": "150%"}, "less than 1"),
])  # fmt: skip
def test_options_that_make_no_sense(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        PASS.options.model_validate(options)


def test_a_student_written_over_is_found_out(teacher: Artifact, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    turn = Turn(PASS, teacher, tmp_path, QUICK)
    turn.run()
    state = load_file(turn.out / "weights.safetensors")
    state["head.bias"] += 0.1
    save_file(state, turn.out / "weights.safetensors")
    assert PASS.confirm is not None
    complaints = PASS.confirm(teacher, turn.artifact, turn.options, turn.context)
    assert any("head.bias is not as it was learned" in text for text in complaints)
    assert any("its held-out loss is" in text for text in complaints)


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
