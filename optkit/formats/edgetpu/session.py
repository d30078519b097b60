"""A compiled file on an Edge TPU: the library that drives one, and an interpreter whose ports go by position."""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optkit.errors import NotHereError, SourceError
from optkit.formats.tflite.noise import captured
from optkit.plugin import need

LIBRARY = {"darwin": "libedgetpu.1.dylib", "win32": "edgetpu.dll"}.get(sys.platform, "libedgetpu.so.1")


class Positions:
    """An interpreter as `TfliteSession` calls it, with one signature made of its graph's inputs and outputs in order.

    ports: input and output names with their positions, as `edgetpu_file.ports` gives them.
    """

    def __init__(self, interpreter: Any, ports: Mapping[str, Mapping[str, int]], key: str) -> None:
        interpreter.allocate_tensors()
        self._interpreter, self._key = interpreter, key
        self._inputs, self._outputs = (
            {name: details[position] for name, position in ports[side].items()}
            for side, details in (
                ("inputs", interpreter.get_input_details()),
                ("outputs", interpreter.get_output_details()),
            )
        )

    def get_signature_list(self) -> dict[str, Any]:
        return {self._key: {"inputs": list(self._inputs), "outputs": list(self._outputs)}}

    def get_signature_runner(self, key: str) -> Positions:
        if key != self._key:
            raise ValueError(f"there is no signature {key!r}")
        return self

    def get_input_details(self) -> dict[str, Any]:
        return self._inputs

    def get_output_details(self) -> dict[str, Any]:
        return self._outputs

    def __call__(self, **feeds: Any) -> dict[str, Any]:
        for name, value in feeds.items():
            self._interpreter.set_tensor(self._inputs[name]["index"], value)
        self._interpreter.invoke()
        return {name: self._interpreter.get_tensor(detail["index"]) for name, detail in self._outputs.items()}


def delegate(option: str) -> tuple[Any, Any]:
    """The interpreter's module and the delegate for an Edge TPU: "" the first, ":1" by number, "usb", "pci:0".

    Raises NotHereError where the library or the device is not there.
    """
    try:
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise NotHereError(
            f"an Edge TPU needs Coral's runtime, {LIBRARY}, which this machine has not",
            hint="run optkit verify where an Edge TPU is; Coral's package libedgetpu1-std brings the library",
        ) from error
    runtime = _runtime()
    try:
        with captured():
            return runtime, runtime.load_delegate(LIBRARY, {"device": option} if option else {})
    except (ValueError, RuntimeError, OSError, AttributeError) as error:
        place = f" {option!r}" if option else ""
        raise NotHereError(
            f"{LIBRARY} finds no Edge TPU{place} on this machine, or may not use it",
            details=str(error),
            hint="plug it in; check the rights to its USB device, and that no other process has it",
        ) from error


def _runtime() -> Any:
    """tflite_runtime where it is installed, which the library's builds go with; else LiteRT."""
    try:
        return importlib.import_module("tflite_runtime.interpreter")
    except ImportError:
        return need("ai_edge_litert.interpreter", "ai-edge-litert")


def interpreter(path: Path, runtime: Any, delegates: list[Any], threads: int) -> Any:
    """An interpreter of a compiled file. Raises SourceError for one that is damaged."""
    try:
        with captured():
            return runtime.Interpreter(model_path=str(path), experimental_delegates=delegates, num_threads=threads)
    except (ValueError, RuntimeError, OSError) as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(
            f"{path.name} cannot be opened ({why})",
            subject="model",
            details=str(error),
            hint="compile it again with tflite.to_edgetpu, for the runtime that is installed (min_runtime_version)",
        ) from error
