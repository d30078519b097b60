"""How much has to go until a model is fast enough: candidates are written, converted and raced, by bisection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optkit.plugin import Ratio

FINE = 0.01
"""Two candidates whose multiply-accumulates differ by less than this share are not told apart by a race."""

MOST_PROBES = 8
"""Races of the bisection, at most; two more each time that it has to go on."""

SECONDS = 2.0, 6.0
"""How long a race goes on at most: of the bisection, and of the candidate it has come to."""

Removed = frozenset[int]


@dataclass(frozen=True)
class Probe:
    """A candidate that was measured. gone: the share of multiply-accumulates without it. ratio: how fast it is."""

    removed: Removed
    gone: float
    ratio: Ratio

    def share(self) -> str:
        """Its latency as a share of the unpruned model's, with its interval: "62.1 % (60.8 % to 63.0 %)"."""
        r = self.ratio
        return f"{1 / r.value:.1%} ({1 / r.high:.1%} to {1 / r.low:.1%})"

    def to_json(self) -> dict[str, Any]:
        r = self.ratio
        return {"macs_gone": round(self.gone, 4), "latency": round(1 / r.value, 4),
                "between": [round(1 / r.high, 4), round(1 / r.low, 4)], "speedup": r.to_json()}  # fmt: skip


@dataclass(frozen=True)
class Search:
    """What a search has come to. met: the candidate to take, None where none is fast enough. tried: all, in turn."""

    met: Probe | None
    tried: tuple[Probe, ...]

    @property
    def best(self) -> Probe:
        """The fastest that was measured."""
        return max(self.tried, key=lambda probe: probe.ratio.value)


def search(
    ordered: Sequence[int],
    latency: float,
    rounded: Callable[[Sequence[int]], Removed],
    gone: Callable[[Removed], float],
    measure: Callable[[Removed, float], Ratio],
    *,
    sure: bool,
) -> Search:
    """The fewest from the start of `ordered` whose removal brings the latency down to this share.

    rounded: what of them really goes. measure: how many times as fast the model is without them, in a race of so many
    seconds. sure: the candidate is raced once more, for longer, and only that counts: one that looked fast enough in
    the bisection may have been lucky. Where it is not, the bisection goes on above it.
    """
    tried: list[Probe] = []
    fast: dict[int, Probe] = {}

    def is_fast(count: int, seconds: float = SECONDS[0]) -> bool:
        removed = rounded(ordered[:count])
        tried.append(Probe(removed, gone(removed), measure(removed, seconds)))
        if tried[-1].ratio.value * latency >= 1:
            fast[count] = tried[-1]
            return True
        fast.pop(count, None)
        return False

    low, slow, most = 0, gone(frozenset()), len(ordered)
    if not is_fast(most) and not (sure and is_fast(most, SECONDS[1])):
        return Search(None, tuple(tried))
    left = MOST_PROBES
    while fast:
        high = min(fast)
        while left and high - low > 1 and fast[high].gone - slow > FINE:
            middle = (low + high) // 2
            if rounded(ordered[:middle]) in (fast[high].removed, rounded(ordered[:low])):
                low = middle
                continue
            left -= 1
            if is_fast(middle):
                high = middle
            else:
                slow, low = tried[-1].gone, middle
        if not sure or is_fast(high, SECONDS[1]):
            return Search(fast[high], tuple(tried))
        slow, low, left = tried[-1].gone, high, left + 2
    return Search(None, tuple(tried))


__all__ = ["Probe", "Search", "search"]
