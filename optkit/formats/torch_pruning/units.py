"""Which channels of a model go together: classes of units, merged as operators tie their positions to each other.

A unit is one position on one axis of a parameter or buffer. Two units are of one class when neither can be removed
without the other. A class is frozen, with a reason, when it cannot be removed at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Axis = NDArray[np.int64] | None
"""Per position of a tensor's axis the unit that made it; None where no layer's channels lie (batch, rows, tokens)."""

Axes = tuple[Axis, ...]


class Units:
    """A union-find over units."""

    def __init__(self) -> None:
        self._parent: list[int] = [0]
        self._why: dict[int, str] = {0: "joined with values that no layer makes"}
        self._inexact: set[int] = set()
        self.changes = 0

    def make(self, count: int) -> NDArray[np.int64]:
        """New units, each a class of its own."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def find(self, unit: int) -> int:
        """The unit that stands for a unit's class."""
        parent = self._parent
        while parent[unit] != unit:
            parent[unit] = parent[parent[unit]]
            unit = parent[unit]
        return unit

    def roots(self, axis: NDArray[np.int64]) -> NDArray[np.int64]:
        """`find` of every position."""
        known: dict[int, int] = {}
        return np.array(
            [known[u] if u in known else known.setdefault(u, self.find(u)) for u in axis.tolist()], np.int64
        )

    def join(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
        """Position by position, the two are of one class from now on."""
        if one is other or np.array_equal(one, other):
            return
        for a, b in zip(one.tolist(), other.tolist(), strict=True):
            self._join(a, b)

    def join_all(self, members: Iterable[int]) -> None:
        """All of these are of one class from now on."""
        first: int | None = None
        for member in members:
            if first is None:
                first = member
            else:
                self._join(first, member)

    def _join(self, a: int, b: int) -> None:
        a, b = self.find(a), self.find(b)
        if a == b:
            return
        self.changes += 1
        low, high = min(a, b), max(a, b)
        self._parent[high] = low
        if high in self._why:
            self._why.setdefault(low, self._why.pop(high))
        if high in self._inexact:
            self._inexact.add(low)

    def freeze(self, axis: Axis, why: str) -> None:
        """None of these may be removed. The first reason given is kept."""
        if axis is None:
            return
        for unit in set(axis.tolist()):
            root = self.find(unit)
            if root not in self._why:
                self._why[root] = why
                self.changes += 1

    def blur(self, axis: Axis) -> None:
        """Removing these changes more than what they feed: a mean or a norm is taken over them."""
        if axis is not None:
            self._inexact.update(self.find(unit) for unit in set(axis.tolist()))

    def why(self, unit: int) -> str | None:
        """Why a unit cannot be removed, or None when it can."""
        return self._why.get(self.find(unit))

    def blurred(self) -> set[int]:
        """The classes that `blur` was said of."""
        return {self.find(unit) for unit in self._inexact}

    def frozen(self, axis: Axis) -> bool:
        """Whether no position can be removed."""
        return axis is None or all(self.why(unit) is not None for unit in set(axis.tolist()))


def combine(units: Units, tensors: Sequence[Axes], shapes: Sequence[Sequence[int]], why: str) -> Axes:
    """The axes of an elementwise result: broadcast, with aligned positions joined.

    Where one side's axis is made by layers and the other's is plain data of the same size, its units are frozen.
    """
    rank = max((len(axes) for axes in tensors), default=0)
    result: list[Axis] = []
    for back in range(rank, 0, -1):
        here = [
            (axes[-back], int(shape[-back])) for axes, shape in zip(tensors, shapes, strict=True) if len(axes) >= back
        ]
        size = max((n for _, n in here), default=1)
        full = [axis for axis, n in here if n == size or axis is not None]
        made = [axis for axis in full if axis is not None and len(axis) == size]
        if made and size > 1 and len(made) < len([1 for _, n in here if n == size]):
            for axis in made:
                units.freeze(axis, f"{why} joins it with values that no layer makes")
        for axis in made[1:]:
            units.join(made[0], axis)
        result.append(made[0] if made else None)
    return tuple(result)


def repeated(axis: NDArray[np.int64], inner: int = 1, outer: int = 1) -> NDArray[np.int64]:
    """Each position `inner` times in a row, and the whole `outer` times."""
    return np.tile(np.repeat(axis, inner), outer)


@dataclass(frozen=True)
class Follows:
    """An attribute of a module that has to say how many positions of an axis are left, over `divisor`."""

    path: str
    name: str
    axis: NDArray[np.int64]
    divisor: int = 1
    in_tuple: bool = False


@dataclass(frozen=True)
class Product:
    """A matrix product or convolution: multiply-accumulates are the product of all sizes."""

    axes: tuple[NDArray[np.int64], ...]
    times: int
