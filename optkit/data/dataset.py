"""A dataset: checked samples, streamed one by one or as feeds."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from optkit.artifact import Dim, TensorSpec
from optkit.data.batch import batch_limits, stack
from optkit.data.check import Checker, check_inputs, check_names
from optkit.data.source import Pad, Sample, Source, fault, sample_hash
from optkit.errors import UserError
from optkit.spec.dataspec import AnyData, ImageData, NpzData, PythonData, TextData

Batch = tuple[Sample, int, list[Any] | None]
"""Feeds, the number of real samples in them (they come first), and those samples' labels as their source has them."""


@dataclass(frozen=True)
class Stacker:
    """Makes one feed of samples of the dataset `name`. stacked: the inputs whose samples lack the batch axis."""

    name: str
    inputs: tuple[TensorSpec, ...]
    stacked: Mapping[str, bool]
    pads: Mapping[str, Pad]

    def __call__(self, samples: Sequence[Sample]) -> Sample:
        return stack(self.name, samples, self.inputs, self.stacked, self.pads)


@dataclass(frozen=True)
class Dataset:
    """Samples that fit a model's inputs; every pass reads them anew, so memory does not grow with their number.

    A sample maps input names to arrays without the batch axis. Iterating raises DataError (subject `data.<name>`) at
    the first sample that does not fit.
    """

    name: str
    source: Source
    inputs: tuple[TensorSpec, ...]
    dims: Mapping[str, Dim]
    limit: int | None = None

    @cached_property
    def _check(self) -> Checker:
        return Checker(self.name, self.inputs, self.dims)

    @cached_property
    def _count(self) -> int:
        count = self.source.count()
        if count == 0:
            raise self._empty()
        return count if self.limit is None else min(count, self.limit)

    def _empty(self) -> UserError:
        hint = "a check or a calibration without samples would prove nothing"
        return fault(self.name, "it has no samples", hint, code="OPK-232")

    @property
    def synthetic(self) -> bool:
        """Whether the samples are made up, not real data."""
        return self.source.synthetic

    @property
    def labelled(self) -> bool:
        """Whether samples come with labels."""
        return self.source.labelled

    @property
    def preprocessing(self) -> dict[str, Any]:
        """JSON data: the kind of dataset, and what was done to the files' contents to make samples."""
        return dict(self.source.preprocessing)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Sample]:
        """Samples without labels."""
        return (sample for sample, _ in self.iter_labelled())

    def iter_labelled(self) -> Iterator[tuple[Sample, Any]]:
        """Each sample with its label, None where the dataset has no labels."""
        return ((sample, label) for _, sample, label in self._stream())

    def _stream(self) -> Iterator[tuple[Sample, Sample, Any]]:
        """A pass: the sample as its source gives it, as the model takes it, and its label."""
        count = 0
        for index, (natural, label) in enumerate(itertools.islice(self.source.rows(), self.limit)):
            check_names(self.name, natural, self.inputs, f"sample {index}")
            yield natural, self._check(index, self.source.finish(natural)), label
            count += 1
        known = self.__dict__.get("_count", count)
        if known != count:
            raise fault(
                self.name,
                f"it has {known} samples, but a later pass over it gave {count}",
                "let every pass give the same samples: a callable returns a new list or generator each time",
            )
        if count == 0:
            raise self._empty()
        self.__dict__["_count"] = count

    def feeds(self, batch: int) -> Iterator[Sample]:
        """Feeds of up to `batch` samples; see `batches`."""
        return (feeds for feeds, _, _ in self.batches(batch))

    def batches(self, size: int) -> Iterator[Batch]:
        """Feeds with the number of real samples in them and their labels (None without labels).

        Axis 0 is the batch axis of an input whose rank is one more than its sample's; other samples are fed as they
        are, one at a time. `size` gives way to what the model takes: a static batch axis decides it, a dynamic one
        limits it to its dim's range. The last feed is filled by repeating its samples where it would be too small.
        Samples of unequal size along a dynamic axis are padded to the longest in their feed.
        """
        stream = self.iter_labelled()
        first = next(stream)
        fewest, most = batch_limits(self.name, self.inputs, self.dims, self._check.stacked)
        size = max(fewest, size if most is None else min(size, most))
        stream = itertools.chain([first], stream)
        while part := list(itertools.islice(stream, size)):
            count = len(part)
            samples = [part[i % count][0] for i in range(max(count, fewest))]
            labels = [label for _, label in part] if self.labelled else None
            yield stack(self.name, samples, self.inputs, self._check.stacked, self.source.pads), count, labels

    def stack(self, samples: Sequence[Sample]) -> Sample:
        """Samples that this dataset gave as one feed, as `batches` makes them, but of any number."""
        return self.stacker(samples)

    @property
    def stacker(self) -> Stacker:
        """What `stack` does, without the samples: it can be pickled for another process."""
        return Stacker(self.name, self.inputs, self._check.stacked, self.source.pads)

    def sample_digests(self) -> Iterator[str]:
        """sha256 (hex) per sample over names, dtypes, shapes and bytes of its inputs.

        Without the label, and without a text's padding: the same text padded otherwise has the same digest.
        """
        return (sample_hash(natural).hexdigest() for natural, _, _ in self._stream())

    @cached_property
    def _digest(self) -> str:
        whole = hashlib.sha256()
        for _, sample, label in self._stream():
            whole.update(sample_hash(sample).digest())
            if self.labelled:
                whole.update(_label_hash(label))
        return whole.hexdigest()

    def digest(self) -> str:
        """sha256 (hex) over all samples as they are fed, and their labels, in order. Takes a pass, once."""
        return self._digest


