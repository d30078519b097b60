"""The ratio of two speeds with its interval, from rounds in which both ran one after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000
TRIM = 0.2
"""The share of rounds left out at either end of the mean: those in which another program got in the way."""


@dataclass(frozen=True)
class Ratio:
    """How many times as fast: `value`, and the ends of its 95 % interval. Below 1 is slower."""

    value: float
    low: float
    high: float
    rounds: int

    @property
    def spread(self) -> float:
        """Half the interval's width, as a share of the value."""
        return (self.high - self.low) / 2 / self.value

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Ratio:
        return Ratio(**data)


def ratio(base: Sequence[float], other: Sequence[float], seed: int = 0) -> Ratio:
    """How many times as fast `other` is as `base`; each holds the seconds of one inference, `(rounds,)`.

    The rounds are paired: noise that lasts longer than a round slows both sides and cancels. A trimmed mean of the
    rounds' log ratios, and the percentile bootstrap of it over rounds (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 13; Wilcox, Introduction to Robust Estimation, 2012, section 4.4). Raises ValueError for
    fewer than two rounds, or sides of unequal length.
    """
    if len(base) != len(other) or len(base) < 2:
        raise ValueError(f"{len(base)} rounds against {len(other)}: there must be two at least, as many on either side")
    logs = np.log(np.asarray(base, float)) - np.log(np.asarray(other, float))
    picks = np.random.default_rng(seed).integers(0, len(logs), (RESAMPLES, len(logs)))
    means = _trimmed(logs[picks])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    value = float(_trimmed(logs[None])[0])
    return Ratio(math.exp(value), math.exp(min(low, value)), math.exp(max(high, value)), len(logs))


def _trimmed(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The trimmed mean of each row, `(rows,)`."""
    cut = int(rows.shape[1] * TRIM)
    ordered = np.sort(rows, axis=1)
    return np.asarray(ordered[:, cut : rows.shape[1] - cut].mean(axis=1))
