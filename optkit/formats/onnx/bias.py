"""Bias correction in ONNX graphs: the mean error that quantisation makes of each layer's output goes into its bias.

M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019), section 4.2: the
error is not zero on average, and later layers take the shift for signal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optkit.formats.onnx import integer as onnx_integer
from optkit.formats.onnx import ranges as onnx_ranges
from optkit.formats.onnx import weights as onnx_weights
from optkit.formats.onnx.integer import PREFIX, attribute
from optkit.formats.onnx.statistics import PROBE, Probe

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from optkit.formats.onnx.ranges import Feed

    Array = NDArray[Any]

KINDS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Layer:
    """A node with a constant weight and the constant that is added to its output, `(channels,)`, its own."""

    node: str
    bias: str
    channels: int
    factor: float
    axis: tuple[int, int]
    depth: int


def prepare(rewrite: onnx_integer.Rewrite, targets: Sequence[Any]) -> int:
    """Give each of `targets` that has a weight a bias of its own, of zeros where it had none; how many were given one.

    A MatMul gets an Add behind it, unless one with a constant is there.
    """
    import numpy as np
    import onnx

    given = 0
    after: dict[str, Any] = {}
    for node in targets:
        channels = _channels(rewrite, node)
        if channels is None or _bias_of(rewrite, node, channels):
            continue
        dtype = onnx.helper.tensor_dtype_to_np_dtype(rewrite.initializers[node.input[1]].data_type)
        old = node.input[2] if node.op_type != "MatMul" and len(node.input) > 2 and node.input[2] else ""
        values = np.zeros(channels, dtype)
        if old:
            tensor = rewrite.initializers.get(old)
            if tensor is None or onnx_weights.read(tensor, rewrite.folder).size not in (1, channels):
                continue  # computed, or another for each row
            values = np.array(np.broadcast_to(onnx_weights.read(tensor, rewrite.folder).reshape(-1), channels), dtype)
        name = rewrite.constant(f"{PREFIX}{node.name}_bias", values)
        rewrite.initializers[name] = rewrite.model.graph.initializer[-1]
        given += 1
        if node.op_type == "MatMul":
            output = node.output[0]
            node.output[0] = rewrite.fresh(f"{output}_product")
            after[node.name] = onnx.helper.make_node("Add", [node.output[0], name], [output],
                                                     name=f"{PREFIX}{node.name}_correct")  # fmt: skip
        else:
            del node.input[2:]
            node.input.append(name)
    nodes = [one for node in rewrite.model.graph.node for one in (node, after.get(node.name)) if one is not None]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del rewrite.model.graph.node[:]
    rewrite.model.graph.node.extend(nodes)
    return given


def layers(rewrite: onnx_integer.Rewrite, targets: Sequence[Any]) -> list[Layer]:
    """The layers that can be corrected, in the order they run. depth: how many of them a value passes before."""
    wanted = {node.name for node in targets}
    depth: dict[str, int] = {}
    found = []
    for node in rewrite.model.graph.node:
        at = max((depth.get(name, 0) for name in node.input), default=0)
        channels = _channels(rewrite, node) if node.name in wanted else None
        bias = _bias_of(rewrite, node, channels) if channels else ""
        if channels and bias:
            rank = len(rewrite.initializers[node.input[1]].dims)
            factor = attribute(node, "beta", 1.0) if node.op_type == "Gemm" else 1.0
            axis = (1, rank) if node.op_type in ("Conv", "ConvTranspose") else (-1, 0)
            found.append(Layer(node.name, bias, channels, float(factor), axis, at))
            at += 1
        depth.update(dict.fromkeys(node.output, at))
    return found


def _channels(rewrite: onnx_integer.Rewrite, node: Any) -> int | None:
    tensor = rewrite.initializers.get(node.input[1]) if node.op_type in KINDS and len(node.input) > 1 else None
    if tensor is None or node.input[0] in rewrite.initializers or len(tensor.dims) < 2:
        return None
    if attribute(node, "beta", 1.0) == 0:
        return None
    if node.op_type == "ConvTranspose":
        return int(tensor.dims[1] * attribute(node, "group", 1))
    if node.op_type == "MatMul":
        return int(tensor.dims[-1])
    return int(tensor.dims[onnx_integer.channel_axis(node, len(tensor.dims)) or 0])


def _bias_of(rewrite: onnx_integer.Rewrite, node: Any, channels: int) -> str:
    """The name of a node's own constant bias, `(channels,)`; "" where it has none."""
    nodes = rewrite.model.graph.node
    name = node.input[2] if node.op_type != "MatMul" and len(node.input) > 2 else ""
    if node.op_type == "MatMul":
        output, users = node.output[0], [n for n in nodes if node.output[0] in n.input]
        if len(users) != 1 or users[0].op_type != "Add" or any(v.name == output for v in rewrite.model.graph.output):
            return ""
        name = next((n for n in users[0].input if n in rewrite.initializers), "")
    tensor = rewrite.initializers.get(name)
    own = tensor is not None and list(tensor.dims) == [channels] and rewrite.alone(name)
    return name if own else ""


