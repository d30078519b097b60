"""torch.to_openvino: a torch model as OpenVINO IR, without ONNX in between."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from optkit.artifact import Artifact, TensorSpec
from optkit.errors import StepError
from optkit.formats.openvino import model as openvino_model
from optkit.formats.torch import model as torch_model
from optkit.formats.torch import quantised as torch_quantised
from optkit.formats.torch.export import runnable_feeds
from optkit.formats.torch.feeds import static_shape
from optkit.formats.torch.files import quiet
from optkit.formats.torch.guards import program_places
from optkit.plugin import Context, Options, Pass, need


class TorchToOpenVino(Options):
    bound_dims: bool = Field(
        True, description="write the declared ranges of dynamic dims into the model, which GPU and NPU plan memory from"
    )


def run(artifact: Artifact, out_dir: Path, options: TorchToOpenVino, context: Context) -> dict[str, Any]:
    """Converts the torch.export program, or TorchScript as it is, which keeps its control flow.

    Notes: seconds per phase, the number of operators, the dims that got bounds. Raises StepError that names operators
    OpenVINO has no conversion for, and where the model uses them.
    """
    need("torch")
    ov = openvino_model.load()
    model = torch_model.load(artifact.path)
    rounding = torch_quantised.written(model.source.module)
    if rounding:
        rounding.integers = False
    inputs = context.inputs or model.inputs
    seconds: dict[str, float] = {}
    since = time.perf_counter()
    context.progress("export", None)
    program = None if model.scripted else torch_model.export(model, inputs, context.dims)
    if program is not None:
        _check_distinct(program, model.output_names or ())
    seconds["export"] = round(time.perf_counter() - since, 3)
    since = time.perf_counter()
    context.progress("convert", None)
    try:
        with openvino_model.quiet_conversion(), quiet():
            converted = ov.convert_model(program if program is not None else model.source.module)
    except Exception as error:  # the frontends and ovc each raise their own classes
        with quiet():
            raise _failure(error, program) from error
    if rounding:
        openvino_model.compress_weights(converted)
    order = list(model.input_names) if program is not None else _fed(model)
    _set_inputs(ov, converted, [next(s for s in inputs if s.name == name) for name in order], context)
    openvino_model.rename(converted, order, _output_names(model, converted, inputs, context))
    converted = _in_order(ov, converted, inputs, context.outputs or model.output_names or ())
    openvino_model.name_by_place(converted)
    bounded = openvino_model.bound_dims(converted, inputs, context.dims) if options.bound_dims else ()
    seconds["convert"] = round(time.perf_counter() - since, 3)
    context.progress("write", None)
    known = artifact.signature.outputs if artifact.signature else ()
    openvino_model.save(converted, out_dir, inputs, context.dims, outputs=known)
    return {"operators": len(converted.get_ops()), "bounded_dims": list(bounded), "seconds": seconds}


def _check_distinct(program: Any, names: Sequence[str]) -> None:
    """Raises StepError for two outputs that are one tensor: the frontend tells tensors by name and fails obscurely."""
    tensors = list(program.graph_signature.user_outputs)
    for index, tensor in enumerate(tensors):
        if tensor in tensors[:index]:
            raise StepError(
                f"outputs {names[tensors.index(tensor)]!r} and {names[index]!r} are one tensor, which OpenVINO refuses",
                subject="outputs",
                hint="declare one of them alone, or go by way of ONNX: to: onnx first",
            )


def _fed(model: torch_model.TorchModel) -> list[str]:
    """The inputs of a TorchScript forward, in its own order."""
    return [name for name in model.source.takes if name in model.input_names]


def _set_inputs(ov: Any, converted: Any, specs: Sequence[TensorSpec], context: Context) -> None:
    """Element types and partial shapes as declared; the frontend leaves what it did not see in the graph open."""
    if len(converted.inputs) != len(specs):
        raise StepError(
            f"the converted model has {len(converted.inputs)} inputs, the model {len(specs)}",
            subject="inputs",
            hint="take out an input that forward ignores",
        )
    for port, spec in zip(converted.inputs, specs, strict=True):
        shape = [-1 if isinstance(d, str) else d for d in static_shape(spec, context.dims)]
        node = port.get_node()
        node.set_partial_shape(ov.PartialShape(shape))
        node.set_element_type(getattr(ov.Type, ELEMENT_TYPES.get(spec.dtype, spec.dtype)))
    converted.validate_nodes_and_infer_types()


ELEMENT_TYPES = {
    "float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16", "int8": "i8", "int16": "i16",
    "int32": "i32", "int64": "i64", "uint8": "u8", "uint16": "u16", "uint32": "u32", "uint64": "u64", "bool": "boolean",
}  # fmt: skip


def _output_names(
    model: torch_model.TorchModel, converted: Any, inputs: Sequence[TensorSpec], context: Context
) -> list[str]:
    """Names for the converted model's outputs, in its own order."""
    _, feeds = runnable_feeds(model, inputs, context.dims)
    if not model.scripted:
        return list(model.output_names or ())
    names = list(model.natural_names(feeds))
    if len(names) != len(converted.outputs):
        raise StepError(
            f"the converted model has {len(converted.outputs)} outputs, the model {len(names)}",
            subject="outputs",
            hint="go by way of ONNX: to: onnx, with: {exporter: torchscript}",
        )
    return names


