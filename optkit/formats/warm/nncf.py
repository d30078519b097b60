"""Importing this imports NNCF as `openvino_nncf.nncf_session` does: for a worker that would idle."""

from __future__ import annotations

from optkit.formats.openvino.nncf import preload

preload()
