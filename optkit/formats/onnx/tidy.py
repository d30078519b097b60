"""An `onnx_ir` model from tf2onnx made the same every time: order, names, and which of two equal parts stays.

tf2onnx goes through sets of nodes and numbers what it adds by what the process converted before. Here all of it
follows from the graph alone.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

from optkit.plugin import need

_ADDRESS = re.compile(r"^__inference_.*_frozen_\d+_|(?<=einsum)\d+")
_COUNTED = re.compile(r"(__\d+)+(:\d+)?$|:\d+$")


def tidied(model: Any) -> Any:
    """The model, changed in place: no two nodes or weights are equal, nodes come in the order in which they are needed.

    Nodes keep TensorFlow's names; what tf2onnx added and numbered is numbered by its place.
    """
    ir, common = need("onnx_ir", "onnx-ir"), need("onnx_ir.passes.common", "onnx-ir")
    common.LiftSubgraphInitializersToMainGraphPass()(model)
    for graph in (model.graph, *_bodies(model)):
        for place, end in enumerate(graph.outputs):
            graph.outputs[place] = _origin(end, graph)
    common.OutputFixPass()(model)
    for step in (common.DeduplicateInitializersPass(), common.CommonSubexpressionEliminationPass(),
                 common.RemoveUnusedNodesPass()):  # fmt: skip
        _sort(model.graph)
        _in_order_of_use(model)
        step(model)
    _sort(model.graph)
    nodes = _nodes(model)
    ends = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    held = [value for value in _in_order_of_use(model) if id(value) not in ends]
    names: set[str] = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}

    def numbered(name: str, taken: set[str]) -> str:
        base = _COUNTED.sub("", _ADDRESS.sub("", name)) or "value"
        endings = itertools.chain([""], (f"_{count}" for count in itertools.count(1)))
        new = next(f"{base}{end}" for end in endings if f"{base}{end}" not in taken)
        taken.add(new)
        return new

    model.graph.initializers.clear()
    for place, graph in enumerate(_bodies(model)):
        graph.name, graph.doc_string = f"body_{place}", None
        for value in graph.inputs:
            value.name, value.shape = numbered(value.name or "value", names), _without_names(ir, value.shape)
    for value in held:
        value.name = numbered(value.name or "value", names)
        model.graph.initializers[value.name] = value
    taken: set[str] = set()
    for node in nodes:
        node.name = numbered(node.op_type if node.op_type == "Identity" else node.name or node.op_type, taken)
        for value in node.outputs:  # which name a value keeps depends on the order in which Identities went
            if id(value) not in ends:
                value.name = numbered(node.name, names)
            value.shape = _without_names(ir, value.shape)
    return model


def _sort(graph: Any) -> None:
    """Put nodes into the order in which the outputs need them, which depends on nothing but the graph."""
    ordered: dict[Any, None] = {}
    for end in graph.outputs:
        waiting = [end.producer()]
        while waiting:
            node = waiting[-1]
            if node is None or node in ordered or node.graph is not graph:
                waiting.pop()
                continue
            before = [p for v in _needed(node) if (p := v.producer()) is not None]
            missing = [p for p in before if p.graph is graph and p not in ordered]
            if missing:
                waiting += reversed(missing)
            else:
                ordered[waiting.pop()] = None
    graph.remove([node for node in graph if node not in ordered])
    graph.remove(list(ordered))
    graph.extend(list(ordered))
    for node in ordered:
        for body in _graphs(node):
            _sort(body)


def _needed(node: Any) -> Iterator[Any]:
    """What a node takes, and what the nodes of its bodies take from outside."""
    yield from (value for value in node.inputs if value is not None)
    for body in _graphs(node):
        for inner in body:
            yield from _needed(inner)
        yield from body.outputs


def _nodes(model: Any) -> list[Any]:
    return list(need("onnx_ir", "onnx-ir").traversal.RecursiveGraphIterator(model.graph))


def _in_order_of_use(model: Any) -> list[Any]:
    """The weights, sorted by where they are first used, so that of two equal ones it is always the same that stays."""
    every = [v for node in _nodes(model) for v in node.inputs if v is not None and v.is_initializer()]
    used = list(dict.fromkeys([*every, *(v for v in model.graph.outputs if v.is_initializer())]))
    model.graph.initializers.clear()
    for value in used:
        model.graph.initializers[value.name] = value
    return used


def _graphs(node: Any) -> list[Any]:
    """The bodies of a control-flow node."""
    values = [a.value for a in node.attributes.values()]
    return [v for v in values if hasattr(v, "initializers")] + [
        g for v in values if isinstance(v, list | tuple) for g in v if hasattr(g, "initializers")
    ]


def _bodies(model: Any) -> list[Any]:
    return [graph for node in _nodes(model) for graph in _graphs(node)]


def _origin(value: Any, graph: Any) -> Any:
    """The value that an output is, without the Identities before it."""
    while True:
        node = value.producer()
        if node is None or node.op_type != "Identity" or node.inputs[0].producer() is None:
            return value
        if node.inputs[0].producer().graph is not graph:
            return value
        node.inputs[0].dtype, node.inputs[0].shape = node.inputs[0].dtype or value.dtype, value.shape
        value = node.inputs[0]


def _without_names(ir: Any, shape: Any) -> Any:
    """A shape whose dynamic axes have no name: tf2onnx makes one up, with a number."""
    return shape if shape is None else ir.Shape([d if isinstance(d, int) else None for d in shape])
