"""onnx.to_tensorrt: an engine for NVIDIA GPUs, by TensorRT 10, TensorRT 11 or TensorRT-RTX.

Precision is what the graph says: put `onnx.fp16`, or `onnx.quantize` with `for: tensorrt`, before this step. TensorRT
11 has no flags for it any more, and 10 is told to keep to the graph's types.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from optkit.artifact import Artifact, Dim, Signature, TensorSpec, digest_file
from optkit.errors import SourceError, StepError
from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx.refusal import Refusal, module_of, refused
from optkit.formats.tensorrt import engine as tensorrt_engine
from optkit.formats.tensorrt import rules as tensorrt_rules
from optkit.plugin import Context, Options, Pass

_PRODUCT_LAYERS = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")


class OnnxToTensorRT(Options):
    """What the engine is built for. An option that a builder does not have is refused, never left out."""

    builder: Literal["auto", "tensorrt_rtx", "tensorrt"] = Field(
        "auto", description="auto: TensorRT-RTX where it is installed (it needs no GPU to build), else full TensorRT"
    )
    compute_capability: tuple[str, ...] = Field((), description=(
        'GPUs to build for ahead of time, such as ["8.6", "8.9"] (TensorRT-RTX); unless given any from 8.0 on. Full '
        "TensorRT builds for the GPU of this machine"))  # fmt: skip
    workspace_mib: int | None = Field(
        None, gt=0, description="MiB that layers may use as scratch memory; unless given all that the GPU has"
    )
    timing_cache: str | None = Field(
        None, description="a file that keeps measured kernel times for the next build (full TensorRT)"
    )
    version_compatible: bool = Field(
        False, description="an engine that later TensorRT versions run too, somewhat slower (full TensorRT)"
    )
    hardware_compatible: Literal["none", "ampere_plus", "same_compute_capability"] = Field(
        "none", description="an engine that other GPUs run too, somewhat slower (full TensorRT)"
    )
    tf32: bool = Field(False, description="let float32 products round to TF32's 10 bits: faster, and in need of bounds")
    optimization_level: int | None = Field(
        None, ge=0, le=5, description="how long to look for fast kernels: 0 shortest, 5 longest, 3 unless given"
    )

    @field_validator("compute_capability", mode="before")
    @classmethod
    def _numbers(cls, value: Any) -> Any:
        listed = value if isinstance(value, list | tuple) else [value]
        given = [str(item) for item in listed]
        for text in given:
            if not re.fullmatch(r"\d{1,2}\.\d", text):
                raise ValueError(f"{text!r} is no compute capability; write it as NVIDIA does, such as 8.9")
        return tuple(dict.fromkeys(given))

    @model_validator(mode="after")
    def _consistent(self) -> OnnxToTensorRT:
        if self.builder == "tensorrt" and self.compute_capability:
            raise ValueError("full TensorRT builds for the GPU of this machine; remove compute_capability")
        if self.builder == "tensorrt_rtx" and (asked := self.full_only):
            raise ValueError(f"TensorRT-RTX has no {', '.join(asked)}; remove it, or set builder: tensorrt")
        return self

    @property
    def full_only(self) -> list[str]:
        """The options given that only full TensorRT has."""
        given = {
            "timing_cache": self.timing_cache, "version_compatible": self.version_compatible,
            "hardware_compatible": self.hardware_compatible != "none",
        }  # fmt: skip
        return [name for name, value in given.items() if value]


def run(artifact: Artifact, out_dir: Path, options: OnnxToTensorRT, context: Context) -> dict[str, Any]:
    """Parse the ONNX file by path (external data is found beside it), build, and write engine and sidecar.

    Equal inputs give equal bytes with TensorRT-RTX; full TensorRT picks kernels by timing, so its engines differ.
    Raises StepError that names node and operator of what is refused; NotHereError where the builder needs a GPU.
    """
    builder = tensorrt_engine.choose(options.builder)
    _supported(options, builder)
    trt = tensorrt_engine.load(builder)
    _check_rules(artifact.path, builder)
    log = tensorrt_engine.logger(builder)
    log.messages.clear()
    maker = trt.Builder(log)
    network = maker.create_network(tensorrt_engine.network_flags(trt))  # kept alive while the parser fills it
    parser = trt.OnnxParser(network, log)
    context.progress("reading the graph", None)
    if not parser.parse_from_file(str(artifact.path)):
        raise _refused(parser, builder, artifact.path)
    config = maker.create_builder_config()
    profile = _profile(maker, config, network, artifact, context)
    _configure(trt, config, options, builder)
    cache = _timing_cache(config, options)
    context.progress("building the engine", None)
    blob = maker.build_serialized_network(network, config)
    if blob is None:
        raise _unbuilt(log, builder, artifact.path)
    if cache is not None:
        cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    machine = tensorrt_engine.here()
    capability = (machine.gpus[0].capability,) if builder == "tensorrt" else options.compute_capability
    built = {
        "builder": builder, "version": trt.__version__, "os": machine.os, "machine": machine.machine,
        "compute_capability": list(capability), "options": options.model_dump(mode="json"),
        "profiles": [profile] if profile else [], "signature": _signature(network, artifact).to_json(),
        "compute": _computed(network), "layers": dict(sorted(_layers(network).items())),
    }  # fmt: skip
    tensorrt_engine.write(out_dir, blob, built)
    warned = dict.fromkeys(tensorrt_engine.plain(text) for severity, text in log.messages if severity == "WARNING")
    warnings = [text for text in warned if "has Int64 binding" not in text]  # the signature says so, and it is checked
    return {
        "built_for": tensorrt_engine.target(built), "layers": built["layers"],
        "profiles": built["profiles"], "warnings": warnings, **_inspected(out_dir, built, machine),
    }  # fmt: skip


def confirm(parent: Artifact, artifact: Artifact, options: OnnxToTensorRT, context: Context) -> list[str]:
    """Whether the engine is its sidecar's, for the GPUs and sizes asked for, and in the graph's precision."""
    try:
        built = tensorrt_engine.read(artifact.path)
    except SourceError as error:
        return [error.what]
    complaints = []
    if digest_file(artifact.path) != built["engine"]["sha256"]:
        complaints.append(f"{artifact.path.name} is not the engine that {tensorrt_engine.SIDECAR} describes")
    if options.compute_capability and set(built["compute_capability"]) != set(options.compute_capability):
        listed = ", ".join(built["compute_capability"]) or "no named one"
        complaints.append(f"it is for compute capability {listed}, not {', '.join(options.compute_capability)}")
    ranges = built["profiles"][0] if built["profiles"] else {}
    for spec in (artifact.signature or tensorrt_engine.describe(artifact.path, {})).inputs:
        for axis, name in enumerate(spec.shape or ()):
            dim = context.dims.get(name) if isinstance(name, str) else None
            if dim is None:
                continue
            got = [ranges.get(spec.name, {}).get(end, [None] * (axis + 1))[axis] for end in ("min", "opt", "max")]
            if got != [dim.min, dim.opt, dim.max]:
                complaints.append(f"axis {axis} of input {spec.name} takes {got}, not {[dim.min, dim.opt, dim.max]}")
    for node, asked in tensorrt_rules.wanted(parent.path).items():
        made = built["compute"].get(node)
        if made is None:
            complaints.append(f"no layer of the network stands for the node {node}")
        elif made["dtype"] != asked["dtype"]:
            complaints.append(f"{node} computes in {made['dtype']}, and the graph asks for {asked['dtype']}")
        elif made["quantised"] != asked["quantised"]:
            complaints.append(f"{node} takes {'a float' if asked['quantised'] else 'a quantised'} input")
    return complaints


def _supported(options: OnnxToTensorRT, builder: str) -> None:
    """Refuse what `builder: auto` came to lack. Raises StepError."""
    if builder == "tensorrt_rtx" and (asked := options.full_only):
        raise StepError(f"TensorRT-RTX has no {', '.join(asked)}", subject=f"with.{asked[0]}",
                        hint="remove it, or set with.builder: tensorrt where full TensorRT is installed")  # fmt: skip
    if builder == "tensorrt" and options.compute_capability:
        raise StepError("full TensorRT builds for the GPU of this machine alone", subject="with.compute_capability",
                        hint="set with.builder: tensorrt_rtx, or remove it")  # fmt: skip


def _check_rules(path: Path, builder: str) -> None:
    """Raise StepError for types and integers that TensorRT does not take.

    Its parser takes some of them without a word: uint8 activations whose zero point is 0 become int8, which clips
    their upper half.
    """
    model = onnx_model.load(path, weights=False)
    found = [*tensorrt_rules.types(model), *tensorrt_rules.quantisation(model, path.parent)]
    if found:
        raise StepError(
            f"{tensorrt_engine.TITLES[builder]} cannot take {_named(found[0])}: {found[0].what}"
            + (f" (and {len(found) - 1} more)" if len(found) > 1 else ""),
            hint=found[0].hint,
            details="\n".join(f"{_named(refusal)}: {refusal.what}" for refusal in found),
        )


def _named(refusal: Refusal) -> str:
    where = f"{refusal.operator} {refusal.node!r}" if refusal.operator else "the graph"
    return where + (f" of the torch module {refusal.module}" if refusal.module else "")


def _unbuilt(log: Any, builder: str, path: Path) -> StepError:
    """What a builder's errors mean; the ONNX node and its torch module are named where a layer of theirs is."""
    said = tensorrt_engine.last_words(log)
    node = tensorrt_rules.blamed(said, onnx_model.load(path, weights=False).graph.node)
    where = "" if node is None else f", because of {_named(refused(node, '', ''))}"
    return StepError(
        f"{tensorrt_engine.TITLES[builder]} could not build the engine{where}: {said}",
        hint=tensorrt_rules.remedy("" if node is None else node.op_type, said),
        details="\n".join(text for _, text in log.messages),
    )


