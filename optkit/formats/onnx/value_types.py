"""Element types of every value in an ONNX graph, and which types an operator's inputs and outputs may take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from optkit.formats.onnx import model as onnx_model

_SEQUENCE = -1  # stands for the type of a value that is no tensor


@dataclass(frozen=True)
class Slot:
    """An operator's input or output: a type variable ("T") or a fixed type ("tensor(float)"), and what it allows."""

    kind: str
    allowed: frozenset[str]

    @property
    def fixed(self) -> bool:
        """Whether the schema leaves no choice of type here."""
        return self.kind in self.allowed and len(self.allowed) == 1

    def takes(self, dtype: str) -> bool:
        """Whether a tensor of an ONNX type ("float16") fits."""
        return f"tensor({dtype})" in self.allowed


@dataclass(frozen=True)
class Slots:
    """The slots of one node's inputs and outputs, variadic ones repeated."""

    inputs: tuple[Slot, ...]
    outputs: tuple[Slot, ...]


def slots(node: Any, opsets: Mapping[str, int]) -> Slots | None:
    """What the schema of a node's operator says of its inputs and outputs; None where no schema is known."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return _slots(node.op_type, domain, opsets.get(domain, 0), len(node.input), len(node.output))


def opsets(model: Any) -> dict[str, int]:
    """The model's operator set versions; the standard domain is ""."""
    return {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import}


@cache
def _slots(operator: str, domain: str, version: int, inputs: int, outputs: int) -> Slots | None:
    import onnx

    try:
        schema = onnx.defs.get_schema(operator, version, domain)
        pairs = (
            [(p.type_str, p.option == p.option.Variadic) for p in schema.inputs],
            [(p.type_str, p.option == p.option.Variadic) for p in schema.outputs],
        )
    except onnx.defs.SchemaError:
        schema = _contrib().get((domain, operator))
        if schema is None:
            return None
        pairs = (
            [(p.typeStr, p.option == p.option.Variadic) for p in schema.inputs],
            [(p.typeStr, p.option == p.option.Variadic) for p in schema.outputs],
        )
    allowed = {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints}
    return Slots(_expand(pairs[0], allowed, inputs), _expand(pairs[1], allowed, outputs))


def _expand(formal: list[tuple[str, bool]], allowed: Mapping[str, frozenset[str]], count: int) -> tuple[Slot, ...]:
    found = [Slot(kind, allowed.get(kind, frozenset({kind}))) for kind, _ in formal]
    if formal and formal[-1][1]:
        found += [found[-1]] * (count - len(found))
    return tuple(found[:count])


@cache
def _contrib() -> dict[tuple[str, str], Any]:
    """The newest schema of each operator that onnxruntime adds to the standard ones."""
    from onnxruntime.capi import _pybind_state

    newest: dict[tuple[str, str], Any] = {}
    for schema in _pybind_state.get_all_operator_schema():
        key = (schema.domain, schema.name)
        if schema.domain not in onnx_model.STANDARD_DOMAINS and (
            key not in newest or newest[key].since_version < schema.since_version
        ):
            newest[key] = schema
    return newest


def hoist(graph: Any) -> None:
    """Make initializers of one graph's Constant nodes, but for those that are graph outputs or hold no tensor."""
    import numpy as np
    import onnx

    results = {v.name for v in graph.output}
    nodes = list(graph.node)
    rest = []
    for node in nodes:
        value = node.attribute[0] if node.op_type == "Constant" and node.output[0] not in results else None
        if value is not None and value.name == "value":
            tensor = graph.initializer.add()
            tensor.CopyFrom(value.t)
            tensor.name = node.output[0]
        elif value is not None and value.name in ("value_float", "value_floats", "value_int", "value_ints"):
            dtype = np.float32 if "float" in value.name else np.int64
            numbers = np.asarray(onnx.helper.get_attribute_value(value), dtype)
            graph.initializer.append(onnx.numpy_helper.from_array(numbers, node.output[0]))
        else:
            rest.append(node)
    if len(rest) < len(nodes):
        del graph.node[:]
        graph.node.extend(rest)


def infer(model: Any) -> Any:
    """The model with the types and shapes that ONNX's own inference finds; values on disk are not needed."""
    import onnx

    return onnx.shape_inference.infer_shapes(model)


def value_types(graph: Any, versions: Mapping[str, int], outer: Mapping[str, int] | None = None) -> dict[str, int]:
    """Element type of every tensor of one graph (not of its subgraphs), of a model that `infer` has seen.

    Where ONNX's inference gives up, at onnxruntime's own operators, the schemas decide. Values whose type stays
    unknown are absent; a value that is no tensor has type -1.
    """
    types: dict[str, int] = {}
    for value in (*graph.input, *graph.output, *graph.value_info):
        kind = value.type.tensor_type.elem_type
        if value.type.WhichOneof("value") not in (None, "tensor_type"):
            types[value.name] = _SEQUENCE
        elif kind:
            types[value.name] = kind
    types.update((t.name, t.data_type) for t in graph.initializer)
    known = {**(outer or {}), **types}
    for node in graph.node:
        if all(name in known for name in node.output if name):
            continue
        for name, kind in _outputs(node, versions, known).items():
            if name and name not in known:
                types[name] = known[name] = kind
    return types


def _outputs(node: Any, versions: Mapping[str, int], known: Mapping[str, int]) -> dict[str, int]:
    if node.op_type == "Cast":
        return {node.output[0]: next(a.i for a in node.attribute if a.name == "to")}
    found = slots(node, versions)
    if found is None:
        return {}
    bound = {slot.kind: known[name] for slot, name in zip(found.inputs, node.input, strict=False) if name in known}
    result = {}
    for slot, name in zip(found.outputs, node.output, strict=False):
        if slot.fixed:
            result[name] = _code(slot.kind)
        elif slot.kind in bound:
            result[name] = bound[slot.kind]
    return result


def _code(kind: str) -> int:
    """The number of a type's name in a schema: "tensor(float)" is 1."""
    import onnx

    inner = kind.removeprefix("tensor(").removesuffix(")")
    return int(onnx.TensorProto.DataType.Value(inner.upper())) if kind.startswith("tensor(") else _SEQUENCE
