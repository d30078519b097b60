"""The one check of what goes into a session: names, arrays, dtypes, ranks, sizes, and layouts that are recognised."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from optkit.artifact import TensorSpec
from optkit.errors import DataError
from optkit.plugin import checked_feeds

IMAGE = TensorSpec("image", "float32", ("batch", 3, 8, 6), "NCHW")
IDS = TensorSpec("ids", "int64", ("batch", "sequence"))
MASK = TensorSpec("mask", "int64", ("batch", "sequence"))


def complaint(spec: TensorSpec, value: Any) -> tuple[str, str]:
    with pytest.raises(DataError) as caught:
        checked_feeds({spec.name: value}, [spec])
    assert caught.value.subject == f"inputs.{spec.name}"
    return caught.value.what, caught.value.hint


def test_what_fits_comes_back_in_order_and_in_native_bytes() -> None:
    ids, mask = np.ones((2, 5), np.int64), np.ones((2, 5), ">i8")
    feeds = checked_feeds({"mask": mask, "ids": ids}, [IDS, MASK])
    assert list(feeds) == ["ids", "mask"]
    assert np.shares_memory(feeds["ids"], ids)
    assert feeds["mask"].dtype == np.dtype("int64")
    assert feeds["mask"].dtype.isnative
    scalar = TensorSpec("k", "float32", ())
    assert checked_feeds({"k": np.float32(2)}, [scalar])["k"].shape == ()
    assert checked_feeds({"t": np.array(["a"])}, [TensorSpec("t", "string", ("n",))])["t"][0] == "a"
    anything = TensorSpec("x", "float32", None)
    assert checked_feeds({"x": np.zeros((1, 2, 3), np.float32)}, [anything])


@pytest.mark.parametrize(
    ("spec", "value", "what", "hint"),
    [
        (IMAGE, [[1.0]], "input 'image' is a list, not an array", "numpy.asarray(value, 'float32')"),
        (IMAGE, np.zeros((1, 3, 8, 6)), "is float64, the model takes float32", "cast it: .astype('float32')"),
        (IDS, np.zeros((1, 4), np.int32), "is int32, the model takes int64", "cast it: .astype('int64')"),
        (IMAGE, np.zeros((3, 8, 6), np.float32), "has 3 axes (3, 8, 6), the model takes 4 (batch, 3, 8, 6)",
         "add the batch axis: value[None]"),
        (IMAGE, np.zeros((1, 1, 3, 8, 6), np.float32), "has 5 axes", "check the sample's shape"),
        (IMAGE, np.zeros((1, 8, 6, 3), np.float32), "has shape (1, 8, 6, 3), the model takes (batch, 3, 8, 6)",
         "it looks like NHWC: give value.transpose(0, 3, 1, 2)"),
        (TensorSpec("x", "float32", ("n", "h", "w", 3), "NHWC"), np.zeros((1, 3, 8, 6), np.float32), "has shape",
         "it looks like NCHW: give value.transpose(0, 2, 3, 1)"),
        (TensorSpec("x", "float32", ("n", 2, 9), "NCL"), np.zeros((1, 9, 2), np.float32), "has shape",
         "it looks like channels last: give value.transpose(0, 2, 1)"),
        (IMAGE, np.zeros((1, 3, 8, 7), np.float32), "has shape (1, 3, 8, 7)", "resize or pad the sample"),
        (TensorSpec("t", "string", ("n",)), np.zeros(1, np.float32), "is float32, the model takes string",
         "numpy.asarray(value, str)"),
        (TensorSpec("x", "bfloat16", ("n",)), np.zeros(1, np.float64), "the model takes float32", "astype"),
    ],
)  # fmt: skip
def test_what_does_not_fit(spec: TensorSpec, value: Any, what: str, hint: str) -> None:
    told, remedy = complaint(spec, value)
    assert what in told
    assert hint in remedy


def test_names_and_sizes_that_disagree() -> None:
    ids = np.ones((2, 5), np.int64)
    with pytest.raises(DataError, match="the model has no input 'id'") as caught:
        checked_feeds({"id": ids, "mask": ids}, [IDS, MASK])
    assert caught.value.hint == "did you mean 'ids'?"
    with pytest.raises(DataError, match="input 'mask' is missing") as caught:
        checked_feeds({"ids": ids}, [IDS, MASK])
    assert caught.value.hint == "the model takes ids, mask; given: ids"
    with pytest.raises(DataError, match="sequence is 4 in input 'mask', but 5 in 'ids'"):
        checked_feeds({"ids": ids, "mask": ids[:, :4]}, [IDS, MASK])
