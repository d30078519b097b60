"""Example inputs for an ONNX model, made from what the recipe declares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from optkit.artifact import TensorSpec
from optkit.errors import StepError

if TYPE_CHECKING:
    from optkit.plugin import Tensors


def example_feeds(inputs: Sequence[TensorSpec], sizes: Mapping[str, int], seed: int = 0) -> Tensors:
    """An array per input, of the given sizes, inside the declared ranges.

    Without a range floats are standard normal and integers are 1: an index that every table of two rows has, and a
    mask that hides nothing. Integers in 0..1 begin with a 1 in their last axis, so that a mask never hides a whole row.
    Raises StepError for a dtype that numpy cannot draw.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    feeds: Tensors = {}
    for spec in inputs:
        shape = tuple(sizes[d] if isinstance(d, str) else d for d in spec.shape or ())
        low, high = spec.range or (None, None)
        if spec.dtype.startswith("float"):
            drawn = rng.standard_normal(shape)
            if low is not None and high is not None:
                drawn = rng.uniform(low, high, shape)
        elif spec.dtype == "bool" or "int" in spec.dtype:
            first, last = (0, 1) if spec.dtype == "bool" else (1, 1)
            if low is not None and high is not None:
                first, last = math.ceil(low), math.floor(high)
            drawn = np.asarray(rng.integers(first, last, shape, endpoint=True))
            if (first, last) == (0, 1) and drawn.ndim:
                drawn[..., 0] = 1
        else:
            raise StepError(f"input {spec.name!r} is {spec.dtype}, which cannot be tried", subject="model",
                            hint="take that part out of the model")  # fmt: skip
        feeds[spec.name] = np.asarray(drawn).astype(np.dtype(spec.dtype))
    return feeds
