"""Importing this imports Keras, on TensorFlow, as `tf_core.keras` does: for a worker that would idle."""

from __future__ import annotations

from optkit.formats.tensorflow.core import keras

keras()
