"""The comparisons of the hand-written baselines: real samples in batches, every size of a dim's range, edge values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Feeds = dict[str, np.ndarray]
Infer = Callable[[Feeds], Feeds]


def sweep(arrays: Feeds, batch_sizes: Sequence[int], at: int) -> Iterator[Feeds]:
    """All samples in batches of `at`, then one batch of each size, then two rows of zeros and two of ones."""
    count = len(next(iter(arrays.values())))
    for start in range(0, count, at):
        yield {name: array[start : start + at] for name, array in arrays.items()}
    for size in batch_sizes:
        yield {name: np.take(array, np.arange(size) % count, axis=0) for name, array in arrays.items()}
    yield {name: np.zeros_like(array[:2]) for name, array in arrays.items()}
    yield {name: np.ones_like(array[:2]) for name, array in arrays.items()}


def onnx_infer(onnxruntime: Any, path: Path) -> Infer:
    """An ONNX file as a function, on two threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(None, feeds), strict=True))


def openvino_infer(openvino: Any, path: Path) -> Infer:
    """An OpenVINO IR as a function, in float32 arithmetic, on two threads."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2}
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    name = compiled.output(0).get_any_name()
    return lambda feeds: {name: compiled(feeds)[0].copy()}


def compare(infer: Infer, cases: Sequence[Feeds], reference: Sequence[Feeds]) -> str:
    """Worst cosine and relative L2 over every row of every case."""
    cosine, error = 1.0, 0.0
    for feeds, expected in zip(cases, reference, strict=True):
        for name, answer in infer(feeds).items():
            r, c = expected[name].astype(np.float64), answer.astype(np.float64)
            assert r.shape == c.shape
            assert np.isfinite(c).all()
            r, c = r.reshape(len(r), -1), c.reshape(len(c), -1)
            norms = np.linalg.norm(r, axis=1) * np.linalg.norm(c, axis=1)
            cosine = min(cosine, float(((r * c).sum(1) / norms).min()))
            error = max(error, float((np.linalg.norm(r - c, axis=1) / np.linalg.norm(r, axis=1)).max()))
    return f"worst cosine {cosine:.6f}, worst relative L2 {error:.3g}"
