"""The recipe's metrics of a model while it is being trained, on samples that it does not learn from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optkit.errors import UserError
from optkit.plugin import Answered
from optkit.scoring.base import Batch, Scorer, Unfit
from optkit.scoring.measure import scorer_of
from optkit.spec.metricspec import KINDS, Metric


class HeldOut:
    """Measures every metric of a recipe; see `optkit.plugin.Score`.

    A metric that these samples cannot feed, for want of labels say, is no mistake here: the judging set is another. It
    has a `problem` in place of values.
    """

    def __init__(self, metrics: Sequence[Metric], base: Path) -> None:
        self.metrics, self.base = tuple(metrics), base

    def __call__(self, batches: Iterable[Answered]) -> Mapping[str, Mapping[str, Any]]:
        measured = [_Measured(metric, self.base) for metric in self.metrics]
        start = 0
        for answered in batches:
            for one in measured:
                one.add(answered, start)
            start += answered.count
        return {one.metric.name: one.result(start) for one in measured}


class _Measured:
    """One metric of both models; what went wrong first, where something did."""

    def __init__(self, metric: Metric, base: Path) -> None:
        self.metric, self.problem = metric, ""
        self.pair: list[Scorer] = []
        self._try(lambda: self.pair.extend(scorer_of(metric, base) for _ in range(2)))

    def _try(self, act: Callable[[], None]) -> None:
        try:
            if not self.problem:
                act()
        except (Unfit, UserError) as error:
            self.problem = error.what

    def add(self, answered: Answered, start: int) -> None:
        batch = Batch(answered.feeds, answered.labels, answered.count, start)

        def both() -> None:
            self.pair[0].add(batch, answered.source)
            self.pair[1].add(batch, answered.own)

        self._try(both)

    def result(self, count: int) -> dict[str, Any]:
        found: list[float] = []

        def both() -> None:
            once = np.ones((1, count), np.int64)
            self.pair[0].finish(None)
            self.pair[1].finish(self.pair[0])
            found.extend(float(scorer.values(once)[0]) for scorer in self.pair)
            if not np.isfinite(found).all():
                raise Unfit(f"it has no value on {count} samples", "more samples")

        self._try(both)
        if self.problem:
            return {"problem": self.problem}
        was, now = found
        shown = f"{now:.1%}" if KINDS[self.metric.kind].unit == "fraction" else f"{now:.4g}"
        return {"value": now, "source": was, "text": f"{self.metric.name} {shown}"}


__all__ = ["HeldOut"]
