"""Runs OpenVINO IR on any device OpenVINO has here; on CPU in float32 unless another precision is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from optkit.artifact import Artifact, TensorSpec
from optkit.errors import DataError, SourceError, StepError, UnavailableError, did_you_mean
from optkit.formats.openvino import core as openvino_core
from optkit.formats.openvino import inside as openvino_inside
from optkit.formats.openvino import model as openvino_model
from optkit.plugin import Runner, Settings, checked_feeds, settings_of

if TYPE_CHECKING:
    from optkit.plugin import Tensors

_PRECISIONS = {"f32": "file", "bf16": "bfloat16", "f16": "float16"}


class OpenVinoSettings(Settings):
    """Properties of OpenVINO, by its own names."""

    precision: Literal["f32", "bf16", "f16", "default"] | None = Field(
        None, alias="INFERENCE_PRECISION_HINT", description="what it computes in; default: what OpenVINO itself chooses"
    )
    mode: Literal["ACCURACY", "PERFORMANCE"] | None = Field(
        None, alias="EXECUTION_MODE_HINT", description="PERFORMANCE lets it approximate, such as int8 activations"
    )
    goal: Literal["LATENCY", "THROUGHPUT", "CUMULATIVE_THROUGHPUT"] | None = Field(
        None, alias="PERFORMANCE_HINT", description="what it is tuned for"
    )
    streams: int | None = Field(None, alias="NUM_STREAMS", ge=1, description="inferences at a time")
    pinning: bool | None = Field(None, alias="ENABLE_CPU_PINNING", description="threads stay on their cores")
    hyper_threading: bool | None = Field(None, alias="ENABLE_HYPER_THREADING", description="use both threads of a core")

    def arithmetic(self) -> str:
        """The precision that is asked for; "runtime" where OpenVINO chooses, or may approximate."""
        if self.precision == "default" or self.mode == "PERFORMANCE":
            return "runtime"
        return _PRECISIONS[self.precision or "f32"]


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
        named: dict[str, Any] = {}
        for name, value in tensors.items():
            spec = self.inputs[self.aliases[name]] if name in self.aliases else None
            if spec is not None and spec.name in named:
                raise DataError(
                    f"input {spec.name!r} is given twice, also as {name!r}",
                    subject=f"inputs.{name}",
                    hint="give it once",
                )
            named[spec.name if spec is not None else name] = value
        feeds = dict(enumerate(checked_feeds(named, self.inputs, bfloat16="bfloat16").values()))
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


@contextmanager
def open_model(
    artifact: Artifact, device: str = "cpu", threads: int = 1, precision: str | None = None
) -> Iterator[OpenVinoSession]:
    """A session on `artifact`.

    device: "cpu", "gpu", "gpu.1" or "npu". precision: what floating-point operators compute in. float32 (the
    default) also turns off OpenVINO's own approximations (execution mode ACCURACY), so what runs is the file's
    arithmetic; "bfloat16" and "float16" keep what the runtime does for speed, which includes int8 activations for
    compressed weights. It outranks the artifact's settings. Raises UnavailableError for a device or precision that this
    machine does not have, and for a setting that OpenVINO did not take.
    """
    wanted = settings_of(artifact, OpenVinoSettings)
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
    given = wanted.model_dump(by_alias=True, exclude_none=True)
    asked = given.pop("INFERENCE_PRECISION_HINT", None)
    if precision is None and asked is not None:
        hint = None if asked == "default" else asked
    config: dict[str, Any] = {} if hint is None else {"INFERENCE_PRECISION_HINT": hint}
    if hint == "f32":
        config["EXECUTION_MODE_HINT"] = "ACCURACY"
    if kind == "CPU":  # pinned threads of several processes would sit on the same cores
        config |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        config |= {} if wanted.goal else {"NUM_STREAMS": 1}
    config |= given
    aliases = {name: index for index, port in enumerate(model.inputs) for name in port.get_names()}
    aliases |= {spec.name: index for index, spec in enumerate(signature.inputs)}

    def compiled() -> Any:
        try:
            return core.compile_model(model, kind, config)
        except RuntimeError as error:
            why = openvino_core.reason(error)
            raise SourceError(f"OpenVINO cannot compile {artifact.path} for {kind}: {why}", subject="model") from error

    first = compiled()
    _confirm(first, given)
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


def _confirm(compiled: Any, given: Mapping[str, Any]) -> None:
    """Raise UnavailableError for a property that is not what was asked for."""
    for name, value in given.items():
        took = compiled.get_property(name)
        told = getattr(took, "name", str(took))
        if told.upper() != str(value).upper():
            raise UnavailableError(f"OpenVINO has {name} at {told} when asked for {value}", hint=f"leave {name} out")


def _provider(compiled: Any, hint: str | None) -> str:
    """What really runs; raises UnavailableError where it is not what was asked for. hint: None takes any."""
    devices = ",".join(str(name) for name in compiled.get_property("EXECUTION_DEVICES"))
    runs = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if hint is not None and runs != hint:
        raise UnavailableError(f"{devices} computes in {runs} when asked for {hint}", hint="use precision float32")
    return f"{devices} {runs}"


def look_inside(artifact: Artifact, threads: int = 1) -> AbstractContextManager[openvino_inside.OpenVinoInside]:
    """The inner tensors of an IR, run on the CPU in the precision that the artifact's settings ask for."""
    return openvino_inside.inside(artifact, threads, settings_of(artifact, OpenVinoSettings).precision or "f32")


RUNNER = Runner(
    format="openvino",
    version=1,
    main=openvino_model.MAIN,
    suffixes=(".xml",),
    describe=openvino_model.describe,
    open=open_model,
    inspect=openvino_model.inspect,
    tools=("openvino",),
    modules=("optkit.formats.warm.openvino",),
    precisions=frozenset(HINTS),
    settings=OpenVinoSettings,
    inside=(look_inside,),
)
