"""How each operator of an exported program ties the channels of what goes in to those of what comes out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from optkit.formats.torch_pruning_reshape import reshape
from optkit.formats.torch_pruning_units import Axes, Axis, Product, Units, combine, repeated
from optkit.plugin import need

if TYPE_CHECKING:
    from optkit.formats.torch_pruning_graph import Graph

ATTENTION_LOOK = 24
"""How many operators after a split are looked at for the attention it may belong to."""

STOPS = ("linear", "conv", "addmm", "output", "batch_norm")
"""What a tensor has left its attention with."""


@dataclass(frozen=True)
class Call:
    """One operator of the program, with its arguments by name."""

    graph: Graph
    node: Any
    name: str
    given: dict[str, Any]

    @property
    def units(self) -> Units:
        return self.graph.units

    def axes(self, value: Any) -> Axes:
        """Units of a tensor argument; none for a number, None or a constant."""
        if not hasattr(value, "op"):
            return ()
        found: Any = self.graph.values.get(value)
        return found if isinstance(found, tuple) else (None,) * len(shape_of(value))

    def tensor(self, name: str) -> Axes:
        return self.axes(self.given.get(name))

    def shape(self, name: str) -> tuple[int, ...]:
        return shape_of(self.given[name])

    @property
    def out(self) -> tuple[int, ...]:
        return shape_of(self.node)

    @property
    def where(self) -> str:
        """The module the operator is in: "in encoder.layer.0"."""
        path = self.graph.owner(self.node)
        return f"in {path}" if path else "in the model's forward"

    def read(self, name: str, axis: int) -> None:
        """A weight's axis is summed over, against the last or channel axis of what goes in."""
        tensor = self.graph.names.get(getattr(self.given[name], "name", ""))
        if tensor is not None:
            self.graph.reads.add((tensor, axis))
            self.graph.feeds.append((self.node, self.given.get("input", self.given.get("mat1")), tensor, axis))

    def product(self, axes: Sequence[Axis], sizes: Sequence[int]) -> None:
        """A matrix product over these axes; sizes, in the same order, count where units do not."""
        times = 1
        for axis, size in zip(axes, sizes, strict=True):
            times *= size if axis is None else 1
        self.graph.products.append(Product(tuple(a for a in axes if a is not None), times))


def shape_of(node: Any) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(int(n) for n in value.shape) if hasattr(value, "shape") else ()


def flat(value: Any) -> Iterator[Axis]:
    """Every axis in an operator's result, which may be several tensors."""
    for item in value:
        if isinstance(item, tuple):
            yield from flat(item)
        else:
            yield item


def apply(graph: Graph, node: Any) -> Any:
    """The units of an operator's result: axes, or a list of them where it gives several tensors."""
    torch = need("torch")
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return _unknown(Call(graph, node, getattr(target, "__name__", str(target)), {}))
    arguments = target._schema.arguments
    given = {a.name: a.default_value for a in arguments if a.has_default_value()}
    given |= {a.name: value for a, value in zip(arguments, node.args, strict=False)} | dict(node.kwargs)
    name = target._schema.name.removeprefix("aten::")
    call = Call(graph, node, name, given)
    rule = RULES.get(name) or RULES.get(name.rstrip("_"))
    if rule is not None:
        return rule(call)
    if torch.Tag.pointwise in target.tags or name.rstrip("_") in POINTWISE:
        return _pointwise(call)
    return _unknown(call)


# ------------------------------------------------------------------------------------------------ elementwise

POINTWISE = frozenset({
    "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "contiguous", "alias", "detach", "to",
    "type_as", "hardswish", "hardtanh", "relu6", "zeros_like", "ones_like", "full_like", "rand_like", "_to_copy", "selu", "celu",
    "lift_fresh_copy", "fill", "conj", "float_power", "square", "where", "masked_fill", "rrelu", "log_sigmoid", "clamp",
    "softplus", "expand_as",
})  # fmt: skip


