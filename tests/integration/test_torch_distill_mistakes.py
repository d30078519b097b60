"""torch.distill: what cannot be learned is said by name, and what was learned before is kept."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import distill_kit as kit
import numpy as np
import pytest
import torch
from distill_kit import DATA, QUICK, ZOO, Turn, losses
from pydantic import ValidationError

from optkit.artifact import Artifact
from optkit.errors import DataError, OptkitError, SourceError, StepError
from optkit.formats.torch import model as torch_model
from optkit.formats.torch_training import checkpoint as torch_checkpoint
from optkit.passes.torch_distill import PASS
from optkit.scoring.held import HeldOut
from optkit.spec.metricspec import metric_of
from optkit.testing import ListSamples


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return kit.source(tmp_path_factory.mktemp("teacher"))


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
