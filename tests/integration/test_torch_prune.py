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
from pydantic import ValidationError
from torch_kit import descriptor, out_dir, scripted

from optkit.artifact import Artifact, Dim, TensorSpec
from optkit.errors import DataError, OptkitError, SourceError, StepError
from optkit.formats.torch import model as torch_model
from optkit.formats.torch import structure as torch_structure
from optkit.formats.torch_pruning import pruning as torch_pruning
from optkit.formats.torch_pruning import sparse as torch_sparse
from optkit.formats.torch_pruning.selecting import Rules
from optkit.passes.torch_prune import PASS, TorchPrune
from optkit.passes.torch_to_onnx import PASS as TO_ONNX
from optkit.plugin import Context
from optkit.registry import get_pass, get_runner
from optkit.runners.torch_runner import RUNNER
from optkit.tasks.making import reread
from optkit.testing import ListSamples

ZOO = Path(zoo.__file__)
DIMS = {"batch": Dim(1, 4, 8), "sequence": Dim(2, 8, 24)}
IMAGE = TensorSpec("image", "float32", ("batch", 3, 32, 32))
PIXELS = replace(IMAGE, name="pixel_values")
IDS = TensorSpec("input_ids", "int64", ("batch", "sequence"), None, (0, 63))
WIDE = TensorSpec("x", "float32", ("batch", "sequence", 32))
SERIES = TensorSpec("x", "float32", ("batch", "sequence", 8))

Spec = tuple[TensorSpec, list[str] | None]
MODELS: dict[str, Spec] = {
    "resnet": (IMAGE, None), "vgg": (IMAGE, None), "UNet": (IMAGE, None), "mobilenet": (IMAGE, None),
    "Attention": (SERIES, None), "Relative": (SERIES, None), "bert": (IDS, ["last_hidden_state"]),
    "deberta": (IDS, ["last_hidden_state"]), "gpt2": (IDS, ["logits"]), "llama": (IDS, ["logits"]),
    "vit": (PIXELS, ["logits"]), "convnext": (PIXELS, ["logits"]), "swin": (PIXELS, ["logits"]),
}  # fmt: skip


def source(folder: Path, name: str, **rest: Any) -> Artifact:
    """A model of the zoo at rest, as a run starts from it."""
    spec, outputs = {
        **MODELS, "Fixed": (WIDE, None), "Biased": (WIDE, None), "Shuffle": (IMAGE, None),
        "Recurrent": (SERIES, None), "Single": (TensorSpec("x", "float32", ("batch", 8)), None),
    }[name]  # fmt: skip
    return at_rest(descriptor(folder, [spec], f"{ZOO}:{name}", outputs, **rest))


def at_rest(path: Path) -> Artifact:
    signature = RUNNER.describe(path, {"dims": {name: dim.to_json() for name, dim in DIMS.items()}})
    return Artifact("torch", path, "digest", signature, (path.name,))


def context(artifact: Artifact, folder: Path, **rest: Any) -> Context:
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    assert artifact.signature is not None
    return Context(artifact.signature.inputs, tuple(t.name for t in artifact.signature.outputs), DIMS, scratch, **rest)


def pruned(
    folder: Path, artifact: Artifact, rest: dict[str, Any] | None = None, **options: Any
) -> tuple[Artifact, Any]:
    """The pruned artifact, confirmed, and the notes."""
    given, chosen, out = context(artifact, folder, **(rest or {})), TorchPrune(**options), out_dir(folder)
    notes = PASS.run(artifact, out, chosen, given)
    json.dumps(notes, allow_nan=False)
    made = reread(PASS, artifact, out, given)
    assert PASS.confirm is not None
    assert PASS.confirm(artifact, made, chosen, given) == []
    return made, notes


def refused(folder: Path, artifact: Artifact, rest: dict[str, Any] | None = None, **options: Any) -> OptkitError:
    with pytest.raises(OptkitError) as caught:
        PASS.run(artifact, out_dir(folder), TorchPrune(**options), context(artifact, folder, **(rest or {})))
    assert caught.value.hint
    return caught.value


def feeds_of(artifact: Artifact, seed: int = 1) -> dict[str, Any]:
    from optkit.formats.torch.feeds import example_feeds

    assert artifact.signature is not None
    return example_feeds(artifact.signature.inputs, DIMS, {"batch": 3, "sequence": 6}, seed)


def answers(artifact: Artifact, feeds: dict[str, Any]) -> dict[str, Any]:
    return torch_model.load(artifact.path).call(feeds)


def module_of(artifact: Artifact) -> Any:
    return torch_model.load(artifact.path).source.module


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
