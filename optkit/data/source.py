"""What each kind of dataset provides: rows as they are stored, before they are checked against the model's inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from optkit.errors import DataError

Array = NDArray[Any]
Sample = dict[str, Array]
Row = tuple[Sample, Any]
"""A sample without the batch axis, and its label: None, one value, or a dict where the recipe names several."""


@dataclass(frozen=True)
class Pad:
    """How an input is filled up along its dynamic axes: with which value (None: it can't be), at which end."""

    value: int | None = 0
    side: Literal["left", "right"] = "right"


@dataclass(frozen=True)
class Source:
    """Where samples come from.

    rows: a fresh pass over all of them, one at a time.
    count: how many there are; may need a pass.
    preprocessing: JSON data, what was done to the files' contents.
    pads: per input, other than zeros at the right end.
    finish: makes a row's sample what the model takes (padding to a fixed length); digests are taken before it.
    """

    rows: Callable[[], Iterator[Row]]
    count: Callable[[], int]
    labelled: bool
    preprocessing: Mapping[str, Any]
    pads: Mapping[str, Pad] = field(default_factory=dict)
    finish: Callable[[Sample], Sample] = lambda sample: sample
    synthetic: bool = False


def label_of(named: str | tuple[str, ...] | None, found: Mapping[str, Any]) -> Any:
    """A row's label, out of those found: as one value where the recipe names one alone."""
    return found[named] if isinstance(named, str) else dict(found) or None


def fault(name: str, what: str, hint: str = "", details: str = "", code: str = "") -> DataError:
    """The error of a dataset: its message starts with `data.<name>`, which is its subject too."""
    return DataError(f"data.{name}: {what}", hint=hint, subject=f"data.{name}", details=details, code=code)


def pad_to(name: str, array: Array, shape: tuple[int, ...], pad: Pad) -> Array:
    """`array` filled up to `shape`, which is nowhere smaller; `array` itself when nothing is missing."""
    if array.shape == shape:
        return array
    if pad.value is None:
        raise fault(
            name,
            "texts of unequal length need padding, and the tokenizer states no padding token",
            "name one with pad_token:",
        )
    lack = [
        (0, want - have) if pad.side == "right" else (want - have, 0)
        for have, want in zip(array.shape, shape, strict=True)
    ]
    return np.pad(array, lack, constant_values=pad.value)


def sample_hash(arrays: Mapping[str, Array]) -> hashlib._Hash:
    """The sha256 of named arrays: names, dtypes, shapes, bytes. Byte order and memory layout make no difference."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name])
        digest.update(f"{name}\0{array.dtype.name}\0{array.shape}\0".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest
