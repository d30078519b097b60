"""How operators with weights, norms and attention tie the channels of what goes in to those of what comes out."""

from __future__ import annotations

import numpy as np

from optkit.formats.torch_pruning.call import Call, shape_of, tie, unknown
from optkit.formats.torch_pruning.units import Axes, Axis, Product, combine, repeated


def prelu(call: Call) -> Axes:
    x, weight = call.tensor("self"), call.tensor("weight")
    if weight and weight[0] is not None:
        tie(call, x[1] if len(x) > 1 else None, weight[0])
        call.graph.attribute(call.node, "num_parameters", weight[0])
    return x


def linear(call: Call) -> Axes:
    x, weight, bias = call.tensor("input"), call.tensor("weight"), call.tensor("bias")
    tie(call, x[-1], weight[1])
    call.read("weight", 1)
    if bias:
        tie(call, weight[0], bias[0])
    call.graph.attribute(call.node, "in_features", weight[1])
    call.graph.attribute(call.node, "out_features", weight[0])
    call.product([*x[:-1], weight[0], weight[1]], [*call.shape("input")[:-1], *call.shape("weight")])
    return (*x[:-1], weight[0])


def addmm(call: Call) -> Axes:
    x, weight, bias = call.tensor("mat1"), call.tensor("mat2"), call.tensor("self")
    tie(call, x[1], weight[0])
    call.read("mat2", 0)
    if bias and bias[-1] is not None:
        tie(call, weight[1], bias[-1])
    call.graph.attribute(call.node, "nx", weight[0])
    call.graph.attribute(call.node, "nf", weight[1])
    call.product([x[0], weight[0], weight[1]], [call.shape("mat1")[0], *call.shape("mat2")])
    return (x[0], weight[1])


def conv(call: Call) -> Axes:
    x, weight, groups = call.tensor("input"), call.tensor("weight"), int(call.given.get("groups") or 1)
    if call.given.get("transposed"):
        return conv_transpose(call)
    spatial = len(weight) - 2
    channels, sizes = x[-spatial - 1], call.shape("weight")
    for axis in x[-spatial:]:
        call.units.freeze(axis, f"{call.name} {call.where} slides over it")
    for axis in weight[2:]:
        call.units.freeze(axis, "it is a kernel's size")
    out = weight[0]
    if groups == 1:
        tie(call, channels, weight[1])
        call.read("weight", 1)
        inner = weight[1]
    else:
        call.units.freeze(weight[1], "every group of the convolution shares it")
        group(call, channels, out, groups)
        inner = None
    conv_attributes(call, channels, out, groups)
    # Channels in times out, or per group: the channels out times those of a group.
    call.product([out, inner], [sizes[0], sizes[1]])
    scale_last(call, int(np.prod([*sizes[2:], *call.out[-spatial:], *call.out[: -spatial - 1]], dtype=np.int64)))
    return (*x[: -spatial - 1], out, *(None,) * spatial)


def conv_transpose(call: Call) -> Axes:
    x, weight, groups = call.tensor("input"), call.tensor("weight"), int(call.given.get("groups") or 1)
    spatial = len(weight) - 2
    channels, sizes = x[-spatial - 1], call.shape("weight")
    for axis in (*x[-spatial:], *weight[2:]):
        call.units.freeze(axis, f"{call.name} {call.where} slides over it")
    out = weight[1]
    tie(call, channels, weight[0])
    if groups == 1:
        call.read("weight", 0)
        call.product([weight[0], out], [sizes[0], sizes[1]])
    else:
        call.units.freeze(out, "every group of the convolution shares it")
        per_in = sizes[0] // groups
        out = repeated(weight[0][::per_in], sizes[1]) if weight[0] is not None else None
        group(call, channels, out, groups)
        call.product([weight[0]], [sizes[0]])
        scale_last(call, sizes[1])
    conv_attributes(call, channels, out, groups)
    inside = call.shape("input")[-spatial:]
    scale_last(call, int(np.prod([*sizes[2:], *inside, *call.out[: -spatial - 1]], dtype=np.int64)))
    return (*x[: -spatial - 1], out, *(None,) * spatial)


def scale_last(call: Call, count: int) -> None:
    """The last product is over so many more positions."""
    last = call.graph.products.pop()
    call.graph.products.append(Product(last.axes, last.times * count))


