"""How operators that move, join, cut and reduce tensors carry channels along."""

from __future__ import annotations

from typing import Any

import numpy as np

from optkit.formats.torch_pruning.call import Call, shape_of, unknown
from optkit.formats.torch_pruning.reshape import reshape
from optkit.formats.torch_pruning.units import Axes, Axis, combine, repeated

ATTENTION_LOOK = 24
"""How many operators after a split are looked at for the attention it may belong to."""


STOPS = ("linear", "conv", "addmm", "output", "batch_norm")
"""What a tensor has left its attention with."""


def view(call: Call) -> Axes:
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


def permute(call: Call) -> Axes:
    x = call.tensor("self")
    if call.name in ("t", "numpy_T", "mT"):
        return tuple(reversed(x)) if call.name != "mT" else (*x[:-2], x[-1], x[-2])
    if call.name == "permute":
        return tuple(x[d] for d in call.given["dims"])
    if call.name == "movedim":
        return moved(call, x)
    a, b = int(call.given["dim0"]), int(call.given["dim1"])
    made = list(x)
    made[a], made[b] = made[b], made[a]
    return tuple(made)


def moved(call: Call, x: Axes) -> Axes:
    source, target = call.given["source"], call.given["destination"]
    source, target = ([v] if isinstance(v, int) else list(v) for v in (source, target))
    source, target = [s % len(x) for s in source], [t % len(x) for t in target]
    rest = iter([axis for n, axis in enumerate(x) if n not in source])
    at = {t: x[s] for s, t in zip(source, target, strict=True)}
    return tuple(at[n] if n in at else next(rest) for n in range(len(x)))


def unsqueeze(call: Call) -> Axes:
    x, dim = list(call.tensor("self")), int(call.given["dim"])
    x.insert(dim % (len(x) + 1), None)
    return tuple(x)


def squeeze(call: Call) -> Axes:
    x, sizes = call.tensor("self"), call.shape("self")
    dims = call.given.get("dim", list(range(len(x))))
    gone = {d % len(x) for d in ([dims] if isinstance(dims, int) else dims)}
    return tuple(axis for n, axis in enumerate(x) if n not in gone or sizes[n] != 1)


def expand(call: Call) -> Axes:
    x, before = call.tensor("self"), call.shape("self")
    lead = len(call.out) - len(x)
    made = [None] * lead + [axis if before[n] == call.out[lead + n] else None for n, axis in enumerate(x)]
    sizes = call.given.get("size")
    if isinstance(sizes, list | tuple):
        for number, size in enumerate(sizes):
            if isinstance(size, int) and size > 1:
                call.graph.literal(call.node, made[number], heads=number < len(made) - 1)
    return tuple(made)


def repeat(call: Call) -> Axes:
    x, times = call.tensor("self"), call.given["repeats"]
    x = (*(None,) * (len(times) - len(x)), *x)
    return tuple(None if axis is None else repeated(axis, outer=n) for axis, n in zip(x, times, strict=True))


def cat(call: Call) -> Axes:
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


def stack(call: Call) -> Axes:
    tensors = call.given["tensors"]
    rest = combine(call.units, [call.axes(t) for t in tensors], [shape_of(t) for t in tensors], f"stack {call.where}")
    dim = int(call.given["dim"]) % (len(rest) + 1)
    return (*rest[:dim], None, *rest[dim:])


def split(call: Call) -> list[Axes]:
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


def dropped(call: Call) -> Axes:
    """select and unbind take single positions of an axis."""
    x = call.tensor("self")
    dim = int(call.given.get("dim") or 0) % len(x)
    call.units.freeze(x[dim], f"{call.name} {call.where} takes single positions of it")
    return (*x[:dim], *x[dim + 1 :])


def unbind(call: Call) -> list[Axes]:
    return [dropped(call)] * len(call.node.meta["val"])


def cut(call: Call) -> Axes:
    x, dim = call.tensor("self"), int(call.given.get("dim") or 0)
    before = call.shape("self")
    dim %= len(x)
    if before[dim] == call.out[dim]:
        return x
    call.units.freeze(x[dim], f"a slice {call.where} cuts it at a fixed place")
    return (*x[:dim], None, *x[dim + 1 :])


def index(call: Call) -> Axes:
    x, indices = call.tensor("self"), list(call.given["indices"])
    used = [n for n, index in enumerate(indices) if index is not None]
    for n in used:
        call.units.freeze(x[n], f"an index {call.where} picks from it")
    if used != list(range(used[0], used[-1] + 1)):
        return unknown(call)  # type: ignore[no-any-return]
    inserted = len(call.out) - (len(x) - len(used))
    return (*x[: used[0]], *(None,) * inserted, *x[used[-1] + 1 :])


def gather(call: Call) -> Axes:
    """Along one axis the index picks; along the others each of its rows goes with the row of the same position."""
    x, rows = call.tensor("self"), call.tensor("index")
    if not x or len(x) != len(rows):
        return unknown(call)  # type: ignore[no-any-return]
    dim, made = int(call.given["dim"]) % len(x), list[Axis]()
    for n, (axis, other) in enumerate(zip(x, rows, strict=True)):
        if n == dim:
            call.units.freeze(axis, f"{call.name} {call.where} picks from it")
            made.append(other)
        elif axis is not None and len(axis) == call.out[n]:
            if other is not None:
                call.units.join(axis, other)
            made.append(axis)
        else:
            for part in (axis, other):
                call.units.freeze(part, f"{call.name} {call.where} reads it together with values that no layer makes")
            made.append(None)
    return tuple(made)


def pad(call: Call) -> Axes:
    x, pads = list(call.tensor("self")), list(call.given["pad"])
    for number in range(len(pads) // 2):
        if pads[2 * number] or pads[2 * number + 1]:
            axis = x[-1 - number]
            call.units.freeze(axis, f"padding {call.where} is put beside it")
            x[-1 - number] = None
    return tuple(x)


def along(call: Call) -> Any:
    """Operators that mix positions along some axes and leave the others alone."""
    name = "self" if "self" in call.given else "input"
    x = call.tensor(name)
    dims = call.given.get("dim", call.given.get("dims"))
    if dims is None or dims == []:
        dims = list(range(len(x)))
    mixed = {d % len(x) for d in ([dims] if isinstance(dims, int) else dims)} if x else set()
    if call.name in ("mean", "var") and call.given.get("keepdim"):  # a norm written out: its scale follows the size
        for n in mixed:
            call.units.blur(x[n])
    else:
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


def pool(call: Call) -> Any:
    x = call.tensor("self" if "self" in call.given else "input")
    spatial = int(next((c for c in call.name if c.isdigit()), "1"))
    for axis in x[-spatial:]:
        call.units.freeze(axis, f"{call.name} {call.where} slides over it")
    made = (*x[:-spatial], *(None,) * spatial)
    return [made, made] if isinstance(call.node.meta.get("val"), tuple | list) else made


def pixel_shuffle(call: Call) -> Axes:
    x, factor = call.tensor("self"), int(call.given["upscale_factor"])
    if x[1] is None or len(x) != 4:
        return unknown(call)  # type: ignore[no-any-return]
    for row in x[1].reshape(-1, factor * factor):
        call.units.join_all(row.tolist())
    return (x[0], x[1][:: factor * factor], None, None)


def cut_triangle(call: Call) -> Axes:
    x = call.tensor("self")
    for axis in x[-2:]:
        call.units.freeze(axis, f"{call.name} {call.where} depends on its positions")
    return x
