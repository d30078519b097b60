"""onnx.to_tflite, in its own environment: the file answers as onnxruntime does, or an error says why there is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_models import FLOAT, FLOAT16, INT64, cnn, infer, model, node, saved, value, weight

from optkit.artifact import Artifact, Dim, TensorSpec
from optkit.envs import environments
from optkit.errors import StepError
from optkit.formats.onnx import model as onnx_model
from optkit.formats.tflite import model as tflite_model
from optkit.registry import get_pass, route
from optkit.runners.tflite_runner import RUNNER
from optkit.running.pool import Pool
from optkit.worker import raise_if_failed

DIMS = {"batch": Dim(1, 4, 9), "length": Dim(2, 6, 12)}
IMAGE = TensorSpec("image", "float32", ("batch", 3, 16, 16), "NCHW", (-1, 1))


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with Pool(1, tmp_path_factory.mktemp("logs")) as pool:
        yield pool


@pytest.fixture
def convert(worker: Pool, tmp_path: Path) -> Any:
    """A function from an ONNX model to the artifact and its notes; raises as the step does."""

    def run(proto: onnx.ModelProto | Artifact, *inputs: TensorSpec, **options: Any) -> tuple[Artifact, Artifact, Any]:
        base = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        (base / "out").mkdir(parents=True)
        source = proto if isinstance(proto, Artifact) else saved(proto, base / "source")
        described = onnx_model.describe(source.path, {})
        given = {spec.name: spec for spec in inputs}
        signature = replace(described, inputs=tuple(given.get(s.name, s) for s in described.inputs))
        source = source.with_signature(signature)
        names = {name for spec in signature.inputs for name in spec.dynamic}
        step = {
            "task": "run", "pass": "onnx.to_tflite", "options": options, "artifact": source.to_json(), "data": None,
            "inputs": [s.to_json() for s in signature.inputs], "outputs": [s.name for s in signature.outputs],
            "dims": {name: DIMS[name].to_json() for name in names}, "out": str(base / "out"), "seed": 0, "threads": 1,
            "device": "cpu", "datasets": {}, "base": str(base), "scratch": str(base),
        }  # fmt: skip
        worker.submit("task", step, base / "log", 300.0, str(environments.require("onnx2tf").python))
        while (message := worker.wait(0.2)) is None or message.kind != "result":
            pass
        result = raise_if_failed(message.data)
        return source, Artifact.from_json(result["artifact"]), result["notes"]

    return run


def same(source: Artifact, made: Artifact, sizes: tuple[int, ...] = (1, 3, 9), seed: int = 0) -> None:
    """Both answer alike, whatever the batch."""
    assert source.signature is not None
    rng = np.random.default_rng(seed)
    with RUNNER.open(made) as session:
        for batch in sizes:
            feed = {}
            for spec in source.signature.inputs:
                shape = spec.resolved({"batch": batch, "length": 5})
                feed[spec.name] = (rng.standard_normal(shape) if spec.dtype == "float32" else
                                   rng.integers(0, 2, shape)).astype(spec.dtype)  # fmt: skip
            got = session.infer(feed)
            for spec, wanted in zip(source.signature.outputs, infer(source, feed), strict=True):
                assert got[spec.name].dtype == wanted.dtype
                np.testing.assert_allclose(got[spec.name], wanted, rtol=1e-3, atol=1e-4)


def unary(kind: str, *, name: str = "y", opset: int = 20, dtype: int = FLOAT, **attributes: Any) -> onnx.ModelProto:
    return model([node(kind, "x", "y", name, **attributes)], [value("x", dtype, ["batch", 4])],
                 [value("y", dtype, ["batch", 4])], {}, opset)  # fmt: skip


def test_a_convolutional_model_resizes_and_keeps_names_and_layout(convert: Any) -> None:
    source, made, notes = convert(cnn())
    assert notes["dims"] == {"batch": "resize"}
    same(source, made)
    held = next(iter(notes["file"].values()))
    assert list(held["inputs"]) == [s.name for s in source.signature.inputs]
    assert tflite_model.read(made.path).metadata[0].name == b"optkit"  # the only note: no leave to compute in float16


def image_model() -> onnx.ModelProto:
    """An image in, an image out."""
    return model([node("Conv", "image w", "h", kernel_shape=[3, 3], pads=[1] * 4), node("Relu", "h", "map")],
                 [value("image", FLOAT, ["batch", 3, 16, 16])], [value("map", FLOAT, ["batch", 5, 16, 16])],
                 {"w": weight(5, 3, 3, 3)})  # fmt: skip


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_layout_at_its_border(convert: Any, layout: str) -> None:
    last = ["map"] if layout == "NHWC" else []
    source, made, notes = convert(image_model(), IMAGE, layout=layout, channels_last_outputs=last)
    held = notes["file"]["serving_default"]
    assert held["inputs"]["image"]["shape"][1:] == ([16, 16, 3] if last else [3, 16, 16])
    assert held["outputs"]["map"]["shape"][1:] == ([16, 16, 5] if last else [5, 16, 16])
    same(source, made)


def test_what_cannot_be_resized_is_put_together_from_sizes(convert: Any) -> None:
    proto = model([node("LSTM", "x w r b - h c", "y yh", hidden_size=6), node("Squeeze", "y one", "out")],
                  [value("x", FLOAT, [3, "batch", 4])], [value("out", FLOAT, [3, "batch", 6])],
                  {"w": weight(1, 24, 4), "r": weight(1, 24, 6), "b": weight(1, 48),
                   "h": np.zeros((1, 1, 6), np.float32), "c": np.zeros((1, 1, 6), np.float32),
                   "one": np.array([1])})  # fmt: skip
    proto.graph.node[0].input[5] = proto.graph.node[0].input[6] = ""
    turned = [node("Transpose", "x", "xt", perm=[1, 0, 2]), *proto.graph.node, node("Transpose", "out", "y2",
              perm=[1, 0, 2])]  # fmt: skip
    turned[1].input[0] = "xt"
    whole = model(turned, [value("x", FLOAT, ["batch", 3, 4])], [value("y2", FLOAT, ["batch", 3, 6])], {})
    whole.graph.initializer.extend(t for t in proto.graph.initializer if t.name not in ("h", "c"))
    source, made, notes = convert(whole)
    assert notes["dims"] == {"batch": [1, 4]}
    assert sorted(notes["file"]) == ["batch_1", "batch_4"]
    same(source, made, (1, 4, 7))
    one = convert(whole, sizes={"batch": [4]})[1]
    assert made.path.stat().st_size < 2 * one.path.stat().st_size + 8000  # weights are held once


def test_integers_names_and_outputs_given_twice(convert: Any) -> None:
    proto = model([node("Add", "in/x:0 one", "mid"), node("Identity", "mid", "out/y:0"), node("Identity", "mid", "z")],
                  [value("in/x:0", INT64, ["batch", 4])],
                  [value("out/y:0", INT64, ["batch", 4]), value("z", INT64, ["batch", 4])],
                  {"one": np.array([1])})  # fmt: skip
    source, made, _ = convert(proto)
    same(source, made)


def test_external_data_and_a_source_left_as_it_is(convert: Any, tmp_path: Path) -> None:
    source = saved(cnn(), tmp_path / "external", external=True)
    assert len(source.files) == 2
    before = {p.name: p.read_bytes() for p in source.path.parent.iterdir()}
    source, made, _ = convert(source)
    same(source, made)
    assert {p.name: p.read_bytes() for p in source.path.parent.iterdir()} == before


@pytest.mark.parametrize(
    ("proto", "what", "hint"),
    [
        (model([node("Det", "x", "y", "/head/det")], [value("x", FLOAT, ["batch", 4, 4])],
               [value("y", FLOAT, ["batch"])], {}),
         "TFLite has no operator for ONNX Det (node /head/det)", "replace the operator"),
        (unary("Neg", dtype=FLOAT16), "'x' is float16, of which onnx2tf would make another type", "tflite.quantize"),
        (model([node("ReduceSum", "x", "s", keepdims=0), node("Greater", "s zero", "c"),
                helper.make_node("If", ["c"], ["y"], name="/choose", then_branch=helper.make_graph(
                    [node("Relu", "x", "t")], "then", [], [value("t", FLOAT, ["batch", 4])]),
                    else_branch=helper.make_graph([node("Neg", "x", "e")], "else", [],
                                                  [value("e", FLOAT, ["batch", 4])]))],
               [value("x", FLOAT, ["batch", 4])], [value("y", FLOAT, ["batch", 4])], {"zero": 0.0}),
         "the model has control flow, If (node /choose)", "choose with Where"),
    ],
    ids=["operator", "float16", "control flow"],
)  # fmt: skip
def test_what_there_is_no_file_for(convert: Any, proto: onnx.ModelProto, what: str, hint: str) -> None:
    with pytest.raises(StepError) as caught:
        convert(proto)
    assert what in caught.value.what
    assert hint in caught.value.hint
    assert caught.value.subject


def test_a_dim_that_cannot_vary_is_named(convert: Any) -> None:
    proto = model([node("LSTM", "x w r", "y yh", hidden_size=6), node("Squeeze", "yh zero", "out")],
                  [value("x", FLOAT, ["length", "batch", 4])], [value("out", FLOAT, ["batch", 6])],
                  {"w": weight(1, 24, 4), "r": weight(1, 24, 6), "zero": np.array([0])})  # fmt: skip
    with pytest.raises(StepError) as caught:
        convert(proto)
    assert caught.value.subject.startswith("dims.") or "onnx2tf failed" in caught.value.what
    assert caught.value.hint


def test_routes_to_tflite() -> None:
    assert [p.name for p in route("onnx", "tflite")] == ["onnx.to_tflite"]
    assert [p.name for p in route("torch", "tflite")] == ["torch.to_tflite"]
    assert get_pass("onnx.to_tflite").environment == "onnx2tf"
