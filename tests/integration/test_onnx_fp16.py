"""onnx.fp16 on real onnxruntime: what becomes float16, what stays float32, and that the result loads and agrees."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
    refusal,
    saved,
    sqnr_db,
    texts,
    value,
    weight,
)

from optkit.artifact import Artifact
from optkit.errors import StepError
from optkit.formats.onnx import half as onnx_half
from optkit.formats.onnx import model as onnx_model
from optkit.passes.onnx_fp16 import PASS


def types(artifact: Artifact) -> dict[str, int]:
    return onnx_half.types_of(onnx_model.load(artifact.path))


def one(nodes: Sequence[Any], constants: dict[str, Any], inputs: Sequence[Any] | None = None, kind: int = FLOAT) -> Any:
    """A model of x `(batch, 8)`, or of `inputs`, to y."""
    inputs = inputs or [value("x", FLOAT, ["batch", 8])]
    return model(nodes, inputs, [value("y", kind, None)], constants)


def converted(proto: onnx.ModelProto, folder: Path, **options: Any) -> tuple[Artifact, Artifact, Any]:
    source = saved(proto, folder / "source")
    result, notes, complaints = made(PASS, source, folder, **options)
    assert complaints == []
    return source, result, notes


def close(source: Artifact, result: Artifact, feed: Any, db: float = 50.0) -> None:
    for reference, got in zip(infer(source, feed), infer(result, feed), strict=True):
        assert reference.dtype == got.dtype
        assert not np.isnan(got).any()
        assert sqnr_db(reference, got) > db


def test_a_convolutional_model(tmp_path: Path) -> None:
    source, result, notes = converted(cnn(), tmp_path)
    assert operators(result) == {**operators(source), "Cast": 2}
    assert notes == {"float16_nodes": 8, "float32_nodes": {}, "float32_operators": {}, "casts_added": 2,
                     "clamped_constants": [], "beyond_float16": []}  # fmt: skip
    assert onnx_model.inspect(result.path)["precision"] == "float16"
    assert 0.5 < result.size_bytes / source.size_bytes < 0.65
    onnx.checker.check_model(str(result.path), full_check=True)
    for size in (1, 3):
        close(source, result, {"image": np.stack([s["image"] for s in images(size)])}, 55)


def test_a_masked_encoder(tmp_path: Path) -> None:
    source, result, notes = converted(encoder(), tmp_path)
    assert notes["clamped_constants"] == ["lowest"]
    kinds = types(result)
    assert {kinds[name] for name in ("q0", "s2", "s3", "g3", "o0")} == {FLOAT16}
    assert {kinds[name] for name in ("d2", "var", "var1", "sd", "p3", "p4", "p5")} == {
        FLOAT
    }  # long sums, powers, 1e-12
    sample = texts(1)[0]
    close(source, result, feed_of(sample), 45)
    padded = {"ids": np.stack([sample["ids"]] * 2), "mask": np.stack([sample["mask"]] * 2)}
    padded["mask"][1, 1:] = 0
    close(source, result, padded, 45)


def test_unprotected_converts_more(tmp_path: Path) -> None:
    _, guarded, _ = converted(encoder(), tmp_path)
    (tmp_path / "b").mkdir()
    _, bare, notes = converted(encoder(), tmp_path / "b", protect=False)
    # 1e-12 and 1e-9 would become 0; the square root is taken of the sum with the first
    assert notes["float32_nodes"] == {"constant beyond float16": 2, "between float32 nodes": 1}
    assert operators(bare)["Cast"] < operators(guarded)["Cast"]
    assert types(bare)["d2"] == FLOAT16


def test_float16_inputs_and_outputs(tmp_path: Path) -> None:
    source, result, _ = converted(cnn(), tmp_path, keep_io=False)
    assert "Cast" not in operators(result)
    assert result.signature is not None
    assert [t.dtype for t in (*result.signature.inputs, *result.signature.outputs)] == ["float16", "float16"]
    image = images(1)[0]["image"][None]
    (got,) = infer(result, {"image": image.astype(np.float16)})
    assert got.dtype == np.float16
    assert sqnr_db(infer(source, {"image": image})[0], got) > 50


def test_a_float32_result_under_a_float16_output(tmp_path: Path) -> None:
    proto = one([node("MatMul", "x w", "h"), node("Exp", "h", "y")], {"w": weight(8, 8)})
    _, result, _ = converted(proto, tmp_path, keep_io=False)
    assert infer(result, {"x": np.ones((1, 8), np.float16)})[0].dtype == np.float16
    assert types(result)["y"] == FLOAT16


def test_blocked_operators_and_nodes_stay(tmp_path: Path) -> None:
    source, result, notes = converted(encoder(), tmp_path, block=["Softmax"], block_nodes=["up_proj"])
    kinds = types(result)
    assert kinds["s3"] == kinds["u0"] == FLOAT
    weights = {t.name: t.data_type for t in onnx.load(result.path).graph.initializer}
    assert (weights["up"], weights["down"]) == (FLOAT, FLOAT16)
    assert notes["float32_operators"]["Softmax"] == 1
    close(source, result, feed_of(texts(1)[0]), 45)


def test_a_weight_used_both_ways_is_kept_both_ways(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "a", "first"), node("MatMul", "x w", "b", "second"), node("Add", "a b", "y")]
    source, result, _ = converted(one(nodes, {"w": weight(8, 8)}), tmp_path, block_nodes=["second"])
    assert sorted((t.name, t.data_type) for t in onnx.load(result.path).graph.initializer) == [
        ("w", FLOAT16), ("w_float32", FLOAT)]  # fmt: skip
    close(source, result, {"x": weight(2, 8)})


def test_a_constant_beyond_float16_keeps_its_node(tmp_path: Path) -> None:
    big = weight(8)
    big[0] = 7e4
    nodes = [node("Mul", "x big", "h", "scale"), node("Div", "h thousand", "i"), node("MatMul", "i w", "y")]
    source, result, notes = converted(one(nodes, {"big": big, "thousand": 1e5, "w": weight(8, 8)}), tmp_path)
    assert notes["beyond_float16"] == ["big", "thousand"]
    assert notes["float32_operators"] == {"Div": 1, "Mul": 1}
    close(source, result, {"x": weight(2, 8)})


def test_infinities_are_clamped_and_open_ends_stay_open(tmp_path: Path) -> None:
    ends = {"low": -np.float32(3.4e38), "high": np.float32(np.inf), "w": weight(8, 8)}
    nodes = [node("Clip", "x low high", "h"), node("MatMul", "h w", "y")]
    source, result, notes = converted(one(nodes, {k: np.asarray(v) for k, v in ends.items()}), tmp_path)
    assert notes["clamped_constants"] == ["low"]
    tensors = {t.name: numpy_helper.to_array(t) for t in onnx.load(result.path).graph.initializer}
    assert tensors["low"] == -65504
    assert np.isposinf(tensors["high"])
    close(source, result, {"x": weight(2, 8)})


CASES: dict[str, tuple[Callable[[], Any], dict[str, Any], dict[str, Any]]] = {
    "resize": (
        lambda: one(
            [node("Conv", "x k", "c"), node("Resize", "c - scales", "r", mode="linear"),
             node("Shape", "r", "s", start=2), node("Cast", "s", "f", to=FLOAT), node("Mul", "f half", "g"),
             node("Floor", "g", "i"), node("Cast", "i", "j", to=INT64), node("Concat", "head j", "t", axis=0),
             node("Resize", "r - - t", "y", mode="nearest")],
            {"k": weight(4, 3, 3, 3), "scales": np.array([1, 1, 2, 2], np.float32), "half": 0.5,
             "head": np.array([1, 4])}, [value("x", FLOAT, [1, 3, "h", "w"])]),
        {"x": weight(1, 3, 9, 4102, seed=3)}, {"arithmetic on shapes": 2}),
    "top-k": (
        lambda: one([node("MatMul", "x w", "h"), node("TopK", "h k", "v i"), node("Cast", "i", "j", to=FLOAT),
                     node("Add", "v j", "y")], {"w": weight(8, 8), "k": np.array([3])}),
        {"x": weight(2, 8)}, {"blocked or fragile": 1}),
    "casts": (
        lambda: one([node("Cast", "x", "d", to=TensorProto.DOUBLE), node("Cast", "d", "f", to=FLOAT),
                     node("MatMul", "f w", "h"), node("Cast", "h", "b", to=TensorProto.BOOL),
                     node("Cast", "b", "c", to=FLOAT), node("CastLike", "b w", "e"), node("Where", "b h c", "g"),
                     node("Add", "g e", "y")], {"w": weight(8, 8)}),
        {"x": weight(2, 8)}, {}),
    "constant nodes": (
        lambda: one([node("Constant", "", "two", value_float=2.0),
                     node("Constant", "", "w", value=numpy_helper.from_array(weight(8, 8))),
                     node("MatMul", "x w", "h"), node("Mul", "h two", "y")], {}),
        {"x": weight(2, 8)}, {}),
    "a constant output": (
        lambda: model([node("MatMul", "x w", "y")], [value("x", FLOAT, ["batch", 8])],
                      [value("y", FLOAT, None), value("w", FLOAT, [8, 8]), value("x", FLOAT, ["batch", 8])],
                      {"w": np.round(weight(8, 8), 2)}),
        {"x": weight(2, 8)}, {}),
    "random and fill": (
        lambda: one([node("MatMul", "x w", "h"), node("Shape", "h", "s"),
                     node("ConstantOfShape", "s", "o", value=numpy_helper.from_array(np.ones(1, np.float32))),
                     node("EyeLike", "h", "e"), node("Add", "h o", "i"), node("Add", "i e", "y")], {"w": weight(8, 8)}),
        {"x": weight(8, 8)}, {"output type of its own": 2}),
    "sequences": (
        lambda: one([node("MatMul", "x w", "h"), node("SplitToSequence", "h", "s", axis=1),
                     node("SequenceAt", "s zero", "t"), node("Mul", "t t", "y")],
                    {"w": weight(8, 8), "zero": np.array(0)}),
        {"x": weight(2, 8)}, {"no float16 version": 1, "output type of its own": 1, "between float32 nodes": 1}),
    "recurrent": (
        lambda: one([node("LSTM", "x w r", "- y", hidden_size=4)],
                    {"w": weight(1, 16, 8), "r": weight(1, 16, 4)}, [value("x", FLOAT, [5, "batch", 8])]),
        {"x": weight(5, 2, 8)}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_operators_that_converters_get_wrong(tmp_path: Path, case: str) -> None:
    build, feed, kept = CASES[case]
    proto = build()
    if case == "recurrent":
        proto.graph.node[0].output[:] = ["", "y"]
    source, result, notes = converted(proto, tmp_path)
    assert notes["float32_nodes"] == kept
    close(source, result, feed, 40)


def test_control_flow_is_converted_inside(tmp_path: Path) -> None:
    """Branches and a loop body use weights and values of the graph around them."""
    branches = [
        helper.make_graph([node("MatMul", f"h {w}", f"{w}o"), node("Add", f"{w}o shift", f"{w}p")], w, [],
                          [value(f"{w}p", FLOAT, ["batch", 8])],
                          [numpy_helper.from_array(weight(8, 8, seed=ord(w[-1])), w)])
        for w in ("wa", "wb")
    ]  # fmt: skip
    body = helper.make_graph(
        [node("Identity", "more", "again"), node("MatMul", "state w", "next"), node("Add", "next h", "sum")], "body",
        [value("i", INT64, []), value("more", TensorProto.BOOL, []), value("state", FLOAT, ["batch", 8])],
        [value("again", TensorProto.BOOL, []), value("sum", FLOAT, ["batch", 8])])  # fmt: skip
    nodes = [
        node("MatMul", "x w", "h"), node("ReduceMax", "x", "m", keepdims=0), node("Greater", "m zero", "go"),
        node("If", "go", "b", then_branch=branches[0], else_branch=branches[1]),
        node("Loop", "three true b", "l", body=body), node("MatMul", "l w", "y"),
    ]  # fmt: skip
    constants = {"w": weight(8, 8), "zero": 0.0, "shift": weight(8), "three": np.array(3), "true": np.array(True)}
    source, result, notes = converted(one(nodes, constants), tmp_path)
    assert notes["float32_nodes"]["control flow"] == 2
    for x in (weight(2, 8), -np.abs(weight(2, 8))):
        close(source, result, {"x": x}, 45)
    matmuls = [n for n in onnx_model.all_nodes(onnx.load(result.path).graph) if n.op_type == "MatMul"]
    assert len(matmuls) == 5
    (tmp_path / "b").mkdir()
    source, result, notes = converted(one(nodes, constants), tmp_path / "b", block=["If"])
    assert notes["float32_operators"]["MatMul"] == 2
    close(source, result, {"x": weight(2, 8)}, 45)


def test_quantised_models(tmp_path: Path) -> None:
    """Scales too small for float16, and those before opset 19, keep their pair in float32."""
    for opset, scale, reason in (
        (20, 0.05, None),
        (20, 2e-5, "constant beyond float16"),
        (17, 0.05, "no float16 version"),
    ):
        nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "d"),
                 node("MatMul", "d w", "y")]  # fmt: skip
        constants = {"s": scale, "z": np.array(0, np.int8), "w": weight(8, 8)}
        proto = model(nodes, [value("x", FLOAT, ["batch", 8])], [value("y", FLOAT, None)], constants, opset)
        folder = tmp_path / f"{opset}-{scale}"
        folder.mkdir()
        source, result, notes = converted(proto, folder)
        assert notes["float32_nodes"] == ({reason: 2} if reason else {})
        close(source, result, {"x": weight(2, 8) * scale * 50}, 40)


def test_onnxruntimes_own_operators(tmp_path: Path) -> None:
    contrib = [helper.make_node("SkipLayerNormalization", ["x", "h", "g", "b"], ["n"], domain="com.microsoft"),
               helper.make_node("FastGelu", ["n", "b"], ["f"], domain="com.microsoft")]  # fmt: skip
    nodes = [node("MatMul", "x w", "h"), *contrib, node("MatMul", "f w", "y")]
    proto = model(nodes, [value("x", FLOAT, ["batch", 4, 8])], [value("y", FLOAT, None)],
                  {"w": weight(8, 8), "g": weight(8), "b": weight(8, seed=1)}, com_microsoft=1)  # fmt: skip
    source, result, notes = converted(proto, tmp_path)
    assert (notes["float16_nodes"], notes["float32_nodes"]) == (4, {})
    close(source, result, {"x": weight(2, 4, 8)}, 40)


def test_functions_and_initialisers_as_inputs(tmp_path: Path) -> None:
    body = helper.make_function("own", "Double", ["a"], ["b"], [node("Add", "a a", "b")], [helper.make_opsetid("", 20)])
    proto = one([node("MatMul", "x w", "h"), helper.make_node("Double", ["h"], ["y"], domain="own")],
                {"w": weight(8, 8)}, [value("x", FLOAT, ["batch", 8]), value("w", FLOAT, [8, 8])])  # fmt: skip
    proto.functions.append(body)
    proto.opset_import.append(helper.make_opsetid("own", 1))
    source, result, _ = converted(proto, tmp_path)
    assert operators(result) == {"Cast": 2, "MatMul": 1, "Add": 1}
    assert [i.name for i in onnx.load(result.path).graph.input] == ["x"]
    close(source, result, {"x": weight(2, 8)})


def test_external_data(tmp_path: Path) -> None:
    source = saved(encoder(), tmp_path / "source", external=True)
    result, _, complaints = made(PASS, source, tmp_path)
    assert complaints == []
    close(source, result, feed_of(texts(1)[0]), 45)


# failures


def failure(proto: onnx.ModelProto, folder: Path, **options: Any) -> StepError:
    error = refusal(PASS, saved(proto, folder / "source"), folder, **options)
    assert isinstance(error, StepError)
    return error


def test_names_that_do_not_exist(tmp_path: Path) -> None:
    error = failure(cnn(), tmp_path, block=["Cnov"])
    assert (error.what, error.hint, error.subject) == (
        "there is no operator 'Cnov'",
        "did you mean 'Conv'?",
        "with.block",
    )
    (tmp_path / "b").mkdir()
    error = failure(cnn(), tmp_path / "b", block_nodes=["conv2"])
    assert error.what == "the model has no node 'conv2'"
    assert "did you mean 'conv" in error.hint


def test_nothing_to_convert(tmp_path: Path) -> None:
    error = failure(one([node("Exp", "x", "y")], {}), tmp_path)
    assert error.what == "nothing was converted to float16: every node stays float32: blocked or fragile (1)"
    (tmp_path / "b").mkdir()
    proto = model([node("Neg", "x", "y")], [value("x", INT64, [1])], [value("y", INT64, [1])], {})
    assert "no float32 arithmetic" in failure(proto, tmp_path / "b").what


def test_types_that_cannot_be_known(tmp_path: Path) -> None:
    nodes = [helper.make_node("Mystery", ["x"], ["h"], domain="own"), node("MatMul", "h w", "y")]
    proto = model(nodes, [value("x", FLOAT, ["batch", 8])], [value("y", FLOAT, None)], {"w": weight(8, 8)}, own=1)
    assert "the type of 'h' is unknown" in failure(proto, tmp_path).what


def test_a_graph_that_does_not_load(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "h"), helper.make_node("Mystery", ["h"], ["y"], domain="own")]
    proto = model(
        nodes, [value("x", FLOAT, ["batch", 8])], [value("y", FLOAT, ["batch", 8])], {"w": weight(8, 8)}, own=1
    )
    assert failure(proto, tmp_path).what.startswith("the float16 graph does not load: ")


def test_confirm_can_fail(tmp_path: Path) -> None:
    source = saved(encoder(), tmp_path / "source")
    result, _, complaints = made(PASS, source, tmp_path)
    assert complaints == []
    assert PASS.confirm is not None
    options = PASS.options()

    def complaints_of(artifact: Artifact, **changed: Any) -> str:
        assert PASS.confirm is not None
        return "; ".join(PASS.confirm(source, artifact, options.model_copy(update=changed), context(tmp_path)))

    assert "pooled is float32, not float16" in complaints_of(result, keep_io=False)
    assert "MatMul up_proj was to stay float32 and takes float16" in complaints_of(result, block_nodes=("up_proj",))
    assert "nothing is float16; weight wq of MatMul q_proj is still float32" in complaints_of(source)

    def widen(proto: onnx.ModelProto) -> None:
        for tensor in proto.graph.initializer:
            if tensor.name == "down":
                tensor.CopyFrom(numpy_helper.from_array(weight(64, 32), "down"))

    assert complaints_of(edited(result, tmp_path / "wide", widen)) == "weight down of MatMul down_proj is still float32"


def test_is_what_it_says() -> None:
    assert (PASS.precision, PASS.keeps, PASS.fidelity) == ("float16", {"names", "dims"}, "rounding")
    assert dataclasses.replace(PASS) == PASS
