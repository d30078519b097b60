"""What a program holds in memory, as a dataset: every form gives the same samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optkit.artifact import Dim, TensorSpec
from optkit.cache import Cache
from optkit.data import open_dataset
from optkit.errors import DataError
from optkit.live.livedata import dataset_entry
from optkit.spec.dataspec import parse_data

X = TensorSpec("x", "float32", ("batch", 3))
Y = TensorSpec("y", "int64", ("batch", "length"))
DIMS = {"batch": Dim(1, 4, 8), "length": Dim(1, 4, 9)}
ROWS = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)
LABELS = np.arange(7)


class Tensor:
    """As much of a torch tensor as is asked of one: it refuses NumPy until it is detached and on the CPU."""

    def __init__(self, array: Any, ready: bool = False) -> None:
        self.array, self.ready, self.dtype, self.shape = np.asarray(array), ready, "torch.float32", array.shape

    def detach(self) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        return Tensor(self.array, ready=True)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        if not self.ready:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        return self.array


class MapStyle:
    """A dataset of torch's map style that never ends an iteration by itself."""

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": ROWS[index % 7]}


def read(
    data: Any, store: Cache, inputs: tuple[TensorSpec, ...] = (X,), name: str = "judge"
) -> list[tuple[dict[str, Any], Any]]:
    entry = dataset_entry(data, name, store, {}, lambda: inputs)
    return list(open_dataset(parse_data(entry), Path(), inputs, DIMS, name).iter_labelled())


def generator() -> Iterator[dict[str, Any]]:
    yield from ({"x": row} for row in ROWS)


@pytest.mark.parametrize(
    ("data", "labelled"),
    [
        ({"x": ROWS}, False),
        ({"x": ROWS.astype(">f4")}, False),
        ({"x": ROWS.tolist()}, False),
        ({"x": np.asfortranarray(ROWS)}, False),
        ({"x": Tensor(ROWS), "label": LABELS}, True),
        ([{"x": row} for row in ROWS], False),
        ([{"x": row.tolist()} for row in ROWS], False),
        ([{"x": Tensor(row), "labels": label} for row, label in zip(ROWS, LABELS, strict=True)], True),
        (generator(), False),
        (MapStyle(), False),
        (ROWS, False),
        (list(ROWS), False),
        (list(zip(ROWS, LABELS, strict=True)), True),
        ([{"x": ROWS[:4], "label": LABELS[:4]}, {"x": ROWS[4:], "label": LABELS[4:]}], True),
        ([(ROWS[:6], LABELS[:6]), (ROWS[6:], LABELS[6:])], True),
        ([ROWS[:4], ROWS[4:]], False),
    ],
)
def test_every_form_gives_the_same_samples(tmp_path: Path, data: Any, labelled: bool) -> None:
    pairs = read(data, Cache(tmp_path))
    assert np.array_equal(np.stack([sample["x"] for sample, _ in pairs]), ROWS)
    assert [label for _, label in pairs] == (LABELS.tolist() if labelled else [None] * 7)


def test_texts_of_any_length(tmp_path: Path) -> None:
    items = [{"x": ROWS[i], "y": list(range(i + 1))} for i in range(7)]
    pairs = read(items, Cache(tmp_path), (X, Y))
    assert [sample["y"].tolist() for sample, _ in pairs] == [list(range(i + 1)) for i in range(7)]
    assert pairs[0][0]["y"].dtype == np.int64
    # A batch that a collate function padded comes apart into its rows.
    batch = {"x": ROWS[:2], "y": np.array([[1, 2], [3, 0]])}
    assert [s["y"].tolist() for s, _ in read([batch], Cache(tmp_path), (X, Y))] == [[1, 2], [3, 0]]


def test_the_same_samples_are_the_same_dataset(tmp_path: Path) -> None:
    store = Cache(tmp_path)
    one = dataset_entry([{"x": row} for row in ROWS], "judge", store, {}, lambda: (X,))
    two = dataset_entry(generator(), "fit", store, {}, lambda: (X,))
    assert one == two
    assert dataset_entry([{"x": row + 1} for row in ROWS], "judge", store, {}, lambda: (X,)) != one
    assert not list((tmp_path / "staging").glob("*/*"))  # nothing half-made is left


def test_what_is_a_dataset_entry_or_a_file_stays_one(tmp_path: Path) -> None:
    store = Cache(tmp_path)
    ask = lambda: (X,)  # noqa: E731
    assert dataset_entry(None, "judge", store, {}, ask) == {"random": 32}
    assert dataset_entry("random:5", "judge", store, {}, ask) == {"random": 5}
    assert dataset_entry(Path("a.npz"), "judge", store, {}, ask) == {"npz": "a.npz"}
    entry = {"npz": "a.npz", "label": "y"}
    assert dataset_entry(entry, "judge", store, {}, ask) == entry
    images = TensorSpec("images", "float32", ("batch", 3))
    assert "npz" in dataset_entry({"images": ROWS}, "judge", store, {}, lambda: (images,))


@pytest.mark.parametrize(
    ("data", "what", "hint"),
    [
        ([], "it has no samples", "prove nothing"),
        ({}, "it is empty", "by input name"),
        (3, "a int is no data", "iterable"),
        ([object()], "sample 0 is a object, and the model takes x", "give dicts"),
        ([(1, 2, 3)], "sample 0 is a tuple of 3", "{'x': array}"),
        ([{"x": "text"}], "'x' is a builtins.str", "NumPy arrays or tensors"),
        ([{"x": [[1.0], [2.0, 3.0]]}], "'x' is a builtins.list", "NumPy arrays or tensors"),
        ({"x": np.array([None])}, "'x' is a numpy.ndarray", "NumPy arrays or tensors"),
        ({"x": ROWS, "label": ROWS[:, 0]}, "'label' is float32, and labels are class numbers", "leave 'label' out"),
        ([{"x": ROWS[:2], "label": np.int64(1)}], "batch 0: samples along axis 0 differ", "batch axis"),
    ],
)
def test_what_is_no_data_is_told(tmp_path: Path, data: Any, what: str, hint: str) -> None:
    with pytest.raises(DataError) as caught:
        read(data, Cache(tmp_path))
    assert caught.value.what.startswith(f"data.judge: {what}")
    assert hint in caught.value.hint
    assert caught.value.subject == "data.judge"
    assert not list((tmp_path / "staging").glob("*/*"))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        ([{"x": ROWS[0], "id": 5}], "has 'id', neither an input nor the label"),
        ({"x": ROWS, "id": LABELS}, "has 'id', neither an input nor the label"),
        ([{"x": ROWS[0].astype(np.float64)}], "expected float32, found float64"),
        ([{"z": ROWS[0]}], "lacks input 'x'; it has z"),
        ([{"x": ROWS[0] * np.nan}], "not finite"),
    ],
)
def test_samples_that_do_not_fit_are_told_where_they_are_read(tmp_path: Path, data: Any, what: str) -> None:
    with pytest.raises(DataError) as caught:
        read(data, Cache(tmp_path))
    assert what in caught.value.what


def test_a_bug_in_the_programs_own_dataset_is_its_own(tmp_path: Path) -> None:
    def broken() -> Iterator[dict[str, Any]]:
        yield {"x": ROWS[0]}
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        read(broken(), Cache(tmp_path))
    assert not list((tmp_path / "staging").glob("*/*"))
