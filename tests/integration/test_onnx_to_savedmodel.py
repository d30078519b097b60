"""onnx.to_savedmodel: TensorFlow's own operators compute what ONNX's do, over ONNX's own examples of each."""

from __future__ import annotations

import functools
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import FLOAT, INT64, cnn, context, encoder, infer, made, model, node, saved, value, weight

from optkit.artifact import Artifact
from optkit.errors import StepError
from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx_tf import all_operators as onnx_tf_all
from optkit.formats.tensorflow import core as tf_core
from optkit.formats.tensorflow import savedmodel
from optkit.models.signatures import promised
from optkit.passes.onnx_quantize import PASS as QUANTIZE
from optkit.passes.onnx_to_savedmodel import PASS
from optkit.plugin import Options
from optkit.registry import route
from optkit.runners.savedmodel_runner import RUNNER
from optkit.tasks.making import reread
from optkit.testing import ListSamples

FAMILIES = (
    "add_bcast", "argmax_keepdims", "averagepool_2d", "averagepool_1d", "averagepool_3d_default", "basic_conv",
    "batchnorm_example", "clip", "concat_3d", "constantofshape", "conv_with", "convtranspose", "cumsum_2d",
    "depthtospace", "dequantizelinear", "div", "dynamicquantizelinear", "einsum", "elu", "erf", "expand", "flatten",
    "gather", "gelu", "gemm", "group_normalization", "gru", "hardsigmoid", "hardswish", "if", "instancenorm",
    "layer_normalization_4d", "leakyrelu", "lstm", "matmul", "matmulinteger", "max_", "maxpool_2d", "mean", "mish",
    "mod_", "nonzero", "onehot", "constant_pad", "edge_pad", "reflect_pad", "pow", "prelu", "quantizelinear", "range",
    "reduce_mean", "reduce_l2", "reshape", "resize", "rnn", "scatter", "scatternd", "selu", "shape", "simple_rnn",
    "slice", "softmax", "spacetodepth", "split", "squeeze", "tile", "top_k", "transpose", "tril", "triu", "unsqueeze",
    "upsample", "where",
)  # fmt: skip


