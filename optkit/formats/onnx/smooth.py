"""SmoothQuant of an ONNX graph: the same function, with outliers of a product's input moved into its weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optkit.formats import smoothing
from optkit.formats.onnx import integer as onnx_integer
from optkit.formats.onnx import weights as onnx_weights
from optkit.formats.onnx.integer import PREFIX, attribute

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


@dataclass(frozen=True)
class Group:
    """Products of one input; they share its scales."""

    source: str
    nodes: tuple[Any, ...]

    def weight_axis(self, node: Any) -> int:
        """The axis of a weight that the input's channels lie along."""
        return 1 if node.op_type == "Gemm" and attribute(node, "transB", 0) else 0


def groups(rewrite: onnx_integer.Rewrite, targets: Sequence[Any]) -> list[Group]:
    """The products among `targets` that can be smoothed: of a computed input and a matrix that nothing else uses."""
    found: dict[str, list[Any]] = {}
    for node in targets:
        tensor = rewrite.initializers.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type not in ("Gemm", "MatMul") or tensor is None or len(tensor.dims) != 2:
            continue
        if node.input[0] in rewrite.initializers or attribute(node, "transA", 0) or not rewrite.alone(tensor.name):
            continue
        found.setdefault(node.input[0], []).append(node)
    return [Group(source, tuple(nodes)) for source, nodes in found.items()]


def smooth(rewrite: onnx_integer.Rewrite, found: Sequence[Group], peaks: Mapping[str, Array], alpha: float) -> int:
    """Divide each group's input by its scales and multiply the weights; how many groups had anything to move.

    peaks: the greatest magnitude of each channel of each input on data. alpha: see `smoothing.scales`. The division
    goes into a LayerNormalization that feeds the group alone; else a Mul is put in. New values of weights go to
    `rewrite.payloads`, one weight is held at a time.
    """
    import numpy as np

    done = 0
    for group in found:
        reach = np.zeros(len(peaks[group.source]))
        for node in group.nodes:
            values = onnx_weights.read(rewrite.initializers[node.input[1]], rewrite.folder)
            reach = np.maximum(reach, np.abs(values).max(axis=1 - group.weight_axis(node)))
        scale = smoothing.scales(peaks[group.source], reach, alpha)
        if scale is None:
            continue
        done += 1
        if not _folded(rewrite, group, scale):
            _divided(rewrite, group, scale)
        for node in group.nodes:
            tensor, axis = rewrite.initializers[node.input[1]], group.weight_axis(node)
            rewrite.payloads[tensor.name] = _payload(rewrite, tensor, scale[:, None] if axis == 0 else scale)
    return done


def _payload(rewrite: onnx_integer.Rewrite, tensor: Any, factor: Array) -> Any:
    def values() -> Array:
        read = onnx_weights.read(tensor, rewrite.folder)
        return (read * factor).astype(read.dtype)

    return values


def _folded(rewrite: onnx_integer.Rewrite, group: Group, scale: Array) -> bool:
    """Whether the division went into the normalisation that makes the input."""
    graph = rewrite.model.graph
    maker = next((n for n in graph.node if group.source in n.output), None)
    names = [name for node in graph.node for name in node.input]
    inner = onnx_integer.inner_names(graph)
    if maker is None or maker.op_type != "LayerNormalization" or group.source in inner:
        return False
    own = [t for name in maker.input[1:] if (t := rewrite.initializers.get(name)) is not None]
    alone = names.count(group.source) == len(group.nodes)
    fit = len(own) == len(maker.input) - 1 and all(list(t.dims) == [len(scale)] and rewrite.alone(t.name) for t in own)
    if not alone or not fit:
        return False
    for tensor in own:
        rewrite.payloads[tensor.name] = _payload(rewrite, tensor, 1 / scale)
    return True


def _divided(rewrite: onnx_integer.Rewrite, group: Group, scale: Array) -> None:
    """Put a Mul before the group."""
    import onnx

    graph = rewrite.model.graph
    kind = rewrite.initializers[group.nodes[0].input[1]].data_type
    factor = rewrite.constant(f"{group.source}_smooth", (1 / scale).astype(onnx.helper.tensor_dtype_to_np_dtype(kind)))
    output = rewrite.fresh(f"{group.source}_smoothed")
    made = onnx.helper.make_node("Mul", [group.source, factor], [output], name=f"{PREFIX}{output}")
    wanted = {node.name for node in group.nodes}
    nodes = list(graph.node)
    nodes.insert(next(i for i, node in enumerate(nodes) if node.name in wanted), made)
    for node in nodes:
        if node.name in wanted:
            node.input[0] = output
    del graph.node[:]
    graph.node.extend(nodes)
