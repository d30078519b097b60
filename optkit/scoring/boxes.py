"""Mean average precision of detections, as COCO defines it: greedy matching, 101 recall points, classes averaged.

Follows Lin et al., Microsoft COCO, 2014, and its reference implementation for objects of every size without crowds.
Matching is within an image, so it is done once; a resample only counts images more or less often.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from optkit.scoring.base import Array, Batch, Plain, Unfit, label_of, output_of, rows_of
from optkit.spec.metricspec import MapOptions

RECALLS = np.linspace(0, 1, 101)


class Detections(Plain):
    """map: of each detection its image, class, score and at which thresholds it is right; of each image its objects."""

    def __init__(self, options: MapOptions) -> None:
        self.options = options
        self.levels = np.minimum(np.array(options.iou), 1 - 1e-10)
        self.parts: list[tuple[Array, Array, Array, Array]] = []  # image, class, score, (detections, levels) right
        self.objects: list[Array] = []  # (objects, 2): image, class
        self.images = 0
        self._by_class: list[tuple[Array, Array, Array]] | None = None

    def add(self, batch: Batch, outputs: Mapping[str, Array]) -> None:
        for row, (boxes, scores, labels) in enumerate(self._predictions(batch, outputs)):
            image = self.images
            self.images += 1
            true_boxes, true_labels = self._truth(batch, row)
            kept = scores > self.options.min_score
            boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
            self.objects.append(np.stack([np.full(len(true_labels), image), true_labels], 1))
            for one in np.unique(np.concatenate([labels, true_labels])):
                mine = np.flatnonzero(labels == one)
                mine = mine[np.argsort(-scores[mine], kind="stable")][: self.options.max_detections]
                right = self._match(boxes[mine], true_boxes[true_labels == one])
                self.parts.append((np.full(len(mine), image), np.full(len(mine), one), scores[mine], right))

    def _predictions(self, batch: Batch, outputs: Mapping[str, Array]) -> list[tuple[Array, Array, Array]]:
        """Per image boxes as x1, y1, x2, y2 `(detections, 4)`, scores and class ids `(detections,)`."""
        options = self.options
        if options.boxes is None:
            name, array = output_of(outputs, options.output)
            found = rows_of(name, array, batch.count)
            if found.ndim != 3 or found.shape[-1] != 6:
                raise Unfit(
                    f"output {name!r} has shape {found.shape}, not (batch, detections, 6): corners, score, class",
                    "name the outputs with boxes:, scores: and labels:",
                )
            boxes, scores, labels = found[..., :4], found[..., 4], found[..., 5]
        else:
            parts = {}
            for key in ("boxes", "scores", "labels"):
                if (wanted := getattr(options, key)) is not None:
                    parts[key] = rows_of(*output_of(outputs, wanted), batch.count)
            boxes, scores = parts["boxes"], parts["scores"]
            if scores.ndim == 3:
                labels, scores = parts.get("labels", scores.argmax(-1)), scores.max(-1)
            elif "labels" in parts:
                labels = parts["labels"]
            else:
                what = f"output {options.scores!r} has shape {scores.shape}, without an axis of classes"
                raise Unfit(what, "name the output of class ids with labels:")
        if boxes.ndim != 3 or boxes.shape[-1] != 4 or not boxes.shape[:2] == scores.shape == labels.shape:
            raise Unfit(
                f"boxes have shape {boxes.shape}, scores {scores.shape}, class ids {labels.shape}",
                "boxes are (batch, detections, 4), the others (batch, detections)",
            )
        # A NaN as a score is below every threshold: such a detection does not count as made.
        return [(_corners(b, options.format), np.nan_to_num(s.astype(np.float64), nan=-np.inf), c.astype(np.int64))
                for b, s, c in zip(boxes, scores, np.nan_to_num(labels, nan=-1), strict=True)]  # fmt: skip

    def _truth(self, batch: Batch, row: int) -> tuple[Array, Array]:
        boxes = np.asarray(label_of(batch, row, self.options.target_boxes), np.float64)
        labels = np.asarray(label_of(batch, row, self.options.target_labels))
        boxes = boxes.reshape(-1, 4) if boxes.size == 0 else boxes
        if boxes.ndim != 2 or boxes.shape[1] != 4 or labels.shape != boxes.shape[:1] or labels.dtype.kind not in "iuf":
            raise Unfit(
                f"sample {batch.start + row}: true boxes have shape {boxes.shape}, their class ids {labels.shape}",
                "boxes are (objects, 4), class ids (objects,); pad with class -1",
            )
        real = labels >= 0
        return _corners(boxes[real], self.options.format), labels[real].astype(np.int64)

    def _match(self, found: Array, true: Array) -> Array:
        """Which detections, best first, meet an object that none before them took: `(detections, levels)` bool."""
        right = np.zeros((len(found), len(self.levels)), bool)
        if not len(found) or not len(true):
            return right
        overlap = _overlap(found, true)
        for level, least in enumerate(self.levels):
            free = np.ones(len(true), bool)
            for number in range(len(found)):
                own = np.where(free, overlap[number], -1.0)
                # The last of equal ones, as the reference implementation takes.
                best = len(own) - 1 - int(own[::-1].argmax())
                if own[best] >= least:
                    right[number, level] = True
                    free[best] = False
        return right

    def _classes(self) -> list[tuple[Array, Array, Array]]:
        """Per class that has objects: the images of its detections, best first, where they are right `(levels,
        detections)`, and the images of its objects.
        """
        empty = np.empty(0, np.int64)
        objects = np.concatenate(self.objects) if self.objects else np.empty((0, 2), np.int64)
        if self.parts:
            image, label, score, right = (np.concatenate(column) for column in zip(*self.parts, strict=True))
        else:
            image, label, score, right = empty, empty, np.empty(0), np.empty((0, len(self.levels)), bool)
        order = np.argsort(-score, kind="stable")
        image, label, right = image[order], label[order], right[order]
        return [(image[label == one], right[label == one].T, objects[objects[:, 1] == one, 0])
                for one in np.unique(objects[:, 1])]  # fmt: skip

    def values(self, weights: Array) -> Array:
        if self._by_class is None:
            self._by_class = self._classes()
        made = np.full(len(weights), np.nan)
        for index, row in enumerate(weights):
            each = [_precision(row[images], right, float(row[objects].sum()))
                    for images, right, objects in self._by_class if row[objects].any()]  # fmt: skip
            if each:
                made[index] = float(np.mean(each))
        return made


def _precision(weights: Array, right: Array, objects: float) -> float:
    """Average precision of one class, mean over the levels: `weights` count each detection, best first."""
    if not len(weights):
        return 0.0
    hits = np.cumsum(right * weights, 1)
    made = np.cumsum(weights)
    precision = hits / np.maximum(made, np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    total = 0.0
    for recall, line in zip(hits / objects, precision, strict=True):
        at = np.searchsorted(recall, RECALLS, side="left")
        inside = at < len(line)
        total += float(line[at[inside]].sum()) / len(RECALLS)
    return total / len(right)


def _corners(boxes: Array, form: str) -> Array:
    """Boxes as x1, y1, x2, y2, float64."""
    a, b, c, d = boxes.astype(np.float64).T
    if form == "xywh":
        c, d = a + c, b + d
    elif form == "cxcywh":
        a, b, c, d = a - c / 2, b - d / 2, a + c / 2, b + d / 2
    return np.stack([a, b, c, d], 1)


def _overlap(one: Array, other: Array) -> Array:
    """Intersection over union of each box with each other, `(one, other)`."""
    corner = np.maximum(one[:, None, :2], other[None, :, :2])
    end = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.clip(end - corner, 0, None).prod(-1)
    area = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1) for boxes in (one, other)]
    whole = area[0][:, None] + area[1][None] - shared
    return np.asarray(np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0))
