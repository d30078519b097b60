"""Example inputs for a torch model, made from what the recipe declares, and the sizes they take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optkit.artifact import Dim, TensorSpec
from optkit.errors import SourceError, did_you_mean
from optkit.plugin import need


def is_dynamic(dim: Dim) -> bool:
    """Whether a declared dim really varies: a range of one size, or none past 1, is a static axis."""
    return dim.min < dim.max and dim.max >= 2


def dynamic_dims(inputs: Sequence[TensorSpec], dims: Mapping[str, Dim]) -> tuple[str, ...]:
    """Names of the dims that vary, in order of appearance. Raises SourceError for a name without a range."""
    names = dict.fromkeys(name for spec in inputs for name in spec.dynamic)
    for name in names:
        if name not in dims:
            raise SourceError(
                f"dim {name!r} has no range",
                subject=f"dims.{name}",
                hint=did_you_mean(name, dims) if dims else f"dims: {{{name}: {{min: 1, opt: 8, max: 64}}}}",
            )
    return tuple(name for name in names if is_dynamic(dims[name]))


def torch_dtype(spec: TensorSpec) -> Any:
    """The torch dtype of an input. Raises SourceError for one that torch lacks."""
    torch = need("torch")
    dtype = getattr(torch, spec.dtype, None) if spec.dtype not in {"int4", "uint4"} else None  # there, but empty shells
    if not isinstance(dtype, torch.dtype):
        raise SourceError(
            f"torch has no dtype {spec.dtype!r}", subject=f"inputs.{spec.name}", hint="float32, int64, ..."
        )
    return dtype


def static_shape(spec: TensorSpec, dims: Mapping[str, Dim]) -> tuple[int | str, ...]:
    """The shape with dims that do not vary replaced by their one size. Raises SourceError without a shape."""
    if spec.shape is None:
        raise SourceError(
            f"input {spec.name!r} has no shape",
            subject=f"inputs.{spec.name}",
            hint="shape: [batch, 3, 224, 224], with names for the dynamic axes",
        )
    return tuple(dims[d].max if isinstance(d, str) and d in dims and not is_dynamic(dims[d]) else d for d in spec.shape)


def choose_sizes(
    inputs: Sequence[TensorSpec],
    dims: Mapping[str, Dim],
    *,
    unlike: Mapping[str, int] | None = None,
    declared: bool = False,
) -> dict[str, int]:
    """A size for every dynamic dim, small, at least 2, and unlike any other dim's, `unlike` and the static sizes.

    Where a range is too narrow for that, the later of these wishes give way. declared: take min, opt or max alone,
    which a model that needs multiples (of a stride, say) can certainly take.
    """
    fixed = {d for spec in inputs for d in static_shape(spec, dims) if isinstance(d, int)}
    sizes: dict[str, int] = {}
    for name in dynamic_dims(inputs, dims):
        dim, before = dims[name], (unlike or {}).get(name)
        named = [dim.min, dim.opt, dim.max]
        small = [3, 5, 7, 2, 11, 13, 4, 6] if dim.min < 8 else []
        found = named if declared else [*small, *named, *range(dim.min, min(dim.max, dim.min + 16) + 1)]
        wanted = [n for n in dict.fromkeys(found) if max(dim.min, 2) <= n <= dim.max] or [dim.max]
        taken = set(sizes.values())
        wishes = [taken | {before} | fixed, taken | {before}, {before}, set()]
        sizes[name] = next(n for wish in wishes for n in wanted if n not in wish)
    return sizes


def example_feeds(
    inputs: Sequence[TensorSpec], dims: Mapping[str, Dim], sizes: Mapping[str, int], seed: int = 0
) -> dict[str, Any]:
    """A tensor per input, of the given sizes, inside the declared ranges.

    Without a range floats are standard normal and integers are 1: an index that every table of two rows has, and a
    mask that hides nothing. An input in 0..1 of integers or bool gets a 1 first in its last axis, so that a mask never
    hides a whole row.
    """
    torch = need("torch")
    generator = torch.Generator().manual_seed(seed)
    feeds = {}
    for spec in inputs:
        dtype = torch_dtype(spec)
        shape = tuple(d if isinstance(d, int) else sizes[d] for d in static_shape(spec, dims))
        low, high = spec.range or (None, None)
        if dtype.is_floating_point:
            drawn = torch.rand(shape, generator=generator) if spec.range else torch.randn(shape, generator=generator)
            feed = drawn * (high - low) + low if low is not None and high is not None else drawn
        elif low is None or high is None:
            feed = torch.ones(shape)
        else:
            first, last = math.ceil(low), math.floor(high)
            feed = torch.randint(first, last + 1, shape, generator=generator)
            if (first, last) == (0, 1) and feed.dim():
                feed[..., 0] = 1
        feeds[spec.name] = feed.to(dtype)
    return feeds
