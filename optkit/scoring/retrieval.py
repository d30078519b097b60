"""Embeddings: retrieval, where each sample is a query to all the others, and similarity to the source's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from optkit.scoring.base import Array, Batch, Plain, Scorer, Unfit, class_ids, output_of, rows_of, weighted
from optkit.spec.metricspec import RetrievalOptions, SimilarityOptions

ROWS = 256  # queries whose similarities are held at a time


class Neighbours(Plain):
    """retrieval: the embeddings, float32; the gallery is the whole set, and what is resampled are the queries."""

    def __init__(self, options: RetrievalOptions) -> None:
        self.options = options
        self.parts: list[Array] = []
        self.ids: list[Array] = []
        self.found = np.empty(0)
        self.counts = np.empty(0, bool)

    def add(self, batch: Batch, outputs: Mapping[str, Array]) -> None:
        self.parts.append(_embeddings(batch, outputs, self.options.output))
        if self.options.relevant == "label":
            ids = class_ids(batch, self.options.target)
            if ids.ndim != 1:
                raise Unfit(f"labels have shape {ids.shape[1:]} per sample, not one id", "give one group id per sample")
            self.ids.append(ids)

    def finish(self, source: Scorer | None) -> None:
        rows = np.concatenate(self.parts)
        if len(rows) <= self.options.k:
            hint = f"k: 1 to {len(rows) - 1}, or more samples" if len(rows) > 1 else "more samples"
            raise Unfit(f"{self.options.k} neighbours of {len(rows)} samples are all there are", hint)
        if self.options.relevant == "source":
            own = source if isinstance(source, Neighbours) else self
            pairs = zip(
                _nearest(rows, self.options.k), _nearest(np.concatenate(own.parts), self.options.k), strict=True
            )
            self.found = np.array([len(np.intersect1d(a, b)) / self.options.k for a, b in pairs])
            self.counts = np.ones(len(rows), bool)
            return
        ids = np.concatenate(self.ids)
        self.found, self.counts = np.zeros(len(rows)), np.zeros(len(rows), bool)
        for start, near in _similar(rows):
            for offset, line in enumerate(near):
                query = start + offset
                mine = (ids == ids[query]) & (ids >= 0)
                mine[query] = False
                others = ~mine
                others[query] = False
                if not mine.any() or ids[query] < 0:
                    continue
                self.counts[query] = True
                # A tie counts against: embeddings that are all one find nothing.
                rank = 1 + int((line[others] >= line[mine].max()).sum())
                if rank <= self.options.k:
                    self.found[query] = 1 / rank if self.options.measure == "mrr" else 1
        if not self.counts.any():
            raise Unfit("no sample shares its label with another, so there is nothing to find", "label pairs or groups")

    def outcomes(self) -> tuple[Array, Array] | None:
        plain = self.options.relevant == "label" and self.options.measure == "hit"
        return (self.found > 0, self.counts) if plain else None

    def values(self, weights: Array) -> Array:
        return weighted(weights, self.found * self.counts, self.counts)


class Likeness(Plain):
    """similarity: the embeddings, float32 `(samples, size)`; what is resampled are the samples' cosines."""

    def __init__(self, options: SimilarityOptions) -> None:
        self.options = options
        self.parts: list[Array] = []
        self.cosines = np.empty(0)

    def add(self, batch: Batch, outputs: Mapping[str, Array]) -> None:
        self.parts.append(_embeddings(batch, outputs, self.options.output))

    def finish(self, source: Scorer | None) -> None:
        mine = np.concatenate(self.parts)
        own = np.concatenate(source.parts) if isinstance(source, Likeness) else mine
        if mine.shape != own.shape:
            raise Unfit(f"embeddings of {mine.shape[1]} numbers, the source's have {own.shape[1]}", "keep their size")
        self.cosines = np.einsum("ij,ij->i", *(_unit(rows.astype(np.float64)) for rows in (mine, own)))

    def values(self, weights: Array) -> Array:
        return weighted(weights, self.cosines, np.ones(len(self.cosines)))


def _embeddings(batch: Batch, outputs: Mapping[str, Array], output: str | None) -> Array:
    """A batch's embeddings, float32 `(count, size)`. Raises Unfit."""
    name, array = output_of(outputs, output)
    rows = rows_of(name, array, batch.count)
    if rows.ndim != 2 or rows.dtype.kind != "f":
        raise Unfit(
            f"output {name!r} has {rows.dtype} of shape {rows.shape}, not one embedding per sample",
            "name the output of embeddings with output:, or pool the tokens in the model",
        )
    return rows.astype(np.float32)


def _unit(rows: Array) -> Array:
    """Rows at length one; one of zeros stays so, and is like nothing."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(np.nan_to_num(rows / np.where(norms > 0, norms, 1)))


def _similar(rows: Array) -> Iterator[tuple[int, Array]]:
    """Cosines of a block of samples with all, `(block, samples)`, and the block's first number."""
    unit = _unit(rows)
    for start in range(0, len(unit), ROWS):
        yield start, unit[start : start + ROWS] @ unit.T


def _nearest(rows: Array, k: int) -> Iterator[Array]:
    """The numbers of each sample's k nearest others."""
    for start, near in _similar(rows):
        for offset, line in enumerate(near):
            line[start + offset] = -np.inf
            yield np.argsort(-line, kind="stable")[:k]
