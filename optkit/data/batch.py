"""Samples stacked to what a model is fed, and feeds cut or repeated to other sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from optkit.artifact import Dim, TensorSpec
from optkit.data.source import Array, Pad, Sample, fault, pad_to


def batch_limits(name: str, inputs: Sequence[TensorSpec], dims: Mapping[str, Dim], stacked: Mapping[str, bool]
                 ) -> tuple[int, int | None]:  # fmt: skip
    """Fewest and most samples a feed may hold; None for no limit.

    A static axis 0 takes exactly its size; an input fed as it is leaves room for one sample. Raises DataError when
    two inputs contradict each other.
    """
    fewest, most, reason = 1, None, ""
    for spec in inputs:
        if stacked[spec.name]:
            axis = (spec.shape or (1,))[0]
            dim = dims.get(axis) if isinstance(axis, str) else Dim(axis, axis, axis)
            low, high = (dim.min, dim.max) if dim else (1, None)
            text = f"{spec.name} takes {low if low == high else f'{low} to {high}'} samples at a time"
        else:
            low, high, text = 1, 1, f"{spec.name} comes with its batch axis, so it takes one sample at a time"
        fewest = max(fewest, low)
        most = high if most is None else min(most, high or most)
        if most is not None and most < fewest:
            raise fault(
                name, f"input {text}, but {reason}", "give every input the same batch axis, and samples without it"
            )
        reason = text if not reason or low > 1 or high is not None else reason
    return fewest, most


def stack(name: str, samples: Sequence[Sample], inputs: Sequence[TensorSpec], stacked: Mapping[str, bool],
          pads: Mapping[str, Pad]) -> Sample:  # fmt: skip
    """Samples as one feed, padded along each dynamic dim to the longest, in every input alike."""
    sizes: dict[str, int] = {}
    for sample in samples:
        for spec in inputs:
            shape = spec.shape or ()
            own = zip(shape[1:] if stacked[spec.name] else shape, sample[spec.name].shape, strict=True)
            for axis, have in own:
                if isinstance(axis, str):
                    sizes[axis] = max(have, sizes.get(axis, 0))
    feeds: Sample = {}
    for spec in inputs:
        if stacked[spec.name]:
            target = tuple(sizes[d] if isinstance(d, str) else d for d in (spec.shape or ())[1:])
            pad = pads.get(spec.name, Pad())
            feeds[spec.name] = np.stack([pad_to(name, sample[spec.name], target, pad) for sample in samples])
        else:
            feeds[spec.name] = np.array(samples[0][spec.name], order="C")
    _agree(name, feeds, inputs)
    return feeds


def _agree(name: str, feeds: Sample, inputs: Sequence[TensorSpec]) -> None:
    """Raises DataError when a named dim has two sizes in one feed."""
    sizes: dict[str, tuple[int, str]] = {}
    for spec in inputs:
        for axis, have in zip(spec.shape or (), feeds[spec.name].shape, strict=True):
            if isinstance(axis, str) and (seen := sizes.setdefault(axis, (have, spec.name)))[0] != have:
                raise fault(
                    name,
                    f"{axis} is {have} in input {spec.name!r}, but {seen[0]} in {seen[1]!r}",
                    "give every input's samples without the batch axis, or every input's with it",
                )


def stack_labels(labels: Sequence[object] | None) -> Array | None:
    """A feed's labels along axis 0; of dtype object where they make no array; None where a sample has none, or several.

    That of object is for whoever needs class numbers to complain of.
    """
    if labels is None or any(isinstance(label, Mapping) for label in labels):
        return None
    try:
        return np.stack([np.asarray(label) for label in labels])
    except ValueError:  # of several shapes, or lists of unequal length
        return np.empty(len(labels), object)


def resize_feeds(feeds: Mapping[str, Array], inputs: Sequence[TensorSpec], sizes: Mapping[str, int]) -> Sample:
    """Feeds in which every axis of a named dim has exactly the size given, by repeating the content or cutting it."""
    shapes = {spec.name: spec.shape or () for spec in inputs}
    made: Sample = {}
    for name, whole in feeds.items():
        array = whole
        for axis, dim in enumerate(shapes[name]):
            if isinstance(dim, str) and dim in sizes and array.shape[axis] != sizes[dim]:
                array = np.take(array, np.arange(sizes[dim]) % array.shape[axis], axis=axis)
        made[name] = array
    return made
