"""SmoothQuant's scales: how far each channel of a product's input is brought down, for its weight to be brought up.

G. Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models" (ICML 2023).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


def scales(peak: Array, reach: Array, alpha: float) -> Array | None:
    """What to divide each channel of an input by, and multiply the weight's by, `(channels,)`; None if by nothing.

    peak: the greatest magnitude of each channel on data. reach: that of the weights it meets. alpha: 0 leaves the
    outliers in the input, 1 moves them all.
    """
    import numpy as np

    peak = np.asarray(peak, np.float64)
    live = (peak > 0) & (reach > 0)
    if not live.any():
        return None
    scale = np.ones(len(peak))
    scale[live] = peak[live] ** alpha / reach[live] ** (1 - alpha)
    # a common factor changes nothing: keep the input in the middle of what it was, for float16's sake
    scale[live] /= np.exp(np.log(scale[live]).mean())
    scale = np.clip(scale, 1e-5, 1e5)
    return None if np.allclose(scale, 1.0) else scale
