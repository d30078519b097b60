"""The range of values that tensors inside an ONNX model take on data, in memory that does not grow with the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optkit.errors import StepError
from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx import session as onnx_session

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Feed = Mapping[str, NDArray[Any]]

Method = Literal["minmax", "entropy", "percentile", "mse"]
Ranges = dict[str, tuple[float, float]]

_BINS = 4096  # over [-reach, reach]
_LEVELS = 128  # of an 8-bit integer on either side of zero
_NO_PREPACK_FROM = 256 << 20  # bytes: prepacking copies the weights
_LEAST = 1e-30  # of a reach: bins have edges that float32 can tell apart
_CUTS = 64  # thresholds that are tried at each end
_EVEN = 1e-12  # divergences nearer than this are equal but for rounding: the narrower range is taken


@dataclass(frozen=True)
class Rule:
    """How a range follows from what was seen of a tensor.

    "minmax" takes the extremes; "percentile" cuts off (100 - percentile) / 2 percent at each end; "entropy" cuts where
    8 bits lose least information, "mse" where they are least off. symmetric: the range will be one around 0.
    """

    method: Method = "minmax"
    percentile: float = 99.99
    symmetric: bool = False

    @property
    def binned(self) -> bool:
        """Whether it takes more than the extremes."""
        return self.method != "minmax"

    def range(self, seen: Histogram) -> tuple[float, float]:
        """Smallest and largest value to represent."""
        if self.method == "entropy":
            return seen.entropy()
        if self.method == "percentile":
            return seen.percentile(self.percentile)
        if self.method == "mse":
            return seen.least_error(self.symmetric)
        return seen.low, seen.high


def watched(model: Any, folder: Path, tensors: Sequence[str], threads: int) -> tuple[Any, list[str]]:
    """A session that gives tensors out, and which: the model's own inputs come from the feed."""
    import onnx

    augmented = onnx.ModelProto()
    augmented.CopyFrom(model)
    given = {v.name for v in model.graph.input}
    there = {v.name for v in model.graph.output}
    fetched = [name for name in tensors if name not in given]
    for name in fetched:
        if name not in there:
            augmented.graph.output.append(onnx.ValueInfoProto(name=name))
    return opened(augmented, folder, threads), fetched


def opened(model: Any, folder: Path, threads: int) -> Any:
    """A session over a model whose weights may lie in `folder`."""
    prepack = onnx_model.size_bytes(model) < _NO_PREPACK_FROM
    return onnx_session.open_session(model.SerializeToString(), threads=threads, folder=folder, prepack=prepack)


def run(session: Any, names: Sequence[str], feed: Feed) -> Any:
    """The named tensors, for one feed."""
    if not names:  # onnxruntime would give every output
        return []
    with onnx_session.ort_errors("the model under calibration"):
        return session.run(names, dict(feed))


def not_finite(name: str) -> StepError:
    return StepError(f"tensor {name!r} becomes NaN or infinite on the calibration data", subject="data",
                     hint="check the data's preprocessing; a mask of minus infinity belongs to a node to name in "
                          "with.exclude")  # fmt: skip


