"""The layer that is to blame, in models broken on purpose at one known place, on the real runtimes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_models
import openvino_models
import pytest
import tflite_kit
import torch_kit
from click.testing import CliRunner
from onnx import TensorProto, numpy_helper
from onnx_models import FLOAT, cnn, edited, encoder, feed_of, images, node, saved, texts, value, weight

import optkit
from optkit.artifact import Artifact
from optkit.cli.summary import wrongs
from optkit.parity import layers
from optkit.passes.onnx_fp16 import PASS as FP16
from optkit.passes.onnx_quantize import PASS as QUANTIZE
from optkit.passes.torch_to_onnx import PASS as TO_ONNX
from optkit.passes.torch_to_openvino import PASS as TO_OPENVINO
from optkit.registry import get_runner
from optkit.reports import html, junit, markdown
from optkit.reports.layers import sentence
from optkit.reports.rows import remedy
from optkit.testing import ListSamples

if TYPE_CHECKING:
    from optkit.plugin import Tensors

IMAGES = [feed_of(image) for image in images(2, seed=5)]


def look(other: Artifact, artifact: Artifact, feeds: Sequence[Tensors], **more: Any) -> dict[str, Any]:
    """What is found of an artifact beside another on feeds that both take."""
    assert other.signature is not None
    outputs = [spec.name for spec in other.signature.outputs]
    pairs = [(feed, feed) for feed in feeds]
    for one in get_runner(other.format).inside:
        with one(other) as theirs, get_runner(artifact.format).inside[0](artifact) as mine:
            found = layers.localise(theirs, mine, pairs, outputs, **more)
        if found is not None:
            return {"against": "parent", **found}
    raise AssertionError("no common tensors")


def constants(change: dict[str, Callable[[Any], Any]]) -> Callable[[Any], None]:
    """An edit of a ModelProto's initializers."""

    def edit(proto: Any) -> None:
        for tensor in proto.graph.initializer:
            if tensor.name in change:
                tensor.CopyFrom(
                    numpy_helper.from_array(change[tensor.name](numpy_helper.to_array(tensor)), tensor.name)
                )

    return edit


THIRD = (np.arange(16) == 3)[:, None, None, None]
OUTLIER = constants({
    "w0": lambda w: np.where(THIRD, 0, w), "b0": lambda b: np.where(THIRD[:, 0, 0, 0], 0, b),
    "w1": lambda w: np.where(THIRD.reshape(1, 16, 1, 1), 90, w),
})  # fmt: skip
"""A channel that is never there: in float its weight in conv1 does nothing, in int8 it takes the whole range."""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return saved(cnn(), tmp_path_factory.mktemp("net") / "source")


def test_a_changed_weight_is_found_and_what_follows_it_is_not_blamed(net: Artifact, tmp_path: Path) -> None:
    def other(w: Any) -> Any:
        return w + (np.arange(w.size).reshape(w.shape) == 7) * np.float32(0.8)

    found = look(net, edited(net, tmp_path / "changed", constants({"w1": other})), IMAGES)
    blamed = found["blamed"]
    assert (blamed["tensor"], blamed["operator"], blamed["node"]) == ("c1", "Conv", "conv1")
    assert (blamed["before_db"], blamed["nonfinite"], blamed["estimated"]) == (300, False, False)
    assert blamed["after_db"] == blamed["local_db"] < 40
    assert blamed["alone_db"] == pytest.approx(found["output_db"], abs=0.1)
    rest = [layer for layer in found["layers"] if layer["tensor"] != "c1"]
    assert all(layer["local_db"] > 120 for layer in rest), "the error passes through the others unchanged"
    assert found["worst"] == [[layer["tensor"] for layer in found["layers"]].index("c1")]
    assert "the error comes from Conv conv1: exact before it" in sentence(found)


