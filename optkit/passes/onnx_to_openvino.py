"""onnx.to_openvino: an ONNX file as OpenVINO IR, weights as they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from optkit.artifact import Artifact, TensorSpec
from optkit.errors import StepError, did_you_mean
from optkit.formats.onnx.refusal import module_of
from optkit.formats.openvino import model as openvino_model
from optkit.plugin import Context, Options, Pass


class OnnxToOpenVino(Options):
    bound_dims: bool = Field(
        True, description="write the declared ranges of dynamic dims into the model, which GPU and NPU plan memory from"
    )


def run(artifact: Artifact, out_dir: Path, options: OnnxToOpenVino, context: Context) -> dict[str, Any]:
    """Converts by path, so files over 2 GB and external data are mapped, never loaded whole.

    Raises StepError that names the operators OpenVINO has no conversion for, and the nodes they are.
    """
    ov = openvino_model.load()
    context.progress("convert", None)
    try:
        with openvino_model.quiet_conversion():
            model = ov.convert_model(str(artifact.path))
    except Exception as error:  # the frontends and ovc each raise their own classes
        raise _failure(artifact.path, error) from error
    signature = openvino_model.signature_of(
        model, {"inputs": [spec.name for spec in context.inputs], "outputs": context.outputs}
    )
    _check_names(signature.inputs, [spec.name for spec in context.inputs], "input")
    _check_names(signature.outputs, context.outputs, "output")
    openvino_model.rename(model, [s.name for s in signature.inputs], [s.name for s in signature.outputs])
    bounded = openvino_model.bound_dims(model, context.inputs, context.dims) if options.bound_dims else ()
    context.progress("write", None)
    openvino_model.save(model, out_dir, context.inputs, context.dims, outputs=_outputs(artifact))
    return {"operators": len(model.get_ops()), "bounded_dims": list(bounded)}


def _outputs(artifact: Artifact) -> tuple[TensorSpec, ...]:
    return artifact.signature.outputs if artifact.signature else ()


def _check_names(found: tuple[TensorSpec, ...], wanted: Any, kind: str) -> None:
    names = [spec.name for spec in found]
    for name in wanted:
        if name not in names:
            raise StepError(
                f"the ONNX model has no {kind} {name!r}", hint=did_you_mean(name, names), subject=f"{kind}s.{name}"
            )


def _failure(path: Path, error: Exception) -> StepError:
    text = str(error)
    unknown = re.search(r"No conversion rule found for operations: (.+)", text)
    failed = re.search(r"Conversion is failed for: (.+)", text)
    told = unknown or failed  # what comes after an operator that is unknown fails too, for want of its input's type
    named = [word.strip() for word in told[1].split(",")] if told else []
    if not named:
        return StepError(
            f"OpenVINO cannot convert {path.name}: {openvino_model.reason(error)}", subject="model", details=text
        )
    kinds = dict.fromkeys(re.sub(r"-\d+$", "", word) for word in named)
    nodes = _nodes(path, set(kinds))
    where = "; ".join(f"{kind} ({nodes[kind]})" if kind in nodes else kind for kind in kinds)
    what = "has no conversion for" if unknown else "failed to convert"
    return StepError(
        f"OpenVINO {what} {where}",
        details=text,
        hint="replace the operator in the model, or deliver ONNX for onnxruntime",
    )


def _nodes(path: Path, kinds: set[str]) -> dict[str, str]:
    """Per operator type the names of its first nodes, "node a, b and 3 more"; empty where onnx is not installed."""
    try:
        import onnx

        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception:  # the conversion's own error is the one to report
        return {}
    found: dict[str, list[str]] = {}
    for node in graph.node:
        kind = f"{node.domain}.{node.op_type}" if node.domain not in {"", "ai.onnx"} else node.op_type
        if kind in kinds:
            module = module_of(node)
            name = node.name or f"of {node.output[0]}"
            found.setdefault(kind, []).append(name + (f" in the torch module {module}" if module else ""))
    return {
        kind: f"node {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        for kind, names in found.items()
    }


def confirm(parent: Artifact, artifact: Artifact, options: OnnxToOpenVino, context: Context) -> list[str]:
    """Re-reads the IR: names, dtypes and dynamic dims as declared, and no weight stored in less than it was."""
    signature = openvino_model.describe(artifact.path)
    complaints: list[str] = []
    found: Mapping[str, TensorSpec] = {spec.name: spec for spec in signature.inputs}
    for spec in context.inputs:
        got = found.get(spec.name)
        if got is None:
            complaints.append(f"input {spec.name!r} is not in the file, which has {', '.join(found)}")
            continue
        if got.dtype != spec.dtype:
            complaints.append(f"input {spec.name!r} is {got.dtype}, not {spec.dtype}")
        for axis, said in enumerate(spec.shape or ()):
            size = got.shape[axis] if got.shape is not None and axis < len(got.shape) else None
            span = context.dims.get(said) if isinstance(said, str) else None
            if isinstance(said, str) and isinstance(size, int) and not (span and span.min == span.max == size):
                complaints.append(f"axis {axis} of input {spec.name!r} is fixed at {size}, not {said!r}")
    names = [spec.name for spec in signature.outputs]
    if context.outputs and names != list(context.outputs):
        complaints.append(f"the outputs are {', '.join(names)}, not {', '.join(context.outputs)}")
    half = openvino_model.inspect(artifact.path)["compressed"].get("float16", 0)
    if half:
        complaints.append(f"{half} weights are compressed to float16, which nobody asked for")
    return complaints


PASS = Pass(
    name="onnx.to_openvino",
    version=1,
    source="onnx",
    target="openvino",
    summary="Convert an ONNX file to OpenVINO IR",
    run=run,
    confirm=confirm,
    options=OnnxToOpenVino,
    fidelity="rounding",
    tools=("openvino",),
    modules=("optkit.formats.warm.openvino",),
)
