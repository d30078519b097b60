"""Importing this imports ONNX Runtime's quantiser: for a worker that would idle."""

from __future__ import annotations

from optkit.plugin import need

need("onnxruntime.quantization")
