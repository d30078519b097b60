"""A SavedModel read by OpenVINO's own frontend, without TensorFlow."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import Field

from optkit.artifact import Artifact, Signature
from optkit.errors import StepError
from optkit.formats.openvino import model as openvino_model
from optkit.formats.tensorflow import savedmodel
from optkit.plugin import Context, Options


class ToOpenVino(Options):
    bound_dims: bool = Field(
        True, description="write the declared ranges of dynamic dims into the model, which GPU and NPU plan memory from"
    )


def convert(folder: Path, signature: Signature, out_dir: Path, options: ToOpenVino, context: Context) -> dict[str, Any]:
    """Writes the IR of a SavedModel's default signature, weights as they are.

    Raises StepError that names the operators OpenVINO has no conversion for, and the nodes they are.
    """
    ov = openvino_model.load()
    context.progress("convert", None)
    try:
        with openvino_model.quiet_conversion():
            model = ov.convert_model(str(folder))
    except Exception as error:  # the frontends and ovc each raise their own classes
        raise _failure(folder, error) from error
    model.set_rt_info("SavedModel", ["conversion_parameters", "input_model"])  # not a folder of this machine
    wanted = [[spec.name for spec in side] for side in (signature.inputs, signature.outputs)]
    ports = [[_named(port, names) for port in side] for side, names in zip((model.inputs, model.outputs), wanted,
                                                                            strict=True)]  # fmt: skip
    for kind, have, want in zip(("input", "output"), ports, wanted, strict=True):
        if sorted(have) != sorted(want):
            raise StepError(f"OpenVINO finds the {kind}s {', '.join(have)} in the model, not {', '.join(want)}",
                            subject="model", hint="to: onnx, then to: openvino from that step")  # fmt: skip
    openvino_model.rename(model, *ports)
    if ports != wanted:
        parameters = dict(zip(ports[0], model.get_parameters(), strict=True))
        results = dict(zip(ports[1], model.get_results(), strict=True))
        model = ov.Model([results[n] for n in wanted[1]], [parameters[n] for n in wanted[0]], "model")
    openvino_model.name_by_place(model)
    bounded = openvino_model.bound_dims(model, context.inputs, context.dims) if options.bound_dims else ()
    context.progress("write", None)
    openvino_model.save(model, out_dir, context.inputs, context.dims, outputs=signature.outputs)
    return {"operators": len(model.get_ops()), "bounded_dims": list(bounded)}


def _named(port: Any, names: list[str]) -> str:
    own: list[str] = sorted(port.get_names()) or [port.get_node().get_friendly_name()]
    return next((name for name in own if name in names), own[0])


def _failure(folder: Path, error: Exception) -> StepError:
    text = str(error)
    unknown = re.search(r"No conversion rule found for operations?: (.+)", text) or re.search(
        r"Operation (\w+) has no conversion|No translator found for ([\w, ]+)", text
    )
    if not unknown:
        return StepError(f"OpenVINO cannot convert the SavedModel: {openvino_model.reason(error)}", subject="model",
                         details=text, hint="to: onnx, then to: openvino from that step")  # fmt: skip
    kinds = dict.fromkeys(word.strip(" .'") for group in unknown.groups() if group for word in group.split(","))
    nodes = [(node.op, node.name) for node in savedmodel.serving(folder / savedmodel.MAIN).nodes]
    named = {kind: list(dict.fromkeys(name for op, name in nodes if op == kind))[:3] for kind in kinds}
    where = "; ".join(f"{kind} (node {', '.join(names) or '?'})" for kind, names in named.items())
    return StepError(f"OpenVINO has no conversion for {where}", subject="model", details=text,
                     hint="replace the operator in the model, or deliver it for another runtime")  # fmt: skip


def confirm(parent: Artifact, artifact: Artifact, options: ToOpenVino, context: Context) -> list[str]:
    """Re-reads the IR: names and dtypes as declared, and no weight stored in less than it was."""
    found = openvino_model.describe(artifact.path)
    complaints = []
    for kind, got, want in (
        ("input", [s.name for s in found.inputs], [s.name for s in context.inputs]),
        ("output", [s.name for s in found.outputs], list(context.outputs)),
    ):
        if want and got != want:
            complaints.append(f"the {kind}s are {', '.join(got)}, not {', '.join(want)}")
    dtypes = {spec.name: spec.dtype for spec in found.inputs}
    for spec in context.inputs:
        if dtypes.get(spec.name, spec.dtype) != spec.dtype:
            complaints.append(f"input {spec.name!r} is {dtypes[spec.name]}, not {spec.dtype}")
    half = openvino_model.inspect(artifact.path)["compressed"].get("float16", 0)
    if half:
        complaints.append(f"{half} weights are compressed to float16, which nobody asked for")
    return complaints
