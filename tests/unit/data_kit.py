"""Datasets opened, and the complaints about them, for the tests of data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optkit.artifact import Dim, TensorSpec
from optkit.data import Dataset, open_dataset
from optkit.errors import DataError
from optkit.spec.dataspec import AnyData

IMAGE = TensorSpec("image", "float32", ("batch", 3, "height", "width"))
DIMS = {"batch": Dim(1, 4, 8), "height": Dim(2, 4, 6), "width": Dim(2, 5, 6)}


def opened(spec: AnyData, base: Path, *inputs: TensorSpec, dims: dict[str, Dim] | None = None) -> Dataset:
    return open_dataset(spec, base, inputs or (IMAGE,), DIMS if dims is None else dims, "fit")


def complaint(action: Callable[[], Any]) -> DataError:
    with pytest.raises(DataError) as caught:
        action()
    assert caught.value.subject == "data.fit"
    assert caught.value.what.startswith("data.fit: ")
    assert caught.value.hint
    return caught.value
