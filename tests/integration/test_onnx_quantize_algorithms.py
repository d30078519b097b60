"""onnx.quantize's algorithms against the same setting without them, on models where they matter, on onnxruntime."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx_models import (
    FLOAT,
    artifact,
    cnn,
    context,
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
from onnx_quantize_kit import BUILD, worst
from pydantic import ValidationError

from optkit.artifact import Artifact
from optkit.errors import DataError, StepError
from optkit.formats.onnx import balance as onnx_balance
from optkit.formats.onnx import ranges as onnx_ranges
from optkit.formats.onnx import smooth as onnx_smooth
from optkit.formats.onnx.quantize_job import job_of
from optkit.passes.onnx_fp16 import PASS as FP16
from optkit.passes.onnx_quantize import PASS
from optkit.passes.onnx_to_openvino import PASS as TO_OPENVINO
from optkit.testing import ListSamples

if TYPE_CHECKING:
    from optkit.plugin import Tensors

    Draw = Callable[..., list[Tensors]]


def mobile(limit: float | None = None) -> onnx.ModelProto:
    """A convolution, a depthwise and a pointwise one, whose channels differ in range by up to 1000: `(batch, 10)`.

    limit: that of a Clip in place of each ReLU.
    """
    rng = np.random.default_rng(0)
    first, second = (10.0 ** rng.uniform(-1.5, 1.5, 16) for _ in range(2))
    nodes = [
        node("Conv", "image w0 b0", "c0", "conv", pads=[1, 1, 1, 1]), node("Relu", "c0", "r0"),
        node("Conv", "r0 w1 b1", "c1", "depthwise", group=16, pads=[1, 1, 1, 1]), node("Relu", "c1", "r1"),
        node("Conv", "r1 w2", "c2", "pointwise"), node("GlobalAveragePool", "c2", "pool"),
        node("Flatten", "pool", "flat"), node("Gemm", "flat w3 b3", "logits", "head", transB=1),
    ]  # fmt: skip
    constants = {
        "w0": weight(16, 3, 3, 3) * first[:, None, None, None], "b0": weight(16) * first,
        "w1": weight(16, 1, 3, 3, seed=3) * (second / first)[:, None, None, None], "b1": weight(16, seed=4) * second,
        "w2": weight(8, 16, 1, 1) / second[None, :, None, None], "w3": weight(10, 8), "b3": weight(10),
    }  # fmt: skip
    inputs = [value("image", FLOAT, ["batch", 3, 16, 16])]
    floats = {name: array.astype(np.float32) for name, array in constants.items()}
    if limit is not None:
        floats |= {"zero": np.float32(0), "limit": np.float32(limit)}
        for i in (1, 3):
            nodes[i] = node("Clip", f"{nodes[i].input[0]} zero limit", nodes[i].output[0])
    return model(nodes, inputs, [value("logits", FLOAT, ["batch", 10])], floats)


def block(residual: bool = False) -> onnx.ModelProto:
    """A normalised MLP block, `(batch, length, 32)`, two of whose normalised channels are 60 times the others.

    residual: whether the normalised tensor is also added to the output.
    """
    gamma, up = np.ones(32, np.float32), weight(32, 64)
    gamma[[3, 17]], up[[3, 17]] = 60, up[[3, 17]] / 60
    nodes = [
        node("LayerNormalization", "x gamma beta", "n", "norm"), node("MatMul", "n up", "h0", "up_proj"),
        node("Add", "h0 b", "h1"), node("Relu", "h1", "h"), node("MatMul", "h down", "o", "down_proj"),
        node("Add", "o n" if residual else "o x", "y"),
    ]  # fmt: skip
    constants = {"gamma": gamma, "beta": weight(32), "up": up, "b": weight(64), "down": weight(64, 32)}
    shape = ["batch", "length", 32]
    return model(nodes, [value("x", FLOAT, shape)], [value("y", FLOAT, shape)], constants)


def sequences(count: int, seed: int = 0) -> list[Tensors]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((9, 32)).astype(np.float32)} for _ in range(count)]


def bright(count: int, seed: int = 0) -> list[Tensors]:
    """Images of mean 2: what rounding adds to a layer's output does not cancel."""
    return [{"image": sample["image"] + np.float32(2)} for sample in images(count, seed)]


@pytest.fixture
def gained(tmp_path: Path) -> Callable[..., tuple[float, float, Any, Artifact]]:
    """dB without and with some options, the notes with them, and the artifact."""

    def compare(proto: onnx.ModelProto, draw: Draw, extra: dict[str, Any], **common: Any) -> Any:
        source = saved(proto, tmp_path / "source")
        found = []
        for options in (common, common | extra):
            result, notes, complaints = made(PASS, source, tmp_path, ListSamples(draw(48)), **options)
            assert complaints == []
            assert result.signature == source.signature
            onnx.checker.check_model(str(result.path), full_check=True)
            found.append(worst(source, result, draw))
        return (*found, notes, result)

    return compare


# cross-layer equalisation


@pytest.mark.parametrize("options", [{"per_channel": False}, {}, {"for": "tensorrt"}])
def test_equalisation(gained: Any, options: dict[str, Any]) -> None:
    without, with_it, notes, _ = gained(mobile(), images, {"equalise": True}, **options)
    assert without < 10
    assert with_it > 33
    assert (notes["equalised"], notes["not_equalised"]) == (3, {"used more than once": 1})


def test_equalisation_below_a_clip(gained: Any, tmp_path: Path) -> None:
    """Channels that reach the limit on data stay, the others move; the Clip is there as it was."""
    proto = mobile(limit=20.0)
    without, with_it, notes, _ = gained(proto, images, {"equalise": True}, per_channel=False)
    assert without < 12
    assert with_it > without + 10
    assert (notes["equalised"], notes["equalised_below_clips"]) == (3, 2)
    (tmp_path / "equal").mkdir()
    source, equal, _ = balanced(proto, tmp_path / "equal", images, equalise=True)
    assert operators(equal) == operators(source)
    feeds = [feed_of(sample) for sample in images(16)]
    assert min(sqnr_db(infer(source, feed)[0], infer(equal, feed)[0]) for feed in feeds) > 100, "the same on the data"
    one, other = ({t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(a.path).graph.initializer}
                  for a in (source, equal))  # fmt: skip
    still = [bool((one["b0"][c] == other["b0"][c]).all()) for c in range(16)]
    assert 1 <= sum(still) < 16


def balanced(proto: onnx.ModelProto, folder: Path, draw: Draw, **options: Any) -> tuple[Artifact, Artifact, Any]:
    """A model, what is made of it before anything is quantised, and the notes."""
    source = saved(proto, folder / "source")
    surroundings = context(folder, ListSamples(draw(16)))
    result, notes = onnx_balance.balanced(source, PASS.options(**options), surroundings)
    return source, artifact(result.path.parent), notes


@pytest.mark.parametrize(
    ("proto", "draw", "options"),
    [(mobile(), images, {"equalise": True, "correct_bias": "fast"}),
     (block(), sequences, {"smooth_quant": 0.5, "equalise": True, "correct_bias": "full"}),
     (encoder(), texts, {"smooth_quant": 0.8, "correct_bias": "fast"})],
)  # fmt: skip
def test_the_balanced_model_is_the_same_function(tmp_path: Path, proto: Any, draw: Draw, options: Any) -> None:
    source, result, _ = balanced(proto, tmp_path, draw, **options)
    assert result.path != source.path
    assert worst(source, result, draw) > 100


def test_equalised_channels_have_like_ranges(tmp_path: Path) -> None:
    source, result, _ = balanced(mobile(), tmp_path, images, equalise=True)

    def spread(one: Artifact) -> float:
        held = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(one.path).graph.initializer}
        rows = np.abs(held["w0"]).reshape(16, -1).max(axis=1)
        return float(rows.max() / rows.min())

    assert spread(source) > 100
    assert spread(result) < 10


def test_layers_that_cannot_be_equalised(tmp_path: Path) -> None:
    nodes = [node("Conv", "x w0", "a"), node("Clip", "a low high", "b"), node("Conv", "b w1", "c"),
             node("Sigmoid", "c", "d"), node("Conv", "d w2", "e"), node("Relu", "e", "f"),
             node("Conv", "f w2", "y")]  # fmt: skip
    constants = {"w0": weight(4, 3, 3, 3), "low": 0.0, "high": 6.0, "w1": weight(4, 4, 3, 3), "w2": weight(4, 4, 1, 1)}
    proto = model(nodes, [value("x", FLOAT, ["batch", 3, 8, 8])], [value("y", FLOAT, None)], constants)
    source = saved(proto, tmp_path / "source")
    data = ListSamples([{"x": np.full((3, 8, 8), sign * 1e4, np.float32)} for sign in (-1, 1)])
    said = r"nothing to equalise: .*1 followed by Sigmoid; 1 followed by Clip, at whose limit every channel is"
    with pytest.raises(StepError, match=said) as caught:
        PASS.run(source, tmp_path, PASS.options(equalise=True), context(tmp_path, data))
    assert caught.value.subject == "with.equalise"


