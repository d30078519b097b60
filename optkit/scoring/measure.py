"""The declared metrics of an artifact and of the source, measured side by side over the judging set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from optkit.errors import DataError, OptkitError, UserError
from optkit.parity.intervals import bootstrapped, proportions, resamples
from optkit.scoring.base import Array, Batch, Scorer, Unfit
from optkit.spec.metricspec import (
    KINDS,
    AccuracyOptions,
    F1Options,
    IouOptions,
    MapOptions,
    Metric,
    PerplexityOptions,
    PythonOptions,
    RetrievalOptions,
    SimilarityOptions,
    TopKOptions,
    WerOptions,
)

Outputs = Mapping[str, Array]


def scorer_of(metric: Metric, base: Path) -> Scorer:
    """A fresh scorer of a metric. Raises Unfit, or UserError for a callable that cannot be loaded."""
    options = metric.options
    match options:
        case F1Options() | IouOptions():
            from optkit.scoring.classes import Confusion

            return Confusion(options)
        case AccuracyOptions() | TopKOptions():
            from optkit.scoring.classes import Hits

            return Hits(options)
        case MapOptions():
            from optkit.scoring.boxes import Detections

            return Detections(options)
        case WerOptions():
            from optkit.scoring.language import WordErrors

            return WordErrors(options, base)
        case PerplexityOptions():
            from optkit.scoring.language import LogLikelihood

            return LogLikelihood(options)
        case RetrievalOptions():
            from optkit.scoring.retrieval import Neighbours

            return Neighbours(options)
        case SimilarityOptions():
            from optkit.scoring.retrieval import Likeness

            return Likeness(options)
        case PythonOptions():
            from optkit.scoring.callables import Called

            return Called(options, base, metric.name)
    raise TypeError(f"no scorer for {metric.kind}")


class Scoring:
    """Scores every metric of two models, batch by batch.

    What the source's own outputs or the samples cannot feed is the recipe's mistake: UserError or DataError with the
    subject `metric.NAME`. What the artifact's outputs alone cannot feed is its problem, and becomes part of its score.
    """

    def __init__(self, metrics: Sequence[Metric], base: Path, seed: int) -> None:
        self.seed = seed
        self.samples = 0
        self.pairs: dict[str, tuple[Metric, Scorer, Scorer]] = {}
        self.problems: dict[str, str] = {}
        self.outputs: dict[str, list[str]] = {}
        for metric in metrics:
            source, artifact = (self._of_source(metric, lambda: scorer_of(metric, base)) for _ in range(2))  # noqa: B023
            self.pairs[metric.name] = (metric, source, artifact)

    def add(
        self, feeds: Outputs, labels: Sequence[Any] | None, reference: Outputs, candidate: Outputs, count: int
    ) -> None:
        """One batch: its feeds and labels, and both models' outputs cut to its `count` real samples."""
        batch = Batch(feeds, labels, count, self.samples)
        self.samples += count
        for name, (metric, source, artifact) in self.pairs.items():
            self.outputs[name] = list(metric.outputs()) or list(reference)
            self._of_source(metric, lambda: source.add(batch, reference))  # noqa: B023
            self._of_artifact(name, lambda: artifact.add(batch, candidate))  # noqa: B023

    def result(self, say: Callable[[str, float | None], None]) -> dict[str, dict[str, Any]]:
        """The score of each metric, as `optkit.parity.scores` describes it."""
        found = {}
        for name, (metric, source, artifact) in self.pairs.items():
            say(f"measuring {name}", None)
            self._of_source(metric, lambda: source.finish(None))  # noqa: B023
            self._of_artifact(name, lambda: artifact.finish(source))  # noqa: B023
            score = self._score(metric, source, artifact) if name not in self.problems else {}
            common = {
                "better": metric.better, "unit": KINDS[metric.kind].unit, "confidence": metric.options.confidence,
                "samples": self.samples, "outputs": self.outputs.get(name, []),
            }  # fmt: skip
            problem = self.problems.get(name)
            found[name] = {**common, **({"problem": problem} if problem else score)}
        return found

    def _score(self, metric: Metric, source: Scorer, artifact: Scorer) -> dict[str, Any]:
        name, options, kind = metric.name, metric.options, KINDS[metric.kind]
        once = np.ones((1, self.samples), np.int64)
        was = self._of_source(metric, lambda: float(source.values(once)[0]))
        if not np.isfinite(was):
            raise _recipe_fault(metric, f"it has no value for the source model ({was:g})", _UNDEFINED)
        if isinstance(options, PythonOptions):
            again = self._of_source(metric, lambda: float(source.values(once)[0]))
            if abs(again - was) > 1e-9 * max(abs(was), 1.0):
                what = f"it gives {was:.6g} and then {again:.6g} for the same predictions"
                raise _recipe_fault(metric, what, "seed its random generator, or keep nothing between calls")
        both = source.outcomes(), artifact.outcomes()
        if both[0] is not None and both[1] is not None:
            return proportions(both[0][0], both[1][0], both[0][1], options.confidence)
        values: dict[str, float] = {}
        drawn: list[tuple[Array, Array]] = []

        def measure() -> None:
            values["now"] = float(artifact.values(once)[0])
            for weights in resamples(self.samples, options.resamples, self.seed):
                drawn.append((source.values(weights), artifact.values(weights)))

        self._of_artifact(name, measure)
        now = values.get("now", float("nan"))
        if name not in self.problems and not np.isfinite(now):
            self.problems[name] = f"it has no value for the artifact ({now:g})"
        if name in self.problems:
            return {}
        sign = 1 if metric.better == "higher" else -1
        before, after = (np.concatenate(column) for column in zip(([was], [now]), *drawn, strict=True))
        return bootstrapped(before, after, self.samples, options.confidence, sign, kind.low, kind.high)

    def _of_source(self, metric: Metric, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except Unfit as error:
            raise _recipe_fault(metric, error.what, error.hint) from error
        except DataError as error:
            error.subject = f"metric.{metric.name}"
            error.what = f"metric {metric.name}: {error.what}"
            raise

    def _of_artifact(self, name: str, act: Callable[[], Any]) -> None:
        if name in self.problems:
            return
        try:
            act()
        except (Unfit, UserError) as error:
            self.problems[name] = error.what


_UNDEFINED = "it may be that no label counts, or that a class that it needs never occurs"


def _recipe_fault(metric: Metric, what: str, hint: str) -> OptkitError:
    return UserError(f"metric {metric.name}: {what}", hint=hint, subject=f"metric.{metric.name}")
