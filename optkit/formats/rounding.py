"""Rounding of a weight so that a layer's outputs, not its weights, stay close."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]
    # (column, the rows as they are now) -> scale and zero point of each row, for that column
    Grid = Callable[[int, NDArray[np.float32]], tuple[NDArray[np.float32], NDArray[np.float32]]]

DAMPING = 0.01
"""Share of the Hessian's mean diagonal that is added to its diagonal, as in the paper."""

_BLOCK = 128  # columns corrected at once


def gptq(rows: Array, hessian: Array, grid: Grid, low: int, high: int) -> Array:
    """Integers `(outputs, inputs)` between low and high, each column's rounding error made up for by those after it.

    rows: the weight, `(outputs, inputs)`. hessian: the mean of x x^T over the layer's inputs, `(inputs, inputs)`; an
    input that is always 0 is rounded to nearest. grid: where the values of a column lie. From E. Frantar et al.,
    "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (ICLR 2023), algorithm 1.
    """
    import numpy as np

    now = np.array(rows, np.float32)
    chosen = np.empty(now.shape, np.float32)
    upper = _inverse_root(hessian)
    count = now.shape[1]
    for start in range(0, count, _BLOCK):
        end = min(start + _BLOCK, count)
        errors = np.zeros((now.shape[0], end - start), np.float32)
        for column in range(start, end):
            scale, zero = grid(column, now)
            whole = np.clip(np.rint(now[:, column] / scale + zero), low, high)
            chosen[:, column] = whole
            error = (now[:, column] - (whole - zero) * scale) / upper[column, column]
            now[:, column + 1 : end] -= np.outer(error, upper[column, column + 1 : end])
            errors[:, column - start] = error
        now[:, end:] -= errors @ upper[start:end, end:]
    return chosen


def output_error(difference: Array, hessian: Array) -> float:
    """The mean squared change of a layer's outputs where its weight changes by `difference`, `(outputs, inputs)`."""
    import numpy as np

    return float(np.einsum("ij,ij->", difference @ hessian, difference))


def _inverse_root(hessian: Array) -> Array:
    """The upper Cholesky factor of the inverse of a Hessian, damped until there is one."""
    import numpy as np

    square = np.array(hessian, np.float64)
    diagonal = np.arange(len(square))
    dead = square[diagonal, diagonal] <= 0
    square[dead, dead] = 1.0
    level = DAMPING * float(square[diagonal, diagonal].mean())
    for _ in range(8):
        square[diagonal, diagonal] += level
        try:
            inverse = np.linalg.inv(np.linalg.cholesky(square))
            return np.linalg.cholesky(inverse.T @ inverse).T.astype(np.float32)
        except np.linalg.LinAlgError:
            level *= 10
    return np.eye(len(square), dtype=np.float32)  # nothing to learn from these inputs: rounding to nearest
