"""A measured task metric in words: the artifact's value, the source's, and whether the difference is one at all.

A score is JSON data, as `optkit.scoring` measures it: {"value", "interval", "source", "source_interval", "change",
"change_interval", "better", "unit", "confidence", "method", "samples", "outputs"}, or {"problem", "outputs"} where
there is no value. An interval is [low, high], or None where none can be given. The change is the drop, source minus
artifact, or where lower is better the rise, artifact minus source: positive is worse.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Score = Mapping[str, Any]

UNCLEAR = "not distinguishable from zero"


def part_of(score: Score, part: str) -> float | None:
    """One figure of a score: "value", "change", or "value_lower", "change_upper" and so on for an interval's ends."""
    name, _, end = part.partition("_")
    if not end:
        return score.get(name)
    interval = score.get("interval" if name == "value" else "change_interval")
    return interval[0 if end == "lower" else 1] if interval else None


def difference(score: Score) -> str:
    """What the change is, as far as the samples can tell: "none", "loss", "gain", or "unclear".

    It is a loss or a gain only where its confidence interval leaves zero out.
    """
    interval = score.get("change_interval")
    if not interval:
        return "unclear"
    if interval[0] > 0 or interval[1] < 0:
        return "loss" if interval[0] > 0 else "gain"
    return "none" if score["change"] == 0 else "unclear"


def value_text(score: Score) -> str:
    """The artifact's value and its interval: "98.61% [96.78%, 99.41%]"."""
    return _with(score, "value", "interval")


def source_text(score: Score) -> str:
    """The source's value and its interval."""
    return _with(score, "source", "source_interval")


def change_text(score: Score) -> str:
    """The change: "drop 0.28 points [-0.50, 1.10], not distinguishable from zero"; "rise" where lower is better."""
    word, points = ("drop" if score["better"] == "higher" else "rise"), score["unit"] == "fraction"

    def figure(value: float) -> str:
        return f"{100 * value + 0.0:.2f}" if points else f"{value + 0.0:.4g}"  # 0, never -0

    text = f"{word} {figure(score['change'])}{' points' if points else ''}"
    if interval := score.get("change_interval"):
        text += f" [{figure(interval[0])}, {figure(interval[1])}]"
    kind = difference(score)
    told = {"loss": "", "gain": ", better than the source", "none": "", "unclear": f", {UNCLEAR}"}
    return text + (told[kind] if interval else ", without an interval")


def _with(score: Score, name: str, interval: str) -> str:
    text = spell(score, score[name])
    if ends := score.get(interval):
        text += f" [{spell(score, ends[0])}, {spell(score, ends[1])}]"
    return text


def spell(score: Score, value: float) -> str:
    """A value of the metric itself: a fraction in percent, anything else in four digits."""
    return f"{value:.2%}" if score["unit"] == "fraction" else f"{value:.4g}"