def _label_hash(label: Any) -> bytes:
    """sha256 of a label: an array, what becomes one, lists of unequal length, or several of these by name."""
    named = label if isinstance(label, Mapping) else {"label": label}
    try:
        return sample_hash({key: np.asarray(value) for key, value in named.items()}).digest()
    except ValueError:  # lists of unequal length: no array
        return hashlib.sha256(json.dumps(named, sort_keys=True, default=_plain).encode()).digest()


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else repr(value)


def open_dataset(spec: AnyData, base: Path, inputs: Sequence[TensorSpec], dims: Mapping[str, Dim], name: str
                 ) -> Dataset:  # fmt: skip
    """The dataset `data.<name>` of a recipe in the folder `base`, for a model with these inputs.

    Raises DataError (subject `data.<name>`) for what is wrong without reading samples: a missing or empty file, a
    missing input, an array too many. Raises UnavailableError when Pillow or tokenizers is needed and missing.
    """
    check_inputs(name, inputs)
    try:
        source = _opener(spec)(spec, base, tuple(inputs), dims, name)
    except UserError as error:
        error.subject = error.subject or f"data.{name}"
        raise
    return Dataset(
        name, source, tuple(inputs), dims, None if isinstance(spec, ImageData) else getattr(spec, "limit", None)
    )


def _opener(spec: AnyData) -> Callable[..., Source]:
    """The function that opens a kind of dataset; each kind loads only what it needs."""
    if isinstance(spec, NpzData):
        from optkit.data.npz import open_npz

        return open_npz
    if isinstance(spec, ImageData):
        from optkit.data.images import open_images

        return open_images
    if isinstance(spec, TextData):
        from optkit.data.text import open_text

        return open_text
    if isinstance(spec, PythonData):
        from optkit.data.python import open_python

        return open_python
    from optkit.data.synthetic import open_random

    return open_random


def overlap(fit: Dataset, judge: Dataset) -> list[tuple[int, int]]:
    """Positions of samples that are in both: the first such one in `fit`, and each one in `judge`."""
    seen: dict[bytes, int] = {}
    for position, digest in enumerate(fit.sample_digests()):
        seen.setdefault(bytes.fromhex(digest), position)
    digests = enumerate(judge.sample_digests())
    return [(seen[key], position) for position, digest in digests if (key := bytes.fromhex(digest)) in seen]
