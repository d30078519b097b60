"""ONNX's quantising and dequantising in TensorFlow; see `optkit.formats.onnx_tf.translate`.

TensorFlow has no 8-bit kernels of the kind ONNX asks for on a CPU: values are rounded to the same integers and computed
with in float32, and only constants stay 8 bits wide.
"""

from __future__ import annotations

from typing import Any

from optkit.formats.onnx_tf.translate import Build, Image, Integers, Node, Unsupported, is_array, operator


def _spread(build: Build, value: Any, axis: int, rank: int, last: bool) -> Any:
    """A scale or zero-point so that it broadcasts along its axis."""
    value = build.tf.convert_to_tensor(value)
    if build.rank(value) == 0:
        return value
    if build.rank(value) > 1:
        raise Unsupported("it quantises in blocks")
    if value.shape[0] == 1:
        return build.tf.reshape(value, [])
    place = axis % rank
    place = {0: 0, 1: rank - 1}.get(place, place - 1) if last else place
    return build.tf.reshape(value, [-1 if a == place else 1 for a in range(rank)])


@operator("QuantizeLinear", raw=True)
def quantize(build: Build, node: Node, x: Any, scale: Any, zero: Any = None) -> Any:
    import numpy as np

    tf = build.tf
    if node.get("block_size"):
        raise Unsupported("it quantises in blocks")
    last = isinstance(x, Image)
    value = x.last if last else tf.convert_to_tensor(build.plain(x))
    rank, axis = build.rank(value), node.get("axis", 1)
    kind = tf.uint8 if zero is None else tf.convert_to_tensor(build.plain(zero)).dtype
    if not kind.is_integer:
        raise Unsupported(f"it quantises to {kind.name}")
    limits = np.iinfo(kind.as_numpy_dtype)
    rounded = tf.round(tf.cast(value, tf.float32) / _spread(build, build.plain(scale), axis, rank, last))
    if zero is not None:
        rounded = rounded + tf.cast(_spread(build, build.plain(zero), axis, rank, last), tf.float32)
    made = tf.cast(tf.clip_by_value(rounded, float(limits.min), float(limits.max)), kind)
    return Image(made) if last else made


@operator("DequantizeLinear", raw=True)
def dequantize(build: Build, node: Node, x: Any, scale: Any, zero: Any = None) -> Any:
    import numpy as np

    tf, axis = build.tf, node.get("axis", 1)
    if node.get("block_size"):
        raise Unsupported("it quantises in blocks")
    if is_array(x) and is_array(scale) and (zero is None or is_array(zero)):
        zero = np.zeros_like(scale, np.float32) if zero is None else zero
        return Integers(x, scale, zero, axis % x.ndim if np.size(scale) > 1 else None)
    last = isinstance(x, Image)
    value = x.last if last else tf.convert_to_tensor(build.plain(x))
    rank = build.rank(value)
    factor = _spread(build, build.plain(scale), axis, rank, last)
    wide = tf.cast(value, factor.dtype)
    if zero is not None:
        wide = wide - tf.cast(_spread(build, build.plain(zero), axis, rank, last), factor.dtype)
    return Image(wide * factor) if last else wide * factor


@operator("DynamicQuantizeLinear")
def dynamic_quantize(build: Build, node: Node, x: Any) -> Any:
    tf = build.tf
    low, high = tf.minimum(tf.reduce_min(x), 0.0), tf.maximum(tf.reduce_max(x), 0.0)
    scale = (high - low) / 255.0
    scale = tf.where(tf.equal(scale, 0.0), 1.0, scale)
    zero = tf.clip_by_value(tf.round(-low / scale), 0.0, 255.0)
    made = tf.cast(tf.clip_by_value(tf.round(x / scale) + zero, 0.0, 255.0), tf.uint8)
    return made, scale, tf.cast(zero, tf.uint8)
