"""The OpenVINO runtime as optkit uses it: imported offline, one Core, failures reported, conversion that is quiet.

`import openvino` sends a telemetry event, as do convert_model and NNCF, without asking (2026.4); here none does.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from optkit.plugin import need

TELEMETRY = "openvino_telemetry"


def load(module: str = "openvino") -> ModuleType:
    """`openvino` or `nncf`, imported so that it finds no telemetry package and takes its own stub.

    Raises UnavailableError. What was imported before, by somebody else, is left as it is.
    """
    if module in sys.modules:
        return sys.modules[module]
    found = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == TELEMETRY}
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        return need(module)
    finally:
        del sys.modules[TELEMETRY]
        sys.modules.update(found)


@functools.cache
def core() -> Any:
    """The process's `openvino.Core`, made once: devices and plugins are looked for only once."""
    return load().Core()


def reason(error: Exception) -> str:
    """What an OpenVINO exception says, without the C++ file names it is wrapped in."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join(said) or str(error).strip() or type(error).__name__


def infer(request: Any, feeds: Mapping[Any, Any], *, share_inputs: bool = False) -> None:
    """Run an `InferRequest` on `feeds`; its outputs are then in the request. Raises RuntimeError where it fails.

    Not `request.infer`: with one thread on a dynamic model (2026.4) that returns as if all were well when a shape does
    not fit, leaving the outputs of the run before, or nothing, in place. Starting and waiting raises. After a failure
    the compiled model stays wrong, for inputs that do fit too: compile it anew.
    """
    request.start_async(feeds, share_inputs=share_inputs)
    request.wait()


@contextmanager
def quiet_conversion() -> Iterator[None]:
    """`openvino.convert_model` without its telemetry, whoever imported it, and with the root logger left as it was."""
    load()
    from openvino.tools.ovc import convert_impl, telemetry_stub, telemetry_utils

    root = logging.getLogger()
    state = root.level, list(root.filters), list(root.handlers)
    before = convert_impl.tm, telemetry_utils.tm
    convert_impl.tm = telemetry_utils.tm = telemetry_stub
    try:
        yield
    finally:
        convert_impl.tm, telemetry_utils.tm = before
        root.level, root.filters, root.handlers = state
