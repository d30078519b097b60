"""Class scores with labels, and what a metric makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from optkit.scoring.base import Batch
from optkit.scoring.measure import Scoring, scorer_of
from optkit.spec.metricspec import metric_of

RNG = np.random.default_rng(0)
CLASSES = 7
LABELS = RNG.integers(0, CLASSES, 300)
LOGITS = RNG.standard_normal((300, CLASSES))
LOGITS[np.arange(300), LABELS] += 1.2


def value(metric: Mapping[str, Any], outputs: Mapping[str, Any], labels: Any = None, feeds: Any = None, size: int = 37,
          base: Path = Path()) -> float:  # fmt: skip
    """The metric of all samples, fed in batches of `size`."""
    scorer = scorer_of(metric_of(metric), base)
    count = len(next(iter(outputs.values())))
    for start in range(0, count, size):
        part = slice(start, start + size)
        batch = Batch({n: t[part] for n, t in (feeds or {}).items()}, None if labels is None else labels[part],
                      min(size, count - start), start)  # fmt: skip
        scorer.add(batch, {name: tensor[part] for name, tensor in outputs.items()})
    scorer.finish(None)
    return float(scorer.values(np.ones((1, count), np.int64))[0])


def score(
    metric: Mapping[str, Any], reference: Any, candidate: Any, labels: Any, base: Path = Path()
) -> dict[str, Any]:
    scoring = Scoring([metric_of(metric)], base, 0)
    for start in range(0, len(reference), 50):
        part = slice(start, start + 50)
        one, other = ({"y": tensor[part]} for tensor in (reference, candidate))
        scoring.add({}, None if labels is None else labels[part], one, other, len(reference[part]))
    return next(iter(scoring.result(lambda text, fraction: None).values()))