def _pointwise(call: Call) -> Axes:
    named = [v for v in call.given.values() if hasattr(v, "op")]
    tensors = [v for v in named if hasattr(v.meta.get("val"), "shape")]
    if not tensors:
        return (None,) * len(call.out)
    made = combine(call.units, [call.axes(v) for v in tensors], [shape_of(v) for v in tensors], f"{call.name} {call.where}")
    return (None,) * (len(call.out) - len(made)) + made


def _unknown(call: Call) -> Any:
    for value in call.node.all_input_nodes:
        for axis in flat(call.graph.values.get(value, ())):
            call.units.freeze(axis, f"{call.name} {call.where} reads it, which pruning cannot follow")
    value = call.node.meta.get("val")
    if isinstance(value, tuple | list):
        return [(None,) * len(getattr(v, "shape", ())) for v in value]
    return (None,) * len(getattr(value, "shape", ()))


def _none(call: Call) -> Axes:
    return (None,) * len(call.out)


def _prelu(call: Call) -> Axes:
    x, weight = call.tensor("self"), call.tensor("weight")
    if weight and weight[0] is not None:
        _tie(call, x[1] if len(x) > 1 else None, weight[0])
        call.graph.attribute(call.node, "num_parameters", weight[0])
    return x


def _tie(call: Call, one: Axis, other: Axis) -> None:
    """The two axes are one; plain data on one side freezes the other."""
    if one is None or other is None:
        for axis in (one, other):
            call.units.freeze(axis, f"{call.name} {call.where} reads it together with values that no layer makes")
    elif len(one) == len(other):
        call.units.join(one, other)
    else:
        for axis in (one, other):
            call.units.freeze(axis, f"{call.name} {call.where} broadcasts over it")


# ------------------------------------------------------------------------------------------------ layers


def _linear(call: Call) -> Axes:
    x, weight, bias = call.tensor("input"), call.tensor("weight"), call.tensor("bias")
    _tie(call, x[-1], weight[1])
    call.read("weight", 1)
    if bias:
        _tie(call, weight[0], bias[0])
    call.graph.attribute(call.node, "in_features", weight[1])
    call.graph.attribute(call.node, "out_features", weight[0])
    call.product([*x[:-1], weight[0], weight[1]], [*call.shape("input")[:-1], *call.shape("weight")])
    return (*x[:-1], weight[0])


def _addmm(call: Call) -> Axes:
    x, weight, bias = call.tensor("mat1"), call.tensor("mat2"), call.tensor("self")
    _tie(call, x[1], weight[0])
    call.read("mat2", 0)
    if bias and bias[-1] is not None:
        _tie(call, weight[1], bias[-1])
    call.graph.attribute(call.node, "nx", weight[0])
    call.graph.attribute(call.node, "nf", weight[1])
    call.product([x[0], weight[0], weight[1]], [call.shape("mat1")[0], *call.shape("mat2")])
    return (x[0], weight[1])


def _conv(call: Call) -> Axes:
    x, weight, groups = call.tensor("input"), call.tensor("weight"), int(call.given.get("groups") or 1)
    if call.given.get("transposed"):
        return _conv_transpose(call)
    spatial = len(weight) - 2
    channels, sizes = x[-spatial - 1], call.shape("weight")
    for axis in x[-spatial:]:
        call.units.freeze(axis, f"{call.name} {call.where} slides over it")
    for axis in weight[2:]:
        call.units.freeze(axis, "it is a kernel's size")
    out = weight[0]
    if groups == 1:
        _tie(call, channels, weight[1])
        call.read("weight", 1)
        inner = weight[1]
    else:
        call.units.freeze(weight[1], "every group of the convolution shares it")
        _group(call, channels, out, groups)
        inner = None
    _conv_attributes(call, channels, out, groups)
    # Channels in times out, or per group: the channels out times those of a group.
    call.product([out, inner], [sizes[0], sizes[1]])
    _times(call, int(np.prod([*sizes[2:], *call.out[-spatial:], *call.out[: -spatial - 1]], dtype=np.int64)))
    return (*x[: -spatial - 1], out, *(None,) * spatial)


