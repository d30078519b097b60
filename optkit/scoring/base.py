"""What every scorer is given and gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from optkit.errors import did_you_mean

Array = NDArray[Any]


class Unfit(Exception):
    """A metric cannot be measured on what it was given. `hint` is one thing to try."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


@dataclass(frozen=True)
class Batch:
    """Real samples of the judging set: their feeds, their labels as the dataset has them, and the first's number."""

    feeds: Mapping[str, Array]
    labels: Sequence[Any] | None
    count: int
    start: int


class Scorer(Protocol):
    """Accumulates one model's predictions, reduced to what its metric needs of each sample.

    add: one batch, `outputs` cut to its samples. finish: once, after all batches; `source` is the source model's own
    scorer, or None for the source itself. values: the metric of each resample, float64 `(resamples,)`, NaN where it is
    undefined; weights say how often each sample counts, `(resamples, samples)`. outcomes: where each sample is simply
    right or wrong, which are right and which count, each bool `(samples,)`; else None.
    """

    def add(self, batch: Batch, outputs: Mapping[str, Array]) -> None: ...

    def finish(self, source: Scorer | None) -> None: ...

    def values(self, weights: Array) -> Array: ...

    def outcomes(self) -> tuple[Array, Array] | None: ...


def output_of(outputs: Mapping[str, Array], name: str | None) -> tuple[str, Array]:
    """The output of that name, or the only one. Raises Unfit."""
    if name is None:
        if len(outputs) != 1:
            raise Unfit(f"the model has {len(outputs)} outputs: {', '.join(outputs)}", "name the one with output:")
        name = next(iter(outputs))
    if name not in outputs:
        raise Unfit(f"there is no output {name!r}", did_you_mean(name, outputs))
    array = np.asarray(outputs[name])
    return name, array.astype(np.float32) if array.dtype.kind == "V" else array  # bfloat16 and the like


def rows_of(name: str, array: Array, count: int) -> Array:
    """An output by sample, `(count, ...)`. Raises Unfit when its axis 0 is not the samples."""
    if array.ndim and array.shape[0] == count:
        return array
    if count == 1:
        return array[None]
    raise Unfit(
        f"output {name!r} has shape {array.shape}, so axis 0 does not count the {count} samples",
        "let the model keep the batch axis first",
    )


def label_of(batch: Batch, row: int, name: str | None) -> Any:
    """One sample's label, by name where there are several."""
    label = batch.labels[row] if batch.labels is not None else None
    if isinstance(label, Mapping):
        label = label[name] if name in label else next(iter(label.values())) if len(label) == 1 else None
    if label is None:
        raise Unfit(f"sample {batch.start + row} has no label", "add label: to the dataset")
    return label


def labels_of(batch: Batch, name: str | None) -> Array:
    """A batch's labels as one array, `(count, ...)`. Raises Unfit when they differ in shape or are no numbers."""
    arrays: list[Array] = []
    for row in range(batch.count):
        try:
            array = np.asarray(label_of(batch, row, name))
        except ValueError:  # lists of unequal length
            array = np.empty(0, object)
        if array.dtype.kind not in "biuf":
            raise Unfit(f"sample {batch.start + row}: its label is no number or array of numbers", "give class ids")
        if arrays and array.shape != arrays[0].shape:
            raise Unfit(
                f"labels differ in shape: {arrays[0].shape}, {array.shape} at sample {batch.start + row}",
                "give those of one batch one shape; a label of -1 is left out",
            )
        arrays.append(array)
    return np.stack(arrays)


def class_ids(batch: Batch, name: str | None) -> Array:
    """A batch's labels as class ids, int64; negative ones do not count. Raises Unfit."""
    array = labels_of(batch, name)
    if array.dtype.kind == "f":
        raise Unfit(f"labels are {array.dtype}, not class numbers", "save them as integers: labels.astype('int64')")
    return array.astype(np.int64)


def weighted(weights: Array, part: Array, whole: Array) -> Array:
    """sum(part) / sum(whole) of each resample; NaN where the whole is 0."""
    top, bottom = weights @ part.astype(np.float64), weights @ whole.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(bottom > 0, top / bottom, np.nan), np.float64)


class Plain:
    """What most scorers leave as it is."""

    def finish(self, source: Scorer | None) -> None:
        """Nothing is left to do."""

    def outcomes(self) -> tuple[Array, Array] | None:
        """Samples are more than right or wrong."""
        return None
