"""ONNX's convolutions, pools and normalisations in TensorFlow, channels last: see `onnx_tf.translate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optkit.formats.onnx_tf.translate import Build, Image, Integers, Node, Unsupported, is_array, operator


def image(build: Build, value: Any) -> Any:
    """A value with its channels last."""
    if isinstance(value, Image):
        return value.last
    x = build.tf.convert_to_tensor(build.plain(value))
    rank = build.rank(x)
    if rank < 3:
        raise Unsupported(f"its input has {rank} axes")
    return build.tf.transpose(x, [0, *range(2, rank), 1])


def _turned(build: Build, weight: Any, order: Sequence[int]) -> Any:
    """A weight as a tensor, its axes in another order; that of a constant is changed now."""
    import numpy as np

    if isinstance(weight, Integers):
        return weight.turned(order).real(build)
    if is_array(weight):
        return build.tensor(np.ascontiguousarray(weight.transpose(order)))
    return build.tf.transpose(build.tensor(weight), order)


def _sizes(weight: Any) -> list[int]:
    found = list(weight.shape)
    if None in found:
        raise Unsupported("the sizes of its kernel are not known")
    return [int(n) for n in found]


def _pads(build: Build, node: Node, x: Any, window: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int]]:
    """What to add before and after each axis of space; `window` counts the gaps of a dilated kernel."""
    space, auto = len(window), node.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        given = node.get("pads") or [0] * 2 * space
        return [(given[axis], given[axis + space]) for axis in range(space)]
    if auto == "VALID":
        return [(0, 0)] * space
    found = []
    for axis in range(space):
        size = x.shape[1 + axis]
        if size is None:
            raise Unsupported(f"auto_pad {auto} needs a known size")
        whole = max((-(-size // strides[axis]) - 1) * strides[axis] + window[axis] - size, 0)
        small, large = whole // 2, whole - whole // 2
        found.append((small, large) if auto == "SAME_UPPER" else (large, small))
    return found


def _padded(build: Build, x: Any, pads: Sequence[tuple[int, int]], value: Any = 0) -> Any:
    if not any(n for pair in pads for n in pair):
        return x
    return build.tf.pad(x, [(0, 0), *pads, (0, 0)], constant_values=value)


@operator("Conv", raw=True)
def conv(build: Build, node: Node, x: Any, weight: Any, bias: Any = None) -> Any:
    tf = build.tf
    x = image(build, x)
    shape = _sizes(weight)
    space = len(shape) - 2
    strides, dilations = node.get("strides") or [1] * space, node.get("dilations") or [1] * space
    window = [(k - 1) * d + 1 for k, d in zip(shape[2:], dilations, strict=True)]
    x = _padded(build, x, _pads(build, node, x, window, strides))
    groups = node.get("group", 1)
    kernel = _turned(build, weight, [*range(2, 2 + space), 1, 0])
    if groups == 1:
        made = tf.nn.convolution(x, kernel, strides, "VALID", dilations=dilations)
    elif space == 2 and shape[1] == 1 and len(set(strides)) == 1 and (max(dilations) == 1 or strides[0] == 1):
        many = shape[0] // groups  # (height, width, 1, groups * many) to (height, width, groups, many)
        deep = tf.reshape(kernel, [*shape[2:], groups, many])
        made = tf.nn.depthwise_conv2d(x, deep, [1, *strides, 1], "VALID", dilations=dilations)
    else:  # TensorFlow's CPU kernels know no groups
        parts = zip(tf.split(x, groups, -1), tf.split(kernel, groups, -1), strict=True)
        made = tf.concat([tf.nn.convolution(a, b, strides, "VALID", dilations=dilations) for a, b in parts], -1)
    return Image(made if bias is None else tf.nn.bias_add(made, build.tensor(bias)))


@operator("ConvTranspose", raw=True)
def conv_transpose(build: Build, node: Node, x: Any, weight: Any, bias: Any = None) -> Any:
    import numpy as np

    tf = build.tf
    x = image(build, x)
    space, groups = len(_sizes(weight)) - 2, node.get("group", 1)
    strides, dilations = node.get("strides") or [1] * space, node.get("dilations") or [1] * space
    kernel = _turned(build, weight, [*range(2, 2 + space), 1, 0])  # (..., out per group, in)
    sizes = [int(n) for n in kernel.shape[:space]]
    if any(d > 1 for d in dilations):  # gaps of zeros, of which TensorFlow's kernel has none
        for axis, (k, d) in enumerate(zip(sizes, dilations, strict=True)):
            places = np.arange((k - 1) * d + 1)
            spread = (places[:, None] == np.arange(k)[None] * d).astype(np.float32)
            kernel = tf.experimental.numpy.moveaxis(tf.tensordot(tf.cast(spread, kernel.dtype), kernel, [[1], [axis]]),
                                                    0, axis)  # fmt: skip
    window = [(k - 1) * d + 1 for k, d in zip(sizes, dilations, strict=True)]
    extra = node.get("output_padding") or [0] * space
    sized = build.shape(x)
    full = [(sized[1 + a] - 1) * strides[a] + window[a] for a in range(space)]
    wanted = node.get("output_shape")
    auto = node.get("auto_pad", "NOTSET")
    if wanted or auto.startswith("SAME"):
        pads = []
        for a in range(space):
            if wanted and not isinstance(full[a], int):
                raise Unsupported("output_shape needs a known size")
            over = full[a] + extra[a] - wanted[a] if wanted else window[a] - strides[a] + extra[a]
            small, large = max(over, 0) // 2, over - max(over, 0) // 2  # what is lacking is added at the end
            pads.append((small, large) if auto == "SAME_UPPER" or over < 0 else (large, small))
    else:
        pads = _pads(build, node, x, window, strides)
    lift = space == 1  # there is no kernel for one axis
    parts = []
    for a, b in zip(tf.split(x, groups, -1), tf.split(kernel, groups, -1), strict=True):
        a, b = (a[:, None], b[None]) if lift else (a, b)
        steps = [1, *strides] if lift else strides
        shape = build.dims([sized[0], *([1] if lift else []), *full, int(b.shape[-2])])
        function = tf.nn.conv3d_transpose if space == 3 else tf.nn.conv2d_transpose
        made = function(a, b, tf.cast(shape, tf.int32), steps, "VALID")
        parts.append(made[:, 0] if lift else made)
    made = parts[0] if groups == 1 else tf.concat(parts, -1)
    grown = [(max(-low, 0) if isinstance(low, int) else 0, max(e - high, 0) if isinstance(high, int) else 0)
             for (low, high), e in zip(pads, extra, strict=True)]  # fmt: skip
    made = _padded(build, made, grown)
    cuts = [slice(low + more[0], full[a] + extra[a] - high + more[0])
            for a, ((low, high), more) in enumerate(zip(pads, grown, strict=True))]  # fmt: skip
    made = made[(slice(None), *cuts, slice(None))]
    return Image(made if bias is None else tf.nn.bias_add(made, build.tensor(bias)))


@operator("MaxPool", "AveragePool", "LpPool", raw=True)
def pool(build: Build, node: Node, x: Any) -> Any:
    tf = build.tf
    if len([name for name in node.outputs if name]) > 1:
        raise Unsupported("TensorFlow gives no places of its maxima")
    if node.kind == "LpPool":
        raise Unsupported("it sums powers")
    x = image(build, x)
    kernel = node.get("kernel_shape")
    space = len(kernel)
    strides, dilations = node.get("strides") or [1] * space, node.get("dilations") or [1] * space
    skipped = [1] * space
    if any(s > 1 for s in strides) and (
        any(d > 1 for d in dilations) or any(s > k for s, k in zip(strides, kernel, strict=True))
    ):
        skipped = strides  # which TensorFlow's pools do not take: made at every place, then thinned out
    window = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = _pads(build, node, x, window, strides)
    beyond = [0] * space
    if node.get("ceil_mode"):
        for axis in range(space):
            size = x.shape[1 + axis]
            if size is None:
                raise Unsupported("ceil_mode needs a known size")
            whole = size + sum(pads[axis])
            count = -(-(whole - window[axis]) // strides[axis]) + 1
            if (count - 1) * strides[axis] >= size + pads[axis][0]:
                count -= 1  # a window may not begin past the image
            beyond[axis] = max((count - 1) * strides[axis] + window[axis] - whole, 0)
    wide = [(low, high + b) for (low, high), b in zip(pads, beyond, strict=True)]
    steps = [1] * space if skipped == strides else strides
    thin = (slice(None), *(slice(None, None, s) for s in skipped), slice(None))

    def pooled(value: Any, how: str) -> Any:
        return tf.nn.pool(value, kernel, how, steps, "VALID", dilations=dilations)[thin]

    if node.kind == "MaxPool":
        return Image(pooled(_padded(build, x, wide, x.dtype.min), "MAX"))
    made = pooled(_padded(build, x, wide), "AVG")
    if any(n for pair in wide for n in pair) and (not node.get("count_include_pad") or any(beyond)):
        ones = tf.ones_like(x[:1, ..., :1])
        if node.get("count_include_pad"):
            ones = _padded(build, ones, pads, 1)
            ones = _padded(build, ones, [(0, b) for b in beyond])
        else:
            ones = _padded(build, ones, wide)
        made = made / pooled(ones, "AVG")
    return Image(made)


@operator("GlobalAveragePool", "GlobalMaxPool", raw=True)
def global_pool(build: Build, node: Node, x: Any) -> Any:
    x = image(build, x)
    function = build.tf.reduce_mean if node.kind == "GlobalAveragePool" else build.tf.reduce_max
    return Image(function(x, axis=list(range(1, x.shape.rank - 1)), keepdims=True))


@operator("Pad", raw=True)
def pad(build: Build, node: Node, x: Any, pads: Any = None, value: Any = None, axes: Any = None) -> Any:
    tf = build.tf
    rank = x.last.shape.rank if isinstance(x, Image) else build.rank(build.plain(x))
    known = build.static(node.get("pads") if pads is None else pads)
    mode = node.get("mode", "constant")
    filler = node.get("value", 0.0) if value is None else value
    if known is None:
        if mode != "constant" or axes is not None:
            raise Unsupported("its widths must be constants")
        return tf.pad(build.plain(x), tf.transpose(tf.reshape(pads, [2, -1])), constant_values=tf.reshape(filler, []))
    over = list(range(rank)) if axes is None else [int(a) % rank for a in build.static(axes, "axes")]
    half = len(known) // 2
    widths = [(0, 0)] * rank
    for place, axis in enumerate(over):
        widths[axis] = (int(known[place]), int(known[place + half]))
    last = isinstance(x, Image)
    x = x.last if last else tf.convert_to_tensor(build.plain(x))
    widths = [widths[0], *widths[2:], widths[1]] if last else widths
    cut = [slice(-min(low, 0), min(high, 0) or None) for low, high in widths]
    if any(n < 0 for pair in widths for n in pair):
        x = x[tuple(cut)]
        widths = [(max(low, 0), max(high, 0)) for low, high in widths]
    if mode == "constant":
        filler = tf.cast(tf.reshape(filler, []), x.dtype) if value is not None else tf.cast(filler, x.dtype)
        made = tf.pad(x, widths, constant_values=filler)
    elif mode == "reflect":
        made = tf.pad(x, widths, "REFLECT")
    elif mode in ("edge", "wrap"):
        made = x
        for axis, (low, high) in enumerate(widths):
            if low or high:
                size = build.shape(made)[axis]
                places = tf.range(-low, size + high)
                places = tf.clip_by_value(places, 0, size - 1) if mode == "edge" else tf.math.floormod(places, size)
                made = tf.gather(made, places, axis=axis)
    else:
        raise Unsupported(f"mode {mode!r} is not known")
    return Image(made) if last else made


# --- normalisation


@operator("BatchNormalization", raw=True)
def batch_norm(build: Build, node: Node, x: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> Any:
    import numpy as np

    if node.get("training_mode"):
        raise Unsupported("it is in training mode: export the model in eval mode")
    epsilon = node.get("epsilon", 1e-5)
    parts = (scale, bias, mean, variance)
    if all(is_array(part) for part in parts):
        factor = (scale / np.sqrt(variance.astype(np.float64) + epsilon)).astype(scale.dtype)
        shift = (bias - mean.astype(np.float64) * factor).astype(bias.dtype)
    else:
        scale, bias, mean, variance = (build.tensor(part) for part in parts)
        factor = scale / build.tf.sqrt(variance + epsilon)
        shift = bias - mean * factor
    if not isinstance(x, Image) and build.rank(build.plain(x)) == 2:
        return build.plain(x) * build.tensor(factor) + build.tensor(shift)
    return Image(image(build, x) * build.tensor(factor) + build.tensor(shift))


def _standardised(build: Build, x: Any, axes: Sequence[int], epsilon: float) -> tuple[Any, Any, Any]:
    tf = build.tf
    mean = tf.reduce_mean(x, axes, keepdims=True)
    centred = x - mean
    inverse = tf.math.rsqrt(tf.reduce_mean(centred * centred, axes, keepdims=True) + epsilon)
    return centred * inverse, mean, inverse


@operator("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def layer_norm(build: Build, node: Node, x: Any, scale: Any, bias: Any = None) -> Any:
    tf = build.tf
    x = tf.convert_to_tensor(x)
    rank = build.rank(x)
    axes = list(range(node.get("axis", -1) % rank, rank))
    epsilon = node.get("epsilon", 1e-5)
    if node.kind == "LayerNormalization":
        made, mean, inverse = _standardised(build, x, axes, epsilon)
        made = made * scale if bias is None else made * scale + bias
        return made, mean, inverse
    return x * tf.math.rsqrt(tf.reduce_mean(x * x, axes, keepdims=True) + epsilon) * scale


@operator("InstanceNormalization", raw=True)
def instance_norm(build: Build, node: Node, x: Any, scale: Any, bias: Any) -> Any:
    x = image(build, x)
    made, _, _ = _standardised(build, x, list(range(1, x.shape.rank - 1)), node.get("epsilon", 1e-5))
    return Image(made * build.tensor(scale) + build.tensor(bias))


@operator("GroupNormalization", raw=True)
def group_norm(build: Build, node: Node, x: Any, scale: Any, bias: Any) -> Any:
    tf, groups = build.tf, node.get("num_groups")
    x = image(build, x)
    sizes = build.shape(x)
    if not isinstance(sizes[-1], int):
        raise Unsupported("the number of channels is not known")
    each = sizes[-1] // groups
    split = tf.reshape(x, build.dims([*sizes[:-1], groups, each]))
    rank = len(sizes) + 1
    made, _, _ = _standardised(build, split, [*range(1, rank - 2), rank - 1], node.get("epsilon", 1e-5))
    scale, bias = build.tensor(scale), build.tensor(bias)
    if build.opset < 21:  # per group
        return Image(tf.reshape(made * scale[:, None] + bias[:, None], build.dims(sizes)))
    return Image(tf.reshape(made, build.dims(sizes)) * scale + bias)


@operator("LpNormalization")
def lp_norm(build: Build, node: Node, x: Any) -> Any:
    tf, axis = build.tf, node.get("axis", -1)
    length = tf.norm(x, ord=node.get("p", 2), axis=axis, keepdims=True)
    return tf.math.divide_no_nan(x, length)


@operator("LRN", raw=True)
def lrn(build: Build, node: Node, x: Any) -> Any:
    import numpy as np

    tf, size = build.tf, node.get("size")
    x = image(build, x)
    channels = x.shape[-1]
    if channels is None:
        raise Unsupported("the number of channels is not known")
    low, high = (size - 1) // 2, size // 2
    gap = np.arange(channels)[None] - np.arange(channels)[:, None]
    near = ((gap >= -high) & (gap <= low)).astype(np.float32)
    total = tf.tensordot(x * x, tf.cast(near, x.dtype), 1)
    return Image(x / (node.get("bias", 1.0) + node.get("alpha", 1e-4) / size * total) ** node.get("beta", 0.75))


@operator("DepthToSpace", "SpaceToDepth", raw=True)
def depth_space(build: Build, node: Node, x: Any) -> Any:
    tf, block = build.tf, node.get("blocksize")
    x = image(build, x)
    batch, height, width, channels = build.shape(x)
    if not isinstance(channels, int):
        raise Unsupported("the number of channels is not known")
    if node.kind == "SpaceToDepth":
        if node.get("mode", "DCR") != "DCR":
            raise Unsupported(f"mode {node.get('mode')!r} is not known")
        return Image(tf.nn.space_to_depth(x, block))
    if node.get("mode", "DCR") == "DCR":
        return Image(tf.nn.depth_to_space(x, block))
    deep = channels // block**2
    x = tf.reshape(x, build.dims([batch, height, width, deep, block, block]))
    x = tf.transpose(x, [0, 1, 4, 2, 5, 3])
    return Image(tf.reshape(x, build.dims([batch, height * block, width * block, deep])))
