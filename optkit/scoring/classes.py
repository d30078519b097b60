"""Metrics over class ids: accuracy, top-k, F1 and intersection over union, of classification and segmentation alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from optkit.scoring.base import Array, Batch, Plain, Unfit, class_ids, output_of, rows_of, weighted
from optkit.spec.metricspec import AccuracyOptions, F1Options, IouOptions, TopKOptions


def class_axis(name: str, scores: Array, labels: Array, axis: int | None) -> int:
    """The axis of `scores` whose removal leaves the labels' shape. Raises Unfit when there is none, or several."""
    fits = [a for a in range(1, scores.ndim) if scores.shape[:a] + scores.shape[a + 1 :] == labels.shape]
    if axis is not None:
        chosen = axis + scores.ndim if axis < 0 else axis
        fits = [a for a in fits if a == chosen]
    if not fits:
        at = "" if axis is None else f" at axis {axis}"
        raise Unfit(
            f"output {name!r} has shape {scores.shape}, which is not the labels' {labels.shape} and an axis of "
            f"classes{at}",
            "give labels the output's shape without its axis of classes, or name another output:",
        )
    if len(fits) > 1:
        hint = f"name it with axis: one of {', '.join(map(str, fits))}"
        raise Unfit(f"output {name!r} has shape {scores.shape}: any of axes {fits} could be the classes", hint)
    return fits[0]


def scores_and_labels(batch: Batch, outputs: Mapping[str, Array], options: Any) -> tuple[str, Array, Array]:
    """The output's name, its scores `(count, ..., classes)`, and labels `(count, ...)` that they fit."""
    name, array = output_of(outputs, options.output)
    scores, labels = rows_of(name, array, batch.count), class_ids(batch, options.target)
    axis = class_axis(name, scores, labels, options.axis)
    scores = np.moveaxis(scores, axis, -1)
    _inside(batch, labels, options.ignore, scores.shape[-1], name)
    return name, scores, labels


def _inside(batch: Batch, labels: Array, ignore: int | None, classes: int, name: str) -> None:
    wrong = (labels >= classes) & (labels != (-1 if ignore is None else ignore))
    if wrong.any():
        row = np.argwhere(wrong)[0]
        raise Unfit(
            f"sample {batch.start + int(row[0])} has the label {int(labels[tuple(row)])}, "
            f"but output {name!r} has {classes} classes, 0 to {classes - 1}",
            "correct the labels, or leave one out with ignore:",
        )


def decided(batch: Batch, outputs: Mapping[str, Array], options: AccuracyOptions) -> tuple[Array, Array, Array]:
    """Predicted class ids, labels, and which count, each `(count, labels of a sample)`."""
    name, array = output_of(outputs, options.output)
    found, labels = rows_of(name, array, batch.count), class_ids(batch, options.target)
    if found.shape == (*labels.shape, 1):
        found = found[..., 0]
    if options.threshold is not None:
        if found.shape != labels.shape:
            raise Unfit(
                f"output {name!r} has shape {found.shape}, the labels have {labels.shape}",
                "threshold: is for an output of one number per label; drop it where there is an axis of classes",
            )
        _inside(batch, labels, options.ignore, 2, name)
        predicted = (found > options.threshold).astype(np.int64)
    elif found.shape == labels.shape and found.dtype.kind in "biu":
        predicted = found.astype(np.int64)
    elif found.shape == labels.shape:
        raise Unfit(
            f"output {name!r} has one {found.dtype} per label, neither class ids nor an axis of classes",
            "threshold: 0 for a binary logit, 0.5 for a probability; one-hot labels as numbers: labels.argmax(-1)",
        )
    else:
        name, scores, labels = scores_and_labels(batch, outputs, options)
        _known_class(options, scores.shape[-1], name)
        # NaN is no decision: argmax alone would take the first one for the largest.
        predicted = np.where(np.isnan(scores).any(-1), -1, scores.argmax(-1)).astype(np.int64)
    counts = labels >= 0
    if options.ignore is not None:
        counts &= labels != options.ignore
    flat = (batch.count, -1)
    return predicted.reshape(flat), labels.reshape(flat), counts.reshape(flat)


def _known_class(options: AccuracyOptions, classes: int, name: str) -> None:
    """Raises Unfit where the metric is of one class, and the output has no such class."""
    alone = options.class_ if isinstance(options, IouOptions) else None
    if isinstance(options, F1Options) and options.average == "binary":
        alone = options.positive
    if alone is not None and alone >= classes:
        word = "class" if isinstance(options, IouOptions) else "positive"
        raise Unfit(f"output {name!r} has {classes} classes, and no class {alone}", f"{word}: 0 to {classes - 1}")


CHUNK_ELEMENTS = 1 << 20  # of entries times resamples held at a time: 8 MB


