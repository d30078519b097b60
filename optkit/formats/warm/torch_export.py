"""Importing this imports what torch.export and the ONNX exporter load at their first use: for a worker that would idle.

The operator registry is the dearest part: it parses the signature of some five hundred functions, and remembers them.
"""

from __future__ import annotations

import contextlib

from optkit.formats.torch.files import quiet
from optkit.plugin import need

need("torch._dynamo")
need("torch.export._trace")
with contextlib.suppress(ImportError, AttributeError), quiet():  # private: without it the first export is slower
    need("onnxscript")
    need("torch.onnx._internal.exporter._registration").ONNXRegistry.from_torchlib()
