"""Made-up samples, drawn from what the recipe declares of each input."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from optkit.artifact import Dim, TensorSpec
from optkit.data.source import Array, Row, Source, fault
from optkit.spec.dataspec import RandomData


def open_random(
    spec: RandomData, base: Path, inputs: Sequence[TensorSpec], dims: Mapping[str, Dim], name: str
) -> Source:
    """Samples with dynamic dims at opt, each from a generator of its own, so that a longer set begins with a shorter.

    Floats are uniform in the input's range, standard normal without one; ints uniform in their range, which they
    need; bools even; ints, bools and floats without a range whose name contains "mask" are ones. Axis 0 is left to
    batching where all inputs share it; otherwise a sample has all axes and is fed as it is.
    """
    shared = len({i.shape[0] if i.shape else None for i in inputs}) == 1
    shapes: dict[str, tuple[int, ...]] = {}
    for item in inputs:
        axes = (item.shape or ())[1 if shared else 0 :]
        for axis in axes:
            if isinstance(axis, str) and axis not in dims:
                raise fault(
                    name,
                    f"input {item.name!r}: the dim {axis!r} has no range, so no size can be chosen",
                    f"add dims: {{{axis}: {{min: 1, opt: 8, max: 64}}}}",
                )
        shapes[item.name] = tuple(dims[axis].opt if isinstance(axis, str) else axis for axis in axes)
        _draw(np.random.default_rng(0), item, shapes[item.name], name)

    def rows() -> Iterator[Row]:
        for index in range(spec.random):
            rng = np.random.default_rng([spec.seed, index])
            yield {item.name: _draw(rng, item, shapes[item.name], name) for item in inputs}, None

    return Source(rows, lambda: spec.random, False, {"kind": "random", "seed": spec.seed}, synthetic=True)


def _draw(rng: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...], name: str) -> Array:
    """One array of an input. Raises DataError when its declaration does not say what to draw."""
    dtype = np.dtype(spec.dtype)
    floating = np.issubdtype(dtype, np.floating)
    if "mask" in spec.name.lower() and (spec.range is None if floating else True):
        return np.ones(shape, dtype)
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(dtype)
    if floating:
        if spec.range is None:
            return rng.standard_normal(shape).astype(dtype)
        low, high = np.array(spec.range, dtype)
        values: Array = np.clip(rng.uniform(*spec.range, shape).astype(dtype), low, high)
        return values
    if spec.range is None:
        written = f"{spec.name}:{spec.dtype}[{','.join(map(str, spec.shape or ()))}]"
        raise fault(
            name,
            f"random values for input {spec.name!r} ({spec.dtype}) need its range",
            f"declare it: inputs: {{{spec.name}: {{range: [0, ...]}}}}, or --input '{written}=0..HIGHEST'; for token "
            "ids 0 to vocabulary size - 1",
        )
    lowest, highest = math.ceil(spec.range[0]), math.floor(spec.range[1])
    info = np.iinfo(dtype)
    if lowest > highest or lowest < info.min or highest > info.max:
        raise fault(
            name,
            f"the range {spec.range[0]:g} to {spec.range[1]:g} of input {spec.name!r} holds no {spec.dtype}"
            if lowest > highest
            else f"the range of input {spec.name!r} exceeds {spec.dtype}",
            f"correct inputs.{spec.name}.range",
        )
    return rng.integers(lowest, highest, shape, dtype=dtype, endpoint=True)
