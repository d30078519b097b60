"""8-bit weights in ONNX graphs, one tensor at a time, and the dynamic quantisation of matrix products."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optkit.errors import StepError, did_you_mean
from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx import value_types as onnx_types
from optkit.formats.onnx import weights as onnx_weights
from optkit.plugin import need

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

Kind = Literal["int8", "uint8"]
FLOAT, UINT8, INT8, FLOAT16 = 1, 2, 3, 10  # TensorProto.DataType
PREFIX = "optkit_"

Rounds = Callable[["Array", "Array", int], "Array"]
"""(values, scale that broadcasts to them, greatest integer) -> whole numbers near values / scale."""


@dataclass(frozen=True)
class Scheme:
    """How weights become integers: symmetric around zero, over 127 steps (63 with `reduce_range`) on either side."""

    kind: Kind = "int8"
    per_channel: bool = True
    reduce_range: bool = False

    @property
    def steps(self) -> int:
        """The largest magnitude of an integer weight."""
        return 63 if self.reduce_range else 127

    @property
    def zero(self) -> int:
        """The integer that stands for 0."""
        return 0 if self.kind == "int8" else 128


@dataclass
class Weight:
    """A float initializer and its integer form. scale: one number, or one for each index along `axis`.

    rounds: what chooses the integers; None takes the nearest.
    """

    tensor: Any
    axis: int | None
    scale: Array
    rounds: Rounds | None = None

    def quantised(self, folder: Path, scheme: Scheme, transpose: bool = False) -> Array:
        """The integers, in the tensor's own shape, or with its two axes exchanged."""
        import numpy as np

        values = onnx_weights.read(self.tensor, folder)
        scale = self.scale
        if self.axis is not None:
            scale = scale.reshape([-1 if i == self.axis else 1 for i in range(values.ndim)])
        if self.rounds is not None:
            whole = self.rounds(values, scale, scheme.steps)
        else:
            whole = values / scale
            np.rint(whole, out=whole)
        np.clip(whole, -scheme.steps, scheme.steps, out=whole)
        if scheme.zero:
            whole += scheme.zero
        whole = whole.astype(scheme.kind)
        return np.ascontiguousarray(whole.T) if transpose else whole


def measure(tensor: Any, folder: Path, axis: int | None, scheme: Scheme, at_least: Array | float = 0.0) -> Weight:
    """The scale of a weight along `axis`, no smaller than `at_least`; 1 where all values are 0."""
    import numpy as np

    values = onnx_weights.read(tensor, folder)
    others = tuple(i for i in range(values.ndim) if i != axis) if axis is not None else None
    # two passes without a copy, where abs would make one
    reach = np.maximum(values.max(axis=others, initial=0), -values.min(axis=others, initial=0)).astype(np.float64)
    if not np.isfinite(reach).all():
        raise not_finite(tensor.name)
    scale = np.maximum(reach / scheme.steps, at_least)
    scale = np.where(scale < np.finfo(np.float32).tiny, 1.0, scale).astype(values.dtype)
    return Weight(tensor, axis, scale)


def not_finite(name: str) -> StepError:
    """The error about a weight that no range covers."""
    return StepError(f"weight {name!r} holds NaN or infinity", hint="check the source model's weights")


def weight_input(node: Any) -> int | None:
    """Which input of a node is its weight: 1 for products and convolutions, 0 for a lookup."""
    if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and len(node.input) > 1:
        return 1
    return 0 if node.op_type == "Gather" else None


def channel_axis(node: Any, rank: int) -> int | None:
    """The axis of a node's weight that its outputs' channels lie along; None where one scale serves all of them.

    So it is for a weight of several matrices: onnxruntime 1.32 refuses zero points for its channels, and multiplies the
    bias after it by their scales too.
    """
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1 if attribute(node, "group", 1) == 1 else None
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 1 if node.op_type == "MatMul" and rank == 2 else None


def attribute(node: Any, name: str, default: Any) -> Any:
    """An attribute's value."""
    import onnx

    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


