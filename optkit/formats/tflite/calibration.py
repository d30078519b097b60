"""The calibration data as a TFLite file takes it, and what ai-edge-quantizer's calibrator finds on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.artifact import TensorSpec
from optkit.errors import DataError, StepError, did_you_mean
from optkit.formats.tflite import session as tflite_session
from optkit.formats.tflite.model import Contract
from optkit.plugin import Context, need

if TYPE_CHECKING:
    from optkit.plugin import Tensors


def ranges(
    path: Path, agreed: Contract, recipe: Any, average: bool, limit: int | None, context: Context
) -> tuple[Any, int]:
    """Ranges by tensor name, and the number of samples they are from. Each signature sees all samples.

    recipe: ai-edge-quantizer's, which says what needs a range. average: a moving average of each batch's ends, not the
    ends of all. limit: the most samples. Raises DataError where there are none, StepError for a range that is not
    finite.
    """
    need("ai_edge_quantizer.calibrator", "ai-edge-quantizer")
    from ai_edge_quantizer import calibrator
    from ai_edge_quantizer.utils import qsv_utils

    update = qsv_utils.moving_average_update if average else qsv_utils.min_max_update
    session = tflite_session.TfliteSession(path, agreed, context.threads)
    fitted = calibrator.Calibrator(str(path), num_threads=context.threads, qsv_update_func=update)
    total = _total(limit, context)
    every = tflite_session.combinations(agreed)
    seen = 0
    for number, sizes in enumerate(every):
        seen = 0
        for feed, count in _fitted(agreed, sizes, session, limit, context):
            fitted.calibrate({agreed.key(sizes) if sizes else session.key: [feed]}, recipe)
            seen += count
            done = (number + seen / max(total, 1)) / len(every)
            context.progress(f"calibrating on {seen} of {total} samples", min(done, 1.0))
        if not seen:
            raise _no_samples()
    found = fitted.get_model_qsvs()
    for name, one in found.items():
        _check_finite(name, one)
    return found, seen


def samples(agreed: Contract, limit: int | None, context: Context) -> Iterator[tuple[Tensors, int]]:
    """Feeds of the file's smallest batch by the recipe's names, and the samples in each; what is too long is left out.

    Raises DataError where that leaves none, or an input is missing.
    """
    data = context.data
    assert data is not None
    first = next((spec.shape[0] for spec in agreed.inputs if spec.shape), 1)
    held = min(agreed.sizes[first]) if isinstance(first, str) and first in agreed.sizes else None
    total, seen = _total(limit, context), 0
    for feed in data.feeds(_batch(first, held, context)):
        tensors = {spec.name: _picked(feed, spec) for spec in agreed.inputs}
        if _longer(agreed, tensors, {name: max(sizes) for name, sizes in agreed.sizes.items()}):
            continue
        have = min(len(next(iter(tensors.values()))), total - seen)
        seen += have
        yield tensors, have
        if seen >= total:
            return
    if not seen:
        raise _no_samples()


def _fitted(
    agreed: Contract, sizes: Mapping[str, int], session: tflite_session.TfliteSession, limit: int | None,
    context: Context,
) -> Iterator[tuple[Tensors, int]]:  # fmt: skip
    """Feeds of one signature as the file takes them, and the real samples in each.

    One sample at a time where the batch resizes: padding would count as data. A fixed batch is filled up with its last
    sample, a fixed length with the zeros that a session pads with.
    """
    data = context.data
    assert data is not None
    first = next((spec.shape[0] for spec in agreed.inputs if spec.shape), 1)
    held = first if isinstance(first, int) else sizes.get(first)
    left = _total(limit, context)
    for feed in data.feeds(_batch(first, held, context)):
        tensors = {spec.name: _picked(feed, spec) for spec in agreed.inputs}
        have = len(next(iter(tensors.values())))
        if _longer(agreed, tensors, sizes):
            continue  # than this signature: the next one sees it
        yield session.fitted(tensors, sizes, rows=held), min(have, left)
        left -= have
        if left <= 0:
            return


def _total(limit: int | None, context: Context) -> int:
    assert context.data is not None
    return min(len(context.data), limit or len(context.data))


def _batch(first: int | str, held: int | None, context: Context) -> int:
    least = context.dims[first].min if isinstance(first, str) and first in context.dims else 1
    return held or (first if isinstance(first, int) else least)


def _longer(agreed: Contract, tensors: Tensors, sizes: Mapping[str, int]) -> bool:
    return any(
        n > sizes[d]
        for spec in agreed.inputs
        for d, n in zip(spec.shape or (), tensors[spec.name].shape, strict=False)
        if d in agreed.padded and d in sizes
    )


def _picked(feed: Mapping[str, Any], spec: TensorSpec) -> Any:
    if spec.name not in feed:
        raise DataError(f"the calibration data has no {spec.name!r}", subject="data",
                        hint=did_you_mean(spec.name, feed))  # fmt: skip
    return feed[spec.name]


def _no_samples() -> DataError:
    return DataError("the calibration data has no samples", subject="data", hint="name a dataset with samples")


def _check_finite(name: str, found: Mapping[str, Any]) -> None:
    import numpy as np

    for end in ("min", "max"):
        if end in found and not np.isfinite(found[end]).all():
            raise StepError(f"tensor {name!r} becomes NaN or infinite on the calibration data", subject="data",
                            hint="look for the sample that does it, or exclude the operator")  # fmt: skip
