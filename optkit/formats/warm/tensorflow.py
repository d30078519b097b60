"""Importing this imports TensorFlow as `tf_core.load` does: for a worker that would idle."""

from __future__ import annotations

from optkit.formats.tensorflow.core import load

load()
