"""Importing this imports OpenVINO as `openvino_core.load` does, and its CPU plugin: for a worker that would idle."""

from __future__ import annotations

from optkit.formats.openvino.core import core

core().get_versions("CPU")
