"""Cross-layer equalisation of an ONNX graph: the same function, with channels of like range on either side of a ReLU.

M. Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (ICCV 2019), section 4.1.

The limit of a Clip, such as ReLU6, is one number for all channels, and one for each would be an operator that no int8
kernel takes in. So it stays, and data says what may move below it: a channel that reaches the limit stays as it is, any
other takes at most `ROOM` of it. On the data that is the same function; beyond it a value may be clipped that was not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optkit.formats.onnx import integer as onnx_integer
from optkit.formats.onnx import weights as onnx_weights
from optkit.formats.onnx.integer import attribute

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

THROUGH = ("AveragePool", "Dropout", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "Identity", "LeakyRelu",
           "MaxPool", "PRelu", "Relu")  # fmt: skip
"""Operators that a channel's scale passes through."""

ROOM = 0.5
"""Up to which share of a Clip's limit the largest value of a channel may be moved: data does not hold all there is."""

_REACHED = 0.999  # of the limit: the rest is rounding
_SWEEPS, _SETTLED = 40, 1e-3
_SPREAD = 1e3  # channels narrower than this share of the widest count as that wide, or a bias would grow without end


@dataclass
class _Layer:
    """A node with its weight's magnitudes, `(outputs, inputs per group)`, and what its channels are multiplied by."""

    node: Any
    tensor: Any
    magnitude: Array
    depthwise: bool
    outputs: Array
    inputs: Array
    bias: Any = None

    def rows(self) -> Array:
        """The range of each output channel's weights."""
        import numpy as np

        rows: Array = (self.magnitude * (1 if self.depthwise else self.inputs)).max(axis=1) * self.outputs
        return rows * self._spread() if self.depthwise else np.asarray(rows)

    def columns(self) -> Array:
        """The range of each input channel's weights."""
        if self.depthwise:
            columns: Array = self.rows().reshape(len(self.inputs), -1).max(axis=1)
        else:
            columns = (self.magnitude * self.outputs[:, None]).max(axis=0) * self.inputs
        return columns

    def _spread(self) -> Array:
        import numpy as np

        return np.repeat(self.inputs, len(self.outputs) // len(self.inputs))

    def scaled(self, values: Array) -> Array:
        """The weight, with its channels multiplied."""
        node, rank = self.node, values.ndim
        out = onnx_integer.channel_axis(node, rank)
        factor = self.outputs * (self._spread() if self.depthwise else 1)
        wide: Array = values * factor.reshape([-1 if i == out else 1 for i in range(rank)])
        if not self.depthwise:
            wide = wide * self.inputs.reshape([-1 if i == _input_axis(node) else 1 for i in range(rank)])
        return wide.astype(values.dtype)


@dataclass
class _Clip:
    """A Clip between two layers: its output, the axis of its channels with its rank, and its upper limit."""

    output: str
    channels: tuple[int, int]
    limit: float


@dataclass
class _Pair:
    """Two layers whose channels can be balanced, each by a factor from `least` to `most`, `(channels,)`."""

    first: _Layer
    second: _Layer
    clip: _Clip | None = None
    least: Array | float = 0.0
    most: Array | float = float("inf")

    def hold(self, peaks: Array) -> None:
        """Keep below the Clip, where each channel reaches up to `peaks` on data."""
        import numpy as np

        assert self.clip is not None
        free = peaks < _REACHED * self.clip.limit
        self.least = np.where(free, 0.0, 1.0)
        self.most = np.where(free, np.maximum(1.0, ROOM * self.clip.limit / np.maximum(peaks, 1e-30)), 1.0)


def clipped(rewrite: onnx_integer.Rewrite, targets: Sequence[Any]) -> dict[str, tuple[int, int]]:
    """The outputs of Clips between layers, whose channels' peaks `equalise` takes: by name, as a `Request` has them."""
    layers = {node.name: made for node in targets if (made := _layer(rewrite, node))}
    return {pair.clip.output: pair.clip.channels for pair in _pairs(rewrite, layers)[0] if pair.clip}


def equalise(
    rewrite: onnx_integer.Rewrite, targets: Sequence[Any], peaks: Mapping[str, Array]
) -> tuple[int, int, Counter[str]]:
    """Multiply channels between pairs of `targets`; how many pairs, how many of them below a Clip, and why others were
    left with how many each.

    peaks: of the channels of what `clipped` names, on data. The graph stays as it is; new values of weights and biases
    go to `rewrite.payloads`. One number for each input and output channel of every weight is held.
    """
    import numpy as np

    layers = {node.name: made for node in targets if (made := _layer(rewrite, node))}
    pairs, left = _pairs(rewrite, layers)
    for pair in list(pairs):
        if pair.clip is None:
            continue
        if pair.clip.output in peaks:
            pair.hold(peaks[pair.clip.output])
        if pair.clip.output not in peaks or np.all(pair.least):
            pairs.remove(pair)
            left["followed by Clip" + (", at whose limit every channel is" if pair.clip.output in peaks else "")] += 1
    for _ in range(_SWEEPS):
        most = 0.0
        for pair in pairs:
            above, below = _floored(pair.first.rows()), _floored(pair.second.columns())
            outputs = np.clip(pair.first.outputs / np.sqrt(above / below), pair.least, pair.most)
            scale = pair.first.outputs / outputs
            pair.first.outputs = outputs
            pair.second.inputs *= scale
            most = max(most, float(np.abs(np.log(scale)).max()))
        if most < _SETTLED:
            break
    for layer in {id(layer): layer for pair in pairs for layer in (pair.first, pair.second)}.values():
        rewrite.payloads[layer.tensor.name] = _payload(rewrite, layer.tensor, layer.scaled)
        if layer.bias is not None:
            rewrite.payloads[layer.bias.name] = _payload(rewrite, layer.bias, _bias_scaled(layer.outputs))
    return len(pairs), sum(pair.clip is not None for pair in pairs), left


def _payload(rewrite: onnx_integer.Rewrite, tensor: Any, change: Any) -> Any:
    return lambda: change(onnx_weights.read(tensor, rewrite.folder))


def _bias_scaled(factor: Array) -> Any:
    return lambda values: (values * factor).astype(values.dtype)


def _floored(ranges: Array) -> Array:
    """Ranges of channels, none of them 0."""
    import numpy as np

    return np.maximum(ranges, max(float(ranges.max()) / _SPREAD, 1e-30))


def _limit(rewrite: onnx_integer.Rewrite, clip: Any) -> float | None:
    """The upper limit of a Clip from 0, infinity where it has none; None of any other."""
    import numpy as np

    ends = [rewrite.initializers.get(name) for name in clip.input[1:] if name]
    if None in ends or not 2 <= len(clip.input) <= 3 or not clip.input[1]:
        return None
    low, *high = (float(np.max(onnx_weights.read(tensor, rewrite.folder))) for tensor in ends)
    if low != 0 or (high and high[0] <= 0):
        return None
    return high[0] if high and high[0] < 1e30 else float("inf")


def _input_axis(node: Any) -> int:
    """The axis of a weight along its input channels, where these are not in groups."""
    if node.op_type == "Gemm":
        return 1 if attribute(node, "transB", 0) else 0
    return 1 if node.op_type == "Conv" else 0


def _layer(rewrite: onnx_integer.Rewrite, node: Any) -> _Layer | None:
    """A node that can be half of a pair, or None: its weight is shared, stacked, or in several wide groups."""
    import numpy as np

    tensor = rewrite.initializers.get(node.input[1]) if len(node.input) > 1 else None
    if tensor is None or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return None
    dims, group = list(tensor.dims), int(attribute(node, "group", 1))
    depthwise = node.op_type == "Conv" and group > 1 and dims[1] == 1
    if (group > 1 and not depthwise) or len(dims) < 2 or (node.op_type == "MatMul" and len(dims) > 2):
        return None
    if attribute(node, "transA", 0) or not rewrite.alone(tensor.name):
        return None
    values = np.abs(onnx_weights.read(tensor, rewrite.folder)).astype(np.float32)
    if not np.isfinite(values).all():
        raise onnx_integer.not_finite(tensor.name)
    out = onnx_integer.channel_axis(node, len(dims)) or 0
    matrix = values.reshape(*dims[:2], -1).max(axis=2)
    matrix = matrix if out == 0 else matrix.T
    outputs, inputs = len(matrix), group if depthwise else matrix.shape[1]
    return _Layer(node, tensor, matrix, depthwise, np.ones(outputs), np.ones(inputs))


def _pairs(rewrite: onnx_integer.Rewrite, layers: dict[str, _Layer]) -> tuple[list[_Pair], Counter[str]]:
    graph = rewrite.model.graph
    uses: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            uses.setdefault(name, []).append(node)
    inner = onnx_integer.inner_names(graph)
    found, left = list[_Pair](), Counter[str]()
    for layer in layers.values():
        at, constants, why = layer.node, [], ""
        clip, flat = None, False
        if layer.node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(at.input) > 2 and at.input[2]:
            constants.append(at.input[2])
        while True:
            source, after = at.output[0], uses.get(at.output[0], [])
            if len(after) != 1 or source in inner:
                why = "used more than once"
                break
            at = after[0]
            added = [name for name in at.input if name in rewrite.initializers]
            if at.op_type == "Add" and layer.node.op_type == "MatMul" and len(added) == 1:
                constants += added
            elif at.op_type == "Clip" and not (flat or clip) and (limit := _limit(rewrite, at)) is not None:
                rank = len(layer.tensor.dims)
                axis = (1, rank) if layer.node.op_type in ("Conv", "ConvTranspose") else (-1, 0)
                clip = _Clip(at.output[0], axis, limit) if limit < float("inf") else None
            elif at.op_type == "Flatten":
                flat = True
            elif at.op_type not in THROUGH or at.input[0] != source:
                break
        second = layers.get(at.name)
        if why or second is None or second is layer:
            left[why or f"followed by {at.op_type}"] += 1
            continue
        if len(second.inputs) != len(layer.outputs) or at.input[0] != source:
            left["with channels that are mixed on the way"] += 1
            continue
        biases = [rewrite.initializers.get(name) for name in constants]
        size = [len(layer.outputs)]
        if len(biases) > 1 or any(b is None or list(b.dims) != size or not rewrite.alone(b.name) for b in biases):
            left["with a bias that is shared or not constant"] += 1
            continue
        layer.bias = biases[0] if biases else None
        found.append(_Pair(layer, second, clip))
    return found, left