@dataclass
class Rewrite:
    """A graph under rewriting: new tensors and nodes, and where the new weights' values come from.

    rounding: by the name of a weight, what chooses its integers where that is not the nearest.
    """

    model: Any
    folder: Path
    scheme: Scheme
    rounding: Mapping[str, Rounds] = field(default_factory=dict)
    payloads: dict[str, Callable[[], Array]] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.initializers = {t.name: t for t in graph.initializer}
        self.taken |= {n for node in graph.node for n in (*node.input, *node.output)} | set(self.initializers)
        self.taken |= {v.name for v in (*graph.input, *graph.output)}

    def fresh(self, name: str) -> str:
        """A name that no value has."""
        candidate, n = name, 1
        while candidate in self.taken:
            n += 1
            candidate = f"{name}_{n}"
        self.taken.add(candidate)
        return candidate

    def constant(self, name: str, values: Array) -> str:
        """Add a small initializer."""
        import onnx

        tensor = self.model.graph.initializer.add()
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, self.fresh(name)))
        return str(tensor.name)

    def integers(self, weight: Weight, *, transpose: bool = False) -> tuple[str, str, str]:
        """Add a weight's integers, scale and zero point, one for each scale; their names."""
        import numpy as np

        name, dtype = weight.tensor.name, np.dtype(self.scheme.kind)
        weight.rounds = self.rounding.get(name)
        dims = list(weight.tensor.dims)[::-1] if transpose else list(weight.tensor.dims)
        integers = onnx_weights.placeholder(self.fresh(f"{name}_quantized"), dims, dtype)
        self.model.graph.initializer.append(integers)
        self.payloads[integers.name] = lambda: weight.quantised(self.folder, self.scheme, transpose)
        scale = self.constant(f"{name}_scale", weight.scale)
        zero = np.full(weight.scale.shape, self.scheme.zero, dtype)
        return integers.name, scale, self.constant(f"{name}_zero_point", zero)

    def alone(self, name: str) -> bool:
        """Whether an initializer has one use, so that it may be changed for that."""
        uses = sum(list(node.input).count(name) for node in self.model.graph.node)
        return uses == 1 and name not in inner_names(self.model.graph)

    def prune(self) -> None:
        """Drop initializers that nothing refers to any more."""
        used = used_names(self.model.graph)
        kept = [t for t in self.model.graph.initializer if t.name in used]
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(kept)
        names = {t.name for t in kept}
        inputs = [v for v in self.model.graph.input if v.name not in self.initializers or v.name in names]
        del self.model.graph.input[:]
        self.model.graph.input.extend(inputs)


def inner_names(graph: Any) -> set[str]:
    """The names that bodies of a graph's control flow refer to, and the graph's outputs: not to be changed."""
    bodies = [body for node in graph.node for body in onnx_model.subgraphs(node)]
    return {v.name for v in graph.output}.union(*(used_names(body) for body in bodies))


def used_names(graph: Any) -> set[str]:
    """Every name that a graph's nodes, those of its subgraphs, or its outputs refer to."""
    used = {v.name for v in graph.output}
    for node in graph.node:
        used.update(node.input)
        for entry in node.attribute:
            for body in (*([entry.g] if entry.HasField("g") else []), *entry.graphs):
                used |= used_names(body)
    return used


def quantise_dynamically(rewrite: Rewrite, targets: Sequence[Any], types: Mapping[str, int]) -> Counter[str]:
    """Turn matrix products with constant weights into integer ones, and lookups into lookups of integers.

    The activations are quantised while the model runs, to uint8 with a range of their own for each call. Returns why
    nodes among `targets` were left alone, with how many each; the rest is done in place.
    """
    left: Counter[str] = Counter()
    wanted = {node.name for node in targets}
    nodes: list[Any] = []
    activations: dict[str, tuple[str, str, str]] = {}
    for node in list(rewrite.model.graph.node):
        why = unfit(rewrite, node, types) if node.name in wanted else "other"
        if why:
            nodes.append(node)
            left.update([why] if node.name in wanted else [])
        elif node.op_type == "Gather":
            nodes += _lookup(rewrite, node)
        else:
            nodes += _product(rewrite, node, activations)
    del rewrite.model.graph.node[:]
    rewrite.model.graph.node.extend(nodes)
    rewrite.prune()
    return left


def unfit(rewrite: Rewrite, node: Any, types: Mapping[str, int]) -> str:
    """Why a node cannot be quantised dynamically; "" where it can."""
    index = weight_input(node)
    tensor = rewrite.initializers.get(node.input[index]) if index is not None else None
    if tensor is None:
        return "without a constant weight"
    if tensor.data_type != FLOAT or (index == 1 and types.get(node.input[0]) != FLOAT):
        return "not float32"
    if node.op_type == "MatMul" and len(tensor.dims) < 2:
        return "with a vector as weight"
    if node.op_type == "Gemm" and (attribute(node, "transA", 0) or attribute(node, "beta", 1.0) != 1.0):
        return "with transA or beta"
    return ""