def shift(rewrite: onnx_integer.Rewrite, node: Any, weight: onnx_integer.Weight, mean: Array) -> Array | None:
    """How far rounding of its weight moves a node's mean output, `(channels,)`, by the mean of its input's channels.

    Padding is taken for more of the same. None for a ConvTranspose, and for a product with several matrices.
    """
    import numpy as np

    if node.op_type == "ConvTranspose" or (node.op_type == "MatMul" and len(weight.tensor.dims) > 2):
        return None
    values = onnx_weights.read(weight.tensor, rewrite.folder)
    scale = weight.scale
    if weight.axis is not None:
        scale = scale.reshape([-1 if i == weight.axis else 1 for i in range(values.ndim)])
    whole = weight.quantised(rewrite.folder, rewrite.scheme).astype(np.float64) - rewrite.scheme.zero
    off = whole * scale - values
    if node.op_type == "Conv":
        group = int(attribute(node, "group", 1))
        off = off.reshape(group, -1, *off.shape[1:2], int(np.prod(off.shape[2:]))).sum(axis=3)
        return np.asarray(np.einsum("goi,gi->go", off, mean.reshape(group, -1)).reshape(-1))
    if node.op_type == "Gemm":
        off = (off if attribute(node, "transB", 0) else off.T) * attribute(node, "alpha", 1.0)
        return np.asarray(off @ mean)
    return np.asarray(mean @ off)


def add(rewrite: onnx_integer.Rewrite, bias: str, values: Array) -> None:
    """Add to the values of a bias."""
    import onnx

    tensor = rewrite.initializers[bias]
    old = onnx_weights.read(tensor, rewrite.folder)
    tensor.CopyFrom(onnx.numpy_helper.from_array((old + values).astype(old.dtype), tensor.name))


def means(
    model: Any, folder: Path, found: Sequence[Layer], feeds: Iterable[tuple[Feed, int]], threads: int
) -> dict[str, Array]:
    """The mean of each channel of the layers' outputs, before their biases where these are added by another node."""
    import numpy as np

    probe, outputs = Probe(model), {node.name: node.output[0] for node in model.graph.node}
    for one in found:
        probe.channels(outputs[one.node], *one.axis)
    session = probe.open(folder, threads)
    totals = {one.node: np.zeros(one.channels) for one in found}
    counts = dict.fromkeys(totals, 0)
    for feed, _ in feeds:
        values = dict(zip(probe.outputs, onnx_ranges.run(session, probe.outputs, feed), strict=True))
        for one in found:
            name = outputs[one.node]
            totals[one.node] += values[f"{PROBE}sum_{name}"]
            counts[one.node] += int(values[f"{PROBE}size_{name}"]) // one.channels
    return {name: total / max(counts[name], 1) for name, total in totals.items()}


def fitted(
    found: Sequence[Layer],
    before: Mapping[str, Array],
    after: Callable[[Mapping[str, Array], Sequence[Layer]], Mapping[str, Array]],
) -> dict[str, Array]:
    """What to add to each bias, layer after layer: each is measured with those before it corrected.

    before: the mean outputs of the float model. after(added, layers): those of the quantised one, with `added` in its
    biases. Layers of one depth are measured together.
    """
    added: dict[str, Array] = {}
    for depth in sorted({one.depth for one in found}):
        part = [one for one in found if one.depth == depth]
        measured = after(added, part)
        for one in part:
            added[one.bias] = (before[one.node] - measured[one.node]) / one.factor
    return added
