"""The Edge TPU: what its compiler refuses of a TFLite file, and what it leaves on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optkit.formats.edgetpu import rules as edgetpu_rules
from optkit.formats.onnx.refusal import Refusal
from optkit.formats.tflite import model as tflite_model

READS = (".tflite",)
MAKE = (
    "make one first: torch.to_tflite with: {sizes: {batch: [1]}}, then tflite.quantize with: {mode: static, io: int8}"
)


def look(path: Path, model: Any) -> tuple[list[Refusal], list[str]]:
    """What is refused, and what could not be looked at here."""
    tflite_model.interpreter(path)  # it verifies the file
    return list(edgetpu_rules.refusals(model)), []
