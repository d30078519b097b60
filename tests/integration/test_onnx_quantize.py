"""onnx.quantize on real onnxruntime, and its tensorrt form in TensorRT-RTX's own parser and builder."""

from __future__ import annotations

import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import (
    FLOAT,
    FLOAT16,
    INT64,
    cnn,
    context,
    edited,
    encoder,
    feed_of,
    images,
    infer,
    made,
    model,
    node,
    operators,
    saved,
    sqnr_db,
    texts,
    value,
    weight,
)
from onnx_quantize_kit import BUILD, IMAGES, TEXTS, quantised, worst

from optkit.artifact import Artifact
from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx import ranges as onnx_ranges
from optkit.passes.onnx_fp16 import PASS as FP16
from optkit.passes.onnx_quantize import PASS
from optkit.testing import ListSamples

if TYPE_CHECKING:
    from optkit.plugin import Tensors


@pytest.fixture(scope="module")
def conv(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return saved(cnn(), tmp_path_factory.mktemp("cnn") / "source")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return saved(encoder(), tmp_path_factory.mktemp("encoder") / "source")


def integers(artifact: Artifact) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(artifact.path).graph.initializer}


# static


def test_static_convolutions(conv: Artifact, tmp_path: Path) -> None:
    result, notes = quantised(conv, tmp_path, IMAGES)
    # six activations carry a pair, the last product's output none; three weights and three biases need half of one
    assert notes["inserted"] == {"QuantizeLinear": 6, "DequantizeLinear": 12}
    assert (notes["samples"], notes["excluded"], notes["left_in_subgraphs"], notes["messages"]) == (24, [], 0, [])
    assert "Relu" not in operators(result)  # part of the range of what an asymmetric uint8 holds
    assert worst(conv, result, images) > 30
    held = integers(result)
    assert held["w0_quantized"].dtype == np.int8
    assert held["w0_scale"].shape == (16,)
    assert held["b0_quantized"].dtype == np.int32
    fused = optimised(result, tmp_path)
    assert {"QLinearConv", "QLinearAdd", "QGemm"} <= fused


