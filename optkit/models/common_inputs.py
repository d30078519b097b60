"""The inputs on which two models can be compared: one name, rank and range of sizes for what both take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from optkit.artifact import Artifact, Dim, TensorSpec
from optkit.errors import SourceError, UserError, did_you_mean

Side = tuple[Artifact, Mapping[str, Dim]]
"""A model with its signature, and the ranges of its dims as far as they are known."""

UNKNOWN = Dim(1, 2, 4)
"""The sizes of a dim about which nobody says anything."""


def common_inputs(
    first: Side, second: Side, asked: Mapping[str, Dim]
) -> tuple[tuple[TensorSpec, ...], dict[str, Dim], dict[str, int]]:
    """Inputs both models take, in the first one's order; the range of each dim in which both do; and the dims of one
    that the other fixes, with their size.

    A dim that has two names is one dim here. asked: the ranges to use, by either model's name for a dim. Raises
    SourceError for models that take different inputs, UserError for a dim that neither has or that is fixed.
    """
    one, two = _by_name(first), _by_name(second)
    if sorted(one) != sorted(two):
        raise SourceError(
            f"the models take different inputs: {', '.join(one)} and {', '.join(two)}",
            hint="compare models of one signature; optkit inspect shows each",
        )
    same = _Same()
    shapes = {name: _shape(one[name], two[name], same) for name in one}
    _tie_batch(shapes, same)
    fixed = same.fixed()
    known: dict[str, list[Dim]] = {}
    for number, (specs, ranges) in enumerate(((one, first[1]), (two, second[1]))):
        for dim in dict.fromkeys(d for spec in specs.values() for d in spec.dynamic):
            if dim in ranges and dim not in asked:
                known.setdefault(same.root((number, dim)), []).append(ranges[dim])
    for dim, size in asked.items():
        roots = [same.root((number, dim)) for number in (0, 1) if (number, dim) in same.parents]
        if not roots:
            names = {name for _, name in same.parents}
            raise UserError(f"dims: neither model has a dynamic dim {dim!r}", hint=did_you_mean(dim, names),
                            subject=f"dims.{dim}")  # fmt: skip
        for root in dict.fromkeys(roots):
            known[root] = [size]
            if root in fixed and (size.min, size.max) != (fixed[root], fixed[root]):
                raise UserError(
                    f"dims: {dim!r} cannot vary, for one of the models is fixed at {fixed[root]}",
                    hint="leave it out",
                    subject=f"dims.{dim}",
                )
    sizes = {root: _meet(root, known.get(root, []), fixed.get(root)) for root in same.roots()}
    inputs = []
    for name, spec in one.items():
        shape = tuple(d if isinstance(d, int) else fixed.get(same.root(d), same.root(d)) for d in shapes[name])
        other = two[name]
        inputs.append(replace(spec, shape=shape, layout=spec.layout or other.layout, range=spec.range or other.range))
    used = {d for spec in inputs for d in spec.dynamic}
    return tuple(inputs), {root: dim for root, dim in sizes.items() if root in used}, fixed


_Dim = tuple[int, str]
"""A dim by the number of the model, 0 or 1, and its name there."""


class _Same:
    """Which dims are one and the same, under one name, and which of them are fixed."""

    def __init__(self) -> None:
        self.parents: dict[_Dim, _Dim] = {}
        self.made_up: set[_Dim] = set()
        self.pins: list[tuple[_Dim, int]] = []

    def _top(self, dim: _Dim) -> _Dim:
        while self.parents[dim] != dim:
            dim = self.parents[dim]
        return dim

    def add(self, dim: _Dim, made_up: bool) -> None:
        self.parents.setdefault(dim, dim)
        if made_up:
            self.made_up.add(dim)

    def join(self, one: _Dim, two: _Dim) -> None:
        """A name somebody gave wins over one that stands for none."""
        top, other = self._top(one), self._top(two)
        if top in self.made_up and other not in self.made_up:
            top, other = other, top
        self.parents[other] = top

    def root(self, dim: _Dim) -> str:
        """The name of a dim here; equal names of two models that are not one dim are told apart."""
        top = self._top(dim)
        twin = (1 - top[0], top[1])
        return top[1] if top[0] == 0 or twin not in self.parents or self._top(twin) == top else f"{top[1]}_b"

    def fixed(self) -> dict[str, int]:
        """The size of each dim that one of the models fixes. Raises SourceError for two sizes of one dim."""
        found: dict[str, int] = {}
        for dim, size in self.pins:
            if found.setdefault(self.root(dim), size) != size:
                name = self.root(dim)
                raise SourceError(
                    f"the models take different inputs: {name} is fixed at {found[name]} here and at {size} there",
                    hint="compare models of one signature; optkit inspect shows each",
                )
        return found

    def roots(self) -> list[str]:
        return list(dict.fromkeys(self.root(dim) for dim in self.parents))


def _by_name(side: Side) -> dict[str, TensorSpec]:
    signature = side[0].signature
    assert signature is not None
    return {spec.name: spec for spec in signature.inputs}


def _shape(one: TensorSpec, two: TensorSpec, same: _Same) -> list[int | _Dim]:
    """The axes of an input: a size, or a dim of one of the models. Raises SourceError where the models differ."""
    kinds = [_kind(spec.dtype) for spec in (one, two)]
    if kinds[0] != kinds[1]:
        raise _differ(one, two)
    for number, spec in enumerate((one, two)):
        for axis, dim in enumerate(spec.shape or ()):
            if isinstance(dim, str):
                same.add((number, dim), dim == f"{spec.name}_{axis}")
    if one.shape is None or two.shape is None:
        number, shape = (1, two.shape) if one.shape is None else (0, one.shape)
        return [d if isinstance(d, int) else (number, d) for d in shape or ()]
    if len(one.shape) != len(two.shape):
        raise _differ(one, two)
    made: list[int | _Dim] = []
    for mine, theirs in zip(one.shape, two.shape, strict=True):
        if isinstance(mine, int) and isinstance(theirs, int) and mine != theirs:
            raise _differ(one, two)
        if isinstance(mine, str) and isinstance(theirs, str):
            same.join((0, mine), (1, theirs))
        made.append((0, mine) if isinstance(mine, str) else (1, theirs) if isinstance(theirs, str) else mine)
    for number, spec, other in ((0, one, two), (1, two, one)):
        for dim, size in zip(spec.shape or (), other.shape or (), strict=True):
            if isinstance(dim, str) and isinstance(size, int):
                same.pins.append(((number, dim), size))
    return made


def _kind(dtype: str) -> str:
    return "float" if dtype.startswith(("float", "bfloat")) else "int" if dtype.startswith(("int", "uint")) else dtype


def _differ(one: TensorSpec, two: TensorSpec) -> SourceError:
    mine, theirs = one.shape or (), two.shape or ()
    moved = len(mine) == len(theirs) == 4 and mine != theirs and (*theirs[:1], theirs[3], *theirs[1:3])
    turned = len(mine) == len(theirs) == 4 and (*theirs[:1], *theirs[2:], theirs[1])
    fits = any(shape and _fit(mine, shape) for shape in (moved, turned))
    return SourceError(
        f"the models take different inputs: {one} and {two}",
        hint="one looks like NHWC and the other like NCHW: convert them with one layout"
        if fits
        else "compare models of one signature; optkit inspect shows each",
        subject=f"inputs.{one.name}",
    )


def _fit(one: Sequence[int | str], two: Sequence[int | str]) -> bool:
    return all(isinstance(a, str) or isinstance(b, str) or a == b for a, b in zip(one, two, strict=True))


def _tie_batch(shapes: Mapping[str, Sequence[int | _Dim]], same: _Same) -> None:
    """Axis 0 of every input is one dim where no file says otherwise: exporters that drop names drop them all."""
    first = [shape[0] for shape in shapes.values() if shape]
    dims = [d for d in first if isinstance(d, tuple)]
    if len(first) == len(shapes) and len(dims) == len(first) and all(same._top(d) in same.made_up for d in dims):
        for dim in dims[1:]:
            same.join(dims[0], dim)


def _meet(name: str, ranges: Sequence[Dim], fixed: int | None) -> Dim:
    """The sizes that lie in every range."""
    if fixed is not None:
        ranges = [*ranges, Dim(fixed, fixed, fixed)]
    if not ranges:
        return UNKNOWN
    low, high = max(r.min for r in ranges), min(r.max for r in ranges)
    if low > high:
        shown = " and ".join(f"{r.min} to {r.max}" if r.min != r.max else str(r.min) for r in ranges)
        raise SourceError(
            f"the models have no size of {name} in common: {shown}",
            subject=f"dims.{name}",
            hint="deliver one of them for sizes that the other takes",
        )
    return Dim(low, min(max(ranges[0].opt, low), high), high)