@pytest.mark.parametrize("kind", ["the same file", "renamed nodes", "another opset"])
def test_no_layer_is_blamed_where_the_artifact_is_equal(kind: str, net: Artifact, tmp_path: Path) -> None:
    def rename(proto: Any) -> None:
        for number, op in enumerate(proto.graph.node):
            op.name = f"n{number}"

    same = {"the same file": lambda: net, "renamed nodes": lambda: edited(net, tmp_path / "named", rename),
            "another opset": lambda: saved(cnn(17), tmp_path / "older")}[kind]()  # fmt: skip
    found = look(net, same, IMAGES)
    assert (found["blamed"], found["worst"], found["output_db"]) == (None, [], 300)
    assert found["compared"] == len(found["layers"]) == 8
    assert sentence(found).startswith("no layer is to blame")


def test_an_operator_that_amplifies_an_older_error_is_not_blamed(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x a", "h", "first"), node("Mul", "h big", "loud"), node("MatMul", "loud b", "k", "second"),
             node("Exp", "k", "e"), node("ReduceSum", "e last", "s", keepdims=1), node("Div", "e s", "y")]  # fmt: skip
    proto = onnx_models.model(
        nodes, [value("x", FLOAT, ["batch", 8])], [value("y", FLOAT, ["batch", 6])],
        {"a": weight(8, 8), "big": 6.0, "b": weight(8, 6), "last": np.array([1])},
    )  # fmt: skip
    source = saved(proto, tmp_path / "source")
    rounded = edited(source, tmp_path / "rounded", constants({"a": lambda w: w.astype(np.float16).astype(np.float32)}))
    feeds = [{"x": np.random.default_rng(n).standard_normal((1, 8)).astype(np.float32)} for n in range(3)]
    found = look(source, rounded, feeds)
    by = {layer["tensor"]: layer for layer in found["layers"]}
    assert by["e"]["after_db"] < by["h"]["after_db"] - 3, "the error looks larger behind the exponential"
    assert found["blamed"]["node"] == "first"


def test_int8_with_an_outlier_in_one_weight(net: Artifact, tmp_path: Path) -> None:
    source = edited(net, tmp_path / "source", OUTLIER)
    made, _, complaints = onnx_models.made(QUANTIZE, source, tmp_path, ListSamples(images(8)))
    assert not complaints
    found = look(source, made, IMAGES)
    blamed = found["blamed"]
    assert (blamed["operator"], blamed["node"]) == ("Conv", "conv1")
    assert blamed["after_db"] < 12 < blamed["before_db"]
    assert all(layer["local_db"] > 25 for layer in found["layers"] if layer["node"] != "conv1")


def without_copies(proto: Any) -> None:
    """Take away what keeps onnxruntime from quantising layers that were left out, as in other tools' files."""
    copies = {op.output[0]: op.input[0] for op in proto.graph.node if op.op_type == "Sum" and len(op.input) == 1}
    assert copies
    for op in proto.graph.node:
        op.input[:] = [copies.get(name, name) for name in op.input]
    kept = [op for op in proto.graph.node if op.output[0] not in copies]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)


def test_what_the_runtime_does_to_a_layer_among_others_is_told_from_the_layer(net: Artifact, tmp_path: Path) -> None:
    """onnxruntime quantises the weight of a Conv that was left in float, where what it reads and gives is quantised."""
    source = edited(net, tmp_path / "source", OUTLIER)
    shielded, _, _ = onnx_models.made(QUANTIZE, source, tmp_path, ListSamples(images(8)), exclude=("conv1",))
    made = edited(shielded, tmp_path / "bare", without_copies)
    assert "w1" in {t.name for t in onnx.load(made.path).graph.initializer}, "in the file it is float"
    found = look(source, made, IMAGES)
    blamed = found["blamed"]
    assert (blamed["tensor"], blamed["node"], blamed["fused"]) == ("c1", "conv1", True)
    assert blamed["local_db"] > 100 > 20 > blamed["after_db"]
    assert "how the runtime computes Conv conv1 together with its neighbours" in sentence(found)