def optimised(artifact: Artifact, folder: Path) -> set[str]:
    """The operators that onnxruntime makes of a model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(str(artifact.path), options, providers=["CPUExecutionProvider"])
    return {n.op_type for n in onnx.load(folder / "optimised.onnx").graph.node}


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "entropy"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_calibrations(conv: Artifact, tmp_path: Path, calibration: str, per_channel: bool) -> None:
    result, _ = quantised(conv, tmp_path, IMAGES, calibration=calibration, per_channel=per_channel)
    assert worst(conv, result, images) > (15 if calibration == "entropy" else 22)
    assert integers(result)["w1_scale"].shape == ((16,) if per_channel else ())


def test_static_transformer(text: Artifact, tmp_path: Path) -> None:
    result, notes = quantised(text, tmp_path, TEXTS)
    assert notes["left_float"] == {"without a constant weight": 2}  # the two products of attention
    assert notes["inserted"] == {"QuantizeLinear": 3, "DequantizeLinear": 8}
    assert worst(text, result, texts) > 25
    assert "MatMulIntegerToFloat" in optimised(result, tmp_path)
    residual = next(n for n in onnx.load(result.path).graph.node if n.name == "h")
    assert list(residual.input) == ["x", "a2"]  # not the quantised form that the products beside it take


@pytest.mark.parametrize(
    "options",
    [{"activation_type": "int8"}, {"symmetric": True}, {"weight_type": "uint8"}, {"reduce_range": True},
     {"activation_type": "int8", "symmetric": True, "weight_type": "uint8", "per_channel": False}],
)  # fmt: skip
def test_types_and_ranges(conv: Artifact, tmp_path: Path, options: dict[str, Any]) -> None:
    result, _ = quantised(conv, tmp_path, IMAGES, **options)
    assert worst(conv, result, images) > 20
    held = integers(result)
    low, high = held["w1_quantized"].min().astype(int), held["w1_quantized"].max().astype(int)
    zero = 128 if options.get("weight_type") == "uint8" else 0
    assert max(high - zero, zero - low) == (63 if options.get("reduce_range") else 127)


def test_excluded_nodes_stay_float(conv: Artifact, tmp_path: Path) -> None:
    result, notes = quantised(conv, tmp_path, IMAGES, exclude=["head", "conv1*"])
    assert notes["excluded"] == ["conv1", "head"]
    held = integers(result)
    assert {"w1", "w2", "w0_quantized"} <= set(held)
    assert {"w1_quantized", "w2_quantized", "w0"}.isdisjoint(held)


@pytest.mark.parametrize("narrow", ["conv0", "conv1"])
def test_onnxruntime_computes_excluded_layers_in_float_too(conv: Artifact, tmp_path: Path, narrow: str) -> None:
    """By itself it quantises a float weight between a DequantizeLinear and a QuantizeLinear."""
    everything, _ = quantised(conv, tmp_path, IMAGES)
    assert not {"Conv", "FusedConv"} & optimised(everything, tmp_path)
    result, notes = quantised(conv, tmp_path, IMAGES, exclude=[narrow])
    assert notes.get("kept_float_by_a_copy", 0) == (narrow == "conv1"), "the first reads no integers"
    assert {"Conv", "FusedConv"} & optimised(result, tmp_path)
    assert worst(conv, result, images) > 22


def test_a_large_bias_widens_its_weights_scale(tmp_path: Path) -> None:
    """int32 at the scale input x weight cannot hold the bias of a channel whose weights are almost 0."""
    proto = cnn()
    for tensor in proto.graph.initializer:
        if tensor.name == "w0":
            values = numpy_helper.to_array(tensor).copy()
            values[3] *= 1e-12
            tensor.CopyFrom(numpy_helper.from_array(values, "w0"))
        if tensor.name == "b0":
            tensor.CopyFrom(numpy_helper.from_array(np.full(16, 3.0, np.float32), "b0"))
    source = saved(proto, tmp_path / "source")
    result, _ = quantised(source, tmp_path, IMAGES)
    held = integers(result)
    np.testing.assert_allclose(held["b0_quantized"] * held["b0_quantized_scale"], 3.0, rtol=1e-3)
    assert worst(source, result, images) > 30


def test_a_shared_weight_and_constants_between(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "a"), node("Constant", "", "k", value=numpy_helper.from_array(weight(300))),
             node("Add", "a k", "b"), node("MatMul", "b w", "y", "")]  # fmt: skip
    proto = model(nodes, [value("x", FLOAT, ["batch", 300])], [value("y", FLOAT, ["batch", 300])],
                  {"w": weight(300, 300)})  # fmt: skip
    source = saved(proto, tmp_path / "source")
    data = ListSamples([{"x": weight(300, seed=s)} for s in range(8)])
    result, notes = quantised(source, tmp_path, data, op_types=["MatMul", "Add"])
    assert notes["op_types"] == ["Add", "MatMul"]
    assert sum(name.startswith("w_quantized") for name in integers(result)) == 1
    feed = {"x": weight(300, seed=99)[None]}
    assert sqnr_db(infer(source, feed)[0], infer(result, feed)[0]) > 30


@pytest.mark.parametrize("options", [
    {}, {"weight_type": "uint8"}, {"for": "tensorrt"}, {"correct_bias": "fast"}, {"correct_bias": "full"},
    {"method": "dynamic"}, {"method": "dynamic", "weight_type": "uint8"},
], ids=str)  # fmt: skip
def test_a_weight_of_several_matrices(tmp_path: Path, options: dict[str, Any]) -> None:
    """onnxruntime has no integer products for a scale per channel of it, so that it gets one scale."""
    nodes = [node("MatMul", "x w", "a"), node("Add", "a b", "y"), node("MatMul", "y v", "z")]
    rows = np.linspace(0.1, 3, 16, dtype=np.float32)
    constants = {"w": weight(4, 8, 16) * rows, "b": weight(16), "v": weight(1, 4, 16, 8)}
    proto = model(nodes, [value("x", FLOAT, ["batch", 4, 6, 8])], [value("z", FLOAT, ["batch", 4, 6, 8])], constants)
    source = saved(proto, tmp_path / "source")
    data = ListSamples([{"x": weight(4, 6, 8, seed=s)} for s in range(8)])
    result, _ = quantised(source, tmp_path, data, **options)
    assert [integers(result)[f"{name}_scale"].shape for name in "wv"] == [(), ()]
    feed = {"x": weight(4, 6, 8, seed=99)[None]}
    assert sqnr_db(infer(source, feed)[0], infer(result, feed)[0]) > 25


def test_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(cnn(), tmp_path / "source", external=True)
    whole, _ = quantised(source, tmp_path, IMAGES)
    monkeypatch.setattr(onnx_model, "EXTERNAL_FROM", 2048)
    split, _ = quantised(source, tmp_path, IMAGES)
    assert split.files == ("model.onnx", "model.onnx.data")
    np.testing.assert_array_equal(infer(whole, feed_of(images(1)[0]))[0], infer(split, feed_of(images(1)[0]))[0])


def test_a_float16_model_keeps_its_precision(conv: Artifact, tmp_path: Path) -> None:
    half, _, _ = made(FP16, conv, tmp_path)
    result, _ = quantised(half, tmp_path, IMAGES)
    held = integers(result)
    assert held["w1_quantized"].dtype == np.int8
    assert held["w1_scale"].dtype == np.float16
    assert worst(conv, result, images) > 25


def test_transposed_convolutions_and_groups(tmp_path: Path) -> None:
    nodes = [node("Conv", "x w0", "a", "depthwise", group=4), node("ConvTranspose", "a w1 b1", "b", "up"),
             node("ConvTranspose", "b w2", "y", "grouped", group=2)]  # fmt: skip
    constants = {"w0": weight(4, 1, 3, 3), "w1": weight(4, 6, 2, 2), "b1": weight(6), "w2": weight(6, 2, 2, 2)}
    proto = model(nodes, [value("x", FLOAT, ["batch", 4, 8, 8])], [value("y", FLOAT, None)], constants)
    source = saved(proto, tmp_path / "source")
    data = ListSamples([{"x": weight(4, 8, 8, seed=s)} for s in range(8)])
    result, _, complaints = made(PASS, source, tmp_path, data)
    assert complaints == []
    held = integers(result)
    assert [held[f"w{i}_scale"].shape for i in range(3)] == [(4,), (6,), ()]
    feed = {"x": weight(4, 8, 8, seed=99)[None]}
    assert sqnr_db(infer(source, feed)[0], infer(result, feed)[0]) > 25


# tensorrt


def test_tensorrt_takes_it(conv: Artifact, tmp_path: Path) -> None:
    result, notes = quantised(conv, tmp_path, IMAGES, **{"for": "tensorrt"})
    assert notes["op_types"] == ["Conv", "ConvTranspose", "Gemm", "MatMul"]
    assert notes["inserted"] == {"QuantizeLinear": 3, "DequantizeLinear": 6}
    assert worst(conv, result, images) > 30
    held = integers(result)
    assert not any(array.dtype in (np.int32, np.uint8) for array in held.values())
    assert not any(array.any() for name, array in held.items() if "zero_point" in name)
    half, _, _ = made(FP16, result, tmp_path)
    for one in (result, half):
        command = [sys.executable, "-c", BUILD, str(one.path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) > 1000


def test_tensorrt_gets_a_pair_for_each_consumer(text: Artifact, tmp_path: Path) -> None:
    result, _ = quantised(text, tmp_path, TEXTS, target="tensorrt")
    graph = onnx.load(result.path).graph
    for dequantise in (n for n in graph.node if n.op_type == "DequantizeLinear"):
        assert sum(dequantise.output[0] in n.input for n in graph.node) == 1
    assert worst(text, result, texts) > 20


# dynamic


def test_dynamic(text: Artifact, tmp_path: Path) -> None:
    result, notes = quantised(text, tmp_path, method="dynamic")
    assert notes["inserted"] == {"DynamicQuantizeLinear": 3, "MatMulInteger": 5}
    assert notes["left_float"] == {"without a constant weight": 2}
    assert worst(text, result, texts) > 25
    assert {"DynamicQuantizeMatMul", "MatMulIntegerToFloat"} & optimised(result, tmp_path)
    coarse, _ = quantised(text, tmp_path, method="dynamic", per_channel=False, weight_type="uint8", reduce_range=True)
    assert worst(text, coarse, texts) > 20


def test_dynamic_tables(text: Artifact, tmp_path: Path) -> None:
    result, notes = quantised(text, tmp_path, method="dynamic", op_types=["Gather", "MatMul"])
    assert notes["inserted"]["DequantizeLinear"] == 1
    assert integers(result)["table_quantized"].dtype == np.int8
    assert worst(text, result, texts) > 25


@pytest.mark.parametrize("transposed", [0, 1])
def test_dynamic_gemm(tmp_path: Path, transposed: int) -> None:
    table = weight(12, 8) if transposed else weight(8, 12)
    nodes = [node("Gemm", "x w b", "h", transB=transposed, alpha=0.5), node("Gemm", "h v", "i", transB=1),
             node("Gemm", "i u b", "y", "odd", beta=2.0), node("MatMul", "y y3", "z")]  # fmt: skip
    constants = {"w": table, "b": weight(12), "v": weight(12, 12), "u": weight(12, 12, seed=2), "y3": weight(2, 12, 5)}
    proto = model(nodes, [value("x", FLOAT, ["batch", 8])], [value("z", FLOAT, [2, "batch", 5])], constants)
    source = saved(proto, tmp_path / "source")
    result, notes = quantised(source, tmp_path, method="dynamic")
    assert notes["left_float"] == {"with transA or beta": 1}
    feed = {"x": weight(4, 8)}
    assert sqnr_db(infer(source, feed)[0], infer(result, feed)[0]) > 30


# data


class Counting:
    """Generated samples that count how many of them are alive at once."""

    def __init__(self, count: int) -> None:
        self.count, self.alive, self.most = count, 0, 0
        self.batches: list[int] = []

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensors]:
        raise AssertionError("samples are to be taken in batches")

    def feeds(self, batch: int) -> Iterator[Tensors]:
        for start in range(0, self.count, batch):
            size = min(batch, self.count - start)
            array = np.random.default_rng(start).standard_normal((size, 3, 16, 16)).astype(np.float32)
            self.alive += size
            self.most = max(self.most, self.alive)
            self.batches.append(size)
            weakref.finalize(array, self._gone, size)
            yield {"image": array}
            del array

    def _gone(self, size: int) -> None:
        self.alive -= size


@pytest.mark.parametrize(("calibration", "batch"), [("minmax", 16), ("percentile", 4), ("entropy", 4)])
def test_samples_are_streamed(conv: Artifact, tmp_path: Path, calibration: str, batch: int) -> None:
    few, many = Counting(3 * batch), Counting(40 * batch + 1)
    for data in (few, many):
        _, notes = quantised(conv, tmp_path, data, calibration=calibration)
        assert notes["samples"] == data.count == sum(data.batches)
    assert few.most == many.most == 2 * batch  # the batch in use, and the next one being made
    assert set(few.batches) == {batch}


def test_samples_keep_their_own_length(text: Artifact, tmp_path: Path) -> None:
    shapes = []

    class Spy(ListSamples):
        def feeds(self, batch: int) -> Iterator[Tensors]:
            for feed in super().feeds(batch):
                shapes.append(feed["ids"].shape)
                yield feed

    quantised(text, tmp_path, Spy(texts(6)))
    assert shapes == [(1, len(sample["ids"])) for sample in texts(6)]


def test_a_fixed_batch_is_filled_up(tmp_path: Path) -> None:
    proto = cnn()
    for side in (proto.graph.input, proto.graph.output):
        side[0].type.tensor_type.shape.dim[0].dim_value = 4
    source = saved(proto, tmp_path / "source")
    data = Counting(10)
    _, notes = quantised(source, tmp_path, data)
    assert (data.batches, notes["samples"]) == ([4, 4, 2], 10)


def test_progress_is_told(conv: Artifact, tmp_path: Path) -> None:
    said: list[tuple[str, float | None]] = []
    (tmp_path / "out").mkdir()
    surroundings = context(tmp_path, IMAGES, progress=lambda text, fraction: said.append((text, fraction)))
    PASS.run(conv, tmp_path / "out", PASS.options(), surroundings)
    assert said == [("calibrating on 16 of 24 samples", 16 / 24), ("calibrating on 24 of 24 samples", 1.0),
                    ("quantising weights", None)]  # fmt: skip


@pytest.mark.parametrize("fold", [1, 1000])
def test_histograms_find_the_same_range_in_any_order(fold: int) -> None:
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal(20_000).astype(np.float32) * scale for scale in (1e-3, 1.0, 0.1, 30.0)]
    ways = []
    for order in (parts, parts[::-1]):
        histogram = onnx_ranges.Histogram("t")
        histogram.add(np.zeros(100, np.float32))
        for part in order:
            for piece in np.array_split(part, fold):
                histogram.add(piece)
        ways.append((histogram.percentile(99.0), histogram.percentile(100.0), histogram.entropy()))
    for one, other in zip(*ways, strict=True):
        np.testing.assert_allclose(one, other, rtol=0.05)
    everything = np.concatenate([*parts, np.zeros(100, np.float32)])
    np.testing.assert_allclose(ways[0][0], np.percentile(everything, [0.5, 99.5]), rtol=0.05)
    np.testing.assert_allclose(ways[0][1], (everything.min(), everything.max()), rtol=1e-6)


def test_entropy_cuts_off_outliers_and_keeps_what_matters() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal(100_000).astype(np.float32)
    histogram = onnx_ranges.Histogram("t")
    histogram.add(values)
    low, high = histogram.entropy()
    assert 3 < -low < 4.8
    assert 3 < high < 4.8
    histogram.add(np.float32([1000.0]))
    assert histogram.entropy()[1] < 100
    empty = onnx_ranges.Histogram("t")
    empty.add(np.zeros((0, 3), np.float32))
    empty.add(np.zeros(3, np.float32))
    assert (empty.entropy(), empty.percentile(99.9)) == ((0.0, 0.0), (0.0, 0.0))


@pytest.mark.parametrize("shape", ["normal", "relu", "heavy", "few", "narrow", "far"])
def test_entropy_is_the_divergence_bin_by_bin(shape: str) -> None:
    """Running sums give what the definition does: each threshold's two distributions, written out."""
    rng = np.random.default_rng(3)
    values = {
        "normal": rng.standard_normal(20_000), "relu": np.maximum(rng.standard_normal(20_000), 0),
        "heavy": rng.standard_t(2, 20_000), "few": rng.random(5), "narrow": np.full(50, 0.01),
        "far": np.append(rng.standard_normal(5_000), 1e5),
    }[shape]  # fmt: skip
    seen = onnx_ranges.Histogram("t")
    seen.add(np.append(values, 0 if shape == "few" else -1).astype(np.float32))
    bins = seen.counts[2048:] + seen.counts[:2048][::-1]
    bins[0] = bins[1]
    best, threshold = np.inf, 2048
    for end in range(128, 2049, 8):
        clipped, levels = bins[:end].astype(float), np.zeros(end)
        clipped[-1] += bins[end:].sum()
        for part in np.split(np.arange(end), np.arange(1, 128) * end // 128):
            there = part[bins[part] > 0]
            levels[there] = bins[there].mean() if there.size else 0
        if levels.any():
            p, q = clipped / clipped.sum(), np.maximum(levels / levels.sum(), 1 / bins.sum())
            divergence = float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))
            if divergence < best - 1e-12:
                best, threshold = divergence, end
    limit = seen.reach * threshold / 2048
    assert seen.entropy() == (max(seen.low, -limit), min(seen.high, limit))