class Hits(Plain):
    """accuracy and top_k: of each sample how many of its labels were hit, and how many it has."""

    def __init__(self, options: AccuracyOptions | TopKOptions) -> None:
        self.options = options
        self.hits: list[Array] = []
        self.labels: list[Array] = []

    def add(self, batch: Batch, outputs: Mapping[str, Array]) -> None:
        if isinstance(self.options, AccuracyOptions):
            predicted, labels, counts = decided(batch, outputs, self.options)
            hit = predicted == labels
        else:
            hit, counts = self._among(batch, outputs, self.options)
        self.hits.append((hit & counts).sum(1))
        self.labels.append(counts.sum(1))

    def _among(self, batch: Batch, outputs: Mapping[str, Array], options: TopKOptions) -> tuple[Array, Array]:
        _, scores, labels = scores_and_labels(batch, outputs, options)
        classes = scores.shape[-1]
        if options.k >= classes:
            what = f"every label is among the {options.k} best of {classes} classes"
            raise Unfit(what, f"k: 1 to {classes - 1}")
        counts = labels >= 0
        if options.ignore is not None:
            counts &= labels != options.ignore
        own = np.where(counts, labels, 0)[..., None]
        level = np.take_along_axis(scores, own, -1)
        # A tie goes to the lower index, as argmax does; a NaN is ahead of nothing and nothing is ahead of it.
        ahead = (scores > level) | ((scores == level) & (np.arange(classes) < own))
        hit = (ahead.sum(-1) < options.k) & ~np.isnan(scores).any(-1)
        return hit.reshape(batch.count, -1), counts.reshape(batch.count, -1)

    def outcomes(self) -> tuple[Array, Array] | None:
        hits, labels = np.concatenate(self.hits), np.concatenate(self.labels)
        return (hits > 0, labels > 0) if labels.max(initial=0) <= 1 else None

    def values(self, weights: Array) -> Array:
        return weighted(weights, np.concatenate(self.hits), np.concatenate(self.labels))


class Confusion(Plain):
    """f1 and iou: of each sample how often each class was taken for each other; only pairs that occur are held.

    A class counts where it occurs among a resample's labels or predictions, as scikit-learn does.
    """

    def __init__(self, options: F1Options | IouOptions) -> None:
        self.options = options
        self.parts: list[Array] = []  # (entries, 4): sample, label, prediction, how often
        self.samples = 0
        self._columns: tuple[Array, ...] | None = None

    def add(self, batch: Batch, outputs: Mapping[str, Array]) -> None:
        predicted, labels, counts = decided(batch, outputs, self.options)
        rows = np.broadcast_to(np.arange(self.samples, self.samples + batch.count)[:, None], labels.shape)
        triples = np.stack([rows[counts], labels[counts], predicted[counts]], 1)
        found, times = np.unique(triples, axis=0, return_counts=True)
        self.parts.append(np.concatenate([found, times[:, None]], 1))
        self.samples += batch.count

    def values(self, weights: Array) -> Array:
        if self._columns is None:
            self._columns = tuple(np.concatenate(self.parts).T)
        sample, label, predicted, times = self._columns
        classes = int(max(label.max(initial=0), predicted.max(initial=0))) + 1
        right, said = label == predicted, predicted >= 0  # a prediction of -1 is none
        step = max(1, CHUNK_ELEMENTS // max(1, len(sample)))
        made = []
        for start in range(0, len(weights), step):
            many = weights[start : start + step][:, sample] * times
            made.append(self._value(
                _totals(label[right], many[:, right], classes), _totals(label, many, classes),
                _totals(predicted[said], many[:, said], classes),
            ))  # fmt: skip
        return np.concatenate(made)

    @np.errstate(divide="ignore", invalid="ignore")
    def _value(self, true: Array, real: Array, said: Array) -> Array:
        """The metric, `(resamples,)`, from how often each class was found, is there, and was said to be there."""
        options = self.options
        occurs, some = real + said > 0, real.any(1)
        if isinstance(options, IouOptions):
            each, alone = true / (real + said - true), options.class_
        else:
            each, alone = 2 * true / (real + said), options.positive if options.average == "binary" else None
        if alone is not None:
            return each[:, alone] if alone < each.shape[1] else np.full(len(each), np.nan)
        each = np.where(occurs, each, 0)
        if isinstance(options, IouOptions) or options.average == "macro":
            found = each.sum(1) / occurs.sum(1)
        elif options.average == "micro":
            found = 2 * true.sum(1) / (real + said).sum(1)
        else:
            found = (each * real).sum(1) / real.sum(1)
        return np.asarray(np.where(some, found, np.nan))


def _totals(ids: Array, many: Array, classes: int) -> Array:
    """How often each class is in each resample, `(resamples, classes)`; `many` is `(resamples, entries)`."""
    place = ids + classes * np.arange(len(many))[:, None]
    return np.bincount(place.ravel(), many.ravel(), classes * len(many)).reshape(len(many), classes)