def _refused(parser: Any, builder: str, path: Path) -> StepError:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    lines = [f"{e.node_operator() or 'the graph'} {e.node_name()}: {e.desc()}" for e in errors]
    if not errors:
        what = f"{tensorrt_engine.TITLES[builder]} cannot read the graph"
        return StepError(what, hint=tensorrt_rules.remedy("", ""))
    first = errors[0]
    operator, name = first.node_operator(), first.node_name()
    said = tensorrt_engine.plain(first.desc().removeprefix(f"Invalid Node - {name}").strip())
    where = f"{operator} {name!r}" if operator else "the graph"
    nodes = onnx_model.load(path, weights=False).graph.node
    if operator and 0 <= first.node() < len(nodes) and (module := module_of(nodes[first.node()])):
        where += f" of the torch module {module}"
    said = "it has no such operator" if tensorrt_rules.unknown(said) else said
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return StepError(
        f"{tensorrt_engine.TITLES[builder]} refuses {where}: {said}{more}",
        hint=tensorrt_rules.remedy(operator, said),
        details="\n".join(lines),
    )


def _profile(maker: Any, config: Any, network: Any, artifact: Artifact, context: Context) -> dict[str, Any]:
    """The sizes each dynamic input may take, set as the one optimisation profile; empty without a dynamic input."""
    profile, sizes = maker.create_optimization_profile(), {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if tensor.is_shape_tensor:
            raise StepError(
                f"input {tensor.name!r} holds sizes that shapes are computed from: its values would need a range",
                subject=f"inputs.{tensor.name}",
                hint="make it a constant of the model, or compute it from the shape of another input",
            )
        if all(size >= 0 for size in shape):
            continue
        ends: list[list[int]] = [[], [], []]
        for axis, size in enumerate(shape):
            dim = Dim(size, size, size) if size >= 0 else _dim(tensor.name, axis, artifact, context)
            for end, value in zip(ends, (dim.min, dim.opt, dim.max), strict=True):
                end.append(value)
        profile.set_shape(tensor.name, *ends)
        sizes[tensor.name] = dict(zip(("min", "opt", "max"), ends, strict=True))
    if sizes and config.add_optimization_profile(profile) < 0:
        raise StepError(f"TensorRT takes no profile with the sizes {json.dumps(sizes)}", subject="dims",
                        hint="each dim needs min <= opt <= max")  # fmt: skip
    return sizes


def _dim(tensor: str, axis: int, artifact: Artifact, context: Context) -> Dim:
    signatures = [artifact.signature.inputs if artifact.signature else (), context.inputs]
    for spec in (spec for inputs in signatures for spec in inputs if spec.name == tensor):
        name = spec.shape[axis] if spec.shape and axis < len(spec.shape) else None
        if isinstance(name, str) and name in context.dims:
            return context.dims[name]
    raise StepError(f"axis {axis} of input {tensor!r} is dynamic and has no range", subject="dims",
                    hint="name it in inputs: and give it min, opt and max under dims:")  # fmt: skip


def _configure(trt: Any, config: Any, options: OnnxToTensorRT, builder: str) -> None:
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible != "none":
        level = getattr(trt.HardwareCompatibilityLevel, options.hardware_compatible.upper(), None)
        if level is None:
            raise StepError(f"TensorRT {trt.__version__} has no level {options.hardware_compatible}",
                            subject="with.hardware_compatible", hint="ampere_plus")  # fmt: skip
        config.hardware_compatibility_level = level
    if builder == "tensorrt":
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # so that the engine tells its layers' precisions
    known = {f"{int(n[2:-1])}.{n[-1]}": n for n in getattr(trt, "ComputeCapability", type).__dict__ if n[:2] == "SM"}
    if options.compute_capability:
        config.num_compute_capabilities = len(options.compute_capability)
    for index, capability in enumerate(options.compute_capability):
        if capability not in known:
            numbers = ", ".join(sorted(known, key=lambda text: [int(part) for part in text.split(".")]))
            raise StepError(f"TensorRT-RTX {trt.__version__} does not build for compute capability {capability}",
                            subject="with.compute_capability",
                            hint=f"one of: {numbers}")  # fmt: skip
        config.set_compute_capability(getattr(trt.ComputeCapability, known[capability]), index)


def _timing_cache(config: Any, options: OnnxToTensorRT) -> Path | None:
    if options.timing_cache is None:
        return None
    path = Path(options.timing_cache).expanduser()
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise StepError(f"the timing cache {path} is damaged, or of another GPU or version",
                        subject="with.timing_cache", hint="delete it, or name another file")  # fmt: skip
    return path


def _signature(network: Any, artifact: Artifact) -> Signature:
    """What the network takes and gives, its dynamic dims named as in the ONNX file."""
    known = artifact.signature

    def specs(count: int, get: Any, before: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
        named = {spec.name: spec.shape or () for spec in before}
        found = []
        for tensor in (get(index) for index in range(count)):
            was = named.get(tensor.name, ())
            shape = tuple(
                size if size >= 0 else was[axis] if axis < len(was) else f"{tensor.name}_{axis}"
                for axis, size in enumerate(tuple(tensor.shape))
            )
            found.append(TensorSpec(tensor.name, tensorrt_engine.dtype_name(tensor.dtype), shape))
        return tuple(found)

    return Signature(
        specs(network.num_inputs, network.get_input, known.inputs if known else ()),
        specs(network.num_outputs, network.get_output, known.outputs if known else ()),
    )


def _layers(network: Any) -> Counter[str]:
    return Counter(network.get_layer(index).type.name.lower() for index in range(network.num_layers))


def _computed(network: Any) -> dict[str, dict[str, Any]]:
    """What each product of the graph computes in: ONNX node to layer, dtype, and whether its input is quantised."""
    makers: dict[str, str] = {}
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    for layer in layers:
        for index in range(layer.num_outputs):
            makers[layer.get_output(index).name] = layer.type.name
    found: dict[str, dict[str, Any]] = {}
    for layer in layers:
        if layer.type.name not in _PRODUCT_LAYERS:
            continue
        told = re.search(r"\[ONNX Layer: (.*?)\]", layer.metadata)
        first = layer.get_input(0)
        found.setdefault(told[1] if told else layer.name, {
            "layer": layer.type.name.lower(), "dtype": tensorrt_engine.dtype_name(first.dtype),
            "quantised": makers.get(first.name) == "DEQUANTIZE",
        })  # fmt: skip
    return found


def _inspected(folder: Path, built: dict[str, Any], machine: tensorrt_engine.Machine) -> dict[str, Any]:
    """The engine's own layers and what they give, where this machine can load it; else whence the precisions come."""
    if tensorrt_engine.refusal(built, machine):
        return {"precisions_from": "the network before the build: this machine cannot load the engine"}
    from optkit.formats.tensorrt import cuda_driver

    trt = tensorrt_engine.load(built["builder"])
    with cuda_driver.gpu(next(g.index for g in machine.gpus if tensorrt_engine.fits(built, g.capability))):
        runtime, engine = tensorrt_engine.deserialise(folder / tensorrt_engine.MAIN, built)
        text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        del engine, runtime
    layers = json.loads(text).get("Layers", [])
    given = Counter(
        str(tensor.get("Format/Datatype") or tensor.get("DataType", "?")) for layer in layers if isinstance(layer, dict)
        for tensor in layer.get("Outputs", ())
    )  # fmt: skip
    return {"precisions_from": "the engine inspector", "engine_layers": len(layers), "engine_outputs": dict(given)}


PASS = Pass(
    name="onnx.to_tensorrt",
    version=2,
    source="onnx",
    target="tensorrt",
    summary="build a TensorRT engine, in the precision the graph has",
    run=run,
    confirm=confirm,
    options=OnnxToTensorRT,
    fidelity="rounding",
    tools=("onnx", *tensorrt_engine.distributions()),
    machine=lambda options: tensorrt_engine.built_for_here(options.builder),
    timeout_seconds=7200.0,
)