def _conv_transpose(call: Call) -> Axes:
    x, weight, groups = call.tensor("input"), call.tensor("weight"), int(call.given.get("groups") or 1)
    spatial = len(weight) - 2
    channels, sizes = x[-spatial - 1], call.shape("weight")
    for axis in (*x[-spatial:], *weight[2:]):
        call.units.freeze(axis, f"{call.name} {call.where} slides over it")
    out = weight[1]
    _tie(call, channels, weight[0])
    if groups == 1:
        call.read("weight", 0)
        call.product([weight[0], out], [sizes[0], sizes[1]])
    else:
        call.units.freeze(out, "every group of the convolution shares it")
        per_in = sizes[0] // groups
        out = repeated(weight[0][::per_in], sizes[1]) if weight[0] is not None else None
        _group(call, channels, out, groups)
        call.product([weight[0]], [sizes[0]])
        _times(call, sizes[1])
    _conv_attributes(call, channels, out, groups)
    inside = call.shape("input")[-spatial:]
    _times(call, int(np.prod([*sizes[2:], *inside, *call.out[: -spatial - 1]], dtype=np.int64)))
    return (*x[: -spatial - 1], out, *(None,) * spatial)


def _times(call: Call, count: int) -> None:
    last = call.graph.products.pop()
    call.graph.products.append(Product(last.axes, last.times * count))


