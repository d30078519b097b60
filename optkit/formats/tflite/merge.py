"""Changes to a `ModelT`: several files as the signatures of one, a transpose at an output, an output given twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optkit.plugin import need

_SUBGRAPH_FIELDS = ("subgraph", "thenSubgraphIndex", "elseSubgraphIndex", "condSubgraphIndex", "bodySubgraphIndex",
                    "comparatorSubgraphIndex", "initSubgraphIndex", "decompositionSubgraphIndex")  # fmt: skip


def merge(models: Mapping[str, Any]) -> Any:
    """One model with a signature for each of several, by key; equal constants are held once.

    Each model has one signature, of its first graph. The first model is changed and given back.
    """
    whole: Any = None
    held: dict[bytes, int] = {}
    for key, model in models.items():
        model.signatureDefs[0].signatureKey = key.encode()
        if whole is None:
            whole = model
            for number, buffer in reversed(list(enumerate(model.buffers))):
                held[_bytes(buffer)] = number
            continue
        codes = [_code(whole, code) for code in model.operatorCodes]
        buffers = [_buffer(whole, buffer, held) for buffer in model.buffers]
        offset = len(whole.subgraphs)
        for graph in model.subgraphs:
            for tensor in graph.tensors:
                tensor.buffer = buffers[tensor.buffer]
            for op in graph.operators or ():
                op.opcodeIndex = codes[op.opcodeIndex]
                for options in (op.builtinOptions, op.builtinOptions2):
                    for field in _SUBGRAPH_FIELDS:
                        if getattr(options, field, -1) is not None and getattr(options, field, -1) >= 0:
                            setattr(options, field, getattr(options, field) + offset)
            whole.subgraphs.append(graph)
        definition = model.signatureDefs[0]
        definition.subgraphIndex += offset
        whole.signatureDefs.append(definition)
    return whole


def _bytes(buffer: Any) -> bytes:
    return b"" if buffer.data is None else bytes(buffer.data)


def _buffer(whole: Any, buffer: Any, held: dict[bytes, int]) -> int:
    data = _bytes(buffer)
    if data not in held:
        held[data] = len(whole.buffers)
        whole.buffers.append(buffer)
    return held[data]


def _code(whole: Any, code: Any) -> int:
    """The number of an operator code in the whole model, added where it is not there."""
    mark = (code.builtinCode, code.deprecatedBuiltinCode, bytes(code.customCode or b""), code.version)
    for number, other in enumerate(whole.operatorCodes):
        if mark == (other.builtinCode, other.deprecatedBuiltinCode, bytes(other.customCode or b""), other.version):
            return number
    whole.operatorCodes.append(code)
    return len(whole.operatorCodes) - 1


def transpose_output(model: Any, name: str, order: Sequence[int]) -> None:
    """Put a TRANSPOSE before the output called `name` of the first signature; `order` as numpy has it."""
    definition = model.signatureDefs[0]
    graph = model.subgraphs[definition.subgraphIndex]
    entry = next(e for e in definition.outputs if e.name.decode() == name)
    before = entry.tensorIndex
    entry.tensorIndex = _transposed(model, graph, before, name, order)
    graph.outputs = [entry.tensorIndex if index == before else index for index in graph.outputs]


def copy_output(model: Any, source: str, name: str) -> None:
    """Give the output called `source` of the first signature once more, as `name`."""
    schema = need("ai_edge_litert.schema_py_generated", "ai-edge-litert")
    definition = model.signatureDefs[0]
    graph = model.subgraphs[definition.subgraphIndex]
    entry = next(e for e in definition.outputs if e.name.decode() == source)
    order = range(len(graph.tensors[entry.tensorIndex].shape))
    made = _transposed(model, graph, entry.tensorIndex, name, order)
    definition.outputs.append(schema.TensorMapT(name=name.encode(), tensorIndex=made))
    graph.outputs = [*graph.outputs, made]


def _transposed(model: Any, graph: Any, index: int, name: str, order: Sequence[int]) -> int:
    """The number of a new tensor, `index` with its axes in that order."""
    import numpy as np

    schema = need("ai_edge_litert.schema_py_generated", "ai-edge-litert")
    before = graph.tensors[index]
    model.buffers.append(schema.BufferT(data=np.asarray(order, np.int32).view(np.uint8)))
    axes = schema.TensorT(name=f"{name}/order".encode(), shape=np.array([len(order)], np.int32),
                          type=schema.TensorType.INT32, buffer=len(model.buffers) - 1)  # fmt: skip
    signed = before.shapeSignature
    after = schema.TensorT(
        name=f"{name}/turned".encode(), shape=np.asarray(before.shape)[list(order)], type=before.type, buffer=0,
        shapeSignature=None if signed is None or not len(signed) else np.asarray(signed)[list(order)],
        hasRank=before.hasRank,
    )  # fmt: skip
    graph.tensors += [axes, after]
    first, last = len(graph.tensors) - 2, len(graph.tensors) - 1
    kind = schema.BuiltinOperator.TRANSPOSE
    code = schema.OperatorCodeT(builtinCode=kind, deprecatedBuiltinCode=kind, version=1)
    graph.operators.append(schema.OperatorT(
        opcodeIndex=_code(model, code), inputs=np.array([index, first], np.int32), outputs=np.array([last], np.int32),
        builtinOptionsType=schema.BuiltinOptions.TransposeOptions, builtinOptions=schema.TransposeOptionsT(),
    ))  # fmt: skip
    return last
