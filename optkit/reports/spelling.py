"""Figures spelt for people: metrics, shares, sizes and durations, the same in the terminal and in every report."""

from __future__ import annotations

import math

from optkit.parity.bounds import EQUAL_DB


def spelt(metric: str, value: float) -> str:
    """A metric for people: "cosine 0.99820", "34.2 dB", "equal to the last bit", "top1_agreement 98.7%"."""
    if metric == "sqnr_db":
        return "equal to the last bit" if value >= EQUAL_DB else f"{value:.1f} dB"
    if metric in ("mismatch", "accuracy", "accuracy_drop") or metric.endswith("_agreement"):
        return f"{metric} {value:.2%}"
    if metric.endswith("cosine"):
        return f"{metric} {cosine(value)}"
    return f"{metric} {value:.3g}"


def cosine(value: float) -> str:
    """A cosine with two digits of its distance from 1: "0.9733", "0.99988", "0.9999983", "1"."""
    if value <= 0.999:
        return f"{value:.4f}"
    digits = min(9, 1 - math.floor(math.log10(1 - value))) if value < 1 else 0
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")


def share(part: float | None, held: bool = True) -> str:
    """`Judged.used` as text: "89 %", "12 times"; rounded so that it stays on its side of the bound."""
    if part is None:
        return "-"
    if part >= 2:
        return f"{part:.0f} times" if part < 999 else "over 999 times"
    percents = part * 100
    whole = math.floor(percents) if held else math.ceil(percents)
    return f"{whole} %" if whole >= 1 or part == 0 else "under 1 %"


def size(size_bytes: float | None) -> str:
    """A byte count for people: "512 B", "3.4 MB", powers of 1000."""
    if size_bytes is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 999.5 or unit == "GB":
            return f"{size_bytes:.0f} {unit}" if unit == "B" or size_bytes >= 99.95 else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    raise AssertionError("unreachable")


def duration(value: float | None) -> str:
    """A duration for people: "0.42 s", "12.3 s", "4 min 05 s"."""
    if value is None:
        return "-"
    if value < 9.995:
        return f"{value:.2f} s"
    if value < 119.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
