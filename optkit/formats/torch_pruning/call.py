"""One operator of an exported program, and what the rules of all of them share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optkit.formats.torch_pruning.units import Axes, Axis, Product, Units

if TYPE_CHECKING:
    from optkit.formats.torch_pruning.graph import Graph


@dataclass(frozen=True)
class Call:
    """One operator of the program, with its arguments by name."""

    graph: Graph
    node: Any
    name: str
    given: dict[str, Any]

    @property
    def units(self) -> Units:
        return self.graph.units

    def axes(self, value: Any) -> Axes:
        """Units of a tensor argument; none for a number, None or a constant."""
        if not hasattr(value, "op"):
            return ()
        found: Any = self.graph.values.get(value)
        return found if isinstance(found, tuple) else (None,) * len(shape_of(value))

    def tensor(self, name: str) -> Axes:
        return self.axes(self.given.get(name))

    def shape(self, name: str) -> tuple[int, ...]:
        return shape_of(self.given[name])

    @property
    def out(self) -> tuple[int, ...]:
        return shape_of(self.node)

    @property
    def where(self) -> str:
        """The module the operator is in: "in encoder.layer.0"."""
        path = self.graph.owner(self.node)
        return f"in {path}" if path else "in the model's forward"

    def read(self, name: str, axis: int) -> None:
        """A weight's axis is summed over, against the last or channel axis of what goes in."""
        tensor = self.graph.names.get(getattr(self.given[name], "name", ""))
        if tensor is not None:
            self.graph.reads.add((tensor, axis))
            self.graph.feeds.append((self.node, self.given.get("input", self.given.get("mat1")), tensor, axis))

    def product(self, axes: Sequence[Axis], sizes: Sequence[int]) -> None:
        """A matrix product over these axes; sizes, in the same order, count where units do not."""
        times = 1
        for axis, size in zip(axes, sizes, strict=True):
            times *= size if axis is None else 1
        self.graph.products.append(Product(tuple(a for a in axes if a is not None), times))


def shape_of(node: Any) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(int(n) for n in value.shape) if hasattr(value, "shape") else ()


def flat(value: Any) -> Iterator[Axis]:
    """Every axis in an operator's result, which may be several tensors."""
    for item in value:
        if isinstance(item, tuple):
            yield from flat(item)
        else:
            yield item


def none(call: Call) -> Axes:
    return (None,) * len(call.out)


def tie(call: Call, one: Axis, other: Axis) -> None:
    """The two axes are one; plain data on one side freezes the other."""
    if one is None or other is None:
        for axis in (one, other):
            call.units.freeze(axis, f"{call.name} {call.where} reads it together with values that no layer makes")
    elif len(one) == len(other):
        call.units.join(one, other)
    else:
        for axis in (one, other):
            call.units.freeze(axis, f"{call.name} {call.where} broadcasts over it")


def unknown(call: Call) -> Any:
    for value in call.node.all_input_nodes:
        for axis in flat(call.graph.values.get(value, ())):
            call.units.freeze(axis, f"{call.name} {call.where} reads it, which pruning cannot follow")
    value = call.node.meta.get("val")
    if isinstance(value, tuple | list):
        return [(None,) * len(getattr(v, "shape", ())) for v in value]
    return (None,) * len(getattr(value, "shape", ()))
