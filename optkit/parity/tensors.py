"""Two models' inner tensors: which are the same by name, laid out alike, and how far apart they are."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from optkit.parity.bounds import EQUAL_DB
from optkit.plugin import Point


def modules_in(points: Iterable[Point]) -> dict[str, str]:
    """The torch module of each tensor, by every name it goes by, where the points say."""
    return {name: point.module for point in points if point.module for name in names_of(point)}


def names_of(point: Point) -> tuple[str, ...]:
    """Every name that a point goes by, its own first."""
    return (point.name, *point.also)


def match(other: Iterable[Point], artifact: Iterable[Point], ends: Iterable[str] = ()) -> dict[str, str]:
    """The artifact's points that another model has too: name to name there. A tensor's own name comes first.

    ends: the names of inputs and outputs, which both have.
    """
    listed = list(other)
    theirs = {point.name: point.name for point in listed}
    for point in listed:
        for name in point.also:
            theirs.setdefault(name, point.name)
    for name in ends:
        theirs.setdefault(name, name)
    found = {}
    for point in artifact:
        for name in names_of(point):
            if name in theirs:
                found[point.name] = theirs[name]
                break
    return found


@np.errstate(all="ignore")
def decibels(reference: Any, value: Any) -> tuple[float, bool]:
    """SQNR of one tensor beside another of its shape, and whether it has a NaN or infinity that the other lacks."""
    r, v = np.asarray(reference, np.float64), np.asarray(value, np.float64)
    if r.shape != v.shape:
        return -EQUAL_DB, False
    there, fine = np.isfinite(r), np.isfinite(v)
    if (there & ~fine).any():
        return -EQUAL_DB, True
    both = there & fine
    scale = float(np.abs(r, where=both, out=np.zeros_like(r)).max(initial=0.0)) or 1.0
    r, v = np.where(both, r, 0.0) / scale, np.where(both, v, 0.0) / scale
    noise, signal = float(np.square(v - r).sum()), float(np.square(r).sum())
    if noise == 0:
        return EQUAL_DB, False
    if signal == 0:
        return -EQUAL_DB, False
    return max(-EQUAL_DB, min(EQUAL_DB, 10 * math.log10(signal / noise))), False


def fitted(value: Any, like: Any) -> Any:
    """A tensor in the layout of another that holds the same: channels moved, sizes of 1 left out; None if neither."""
    if value is None or value.size != like.size:
        return None
    if value.shape == like.shape:
        if value.ndim > 2 and len(set(value.shape[1:])) == 1:  # its layout cannot be told from its shape
            turned = (value, np.moveaxis(value, 1, -1), np.moveaxis(value, -1, 1))
            return max(turned, key=lambda v: decibels(v, like)[0])
        return value
    if value.ndim == like.ndim > 2:
        for a, b in ((1, -1), (-1, 1)):
            moved = np.moveaxis(value, a, b)
            if moved.shape == like.shape:
                return moved
    if [n for n in value.shape if n != 1] == [n for n in like.shape if n != 1]:
        return value.reshape(like.shape)
    return None


def rectified(value: Any, like: Any) -> Any:
    """What a module gives, behind the ReLU or ReLU6 that was fused into the operator that gives `like`."""
    if not value.size or float(like.min()) < 0 or float(value.min()) >= 0:
        return value
    ways = (value, np.maximum(value, 0), np.clip(value, 0, 6))
    return max(ways, key=lambda way: decibels(way, like)[0])


@np.errstate(all="ignore")
def as_type(value: Any, dtype: Any) -> Any:
    return np.ascontiguousarray(value, dtype)
