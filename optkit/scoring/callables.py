"""A metric of the user's: a function of predictions and targets, or a class with update and compute."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from optkit.data.usercode import UserCode
from optkit.errors import UserError
from optkit.scoring.base import Array, Batch, Plain, Unfit, label_of, output_of, rows_of
from optkit.spec.metricspec import PythonOptions, code_files

LIMIT_BYTES = 2 << 30
"""Predictions of one model held at most."""


def _fault(name: str, what: str, hint: str = "", details: str = "") -> UserError:
    return UserError(f"metric {name}: {what}", hint=hint, subject=f"metric.{name}", details=details)


class Called(Plain):
    """python: holds each sample's prediction and target, and calls `(predictions, targets, **kwargs) -> number`.

    predictions: a list with one array per sample, without the batch axis; a dict of them where the recipe names several
    outputs. targets: a list with one label per sample, as the dataset has it; Nones without labels. A class is made
    with the kwargs, given everything by one call of `update`, and asked with `compute`; where all predictions have one
    shape they come as one array, and so do targets. A class of torch's gets tensors.
    """

    def __init__(self, options: PythonOptions, base: Path, name: str) -> None:
        self.options = options
        self.code = UserCode(options.call, code_files(options.call, base), partial(_fault, name), "a number")
        self.target = self.code.load()
        self.predictions: list[Any] = []
        self.labels: list[Any] = []
        self.bytes = 0

    def add(self, batch: Batch, outputs: Mapping[str, Array]) -> None:
        names = self.options.outputs or (self.options.output,)
        found = dict(output_of(outputs, name) for name in names)
        rows = {name: rows_of(name, array, batch.count) for name, array in found.items()}
        self.bytes += sum(array.nbytes for array in rows.values())
        if self.bytes > LIMIT_BYTES:
            raise Unfit(
                f"the predictions of {batch.start + batch.count} samples take over {LIMIT_BYTES >> 30} GiB",
                "limit: fewer samples in the dataset, or let the model give something smaller",
            )
        for row in range(batch.count):
            each = {name: array[row].copy() for name, array in rows.items()}
            self.predictions.append(each if self.options.outputs else next(iter(each.values())))
            has = batch.labels is not None
            several = has and self.options.target is None
            label = batch.labels[row] if several and batch.labels is not None else None
            self.labels.append(label_of(batch, row, self.options.target) if has and not several else label)

    def values(self, weights: Array) -> Array:
        made = np.empty(len(weights))
        for index, row in enumerate(weights):
            chosen = np.repeat(np.arange(len(row)), row)
            made[index] = self._number([self.predictions[i] for i in chosen], [self.labels[i] for i in chosen])
        return made

    def _number(self, predictions: list[Any], labels: list[Any]) -> float:
        kwargs = self.options.kwargs
        target: Any = self.target
        with self.code.running("calling it"):
            if isinstance(target, type) and hasattr(target, "update") and hasattr(target, "compute"):
                metric = target(**kwargs)
                torch = any(base.__module__.partition(".")[0] == "torch" for base in target.__mro__)
                metric.update(_whole(predictions, torch), _whole(labels, torch))
                made = metric.compute()
            else:
                made = target(predictions, labels, **kwargs)
        try:
            return float(made)
        except (TypeError, ValueError) as error:
            raise Unfit(
                f"{self.options.call} returned {made!r:.60}, not a number",
                "return one number, higher or lower is better",
            ) from error


def _whole(items: list[Any], torch: bool) -> Any:
    """The items as one array, or tensor, where they have one shape."""
    try:
        array = np.stack([np.asarray(item) for item in items])
    except ValueError:
        return items
    if array.dtype.kind not in "biuf":
        return items
    if torch:
        import torch as module

        return module.from_numpy(array)
    return array
