"""Inputs for an ONNX model: examples made from what the recipe declares, and a dataset's samples in batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from optkit.artifact import Artifact, TensorSpec
from optkit.errors import DataError, StepError, did_you_mean
from optkit.formats.onnx import model as onnx_model

if TYPE_CHECKING:
    from optkit.plugin import Context, Samples, Tensors


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


def calibration_feeds(artifact: Artifact, data: Samples, context: Context, most: int) -> Iterator[tuple[Tensors, int]]:
    """Batches of the model's inputs, of at most `most` samples, and how many samples each holds.

    A model with other dynamic axes than the batch gets one sample at a time, in its own length: padding would count as
    data. Where the batch is fixed, the last sample fills up the last batch. Raises DataError for a missing input.
    """
    import numpy as np

    inputs = onnx_model.describe(artifact.path, artifact.meta).inputs
    axes = [axis for spec in inputs for axis in (spec.shape or ())[1:]]
    first = next((spec.shape[0] for spec in inputs if spec.shape), 1)
    batch = 1 if any(isinstance(axis, str) for axis in axes) else most
    if isinstance(first, int):
        batch = first
    elif first in context.dims:
        batch = max(min(batch, context.dims[first].max), context.dims[first].min)
    for feed in data.feeds(batch):
        tensors = {}
        for spec in inputs:
            if spec.name not in feed:
                raise DataError(f"the calibration data has no {spec.name!r}", subject="data",
                                hint=did_you_mean(spec.name, feed))  # fmt: skip
            tensors[spec.name] = feed[spec.name]
        count = len(next(iter(tensors.values()), ()))
        if isinstance(first, int) and 0 < count < batch:
            tensors = {name: np.concatenate([v, np.repeat(v[-1:], batch - count, 0)]) for name, v in tensors.items()}
        yield tensors, count
