"""What torch.onnx wrote, in the recipe's words: names of inputs, outputs, weights and dims. On `onnx_ir` models."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from optkit.artifact import Dim, TensorSpec
from optkit.errors import StepError
from optkit.formats.onnx import weights as onnx_weights
from optkit.formats.torch.feeds import static_shape
from optkit.formats.torch.files import WRAPPED
from optkit.plugin import need


def _values(model: Any) -> list[Any]:
    """Every value that a node gives, subgraphs included."""
    ir = need("onnx_ir", "onnx-ir")
    return [value for node in ir.traversal.RecursiveGraphIterator(model.graph) for value in node.outputs]


def rename(model: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Give inputs and outputs these names and weights the module's, and drop the exporter's notes.

    An output that is an input, a weight or another output too gets an Identity of its own. The notes hold paths of this
    machine; each node keeps the path of the module it comes from.
    """
    graph = model.graph
    for name in outputs:
        if name in inputs:
            raise StepError(
                f"{name!r} is the name of an input and of an output, which ONNX cannot have",
                subject="outputs",
                hint="declare outputs under other names, in forward's order",
            )
    if len(graph.inputs) != len(inputs) or len(graph.outputs) != len(outputs):
        raise StepError(
            f"the exported graph has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs, the model "
            f"{len(inputs)} and {len(outputs)}",
            subject="inputs",
            hint="take out an input that forward ignores",
        )
    need("onnx_ir.passes.common", "onnx-ir").OutputFixPass()(model)
    ports = [*graph.inputs, *graph.outputs]
    ends = {id(value): name for value, name in zip(ports, [*inputs, *outputs], strict=True)}
    taken = set(ends.values())
    for value in [*graph.initializers.values(), *_values(model)]:
        if id(value) in ends or value.name is None:
            continue
        wanted = re.sub(rf"^({WRAPPED}\.)+", "", value.name) if value.is_initializer() else value.name
        count = 0
        name = wanted
        while name in taken:
            count += 1
            name = f"{wanted}__{count}"
        taken.add(name)
        value.name = name
    for step in ("\0", ""):  # in two rounds, as an end may have another end's name now
        for value in ports:
            value.name = step + ends[id(value)]
    _drop_notes(model)


def _drop_notes(model: Any) -> None:
    ir = need("onnx_ir", "onnx-ir")
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    for part in (model, model.graph, *nodes, *model.graph.inputs, *model.graph.initializers.values(), *_values(model)):
        scopes = part.metadata_props.get("pkg.torch.onnx.name_scopes")
        for key in [key for key in part.metadata_props if key.startswith("pkg.") or key == "namespace"]:
            del part.metadata_props[key]
        path = (
            re.sub(rf"^({WRAPPED}\.?)+", "", re.findall(r"'([^']*)'", scopes)[-2])
            if scopes and scopes.count("'") > 2
            else ""
        )
        if path:
            part.metadata_props["namespace"] = path


def turn_integers(model: Any) -> None:
    """Transpose stored integers in place of what they dequantise to, which kernels read where they are stored.

    torch gives a linear layer over sequences as MatMul with the transposed weight.
    """
    ir, np = need("onnx_ir", "onnx-ir"), need("numpy")
    for node in list(model.graph):
        maker = node.inputs[0].producer() if node.op_type == "Transpose" and node.inputs[0] is not None else None
        if maker is None or maker.op_type != "DequantizeLinear" or not maker.inputs[0].is_initializer():
            continue
        held, order = maker.inputs[0], list(node.attributes["perm"].as_ints())
        if len(maker.outputs[0].uses()) != 1 or len(held.uses()) != 1:
            continue
        held.const_value = ir.tensor(np.ascontiguousarray(held.const_value.numpy().transpose(order)), name=held.name)
        held.shape = held.const_value.shape
        if "axis" in maker.attributes and maker.inputs[1].const_value is not None and maker.inputs[1].shape.rank():
            maker.attributes["axis"] = ir.AttrInt64("axis", order.index(maker.attributes["axis"].as_int()))
        out = node.outputs[0]
        maker.outputs[0].shape, maker.outputs[0].type = out.shape, out.type
        ir.convenience.replace_all_uses_with(out, maker.outputs[0])
        model.graph.remove(node, safe=True)


def name_dims(
    model: Any,
    inputs: Sequence[TensorSpec],
    dims: Mapping[str, Dim],
    symbols: Mapping[str, str],
    outputs: Sequence[TensorSpec],
) -> None:
    """Dims as the recipe calls them: on inputs exactly, elsewhere where they follow.

    symbols: what the exporter called them ("s77"). outputs: the parent's, whose names for an axis are kept; one that
    follows no dim and has no name is `<output>_<axis>`.
    """
    ir = need("onnx_ir", "onnx-ir")
    if symbols:
        pattern = re.compile(r"(?<!\w)(" + "|".join(map(re.escape, symbols)) + r")(?!\w)")
        for value in [*model.graph.inputs, *_values(model)]:
            if value.shape is not None and not value.shape.is_static():
                value.shape = ir.Shape([_renamed(d, pattern, symbols) for d in value.shape])
    for value, spec in zip(model.graph.inputs, inputs, strict=True):
        value.shape = ir.Shape(static_shape(spec, dims))
    declared = {name for spec in inputs for name in spec.dynamic}
    known = {spec.name: spec.shape for spec in outputs}
    for value in model.graph.outputs:
        parent = known.get(value.name)
        if value.shape is None:
            value.shape = ir.Shape(parent) if parent is not None else None
            continue
        named: list[int | str] = []
        for axis, size in enumerate(value.shape):
            theirs = parent[axis] if parent is not None and len(parent) == len(value.shape) else None
            if isinstance(size, int):
                named.append(size)
            elif isinstance(theirs, str):
                named.append(theirs)
            else:
                named.append(size.value if size.value in declared else f"{value.name}_{axis}")
        value.shape = ir.Shape(named)


def _renamed(size: Any, pattern: re.Pattern[str], symbols: Mapping[str, str]) -> int | str | None:
    if isinstance(size, int):
        return size
    return None if size.value is None else pattern.sub(lambda match: symbols[match[1]], size.value)


def to_proto(model: Any) -> tuple[Any, dict[str, Callable[[], Any]]]:
    """The ModelProto, and for each weight above 1 KiB what gives its values; in the proto it has none.

    So that weights go from torch to the file one at a time, for `onnx_model.save`.
    """
    ir, onnx = need("onnx_ir", "onnx-ir"), need("onnx")
    large = [value for value in model.graph.initializers.values() if value.const_value.nbytes > onnx_weights.SMALL]
    for value in large:
        del model.graph.initializers[value.name]
    proto = ir.to_proto(model)
    payloads: dict[str, Callable[[], Any]] = {}
    for value in large:
        model.graph.initializers[value.name] = value
        held = value.const_value
        tensor = onnx.TensorProto(name=value.name, dims=held.shape.numpy(), data_type=int(held.dtype))
        onnx_weights.refer(tensor, "", 0, onnx_weights.size_of(tensor))
        proto.graph.initializer.append(tensor)
        payloads[value.name] = held.numpy
    return proto, payloads