def test_the_layer_is_left_out_where_that_helps() -> None:
    layer = {"operator": "MatMul", "node": "up: 1", "module": "", "fused": False, "alone_db": 12.0, "tensor": "t"}
    step = {"pass": "onnx.quantize", "fidelity": "lossy", "status": "failed",
            "blame": {"blamed": layer, "output_db": 11.0, "layers": [], "worst": [], "problem": ""}}  # fmt: skip
    assert remedy(step).startswith('leave that layer in float, with: {exclude: ["up: 1"]}')
    for change in ({"operator": "Relu"}, {"fused": True}, {"alone_db": 40.0}):
        other = {**step, "blame": {**step["blame"], "blamed": {**layer, **change}}}
        assert remedy(other).startswith("other options")


def test_an_overflow_in_float16_names_the_node_of_the_first_infinity(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x a", "h", "first"), node("Relu", "h", "r"), node("MatMul", "r loud", "k", "second"),
             node("Mul", "k quiet", "q"), node("MatMul", "q b", "y", "third")]  # fmt: skip
    proto = onnx_models.model(
        nodes, [value("x", FLOAT, ["batch", 8])], [value("y", FLOAT, ["batch", 6])],
        {"a": weight(8, 8), "loud": weight(8, 8) * 3e5, "quiet": 1e-4, "b": weight(8, 6)},
    )  # fmt: skip
    source = saved(proto, tmp_path / "source")

    def half(proto: Any) -> None:
        for tensor in proto.graph.initializer:
            with np.errstate(over="ignore"):  # the weight itself, too large for float16, becomes infinite
                values = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        proto.graph.node[0].input[0] = "x16"
        proto.graph.node[-1].output[0] = "y16"
        first, last = node("Cast", "x", "x16", to=TensorProto.FLOAT16), node("Cast", "y16", "y", to=FLOAT)
        kept = [first, *proto.graph.node, last]
        del proto.graph.node[:]
        proto.graph.node.extend(kept)

    found = look(source, edited(source, tmp_path / "half", half), [{"x": np.ones((1, 8), np.float32)}])
    assert found["nonfinite"]
    blamed = found["blamed"]
    assert (blamed["tensor"], blamed["operator"], blamed["node"]) == ("k", "MatMul", "second")
    assert blamed["nonfinite"]
    assert sentence(found) == "the first NaN or infinity comes out of MatMul second; parent is finite there"
    json.dumps(found, allow_nan=False)


def test_float16_made_by_the_pass_is_even(net: Artifact, tmp_path: Path) -> None:
    made, _, _ = onnx_models.made(FP16, net, tmp_path)
    found = look(net, made, IMAGES)
    assert not found["nonfinite"]
    assert min(layer["after_db"] for layer in found["layers"]) > 50
    assert {"c0", "c1", "sum"} <= {layer["tensor"] for layer in found["layers"]}


def test_a_search_in_small_pieces_and_from_far_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(encoder(), tmp_path / "source")
    changed = edited(source, tmp_path / "changed", constants({"wk": lambda w: w * np.float32(0.6)}))
    feeds = [feed_of(text) for text in texts(2)]
    whole = look(source, changed, feeds)
    assert (whole["blamed"]["tensor"], whole["blamed"]["node"]) == ("k0", "k_proj")
    asked: list[int] = []
    monkeypatch.setattr(layers, "CHUNK_BYTES", 4000)
    with get_runner("onnx").inside[0](source) as model:
        kind = type(model)
    values = kind.values

    def counted(self: Any, names: Sequence[str], tensors: Tensors, given: Any = None) -> Tensors:
        asked.append(len(names))
        return values(self, names, tensors, given)

    monkeypatch.setattr(kind, "values", counted)
    small = look(source, changed, feeds)
    assert small["layers"] == whole["layers"]
    assert max(asked) < whole["compared"]
    monkeypatch.setattr(layers, "MOST", 12)
    far = look(source, changed, feeds)
    assert far["blamed"]["node"] == "k_proj"
    assert far["compared"] < whole["compared"]


