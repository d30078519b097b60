"""Outputs compared, and what the tests of the metrics ask of the result."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from optkit.parity.metrics import Comparison

Outputs = dict[str, np.ndarray[Any, Any]]


def compare(reference: Outputs, candidate: Outputs, samples: int | None = None, **more: Any) -> Any:
    comparison = Comparison()
    comparison.add(reference, candidate, samples, **more)
    return checked(comparison)


def checked(comparison: Comparison) -> dict[str, Any]:
    """The result, which must survive JSON with no NaN or infinity in it."""
    result = comparison.result()
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    return result


def kinds(result: dict[str, Any]) -> set[tuple[str, str | None]]:
    return {(problem["kind"], problem["output"]) for problem in result["problems"]}


def worst(result: dict[str, Any], metric: str, output: str = "logits") -> float:
    return float(result["outputs"][output][metric]["worst"])
