"""torch.train: a user's training function as a step, and every way in which one goes wrong."""

from __future__ import annotations

from pathlib import Path

import distill_kit as kit
import pytest
import torch
from distill_kit import TRAIN_ZOO, Turn

from optkit.artifact import Artifact
from optkit.errors import StepError
from optkit.formats import torch_model
from optkit.passes.torch_train import PASS


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return kit.source(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return kit.source(tmp_path_factory.mktemp("student"), "student")


def turn(teacher: Artifact, student: Artifact, folder: Path, call: str, **more: object) -> Turn:
    return Turn(PASS, teacher, folder, {"call": f"{TRAIN_ZOO}:{call}", **more}, parent=student)


def test_a_function_trains_and_sees_all_that_it_is_given(teacher: Artifact, student: Artifact, tmp_path: Path) -> None:
    made = turn(teacher, student, tmp_path, "train", kwargs={"epochs": 3})
    notes = made.run()
    assert notes["samples"] == {"learned_from": 180, "held_out": 20}
    assert notes["tensors_changed"] == [11, 11]
    assert ("epoch 2: loss", 1.0) in [(text[:13], fraction) for text, fraction in made.told]
    assert (made.context.scratch / "kept" / "last.pt").is_file()
    old, new = (torch_model.load(path).source.module for path in (student.path, made.out / "torch.json"))
    assert not torch.equal(old.state_dict()["head.weight"], new.state_dict()["head.weight"])


def test_equal_runs_give_equal_bytes(teacher: Artifact, student: Artifact, tmp_path: Path) -> None:
    one, two = (turn(teacher, student, tmp_path / name, "train") for name in ("one", "two"))
    one.run()
    two.run()
    assert one.weights == two.weights


@pytest.mark.parametrize(("call", "what", "hint"), [
    ("nothing", r"nothing returned None, not an nn\.Module", "return the module"),
    ("idle", r"idle changed nothing: all 11 tensors", "return it"),
    ("wrapped", r"another structure.*first\.weight is gone", r"return its \.module"),
    ("other", r"another structure.*head\.bias is gone", "torch.prune"),
    ("raises", r"raised ValueError: no luck today, at .*train_zoo\.py:\d+ in raises", "by hand"),
    ("not_finite", r"first\.weight is not finite", "smaller learning rate"),
    ("tricky", r"rebuilt from its code and the new weights, the module gives another 'scores'", "weights and buffers"),
    ("trian", r"no callable 'trian'", "did you mean 'train'"),
])  # fmt: skip
def test_what_cannot_be(teacher: Artifact, student: Artifact, tmp_path: Path, call: str, what: str, hint: str) -> None:
    with pytest.raises(StepError, match=what) as caught:
        turn(teacher, student, tmp_path, call).run()
    assert caught.value.subject == "with.call"
    assert hint.replace("\\", "") in caught.value.hint
