"""Weights set to zero by magnitude, in place: any of them, or two of every four."""

from __future__ import annotations

from collections.abc import Sequence
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


def matrices(module: Any, kept: Sequence[str]) -> list[Matrix]:
    """The weights of linear layers and convolutions, tied ones once, without the modules in `kept` and below them."""
    torch = need("torch")
    plain = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
    found: dict[int, Matrix] = {}
    tables = {id(m.weight) for m in module.modules() if isinstance(m, torch.nn.Embedding | torch.nn.EmbeddingBag)}
    for path, part in module.named_modules():
        weight = getattr(part, "weight", None)
        if any(path == k or path.startswith(f"{k}.") for k in kept) or not isinstance(weight, torch.nn.Parameter):
            continue
        transposed = type(part).__name__ == "Conv1D" or getattr(part, "transposed", False)  # transformers' Conv1D
        matrix = isinstance(part, plain) or (type(part).__name__ == "Conv1D" and weight.dim() == 2)
        if matrix and id(weight) not in tables:
            found.setdefault(id(weight), Matrix(f"{path}.weight".lstrip("."), weight, 0 if transposed else 1))
    return list(found.values())


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


__all__ = ["Matrix", "holds_two_of_four", "matrices", "smallest", "two_of_four", "zeros"]
