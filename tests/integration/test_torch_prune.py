"""torch.prune: what is asked to go is gone, and the rest computes as before and loads anywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import prune_zoo as zoo
import pytest
import torch
from prune_kit import (
    IMAGE,
    MODELS,
    ZOO,
    answers,
    at_rest,
    context,
    feeds_of,
    module_of,
    pruned,
    source,
)
from torch_kit import descriptor

from optkit.errors import SourceError
from optkit.formats.torch import model as torch_model
from optkit.formats.torch import structure as torch_structure
from optkit.formats.torch_pruning import pruning as torch_pruning
from optkit.formats.torch_pruning.selecting import Rules
from optkit.passes.torch_prune import PASS, TorchPrune
from optkit.passes.torch_to_onnx import PASS as TO_ONNX
from optkit.registry import get_pass, get_runner
from optkit.tasks.making import reread

# ------------------------------------------------------------------------------------------------ structures


@pytest.mark.parametrize("name", MODELS)
def test_the_reloaded_model_is_the_pruned_one_to_the_last_bit(name: str, tmp_path: Path) -> None:
    artifact = source(tmp_path, name)
    model, feeds = torch_model.load(artifact.path), feeds_of(artifact)
    before = torch_pruning.macs(model, feeds)
    done = torch_pruning.prune(model, feeds, torch_pruning.Target("macs", 0.3), Rules(False, 0.1, 1), importance="l2")
    after = torch_pruning.macs(model, feeds)
    assert 1 - after / before == pytest.approx(done.notes["reached"], abs=1e-6)  # counted, not only predicted
    assert done.notes["reached"] >= 0.3
    (out := tmp_path / "out").mkdir()
    torch_structure.save(model.source.module, torch_model.read_descriptor(artifact.path), "d", done.stages, out)
    again = torch_model.load(out / "torch.json").call(feeds)
    for output, tensor in model.call(feeds).items():
        assert torch.equal(again[output], tensor)
        assert torch.isfinite(tensor).all()


def test_a_channel_that_nothing_reads_is_removed_without_a_trace(tmp_path: Path) -> None:
    """Residuals, a depthwise convolution and a flatten: dead channels go first, and the outputs stay what they were."""
    torch.manual_seed(0)
    net = zoo.vgg().eval()
    for layer, (start, stop) in {"layers.2.0": (0, 4), "layers.5": (0, 64), "layers.8": (0, 6)}.items():
        net.get_submodule(layer).weight.data[:, start:stop] = 0
    for layer, count in {"layers.0": 4, "layers.2": 4}.items():
        for part in net.get_submodule(layer):
            for tensor in part.parameters():
                tensor.data[:count] = 0
    net.get_submodule("layers.5").weight.data[:6] = 0
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    artifact = source(tmp_path, "vgg", weights=str(tmp_path / "weights.pt"))
    made, notes = pruned(tmp_path, artifact, ratio=0.15, scope="global", importance="l1")
    assert {item["layer"]: item["channels"] for item in notes["layers"]} == {
        "layers.0.0": [16, 12], "layers.2.0": [24, 20], "layers.5": [40, 36],
    }  # fmt: skip
    feeds = feeds_of(artifact)
    torch.testing.assert_close(answers(made, feeds), answers(artifact, feeds), rtol=1e-5, atol=1e-6)


def test_whole_heads_go_and_attributes_follow(tmp_path: Path) -> None:
    made, notes = pruned(tmp_path, source(tmp_path, "Attention"), ratio=0.5, scope="layer", keep=["embed"])
    module = module_of(made)
    assert (module.num_heads, module.head_dim, module.inner_dim) == (2, 8, 16)
    assert tuple(module.qkv.weight.shape) == (48, 32)
    assert tuple(module.out.weight.shape) == (6, 16)
    assert [(g["layer"], g["channels"], g["in_blocks_of"]) for g in notes["layers"]] == [("qkv", [32, 16], 8)]
    assert {item["layer"] for item in notes["left"]} == {"embed", "out"}


def test_heads_go_that_share_an_axis_with_the_batch(tmp_path: Path) -> None:
    """Also where the batch is as large as there are heads, and where scores by distance are added to theirs."""
    made, notes = pruned(tmp_path, source(tmp_path, "Relative"), ratio=0.5, scope="layer", keep=["embed"])
    assert module_of(made).num_heads == 2
    assert [(g["layer"], g["with"], g["channels"]) for g in notes["layers"]] == [("q", ["k", "v"], [32, 16])]


def test_shared_keys_and_values_go_with_all_their_heads(tmp_path: Path) -> None:
    made, _ = pruned(tmp_path, source(tmp_path, "llama"), ratio=0.5, scope="layer")
    attention = module_of(made).model.layers[0].self_attn
    assert attention.q_proj.weight.shape[0] == 16
    assert attention.k_proj.weight.shape[0] == attention.v_proj.weight.shape[0] == 8


def test_a_layer_whose_size_is_taken_from_another_one_is_left_alone(tmp_path: Path) -> None:
    """As Segformer does: with one channel less in each of them it runs, with one less in one of them it does not."""
    made, notes = pruned(tmp_path, source(tmp_path, "Borrowed"), ratio=0.25)
    module = module_of(made)
    assert (module.first.out_channels, module.reduce.out_channels, module.wide.out_features) == (8, 8, 12)
    why = {row["layer"]: row["why"] for row in notes["left"]}
    assert all("its size is written into the code" in why[layer] for layer in ("first", "reduce"))


def test_a_matrix_that_the_model_holds_itself_is_left_alone(tmp_path: Path) -> None:
    """As the language models that translate do with the bias of their words, (1, words)."""
    made, notes = pruned(tmp_path, source(tmp_path, "Shifted"), remove_macs="25%")
    assert {row["layer"] for row in notes["left"]} == {"the model", "head"}
    assert module_of(made).shift.shape == (1, 6)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    made, _ = pruned(tmp_path, source(tmp_path, "gpt2"), ratio=0.25, scope="layer")
    module = module_of(made)
    assert module.lm_head.weight is module.transformer.wte.weight
    assert tuple(module.lm_head.weight.shape) == (64, 24)


def test_grouped_convolutions_lose_whole_groups(tmp_path: Path) -> None:
    path = descriptor(tmp_path, [IMAGE], f"{ZOO}:resnet", kwargs={"groups": 4})
    made, notes = pruned(tmp_path, at_rest(path), ratio=0.5, scope="layer")
    convolution = module_of(made).layers[1].second[0]
    assert (convolution.groups, convolution.in_channels, convolution.out_channels) == (2, 8, 8)
    assert tuple(convolution.weight.shape) == (8, 4, 3, 3)
    assert all(item["in_blocks_of"] >= 4 for item in notes["layers"])


@pytest.mark.parametrize(
    ("name", "layer", "why"),
    [
        ("Fixed", "qkv", r"its size is written into the code: .*view\(x.shape\[0\], x.shape\[1\], 3, 4, 8\)"),
        ("Biased", "attention", "torch computes all of nn.MultiheadAttention in one call"),
        ("Shuffle", "stem.0", "its size is written into the code"),
        ("Recurrent", "between", "gru in gru reads it"),
        ("Recurrent", "gru", "gru in gru reads it"),
    ],
)
def test_what_cannot_follow_is_left_alone_and_named(name: str, layer: str, why: str, tmp_path: Path) -> None:
    import re

    _, notes = pruned(tmp_path, source(tmp_path, name), ratio=0.25, scope="layer")
    left = {item["layer"]: item["why"] for item in notes["left"]}
    assert re.search(why, left[layer])
    assert layer not in [item["layer"] for item in notes["layers"]]


# ------------------------------------------------------------------------------------------------ at rest


@pytest.mark.parametrize("name", ["bert", "deberta"])
def test_a_fresh_process_gives_the_same_answers(name: str, tmp_path: Path) -> None:
    artifact = source(tmp_path, name)
    made, _ = pruned(tmp_path, artifact, remove_macs=0.4)
    ids = feeds_of(artifact)["input_ids"]
    np.save(tmp_path / "ids.npy", ids.numpy())
    code = (
        "import sys, numpy as np, torch\n"
        "from pathlib import Path\n"
        "from optkit.formats.torch import model as torch_model\n"
        "model = torch_model.load(Path(sys.argv[1]))\n"
        "out = model.call({'input_ids': torch.from_numpy(np.load(sys.argv[2]))})\n"
        "np.save(sys.argv[3], out['last_hidden_state'].numpy())\n"
    )
    subprocess.run([sys.executable, "-c", code, str(made.path), str(tmp_path / "ids.npy"), str(tmp_path / "out.npy")],
                   check=True, cwd="/", timeout=300)  # fmt: skip
    wanted = answers(made, {"input_ids": ids})["last_hidden_state"].numpy()
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "target"), [("Attention", "onnx"), ("Attention", "openvino"), ("Relative", "onnx")])
def test_a_pruned_model_converts_like_any_other(name: str, target: str, tmp_path: Path) -> None:
    artifact = source(tmp_path, name)
    made, _ = pruned(tmp_path, artifact, ratio=0.25, scope="layer")
    use = TO_ONNX if target == "onnx" else get_pass("torch.to_openvino")
    (out := tmp_path / "converted").mkdir()
    given = context(made, tmp_path)
    use.run(made, out, use.options(), given)
    converted = reread(use, made, out, given)
    feeds = feeds_of(artifact)
    with get_runner(target).open(converted) as session:
        got = session.infer({name: feed.numpy() for name, feed in feeds.items()})
    np.testing.assert_allclose(got["output"], answers(made, feeds)["output"].numpy(), rtol=1e-4, atol=1e-5)


def test_other_code_under_the_same_weights_is_another_artifact(tmp_path: Path) -> None:
    artifact = source(tmp_path, "vgg")
    one, _ = pruned(tmp_path, artifact, ratio=0.25)
    (tmp_path / "b").mkdir()
    other, _ = pruned(tmp_path / "b", replace(artifact, digest="other code"), ratio=0.25)
    assert one.digest != other.digest


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda record: record.update(version=9), "is of version 9; this optkit reads 1"),
        (lambda record: record.pop("stages"), "is damaged: KeyError"),
        (lambda record: record["stages"][0]["tensors"].update({"layers.77.weight": {"0": 0}}), "has no module"),
        (lambda record: record["stages"][0]["keep"].insert(0, [9999]), "it has shape"),
        (lambda record: record["stages"][0]["attributes"].update({"layers": {"no": 1}}), "has no such attribute"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(change: Any, what: str, tmp_path: Path) -> None:
    made, _ = pruned(tmp_path, source(tmp_path, "vgg"), ratio=0.25)
    path = made.path.parent / torch_structure.STRUCTURE
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(SourceError, match=what) as caught:
        torch_model.load(made.path)
    assert caught.value.hint


def test_a_missing_record_is_named(tmp_path: Path) -> None:
    made, _ = pruned(tmp_path, source(tmp_path, "vgg"), ratio=0.25)
    (made.path.parent / torch_structure.STRUCTURE).unlink()
    with pytest.raises(SourceError, match=r"structure\.json is not there"):
        torch_model.load(made.path)


def test_confirm_finds_work_that_was_not_done(tmp_path: Path) -> None:
    artifact = source(tmp_path, "vgg")
    given = context(artifact, tmp_path)
    assert PASS.confirm is not None
    asked = {
        "of the macs are gone": TorchPrune(remove_macs=0.3),
        "of the parameters are gone": TorchPrune(remove_parameters=0.3),
        "no fewer than before": TorchPrune(ratio=0.3),
        "are zero, not": TorchPrune(how="unstructured", ratio=0.3),
        "is not 2:4 sparse": TorchPrune(how="2:4"),
    }
    for what, options in asked.items():
        assert any(what in text for text in PASS.confirm(artifact, artifact, options, given))
