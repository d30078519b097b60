"""Which inputs a check feeds: real samples, every dynamic dim over its declared range, and edge values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from optkit.artifact import Dim, TensorSpec

if TYPE_CHECKING:
    from optkit.data import Dataset
    from optkit.plugin import Tensors

    Batch = tuple[Tensors, int, list[Any] | None]


@dataclass(frozen=True)
class Case:
    """One set of feeds.

    kind: "samples" is the whole judging set at the opt batch size; "dims" one feed with the named `sizes`, made from
    real samples; "edge" one feed whose inputs all take one value: "zeros", or an end of their declared range.
    """

    name: str
    kind: Literal["samples", "dims", "edge"]
    sizes: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "kind": self.kind, "sizes": dict(self.sizes)}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Case:
        return Case(data["name"], data["kind"], data["sizes"])


def batch_dim(inputs: Sequence[TensorSpec]) -> str | None:
    """The dim that is axis 0 of every input, or None."""
    first = {t.shape[0] if t.shape else None for t in inputs}
    only = next(iter(first)) if len(first) == 1 else None
    return only if isinstance(only, str) else None


def fixed_batch(inputs: Sequence[TensorSpec]) -> int:
    """The size of axis 0 where all inputs are fixed at the same, else 1."""
    first = {t.shape[0] for t in inputs if t.shape and isinstance(t.shape[0], int)}
    return int(next(iter(first))) if len(first) == 1 else 1


def make_cases(inputs: Sequence[TensorSpec], dims: Mapping[str, Dim]) -> tuple[Case, ...]:
    """The cases of a check, samples first. Each dim is swept alone, the others at their opt size."""
    batch = batch_dim(inputs)
    names = list(dict.fromkeys(d for t in inputs for d in t.dynamic))
    opt = {name: dims[name].opt for name in names}
    cases = [Case("samples", "samples", {batch: opt[batch]} if batch else {})]
    for name in names:
        cases += [Case(f"{name}={size}", "dims", {**opt, name: size}) for size in dims[name].sizes]
    edge = {**opt, **({batch: max(dims[batch].min, min(2, dims[batch].max))} if batch else {})}
    cases.append(Case("zeros", "edge", edge))
    ranges = [t.range for t in inputs if t.range and "mask" not in t.name.lower()]
    if any(low != 0 for low, _ in ranges):
        cases.append(Case("lowest", "edge", edge))
    if any(high != 0 for _, high in ranges):
        cases.append(Case("highest", "edge", edge))
    return tuple(cases)


def stacks(dataset: Dataset, inputs: Sequence[TensorSpec]) -> bool:
    """Whether axis 0 of every feed counts samples; otherwise a sample is fed as it is, and counts as a whole."""
    sample = next(iter(dataset))
    return all(sample[spec.name].ndim == len(spec.shape or ()) - 1 for spec in inputs)


def feeds(case: Case, dataset: Dataset, inputs: Sequence[TensorSpec]) -> Iterator[Batch]:
    """The batches of a case: named tensors, the number of real samples in them, and their labels where there are any.

    Rows after the real samples repeat them. An edge case leaves masks as they are: one that hides everything is no
    input a model is made for.
    """
    import numpy as np

    from optkit.data import resize_feeds

    batch = batch_dim(inputs)
    if case.kind == "samples":
        yield from dataset.batches(case.sizes[batch] if batch else 1)
        return
    wanted = case.sizes[batch] if batch else 1
    tensors, count, _ = next(dataset.batches(min(wanted, len(dataset))))
    tensors = resize_feeds(tensors, inputs, case.sizes)
    if case.kind == "edge":
        for spec in inputs:
            low, high = spec.range or (0.0, 0.0)
            zero = min(max(0.0, low), high)
            value = {"zeros": zero, "lowest": low, "highest": high}[case.name]
            if (spec.range or case.name == "zeros") and "mask" not in spec.name.lower():
                tensors[spec.name] = np.full_like(tensors[spec.name], value)
    yield tensors, wanted if batch else count, None
