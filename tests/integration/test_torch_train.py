"""torch.train: a user's training function as a step, and every way in which one goes wrong."""

from __future__ import annotations

from pathlib import Path

import distill_kit as kit
import pytest
import torch
from distill_kit import TRAIN_ZOO, Turn

from optkit.artifact import Artifact
from optkit.errors import StepError
from optkit.formats.torch import model as torch_model
from optkit.formats.torch_training.data import TrainingData
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
    ("halved", r"first\.weight was torch\.float32 and is torch\.float16", r"module\.float\(\)"),
    ("short", r"short cannot be called as a training function", "def short(module, data, *, source"),
    ("loses", r"raised FileNotFoundError: .*'/nowhere/data\.csv', at .*train_zoo\.py:\d+ in loses", "by hand"),
    ("not_finite", r"first\.weight is not finite", "smaller learning rate"),
    ("tricky", r"rebuilt from its code and the new weights, the module gives another 'scores'", "weights and buffers"),
    ("trian", r"no callable 'trian'", "did you mean 'train'"),
])  # fmt: skip
def test_what_cannot_be(teacher: Artifact, student: Artifact, tmp_path: Path, call: str, what: str, hint: str) -> None:
    with pytest.raises(StepError, match=what) as caught:
        turn(teacher, student, tmp_path, call).run()
    assert caught.value.subject == "with.call"
    assert hint.replace("\\", "") in caught.value.hint


# ------------------------------------------------------------------------------------------------ several processes


def test_two_processes_train_one_module(teacher: Artifact, student: Artifact, tmp_path: Path) -> None:
    made = turn(teacher, student, tmp_path, "accelerated", processes=2, kwargs={"epochs": 3})
    notes = made.run()
    assert notes["processes"] == 2
    assert notes["tensors_changed"] == [11, 11]
    told = [text for text, _ in made.told if text.startswith("epoch")]
    assert len(told) == 3  # by the first process alone
    assert all(text.endswith("2 processes") for text in told)
    losses = [float(text.split("loss ")[1].partition(",")[0]) for text in told]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("call", "what", "told"), [
    ("train", r"process 2 of 2 returned other parameters than the first", ""),
    ("second_raises", r"process 2 of 2: .*second_raises raised ValueError: no luck in the second, at .*train_zoo",
     "the second is about to give up"),
    ("second_dies", r"process 2 of 2 of .*second_dies was killed by signal 9", "the second is about to die"),
])  # fmt: skip
def test_a_process_that_goes_wrong_is_named(
    teacher: Artifact, student: Artifact, tmp_path: Path, call: str, what: str, told: str
) -> None:
    with pytest.raises(StepError, match=what) as caught:
        turn(teacher, student, tmp_path, call, processes=2).run()
    assert caught.value.hint
    assert told in (caught.value.details or "")


def test_processes_share_the_batches_and_not_what_is_held_out(student: Artifact, tmp_path: Path) -> None:
    whole = turn(student, student, tmp_path, "train").context
    assert whole.data is not None
    parts = [
        TrainingData(whole.data, tmp_path / "data", whole.inputs, held_out=0.1, seed=0, device="cpu", share=(n, of))
        for n, of in ((0, 1), (0, 2), (1, 2))
    ]
    sets = [[n for batch in part.order(32, 7, 0) for n in batch.tolist()] for part in parts]
    assert sorted(sets[1] + sets[2]) == sorted(sets[0]) == sorted(parts[0].train.tolist())
    assert [part.held_out.tolist() for part in parts[1:]] == [parts[0].held_out.tolist()] * 2
    odd = [len(part.order(80, 7, 0)) for part in parts]
    assert odd == [3, 2, 2]  # nobody waits for a batch that another does not have
