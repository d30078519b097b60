"""SmoothQuant of a TFLite graph: the same function, with outliers of a product's input moved into its weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.errors import StepError
from optkit.formats import smoothing
from optkit.formats.tflite import groups as tflite_groups
from optkit.formats.tflite import look as tflite_look
from optkit.formats.tflite import model as tflite_model
from optkit.formats.tflite import session as tflite_session
from optkit.formats.tflite.groups import Place
from optkit.formats.tflite.model import Contract
from optkit.plugin import need

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optkit.plugin import Tensors

    Array = NDArray[Any]

SMOOTHED = ";smooth_quant"
"""What the name of a divided tensor ends with."""

_INPUT, _WEIGHT = 0, 1  # of a FULLY_CONNECTED


@dataclass(frozen=True)
class Group:
    """Products that must share their input's scales.

    They have an input in common, or a weight: the signatures of a file compute on the same buffers. inputs: by (graph,
    tensor), the numbers of the operators that take it. buffers: of their weights, `(outputs, channels)` each.
    """

    inputs: Mapping[Place, tuple[int, ...]]
    buffers: tuple[int, ...]


def groups(model: Any, targeted: Callable[[Any, Any], bool]) -> list[Group]:
    """The products that can be smoothed: FULLY_CONNECTED of a computed input and a float32 weight all of whose users
    are such products. targeted(operator, graph): whether it may be changed.
    """
    names = tflite_look.operator_names(model)
    held = tflite_look.constants(model)
    uses: dict[int, list[tuple[Place, int] | None]] = {}  # by buffer of a weight; None is a use of another kind
    for number, graph in enumerate(model.subgraphs):
        for place, op in enumerate(graph.operators or ()):
            fits = names[op.opcodeIndex] == "FULLY_CONNECTED" and targeted(op, graph)
            for position, index in enumerate(op.inputs):
                buffer = graph.tensors[index].buffer if index != -1 else -1
                if buffer not in held:
                    continue
                good = fits and position == _WEIGHT and _is_product(graph, op, held)
                uses.setdefault(buffer, []).append(((number, op.inputs[_INPUT]), place) if good else None)
    whole = {buffer: [use for use in found if use] for buffer, found in uses.items() if None not in found}
    inputs = {buffer: {at for at, _ in found} for buffer, found in whole.items()}
    return [_group(buffers, whole) for buffers in tflite_groups.joined(inputs)]


def _is_product(graph: Any, op: Any, held: Mapping[int, Any]) -> bool:
    taken, weight = graph.tensors[op.inputs[_INPUT]], graph.tensors[op.inputs[_WEIGHT]]
    known = [t.shape is not None and len(t.shape) > 0 for t in (taken, weight)]
    return (
        all(known)
        and taken.buffer not in held
        and len(weight.shape) == 2
        and taken.shape[-1] == weight.shape[-1]
        and {tflite_model.kind_of(taken), tflite_model.kind_of(weight)} == {"float32"}
    )


def _group(buffers: Sequence[int], whole: Mapping[int, list[tuple[Place, int]]]) -> Group:
    inputs: dict[Place, tuple[int, ...]] = {}
    for buffer in buffers:
        for at, place in whole[buffer]:
            inputs[at] = (*inputs.get(at, ()), place)
    return Group(inputs, tuple(buffers))


def peaks(
    path: Path, found: Sequence[Group], agreed: Contract, feeds: Iterable[Tensors], scratch: Path, threads: int
) -> list[Array]:
    """The greatest magnitude of each channel of each group's inputs, `(channels,)`, on feeds of the recipe's names.

    A copy of the file that gives those inputs too is run, each feed by the smallest signature that holds it. Raises
    StepError where they are not finite.
    """
    import numpy as np

    watched = tflite_model.read(path)
    keys = _watch(watched, found)
    copy = scratch / "watched.tflite"
    tflite_model.write(watched, copy, agreed)
    del watched
    most: list[Any] = [0.0] * len(found)
    try:
        session = tflite_session.TfliteSession(copy, agreed, threads)
        for feed in feeds:
            for given in session.raw(feed):
                for name in keys.keys() & given.keys():
                    value = np.abs(given[name])
                    most[keys[name]] = np.maximum(most[keys[name]], value.reshape(-1, value.shape[-1]).max(axis=0))
    finally:
        copy.unlink()
    if not all(np.isfinite(value).all() for value in most):
        raise StepError("what a FULLY_CONNECTED takes is not finite on the data", subject="data",
                        hint="look for the sample that does it, or exclude the operator")  # fmt: skip
    return [np.atleast_1d(value) for value in most]


def _watch(model: Any, found: Sequence[Group]) -> dict[str, int]:
    """Make the inputs of the groups outputs of their signatures; by the outputs' names, the groups."""
    schema = need("ai_edge_litert.schema_py_generated", "ai-edge-litert")
    keys = {}
    for number, group in enumerate(found):
        for graph, tensor in group.inputs:
            name = f"smooth_quant_{number}_{tensor}"
            ports = [d for d in model.signatureDefs or () if d.subgraphIndex == graph]
            for definition in ports:
                definition.outputs.append(schema.TensorMapT(name=name.encode(), tensorIndex=tensor))
            if ports and tensor not in list(model.subgraphs[graph].outputs):
                model.subgraphs[graph].outputs = [*model.subgraphs[graph].outputs, tensor]
            keys[name] = number
    return keys


