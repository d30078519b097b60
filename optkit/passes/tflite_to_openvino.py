"""tflite.to_openvino: a float TFLite file as OpenVINO IR, weights as they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from optkit.artifact import Artifact
from optkit.errors import StepError
from optkit.formats.openvino import model as openvino_model
from optkit.formats.tflite import look as tflite_look
from optkit.formats.tflite import model as tflite_model
from optkit.plugin import Context, Options, Pass


class TfliteToOpenVino(Options):
    bound_dims: bool = Field(
        True, description="write the declared ranges of dynamic dims into the model, which GPU and NPU plan memory from"
    )


def run(artifact: Artifact, out_dir: Path, options: TfliteToOpenVino, context: Context) -> dict[str, Any]:
    """Reads the file with OpenVINO's own frontend, and gives inputs and outputs the names of the file's signature.

    Raises StepError for a file that does more at its border than the IR can (several sizes, other dtypes, channels
    last), for a quantised one, and with OpenVINO's reason where it cannot read it.
    """
    ov = openvino_model.load()
    model = tflite_model.read(artifact.path)
    names = _names(model)
    _check(model)
    context.progress("convert", None)
    try:
        with openvino_model.quiet_conversion():
            converted = ov.convert_model(str(artifact.path))
    except Exception as error:  # the frontends and ovc each raise their own classes
        raise StepError(
            f"OpenVINO cannot convert {artifact.path.name}: {openvino_model.reason(error)}",
            subject="model",
            details=str(error),
            hint="convert the model this file was made from: to: openvino",
        ) from error
    ports = [[_named(port, names) for port in side] for side in (converted.inputs, converted.outputs)]
    wanted = [
        [spec.name for spec in context.inputs] or ports[0],
        list(context.outputs) or ports[1],
    ]
    for kind, have, want in zip(("input", "output"), ports, wanted, strict=True):
        if sorted(have) != sorted(want):
            raise StepError(f"OpenVINO finds the {kind}s {', '.join(have)} in the file, not {', '.join(want)}",
                            subject="model", hint="convert the model this file was made from")  # fmt: skip
    openvino_model.rename(converted, *ports)
    if ports != wanted:
        parameters = dict(zip(ports[0], converted.get_parameters(), strict=True))
        results = dict(zip(ports[1], converted.get_results(), strict=True))
        converted = ov.Model([results[n] for n in wanted[1]], [parameters[n] for n in wanted[0]], "model")
    openvino_model.name_by_place(converted)
    bounded = openvino_model.bound_dims(converted, context.inputs, context.dims) if options.bound_dims else ()
    context.progress("write", None)
    known = artifact.signature.outputs if artifact.signature else ()
    openvino_model.save(converted, out_dir, context.inputs, context.dims, outputs=known)
    return {"operators": len(converted.get_ops()), "bounded_dims": list(bounded)}


def _names(model: Any) -> dict[str, str]:
    """A tensor's own name, by which OpenVINO knows it, to the signature's."""
    inputs, outputs = next(iter(tflite_model.signatures(model).values()))
    return {tflite_model.text_of(t.name): name for name, t in (*inputs.items(), *outputs.items())}


def _named(port: Any, names: Mapping[str, str]) -> str:
    own = sorted(port.get_names()) or [port.get_node().get_friendly_name()]
    return next((names[name] for name in own if name in names), own[0])


def _check(model: Any) -> None:
    agreed = tflite_model.contract(model)
    held = {name: tflite_model.dtype_of(t, name) for side in next(iter(tflite_model.signatures(model).values()))
            for name, t in side.items()}  # fmt: skip
    other = [spec.name for spec in (*agreed.inputs, *agreed.outputs) if held.get(spec.name, spec.dtype) != spec.dtype]
    why = ""
    if agreed.sizes:
        why = f"it holds {', '.join(agreed.sizes)} at some sizes, in a signature each"
    elif agreed.channels_last:
        why = f"{agreed.channels_last[0]!r} has its channels last in the file"
    elif other:
        why = f"{other[0]!r} is {held[other[0]]} in the file"
    elif any(tflite_model.is_quantised(t) for graph in model.subgraphs for t in graph.tensors):
        why = "it is quantised"
    if why:
        raise StepError(f"this file cannot become an OpenVINO IR: {why}", subject="from",
                        hint="convert the model it was made from: to: openvino, then openvino.quantize")  # fmt: skip


def confirm(parent: Artifact, artifact: Artifact, options: TfliteToOpenVino, context: Context) -> list[str]:
    """Re-reads the IR: names and dtypes as declared, and weights in the types that the TFLite file has."""
    signature = openvino_model.describe(artifact.path)
    complaints = []
    for kind, got, want in (
        ("input", [s.name for s in signature.inputs], [s.name for s in context.inputs]),
        ("output", [s.name for s in signature.outputs], list(context.outputs)),
    ):
        if want and got != want:
            complaints.append(f"the {kind}s are {', '.join(got)}, not {', '.join(want)}")
    dtypes = {spec.name: spec.dtype for spec in signature.inputs}
    for spec in context.inputs:
        if dtypes.get(spec.name, spec.dtype) != spec.dtype:
            complaints.append(f"input {spec.name!r} is {dtypes[spec.name]}, not {spec.dtype}")
    half = openvino_model.inspect(artifact.path)["compressed"].get("float16", 0)
    if half and "float16" not in tflite_look.inspect(parent.path)["weights"]:
        complaints.append(f"{half} constants are stored in float16")
    return complaints


PASS = Pass(
    name="tflite.to_openvino",
    version=1,
    source="tflite",
    target="openvino",
    summary="Convert a float TFLite file to OpenVINO IR",
    run=run,
    confirm=confirm,
    options=TfliteToOpenVino,
    fidelity="rounding",
    tools=("openvino", "ai-edge-litert"),
    modules=("optkit.formats.warm.openvino", "optkit.formats.warm.tflite"),
)