# SmoothQuant


@pytest.mark.parametrize("options", [{}, {"for": "tensorrt"}, {"method": "dynamic"}])
def test_smoothing(gained: Any, options: dict[str, Any]) -> None:
    without, with_it, notes, result = gained(block(), sequences, {"smooth_quant": 0.5}, **options)
    assert without < 16
    assert with_it > 35
    assert notes["smoothed"] == 2
    divisions = sum(
        "smoothed" in name for n in onnx.load(result.path).graph.node if n.op_type == "Mul" for name in n.output
    )
    assert divisions == 1  # the other went into the normalisation


def test_a_shared_input_is_divided_beside_its_other_use(gained: Any) -> None:
    without, with_it, notes, _ = gained(block(residual=True), sequences, {"smooth_quant": 0.5})
    assert notes["smoothed"] == 2
    assert with_it > without + 10


def test_nothing_to_smooth(tmp_path: Path) -> None:
    source = saved(mobile(), tmp_path / "source")
    with pytest.raises(StepError, match="nothing to smooth") as caught:
        PASS.run(source, tmp_path, PASS.options(smooth_quant=0.5, exclude=["head"]), context(tmp_path, ListSamples([])))
    assert caught.value.subject == "with.smooth_quant"


# bias correction


@pytest.mark.parametrize("options", [{}, {"per_channel": False, "reduce_range": True}])
@pytest.mark.parametrize("way", ["fast", "full"])
def test_bias_correction(gained: Any, way: str, options: dict[str, Any]) -> None:
    without, with_it, notes, _ = gained(cnn(), bright, {"correct_bias": way}, **options)
    assert with_it > without + 5
    assert (notes["biases_added"], notes["biases_corrected"]) == (0, 3)


def test_full_correction_sees_what_is_clipped(gained: Any, tmp_path: Path) -> None:
    fast, full, _, _ = gained(cnn(), images, {"correct_bias": "full"}, calibration="percentile", percentile=97.0,
                              correct_bias="fast")  # fmt: skip
    assert full > fast + 4


def test_corrected_outputs_have_the_mean_of_the_float_model(tmp_path: Path) -> None:
    """Of a product without a bias: it is given one."""
    table = np.abs(weight(32, 32)) + np.float32(0.2)
    proto = model([node("MatMul", "x w", "y", "product")], [value("x", FLOAT, ["batch", "length", 32])],
                  [value("y", FLOAT, ["batch", "length", 32])], {"w": table})  # fmt: skip
    source = saved(proto, tmp_path / "source")
    samples = [{"x": sample["x"] + np.float32(3)} for sample in sequences(24)]
    off = {}
    for way in (None, "fast", "full"):
        result, notes, complaints = made(PASS, source, tmp_path, ListSamples(samples), correct_bias=way)
        assert complaints == []
        assert notes.get("biases_added", 0) == (way is not None)
        shifts = [infer(result, feed_of(s))[0] - infer(source, feed_of(s))[0] for s in samples]
        off[way] = float(np.abs(np.concatenate(shifts).mean(axis=(0, 1))).max())
    assert off["fast"] < off[None] / 3
    assert off["full"] < off[None] / 10


def test_a_budget_with_correction(tmp_path: Path) -> None:
    source = saved(mobile(), tmp_path / "source")
    folder = tmp_path / "out"
    folder.mkdir()
    options = PASS.options(equalise=True, correct_bias="fast", rounding="gptq", budget=["cosine >= 0.9"])
    notes = PASS.run(source, folder, options, context(tmp_path, ListSamples(images(16))))
    assert (notes["budget"]["kept"], notes["equalised"]) == ([], 3)


# rounding and ranges