def _lookup(rewrite: Rewrite, node: Any) -> list[Any]:
    """Gather of integers, then of float values: one scale for the table, which may be read along any axis."""
    import onnx

    weight = measure(rewrite.initializers[node.input[0]], rewrite.folder, None, rewrite.scheme)
    integers, scale, zero = rewrite.integers(weight)
    gathered = rewrite.fresh(f"{node.output[0]}_quantized")
    gather = onnx.NodeProto()
    gather.CopyFrom(node)
    gather.input[0], gather.output[0] = integers, gathered
    widen = onnx.helper.make_node("DequantizeLinear", [gathered, scale, zero], [node.output[0]],
                                  name=f"{node.name or node.output[0]}_dequantize")  # fmt: skip
    return [gather, widen]


def _product(rewrite: Rewrite, node: Any, activations: dict[str, tuple[str, str, str]]) -> list[Any]:
    """MatMul and Gemm as MatMulInteger, scaled back to float32; the pattern onnxruntime fuses into one kernel."""
    import numpy as np
    import onnx

    tensor, scheme = rewrite.initializers[node.input[1]], rewrite.scheme
    rank, name, output = len(tensor.dims), node.name or node.output[0], node.output[0]
    axis = channel_axis(node, rank) if scheme.per_channel else None
    weight = measure(tensor, rewrite.folder, axis, scheme)
    transpose = node.op_type == "Gemm" and bool(attribute(node, "transB", 0))
    integers, scale, zero = rewrite.integers(weight, transpose=transpose)
    alpha = attribute(node, "alpha", 1.0)
    if alpha != 1.0:
        scale = rewrite.constant(f"{scale}_alpha", (weight.scale * alpha).astype(np.float32))
    make, nodes, source = onnx.helper.make_node, [], node.input[0]
    if source not in activations:
        names = tuple(rewrite.fresh(f"{source}_{part}") for part in ("quantized", "scale", "zero_point"))
        activations[source] = (names[0], names[1], names[2])
        nodes.append(make("DynamicQuantizeLinear", [source], list(names), name=f"{PREFIX}quantize_{source}"))
    quantised, its_scale, its_zero = activations[source]
    bias = node.input[2] if len(node.input) > 2 else ""
    total, wide, scaled = (rewrite.fresh(f"{output}_{part}") for part in ("int32", "float", "scale"))
    product = rewrite.fresh(f"{output}_product") if bias else output
    nodes += [
        make("MatMulInteger", [quantised, integers, its_zero, zero], [total], name=f"{name}_quant"),
        make("Cast", [total], [wide], name=f"{name}_cast", to=FLOAT),
        make("Mul", [its_scale, scale], [scaled], name=f"{name}_scales"),
        make("Mul", [wide, scaled], [product], name=f"{name}_rescale"),
    ]
    return [*nodes, make("Add", [product, bias], [output], name=f"{name}_bias")] if bias else nodes


def prepare(model: Any) -> Any:
    """The model with typed values, constants as initializers, and a name for every node; functions inlined."""
    if model.functions:
        model = need("onnx.inliner").inline_local_functions(model)
    model = onnx_types.infer(model)
    onnx_types.hoist(model.graph)
    taken = {node.name for node in model.graph.node}
    for i, node in enumerate(model.graph.node):
        if not node.name:
            node.name = f"{node.op_type}_{i}"
            while node.name in taken:
                node.name += "_"
            taken.add(node.name)
    return model


def matching(model: Any, patterns: Sequence[str]) -> set[str]:
    """The names of the nodes that `with.exclude` means. Raises StepError for a pattern that matches none."""
    names = [node.name for node in model.graph.node]
    found: set[str] = set()
    for pattern in patterns:
        matches = {name for name in names if name == pattern} or set(fnmatch.filter(names, pattern))
        if not matches:
            raise StepError(f"no node is called {pattern!r}", hint=did_you_mean(pattern, names),
                            subject="with.exclude")  # fmt: skip
        found |= matches
    return found


def shown(model: Any) -> str:
    """The operators that a model has most of: "3 MatMul, 2 Add"."""
    counts = Counter(node.op_type for node in model.graph.node).most_common(8)
    return ", ".join(f"{n} {name}" for name, n in counts) or "no nodes"
