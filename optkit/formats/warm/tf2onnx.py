"""Importing this imports TensorFlow and tf2onnx: for a worker that would idle."""

from __future__ import annotations

from optkit.formats.tensorflow.core import load
from optkit.plugin import need

load()
need("tf2onnx")