def test_no_time_left_is_told(net: Artifact) -> None:
    found = look(net, net, IMAGES, seconds=-1.0)
    assert (found["compared"], found["blamed"]) == (0, None)
    assert found["notes"] == ["stopped for time: 0 of 8 tensors compared"]


# ------------------------------------------------------------------------------------------------ OpenVINO


def rounded(folder: Path, bad: str = "") -> Artifact:
    """`openvino_models.cnn` with a FakeQuantize behind each ReLU, that of `bad` over a twentieth of the range."""
    ops = openvino_models.ops
    model = openvino_models.cnn()
    for op in model.get_ordered_ops():
        if op.get_type_name() == "Relu":
            readers = list(op.output(0).get_target_inputs())
            high = np.float32(0.2 if op.get_friendly_name() == bad else 8.0)
            quantised = ops.fake_quantize(op, np.float32(0), high, np.float32(0), high, 256,
                                          name=f"{op.get_friendly_name()}/fq_output_0")  # fmt: skip
            for reader in readers:
                reader.replace_source_output(quantised.output(0))
    model.validate_nodes_and_infer_types()
    return openvino_models.written(model, folder, openvino_models.IMAGE)


def test_openvino_int8_with_one_bad_range(tmp_path: Path) -> None:
    source = openvino_models.written(openvino_models.cnn(), tmp_path / "source", openvino_models.IMAGE)
    found = look(source, rounded(tmp_path / "bad", "relu1"), IMAGES)
    blamed = found["blamed"]
    assert (blamed["operator"], blamed["node"]) == ("FakeQuantize", "relu1/fq_output_0")
    assert blamed["after_db"] < 12 < 30 < blamed["before_db"]
    assert blamed["alone_db"] == pytest.approx(found["output_db"], abs=1.0)
    good = look(source, rounded(tmp_path / "good"), IMAGES)
    assert all(layer["local_db"] > 30 for layer in good["layers"])
    assert look(source, source, IMAGES)["blamed"] is None


def int8_attention(folder: Path) -> Artifact:
    """Patches of an image, each attending to each, with NNCF's int8 throughout."""
    ov, ops = openvino_models.ov, openvino_models.ops
    random = np.random.default_rng(0)
    image = ops.parameter([-1, 3, 16, 16], np.float32, name="image")

    def rounded(value: Any, low: float, high: float, levels: int = 256) -> Any:
        ends = np.float32(low), np.float32(high)
        return ops.fake_quantize(value, *ends, *ends, levels)

    def weight(*shape: int) -> Any:
        drawn = (random.standard_normal(shape) / np.prod(shape[1:]) ** 0.5).astype(np.float32)
        return rounded(ops.constant(drawn), -float(np.abs(drawn).max()), float(np.abs(drawn).max()), 255)

    def product(a: Any, b: Any, name: str, turned: bool = False) -> Any:
        made = ops.matmul(a, b, False, turned, name=name)
        return rounded(made, -6, 6)

    patches = ops.convolution(
        rounded(image, -4, 4), weight(32, 3, 4, 4), [4, 4], [0, 0], [0, 0], [1, 1], name="patches"
    )
    rows = ops.reshape(rounded(patches, -4, 4), np.int64([0, 32, -1]), True, name="flat")
    tokens = ops.transpose(rows, np.int64([0, 2, 1]), name="tokens")
    query, key = (product(tokens, weight(32, 32), name, True) for name in ("query", "key"))
    scores = product(ops.multiply(query, np.float32(0.2)), ops.multiply(key, np.float32(0.9)), "scores", turned=True)
    mixed = product(rounded(ops.softmax(scores, 2), 0, 1), tokens, "mixed")
    model = ov.Model([ops.result(ops.reduce_mean(mixed, np.int64([1]), name="mean"))], [image], "attention")
    model.outputs[0].get_tensor().set_names({"answer"})
    model.inputs[0].get_tensor().set_names({"image"})
    return openvino_models.written(model, folder, openvino_models.IMAGE)


