"""How units pass through view, reshape, flatten and unflatten."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from optkit.formats.torch_pruning.units import Axes, Axis, Units, repeated


def factors(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of axes of equal product, as (axes before, axes after); row-major order ties them together."""
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = ([i], [j]) if i < len(before) and j < len(after) else ([], [])
        if not left:  # only sizes of 1 are left on one side
            runs.append((list(range(i, len(before))), list(range(j, len(after)))))
            break
        a, b = before[i], after[j]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                a, left, i = a * before[i], [*left, i], i + 1
            else:
                b, right, j = b * after[j], [*right, j], j + 1
        runs.append((left, right))
    return runs


def reshape(
    units: Units,
    axes: Axes,
    before: Sequence[int],
    after: Sequence[int],
    head: Callable[[], bool],
    line: str,
) -> Axes:
    """The axes of a reshaped tensor. head: whether what is split off is attention's heads."""
    result: list[Axis] = [None] * len(after)
    for left, right in factors(before, after):
        made = [a for a in left if axes[a] is not None and before[a] > 1]
        wide = [b for b in right if after[b] > 1]
        if not made or not wide:
            continue
        merged = _merged(units, axes, before, left, made, line)
        if merged is None:
            continue
        if len(wide) == 1:
            result[wide[0]] = merged
            continue
        chosen = _chosen(units, merged, [after[b] for b in wide], head)
        shaped = merged.reshape([after[b] for b in wide])
        rows = np.moveaxis(shaped, chosen, 0).reshape(after[wide[chosen]], -1)
        for row in rows:
            units.join_all(row.tolist())
        result[wide[chosen]] = rows[:, 0].copy()
    return tuple(result)


def _merged(
    units: Units, axes: Axes, before: Sequence[int], left: Sequence[int], made: Sequence[int], line: str
) -> NDArray[np.int64] | None:
    """Axes run into one: the units of the only axis that has removable ones, repeated along the others."""
    free = [a for a in made if not units.frozen(axes[a])]
    for a in free[1:]:
        units.freeze(axes[a], f"two axes of channels are run into one, {line}")
    kept = (free or list(made))[0]
    for a in made:
        if a != kept and not free:
            return None
    axis = axes[kept]
    assert axis is not None
    inner = int(np.prod([before[a] for a in left if a > kept], dtype=np.int64))
    outer = int(np.prod([before[a] for a in left if a < kept], dtype=np.int64))
    return repeated(axis, inner, outer)


def _chosen(units: Units, merged: NDArray[np.int64], sizes: Sequence[int], head: Callable[[], bool]) -> int:
    """Which of the axes that one is split into keeps the units; along the others they become one class.

    Of attention it is the axis of the heads, which lies before the one that scores are summed over. Otherwise it is
    the axis along which the most can still be removed.
    """
    roots = units.roots(merged).reshape(sizes)
    varied = [axis for axis in range(len(sizes)) if (roots != roots.take([0], axis)).any()]
    if len(varied) == 1:  # along the others, such as the batch of (batch, heads), they repeat
        return varied[0]
    if head():
        rest = list(range(len(sizes) - 1))
        if all(len(np.unique(np.moveaxis(roots, axis, 0)[i])) > 1 for axis in rest for i in range(sizes[axis])):
            # Nothing is tied yet: (heads, size), (3, heads, size) or (heads, 3, size).
            named = [axis for axis in rest if sizes[axis] != 3] or rest
            return named[-1]
        return max(rest, key=lambda axis: (_classes(roots, axis), axis))
    return max(range(len(sizes)), key=lambda axis: (_classes(roots, axis), -axis))


def _classes(roots: NDArray[np.int64], axis: int) -> int:
    """How many classes are left when every slice along `axis` is made one."""
    slices = np.moveaxis(roots, axis, 0).reshape(roots.shape[axis], -1)
    parent: dict[int, int] = {}

    def find(x: int) -> int:
        while parent.setdefault(x, x) != x:
            x = parent[x]
        return x

    for row in slices.tolist():
        first = find(row[0])
        for value in row[1:]:
            parent[find(value)] = first
            first = find(first)
    return len({find(value) for value in parent})
