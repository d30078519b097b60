"""An OpenVINO model opened by a pass that tries something out: in the file's own arithmetic, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.errors import SourceError
from optkit.formats.openvino import core as openvino_core
from optkit.formats.openvino import model as openvino_model

if TYPE_CHECKING:
    from optkit.plugin import Tensors


@dataclass(frozen=True)
class Opened:
    """An open model; see `optkit.plugin.Session`."""

    request: Any
    outputs: tuple[str, ...]
    provider: str = "CPU f32"

    def infer(self, tensors: Tensors) -> Tensors:
        """Every output by name."""
        openvino_core.infer(self.request, tensors)
        return {name: self.request.get_output_tensor(index).data.copy() for index, name in enumerate(self.outputs)}


@contextmanager
def opened(path: Path, threads: int) -> Iterator[Opened]:
    """The model in a file. Raises SourceError where OpenVINO cannot compile it."""
    model = openvino_model.read(path)
    config = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY", "INFERENCE_NUM_THREADS": threads,
              "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}  # fmt: skip
    try:
        compiled = openvino_core.core().compile_model(model, "CPU", config)
    except RuntimeError as error:
        raise SourceError(f"OpenVINO cannot compile {path}: {openvino_core.reason(error)}", subject="model") from error
    outputs = tuple(spec.name for spec in openvino_model.signature_of(model).outputs)
    yield Opened(compiled.create_infer_request(), outputs)
