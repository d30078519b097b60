"""torch.prune: how much goes and which, zeros in place of channels, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import prune_zoo as zoo
import pytest
import torch
from prune_kit import (
    IMAGE,
    answers,
    at_rest,
    feeds_of,
    module_of,
    pruned,
    refused,
    source,
)
from pydantic import ValidationError
from torch_kit import descriptor, scripted

from optkit.artifact import Artifact
from optkit.errors import DataError, StepError
from optkit.formats.torch import model as torch_model
from optkit.formats.torch import structure as torch_structure
from optkit.formats.torch_pruning import sparse as torch_sparse
from optkit.passes.torch_prune import PASS, TorchPrune
from optkit.testing import ListSamples

# ------------------------------------------------------------------------------------------------ targets


@pytest.mark.parametrize("target", [{"remove_macs": "40%"}, {"remove_parameters": 0.4}])
def test_a_target_is_met_and_hardly_passed(target: dict[str, Any], tmp_path: Path) -> None:
    _, notes = pruned(tmp_path, source(tmp_path, "resnet"), **target)
    counted = notes["macs" if "remove_macs" in target else "parameters"]
    assert 0.4 <= 1 - counted["after"] / counted["before"] <= 0.44  # a channel of the widest group is 3.9 % of it


def test_rounds_rank_anew_and_multiples_are_kept(tmp_path: Path) -> None:
    made, notes = pruned(tmp_path, source(tmp_path, "resnet"), remove_macs=0.4, rounds=3, round_to=4)
    assert all(after % 4 == 0 for _, after in (item["channels"] for item in notes["layers"]))
    record = json.loads((made.path.parent / torch_structure.STRUCTURE).read_text())
    assert 2 <= len(record["stages"]) <= 3


def test_every_layer_loses_the_same_share(tmp_path: Path) -> None:
    _, notes = pruned(tmp_path, source(tmp_path, "resnet"), ratio=0.5, scope="layer")
    assert {after / before for before, after in (item["channels"] for item in notes["layers"])} == {0.5}


def test_a_second_pruning_goes_on_from_the_first(tmp_path: Path) -> None:
    first, one = pruned(tmp_path, source(tmp_path, "resnet"), ratio=0.25, scope="layer")
    (tmp_path / "second").mkdir()
    second, two = pruned(tmp_path / "second", first, ratio=0.25, scope="layer")
    assert two["parameters"]["before"] == one["parameters"]["after"] > two["parameters"]["after"]
    assert answers(second, feeds_of(first))["output"].shape == (3, 10)


def test_a_target_out_of_reach_says_how_far_it_got(tmp_path: Path) -> None:
    error = refused(tmp_path, source(tmp_path, "Recurrent"), remove_parameters=0.9)
    assert isinstance(error, StepError)
    assert error.what.startswith("at most 33.8% of the parameters can be removed, not 90.0%: between: gru in gru")


def test_a_layer_is_never_emptied(tmp_path: Path) -> None:
    artifact = source(tmp_path, "vgg")
    error = refused(tmp_path, artifact, ratio=0.95, scope="layer")
    assert error.what == "layers.0.0 would keep 1 of 16 channels, fewer than the 2 that have to stay"
    (tmp_path / "least").mkdir()
    _, notes = pruned(tmp_path / "least", artifact, ratio=0.95, scope="layer", keep_at_least=0)
    assert [item["channels"][1] for item in notes["layers"]] == [1, 2, 2]


def test_less_than_one_channel_is_nothing(tmp_path: Path) -> None:
    error = refused(tmp_path, source(tmp_path, "vgg"), ratio=0.01, scope="layer")
    assert error.what.startswith("nothing was removed: 0.01 of 80 channels in 3 groups is less than one of any")


# ------------------------------------------------------------------------------------------------ importance


def samples(labelled: bool) -> Any:
    """Images in which only the first channel of the stem sees anything; a class each, where labelled."""
    rng = np.random.default_rng(0)
    items = [{"image": rng.standard_normal((3, 32, 32)).astype(np.float32)} for _ in range(24)]
    return ListSamples(items, [n % 10 for n in range(len(items))] if labelled else None)


@pytest.mark.parametrize(
    ("importance", "labelled"), [("taylor", False), ("taylor", True), ("activation", False), ("batch_norm", False)]
)
def test_a_channel_that_contributes_nothing_goes_first(importance: str, labelled: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = zoo.resnet().eval()
    dead = {2, 3, 5, 7, 11}
    norm = net.get_submodule("layers.1.first.1")
    for channel in dead:
        norm.weight.data[channel], norm.bias.data[channel] = 0, 0
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    artifact = source(tmp_path, "resnet", weights=str(tmp_path / "weights.pt"))
    kept = ["layers.0.*", "layers.1.second.0", "layers.2.*", "layers.3.*"]
    made, _ = pruned(
        tmp_path, artifact, {"data": samples(labelled)}, ratio=5 / 16, importance=importance, keep=kept[:1] + kept[2:]
    )
    record = json.loads((made.path.parent / torch_structure.STRUCTURE).read_text())
    stay = torch_structure.Stage.from_json(record["stages"][0]).tensors["layers.1.first.0.weight"][0]
    assert stay == [n for n in range(16) if n not in dead]
    feeds = feeds_of(artifact)
    torch.testing.assert_close(answers(made, feeds), answers(artifact, feeds), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("label", [10, 0.5, [0, 1], {"a": 1, "b": 2}], ids=str)
def test_labels_must_be_classes(label: Any, tmp_path: Path) -> None:
    data = ListSamples([{"image": np.zeros((3, 32, 32), np.float32)}] * 4, [label] * 4)
    error = refused(tmp_path, source(tmp_path, "resnet"), {"data": data}, ratio=0.2, importance="taylor")
    assert isinstance(error, DataError)
    assert error.what.startswith("the labels (")
    assert "are no class numbers for the one output of classes" in error.what


@pytest.mark.parametrize("importance", ["taylor", "activation"])
def test_ranking_on_data_needs_data(importance: str, tmp_path: Path) -> None:
    error = refused(tmp_path, source(tmp_path, "vgg"), ratio=0.2, importance=importance)
    assert (type(error), error.what) == (DataError, f"importance: {importance} needs data to rank on")
    assert PASS.wants_data(TorchPrune(ratio=0.2, importance=importance))  # type: ignore[arg-type]


def test_batch_norm_must_be_there(tmp_path: Path) -> None:
    error = refused(tmp_path, source(tmp_path, "bert"), ratio=0.2, importance="batch_norm")
    assert error.what == "no channel that can be removed goes through a batch norm"


# ------------------------------------------------------------------------------------------------ zeros


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_exactly_so_many_weights_become_zero(scope: str, tmp_path: Path) -> None:
    made, notes = pruned(tmp_path, source(tmp_path, "vgg"), how="unstructured", ratio=0.3, scope=scope)
    found = torch_sparse.matrices(module_of(made), [])
    counts = {m.name: int((m.tensor == 0).sum()) for m in found}
    assert counts == {name: zeros for name, (zeros, _) in notes["zeros"].items()}
    if scope == "layer":
        assert counts == {m.name: round(0.3 * m.tensor.numel()) for m in found}
    assert sum(counts.values()) == pytest.approx(0.3 * sum(m.tensor.numel() for m in found), abs=2)
    largest = max(float(m.tensor.abs().max()) for m in found)
    assert largest == max(float(m.tensor.abs().max()) for m in torch_sparse.matrices(zoo_weights(made), []))


def zoo_weights(made: Artifact) -> Any:
    """The model before, as its descriptor without the pruning builds it."""
    data = {k: v for k, v in json.loads(made.path.read_text()).items() if k not in ("pruned", "made_from")}
    (path := made.path.parent.parent / "torch.json").write_text(json.dumps(data))
    return torch_model.load(path).source.module


@pytest.mark.parametrize("name", ["vgg", "gpt2"])
def test_two_of_every_four_become_zero(name: str, tmp_path: Path) -> None:
    made, notes = pruned(tmp_path, source(tmp_path, name), how="2:4")
    for matrix in torch_sparse.matrices(module_of(made), []):
        if matrix.tensor.shape[matrix.axis] % 4 == 0:
            assert torch_sparse.holds_two_of_four(matrix)
            assert float((matrix.tensor == 0).double().mean()) == 0.5
    assert notes["zero_share"] == 0.5
    if name == "vgg":
        assert notes["left"] == [{"layer": "layers.0.0.weight", "why": "it sums over 3, no multiple of 4"}]


def test_attention_and_recurrence_become_sparse_too(tmp_path: Path) -> None:
    attention, plain, fours = (tmp_path / name for name in "apf")
    for folder in (attention, plain, fours):
        folder.mkdir()
    zeros = pruned(attention, source(tmp_path, "Biased"), how="2:4")[1]["zeros"]
    assert set(zeros) == {"attention.in_proj_weight", "attention.out_proj.weight", "up.weight", "down.weight"}
    recurrent = source(tmp_path, "Recurrent")
    parts = pruned(plain, recurrent, how="unstructured", ratio=0.5)[1]["zeros"]
    assert {"gru.weight_ih_l0", "gru.weight_hh_l0"} < set(parts)
    _, notes = pruned(fours, recurrent, how="2:4", keep=["between"])
    left = {item["layer"]: item["why"] for item in notes["left"]}
    assert left["gru.weight_hh_l0"] == "it is a recurrent layer's"
    assert left["between.weight"] == "it is to be kept"


def test_zeros_that_are_there_are_no_work(tmp_path: Path) -> None:
    made, _ = pruned(tmp_path, source(tmp_path, "vgg"), how="unstructured", ratio=0.3)
    (tmp_path / "again").mkdir()
    assert refused(tmp_path / "again", made, how="unstructured", ratio=0.2).what.startswith("nothing was removed:")


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, "name a target"),
        ({"ratio": 0}, "greater than 0"),
        ({"ratio": 1}, "less than 1"),
        ({"ratio": "120%"}, "less than 1"),
        ({"ratio": "half"}, "valid number"),
        ({"ratio": 0.5, "remove_macs": 0.5}, "name one target"),
        ({"ratio": 0.5, "importance": "best"}, "'l1', 'l2', 'batch_norm', 'activation' or 'taylor'"),
        ({"ratio": 0.5, "max_samples": 5}, "importance: l2 takes no samples"),
        ({"how": "2:4", "ratio": 0.5}, "leave out the target"),
        ({"how": "2:4", "scope": "layer"}, "2:4 has no scope"),
        ({"how": "unstructured", "remove_macs": 0.5}, "takes ratio, and nothing else"),
        ({"how": "unstructured", "ratio": 0.5, "rounds": 2}, "rounds goes with how: structured"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        TorchPrune(**options)


def test_recorded_options_are_valid_again() -> None:
    for given in ({"ratio": "30%"}, {"how": "2:4"}, {"how": "unstructured", "ratio": 0.3}):
        options = TorchPrune(**given)  # type: ignore[arg-type]
        assert TorchPrune.model_validate(options.model_dump(mode="json")) == options


def test_a_layer_to_keep_must_be_there(tmp_path: Path) -> None:
    error = refused(tmp_path, source(tmp_path, "vgg"), ratio=0.2, keep=["layer.0"])
    assert (error.what, error.hint) == ("no layer is called 'layer.0'", "did you mean 'layers.0'?")


def test_nothing_to_prune_is_said(tmp_path: Path) -> None:
    error = refused(tmp_path, source(tmp_path, "Single"), ratio=0.2)
    assert error.what == "no channel of the model can be removed: head: it is an output of the model"
    (tmp_path / "kept").mkdir()
    error = refused(tmp_path / "kept", source(tmp_path, "vgg"), ratio=0.2, keep=["layers"])
    assert "layers is to be kept" in error.what


@pytest.mark.parametrize("kind", ["exported", "torchscript"])
def test_a_fixed_graph_is_refused(kind: str, tmp_path: Path) -> None:
    net = zoo.vgg().eval()
    path = tmp_path / ("model.pt2" if kind == "exported" else "model.pt")
    if kind == "exported":
        torch.export.save(torch.export.export(net, (torch.zeros(4, 3, 32, 32),)), path)
    else:
        scripted(net, path)
    spec = replace(IMAGE, shape=(4, 3, 32, 32)) if kind == "exported" else IMAGE
    artifact = at_rest(descriptor(tmp_path, [spec], kind=kind, path=str(path)))
    error = refused(tmp_path, artifact, ratio=0.2)
    assert "whose structure is fixed; pruning needs the nn.Module" in error.what
