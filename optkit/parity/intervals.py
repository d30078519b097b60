"""Confidence intervals of a value measured on samples: score intervals for proportions, the bootstrap for the rest.

- One right-or-wrong outcome per sample: Wilson's interval (Wilson, 1927), and for the difference between two models on
  the same samples Tango's (Statistics in Medicine 17, 1998), whose test of no difference is McNemar's. Both hold their
  level for a few samples and where all or none are right, where a bootstrap would give an interval of no width.
- Anything else: the percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13)
  over samples, with the same resamples for both models. Where every resample gives one and the same value, that says
  only that nothing else was seen: a metric with limits gets Wilson's width for n samples that all agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Interval = tuple[float, float]

BLOCK_ELEMENTS = 1 << 21  # of resampled weights made at a time: 16 MB
UNDEFINED_SHARE = 0.05  # of resamples may have no value (no positive among them) before there is no interval


def quantile_of(confidence: float) -> float:
    """The normal quantile z of a two-sided interval: 1.96 for 0.95."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def wilson(hits: int, samples: int, confidence: float = 0.95) -> Interval:
    """The interval of a proportion, `hits` of `samples`. Raises ValueError without samples."""
    if samples < 1:
        raise ValueError("no samples")
    z2, share = quantile_of(confidence) ** 2, hits / samples
    middle, scale = share + z2 / (2 * samples), 1 + z2 / samples
    half = math.sqrt(z2 * (share * (1 - share) / samples + z2 / (4 * samples**2)))
    # The ends are 0 and 1 to the last bit where none or all are hits.
    low = 0.0 if hits == 0 else max(0.0, (middle - half) / scale)
    high = 1.0 if hits == samples else min(1.0, (middle + half) / scale)
    return low, high


def tango(first_only: int, second_only: int, samples: int, confidence: float = 0.95) -> Interval:
    """The interval of the difference between two paired proportions, (first_only - second_only) / samples.

    first_only, second_only: the samples that only the one, and only the other, model has right.
    """
    if samples < 1:
        raise ValueError("no samples")
    z = quantile_of(confidence)
    n, b, c = float(samples), float(first_only), float(second_only)

    def statistic(delta: float) -> float:
        """Falls from + to - as delta rises; its size at the true difference is about normal."""
        linear = (2 * n - b + c) * delta - b - c
        constant = -c * delta * (1 - delta)
        share = (math.sqrt(max(0.0, linear**2 - 8 * n * constant)) - linear) / (4 * n)
        variance = n * (2 * share + delta * (1 - delta))
        gap = b - c - n * delta
        if variance <= 0:
            return math.copysign(math.inf, gap) if gap else 0.0
        return gap / math.sqrt(variance)

    def crossing(target: float, low: float, high: float) -> float:
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if statistic(middle) > target else (low, middle)
        return (low + high) / 2

    estimate = (b - c) / n
    low = -1.0 if estimate <= -1 else crossing(z, -1.0, estimate)
    high = 1.0 if estimate >= 1 else crossing(-z, estimate, 1.0)
    return low, high


def resamples(samples: int, count: int, seed: int) -> Iterator[Array]:
    """How often each sample is in each resample: blocks of `(some, samples)` int64, `count` rows in all.

    The same arguments give the same resamples, which is what pairs two models.
    """
    rng = np.random.default_rng([seed, samples])
    rows = max(1, min(count, BLOCK_ELEMENTS // max(1, samples)))
    for start in range(0, count, rows):
        some = min(rows, count - start)
        drawn = rng.integers(0, samples, (some, samples)) + samples * np.arange(some)[:, None]
        yield np.bincount(drawn.ravel(), minlength=samples * some).reshape(some, samples)


def percentile(
    values: Array, samples: int, confidence: float, low: float = -math.inf, high: float = math.inf, span: float = 1.0
) -> Interval | None:
    """The percentile interval of bootstrap `values`; None where too many of them are undefined, or samples too few.

    low, high: the limits of the figure; between finite ones an interval without width gets that of `samples` that all
    agree, times `span`, the metric's own range.
    """
    fine = values[np.isfinite(values)]
    if samples < 2 or len(fine) < (1 - UNDEFINED_SHARE) * len(values):
        return None
    tail = (1 - confidence) / 2
    bottom, top = (float(end) for end in np.quantile(fine, [tail, 1 - tail]))
    if bottom == top and math.isfinite(high - low):
        z2 = quantile_of(confidence) ** 2
        width = span * z2 / (samples + z2)
        bottom, top = max(low, bottom - width), min(high, top + width)
    return bottom, top


def shares(reference: Array, candidate: Array, labels: Array) -> dict[str, Any]:
    """The score of two models of which each sample has so many hits, out of so many labels: int `(samples,)` each."""
    if labels.max(initial=0) <= 1:
        return proportions(reference > 0, candidate > 0, labels > 0)
    weights = np.concatenate([np.ones((1, len(labels)), np.int64), *resamples(len(labels), 1000, 0)])
    total = weights @ labels
    with np.errstate(divide="ignore", invalid="ignore"):
        was, now = weights @ reference / total, weights @ candidate / total
    return bootstrapped(was, now, len(labels), 0.95, 1, 0, 1)


def bootstrapped(
    was: Array, now: Array, samples: int, confidence: float, sign: int, low: float, high: float
) -> dict[str, Any]:
    """The score of two models by a metric of which element 0 is the value, the rest those of their common resamples.

    sign: 1 where higher is better, -1 where lower is. low, high: the metric's limits.
    """
    span = high - low
    # Past the twelfth decimal there is only the noise of subtracting: 0.99 - 0.985 must meet a bound of 0.005.
    change = np.round(sign * (was - now), 12)
    ends = {
        "interval": percentile(now[1:], samples, confidence, low, high, span),
        "source_interval": percentile(was[1:], samples, confidence, low, high, span),
        "change_interval": percentile(change[1:], samples, confidence, -span, span, span),
    }
    method = f"paired percentile bootstrap, {len(now) - 1} resamples of {samples} samples"
    if any(end is None for end in ends.values()):
        method = "no interval: " + ("one sample" if samples < 2 else "too few resamples have a value")
    return {
        "value": float(now[0]), "source": float(was[0]), "change": float(change[0]), "method": method,
        **{key: None if end is None else [*end] for key, end in ends.items()},
    }  # fmt: skip


def proportions(reference: Array, candidate: Array, known: Array, confidence: float = 0.95) -> dict[str, Any]:
    """The score of two models on the same samples, right or wrong each: bool `(samples,)`; only `known` ones count.

    Returns the figures that `optkit.parity.scores` describes: value, source, change and their intervals.
    """
    r, c = reference[known].astype(bool), candidate[known].astype(bool)
    n, right, was = len(r), int(c.sum()), int(r.sum())
    drop = tango(int((r & ~c).sum()), int((c & ~r).sum()), n, confidence)
    return {
        "value": right / n, "interval": [*wilson(right, n, confidence)],
        "source": was / n, "source_interval": [*wilson(was, n, confidence)],
        "change": (was - right) / n, "change_interval": [*drop], "method": "Wilson, Tango (paired)",
    }  # fmt: skip
