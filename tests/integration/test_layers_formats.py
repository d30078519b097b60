"""The layer to blame in OpenVINO and TFLite artifacts, and beside a torch model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_models
import openvino_models
import pytest
import tflite_kit
import torch_kit
from layers_kit import IMAGES, look
from onnx_models import cnn, edited, saved

from optkit.artifact import Artifact
from optkit.errors import StepError
from optkit.formats.tflite import look as tflite_look
from optkit.passes.torch_to_onnx import PASS as TO_ONNX
from optkit.passes.torch_to_openvino import PASS as TO_OPENVINO
from optkit.registry import get_runner


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return saved(cnn(), tmp_path_factory.mktemp("net") / "source")


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


def test_tflite_with_a_graph_for_each_size(tmp_path: Path) -> None:
    sizes = {"batch": [1, 4], "sequence": [6, 12]}
    _, made, _, _ = tflite_kit.converted(
        tmp_path / "net", "Masked", tflite_kit.IDS, tflite_kit.MASK, sizes=sizes, pad=["sequence"], int64="int32"
    )

    def doubled(model: Any, agreed: Any) -> None:
        for number, tensor in tflite_look.constants(model).items():
            if b"outer" in tensor.name and len(tensor.shape) == 2:
                values = np.frombuffer(bytes(model.buffers[number].data), np.float32) * 2
                model.buffers[number].data = values.view(np.uint8)

    broken = tflite_kit.rewritten(made, tmp_path / "broken.tflite", doubled)
    random = np.random.default_rng(0)
    feeds = [
        {"input_ids": random.integers(0, 50, (1, n)), "attention_mask": np.ones((1, n), np.int64)} for n in (5, 9)
    ]  # the first is run by the graph of 6, the second by that of 12, where the same tensors have other names
    assert look(made, made, feeds)["blamed"] is None
    for some in (feeds, feeds[1:]):
        found = look(made, broken, some)
        assert (found["blamed"]["operator"], found["blamed"]["module"]) == ("FULLY_CONNECTED", "outer")
        assert found["blamed"]["before_db"] > 100
        assert found["compared"] >= 10
    with pytest.raises(StepError, match="several runs"):
        look(made, broken, [{name: np.repeat(value, 3, axis=0) for name, value in feeds[0].items()}])
