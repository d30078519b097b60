"""Runs TFLite models with LiteRT (ai-edge-litert) on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

from pydantic import Field, model_validator

from optkit.artifact import Artifact
from optkit.errors import UnavailableError
from optkit.formats.tflite import inside as tflite_inside
from optkit.formats.tflite import look as tflite_look
from optkit.formats.tflite import model as tflite_model
from optkit.formats.tflite import session as tflite_session
from optkit.plugin import Runner, Settings, settings_of


class TfliteSettings(Settings):
    """How LiteRT runs a file on the CPU."""

    kernels: Literal["xnnpack", "builtin", "reference"] | None = Field(
        None,
        description="xnnpack: XNNPACK must run it; builtin: LiteRT's own; reference: slow and plain, for comparison",
    )
    xnnpack_latest_features: bool | None = Field(None, description="XNNPACK operators that are not on by default yet")

    @model_validator(mode="after")
    def _together(self) -> TfliteSettings:
        if self.xnnpack_latest_features and self.kernels in ("builtin", "reference"):
            raise ValueError(f"xnnpack_latest_features with kernels: {self.kernels}, where XNNPACK runs nothing")
        return self


@contextmanager
def open_model(
    artifact: Artifact, device: str = "cpu", threads: int = 1, precision: str | None = None
) -> Iterator[tflite_session.TfliteSession]:
    """An open session, by the contract in the file (see `tflite_model.Contract`).

    An input that the file holds as int32 takes int64 where the artifact's signature says so. Raises UnavailableError
    for a device other than the CPU and for any precision, SourceError where the file is broken.
    """
    if device.partition(":")[0] != "cpu":
        raise UnavailableError(f"LiteRT runs on the CPU here, not on {device!r}", hint="device: cpu")
    if precision is not None:
        raise UnavailableError(
            f"LiteRT computes in the precision of the file and cannot be asked for {precision}",
            hint="convert the model itself: tflite.quantize",
        )
    agreed = tflite_model.contract(tflite_model.read(artifact.path))
    if artifact.signature is not None:
        agreed = tflite_session.widened(agreed, artifact.signature.inputs)
    chosen = settings_of(artifact, TfliteSettings)
    connect = None
    if chosen.model_fields_set:
        connect = partial(tflite_model.interpreter, artifact.path, threads, kernels=chosen.kernels or "",
                          latest=bool(chosen.xnnpack_latest_features))  # fmt: skip
    session = tflite_session.TfliteSession(artifact.path, agreed, threads, connect)
    if chosen.kernels == "xnnpack" and "XNNPACK" not in session.provider:
        raise UnavailableError(f"XNNPACK runs nothing of {artifact.path.name}: {session.provider}",
                               hint="leave kernels out")  # fmt: skip
    yield session


RUNNER = Runner(
    format="tflite",
    version=1,
    main=tflite_model.MAIN,
    suffixes=(".tflite",),
    describe=tflite_model.describe,
    open=open_model,
    inspect=tflite_look.inspect,
    tools=("ai-edge-litert",),
    modules=("optkit.formats.warm.tflite",),
    settings=TfliteSettings,
    inside=(tflite_inside.inside,),
)