class Histogram:
    """Counts of one tensor's values in a fixed number of bins over [-reach, reach]; reach doubles when it must."""

    def __init__(self, name: str) -> None:
        import numpy as np

        self.name = name
        self.counts: NDArray[np.int64] = np.zeros(_BINS, np.int64)
        self.reach = 0.0
        self.low, self.high = np.inf, -np.inf

    def add(self, values: Array) -> None:
        """Count one array's values. Raises StepError where one is NaN or infinite."""
        import numpy as np

        if not values.size:
            return
        values = values.astype(np.float32, copy=False)  # float16 has no room for so many edges
        low, high = float(values.min()), float(values.max())
        self.widen(low, high)
        reach = max(abs(low), abs(high))
        reach = max(reach, _LEAST) if reach else 0.0
        self.reach = self.reach or reach  # zeros counted so far lie in the same bin at any reach
        while self.reach < reach:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.zeros(_BINS, np.int64)
            self.counts[_BINS // 4 : -_BINS // 4] = pairs
            self.reach *= 2
        span = self.reach or 1.0
        self.counts += np.histogram(values, _BINS, (-span, span))[0]

    def widen(self, low: float, high: float) -> None:
        """Take in the extremes of further values. Raises StepError where one is NaN or infinite."""
        import numpy as np

        if not np.isfinite(low) or not np.isfinite(high):
            raise not_finite(self.name)
        self.low, self.high = min(self.low, low), max(self.high, high)

    def percentile(self, percent: float) -> tuple[float, float]:
        """The range that `percent` of the values lie in, an equal share cut off at each end."""
        import numpy as np

        share = np.cumsum(self.counts) / max(int(self.counts.sum()), 1)
        cut = (100.0 - percent) / 200.0
        width = 2 * self.reach / _BINS
        left = -self.reach + width * int(np.searchsorted(share, cut, side="right"))
        right = -self.reach + width * (int(np.searchsorted(share, 1.0 - cut)) + 1)
        return max(self.low, left), min(self.high, right)

    def entropy(self) -> tuple[float, float]:
        """The range, cut off at the magnitude where 8 bits keep most of the distribution's information.

        Minimises the Kullback-Leibler divergence between the distribution and its quantised form, over thresholds
        (S. Migacz, "8-bit inference with TensorRT", GTC 2017).
        """
        import numpy as np

        half = _BINS // 2
        counts = (self.counts[half:] + self.counts[:half][::-1]).astype(np.float64)
        counts[0] = counts[1]  # exact zeros, of ReLU and padding, are free in any quantisation
        if not counts.any():
            return self.low, self.high
        ends = np.arange(_LEVELS, half + 1, 8)
        found = _divergences(counts, ends)
        threshold = ends[int(np.argmax(found <= found.min() + _EVEN))]
        limit = self.reach * threshold / half
        return max(self.low, -limit), min(self.high, limit)

    def least_error(self, symmetric: bool) -> tuple[float, float]:
        """The range at which 8 bits have the least mean squared error: rounding inside of it, clipping outside.

        Rounding is off by step^2 / 12 on average (W. R. Bennett, "Spectra of quantized signals", 1948), so that steps
        narrower than a bin are told apart too. symmetric: the steps reach as far on either side of 0.
        """
        import numpy as np

        counts = self.counts.astype(np.float64)
        half = _BINS // 2
        counts[half] = min(counts[half], counts[half + 1] or counts[half])  # zeros of ReLU are free, see `entropy`
        if not counts.any() or self.low >= self.high:
            return self.low, self.high
        centres = (np.arange(_BINS) - half + 0.5) * (2 * self.reach / _BINS)
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        cuts = np.geomspace(1e-3, 1.0, _CUTS)

        def off(ends: tuple[float, float]) -> float:
            left, right = (-max(-ends[0], ends[1]), max(-ends[0], ends[1])) if symmetric else ends
            step = (right - left) / (2 * _LEVELS - 1)
            beyond = np.maximum(centres - right, 0) + np.maximum(left - centres, 0)
            inside = counts[beyond == 0].sum()
            return float(inside * step**2 / 12 + (counts * beyond**2).sum())

        if symmetric:
            limit = max(-low, high)
            best = min(((max(low, -limit * cut), min(high, limit * cut)) for cut in cuts), key=off)
            return best
        best = (low, high)
        for _ in range(3):  # one end after the other: they meet through the step alone
            best = min(((best[0], high * cut) for cut in cuts), key=off) if high else best
            best = min(((low * cut, best[1]) for cut in cuts), key=off) if low else best
        return best


def _divergences(counts: NDArray[np.float64], ends: NDArray[np.int64]) -> NDArray[np.float64]:
    """For each end the KL divergence of the first `end` bins, the rest clipped into the last, from `_LEVELS` levels.

    A level spreads what it holds evenly over those of its bins that hold something. So all that a divergence takes is
    sums over levels, and these are differences of running sums: `(ends, levels)` at once instead of bin by bin.
    """
    import numpy as np

    def running(values: Array) -> Array:
        return np.append(0.0, np.cumsum(values))

    def self_weighted(values: Array) -> Array:
        return values * np.log(np.where(values > 0, values, 1))

    total, used = counts.sum(), running(counts > 0)
    below, own = running(counts), running(self_weighted(counts))
    edges = np.arange(_LEVELS + 1) * ends[:, None] // _LEVELS
    held, kept = np.diff(below[edges], axis=1), below[ends]
    each = held / np.maximum(np.diff(used[edges], axis=1), 1) / np.maximum(kept, 1)[:, None]
    # a bin that only clipping fills has no counterpart: count it as one value among them all
    log_q = np.log(np.maximum(each, 1 / total))
    last = counts[ends - 1]
    clipped = last + total - kept
    held[:, -1] -= last
    cross = (held * log_q).sum(axis=1) + clipped * np.where(last > 0, log_q[:, -1], -np.log(total))
    divergences = (own[ends - 1] + self_weighted(clipped) - cross) / total - np.log(total)
    return np.asarray(np.where(kept > 0, divergences, np.inf), np.float64)