def test_openvino_int8_tensors_are_the_same_alone_and_beside_others(tmp_path: Path) -> None:
    """OpenVINO 2026.4 itself gives zeros for some of them when they are asked for together."""
    made = int8_attention(tmp_path)
    feed = {"image": np.random.default_rng(1).standard_normal((2, 3, 16, 16)).astype(np.float32)}
    with get_runner("openvino").inside[0](made) as inside:
        names = [point.name for point in inside.points]
        assert {"patches", "flat", "tokens", "scores", "mixed"} <= set(names)
        together = inside.values(names, feed)
        for name in names:
            alone = inside.values([name], feed)[name]
            assert np.abs(alone).max() > 0.01, name
            np.testing.assert_allclose(together[name], alone, rtol=1e-3, atol=0.06, err_msg=name)  # a step of 8 bits
    assert look(made, made, [feed])["blamed"] is None


def test_openvino_beside_the_onnx_file_it_comes_from(net: Artifact, tmp_path: Path) -> None:
    ov, ops = openvino_models.ov, openvino_models.ops
    model = ov.convert_model(str(net.path))
    even = openvino_models.written(model, tmp_path / "even", openvino_models.IMAGE)
    same = look(net, even, IMAGES)
    assert same["blamed"] is None
    assert same["compared"] >= 7
    for op in model.get_ordered_ops():
        if op.get_friendly_name() == "w1":
            constant = ops.constant(op.data * np.float32(1.2), name="w1")
            for reader in list(op.output(0).get_target_inputs()):
                reader.replace_source_output(constant.output(0))
    found = look(net, openvino_models.written(model, tmp_path / "odd", openvino_models.IMAGE), IMAGES)
    assert found["blamed"]["operator"] == "Convolution"
    assert found["blamed"]["node"].startswith("conv1")
    assert found["blamed"]["before_db"] > 100


# ------------------------------------------------------------------------------------------------ torch, TFLite


def test_onnx_beside_the_torch_model_it_comes_from(tmp_path: Path) -> None:
    """A ReLU that was patched into its leaky sister: the module it is in, and no other."""
    source, given = tflite_kit.source(tmp_path / "torch", f"{Path(__file__)}:staged", tflite_kit.IMAGE)
    out = torch_kit.out_dir(tmp_path)
    TO_ONNX.run(source, out, TO_ONNX.options(), given)
    made = onnx_models.artifact(out)
    feeds = [{"image": np.random.default_rng(n).uniform(-1, 1, (1, 3, 12, 10)).astype(np.float32)} for n in range(2)]
    same = look(source, made, feeds)
    assert same["blamed"] is None
    assert {"stem", "body.first", "body.last", "head"} <= {layer["module"] for layer in same["layers"]}

    def patch(proto: Any) -> None:
        wrong = [n for n in proto.graph.node if n.op_type == "Relu"][1]
        wrong.op_type = "LeakyRelu"
        wrong.attribute.extend([onnx.helper.make_attribute("alpha", 0.4)])

    found = look(source, edited(made, tmp_path / "patched", patch), feeds)
    blamed = found["blamed"]
    assert (blamed["operator"], blamed["module"]) == ("LeakyRelu", "body.last")
    assert blamed["before_db"] > 100 > 40 > blamed["after_db"]


