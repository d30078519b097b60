"""Which inputs a check feeds, and the tape that remembers what a model answered to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from optkit.artifact import Dim, TensorSpec
from optkit.data import Dataset, open_dataset
from optkit.parity.cases import Case, batch_dim, feeds, make_cases, stacks
from optkit.parity.tape import Reference, Tape
from optkit.spec.dataspec import NpzData

X = TensorSpec("x", "float32", ("batch", 3))
DIMS = {"batch": Dim(1, 4, 8), "seq": Dim(2, 5, 16)}


def dataset(
    base: Path, inputs: tuple[TensorSpec, ...], dims: dict[str, Dim] = DIMS, label: str | None = None, **arrays: Any
) -> Dataset:
    np.savez(base / "d.npz", **arrays)
    return open_dataset(NpzData(npz="d.npz", label=label), base, inputs, dims, "d")


def fed(case: Case, data: Dataset, *inputs: TensorSpec) -> list[tuple[dict[str, Any], int, Any]]:
    return list(feeds(case, data, inputs))


# --- cases


def names(cases: tuple[Case, ...]) -> list[str]:
    return [case.name for case in cases]


def test_every_dim_is_swept_alone_with_a_size_nobody_traced() -> None:
    cases = make_cases([TensorSpec("x", "float32", ("batch", "seq"))], DIMS)
    assert names(cases) == ["samples", "batch=1", "batch=4", "batch=8", "batch=5", "seq=2", "seq=5", "seq=16", "seq=9",
                            "zeros"]  # fmt: skip
    assert [c.kind for c in cases] == ["samples"] + ["dims"] * 8 + ["edge"]
    assert cases[0].sizes == {"batch": 4}
    assert cases[1].sizes == {"batch": 1, "seq": 5}
    assert cases[7].sizes == {"batch": 4, "seq": 16}
    assert cases[-1].sizes == {"batch": 2, "seq": 5}
    assert [Case.from_json(c.to_json()) for c in cases] == list(cases)


@pytest.mark.parametrize(
    ("low", "high", "size"),
    [(1, 8, 2), (1, 1, 1), (4, 8, 4), (2, 2, 2), (3, 3, 3)],
)
def test_edge_values_come_in_a_batch_the_model_takes(low: int, high: int, size: int) -> None:
    assert make_cases([X], {"batch": Dim(low, low, high)})[-1].sizes == {"batch": size}


@pytest.mark.parametrize(
    ("ranges", "edges"),
    [
        ([None], ["zeros"]),
        ([(0.0, 1.0)], ["zeros", "highest"]),
        ([(-1.0, 1.0)], ["zeros", "lowest", "highest"]),
        ([(-1.0, 0.0)], ["zeros", "lowest"]),
        ([(2.0, 3.0)], ["zeros", "lowest", "highest"]),
        ([None, (0.0, 1.0)], ["zeros", "highest"]),
    ],
)
def test_which_edges_there_are(ranges: list[Any], edges: list[str]) -> None:
    inputs = [TensorSpec(f"x{n}", "float32", (3,), range=r) for n, r in enumerate(ranges)]
    assert [c.name for c in make_cases(inputs, {}) if c.kind == "edge"] == edges


def test_a_mask_has_no_edges() -> None:
    mask = TensorSpec("attention_mask", "int64", ("batch", "seq"), range=(0, 1))
    assert names(make_cases([mask], {"batch": Dim(1, 1, 1), "seq": Dim(2, 2, 2)})) == [
        "samples", "batch=1", "seq=2", "zeros"]  # fmt: skip


def test_which_dim_is_the_batch() -> None:
    ids = TensorSpec("ids", "int64", ("batch", "seq"))
    assert batch_dim([X, ids]) == "batch"
    assert batch_dim([X, TensorSpec("y", "float32", ("seq", 3))]) is None
    assert batch_dim([TensorSpec("y", "float32", (1, 3))]) is None
    assert batch_dim([TensorSpec("y", "float32", ())]) is None
    assert batch_dim([TensorSpec("y", "float32", None)]) is None
    assert batch_dim([]) is None


# --- feeds


def test_the_whole_judging_set_is_fed_with_its_labels(tmp_path: Path) -> None:
    x = np.arange(30, dtype=np.float32).reshape(10, 3)
    data = dataset(tmp_path, (X,), label="k", x=x, k=np.arange(10))
    batches = fed(Case("samples", "samples", {"batch": 4}), data, X)
    assert [count for _, count, _ in batches] == [4, 4, 2]
    assert np.concatenate([t["x"] for t, _, _ in batches]).tolist() == x.tolist()
    assert np.concatenate([labels for _, _, labels in batches]).tolist() == list(range(10))


@pytest.mark.parametrize("size", [1, 5, 8])
def test_a_size_is_made_of_real_samples(size: int, tmp_path: Path) -> None:
    x = np.arange(9, dtype=np.float32).reshape(3, 3)
    ((tensors, count, labels),) = fed(
        Case("n", "dims", {"batch": size}), dataset(tmp_path, (X,), label="k", x=x, k=np.arange(3)), X
    )
    assert tensors["x"].shape == (size, 3)
    assert tensors["x"].tolist() == [x[n % 3].tolist() for n in range(size)]
    assert (count, labels) == (size, None)


def test_a_longer_sequence_repeats_the_sample_and_a_shorter_one_cuts_it(tmp_path: Path) -> None:
    ids = TensorSpec("ids", "int64", ("batch", "seq"))
    data = dataset(tmp_path, (ids,), ids=np.arange(10).reshape(2, 5))
    for size in (2, 5, 12):
        ((tensors, count, _),) = fed(Case("n", "dims", {"batch": 1, "seq": size}), data, ids)
        assert tensors["ids"].tolist() == [[n % 5 for n in range(size)]]
        assert count == 1


def test_edge_values(tmp_path: Path) -> None:
    inputs = (
        TensorSpec("image", "float32", ("batch", 2), range=(-1.0, 2.0)),
        TensorSpec("high", "float32", ("batch", 2), range=(0.5, 2.0)),
        TensorSpec("free", "float32", ("batch", 2)),
        TensorSpec("ids", "int64", ("batch", 2), range=(1, 7)),
        TensorSpec("flag", "bool", ("batch", 2)),
        TensorSpec("pad_mask", "int64", ("batch", 2), range=(0, 1)),
    )
    values = {"image": 1.0, "high": 1.0, "free": 5.0, "ids": 3, "flag": True, "pad_mask": 1}
    data = dataset(tmp_path, inputs, **{s.name: np.full((3, 2), values[s.name], s.dtype) for s in inputs})
    told = {}
    for name in ("zeros", "lowest", "highest"):
        ((tensors, count, labels),) = fed(Case(name, "edge", {"batch": 2}), data, *inputs)
        assert {k: t.dtype for k, t in tensors.items()} == {s.name: np.dtype(s.dtype) for s in inputs}
        assert all(t.shape == (2, 2) for t in tensors.values())
        assert (count, labels) == (2, None)
        told[name] = [t.flat[0].item() for t in tensors.values()]
        assert all((t == t.flat[0]).all() for t in tensors.values())
    assert told == {
        "zeros": [0.0, 0.5, 0.0, 1, False, 1],
        "lowest": [-1.0, 0.5, 5.0, 1, True, 1],
        "highest": [2.0, 2.0, 5.0, 7, True, 1],
    }


def test_whether_axis_0_counts_samples(tmp_path: Path) -> None:
    whole = TensorSpec("x", "float32", (5, 3))
    assert stacks(dataset(tmp_path, (X,), x=np.zeros((2, 3), "f4")), [X])
    assert stacks(dataset(tmp_path, (whole,), x=np.zeros((2, 3), "f4")), [whole])
    assert not stacks(dataset(tmp_path, (whole,), x=np.zeros((2, 5, 3), "f4")), [whole])
    assert not stacks(dataset(tmp_path, (X,), x=np.zeros((2, 4, 3), "f4")), [X])


# --- the tape


def test_what_is_on_the_tape_comes_back_as_it_was(tmp_path: Path) -> None:
    outputs: dict[str, Any] = {
        "a/b:0 ü": np.arange(6, dtype=np.float16).reshape(2, 3),
        "names": np.array(3),
        "0": np.array([True, False]),
        "empty": np.zeros((0, 4), np.int8),
        "short": np.array([1.5, -2], ml_dtypes.bfloat16),
        "nan": np.array([np.nan, np.inf]),
    }
    tape = Tape(tmp_path / "t")
    tape.write(2, 7, outputs)
    read = Tape(tmp_path / "t").read(2, 7)
    assert read is not None
    assert list(read) == list(outputs)
    for name, tensor in outputs.items():
        assert read[name].dtype == tensor.dtype, name
        np.testing.assert_array_equal(read[name], tensor)


def test_what_is_not_on_the_tape(tmp_path: Path) -> None:
    tape = Tape(tmp_path)
    assert tape.read(0, 0) is None
    tape.write(0, 0, {"y": np.zeros(300)})
    assert tape.read(0, 1) is None
    assert tape.read(1, 0) is None
    tape.write(0, 1, {})
    assert tape.read(0, 1) == {}


@pytest.mark.parametrize("size", [0, 10, 500])
def test_a_tape_cut_short_is_as_good_as_none(size: int, tmp_path: Path) -> None:
    tape = Tape(tmp_path)
    tape.write(0, 0, {"y": np.arange(300)})
    with (tmp_path / "0/0.npz").open("r+b") as handle:
        handle.truncate(size)
    assert tape.read(0, 0) is None


def test_a_full_tape_stops(tmp_path: Path) -> None:
    tape = Tape(tmp_path, limit_bytes=1000)
    for batch in range(3):
        tape.write(0, batch, {"y": np.zeros(60)})
    assert [tape.read(0, batch) is not None for batch in range(3)] == [True, True, False]


class Adder:
    """A session that counts how often it is opened, asked and closed."""

    provider = "test"

    def __init__(self) -> None:
        self.calls = {"open": 0, "infer": 0, "close": 0}

    def infer(self, tensors: dict[str, Any]) -> dict[str, Any]:
        self.calls["infer"] += 1
        return {"y": tensors["x"] + 1}

    @contextmanager
    def open(self) -> Iterator[Any]:
        self.calls["open"] += 1
        yield self
        self.calls["close"] += 1


def test_a_reference_runs_only_for_what_its_tape_lacks(tmp_path: Path) -> None:
    tape, model = Tape(tmp_path), Adder()
    tape.write(0, 0, {"y": np.array([5.0])})
    with Reference(tape, model.open, dict) as reference:
        assert reference.outputs(0, 0, {"x": np.array([1.0])}) == {"y": np.array([5.0])}
        assert model.calls["open"] == 0
        for batch in (1, 2):
            assert reference.outputs(0, batch, {"x": np.array([1.0])}) == {"y": np.array([2.0])}
    assert model.calls == {"open": 1, "infer": 2, "close": 1}


def test_a_reference_is_fed_in_its_own_types(tmp_path: Path) -> None:
    with Reference(Tape(tmp_path), Adder().open, lambda t: {k: np.asarray(v, np.float16) for k, v in t.items()}) as r:
        assert r.outputs(0, 0, {"x": np.array([1.0])})["y"].dtype == np.float16
