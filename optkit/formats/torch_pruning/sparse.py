"""Weights set to zero by magnitude, in place: any of them, or two of every four."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optkit.errors import StepError
from optkit.plugin import need


@dataclass(frozen=True)
class Matrix:
    """A weight that products read. axis: the one that is summed over."""

    name: str
    tensor: Any
    axis: int


def matrices(module: Any, kept: Sequence[str], *, recurrent: bool = True) -> list[Matrix]:
    """The weights that layers multiply by, tied ones once, without the modules in `kept` and below them.

    recurrent: those of LSTMs and GRUs too.
    """
    torch = need("torch")
    found: dict[int, Matrix] = {}
    tables = _tables(module)
    for path, part in module.named_modules():
        if _is_kept(path, kept):
            continue
        for name, weight in part._parameters.items():
            axis = None if weight is None else _summed(torch, part, name, weight, recurrent)
            if axis is not None and id(weight) not in tables:
                found.setdefault(id(weight), Matrix(f"{path}.{name}".lstrip("."), weight, axis))
    return list(found.values())


def _summed(torch: Any, part: Any, name: str, weight: Any, recurrent: bool) -> int | None:
    """The axis of a module's parameter that is summed over; None for one that is not multiplied by, or not known."""
    if type(part).__name__ == "Conv1D" and name == "weight" and weight.dim() == 2:  # transformers'
        return 0
    if isinstance(part, torch.nn.Linear | torch.nn.modules.conv._ConvNd):
        return (0 if getattr(part, "transposed", False) else 1) if name == "weight" else None
    if isinstance(part, torch.nn.MultiheadAttention):
        return 1 if name.endswith("proj_weight") else None
    if isinstance(part, torch.nn.RNNBase):
        return 1 if recurrent and name.startswith("weight") else None
    return None


def _tables(module: Any) -> set[int]:
    torch = need("torch")
    return {id(m.weight) for m in module.modules() if isinstance(m, torch.nn.Embedding | torch.nn.EmbeddingBag)}


def _is_kept(path: str, kept: Sequence[str]) -> bool:
    return any(path == k or path.startswith(f"{k}.") for k in kept)


def left_dense(module: Any, found: Sequence[Matrix], kept: Sequence[str]) -> list[dict[str, str]]:
    """The parameters of two axes and more that are not among `found`, and why."""
    torch = need("torch")
    own, tables, left = {id(m.tensor) for m in found}, _tables(module), []
    for path, part in module.named_modules():
        for name, weight in part._parameters.items():
            if weight is None or weight.dim() < 2 or id(weight) in own:
                continue
            own.add(id(weight))
            why = (
                "it is to be kept" if _is_kept(path, kept)
                else "it is an embedding's table" if id(weight) in tables
                else "it is a recurrent layer's" if isinstance(part, torch.nn.RNNBase)
                else "it belongs to no linear layer, convolution or attention"
            )  # fmt: skip
            left.append({"layer": f"{path}.{name}".lstrip("."), "why": why})
    return left


def smallest(found: Sequence[Matrix], ratio: float, *, per_layer: bool) -> dict[str, int]:
    """Set the smallest `ratio` of all weights to zero, or of each layer's: exactly that many, rounded to one.

    Of equal weights the first go first. Gives the number of zeros per layer; one that was zero before counts too.
    """
    torch = need("torch")
    parts = [[matrix] for matrix in found] if per_layer else [list(found)]
    for part in parts:
        flat = torch.cat([m.tensor.detach().float().abs().flatten() for m in part])
        count = round(flat.numel() * ratio)
        mask = torch.zeros(flat.numel(), dtype=torch.bool)
        mask[torch.argsort(flat, stable=True)[:count]] = True
        start = 0
        for matrix in part:
            size = matrix.tensor.numel()
            matrix.tensor.data[mask[start : start + size].view(matrix.tensor.shape)] = 0
            start += size
    return zeros(found)


def two_of_four(found: Sequence[Matrix]) -> tuple[dict[str, int], list[dict[str, str]]]:
    """Set the two smallest of every four weights along the summed axis to zero; gives the zeros, and what was left.

    NVIDIA's sparse tensor cores take this pattern (Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021).
    """
    torch = need("torch")
    done, left = [], []
    for matrix in found:
        size = matrix.tensor.shape[matrix.axis]
        if size % 4:
            left.append({"layer": matrix.name, "why": f"it sums over {size}, no multiple of 4"})
            continue
        moved = matrix.tensor.detach().movedim(matrix.axis, -1)
        fours = moved.reshape(-1, 4)
        order = torch.argsort(fours.float().abs(), dim=1, stable=True)
        mask = torch.ones_like(fours, dtype=torch.bool).scatter_(1, order[:, :2], False)
        matrix.tensor.data.copy_((fours * mask).reshape(moved.shape).movedim(-1, matrix.axis))
        done.append(matrix)
    if not done:
        raise StepError(
            "no layer sums over a multiple of 4",
            subject="with.how",
            hint="how: unstructured, with a ratio",
        )
    return zeros(done), left


def holds_two_of_four(matrix: Matrix) -> bool:
    """Whether at least two of every four weights along the summed axis are zero."""
    fours = matrix.tensor.detach().movedim(matrix.axis, -1).reshape(-1, 4)
    return bool(((fours == 0).sum(1) >= 2).all())


def zeros(found: Sequence[Matrix]) -> dict[str, int]:
    """How many weights of each layer are zero."""
    return {matrix.name: int((matrix.tensor == 0).sum()) for matrix in found}


def zeros_of(module: Any) -> dict[str, Any]:
    """Where a sparse model's weights are zero, as masks by name: what a training has to leave alone."""
    found = {name: weight.detach() == 0 for name, weight in module.named_parameters() if weight.dim() > 1}
    return {name: mask for name, mask in found.items() if bool(mask.any())}


def put_back(module: Any, masks: Mapping[str, Any]) -> None:
    """Make zero again, in place, what `zeros_of` gave of a module."""
    own = dict(module.named_parameters())
    for name, mask in masks.items():
        own[name].data.masked_fill_(mask.to(own[name].device), 0)


def lost(masks: Mapping[str, Any], tensors: Mapping[str, Any]) -> list[str]:
    """The names of tensors that are no longer zero where they were."""
    return [n for n, mask in masks.items() if n in tensors and bool((tensors[n].to(mask.device)[mask] != 0).any())]


__all__ = [
    "Matrix",
    "holds_two_of_four",
    "left_dense",
    "lost",
    "matrices",
    "put_back",
    "smallest",
    "two_of_four",
    "zeros",
    "zeros_of",
]
