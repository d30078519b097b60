"""Mixed precision: which nodes of an ONNX graph compute in float16, and the casts and weights that follow.

Every float32 value gets one primary type, that of the node that makes it, and casts on demand, so types are right by
construction. What stays float32 follows mixed-precision training (Micikevicius et al., 2018): powers, exponentials and
long sums, and whatever float16 cannot hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.errors import StepError
from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx import value_types as onnx_types
from optkit.formats.onnx import weights as onnx_weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[Any]

FLOAT, FLOAT16 = 1, 10  # TensorProto.DataType
LARGEST = 65504.0  # the largest finite float16
_INFINITE = 1e8  # a constant of this size means infinity: -3.4e38 in attention masks, 3.4e38 as the open end of a Clip
_VANISHES = 2.0**-25  # rounds to 0
_NORMAL = 2.0**-14  # float16 has fewer digits below it

# Squares, exponentials and long sums leave float16's range or digits; counters are exact up to 2048.
FRAGILE = frozenset({
    "CumSum", "Exp", "LogSumExp", "LpNormalization", "NonMaxSuppression", "Pow", "Range", "ReduceL1", "ReduceL2",
    "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceSumSquare", "RoiAlign", "TopK",
    "Upsample",
})  # fmt: skip
# Always worth a cast: their cost in float32 is the reason to convert a model.
HEAVY = frozenset({"Attention", "Conv", "ConvTranspose", "DeformConv", "Einsum", "FusedMatMul", "GRU", "Gemm",
                   "GroupQueryAttention", "LSTM", "MatMul", "MultiHeadAttention", "RNN"})  # fmt: skip
_ANY_TYPE = ("Cast", "CastLike", "Shape", "Size")  # take their first input in any type
_ORIGINS = ("constant", "shape", "data")


@dataclass
class Half:
    """What `convert` did. kept: how many nodes stay float32 for each reason, operators: of which types they are."""

    converted: int = 0
    casts: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    operators: Counter[str] = field(default_factory=Counter)
    clamped: set[str] = field(default_factory=set)
    beyond: set[str] = field(default_factory=set)
    payloads: dict[str, Callable[[], Array]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Job:
    folder: Path
    opsets: Mapping[str, int]
    block: frozenset[str]
    block_nodes: frozenset[str]
    taken: set[str]
    half: Half

    def fresh(self, name: str, kind: int) -> str:
        """A name no value has, that tells the type."""
        stem = candidate = f"{name}_{'float16' if kind == FLOAT16 else 'float32'}"
        n = 1
        while candidate in self.taken:
            n += 1
            candidate = f"{stem}_{n}"
        self.taken.add(candidate)
        return candidate


def convert(model: Any, folder: Path, *, keep_io: bool, block: frozenset[str], block_nodes: frozenset[str]) -> Half:
    """Rewrite `model` in place. `folder`: what its references are relative to. The new weights are the payloads.

    Raises StepError where a value's type cannot be found.
    """
    graph = onnx_types.infer(model).graph
    taken = {name for node in onnx_model.all_nodes(graph) for name in (*node.input, *node.output)}
    taken |= {t.name for t in onnx_weights.all_tensors(model)}
    half = Half()
    job = _Job(folder, onnx_types.opsets(model), block, block_nodes, taken, half)
    _Scope(job, graph, None, FLOAT if keep_io else FLOAT16).convert()
    model.graph.CopyFrom(graph)
    model.ir_version = max(model.ir_version, 4)  # from which on an initializer need not be an input too
    return half


def types_of(model: Any) -> dict[str, int]:
    """Element types of the values in a model's main graph."""
    return onnx_types.value_types(onnx_types.infer(model).graph, onnx_types.opsets(model))


def computes(node: Any) -> bool:
    """Whether a node does arithmetic: its result depends on the precision of its inputs."""
    return node.op_type not in _ANY_TYPE


def excess(values: Array) -> float | None:
    """The smallest finite magnitude that float16 cannot hold; None where it holds them all."""
    import numpy as np

    if not values.size or (float(values.max()) <= LARGEST and float(values.min()) >= -LARGEST):
        return None
    size = np.abs(values)
    beyond = size[np.isfinite(size) & (size > LARGEST)]
    return float(beyond.min()) if beyond.size else None


