"""The toy runner with one fault at a time: what the contract test must find."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from optkit_toy import TOY, Session

from optkit.artifact import Artifact
from optkit.errors import DataError, UnavailableError
from optkit.plugin import Runner

_LEFT_OPEN: list[Any] = []


class Faulty(Session):
    """A toy session that has a fault."""

    def __init__(self, artifact: Artifact, precision: str | None, fault: str) -> None:
        super().__init__(artifact, precision)
        self.fault = fault
        self.buffer: Any = None

    def infer(self, tensors: dict[str, Any]) -> dict[str, Any]:
        name = self.put["name"]
        if self.fault == "takes_unknown" and name in tensors:
            tensors = {name: tensors[name]}
        if self.fault == "takes_any_dtype" and hasattr(tensors.get(name), "astype"):
            tensors = {**tensors, name: tensors[name].astype(self.put["dtype"])}
        if self.fault == "takes_any_shape" and hasattr(tensors.get(name), "reshape"):
            tensors = {**tensors, name: np.resize(tensors[name], (4, 3))}
        try:
            answer = super().infer(tensors)
        except DataError as error:
            if self.fault == "raises_plain":
                raise ValueError(str(error)) from error
            raise
        if self.fault == "renames":
            return {"z": answer["y"]}
        if self.fault == "not_finite":
            answer["y"][0, 0] = np.nan
        if self.fault == "keeps_buffer":
            if self.buffer is None:
                self.buffer = answer["y"]
            self.buffer[:] = answer["y"]
            return {"y": self.buffer}
        return answer


def faulty(fault: str) -> Runner:
    """A toy runner with the named fault."""

    @contextmanager
    def open_model(
        artifact: Artifact, device: str = "cpu", threads: int = 1, precision: str | None = None
    ) -> Iterator[Faulty]:
        if device != "cpu" and fault != "any_device":
            raise UnavailableError(f"no device {device}", hint="cpu")
        if precision not in (None, "float64"):
            raise UnavailableError(f"no precision {precision}", hint="float64")
        if fault == "never_closes":
            _LEFT_OPEN.append(artifact.path.open("rb"))
        yield Faulty(artifact, precision, fault)

    _close_all()
    return replace(TOY, open=open_model)


def _close_all() -> None:
    while _LEFT_OPEN:
        _LEFT_OPEN.pop().close()
