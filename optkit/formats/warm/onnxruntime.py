"""Importing this imports ONNX and ONNX Runtime: for a worker that would idle."""

from __future__ import annotations

from optkit.plugin import need

need("numpy")
need("onnx")
need("onnxruntime")
