"""What GPTQ needs to know of an ONNX model's layers: the mean of x x^T over the inputs that each weight meets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.formats.onnx import integer as onnx_integer
from optkit.formats.onnx import ranges as onnx_ranges

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optkit.formats.onnx.ranges import Feed

    Array = NDArray[Any]

AT_ONCE = 1 << 30  # bytes of Hessians that are summed in one pass over the data; more take further passes
_VALUES = 1 << 24  # of a convolution's inputs that are copied at once, before positions are picked
_ROWS = 4096  # positions of a convolution that one feed contributes, evenly spread


@dataclass(frozen=True)
class Layer:
    """One use of a weight. groups: of a convolution; inputs: how many values meet one output of one group."""

    weight: str
    node: Any
    dims: tuple[int, ...]

    @property
    def groups(self) -> int:
        return int(onnx_integer.attribute(self.node, "group", 1)) if self.node.op_type == "Conv" else 1

    @property
    def inputs(self) -> int:
        import math

        if self.node.op_type == "Conv":
            return math.prod(self.dims[1:])
        return self.dims[1] if onnx_integer.attribute(self.node, "transB", 0) else self.dims[0]

    def rows(self, values: Array) -> Array:
        """What the weight is multiplied with, `(groups, rows, inputs)`, from the layer's input tensor."""
        if self.node.op_type == "Conv":
            return _patches(values, self)
        if onnx_integer.attribute(self.node, "transA", 0):
            values = values.T
        return values.reshape(1, -1, values.shape[-1])


def layer(rewrite: onnx_integer.Rewrite, node: Any) -> Layer | None:
    """A node as a layer, or None where it is a ConvTranspose, or its weight a stack of matrices or on the left."""
    tensor = rewrite.initializers.get(node.input[1]) if len(node.input) > 1 else None
    if node.op_type not in ("Conv", "Gemm", "MatMul") or tensor is None or tensor.data_type != onnx_integer.FLOAT:
        return None
    if node.input[0] in rewrite.initializers or (node.op_type != "Conv" and len(tensor.dims) != 2):
        return None
    return Layer(node.input[1], node, tuple(tensor.dims))


def hessians(
    model: Any,
    source: Path,
    layers: Sequence[Layer],
    feeds: Callable[[], Iterable[Feed]],
    threads: int,
    folder: Path,
) -> dict[str, Path]:
    """Of each weight the file of its Hessian, float32 `(groups, inputs, inputs)`, in `folder`.

    One feed's tensors and `AT_ONCE` bytes of sums are held at a time. A weight that several layers use has the sum of
    them. `model` may refer to weights in `source`. Raises StepError where a tensor becomes NaN or infinite.
    """
    import numpy as np

    made: dict[str, Path] = {}
    for part in _parts(layers):
        tensors = list(dict.fromkeys(one.node.input[0] for one in part))
        session, fetched = onnx_ranges.watched(model, source, tensors, threads)
        sums = {one.weight: np.zeros((one.groups, one.inputs, one.inputs)) for one in part}
        counts = dict.fromkeys(sums, 0)
        for feed in feeds():
            values = dict(zip(fetched, onnx_ranges.run(session, fetched, feed), strict=True))
            for one in part:
                name = one.node.input[0]
                rows = one.rows(np.asarray(values[name] if name in values else feed[name]))
                if not np.isfinite(rows).all():
                    raise onnx_ranges.not_finite(name)
                sums[one.weight] += rows.transpose(0, 2, 1) @ rows
                counts[one.weight] += rows.shape[1]
        for name, total in sums.items():
            path = made[name] = folder / f"hessian-{len(made)}.npy"
            np.save(path, (total / max(counts[name], 1)).astype(np.float32))
    return made


def _parts(layers: Sequence[Layer]) -> list[list[Layer]]:
    """The layers in as few passes over the data as `AT_ONCE` allows, those of one weight together."""
    by_weight: dict[str, list[Layer]] = {}
    for one in layers:
        by_weight.setdefault(one.weight, []).append(one)
    parts: list[list[Layer]] = []
    room = 0
    for group in by_weight.values():
        need = 8 * group[0].groups * group[0].inputs ** 2
        if not parts or need > room:
            parts.append([])
            room = AT_ONCE
        parts[-1] += group
        room -= need
    return parts


def _patches(values: Array, one: Layer) -> Array:
    """The inputs of a convolution's outputs, `(groups, rows, channels per group x kernel)`."""
    import numpy as np

    get = onnx_integer.attribute
    kernel, rank = one.dims[2:], len(one.dims) - 2
    strides = list(get(one.node, "strides", [1] * rank))
    dilations = list(get(one.node, "dilations", [1] * rank))
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = list(get(one.node, "pads", [0] * 2 * rank))
    auto = get(one.node, "auto_pad", b"NOTSET").decode()
    if auto.startswith("SAME"):
        total = [max((-(-n // s) - 1) * s + span - n, 0)
                 for n, s, span in zip(values.shape[2:], strides, spans, strict=True)]  # fmt: skip
        less = [t // 2 for t in total]
        more = [t - small for t, small in zip(total, less, strict=True)]
        pads = [*less, *more] if auto == "SAME_UPPER" else [*more, *less]
    padded = np.pad(values, [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, tuple(range(2, 2 + rank)))
    steps = (slice(None), slice(None), *(slice(None, None, s) for s in strides))
    windows = windows[(*steps, *(slice(None, None, d) for d in dilations))]
    moved = np.moveaxis(windows, 1, 1 + rank)  # batch, positions, channels, kernel
    while moved.size > _VALUES and max(moved.shape[1 : 1 + rank]) > 1:  # so far all is a view of the padded input
        axis = 1 + int(np.argmax(moved.shape[1 : 1 + rank]))
        moved = moved[(slice(None),) * axis + (slice(None, None, 2),)]
    positions = moved.reshape(-1, one.groups, one.inputs)
    return np.ascontiguousarray(positions[:: max(1, len(positions) // _ROWS)].transpose(1, 0, 2))