def _in_order(ov: Any, converted: Any, inputs: Sequence[TensorSpec], outputs: Sequence[str]) -> Any:
    """The model with its inputs and outputs in the recipe's order; outputs that are not declared are left out."""
    wanted = [spec.name for spec in inputs]
    have = [port.get_node().get_friendly_name() for port in converted.inputs]
    named = [next(iter(port.get_names())) for port in converted.outputs]
    if have == wanted and named == list(outputs):
        return converted
    parameters = {node.get_friendly_name(): node for node in converted.get_parameters()}
    results = {next(iter(node.output(0).get_names())): node for node in converted.get_results()}
    return ov.Model(
        [results[name] for name in outputs], [parameters[name] for name in wanted], converted.get_friendly_name()
    )


def _failure(error: Exception, program: Any) -> StepError:
    text = str(error)
    unknown = re.search(r"No conversion rule found for operations: (.+)", text)
    failed = re.search(r"Conversion is failed for: (.+)", text)
    told = unknown or failed  # what comes after an operator that is unknown fails too, for want of its input's type
    named = [word.strip() for word in told[1].split(",")] if told else []
    if not named:
        return StepError(
            f"OpenVINO cannot convert the model: {openvino_model.reason(error)}",
            subject="model",
            details=text,
            hint="go by way of ONNX: to: onnx first",
        )
    kinds = [word for word in dict.fromkeys(named) if not word.startswith("<built-in") or len(named) == 1]
    places = program_places(program, kinds) if program is not None else {}
    said = {kind: re.sub(r"<(?:built-in )?function (\w+)(?: at 0x\w+)?>", r"\1", kind) for kind in kinds}
    where = "; ".join(f"{said[kind]}, used {places[kind]}" if kind in places else said[kind] for kind in kinds)
    return StepError(
        f"OpenVINO {'has no conversion for' if unknown else 'failed to convert'} {where}",
        subject="model",
        details=text,
        hint="replace the operator in the model, or go by way of ONNX: to: onnx first",
    )


def confirm(parent: Artifact, artifact: Artifact, options: TorchToOpenVino, context: Context) -> list[str]:
    """Re-reads the IR: names, dtypes and dims as declared, and no weight stored in less than it was."""
    signature = openvino_model.describe(artifact.path)
    complaints = []
    names, wanted = [spec.name for spec in signature.inputs], [spec.name for spec in context.inputs]
    if names != wanted:
        complaints.append(f"the inputs are {', '.join(names)}, not {', '.join(wanted)}")
    else:
        for got, spec in zip(signature.inputs, context.inputs, strict=True):
            shape = static_shape(spec, context.dims)
            if got.dtype != spec.dtype or got.shape != shape:
                complaints.append(f"input {spec.name!r} is {got}, not {spec.dtype}[{', '.join(map(str, shape))}]")
    names = [spec.name for spec in signature.outputs]
    if context.outputs and names != list(context.outputs):
        complaints.append(f"the outputs are {', '.join(names)}, not {', '.join(context.outputs)}")
    compressed = openvino_model.inspect(artifact.path)["compressed"]
    if compressed.get("float16", 0):
        complaints.append(f"{compressed['float16']} constants are stored in float16")
    record = torch_quantised.record_of(parent.path)
    if record and compressed.get("int8", 0) < len(record.weights):
        complaints.append(f"{compressed.get('int8', 0)} of {len(record.weights)} quantised weights are stored in int8")
    return complaints


PASS = Pass(
    name="torch.to_openvino",
    version=2,
    source="torch",
    target="openvino",
    summary="Convert a torch model to OpenVINO IR without ONNX in between",
    run=run,
    confirm=confirm,
    options=TorchToOpenVino,
    fidelity="rounding",
    tools=("torch", "openvino"),
    modules=("optkit.formats.warm.torch", "optkit.formats.warm.openvino"),
)