@pytest.mark.parametrize("options", [{}, {"per_channel": False, "reduce_range": True}])
def test_gptq_rounding(gained: Any, options: dict[str, Any]) -> None:
    without, with_it, notes, _ = gained(cnn(), images, {"rounding": "gptq"}, **options)
    assert with_it > without + 4
    assert notes["samples"] == 48


def test_gptq_rounding_of_dynamic_products(gained: Any) -> None:
    def related(count: int, seed: int = 0) -> list[Tensors]:
        mix = np.random.default_rng(99).standard_normal((3, 32)).astype(np.float32)
        return [{"x": sample["x"][:, :3] @ mix} for sample in sequences(count, seed)]

    options = {"method": "dynamic", "reduce_range": True, "per_channel": False}
    without, with_it, _, _ = gained(block(), related, {"rounding": "gptq"}, **options)
    assert with_it > without


def test_mse_ranges_have_the_least_error() -> None:
    """On heavy tails, against the other rules and what a search over real quantisation finds."""
    values = np.random.default_rng(0).standard_t(3, 100_000).astype(np.float32)
    values[0] = 3000  # one glitch
    histogram = onnx_ranges.Histogram("t")
    histogram.add(values)

    def off(ends: tuple[float, float]) -> float:
        low, high = ends
        step = (high - low) / 255
        return float(np.mean((np.clip(np.rint((values - low) / step), 0, 255) * step + low - values) ** 2))

    least = off(onnx_ranges.Rule("mse").range(histogram))
    others = [onnx_ranges.Rule(method).range(histogram) for method in ("minmax", "percentile", "entropy")]
    assert all(least < off(ends) for ends in others)
    assert least < 1.05 * min(off((-cut, up)) for cut in np.geomspace(5, 40, 12) for up in np.geomspace(5, 3000, 24))
    low, high = onnx_ranges.Rule("mse", symmetric=True).range(histogram)
    assert off((-max(-low, high), max(-low, high))) < off((-3000, 3000))


def test_mse_ranges_of_heavy_tails(tmp_path: Path) -> None:
    """Against the extremes, over all samples: the few that are clipped are worse off, as they should be."""

    def tailed(count: int, seed: int) -> list[Tensors]:
        rng = np.random.default_rng(seed)
        return [{"x": rng.standard_t(3, (9, 32)).astype(np.float32)} for _ in range(count)]

    shape = ["batch", "length", 32]
    proto = model([node("MatMul", "x w", "y")], [value("x", FLOAT, shape)], [value("y", FLOAT, shape)],
                  {"w": weight(32, 32)})  # fmt: skip
    source = saved(proto, tmp_path / "source")
    feed = {"x": np.stack([sample["x"] for sample in tailed(500, seed=7)])}
    found = {}
    for way in ("minmax", "mse"):
        result, _, _ = made(PASS, source, tmp_path, ListSamples(tailed(500, seed=0)), calibration=way)
        found[way] = sqnr_db(infer(source, feed)[0], infer(result, feed)[0])
    assert found["mse"] > found["minmax"] + 1.5


def test_float16_models_have_histograms_too(tmp_path: Path) -> None:
    source = saved(cnn(), tmp_path / "source")
    half, _, _ = made(FP16, source, tmp_path)
    for options in ({"calibration": "mse", "rounding": "gptq"}, {"calibration": "percentile", "correct_bias": "full"}):
        result, _, complaints = made(PASS, half, tmp_path, ListSamples(images(24)), **options)
        assert complaints == []
        assert worst(source, result, images) > 28


# mixed int8 and float16


@pytest.mark.parametrize(
    ("proto", "draw", "options"),
    [(cnn(), images, {"correct_bias": "fast"}), (block(), sequences, {"smooth_quant": 0.5, "correct_bias": "full"}),
     (encoder(), texts, {"method": "dynamic"})],
)  # fmt: skip
def test_float16_over_int8(tmp_path: Path, proto: Any, draw: Draw, options: dict[str, Any]) -> None:
    source = saved(proto, tmp_path / "source")
    whole, _, _ = made(PASS, source, tmp_path, ListSamples(draw(32)), **options)
    mixed, _, complaints = made(FP16, whole, tmp_path)
    assert complaints == []
    held = [onnx.helper.tensor_dtype_to_np_dtype(t.data_type) for t in onnx.load(mixed.path).graph.initializer]
    assert {np.dtype(np.int8), np.dtype(np.float16)} <= set(held)
    assert worst(source, mixed, draw) > worst(source, whole, draw) - 2
    import openvino

    (tmp_path / "ir").mkdir()
    TO_OPENVINO.run(mixed, tmp_path / "ir", TO_OPENVINO.options(), context(tmp_path))
    compiled = openvino.Core().compile_model(str(tmp_path / "ir" / "model.xml"), "CPU",
                                             {"INFERENCE_PRECISION_HINT": "f32"})  # fmt: skip
    feed = feed_of(draw(1, seed=7)[0])
    assert sqnr_db(infer(source, feed)[0], compiled(feed)[compiled.outputs[0]]) > 30


