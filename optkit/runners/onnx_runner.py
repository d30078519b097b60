"""Runs ONNX models with onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from optkit.artifact import Artifact, Signature
from optkit.errors import UnavailableError, did_you_mean
from optkit.formats.onnx import inside as onnx_inside
from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx import session as onnx_session
from optkit.plugin import Runner, Settings, checked_feeds, settings_of

if TYPE_CHECKING:
    from optkit.plugin import Tensors

_PROVIDERS = {
    "cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider",
    "tensorrt_rtx": "NvTensorRTRTXExecutionProvider", "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider", "directml": "DmlExecutionProvider", "migraphx": "MIGraphXExecutionProvider",
    "rocm": "ROCMExecutionProvider", "qnn": "QNNExecutionProvider", "xnnpack": "XnnpackExecutionProvider",
}  # fmt: skip


class OnnxSettings(Settings):
    """Session options of onnxruntime, by its own names."""

    graph_optimization_level: Literal["disable", "basic", "extended", "layout", "all"] | None = Field(
        None, description="how far the graph is rewritten on opening; onnxruntime's default is all"
    )
    execution_mode: Literal["sequential", "parallel"] | None = Field(
        None, description="parallel: independent branches at the same time"
    )
    intra_op_num_threads: int | None = Field(None, ge=1, description="threads of one operator; default: threads:")
    inter_op_num_threads: int | None = Field(None, ge=1, description="operators at a time, in parallel mode")
    allow_spinning: bool | None = Field(
        None, description="waiting threads spin; optkit turns it off, workers share cores"
    )
    enable_mem_pattern: bool | None = Field(None, description="plan memory by the first run's shapes")
    enable_cpu_mem_arena: bool | None = Field(None, description="keep freed memory for later")


class OnnxSession:
    """An open model; see `optkit.plugin.Session`."""

    def __init__(self, session: Any, provider: str, signature: Signature) -> None:
        self._session = session
        self._provider = provider
        self._inputs = signature.inputs
        self._outputs = [spec.name for spec in signature.outputs]

    @property
    def provider(self) -> str:
        """The execution provider that was asked for and has started, such as "CPUExecutionProvider"."""
        return self._provider

    def infer(self, tensors: Tensors) -> Tensors:
        """Named inputs to named outputs.

        Raises DataError on a missing or unknown name and on a wrong dtype, rank or fixed size; StepError where
        onnxruntime fails.
        """
        feeds = checked_feeds(tensors, self._inputs, bfloat16="bfloat16")
        with onnx_session.ort_errors("the model"):
            results = self._session.run(self._outputs, feeds)
        return dict(zip(self._outputs, results, strict=True))


@contextmanager
def open_model(
    artifact: Artifact, device: str = "cpu", threads: int = 1, precision: str | None = None
) -> Iterator[OnnxSession]:
    """An open session on a device ("cpu", "cuda", "cuda:1", ...).

    Raises UnavailableError where the device's execution provider is not there or does not start, SourceError where
    the model is broken or incomplete.
    """
    if precision is not None:
        raise UnavailableError(
            f"onnxruntime computes in the precision of the file and cannot be asked for {precision}",
            hint="convert the model itself: onnx.fp16, onnx.quantize",
        )
    kind, _, index = device.partition(":")
    if kind not in _PROVIDERS:
        raise UnavailableError(f"onnxruntime has no device {device!r}", hint=did_you_mean(kind, _PROVIDERS))
    if index and not index.isdigit():
        raise UnavailableError(f"{device!r} is not a device", hint=f"{kind} or {kind}:0")
    signature = onnx_model.describe(artifact.path, artifact.meta)  # names a missing sidecar, which onnxruntime does not
    known = {spec.name: spec.layout for spec in artifact.signature.inputs} if artifact.signature else {}
    inputs = tuple(replace(spec, layout=known.get(spec.name)) for spec in signature.inputs)
    provider = _PROVIDERS[kind]
    first = (provider, {"device_id": index}) if index else provider
    chain = [first] if provider == onnx_session.CPU else [first, onnx_session.CPU]
    chosen = settings_of(artifact, OnnxSettings).model_dump(exclude_none=True)
    session = onnx_session.open_session(artifact.path, threads=threads, providers=chain, chosen=chosen)
    yield OnnxSession(session, provider, replace(signature, inputs=inputs))


def look_inside(artifact: Artifact, threads: int = 1) -> AbstractContextManager[onnx_inside.OnnxInside]:
    """The inner tensors of a model, run on the CPU with the artifact's settings."""
    return onnx_inside.inside(artifact, threads, settings_of(artifact, OnnxSettings).model_dump(exclude_none=True))


RUNNER = Runner(
    format="onnx",
    version=1,
    main=onnx_model.MAIN,
    suffixes=(".onnx",),
    describe=onnx_model.describe,
    open=open_model,
    inspect=onnx_model.inspect,
    tools=("onnxruntime",),
    modules=("optkit.formats.warm.onnxruntime",),
    settings=OnnxSettings,
    inside=(look_inside,),
)
