"""Runs ONNX models with onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from optkit.artifact import Artifact, Signature, TensorSpec
from optkit.errors import DataError, UnavailableError, did_you_mean
from optkit.formats import onnx_model, onnx_session
from optkit.plugin import Runner

if TYPE_CHECKING:
    from optkit.plugin import Tensors

_PROVIDERS = {
    "cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider",
    "tensorrt_rtx": "NvTensorRTRTXExecutionProvider", "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider", "directml": "DmlExecutionProvider", "migraphx": "MIGraphXExecutionProvider",
    "rocm": "ROCMExecutionProvider", "qnn": "QNNExecutionProvider", "xnnpack": "XnnpackExecutionProvider",
}  # fmt: skip


class OnnxSession:
    """An open model; see `optkit.plugin.Session`."""

    def __init__(self, session: Any, provider: str, signature: Signature) -> None:
        self._session = session
        self._provider = provider
        self._inputs = {spec.name: spec for spec in signature.inputs}
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
        for name in tensors:
            if name not in self._inputs:
                raise DataError(
                    f"the model has no input {name!r}", hint=did_you_mean(name, self._inputs), subject=f"inputs.{name}"
                )
        for name, spec in self._inputs.items():
            if name not in tensors:
                raise DataError(
                    f"input {name!r} is missing",
                    subject=f"inputs.{name}",
                    hint=f"the model takes {', '.join(self._inputs)}; given: {', '.join(tensors) or 'none'}",
                )
            _check(spec, tensors[name])
        with onnx_session.ort_errors("the model"):
            results = self._session.run(self._outputs, tensors)
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
    session = onnx_session.open_session(artifact.path, threads=threads, providers=chain)
    yield OnnxSession(session, provider, replace(signature, inputs=inputs))


def _check(spec: TensorSpec, value: Any) -> None:
    subject = f"inputs.{spec.name}"
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is None or shape is None:
        raise DataError(
            f"input {spec.name!r} is a {type(value).__name__}, not an array", hint="numpy.asarray(...)", subject=subject
        )
    if spec.dtype != "string" and str(dtype) != spec.dtype:
        raise DataError(
            f"input {spec.name!r} is {dtype}, the model takes {spec.dtype}",
            hint=f"cast it: .astype({spec.dtype!r})",
            subject=subject,
        )
    wanted = spec.shape
    if wanted is None:
        return
    shown = f"({', '.join(map(str, wanted))}{',' if len(wanted) == 1 else ''})"
    if len(shape) != len(wanted):
        batch = len(shape) == len(wanted) - 1
        raise DataError(
            f"input {spec.name!r} has {len(shape)} axes {shape}, the model takes {len(wanted)} {shown}",
            hint="add the batch axis: value[None]" if batch else "check the sample's shape",
            subject=subject,
        )
    if all(isinstance(n, str) or n == m for n, m in zip(wanted, shape, strict=True)):
        return
    raise DataError(
        f"input {spec.name!r} has shape {shape}, the model takes {shown}",
        subject=subject,
        hint=_layout_hint(spec, shape) or "resize or pad the sample to the model's fixed sizes",
    )


def _layout_hint(spec: TensorSpec, shape: tuple[int, ...]) -> str:
    """What to do when the shape fits but for channels in the other place."""
    wanted = spec.shape or ()
    if len(wanted) not in (3, 4, 5) or spec.layout not in (None, "NCHW", "NHWC", "NCL", "NLC", "NCDHW", "NDHWC"):
        return ""
    axes = range(len(wanted))
    for given, order in (("channels last", (0, axes[-1], *axes[1:-1])), ("channels first", (0, *axes[2:], 1))):
        moved = tuple(shape[i] for i in order)
        if all(isinstance(n, str) or n == m for n, m in zip(wanted, moved, strict=True)):
            name = {4: {"channels last": "NHWC", "channels first": "NCHW"}}.get(len(wanted), {}).get(given, given)
            return f"it looks like {name}: give value.transpose{order}"
    return ""


RUNNER = Runner(
    format="onnx",
    version=1,
    main=onnx_model.MAIN,
    suffixes=(".onnx",),
    describe=onnx_model.describe,
    open=open_model,
    inspect=onnx_model.inspect,
    tools=("onnxruntime",),
    modules=("optkit.formats.warm_onnxruntime",),
)