def smooth(model: Any, found: Sequence[Group], most: Sequence[Array], alpha: float) -> int:
    """Put a MUL by one over the scales before each group, and multiply its weights; how many had anything to move.

    most: of each group, as `peaks` finds it. alpha: see `smoothing.scales`.
    """
    import numpy as np

    held = tflite_look.constants(model)
    done = 0
    for group, peak in zip(found, most, strict=True):
        weights = {b: _values(model, b).reshape(held[b].shape) for b in group.buffers}
        reach = np.max([np.abs(w).max(axis=0) for w in weights.values()], axis=0)
        scale = smoothing.scales(peak, reach, alpha) if len(peak) == len(reach) else None
        if scale is None:
            continue
        done += 1
        factor = _constant(model, (1 / scale).astype(np.float32))
        for (graph, tensor), places in group.inputs.items():
            _divide(model, graph, tensor, places, factor)
        for buffer, weight in weights.items():
            model.buffers[buffer].data = (weight * scale).astype(np.float32).reshape(-1).view(np.uint8)
    if done:
        _sort(model)
    return done


def count(model: Any) -> int:
    """How many tensors of a file are divided by scales."""
    return sum(_is_smoothing(graph, op) for _, op, graph in tflite_look.operations(model))


def _values(model: Any, buffer: int) -> Array:
    import numpy as np

    return np.frombuffer(np.asarray(model.buffers[buffer].data, np.uint8).tobytes(), np.float32)


def _constant(model: Any, value: Array) -> int:
    """The number of a new buffer."""
    import numpy as np

    schema = need("ai_edge_litert.schema_py_generated", "ai-edge-litert")
    model.buffers.append(schema.BufferT(data=value.view(np.uint8)))
    return len(model.buffers) - 1


def _divide(model: Any, graph: int, tensor: int, places: Sequence[int], factor: int) -> None:
    """Append a MUL to a graph, and let the operators at `places` take what it gives."""
    schema = need("ai_edge_litert.schema_py_generated", "ai-edge-litert")
    whole = model.subgraphs[graph]
    taken = whole.tensors[tensor]
    name = tflite_model.text_of(taken.name)
    constant = schema.TensorT(shape=[taken.shape[-1]], type=taken.type, buffer=factor,
                              name=f"{name}{SMOOTHED}/scale".encode())  # fmt: skip
    made = schema.TensorT(shape=taken.shape, shapeSignature=taken.shapeSignature, type=taken.type, buffer=0,
                          name=f"{name}{SMOOTHED}".encode())  # fmt: skip
    whole.tensors.extend([constant, made])
    at = len(whole.tensors) - 2
    for place in places:
        taking = list(whole.operators[place].inputs)
        taking[_INPUT] = at + 1
        whole.operators[place].inputs = taking
    whole.operators.append(schema.OperatorT(
        opcodeIndex=_code(model, schema), inputs=[tensor, at], outputs=[at + 1],
        builtinOptionsType=schema.BuiltinOptions.MulOptions, builtinOptions=schema.MulOptionsT(),
    ))  # fmt: skip


def _code(model: Any, schema: Any) -> int:
    mul = schema.BuiltinOperator.MUL
    for number, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == mul and code.version == 1:
            return number
    model.operatorCodes.append(schema.OperatorCodeT(builtinCode=mul, deprecatedBuiltinCode=mul, version=1))
    return len(model.operatorCodes) - 1


def _sort(model: Any) -> None:
    """Each divided tensor's MUL right before the first operator that takes it."""
    for graph in model.subgraphs:
        appended = {op.outputs[0]: op for op in graph.operators or () if _is_smoothing(graph, op)}
        ordered: list[Any] = []
        for op in graph.operators or ():
            if _is_smoothing(graph, op):
                continue
            ordered.extend(appended.pop(index) for index in list(op.inputs) if index in appended)
            ordered.append(op)
        graph.operators = ordered


def _is_smoothing(graph: Any, op: Any) -> bool:
    return tflite_model.text_of(graph.tensors[op.outputs[0]].name).endswith(SMOOTHED) if len(op.outputs) else False