class _Scope:
    """One graph under conversion, inside another for the body of a control-flow node."""

    def __init__(self, job: _Job, graph: Any, outer: _Scope | None, io: int, frozen: bool = False) -> None:
        self.job, self.graph, self.outer, self.io, self.frozen = job, graph, outer, io, frozen
        onnx_types.hoist(graph)
        self.constants = {t.name: t for t in graph.initializer}
        around = outer.visible if outer else {}
        own = {name: tensor.data_type for name, tensor in self.constants.items()}
        self.types = onnx_types.value_types(graph, job.opsets, {**around, **own}) | own
        self.visible: dict[str, int] = {**around, **self.types}
        self.inputs = [v for v in graph.input if v.name not in self.constants]
        self.results = {v.name for v in graph.output}
        self.free = {v.name for v in self.inputs}
        self.origins = dict.fromkeys(self.free, "data")
        self.primary: dict[str, int] = {}  # the type a value is made in
        self.names: dict[tuple[str, int], str] = {}  # where a value is to be had in a type
        self.excess: dict[str, float | None] = {}
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []

    def convert(self) -> None:
        """Rewrite the graph's nodes, weights and types in place."""
        graph = self.graph
        for value in self.inputs:
            if value.type.tensor_type.elem_type == FLOAT:
                value.type.tensor_type.elem_type = self.io
                self._define(value.name, self.io, value.name)
        for node in graph.node:
            self._node(node)
        for value in graph.output:
            if value.type.tensor_type.elem_type == FLOAT:
                value.type.tensor_type.elem_type = self.io
                self._deliver(value.name)
        for value in graph.value_info:
            if value.type.tensor_type.elem_type == FLOAT:
                value.type.tensor_type.elem_type = self.primary.get(value.name, FLOAT)
        others = [t for t in self.constants.values() if t.data_type != FLOAT]
        _replace(graph.value_info, [v for v in graph.value_info if v.name not in self.constants])
        _replace(graph.input, self.inputs)
        _replace(graph.node, self.nodes)
        _replace(graph.initializer, [*others, *self.tensors])

    # values

    def _owner(self, name: str) -> _Scope:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.types:
                return scope
            scope = scope.outer
        raise StepError(f"the type of {name!r} is unknown: it comes from an operator without a schema",
                        hint="convert the model before custom operators come in")  # fmt: skip

    def _is_constant(self, name: str) -> bool:
        return name in self._owner(name).constants

    def _define(self, name: str, kind: int, actual: str) -> None:
        self.primary[name] = kind
        self.names[name, kind] = actual

    def _get(self, name: str, kind: int) -> str:
        """The name under which a float value is to be had in a type; made at the first request."""
        scope = self._owner(name)
        if (name, kind) not in scope.names:
            make = scope._constant if name in scope.constants else scope._cast
            scope.names[name, kind] = make(name, kind)
        return scope.names[name, kind]

    def _cast(self, name: str, kind: int, target: str = "") -> str:
        import onnx

        target = target or self.job.fresh(name, kind)
        source = self.names[name, self.primary[name]]
        self.nodes.append(onnx.helper.make_node("Cast", [source], [target], name=f"{target}_cast", to=kind))
        self.job.half.casts += 1
        return target

    def _constant(self, name: str, kind: int) -> str:
        import numpy as np
        import onnx

        tensor = onnx.TensorProto()
        tensor.CopyFrom(self.constants[name])
        reserved = name in self.results and kind != self.io
        if reserved or (name, FLOAT) in self.names or (name, FLOAT16) in self.names:
            tensor.name = self.job.fresh(name, kind)
        if kind == FLOAT16:
            values = onnx_weights.read(tensor, self.job.folder)
            if self._excess(name):
                values = np.clip(values, -LARGEST, LARGEST)
                self.job.half.clamped.add(name)
            values = values.astype(np.float16)
            tensor = onnx_weights.placeholder(tensor.name, tensor.dims, values.dtype)
            if self.outer is None and values.nbytes > onnx_weights.SMALL:
                self.job.half.payloads[tensor.name] = lambda: values
            else:
                onnx_weights.embed(tensor, values.tobytes())
        self.tensors.append(tensor)
        return str(tensor.name)

    def _excess(self, name: str) -> float | None:
        if name not in self.excess:
            self.excess[name] = excess(onnx_weights.read(self.constants[name], self.job.folder))
        return self.excess[name]

    def _deliver(self, name: str) -> None:
        """Make sure that a graph output has its type under its own name."""
        import onnx

        if (name, self.io) not in self.names:
            made = self._constant(name, self.io) if name in self.constants else self._cast(name, self.io, name)
            self.names[name, self.io] = made
        if self.names[name, self.io] != name:
            self.nodes.append(onnx.helper.make_node("Identity", [self.names[name, self.io]], [name]))

    # nodes

    def _node(self, node: Any) -> None:
        half, found = self.job.half, onnx_types.slots(node, self.job.opsets)
        floats = [i for i, name in enumerate(node.input) if name and self._owner(name).types[name] == FLOAT]
        made = [i for i, name in enumerate(node.output) if name and self.types.get(name) == FLOAT]
        origin = self._origin(node)
        self.origins.update(dict.fromkeys(node.output, origin))
        named = self.frozen or node.name in self.job.block_nodes or node.op_type in self.job.block
        keep = "blocked or fragile" if named else self._reason(node, found, floats, made, origin)
        for body in onnx_model.subgraphs(node):
            _Scope(self.job, body, self, FLOAT, named).convert()
        if (floats or made) and computes(node):
            half.converted += not keep
            half.kept.update([keep] if keep else [])
            half.operators.update([onnx_model.operator(node)] if keep else [])
        for i in floats:
            slot = found.inputs[i] if found and i < len(found.inputs) else None
            wanted = FLOAT16 if not keep and slot and slot.takes("float16") else FLOAT
            name = node.input[i]
            if i == 0 and not computes(node) and not self._is_constant(name):
                wanted = self._owner(name).primary[name]
            node.input[i] = self._get(name, wanted)
        late = []
        for i in made:
            name = node.output[i]
            kind = FLOAT16 if not keep and found and found.outputs[i].takes("float16") else FLOAT
            if name in self.results and kind != self.io:
                late.append(name)
                node.output[i] = self.job.fresh(name, kind)
            self._define(name, kind, node.output[i])
        if node.op_type == "Cast" and made and not keep:
            next(a for a in node.attribute if a.name == "to").i = FLOAT16
        self.nodes.append(node)
        for name in late:
            self.names[name, self.io] = self._cast(name, self.io, name)

    def _origin(self, node: Any) -> str:
        """What a node's values are computed from: constants alone, shapes, or the model's data."""
        if node.op_type in ("Shape", "Size"):
            return "shape"
        if onnx_model.subgraphs(node):
            return "data"
        owners = [(name, self._owner(name)) for name in node.input if name]
        origins = ["constant" if name in s.constants else s.origins.get(name, "data") for name, s in owners]
        return max(origins, key=_ORIGINS.index, default="constant")

    def _reason(
        self, node: Any, found: onnx_types.Slots | None, floats: list[int], made: list[int], origin: str
    ) -> str:
        """Why a node stays float32; "" where it does not."""
        if onnx_model.subgraphs(node):
            return "control flow"
        if found is None:
            return "no schema"
        ins, outs = [found.inputs[i] for i in floats], [found.outputs[i] for i in made]
        tensors = all(self.types.get(name, 1) > 0 for name in node.output if name)
        if not tensors or not any(slot.takes("float16") for slot in (*ins, *outs)):
            return "no float16 version"
        free = {"Cast", "DequantizeLinear"}  # whose output type follows an attribute, or the scale's type
        if node.op_type not in free and any(s.takes("float16") and s.kind not in {i.kind for i in ins} for s in outs):
            return "output type of its own"
        if self._unfit(node, floats):
            return "constant beyond float16"
        small = all(onnx_weights.size_of(t) <= onnx_weights.SMALL for t in self._constants_of(node, floats))
        if made and origin == "shape" and small:
            return "arithmetic on shapes"
        sources = [name for name in (node.input[i] for i in floats) if not self._is_constant(name)]
        between = all(name not in s.free and s.primary[name] == FLOAT for name in sources for s in [self._owner(name)])
        return "between float32 nodes" if made and sources and between and node.op_type not in HEAVY else ""

    def _constants_of(self, node: Any, inputs: list[int]) -> list[Any]:
        names = [node.input[i] for i in inputs]
        return [self._owner(name).constants[name] for name in names if self._is_constant(name)]

    def _unfit(self, node: Any, floats: list[int]) -> bool:
        import numpy as np

        for tensor in self._constants_of(node, floats):
            if (self._owner(tensor.name)._excess(tensor.name) or _INFINITE) < _INFINITE:
                self.job.half.beyond.add(tensor.name)
                return True
            if onnx_weights.size_of(tensor) == 4 or node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                size = np.abs(onnx_weights.read(tensor, self.job.folder))
                limit = _NORMAL if "Linear" in node.op_type else _VANISHES
                if size.size and 0 < float(size.min()) < limit:
                    return True
        return False


def _replace(repeated: Any, items: list[Any]) -> None:
    kept = list(items)
    del repeated[:]
    repeated.extend(kept)