def test_tensorrt_takes_all_of_it(tmp_path: Path) -> None:
    source = saved(mobile(), tmp_path / "source")
    options = {"for": "tensorrt", "equalise": True, "correct_bias": "full", "rounding": "gptq", "calibration": "mse"}
    result, _, complaints = made(PASS, source, tmp_path, ListSamples(images(24)), **options)
    assert complaints == []
    done = subprocess.run([sys.executable, "-c", BUILD, str(result.path)], capture_output=True, text=True, check=False,
                          timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1000


# data


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"method": "dynamic", "correct_bias": "fast"}, "correct_bias goes with method: static"),
        ({"correct_bias": "full", "budget": ["cosine >= 0.9"]}, "measured on the whole model"),
        ({"smooth_quant": 1.5}, "less than or equal to 1"),
        ({"rounding": "adaround"}, "'nearest' or 'gptq'"),
        ({"percentile": 99.0, "calibration": "mse"}, "percentile goes with calibration: percentile"),
    ],
)
def test_contradictions(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        PASS.options(**options)


def test_what_learns_needs_data(tmp_path: Path) -> None:
    source = saved(block(), tmp_path / "source")
    for options in ({"rounding": "gptq"}, {"smooth_quant": 0.5}):
        dynamic = PASS.options(method="dynamic", **options)
        assert PASS.wants_data(dynamic) is True
        with pytest.raises(DataError, match="learn from data, and the step has none"):
            PASS.run(source, tmp_path, dynamic, context(tmp_path))
        with pytest.raises(DataError, match="no samples"):
            PASS.run(source, tmp_path, dynamic, context(tmp_path, ListSamples([])))
    assert operators(source)["MatMul"] == 2


def test_weights_that_control_flow_also_uses_are_left_alone(tmp_path: Path) -> None:
    """Neither a weight that a branch reads nor a value that goes into a product's bias may change."""
    branches = [
        onnx.helper.make_graph([node("MatMul", "x w0", name)], name, [], [value(name, FLOAT, ["batch", 8])])
        for name in ("then", "else")
    ]
    nodes = [
        node("Gemm", "x w0", "a"), node("Relu", "a", "r"), node("Gemm", "r w1 a2", "b"), node("Gemm", "x w3", "a2"),
        node("If", "go", "c", then_branch=branches[0], else_branch=branches[1]), node("Add", "b c", "y"),
    ]  # fmt: skip
    nodes[2], nodes[3] = nodes[3], nodes[2]
    inputs = [value("x", FLOAT, ["batch", 8]), value("go", onnx.TensorProto.BOOL, [])]
    constants = {f"w{i}": weight(8, 8, seed=i) * np.float32(4) ** np.arange(8, dtype=np.float32) for i in (0, 1, 3)}
    proto = model(nodes, inputs, [value("y", FLOAT, ["batch", 8])], constants)
    source = saved(proto, tmp_path / "source")
    data = ListSamples([{"x": weight(8, seed=s), "go": np.array(True)} for s in range(4)])
    with pytest.raises(StepError, match="nothing to equalise"):
        onnx_balance.balanced(source, PASS.options(equalise=True), context(tmp_path, data))
    job = job_of(source, PASS.options())
    smoothed = {n.name for group in onnx_smooth.groups(job.rewrite, job.targets) for n in group.nodes}
    assert smoothed == {"b", "a2"}  # whose weights are their own
    result, notes = onnx_balance.balanced(source, PASS.options(correct_bias="fast"), context(tmp_path, data))
    assert notes["biases_added"] == 2  # not of the one whose bias is computed
    feed = {"x": weight(3, 8, seed=9), "go": np.array(True)}
    assert sqnr_db(infer(source, feed)[0], infer(result.path, feed)[0]) > 100
