"""What every session asks of its inputs, in the same words for every format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optkit.artifact import TensorSpec
from optkit.errors import DataError, did_you_mean

if TYPE_CHECKING:
    from optkit.plugin import Tensors

_NAMES = {("first", 4): "NCHW", ("last", 4): "NHWC"}
_LAYOUTS = (None, "NCL", "NLC", "NCHW", "NHWC", "NCDHW", "NDHWC")


def checked_feeds(tensors: Mapping[str, Any], inputs: Sequence[TensorSpec], *, bfloat16: str = "float32") -> Tensors:
    """The tensors in the inputs' order, in native byte order; nothing is cast, padded or turned.

    bfloat16: the numpy type that stands for it, which numpy itself lacks. Raises DataError for an unknown or missing
    name, for what is no array, for a wrong dtype, rank or fixed size, and where two axes of one name differ in size.
    """
    names = [spec.name for spec in inputs]
    for name in tensors:
        if name not in names:
            raise DataError(f"the model has no input {name!r}", hint=did_you_mean(name, names), subject=_subject(name))
    feeds: Tensors = {}
    sizes: dict[str, tuple[int, str]] = {}
    for spec in inputs:
        if spec.name not in tensors:
            raise DataError(
                f"input {spec.name!r} is missing",
                hint=f"the model takes {', '.join(names)}; given: {', '.join(tensors) or 'none'}",
                subject=_subject(spec.name),
            )
        array = _typed(tensors[spec.name], spec, bfloat16)
        _check_shape(array.shape, spec)
        for dim, size in zip(spec.shape or (), array.shape, strict=False):
            if isinstance(dim, str) and sizes.setdefault(dim, (size, spec.name))[0] != size:
                before, other = sizes[dim]
                raise DataError(
                    f"{dim} is {size} in input {spec.name!r}, but {before} in {other!r}",
                    hint=f"one size of {dim} for all inputs",
                    subject=_subject(spec.name),
                )
        feeds[spec.name] = array
    return feeds


def _subject(name: str) -> str:
    return f"inputs.{name}"


def _typed(value: Any, spec: TensorSpec, bfloat16: str) -> Any:
    # Told by its attributes, as planning imports this module and is to load no numpy.
    if not hasattr(value, "shape") or not hasattr(getattr(value, "dtype", None), "newbyteorder"):
        raise DataError(
            f"input {spec.name!r} is a {type(value).__name__}, not an array",
            hint=f"numpy.asarray(value, {spec.dtype!r})",
            subject=_subject(spec.name),
        )
    array = value.reshape(value.shape)  # an array also of a scalar
    taken = bfloat16 if spec.dtype == "bfloat16" else spec.dtype
    given = "string" if array.dtype.kind in "USO" else array.dtype.name
    if given != taken:
        cast = "numpy.asarray(value, str)" if taken == "string" else f"cast it: .astype({taken!r})"
        raise DataError(
            f"input {spec.name!r} is {given}, the model takes {taken}", hint=cast, subject=_subject(spec.name)
        )
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _check_shape(shape: Sequence[int], spec: TensorSpec) -> None:
    wanted = spec.shape
    if wanted is None:
        return
    if len(shape) != len(wanted):
        fewer = len(shape) == len(wanted) - 1
        raise DataError(
            f"input {spec.name!r} has {len(shape)} axes {shown(shape)}, the model takes {len(wanted)} {shown(wanted)}",
            hint="add the batch axis: value[None]" if fewer else "check the sample's shape",
            subject=_subject(spec.name),
        )
    if not fits(wanted, shape):
        raise DataError(
            f"input {spec.name!r} has shape {shown(shape)}, the model takes {shown(wanted)}",
            hint=layout_hint(wanted, shape, spec.layout) or "resize or pad the sample to the model's fixed sizes",
            subject=_subject(spec.name),
        )


def shown(shape: Sequence[int | str]) -> str:
    """A shape as Python writes it, with names in place of sizes: "(batch, 3, 224, 224)"."""
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def fits(wanted: Sequence[int | str], shape: Sequence[int]) -> bool:
    """Whether a shape of the same rank has every fixed size."""
    return all(isinstance(n, str) or n == m for n, m in zip(wanted, shape, strict=True))


def layout_hint(
    wanted: Sequence[int | str], shape: Sequence[int], layout: str | None = None, *, batched: bool = True
) -> str:
    """What to do about a shape that fits but for its channels, which are at the other end; "" where that is not so.

    batched: whether axis 0 counts samples, as in a feed; a single sample has no such axis.
    """
    first = int(batched)
    rank = len(wanted) + 1 - first
    if rank not in (3, 4, 5) or layout not in _LAYOUTS or len(shape) != len(wanted):
        return ""
    axes, last = range(len(wanted)), len(wanted) - 1
    for given, order in (
        ("last", (*axes[:first], last, *axes[first:last])),
        ("first", (*axes[:first], *axes[first + 1 :], first)),
    ):
        if fits(wanted, [shape[i] for i in order]):
            name = _NAMES.get((given, rank), f"channels {given}")
            return f"it looks like {name}: give {'value' if batched else 'sample'}.transpose{order}"
    return ""