def group(call: Call, channels: Axis, out: Axis, groups: int) -> None:
    """A group's channels go together, those in and those out."""
    if channels is None or out is None:
        tie(call, channels, out) if channels is not out else None
        return
    for rows in zip(channels.reshape(groups, -1), out.reshape(groups, -1), strict=True):
        call.units.join_all(np.concatenate(rows).tolist())
    call.graph.attribute(call.node, "groups", out, len(out) // groups)


def conv_attributes(call: Call, channels: Axis, out: Axis, groups: int) -> None:
    bias = call.tensor("bias")
    if bias:
        tie(call, out, bias[0])
    call.graph.attribute(call.node, "in_channels", channels)
    call.graph.attribute(call.node, "out_channels", out)


def batch_norm(call: Call) -> Axes:
    x = call.tensor("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        axes = call.tensor(name)
        if axes and axes[0] is not None:
            tie(call, x[1], axes[0])
    weight = call.graph.names.get(getattr(call.given.get("weight"), "name", ""))
    if weight:
        call.graph.scales.add((weight, 0))
    call.graph.attribute(call.node, "num_features", x[1])
    return x


def group_norm(call: Call) -> Axes:
    x, groups = call.tensor("input"), int(call.given["num_groups"])
    for name in ("weight", "bias"):
        axes = call.tensor(name)
        if axes and axes[0] is not None:
            tie(call, x[1], axes[0])
    channels = x[1]
    if channels is not None:
        if groups == 1:
            call.units.blur(channels)
        else:
            for row in channels.reshape(groups, -1):
                call.units.join_all(row.tolist())
            call.graph.attribute(call.node, "num_groups", channels, len(channels) // groups)
        call.graph.attribute(call.node, "num_channels", channels)
    return x


def layer_norm(call: Call) -> Axes:
    x, count = call.tensor("input"), len(call.given["normalized_shape"])
    if count > 1:
        for axis in x[-count:]:
            call.units.freeze(axis, f"{call.name} {call.where} is taken over several axes at once")
        return x
    for name in ("weight", "bias"):
        axes = call.tensor(name)
        if axes and axes[0] is not None:
            tie(call, x[-1], axes[0])
    call.units.blur(x[-1])
    call.graph.attribute(call.node, "normalized_shape", x[-1])
    return x


def embedding(call: Call) -> Axes:
    weight = call.tensor("weight")
    call.units.freeze(weight[0], "it is a row of an embedding")
    call.graph.attribute(call.node, "embedding_dim", weight[1])
    return (*call.tensor("indices"), weight[1])


def matmul(call: Call) -> Axes:
    names = ("self", "other") if "other" in call.given else ("self", "mat2")
    a, b = (call.tensor(n) for n in names)
    sizes_a, sizes_b = (call.shape(n) for n in names)
    if len(a) < 2 or len(b) < 2:
        return unknown(call)  # type: ignore[no-any-return]
    if a[-1] is not None or b[-2] is not None:
        tie(call, a[-1], b[-2])
        tensor = call.graph.names.get(getattr(call.given[names[1]], "name", ""))
        if tensor is None:
            call.units.blur(a[-1])
        else:
            call.graph.reads.add((tensor, len(b) - 2))
            call.graph.feeds.append((call.node, call.given[names[0]], tensor, len(b) - 2))
    batch = combine(call.units, [a[:-2], b[:-2]], [sizes_a[:-2], sizes_b[:-2]], f"{call.name} {call.where}")
    out = (*batch, a[-2], b[-1])
    inner = a[-1] if a[-1] is not None else b[-2]
    call.product([*out, inner], [*call.out, sizes_a[-1]])
    return out


def attention(call: Call) -> Axes:
    q, k, v = (call.tensor(n) for n in ("query", "key", "value"))
    shapes = [call.shape(n) for n in ("query", "key", "value")]
    for axis in (q[-1], k[-1], q[-2], k[-2], v[-2]):
        call.units.freeze(axis, f"attention {call.where} sums over it and scales by its size")
    if call.given.get("enable_gqa") and shapes[0][-3] != shapes[1][-3]:
        times = shapes[0][-3] // shapes[1][-3]
        k, v = ((*t[:-3], repeated(t[-3], times) if t[-3] is not None else None, *t[-2:]) for t in (k, v))
        shapes[1:] = [(*s[:-3], s[-3] * times, *s[-2:]) for s in shapes[1:]]
    leading, sizes = [t[:-2] for t in (q, k, v)], [s[:-2] for s in shapes]
    mask = call.given.get("attn_mask")
    if mask is not None:
        axes, shape = call.axes(mask), shape_of(mask)
        for axis in axes[-2:]:
            call.units.freeze(axis, f"it masks attention {call.where}")
        leading.append(axes[:-2])
        sizes.append(shape[:-2])
    batch = combine(call.units, leading, sizes, f"attention {call.where}")
    rows, width = shapes[0][-2], shapes[1][-2]
    call.product([*batch, None, None], [*call.out[:-2], rows * width, shapes[0][-1]])
    call.product([*batch, None, v[-1]], [*call.out[:-2], rows * width, shapes[2][-1]])
    return (*batch, q[-2], v[-1])