@functools.cache
def cases() -> list[Any]:
    """ONNX's examples of the operators, of types that TensorFlow has, without the expansions of functions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        found = collect_testcases(None)
    return [c for c in found if c.name.startswith(tuple(f"test_{name}" for name in FAMILIES)) and _usable(c)]


def _usable(case: Any) -> bool:
    arrays = [a for given, wanted in case.data_sets for a in (*given, *wanted)]
    plain = all(isinstance(a, np.ndarray) and a.dtype.kind in "fiub" and a.dtype.name != "float16" for a in arrays)
    return plain and not any(word in case.name for word in ("expanded", "training", "fp16", "bf16"))


def answer(case: Any, given: Any) -> list[np.ndarray]:
    tf = tf_core.load()
    graph = case.model.graph
    build = onnx_tf_all.Build(tf, onnx_model.opset(case.model))
    feeds = dict(zip([i.name for i in graph.input], given, strict=False))
    # What describes a shape is a constant in the models that people have; the first input always comes in.
    fixed = {name: feeds[name] for name in list(feeds)[1:] if feeds[name].dtype.kind in "iu" or name in (
        "scales", "roi", "w", "W", "R", "B", "max", "min", "const_value")}  # fmt: skip
    open_ = {name: array for name, array in feeds.items() if name not in fixed}

    def call(*tensors: Any) -> Any:
        values = build.run(graph, {**fixed, **dict(zip(open_, tensors, strict=True))})
        return [build.tensor(values[o.name]) for o in graph.output]

    def spec(array: np.ndarray) -> Any:
        whole = case.name.startswith(("test_convtranspose", "test_basic_conv", "test_conv_with", "test_quantizelinear"))
        return tf.TensorSpec(array.shape if array.ndim < 2 or whole else (None, *array.shape[1:]), array.dtype)

    function = tf.function(call, autograph=False, input_signature=[spec(a) for a in open_.values()])
    return [np.asarray(t) for t in function(*[tf.constant(a) for a in open_.values()])]


def test_operators_answer_as_onnx_says() -> None:
    wrong, refused, right = [], [], 0
    with tf_core.quiet():
        for case in cases():
            for given, wanted in case.data_sets:
                try:
                    got = answer(case, given)
                except StepError as error:
                    refused.append(error)
                    continue
                same = all(a.shape == b.shape and a.dtype == b.dtype and np.allclose(a, b, 1e-3, 1e-5, equal_nan=True)
                           for a, b in zip(got, wanted, strict=True))  # fmt: skip
                wrong += [] if same else [case.name]
                right += same
    assert wrong == []
    assert right > 350
    assert len(refused) < 60, refused
    assert all(error.what.startswith("TensorFlow cannot take") and error.hint for error in refused)


def convert(proto: onnx.ModelProto | Artifact, folder: Path) -> tuple[Artifact, Artifact]:
    """An ONNX model as an artifact, and the SavedModel made of it, confirmed."""
    source = proto if isinstance(proto, Artifact) else saved(proto, folder / "source")
    assert source.signature is not None
    given = replace(context(folder), inputs=source.signature.inputs,
                    outputs=tuple(spec.name for spec in source.signature.outputs))  # fmt: skip
    out = folder / f"saved-{len(list(folder.iterdir()))}"
    out.mkdir()
    PASS.run(source, out, Options(), given)
    artifact = reread(PASS, source, out, given)
    assert PASS.confirm is not None
    assert [*promised(PASS, source, artifact), *PASS.confirm(source, artifact, Options(), given)] == []
    return source, artifact


def same(source: Artifact, artifact: Artifact, feed: dict[str, np.ndarray]) -> None:
    assert artifact.signature is not None
    with RUNNER.open(artifact) as session:
        got = session.infer(feed)
    for spec, wanted in zip(artifact.signature.outputs, infer(source, feed), strict=True):
        assert got[spec.name].dtype == wanted.dtype
        np.testing.assert_allclose(got[spec.name], wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("build", [cnn, encoder], ids=["cnn", "encoder"])
def test_a_model_with_open_dims(build: Any, tmp_path: Path) -> None:
    source, artifact = convert(build(), tmp_path)
    assert source.signature is not None
    assert artifact.signature == source.signature
    rng = np.random.default_rng(0)
    for batch, length in ((1, 2), (5, 9)):
        feed = {}
        for spec in source.signature.inputs:
            shape = spec.resolved({"batch": batch, "length": length})
            whole = rng.integers(0, 2, shape) if "int" in spec.dtype else rng.standard_normal(shape)
            feed[spec.name] = whole.astype(spec.dtype)
        same(source, artifact, feed)


def test_transposes_are_made_at_the_ends_alone(tmp_path: Path) -> None:
    nodes = [node("Conv", "x w", "a", kernel_shape=[3, 3], pads=[1] * 4), node("BatchNormalization", "a s b m v", "n"),
             node("Relu", "n", "r"), node("Conv", "r w2", "c", kernel_shape=[1, 1]), node("Add", "c r", "d"),
             node("MaxPool", "d", "p", kernel_shape=[2, 2], strides=[2, 2]), node("Mul", "p half", "y")]  # fmt: skip
    one = np.ones(8, np.float32)
    proto = model(nodes, [value("x", FLOAT, ["batch", 3, 8, 8])], [value("y", FLOAT, ["batch", 8, 4, 4])],
                  {"w": weight(8, 3, 3, 3), "w2": weight(8, 8, 1, 1), "s": one, "b": one, "m": one, "v": one,
                   "half": np.full((1, 8, 1, 1), 0.5, np.float32)})  # fmt: skip
    source, artifact = convert(proto, tmp_path)
    same(source, artifact, {"x": weight(3, 3, 8, 8)})
    assert savedmodel.inspect(artifact.path)["operators"]["Transpose"] == 2


def test_8_bit_weights_stay_8_bits_wide(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    proto = model([node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r w2", "y")],
                  [value("x", FLOAT, ["batch", 128])], [value("y", FLOAT, ["batch", 64])],
                  {"w": weight(128, 256), "w2": weight(256, 64)})  # fmt: skip
    data = ListSamples([{"x": rng.standard_normal(128).astype(np.float32)} for _ in range(8)])
    source, whole = convert(proto, tmp_path)
    quantised, _, _ = made(QUANTIZE, source, tmp_path, data)
    _, small = convert(quantised, tmp_path)
    same(quantised, small, {"x": rng.standard_normal((3, 128)).astype(np.float32)})
    assert small.size_bytes < 0.45 * whole.size_bytes


def test_names_that_tensorflow_does_not_take_and_outputs_given_twice(tmp_path: Path) -> None:
    proto = model([node("Add", "in/x:0 one", "out.y:0"), node("Identity", "out.y:0", "z")],
                  [value("in/x:0", INT64, ["batch", 4])],
                  [value("out.y:0", INT64, ["batch", 4]), value("z", INT64, ["batch", 4])],
                  {"one": np.array([1])})  # fmt: skip
    source, artifact = convert(proto, tmp_path)
    same(source, artifact, {"in/x:0": np.arange(8).reshape(2, 4)})


@pytest.mark.parametrize(
    ("nodes", "what"),
    [
        ([helper.make_node("Foo", ["x"], ["y"], name="/foo", domain="my.domain")],
         "my.domain.Foo (node /foo), used in head.1: there is no"),
        ([node("Det", "x", "y", "/head/det")], "Det (node /head/det), used in head.1: there is no"),
        ([node("Shape", "x", "s"), node("Reshape", "x s", "m"), node("LpPool", "m", "y", "/lp", kernel_shape=[2, 2])],
         "LpPool (node /lp)"),
    ],
)  # fmt: skip
def test_what_tensorflow_lacks_is_named(nodes: Any, what: str, tmp_path: Path) -> None:
    nodes[-1].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'head', 'head.1', 'op']")
    proto = model(nodes, [value("x", FLOAT, ["batch", 4, 8, 8])], [value("y", FLOAT, None)], {}, my_domain=1)
    source = saved(proto, tmp_path / "source")
    (tmp_path / "out").mkdir()
    with pytest.raises(StepError) as caught:
        PASS.run(source, tmp_path / "out", Options(), context(tmp_path))
    assert what in caught.value.what
    assert "onnx.simplify" in caught.value.hint


def test_a_branch_that_is_chosen_when_it_runs(tmp_path: Path) -> None:
    branches = {f"{name}_branch": helper.make_graph([node(kind, "x", out)], name, [], [value(out, FLOAT, ["batch", 4])])
                for name, kind, out in (("then", "Relu", "t"), ("else", "Neg", "e"))}  # fmt: skip
    proto = model([node("ReduceSum", "x", "s", keepdims=0), node("Greater", "s zero", "c"),
                   helper.make_node("If", ["c"], ["y"], **branches)],
                  [value("x", FLOAT, ["batch", 4])], [value("y", FLOAT, ["batch", 4])], {"zero": 0.0})  # fmt: skip
    source, artifact = convert(proto, tmp_path)
    for sign in (1, -1):
        same(source, artifact, {"x": sign * np.arange(8, dtype=np.float32).reshape(2, 4)})


def test_routes_to_savedmodel() -> None:
    assert [p.name for p in route("torch", "savedmodel")] == ["torch.to_onnx", "onnx.to_savedmodel"]
    assert [p.name for p in route("onnx", "savedmodel")] == ["onnx.to_savedmodel"]