def _group(call: Call, channels: Axis, out: Axis, groups: int) -> None:
    """A group's channels go together, those in and those out."""
    if channels is None or out is None:
        _tie(call, channels, out) if channels is not out else None
        return
    for rows in zip(channels.reshape(groups, -1), out.reshape(groups, -1), strict=True):
        call.units.join_all(np.concatenate(rows).tolist())
    call.graph.attribute(call.node, "groups", out, len(out) // groups)


def _conv_attributes(call: Call, channels: Axis, out: Axis, groups: int) -> None:
    bias = call.tensor("bias")
    if bias:
        _tie(call, out, bias[0])
    call.graph.attribute(call.node, "in_channels", channels)
    call.graph.attribute(call.node, "out_channels", out)


def _batch_norm(call: Call) -> Axes:
    x = call.tensor("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        axes = call.tensor(name)
        if axes and axes[0] is not None:
            _tie(call, x[1], axes[0])
    weight = call.graph.names.get(getattr(call.given.get("weight"), "name", ""))
    if weight:
        call.graph.scales.add((weight, 0))
    call.graph.attribute(call.node, "num_features", x[1])
    return x


def _group_norm(call: Call) -> Axes:
    x, groups = call.tensor("input"), int(call.given["num_groups"])
    for name in ("weight", "bias"):
        axes = call.tensor(name)
        if axes and axes[0] is not None:
            _tie(call, x[1], axes[0])
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


def _layer_norm(call: Call) -> Axes:
    x, count = call.tensor("input"), len(call.given["normalized_shape"])
    if count > 1:
        for axis in x[-count:]:
            call.units.freeze(axis, f"{call.name} {call.where} is taken over several axes at once")
        return x
    for name in ("weight", "bias"):
        axes = call.tensor(name)
        if axes and axes[0] is not None:
            _tie(call, x[-1], axes[0])
    call.units.blur(x[-1])
    call.graph.attribute(call.node, "normalized_shape", x[-1])
    return x


def _embedding(call: Call) -> Axes:
    weight = call.tensor("weight")
    call.units.freeze(weight[0], "it is a row of an embedding")
    call.graph.attribute(call.node, "embedding_dim", weight[1])
    return (*call.tensor("indices"), weight[1])


def _matmul(call: Call) -> Axes:
    names = ("self", "other") if "other" in call.given else ("self", "mat2")
    a, b = (call.tensor(n) for n in names)
    sizes_a, sizes_b = (call.shape(n) for n in names)
    if len(a) < 2 or len(b) < 2:
        return _unknown(call)  # type: ignore[no-any-return]
    if a[-1] is not None or b[-2] is not None:
        _tie(call, a[-1], b[-2])
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


def _attention(call: Call) -> Axes:
    q, k, v = (call.tensor(n) for n in ("query", "key", "value"))
    shapes = [call.shape(n) for n in ("query", "key", "value")]
    for axis in (q[-1], k[-1], q[-2], k[-2], v[-2]):
        call.units.freeze(axis, f"attention {call.where} sums over it and scales by its size")
    if call.given.get("enable_gqa") and shapes[0][-3] != shapes[1][-3]:
        times = shapes[0][-3] // shapes[1][-3]
        k, v = (
            (*t[:-3], repeated(t[-3], times) if t[-3] is not None else None, *t[-2:]) for t in (k, v)
        )
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


# ------------------------------------------------------------------------------------------------ shapes


def _reshape(call: Call) -> Axes:
    x = call.tensor("self")
    made = reshape(call.units, x, call.shape("self"), call.out, lambda: leads_to_attention(call.node), call.where)
    sizes = call.given.get("size", call.given.get("shape", call.given.get("sizes")))
    if isinstance(sizes, list | tuple):
        first = len(call.out) - len(sizes) if call.name != "unflatten" else int(call.given["dim"]) % len(x)
        for offset, size in enumerate(sizes):
            number = first + offset
            if isinstance(size, int) and size > 1 and number < len(made):
                call.graph.literal(call.node, made[number], heads=number < len(made) - 1)
    return made


def leads_to_attention(node: Any) -> bool:
    """Whether a tensor soon goes into an attention, before any layer with weights."""
    front, seen = [node], 0
    while front and seen < ATTENTION_LOOK:
        current = front.pop(0)
        for user in current.users:
            seen += 1
            name = str(user.target)
            if any(word in name for word in ("attention", "softmax", "bmm", "matmul", "einsum")):
                return True
            if not any(word in name for word in STOPS):
                front.append(user)
    return False


def _permute(call: Call) -> Axes:
    x = call.tensor("self")
    if call.name in ("t", "numpy_T", "mT"):
        return tuple(reversed(x)) if call.name != "mT" else (*x[:-2], x[-1], x[-2])
    if call.name == "permute":
        return tuple(x[d] for d in call.given["dims"])
    if call.name == "movedim":
        return _moved(call, x)
    a, b = int(call.given["dim0"]), int(call.given["dim1"])
    made = list(x)
    made[a], made[b] = made[b], made[a]
    return tuple(made)


def _moved(call: Call, x: Axes) -> Axes:
    source, target = call.given["source"], call.given["destination"]
    source, target = ([v] if isinstance(v, int) else list(v) for v in (source, target))
    source, target = [s % len(x) for s in source], [t % len(x) for t in target]
    rest = iter([axis for n, axis in enumerate(x) if n not in source])
    at = {t: x[s] for s, t in zip(source, target, strict=True)}
    return tuple(at[n] if n in at else next(rest) for n in range(len(x)))


def _unsqueeze(call: Call) -> Axes:
    x, dim = list(call.tensor("self")), int(call.given["dim"])
    x.insert(dim % (len(x) + 1), None)
    return tuple(x)


def _squeeze(call: Call) -> Axes:
    x, sizes = call.tensor("self"), call.shape("self")
    dims = call.given.get("dim", list(range(len(x))))
    gone = {d % len(x) for d in ([dims] if isinstance(dims, int) else dims)}
    return tuple(axis for n, axis in enumerate(x) if n not in gone or sizes[n] != 1)


def _expand(call: Call) -> Axes:
    x, before = call.tensor("self"), call.shape("self")
    lead = len(call.out) - len(x)
    made = [None] * lead + [axis if before[n] == call.out[lead + n] else None for n, axis in enumerate(x)]
    sizes = call.given.get("size")
    if isinstance(sizes, list | tuple):
        for number, size in enumerate(sizes):
            if isinstance(size, int) and size > 1:
                call.graph.literal(call.node, made[number], heads=number < len(made) - 1)
    return tuple(made)


def _cat(call: Call) -> Axes:
    tensors = [t for t in call.given["tensors"] if shape_of(t) != (0,)]
    axes, shapes = [call.axes(t) for t in tensors], [shape_of(t) for t in tensors]
    dim = int(call.given["dim"]) % len(axes[0])
    parts = [(a[dim], s[dim]) for a, s in zip(axes, shapes, strict=True)]
    joined: Axis = None
    if any(part is not None for part, _ in parts):
        joined = np.concatenate([np.zeros(n, np.int64) if part is None else part for part, n in parts])
    around = [(*a[:dim], *a[dim + 1 :]) for a in axes]
    rest = combine(call.units, around, [(*s[:dim], *s[dim + 1 :]) for s in shapes], f"cat {call.where}")
    return (*rest[:dim], joined, *rest[dim:])


def _stack(call: Call) -> Axes:
    tensors = call.given["tensors"]
    rest = combine(call.units, [call.axes(t) for t in tensors], [shape_of(t) for t in tensors], f"stack {call.where}")
    dim = int(call.given["dim"]) % (len(rest) + 1)
    return (*rest[:dim], None, *rest[dim:])


def _split(call: Call) -> list[Axes]:
    x, values = call.tensor("self"), call.node.meta["val"]
    dim = int(call.given.get("dim") or 0) % len(x)
    sizes = [int(v.shape[dim]) for v in values]
    axis, parts = x[dim], []
    if axis is not None:
        if len(set(sizes)) > 1:
            call.units.freeze(axis, f"{call.name} {call.where} cuts it into unequal parts")
        else:  # the parts are equal in size afterwards too, if what goes from one goes from all
            for column in axis.reshape(len(sizes), -1).T:
                call.units.join_all(column.tolist())
    start = 0
    for size in sizes:
        part = None if axis is None else axis[start : start + size]
        parts.append((*x[:dim], part, *x[dim + 1 :]))
        start += size
    if call.name.startswith("split") and axis is not None:
        call.graph.literal(call.node, axis[: sizes[0]])
    return parts


def _dropped(call: Call) -> Axes:
    """select and unbind take single positions of an axis."""
    x = call.tensor("self")
    dim = int(call.given.get("dim") or 0) % len(x)
    call.units.freeze(x[dim], f"{call.name} {call.where} takes single positions of it")
    return (*x[:dim], *x[dim + 1 :])


def _unbind(call: Call) -> list[Axes]:
    return [_dropped(call)] * len(call.node.meta["val"])


def _slice(call: Call) -> Axes:
    x, dim = call.tensor("self"), int(call.given.get("dim") or 0)
    before = call.shape("self")
    dim %= len(x)
    if before[dim] == call.out[dim]:
        return x
    call.units.freeze(x[dim], f"a slice {call.where} cuts it at a fixed place")
    return (*x[:dim], None, *x[dim + 1 :])


def _index(call: Call) -> Axes:
    x, indices = call.tensor("self"), list(call.given["indices"])
    used = [n for n, index in enumerate(indices) if index is not None]
    for n in used:
        call.units.freeze(x[n], f"an index {call.where} picks from it")
    if used != list(range(used[0], used[-1] + 1)):
        return _unknown(call)  # type: ignore[no-any-return]
    inserted = len(call.out) - (len(x) - len(used))
    return (*x[: used[0]], *(None,) * inserted, *x[used[-1] + 1 :])


def _pad(call: Call) -> Axes:
    x, pads = list(call.tensor("self")), list(call.given["pad"])
    for number in range(len(pads) // 2):
        if pads[2 * number] or pads[2 * number + 1]:
            axis = x[-1 - number]
            call.units.freeze(axis, f"padding {call.where} is put beside it")
            x[-1 - number] = None
    return tuple(x)


def _along(call: Call) -> Any:
    """Operators that mix positions along some axes and leave the others alone."""
    name = "self" if "self" in call.given else "input"
    x = call.tensor(name)
    dims = call.given.get("dim", call.given.get("dims"))
    if dims is None or dims == []:
        dims = list(range(len(x)))
    mixed = {d % len(x) for d in ([dims] if isinstance(dims, int) else dims)} if x else set()
    for n in mixed:
        call.units.freeze(x[n], f"{call.name} {call.where} is taken over it")
    values = call.node.meta.get("val")
    if isinstance(values, tuple | list):  # the extremes, and where they are
        keeps = len(getattr(values[0], "shape", ())) == len(x)
        made = tuple(None if n in mixed else axis for n, axis in enumerate(x) if keeps or n not in mixed)
        return [made] * len(values)
    if len(call.out) == len(x):
        return tuple(None if n in mixed else axis for n, axis in enumerate(x))
    return tuple(axis for n, axis in enumerate(x) if n not in mixed)


def _pool(call: Call) -> Any:
    x = call.tensor("self" if "self" in call.given else "input")
    spatial = int(next((c for c in call.name if c.isdigit()), "1"))
    for axis in x[-spatial:]:
        call.units.freeze(axis, f"{call.name} {call.where} slides over it")
    made = (*x[:-spatial], *(None,) * spatial)
    return [made, made] if isinstance(call.node.meta.get("val"), tuple | list) else made


def _pixel_shuffle(call: Call) -> Axes:
    x, factor = call.tensor("self"), int(call.given["upscale_factor"])
    if x[1] is None or len(x) != 4:
        return _unknown(call)  # type: ignore[no-any-return]
    for row in x[1].reshape(-1, factor * factor):
        call.units.join_all(row.tolist())
    return (x[0], x[1][:: factor * factor], None, None)


def _cut_triangle(call: Call) -> Axes:
    x = call.tensor("self")
    for axis in x[-2:]:
        call.units.freeze(axis, f"{call.name} {call.where} depends on its positions")
    return x


Rule = Callable[[Call], Any]

RULES: dict[str, Rule] = {
    "linear": _linear,
    "addmm": _addmm,
    "embedding": _embedding,
    "batch_norm": _batch_norm, "instance_norm": _batch_norm, "_native_batch_norm_legit_no_training": _batch_norm,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm, "rms_norm": _layer_norm,
    "prelu": _prelu,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), _conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _conv_transpose),
    **dict.fromkeys(("matmul", "bmm", "mm"), _matmul),
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "unflatten", "_reshape_alias", "view_copy"), _reshape),
    **dict.fromkeys(("permute", "transpose", "t", "numpy_T", "mT", "movedim"), _permute),
    "unsqueeze": _unsqueeze, "squeeze": _squeeze, "expand": _expand,
    **dict.fromkeys(("cat", "concat", "concatenate"), _cat), "stack": _stack,
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split"), _split),
    "unbind": _unbind, "select": _dropped, "slice": _slice, "index": _index,
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    **dict.fromkeys((
        "mean", "sum", "amax", "amin", "max", "min", "prod", "var", "std", "norm", "linalg_vector_norm", "softmax",
        "log_softmax", "_softmax", "cumsum", "roll", "flip", "argmax", "argmin", "any", "all", "logsumexp",
    ), _along),
    **dict.fromkeys((
        "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
        "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool2d", "max_pool2d_with_indices",
        "upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
    ), _pool),
    "pixel_shuffle": _pixel_shuffle,
    "tril": _cut_triangle, "triu": _cut_triangle,
    **dict.fromkeys(("_assert_tensor_metadata", "arange", "new_ones", "new_zeros", "zeros", "ones", "full", "empty",
                     "scalar_tensor", "_assert_async", "_assert_scalar"), _none),
}  # fmt: skip

__all__ = ["RULES", "Call", "apply", "flat", "leads_to_attention", "shape_of"]
