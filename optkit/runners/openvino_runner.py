"""Runs OpenVINO IR on any device OpenVINO has here; on CPU in float32 unless another precision is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optkit.artifact import Artifact, TensorSpec
from optkit.errors import DataError, SourceError, StepError, UnavailableError, did_you_mean
from optkit.formats import openvino_core, openvino_model
from optkit.plugin import Runner

if TYPE_CHECKING:
    from optkit.plugin import Tensors

HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


@dataclass
class OpenVinoSession:
    """An open IR. `provider` is device and arithmetic as the compiled model reports them: "CPU f32".

    connect: compiles the model and gives a request; called again after a failure.
    """

    provider: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    aliases: Mapping[str, int]
    connect: Callable[[], Any]
    request: Any = None

    def infer(self, tensors: Tensors) -> Tensors:
        """Named inputs to named outputs; the outputs are the caller's own copies.

        Raises DataError for a missing, unknown or twice-named input and for a wrong dtype, rank or fixed dimension;
        StepError where OpenVINO itself fails. A stateful model starts from its initial state each time.
        """
        import numpy as np

        feeds: dict[int, Any] = {}
        for name, value in tensors.items():
            if name not in self.aliases:
                raise DataError(
                    f"the model has no input {name!r}",
                    subject=f"inputs.{name}",
                    hint=did_you_mean(name, [spec.name for spec in self.inputs]),
                )
            index = self.aliases[name]
            if index in feeds:
                raise DataError(
                    f"input {self.inputs[index].name!r} is given twice, also as {name!r}", subject=f"inputs.{name}"
                )
            array = np.asarray(value)
            _check(self.inputs[index], array)
            feeds[index] = array
        if missing := [spec.name for index, spec in enumerate(self.inputs) if index not in feeds]:
            raise DataError(
                f"no value for input {', '.join(missing)}",
                subject=f"inputs.{missing[0]}",
                hint=f"the inputs given are {', '.join(tensors) or 'none'}",
            )
        if self.request is None:
            self.request = self.connect()
        try:
            if self.request.query_state():
                self.request.reset_state()
            openvino_core.infer(self.request, feeds)
            return {name: self.request.get_output_tensor(index).data.copy() for index, name in enumerate(self.outputs)}
        except RuntimeError as error:
            self.request = None
            raise StepError(f"OpenVINO failed while running the model: {openvino_core.reason(error)}") from error


def _check(spec: TensorSpec, array: Any) -> None:
    given = "string" if array.dtype.kind in "USO" else array.dtype.name
    subject = f"inputs.{spec.name}"
    if given != spec.dtype:
        raise DataError(
            f"input {spec.name!r} wants {spec.dtype}, got {given}",
            subject=subject,
            hint=f"convert it: array.astype({spec.dtype!r})",
        )
    if spec.shape is None:
        return
    if array.ndim != len(spec.shape):
        raise DataError(
            f"input {spec.name!r} wants {len(spec.shape)} axes ({spec}), got shape {array.shape}",
            subject=subject,
            hint="add or drop the batch axis",
        )
    wrong = [axis for axis, size in enumerate(spec.shape) if isinstance(size, int) and array.shape[axis] != size]
    if wrong:
        what = f"input {spec.name!r} wants {spec}, got shape {array.shape}: " + ", ".join(
            f"axis {axis} is {array.shape[axis]}, not {spec.shape[axis]}" for axis in wrong
        )
        raise DataError(what, subject=subject, hint=_layout_hint(spec.shape, array.shape))


def _layout_hint(wanted: tuple[int | str, ...], got: tuple[int, ...]) -> str:
    def fits(shape: tuple[int, ...]) -> bool:
        return all(isinstance(size, str) or size == n for size, n in zip(wanted, shape, strict=True))

    if len(wanted) == 4 and fits((got[0], got[3], got[1], got[2])):
        return "it looks like NHWC for an NCHW model: array.transpose(0, 3, 1, 2)"
    if len(wanted) == 4 and fits((got[0], got[2], got[3], got[1])):
        return "it looks like NCHW for an NHWC model: array.transpose(0, 2, 3, 1)"
    return "resize it, or convert the model with that dimension dynamic"


@contextmanager
def open_model(
    artifact: Artifact, device: str = "cpu", threads: int = 1, precision: str | None = None
) -> Iterator[OpenVinoSession]:
    """A session on `artifact`.

    device: "cpu", "gpu", "gpu.1" or "npu". precision: what floating-point operators compute in. float32 (the
    default) also turns off OpenVINO's own approximations (execution mode ACCURACY), so what runs is the file's
    arithmetic; "bfloat16" and "float16" keep what the runtime does for speed, which includes int8 activations for
    compressed weights. Raises UnavailableError for a device or precision that this machine does not have.
    """
    kind, hint = device.upper(), HINTS.get(precision or "float32")
    if hint is None:
        raise UnavailableError(f"OpenVINO has no precision {precision!r}", hint=did_you_mean(precision or "", HINTS))
    core = openvino_core.core()
    if kind != "CPU" and not _has(core.available_devices, kind):
        raise UnavailableError(
            f"OpenVINO has no device {device!r} on this machine",
            hint=f"one of: {', '.join(core.available_devices).lower()}",
        )
    model = openvino_model.read(artifact.path)
    signed = artifact.signature
    names = {"inputs": [s.name for s in signed.inputs], "outputs": [s.name for s in signed.outputs]} if signed else {}
    signature = openvino_model.signature_of(model, names)
    config: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint}
    if hint == "f32":
        config["EXECUTION_MODE_HINT"] = "ACCURACY"
    if kind == "CPU":  # pinned threads of several processes would sit on the same cores
        config |= {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
    aliases = {name: index for index, port in enumerate(model.inputs) for name in port.get_names()}
    aliases |= {spec.name: index for index, spec in enumerate(signature.inputs)}

    def compiled() -> Any:
        try:
            return core.compile_model(model, kind, config)
        except RuntimeError as error:
            why = openvino_core.reason(error)
            raise SourceError(f"OpenVINO cannot compile {artifact.path} for {kind}: {why}", subject="model") from error

    first = compiled()
    yield OpenVinoSession(
        _provider(first, hint),
        signature.inputs,
        tuple(spec.name for spec in signature.outputs),
        aliases,
        lambda: compiled().create_infer_request(),
        first.create_infer_request(),
    )


def _has(available: list[str], kind: str) -> bool:
    return any(name == kind or name.split(".")[0] == kind for name in available)


def _provider(compiled: Any, hint: str) -> str:
    """What really runs; raises UnavailableError where it is not what was asked for."""
    devices = ",".join(str(name) for name in compiled.get_property("EXECUTION_DEVICES"))
    runs = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if runs != hint:
        raise UnavailableError(f"{devices} computes in {runs} when asked for {hint}", hint="use precision float32")
    return f"{devices} {runs}"


RUNNER = Runner(
    format="openvino",
    version=1,
    main=openvino_model.MAIN,
    suffixes=(".xml",),
    describe=openvino_model.describe,
    open=open_model,
    inspect=openvino_model.inspect,
    tools=("openvino",),
    modules=("optkit.formats.warm_openvino",),
    precisions=frozenset(HINTS),
)