def test_openvino_beside_the_torch_model_it_comes_from(tmp_path: Path) -> None:
    """Their names are those of the exported graph; what is folded together shares a name alone, and is left out."""
    source, given = tflite_kit.source(tmp_path / "torch", f"{Path(__file__)}:normed", tflite_kit.IMAGE)
    source = replace(source, meta={"dims": {name: dim.to_json() for name, dim in given.dims.items()}})
    made, _ = openvino_models.converted(TO_OPENVINO, source, tmp_path / "made", given)
    feeds = [{"image": np.random.default_rng(n).uniform(-1, 1, (1, 3, 12, 10)).astype(np.float32)} for n in range(2)]
    assert look(source, made, feeds)["blamed"] is None
    ops, model = openvino_models.ops, openvino_models.openvino_model.read(made.path)
    last = [op for op in model.get_ordered_ops() if op.get_type_name() == "GroupConvolution"][-1]
    kernel = last.input(1).get_source_output().get_node()
    last.input(1).replace_source_output(ops.constant(kernel.data * np.float32(1.5)).output(0))
    model.validate_nodes_and_infer_types()
    found = look(source, openvino_models.written(model, tmp_path / "odd", tflite_kit.IMAGE), feeds)
    assert found["blamed"]["module"] in ("last", "norm")
    assert found["blamed"]["operator"] in ("GroupConvolution", "Add")
    assert found["blamed"]["before_db"] > 100 > 20 > found["blamed"]["after_db"]


def normed() -> Any:
    """Two convolutions, the second of each channel alone, a normalisation behind it."""
    import torch
    from torch import nn

    torch.manual_seed(0)

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)
            self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)
            self.norm.running_mean.uniform_(-1, 1)
            self.norm.running_var.uniform_(0.1, 2)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.norm(self.last(torch.relu(self.first(image))))).mean((2, 3)))

    return Normed().eval()


def staged() -> Any:
    """A stem, a body of two activated convolutions, a head."""
    import torch
    from torch import nn

    torch.manual_seed(0)

    class Activated(nn.Module):
        def __init__(self, inner: int, outer: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(inner, outer, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.conv(x))

    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = Activated(8, 8), Activated(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x))

    class Staged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.head = nn.Conv2d(3, 8, 3), Body(), nn.Linear(8, 4)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(self.stem(image)).mean((2, 3)))

    return Staged().eval()