# failures


def test_nodes_in_subgraphs_are_counted(tmp_path: Path) -> None:
    branches = [helper.make_graph([node("MatMul", "h w", name)], name, [], [value(name, FLOAT, ["batch", 8])])
                for name in ("then", "else")]  # fmt: skip
    nodes = [node("MatMul", "x w", "h"), node("If", "go", "y", then_branch=branches[0], else_branch=branches[1])]
    inputs = [value("x", FLOAT, ["batch", 8]), value("go", TensorProto.BOOL, [])]
    source = saved(model(nodes, inputs, [value("y", FLOAT, ["batch", 8])], {"w": weight(8, 8)}), tmp_path / "source")
    result, notes = quantised(source, tmp_path, method="dynamic")
    assert notes["left_in_subgraphs"] == 2
    feed = {"x": weight(2, 8), "go": np.array(True)}
    assert sqnr_db(infer(source, feed)[0], infer(result, feed)[0]) > 30


def test_confirm_can_fail(conv: Artifact, text: Artifact, tmp_path: Path) -> None:
    def complaints(source: Artifact, wrong: Artifact, **options: Any) -> str:
        assert PASS.confirm is not None
        return "; ".join(PASS.confirm(source, wrong, PASS.options(**options), context(tmp_path)))

    found = complaints(conv, conv)
    assert "the graph has no QuantizeLinear" in found
    assert "the weight of Conv conv0 is float, not int8; the input of Conv conv0 is not quantised" in found
    assert complaints(text, text, method="dynamic") == "the graph has no MatMulInteger"
    result, _ = quantised(conv, tmp_path, IMAGES)
    assert complaints(conv, result, exclude=["conv0"]) == "Conv conv0 was excluded and is quantised"
    assert "image_QuantizeLinear gives uint8, not int8" in complaints(conv, result, activation_type="int8")
    assert "the weight of Conv conv1 is int8, not uint8" in complaints(conv, result, weight_type="uint8")
    found = complaints(conv, result, target="tensorrt")
    assert "has a zero point of type uint8 that is not int8 0" in found
    assert "has a zero point of type int32 that is not int8 0" in found
    engine, _ = quantised(conv, tmp_path, IMAGES, target="tensorrt")

    def shift(proto: onnx.ModelProto) -> None:
        for tensor in proto.graph.initializer:
            if tensor.name == "image_zero_point":
                tensor.CopyFrom(numpy_helper.from_array(np.array(3, np.int8), tensor.name))

    found = complaints(conv, edited(engine, tmp_path / "shifted", shift), target="tensorrt")
    assert "QuantizeLinear image_QuantizeLinear has a zero point of type int8 that is not int8 0" in found
    dynamic, _ = quantised(text, tmp_path, method="dynamic")
    found = complaints(text, dynamic, method="dynamic", weight_type="uint8", exclude=["up_proj"])
    assert "the weight of MatMulInteger q_proj_quant is int8, not uint8" in found
    assert "MatMul up_proj was excluded and is quantised" in found


def test_integers_are_left_alone(tmp_path: Path) -> None:
    nodes = [node("MatMul", "i j", "k"), node("Cast", "k", "f", to=FLOAT), node("MatMul", "f w", "y")]
    constants = {"j": np.ones((8, 8), np.int32), "w": weight(8, 8)}
    proto = model(nodes, [value("i", TensorProto.INT32, ["batch", 8])], [value("y", FLOAT, ["batch", 8])], constants)
    source = saved(proto, tmp_path / "source")
    data = ListSamples([{"i": np.arange(8, dtype=np.int32)}])
    _, notes = quantised(source, tmp_path, data)
    assert notes["left_float"] == {"not floating point": 1}
    _, notes = quantised(source, tmp_path, method="dynamic")
    assert notes["left_float"] == {"not float32": 1}
    assert (FLOAT16, INT64) == (TensorProto.FLOAT16, TensorProto.INT64)
