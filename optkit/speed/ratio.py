"""The ratio of two speeds with its interval, from rounds in which both ran one after the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000
POINTS = 8
"""Quantiles that stand for the inferences of a round."""

TRIM = 0.2
"""The share of rounds left out at either end of the mean: those in which another program got in the way."""


@dataclass(frozen=True)
class Ratio:
    """How many times as fast: `value`, and the ends of its 95 % interval. Below 1 is slower.

    clock: "processor" where the time that the processor spent on it was compared, else "wall". taken: the share of the
    time that other programs had the processor meanwhile; None where that is not known.
    """

    value: float
    low: float
    high: float
    rounds: int
    clock: str = "wall"
    taken: float | None = None

    @property
    def spread(self) -> float:
        """Half the interval's width, as a share of the value."""
        return (self.high - self.low) / 2 / self.value

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Ratio:
        return Ratio(**data)


def ratio(
    base: Sequence[float], other: Sequence[float], seed: int = 0, heats: Sequence[int] = (), clock: str = "wall"
) -> Ratio:
    """How many times as fast `other` is as `base`; each holds the seconds of one inference, `(rounds,)`.

    heats: how many rounds each process of theirs ran, in order; all of them in one where it is not told.
    The rounds are paired: noise that lasts longer than a round slows both sides and cancels. A trimmed mean of the
    rounds' log ratios, and the percentile bootstrap of it over rounds (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 13; Wilcox, Introduction to Robust Estimation, 2012, section 4.4). Raises ValueError for
    fewer than two rounds, or sides of unequal length.
    """
    _require_pairs(base, other)
    logs = np.log(np.asarray(base, float)) - np.log(np.asarray(other, float))
    picks = _picks(heats or [len(logs)], seed)
    return _between(float(_trimmed(logs[None])[0]), _trimmed(logs[picks]), len(logs), clock)


def quiet_ratio(
    base: Sequence[Sequence[float]], other: Sequence[Sequence[float]], seed: int = 0, heats: Sequence[int] = ()
) -> Ratio:
    """How many times as fast `other` is as `base` in the quicker moments of both; each holds, round by round, the
    seconds of its inferences.

    The ratio of the lower quartiles over all rounds, in which every round weighs the same, and its percentile bootstrap
    over pairs of rounds. Unlike a mean of paired rounds it stays where most rounds of one side met another program.
    Raises ValueError as `ratio` does.
    """
    _require_pairs(base, other)
    picks = _picks(heats or [len(base)], seed)
    weights = np.zeros((1 + RESAMPLES, len(base)))
    weights[0] = 1
    np.add.at(weights, (1 + np.arange(RESAMPLES)[:, None], picks), 1)
    logs = np.log(_lower_quartiles(base, weights)) - np.log(_lower_quartiles(other, weights))
    return _between(float(logs[0]), logs[1:], len(base), "wall")


def _picks(heats: Sequence[int], seed: int) -> np.ndarray[Any, Any]:
    """Rounds for each resample, `(RESAMPLES, rounds)`: heats drawn with replacement, and rounds within each of them.

    Rounds of one heat share its processes, whose places in memory alone make one some percent faster than another
    (Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8).
    """
    random, sizes = np.random.default_rng(seed), np.asarray(heats)
    starts, most = np.cumsum(sizes) - sizes, int(sizes.max())
    drawn = random.integers(0, len(sizes), (RESAMPLES, len(sizes), 1))
    within = (random.random((RESAMPLES, len(sizes), most)) * sizes[drawn]).astype(int)
    return np.asarray((starts[drawn] + within).reshape(RESAMPLES, -1))


def _require_pairs(base: Sequence[object], other: Sequence[object]) -> None:
    if len(base) != len(other) or len(base) < 2:
        raise ValueError(f"{len(base)} rounds against {len(other)}: there must be two at least, as many on either side")


def _between(value: float, found: np.ndarray[Any, Any], rounds: int, clock: str) -> Ratio:
    """The ratio of a log ratio and what the bootstrap found for it."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return Ratio(math.exp(value), math.exp(min(low, value)), math.exp(max(high, value)), rounds, clock)


def _lower_quartiles(rounds: Sequence[Sequence[float]], weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The lower quartile of all inferences for each row of weights, `(rows, rounds)`, that gives rounds theirs."""
    middles = (np.arange(POINTS) + 0.5) / POINTS
    points = np.stack([np.quantile(np.asarray(times, float), middles) for times in rounds])
    order = np.argsort(points, axis=None)
    sums = np.cumsum(np.repeat(weights, POINTS, axis=1)[:, order], axis=1)
    places = (sums < sums[:, -1:] / 4).sum(axis=1)
    return np.asarray(points.ravel()[order][places])


def _trimmed(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The trimmed mean of each row, `(rows,)`."""
    cut = int(rows.shape[1] * TRIM)
    ordered = np.sort(rows, axis=1)
    return np.asarray(ordered[:, cut : rows.shape[1] - cut].mean(axis=1))
