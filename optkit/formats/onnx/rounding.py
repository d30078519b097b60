"""GPTQ rounding of 8-bit weights in ONNX graphs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.formats import rounding
from optkit.formats.onnx import hessian as onnx_hessian
from optkit.formats.onnx import integer as onnx_integer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


def rounders(layers: Sequence[onnx_hessian.Layer], hessians: Mapping[str, Path]) -> dict[str, onnx_integer.Rounds]:
    """How to round each weight of `layers`, by its name; what was chosen is kept beside the Hessian's file."""
    return {one.weight: _rounder(one, hessians[one.weight]) for one in layers}


def _rounder(one: onnx_hessian.Layer, hessian: Path) -> onnx_integer.Rounds:
    def rounds(values: Array, scale: Array, steps: int) -> Array:
        import numpy as np

        mark = hashlib.sha256(np.ascontiguousarray(scale).tobytes() + bytes([steps])).hexdigest()[:16]
        kept = hessian.with_name(f"{hessian.stem}-{mark}.npy")
        if not kept.exists():
            np.save(kept, _chosen(one, np.load(hessian), values, scale, steps).astype(np.int8))
        whole: Array = np.load(kept).astype(values.dtype)
        return whole

    return rounds


def _fixed(scale: Array, zero: Array) -> rounding.Grid:
    """The same steps for every column."""
    return lambda column, now: (scale, zero)


def _chosen(one: onnx_hessian.Layer, hessian: Array, values: Array, scale: Array, steps: int) -> Array:
    """The integers, in the weight's own shape: GPTQ's where they keep a group's outputs closer than the nearest do."""
    import numpy as np

    flip = one.node.op_type != "Conv" and not onnx_integer.attribute(one.node, "transB", 0)
    spread = np.broadcast_to(scale, values.shape)
    rows, scales = (np.asarray(a.T if flip else a, np.float32) for a in (values, spread))
    rows, scales = (a.reshape(one.groups, -1, one.inputs) for a in (rows, scales))
    zero = np.zeros(rows.shape[1], np.float32)
    whole = np.empty_like(rows)
    for g in range(one.groups):
        column = scales[g, :, 0]
        nearest = np.clip(np.rint(rows[g] / column[:, None]), -steps, steps)
        found = rounding.gptq(rows[g], hessian[g], _fixed(column, zero), -steps, steps)
        errors = [rounding.output_error(w * column[:, None] - rows[g], hessian[g]) for w in (found, nearest)]
        whole[g] = found if errors[0] < errors[1] else nearest
    flat = whole.reshape(values.shape[::-1] if flip else values.shape)
    return flat.T if flip else flat
