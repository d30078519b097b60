"""Weights as integers of 4 or 8 bits with a scale for each group of a row, and their bytes in ONNX files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from optkit.formats import rounding

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]

Algorithm = Literal["rtn", "hqq", "gptq"]
LEAST_GROUP = 16  # of onnxruntime's kernels


@dataclass(frozen=True)
class Scheme:
    """How weights become integers. group_size: how many weights of a row share a scale, a power of two."""

    bits: int
    group_size: int
    symmetric: bool
    algorithm: Algorithm

    @property
    def most(self) -> int:
        """The largest integer; the smallest is 0."""
        return int(2**self.bits - 1)

    @property
    def middle(self) -> int:
        """The integer that stands for 0 where the scheme is symmetric."""
        return int(2 ** (self.bits - 1))

    def group(self, inputs: int) -> int:
        """The group of a row of so many weights: no longer than the row needs."""
        group = self.group_size
        while group > LEAST_GROUP and group // 2 >= inputs:
            group //= 2
        return group


@dataclass(frozen=True)
class Blocks:
    """A weight in groups: value = (integer - zero) * scale.

    integers: uint8 `(outputs, groups * group)`, past `inputs` filled with the zero point. scale: float32 `(outputs,
    groups)`; zero likewise, float32 but whole, unless `fractional`.
    """

    integers: NDArray[np.uint8]
    scale: NDArray[np.float32]
    zero: NDArray[np.float32]
    group: int
    inputs: int
    fractional: bool = False

    def values(self) -> NDArray[np.float32]:
        """The weight as it is computed with, float32 `(outputs, inputs)`."""
        import numpy as np

        shape = (len(self.scale), -1, self.group)
        whole = self.integers.astype(np.float32).reshape(shape)
        found = (whole - self.zero[..., None]) * self.scale[..., None]
        return np.ascontiguousarray(found.reshape(len(self.scale), -1)[:, : self.inputs])


def quantised(rows: Array, scheme: Scheme, hessian: Array | None = None) -> Blocks:
    """A weight `(outputs, inputs)` in groups along its inputs.

    "rtn" rounds to nearest; "hqq" searches zero points for that; "gptq" makes up for the rounding of one column in the
    next, by the layer's `hessian` (see `rounding.gptq`), and is taken where it beats nearest on those inputs.
    """
    import numpy as np

    nearest = _nearest(np.asarray(rows, np.float32), scheme)
    if scheme.algorithm == "hqq":
        return _half_quadratic(rows, nearest, scheme)
    if scheme.algorithm == "gptq" and hessian is not None:
        found = _by_hessian(rows, hessian, scheme)
        errors = [rounding.output_error(blocks.values() - rows, hessian) for blocks in (found, nearest)]
        return found if errors[0] < errors[1] else nearest
    return nearest


def _nearest(rows: Array, scheme: Scheme) -> Blocks:
    import numpy as np

    outputs, inputs = rows.shape
    group = scheme.group(inputs)
    padded = _padded(rows, group)
    scale, zero = _grid(padded.reshape(outputs, -1, group), scheme)
    whole = np.rint(padded.reshape(outputs, -1, group) / scale[..., None]) + zero[..., None]
    integers = np.clip(whole, 0, scheme.most).astype(np.uint8)
    return Blocks(integers.reshape(outputs, -1), scale, zero, group, inputs)


def _padded(rows: Array, group: int) -> Array:
    import numpy as np

    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % group)))


def _grid(groups: Array, scheme: Scheme) -> tuple[Array, Array]:
    """Scale and zero point of each group, along the last axis. 0 is always exact, and scales are positive."""
    import numpy as np

    low, high = np.minimum(groups.min(axis=-1), 0), np.maximum(groups.max(axis=-1), 0)
    if scheme.symmetric:  # one more integer lies below the middle than above
        scale = np.maximum(-low / scheme.middle, high / (scheme.middle - 1))
    else:
        scale = (high - low) / scheme.most
    scale = np.where(scale < np.finfo(np.float32).tiny, 1.0, scale).astype(np.float32)
    if scheme.symmetric:
        return scale, np.full_like(scale, scheme.middle)
    return scale, np.clip(np.rint(-low / scale), 0, scheme.most).astype(np.float32)


def _half_quadratic(rows: Array, start: Blocks, scheme: Scheme) -> Blocks:
    """Zero points that fit the bulk of each group's weights, outliers counting less than by their square.

    Minimises |W - dequantised|^0.7 by half-quadratic splitting; it needs no data. From H. Badri and A. Shaji,
    "Half-Quadratic Quantization of Large Machine Learning Models" (2023), with their constants. Zero points become
    fractional. Groups that the search does not help keep the nearest ones.
    """
    import numpy as np

    outputs, inputs = rows.shape
    groups = _padded(np.asarray(rows, np.float32), start.group).reshape(outputs, -1, start.group)
    there = (np.arange(groups[0].size) < inputs).reshape(groups.shape[1:])
    counts = there.sum(axis=-1)
    scale = start.scale[..., None]
    power, weight, growth, rounds = 0.7, 10.0, 1.01, 20
    zero, best = start.zero[..., None], start.zero
    whole, least = _distance(groups, scale, zero, there, power, scheme)
    for _ in range(rounds):
        error = groups - (whole - zero) * scale
        size = np.abs(error)
        shrunk = np.sign(error) * np.maximum(size - np.power(size + 1e-8, power - 1) / weight, 0)
        zero = ((whole - (groups - shrunk) / scale) * there).sum(axis=-1, keepdims=True) / counts[:, None]
        whole, distance = _distance(groups, scale, zero, there, power, scheme)
        best = np.where(distance < least, zero[..., 0], best)
        least = np.minimum(least, distance)
        weight *= growth
    whole, _ = _distance(groups, scale, best[..., None], there, power, scheme)
    integers = whole.astype(np.uint8).reshape(outputs, -1)
    return Blocks(integers, start.scale, best.astype(np.float32), start.group, inputs, fractional=True)


def _distance(
    groups: Array, scale: Array, zero: Array, there: Array, power: float, scheme: Scheme
) -> tuple[Array, Array]:
    """The nearest integers for these zero points, and how far off each group is by them."""
    import numpy as np

    whole = np.clip(np.rint(groups / scale + zero), 0, scheme.most)
    error = np.abs(groups - (whole - zero) * scale) * there
    return whole, np.power(error, power).sum(axis=-1)


def _by_hessian(rows: Array, hessian: Array, scheme: Scheme) -> Blocks:
    import numpy as np

    outputs, inputs = rows.shape
    group = scheme.group(inputs)
    scale = np.ones((outputs, -(-inputs // group)), np.float32)
    zero = np.zeros_like(scale)

    def grid(column: int, now: Array) -> tuple[Array, Array]:
        at = column // group
        if column % group == 0:  # what the columns before have left to make up for counts in the range
            scale[:, at], zero[:, at] = _grid(now[:, column : column + group], scheme)
        return scale[:, at], zero[:, at]

    whole = rounding.gptq(rows, hessian, grid, 0, scheme.most)
    integers = np.repeat(zero, group, axis=1)
    integers[:, :inputs] = whole
    return Blocks(integers.astype(np.uint8), scale, zero, group, inputs)


def packed(integers: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Integers along the last axis in as few bytes as they need, the first in the low bits."""
    import numpy as np

    if bits == 8:
        return np.ascontiguousarray(integers)
    pairs = np.pad(integers, [(0, 0)] * (integers.ndim - 1) + [(0, integers.shape[-1] % 2)])
    return np.ascontiguousarray(pairs[..., 0::2] | pairs[..., 1::2] << 4)


def unpacked(raw: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """`count` integers along the last axis, as `packed` stored them."""
    import numpy as np

    if bits == 8:
        return raw[..., :count]
    return np.stack([raw & 15, raw >> 4], axis=-1).reshape(*raw.shape[:-1], -1)[..., :count]
