"""Importing this imports litert-torch, and torch with it: for a worker that would idle."""

from __future__ import annotations

from optkit.formats.tflite.torch import load

load()
