"""Weights files of a torch model in every usual form, and pickles that nobody allowed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_zoo as zoo
from safetensors.torch import save_file
from torch import nn
from torch_kit import Bomb, X, Y, describe, descriptor, fails, scripted

from optkit.errors import SourceError
from optkit.formats.torch import model as torch_model
from optkit.formats.torch.files import fit_weights
from optkit.runners.torch_runner import RUNNER


def weighted(tmp_path: Path, state: Any, name: str = "w.pt", **rest: Any) -> Path:
    torch.save(state, tmp_path / name)
    return descriptor(tmp_path, (X,), "Branch", weights=str(tmp_path / name), **rest)


def test_weights_are_loaded_from_every_usual_form(tmp_path: Path) -> None:
    state = zoo.Branch().state_dict()
    feed = {"x": torch.randn(6, 8)}
    wanted = feed["x"] @ state["linear.weight"].T + state["linear.bias"]
    save_file(state, tmp_path / "w.safetensors")
    paths = [descriptor(tmp_path, (X,), "Branch", weights=str(tmp_path / "w.safetensors"))]
    for nested in (state, {"state_dict": state, "epoch": 3}, {"model": state}, {"model_state_dict": state}):
        torch.testing.assert_close(torch_model.load(paths[-1]).call(feed)["output"], wanted)
        paths.append(weighted(tmp_path, nested))
    torch.testing.assert_close(torch_model.load(paths[-1]).call(feed)["output"], wanted)
    error = fails(SourceError, weighted(tmp_path, {"model": state, "state_dict": state}), "model.weights")
    assert "more than one state dict" in error.what
    assert "holds a Tensor" in fails(SourceError, weighted(tmp_path, torch.ones(2)), "model.weights").what


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    state = zoo.Branch().state_dict()
    wrong = {"linear.weight": torch.ones(4, 9), "liner.bias": state["linear.bias"]}
    error = fails(SourceError, weighted(tmp_path, wrong), "model.weights")
    assert "1 missing, 1 unexpected, 1 of another shape" in error.what
    assert "linear.bias" in error.details
    assert "liner.bias" in error.details
    assert "linear.weight: (4, 9) in the file, (4, 8) in the model" in error.details
    many = {**state, **{f"extra.{n}": torch.ones(1) for n in range(14)}}
    assert "and 4 more" in fails(SourceError, weighted(tmp_path, many), "model.weights").details
    describe(weighted(tmp_path, many, strict=False))
    fails(SourceError, weighted(tmp_path, {"other": torch.ones(1)}, strict=False), "model.weights")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_a_prefix_is_told_and_never_stripped(tmp_path: Path, prefix: str) -> None:
    state = {prefix + name: tensor for name, tensor in zoo.Branch().state_dict().items()}
    error = fails(SourceError, weighted(tmp_path, state), "model.weights")
    assert f"strip {prefix!r}" in error.hint


def test_weights_of_a_tied_module_stay_tied() -> None:
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    fit_weights(tied, tied.state_dict(), "w.pt")
    assert tied[0].weight is tied[1].weight


def test_of_tied_weights_one_is_enough() -> None:
    """As safetensors' save_model writes them."""
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    state = {name: tensor + 1 for name, tensor in tied.state_dict().items()}
    wanted = state.pop("0.weight")
    fit_weights(tied, state, "w.safetensors")
    assert torch.equal(tied[0].weight, wanted)
    state.pop("1.weight")
    with pytest.raises(SourceError, match="2 missing"):
        fit_weights(tied, state, "w.safetensors")


def test_a_pickled_object_needs_leave(tmp_path: Path) -> None:
    state = {"state_dict": zoo.Branch().state_dict(), "args": argparse.Namespace(lr=1)}
    error = fails(SourceError, weighted(tmp_path, state), "model.weights")
    assert "argparse.Namespace" in error.what
    assert "trust_pickle: true" in error.hint
    describe(weighted(tmp_path, state, trust_pickle=True))


def test_weights_files_that_are_something_else(tmp_path: Path) -> None:
    for path, said in (
        (scripted(zoo.ScriptedDict(), tmp_path / "s.pt"), "a whole torchscript model"),
        (tmp_path / "broken.safetensors", "cannot be read"),
        (tmp_path / "broken.pt", "not a torch file"),
    ):
        if "broken" in path.name:
            path.write_bytes(b"nothing of the kind")
        error = fails(
            SourceError,
            descriptor(tmp_path, (X,), "Branch", weights=str(path)),
            "model" if "not a torch" in said else "model.weights",
        )
        assert said in error.what
    error = fails(SourceError, descriptor(tmp_path, (X,), "Branch", weights=str(tmp_path / "w.pt")), "model.weights")
    assert "broken.pt" in error.hint


def test_kind_of_runs_no_pickle(tmp_path: Path) -> None:
    module, mark = zoo.Branch(), tmp_path / "mark"
    torch.save(module, tmp_path / "module.pt")
    torch.save(module.state_dict(), tmp_path / "state.pt")
    torch.save(module.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"x": Bomb(mark)}, tmp_path / "bomb.pt")
    torch.save({"x": Bomb(mark)}, tmp_path / "oldbomb.pt", _use_new_zipfile_serialization=False)
    scripted(zoo.ScriptedDict(), tmp_path / "script.pt")
    torch.export.save(torch.export.export(zoo.Pair(), (torch.ones(2, 8),) * 2), tmp_path / "program.pt2")
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    kinds = {
        "module.pt": "pickle",
        "state.pt": "state_dict",
        "old.pt": "state_dict",
        "bomb.pt": "pickle",
        "oldbomb.pt": "pickle",
        "script.pt": "torchscript",
        "program.pt2": "exported",
        "w.safetensors": "state_dict",
    }
    assert {name: torch_model.kind_of(tmp_path / name) for name in kinds} == kinds
    assert RUNNER.inspect(tmp_path / "bomb.pt")["pickled"]
    assert RUNNER.inspect(tmp_path / "state.pt")["dtypes"] == {"float32": 36}
    assert not mark.exists()
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(SourceError, match="not a torch file"):
        torch_model.kind_of(tmp_path / "text.pt")


def test_a_pickled_module_needs_leave(tmp_path: Path) -> None:
    torch.save(zoo.Branch(), tmp_path / "m.pt")
    error = fails(
        SourceError, descriptor(tmp_path, (X,), kind="pickle", path=str(tmp_path / "m.pt")), "model.trust_pickle"
    )
    assert "trust_pickle: true" in error.hint
    describe(descriptor(tmp_path, (X,), kind="pickle", path=str(tmp_path / "m.pt"), trust_pickle=True))
    torch.save(zoo.Branch().state_dict(), tmp_path / "m.pt")
    error = fails(
        SourceError, descriptor(tmp_path, (X,), kind="pickle", path=str(tmp_path / "m.pt"), trust_pickle=True), "model"
    )
    assert "give the factory" in error.hint


def test_a_file_of_another_kind_is_told(tmp_path: Path) -> None:
    path = scripted(zoo.ScriptedDict(), tmp_path / "script.pt")
    error = fails(SourceError, descriptor(tmp_path, (X, Y), kind="exported", path=str(path)), "model")
    assert error.hint.startswith("write model: {torchscript: ")
