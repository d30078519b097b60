"""Tiny ONNX models, data and contexts for the tests of the ONNX runner and passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from optkit.artifact import Artifact, Dim
from optkit.errors import OptkitError
from optkit.formats.onnx import model as onnx_model
from optkit.plugin import Context, Pass, Samples

if TYPE_CHECKING:
    from optkit.plugin import Tensors

DIMS = {"batch": Dim(1, 4, 16), "length": Dim(2, 8, 32)}
FLOAT, FLOAT16, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal values scaled by the fan-in."""
    rng = np.random.default_rng(seed + sum(shape))
    return (rng.standard_normal(shape) / np.prod(shape[1:] or shape) ** 0.5).astype(np.float32)


def value(name: str, kind: int, shape: Sequence[int | str | None] | None) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    constants: Mapping[str, Any],
    opset: int = 20,
    **domains: int,
) -> onnx.ModelProto:
    """A model; a constant is an array, or a float that becomes a float32 scalar."""
    tensors = [
        numpy_helper.from_array(np.float32(c) if isinstance(c, float) else np.asarray(c), name)
        for name, c in constants.items()
    ]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, tensors)
    opsets = [
        helper.make_opsetid("", opset),
        *(helper.make_opsetid(d.replace("_", "."), v) for d, v in domains.items()),
    ]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="tests")


def node(kind: str, inputs: str, outputs: str, name: str = "", **attributes: Any) -> Any:
    """A node; names of inputs and outputs are separated by blanks, "-" is an absent one."""
    names = ["" if n == "-" else n for n in inputs.split()]
    return helper.make_node(kind, names, outputs.split(), name=name or outputs.split()[0], **attributes)


def cnn(opset: int = 20) -> onnx.ModelProto:
    """Two 3x3 convolutions with bias and ReLU and a shortcut, global pooling, a linear layer: `(batch, 10)`."""
    nodes = [
        node("Conv", "image w0 b0", "c0", "conv0", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", "c0", "r0"),
        node("Conv", "r0 w1 b1", "c1", "conv1", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1"),
        node("Add", "r0 r1", "sum"),
        node("GlobalAveragePool", "sum", "pool"),
        node("Flatten", "pool", "flat"),
        node("Gemm", "flat w2 b2", "logits", "head", transB=1),
    ]
    constants = {"w0": weight(16, 3, 3, 3), "b0": weight(16), "w1": weight(16, 16, 3, 3), "b1": weight(16, seed=1),
                 "w2": weight(10, 16), "b2": weight(10)}  # fmt: skip
    return model(nodes, [value("image", FLOAT, ["batch", 3, 16, 16])], [value("logits", FLOAT, ["batch", 10])],
                 constants, opset)  # fmt: skip


def encoder() -> onnx.ModelProto:
    """Embeddings, one masked attention layer, normalisation from its parts, a GELU MLP, mean pooling: `(batch, 32)`."""
    nodes = [
        node("Gather", "table ids", "x"),
        node("Unsqueeze", "mask axis1", "m1"), node("Unsqueeze", "m1 axis1", "m2"), node("Cast", "m2", "m3", to=FLOAT),
        node("Sub", "one m3", "m4"), node("Mul", "m4 lowest", "bias"),
    ]  # fmt: skip
    constants: dict[str, Any] = {"table": weight(100, 32) * 5, "axis1": np.array([1]), "axis2": np.array([2]),
                                 "one": 1.0, "lowest": float(np.finfo(np.float32).min), "last": np.array([-1]),
                                 "shape4": np.array([0, 0, 4, 8]), "shape3": np.array([0, 0, 32]), "quarter": 0.35355,
                                 "eps": 1e-12, "two": 2.0, "half": 0.5, "root": 1.41421356, "tiny": 1e-9}  # fmt: skip
    for name in "qkv":
        constants |= {f"w{name}": weight(32, 32, seed=ord(name)), f"b{name}": weight(32, seed=ord(name))}
        nodes += [node("MatMul", f"x w{name}", f"{name}0", f"{name}_proj"), node("Add", f"{name}0 b{name}", f"{name}1"),
                  node("Reshape", f"{name}1 shape4", f"{name}2"),
                  node("Transpose", f"{name}2", name, perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3])]  # fmt: skip
    nodes += [
        node("MatMul", "q k", "s0", "scores"), node("Mul", "s0 quarter", "s1"), node("Add", "s1 bias", "s2"),
        node("Softmax", "s2", "s3", axis=-1), node("MatMul", "s3 v", "a0", "context"),
        node("Transpose", "a0", "a1", perm=[0, 2, 1, 3]), node("Reshape", "a1 shape3", "a2"), node("Add", "x a2", "h"),
        node("ReduceMean", "h last", "mu"), node("Sub", "h mu", "d"), node("Pow", "d two", "d2"),
        node("ReduceMean", "d2 last", "var"), node("Add", "var eps", "var1"), node("Sqrt", "var1", "sd"),
        node("Div", "d sd", "n"), node("MatMul", "n up", "u0", "up_proj"), node("Add", "u0 upb", "u1"),
        node("Div", "u1 root", "g0"), node("Erf", "g0", "g1"), node("Add", "g1 one", "g2"), node("Mul", "u1 g2", "g3"),
        node("Mul", "g3 half", "g"), node("MatMul", "g down", "o0", "down_proj"), node("Add", "o0 n", "o1"),
        node("Unsqueeze", "mask axis2", "p0"), node("Cast", "p0", "p1", to=FLOAT), node("Mul", "o1 p1", "p2"),
        node("ReduceSum", "p2 axis1", "p3", keepdims=0), node("ReduceSum", "p1 axis1", "p4", keepdims=0),
        node("Max", "p4 tiny", "p5"), node("Div", "p3 p5", "pooled"),
    ]  # fmt: skip
    constants |= {"up": weight(32, 64), "upb": weight(64), "down": weight(64, 32)}
    inputs = [value("ids", INT64, ["batch", "length"]), value("mask", INT64, ["batch", "length"])]
    return model(nodes, inputs, [value("pooled", FLOAT, ["batch", 32])], constants)


def images(count: int, seed: int = 0) -> list[Tensors]:
    rng = np.random.default_rng(seed)
    return [{"image": rng.standard_normal((3, 16, 16)).astype(np.float32)} for _ in range(count)]


def texts(count: int, seed: int = 0) -> list[Tensors]:
    """Token ids of several lengths."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 12, count)
    return [{"ids": rng.integers(0, 100, n), "mask": np.ones(n, np.int64)} for n in lengths]


def saved(proto: onnx.ModelProto, folder: Path, *, external: bool = False) -> Artifact:
    """A model written as an artifact into a new folder."""
    folder.mkdir()
    onnx_model.save(proto, folder, external=external)
    return artifact(folder)


def artifact(folder: Path) -> Artifact:
    path = folder / "model.onnx"
    return Artifact("onnx", path, "digest", onnx_model.describe(path, {}), onnx_model.files(path))


def context(folder: Path, data: Samples | None = None, **more: Any) -> Context:
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    return Context((), (), DIMS, scratch, data=data, **more)


def made(which: Pass, source: Artifact, folder: Path, data: Samples | None = None, **options: Any) -> Any:
    """Run a pass and its confirm: the new artifact, the notes, and what confirm says."""
    chosen = which.options(**options)
    surroundings = context(folder, data)
    target = folder / f"made-{len(list(folder.iterdir()))}"
    target.mkdir()
    notes = which.run(source, target, chosen, surroundings)
    assert not list(surroundings.scratch.iterdir()) or which.name == "onnx.optimize_transformer"
    result = artifact(target)
    assert sorted(p.name for p in target.iterdir()) == sorted(result.files)
    assert which.confirm is not None
    return result, notes, list(which.confirm(source, result, chosen, surroundings))


def refusal(which: Pass, source: Artifact, folder: Path, data: Samples | None = None, **options: Any) -> OptkitError:
    """What a pass says that fails; what it wrote before lies in `folder`/refused-NUMBER/out."""
    place = folder / f"refused-{len(list(folder.iterdir()))}"
    out = place / "out"
    out.mkdir(parents=True)
    with pytest.raises(OptkitError) as caught:
        which.run(source, out, which.options(**options), context(place, data))
    return caught.value


def infer(source: Artifact | Path, feed: Tensors) -> list[np.ndarray]:
    path = source.path if isinstance(source, Artifact) else source
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feed))


def sqnr_db(reference: np.ndarray, got: np.ndarray) -> float:
    """Signal to quantisation noise in dB."""
    noise = np.linalg.norm(reference.astype(np.float64) - got)
    return float(20 * np.log10(np.linalg.norm(reference.astype(np.float64)) / max(noise, 1e-30)))


def operators(source: Artifact) -> Mapping[str, int]:
    return onnx_model.count_operators(onnx.load(source.path, load_external_data=False))


def feed_of(sample: Tensors) -> Tensors:
    return {name: array[None] for name, array in sample.items()}


def edited(source: Artifact, folder: Path, change: Any) -> Artifact:
    """A copy of an artifact with its ModelProto changed in place."""
    proto = onnx.load(source.path)
    change(proto)
    return saved(proto, folder)