def test_tflite_beside_its_parent_and_beside_torch(tmp_path: Path) -> None:
    from ai_edge_litert.tools import flatbuffer_utils

    source, made, _, _ = tflite_kit.converted(tmp_path / "net", "Conv", tflite_kit.IMAGE)
    feeds = [{"image": np.random.default_rng(n).uniform(-1, 1, (1, 3, 12, 10)).astype(np.float32)} for n in range(2)]
    assert look(made, made, feeds)["blamed"] is None
    assert look(source, made, feeds)["blamed"] is None
    model = flatbuffer_utils.read_model(str(made.path))
    graph = model.subgraphs[0]
    kernels = [t for t in graph.tensors if b"second" in t.name and len(t.shape) == 4 and t.shape[1] == 3]
    assert len(kernels) == 1
    buffer = model.buffers[kernels[0].buffer]
    values = np.frombuffer(bytes(buffer.data), np.float32).copy()
    values[: values.size // 2] *= -1
    buffer.data = np.frombuffer(values.tobytes(), np.uint8)
    flatbuffer_utils.write_model(model, str(tmp_path / "broken.tflite"))
    broken = tflite_kit.described(tmp_path / "broken.tflite")
    for other in (made, source):
        found = look(other, broken, feeds)
        assert found["blamed"]["operator"] == "CONV_2D"
        assert found["blamed"]["module"] == "second"
        assert found["blamed"]["estimated"]
        assert found["blamed"]["before_db"] > 100


# ------------------------------------------------------------------------------------------------ in a run

RECIPE = """
version: 1
name: net
model: {{onnx: source/model.onnx}}
inputs: {{image: {{shape: [batch, 3, 16, 16], dtype: float32}}}}
dims: {{batch: {{min: 1, opt: 4, max: 8}}}}
data: {{fit: {{npz: fit.npz}}, judge: {{npz: judge.npz}}}}
check_on: judge
{more}
steps:
  - {{id: int8, use: onnx.quantize, data: fit, check: ["cosine >= 0.999999"]}}
  - {{id: ov, from: int8, to: openvino}}
"""


def test_a_failed_step_names_its_layer_in_every_report(net: Artifact, tmp_path: Path) -> None:
    edited(net, tmp_path / "source", OUTLIER)
    for name, seed in (("fit", 0), ("judge", 1)):
        np.savez(tmp_path / f"{name}.npz", image=np.stack([image["image"] for image in images(12, seed)]))
    (tmp_path / "r.yaml").write_text(RECIPE.format(more=""))
    (tmp_path / "off.yaml").write_text(RECIPE.format(more="blame: false"))

    def run(recipe: str) -> optkit.Report:
        with pytest.raises(optkit.CheckError) as failed:
            optkit.convert(tmp_path / recipe, out=tmp_path / "out", cache=tmp_path / "cache")
        assert failed.value.report is not None
        return failed.value.report

    report = run("r.yaml")
    step = report.step("int8")
    assert (step["status"], report.step("ov")["status"]) == ("failed", "blocked")
    blame = step["blame"]
    assert (blame["against"], blame["case"], blame["blamed"]["node"]) == ("source", "samples", "conv1")
    assert blame["samples"][0] == next(v["worst_sample"] for v in step["check"]["cases"][0]["verdicts"])
    assert report.step("ov")["blame"] is None
    assert optkit.Report.read(tmp_path / "out/report.json").data == report.data
    said = "the error comes from Conv conv1"
    assert said in (tmp_path / "out/report.md").read_text().replace("The error", "the error")
    page = html.render(report.data)
    assert said.capitalize().split()[0] in page
    assert "SQNR along the layers" in page
    assert said in junit.render(report.data)
    assert markdown.render(report.data).count("> #") == 1

    told = io.StringIO()
    told.write("\n".join(wrongs(report.data, told)))
    assert f"  {said}: " in told.getvalue()

    again = run("r.yaml")
    assert again.step("int8")["cached"] == {"run": True, "check": True}
    assert again.step("int8")["blame"] == blame
    assert not list((tmp_path / "out/logs").glob("blame-*")) or again.step("int8")["seconds"]["check"] == 0
    assert run("off.yaml").step("int8")["blame"] is None


def test_check_draws_the_layers_on_request(net: Artifact, tmp_path: Path) -> None:
    from optkit.cli import cli

    other = edited(net, tmp_path / "other", constants({"w1": lambda w: w * np.float32(1.5)}))
    asked = ["check", str(net.path), str(other.path)]
    plain = CliRunner().invoke(cli, asked, standalone_mode=False)
    assert "--layers names the layer" in plain.output
    told = CliRunner().invoke(cli, [*asked, "--layers"], standalone_mode=False)
    assert "the error comes from Conv conv1: exact before it" in told.output
    assert [line.split()[-1] for line in told.output.splitlines() if line.startswith("> ")] == ["conv1"]
    data = json.loads(CliRunner().invoke(cli, [*asked, "--layers", "--json", "--quiet"], standalone_mode=False).stdout)
    assert data["blame"]["blamed"]["node"] == "conv1"
    same = CliRunner().invoke(cli, ["check", str(net.path), str(net.path), "--layers"], standalone_mode=False)
    assert "no layer is to blame" in same.output


def test_models_without_a_common_tensor_are_told_apart(net: Artifact, tmp_path: Path) -> None:
    def rename(proto: Any) -> None:
        inner = {name for n in proto.graph.node for name in n.output} - {"logits"}
        for n in proto.graph.node:
            for side in (n.input, n.output):
                for k, name in enumerate(side):
                    side[k] = f"other_{name}" if name in inner else name

    other = edited(net, tmp_path / "other", rename)
    result = optkit.compare(net.path, other.path, layers=True)
    assert result["blame"]["problem"] == f"no common tensors with {net.path}"
    assert result["blame"]["blamed"] is None

    def end(proto: Any) -> None:
        proto.graph.node[-1].output[0] = proto.graph.output[0].name = "scores"

    result = optkit.compare(net.path, edited(net, tmp_path / "end", end).path, layers=True)
    assert not result["held"]
    assert result["blame"]["problem"] == f"not compared with {net.path}: they have no output in common"
