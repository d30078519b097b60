"""Which inputs, and which sizes of them, two models have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from optkit.artifact import Artifact, Dim, Signature, TensorSpec
from optkit.errors import SourceError, UserError
from optkit.models.common_inputs import Side, common_inputs


def side(ranges: Mapping[str, Dim] | None = None, dtype: str = "float32", **shapes: tuple[int | str, ...]) -> Side:
    specs = tuple(TensorSpec(name, dtype, shape) for name, shape in shapes.items())
    return Artifact("onnx", Path("m.onnx"), "", Signature(specs, ())), ranges or {}


def meet(one: Side, two: Side, **asked: Dim) -> tuple[list[tuple[int | str, ...] | None], dict[str, Dim]]:
    inputs, dims, _ = common_inputs(one, two, asked)
    return [spec.shape for spec in inputs], dims


def test_a_dim_of_two_names_is_one() -> None:
    assert meet(side(x=("batch", 3)), side(x=("n", 3))) == ([("batch", 3)], {"batch": Dim(1, 2, 4)})
    # A name that a file only stands in for one gives way.
    assert meet(side(x=("x_0", 3)), side(x=("n", 3))) == ([("n", 3)], {"n": Dim(1, 2, 4)})


def test_ranges_meet() -> None:
    one, two = side({"batch": Dim(2, 8, 16)}, x=("batch", 3)), side({"n": Dim(1, 2, 8)}, x=("n", 3))
    assert meet(one, two)[1] == {"batch": Dim(2, 8, 8)}
    assert meet(two, one)[1] == {"n": Dim(2, 2, 8)}
    for name in ("batch", "n"):
        assert meet(one, two, **{name: Dim(1, 2, 32)})[1] == {"batch": Dim(1, 2, 32)}
    with pytest.raises(SourceError, match="no size of batch in common"):
        meet(one, side({"n": Dim(1, 1, 1)}, x=("n", 3)))


def test_a_dim_that_one_fixes() -> None:
    one, two = side({"batch": Dim(1, 2, 4)}, x=("batch", 3), y=("batch",)), side(x=(2, 3), y=(2,))
    inputs, dims, fixed = common_inputs(one, two, {})
    assert [spec.shape for spec in inputs] == [(2, 3), (2,)]
    assert (dims, fixed) == ({}, {"batch": 2})
    assert meet(two, one)[0] == [(2, 3), (2,)]
    with pytest.raises(UserError, match="cannot vary, for one of the models is fixed at 2"):
        meet(one, two, batch=Dim(1, 2, 4))
    with pytest.raises(SourceError, match="no size of batch in common: 1 to 4 and 8"):
        meet(one, side(x=(8, 3), y=(8,)))
    with pytest.raises(SourceError, match="batch is fixed at 2 here and at 3 there"):
        meet(one, side(x=(2, 3), y=(3,)))


def test_files_without_names_share_their_batch_axis() -> None:
    one, two = side(x=("x_0", 3), y=("y_0", "y_1")), side(x=("x_0", 3), y=("y_0", "y_1"))
    assert meet(one, two)[0] == [("x_0", 3), ("x_0", "y_1")]
    named = side(x=("batch", 3), y=("batch", "n"))
    assert meet(one, named)[0] == meet(named, one)[0] == [("batch", 3), ("batch", "n")]


def test_one_name_for_two_things() -> None:
    shapes, dims = meet(side(x=("x_0", "n")), side(x=("n", "m")))
    assert shapes == [("n_b", "n")]
    assert set(dims) == {"n", "n_b"}


def test_layouts_and_ranges_come_from_whoever_knows_them() -> None:
    known = TensorSpec("x", "int64", ("batch", 3), "NC", (0, 9))
    artifact = Artifact("onnx", Path("m.onnx"), "", Signature((known,), ()))
    inputs, _, _ = common_inputs(side(dtype="int32", x=("n", 3)), (artifact, {}), {})
    assert inputs == (TensorSpec("x", "int32", ("n", 3), "NC", (0, 9)),)
    unknown = Artifact("onnx", Path("m.onnx"), "", Signature((TensorSpec("x", "int64", None),), ()))
    assert meet((unknown, {}), (artifact, {}))[0] == [("batch", 3)]


@pytest.mark.parametrize(
    ("one", "two", "what", "hint"),
    [
        (side(x=(1,)), side(y=(1,)), "different inputs: x and y", "optkit inspect"),
        (side(x=(1,)), side(x=(1,), y=(1,)), "different inputs: x and x, y", "optkit inspect"),
        (side(x=(1, 3)), side(x=(1, 4)), r"x: float32\[1, 3\] and x: float32\[1, 4\]", "optkit inspect"),
        (side(x=(1, 3)), side(x=(3,)), r"x: float32\[1, 3\] and x: float32\[3\]", "optkit inspect"),
        (side(x=(1,)), side(dtype="int64", x=(1,)), "float32.* and x: int64", "optkit inspect"),
        (side(x=("n", 3, 8, 8)), side(x=("n", 8, 8, 3)), "different inputs", "NHWC"),
        (side(x=("n", 8, 8, 3)), side(x=("n", 3, 8, 8)), "different inputs", "NHWC"),
    ],
)
def test_models_that_take_different_inputs(one: Side, two: Side, what: str, hint: str) -> None:
    with pytest.raises(SourceError, match=what) as caught:
        meet(one, two)
    assert hint in caught.value.hint


def test_a_dim_that_neither_has() -> None:
    with pytest.raises(UserError, match="neither model has a dynamic dim 'bach'") as caught:
        meet(side(x=("batch",)), side(x=("batch",)), bach=Dim(1, 2, 3))
    assert "'batch'" in caught.value.hint
