"""The tensors inside an ONNX model: what makes each, and their values on a feed, a few at a time.

A session is made for the tensors asked for, of no more than the nodes that lead to them. Where a tensor is given, its
readers take it from the feed: so a node can be run on another model's inputs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from optkit.artifact import Artifact
from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx import session as onnx_session
from optkit.formats.onnx import value_types as onnx_types
from optkit.formats.onnx.refusal import module_of
from optkit.plugin import Point

if TYPE_CHECKING:
    from optkit.plugin import Tensors

_FLOATS = (1, 10, 11)  # FLOAT, FLOAT16, DOUBLE of TensorProto.DataType
_NO_PREPACK_FROM = 256 << 20  # bytes: prepacking copies the weights
_GIVEN = "optkit given: "
_WEIGHT = re.compile(r"([\w.]+)\.weight(?:_[A-Za-z]+)*")


class OnnxInside:
    """An open model; see `optkit.plugin.Inside`."""

    replaces = True

    def __init__(self, artifact: Artifact, threads: int, chosen: Mapping[str, Any] | None = None) -> None:
        self._artifact, self._threads, self._chosen = artifact, threads, chosen
        self._model = onnx_model.load(artifact.path, weights=False)
        self._prepack = onnx_model.size_bytes(self._model) < _NO_PREPACK_FROM
        self._graph = _Graph(self._model)
        self.points = self._graph.points()
        self._sessions: dict[Any, tuple[Any, list[str]]] = {}

    def values(self, names: Sequence[str], tensors: Tensors, given: Tensors | None = None) -> Tensors:
        """The values of tensors by name; see `optkit.plugin.Inside`."""
        import numpy as np

        given = given or {}
        inner = [name for name in names if name not in self._graph.inputs]
        key = (tuple(inner), tuple((name, value.dtype.str) for name, value in given.items()))
        if key not in self._sessions:
            while len(self._sessions) > 1:  # the weights of two at most are held
                del self._sessions[next(iter(self._sessions))]
            self._sessions[key] = self._open(inner, given)
        session, fed = self._sessions[key]
        feed = {n: given[n.removeprefix(_GIVEN)] if n.startswith(_GIVEN) else tensors[n] for n in fed}
        found: list[Any] = []
        if inner:  # onnxruntime would give every output
            with onnx_session.ort_errors("the model"):
                found = session.run(inner, {n: np.ascontiguousarray(value) for n, value in feed.items()})
        return {**{n: tensors[n] for n in names if n in self._graph.inputs}, **dict(zip(inner, found, strict=True))}

    def _open(self, names: Sequence[str], given: Tensors) -> tuple[Any, list[str]]:
        if not names:
            return None, []
        part = self._graph.part(names, given)
        session = onnx_session.open_session(
            part.SerializeToString(), threads=self._threads, folder=self._artifact.path.parent, prepack=self._prepack,
            chosen=self._chosen,
        )  # fmt: skip
        return session, [value.name for value in session.get_inputs()]


class _Graph:
    """Who makes and who reads each value of a model's main graph."""

    def __init__(self, model: Any) -> None:
        self.model, graph = model, model.graph
        self.constants = {t.name for t in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
        self.inputs = {v.name for v in graph.input} - self.constants
        self.outputs = {v.name for v in graph.output}
        self.reads = [_read_by(node) for node in graph.node]
        self.maker = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
        self.readers: dict[str, list[int]] = {}
        self.live = set(self.inputs)  # what depends on the inputs
        for i, node in enumerate(graph.node):
            for name in self.reads[i]:
                self.readers.setdefault(name, []).append(i)
            if any(name in self.live for name in self.reads[i]):
                self.live.update(filter(None, node.output))

    # --- what there is to look at

    def points(self) -> list[Point]:
        nodes, exits = self.model.graph.node, self._exits()
        types = onnx_types.value_types(self.model.graph, onnx_types.opsets(self.model))
        shown = {
            name for name in self.maker if name in self.live and types.get(name) in _FLOATS and not self._hidden(name)
        }
        found = []
        for node in nodes:
            for name in node.output:
                if name not in shown:
                    continue
                origin = self._origin(name)
                at = self.maker.get(origin) if origin and origin not in shown else self.maker[name]
                if at is None or (origin and origin in shown):  # the pair itself, around an input or a shared tensor
                    at = self.maker[node.input[0]]
                own = nodes[at]
                weights = [n for n in own.input if n and n not in self.live]
                also = [origin] if origin else []
                also += [f"module {path}" for n in (name, origin) for path in exits.get(n or "", ())]
                found.append(Point(
                    name, onnx_model.operator(own), own.name or own.output[0], self._module(own, weights),
                    self._before(name, shown), tuple(also), bool(weights) and own.op_type in _WEIGHING,
                ))  # fmt: skip
        return found

    def _hidden(self, name: str) -> bool:
        """Whether a tensor is only ever read rounded to integers: a quantiser may have put a ReLU into the rounding."""
        readers = [self.model.graph.node[i] for i in self.readers.get(name, ())]
        return name not in self.outputs and bool(readers) and all(n.op_type == "QuantizeLinear" for n in readers)

    def _origin(self, name: str) -> str:
        """The tensor of which this one is the quantised form, behind a pair of nodes; "" where it is none."""
        node = self.model.graph.node[self.maker[name]]
        before = self.maker.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if before is None or self.model.graph.node[before].op_type != "QuantizeLinear":
            return ""
        return str(self.model.graph.node[before].input[0])

    def _before(self, name: str, shown: set[str]) -> tuple[str, ...]:
        found: dict[str, None] = {}
        seen, todo = {name}, list(self.reads[self.maker[name]])
        while todo:
            at = todo.pop(0)
            if at in seen or at not in self.live:
                continue
            seen.add(at)
            if at in shown or at in self.inputs:
                found[at] = None
            else:
                todo += self.reads[self.maker[at]]
        return tuple(found)

    def _module(self, node: Any, weights: Sequence[str]) -> str:
        """The torch module of a node: whose weight it reads, which survives what drops notes, or what the notes say."""
        for name in weights:
            while name in self.maker:  # behind a DequantizeLinear or a Cast
                name = self.model.graph.node[self.maker[name]].input[0]
            if found := _WEIGHT.fullmatch(name):
                return found[1]
        return module_of(node)

    def _exits(self) -> dict[str, list[str]]:
        """For tensors that are what a torch module gives, the paths of these modules."""
        inside: dict[str, set[int]] = {}
        for i, node in enumerate(self.model.graph.node):
            path = module_of(node)
            while path:
                inside.setdefault(path, set()).add(i)
                path = path.rpartition(".")[0]
        found: dict[str, list[str]] = {}
        for path, members in inside.items():
            left = [
                name for i in sorted(members) for name in self.model.graph.node[i].output
                if name in self.outputs or any(r not in members for r in self.readers.get(name, ()))
            ]  # fmt: skip
            if len(left) == 1:
                found.setdefault(left[0], []).append(path)
        return found

    # --- running a part of it

    def part(self, names: Sequence[str], given: Tensors) -> Any:
        """A model that computes some values from the inputs and from what is given."""
        import onnx

        graph = self.model.graph
        needed, used = set(), set()
        todo = [self.maker[name] for name in names if name in self.maker]
        while todo:
            i = todo.pop()
            if i in needed:
                continue
            needed.add(i)
            used.update(self.reads[i])
            todo += [self.maker[name] for name in self.reads[i] if name in self.maker and name not in given]
        made = onnx.ModelProto(ir_version=self.model.ir_version)
        made.opset_import.extend(self.model.opset_import)
        made.functions.extend(self.model.functions)
        new = made.graph
        new.name = graph.name or "part"
        new.node.extend(graph.node[i] for i in sorted(needed))
        if given:
            for node in new.node:
                _redirect(node, given)
        new.initializer.extend(t for t in graph.initializer if t.name in used)
        new.sparse_initializer.extend(t for t in graph.sparse_initializer if t.values.name in used)
        new.input.extend(v for v in graph.input if v.name in used and v.name in self.inputs and v.name not in given)
        for name, value in given.items():
            if name in used:
                kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
                new.input.append(onnx.helper.make_tensor_value_info(_GIVEN + name, kind, [None] * value.ndim))
        known = {v.name: v for v in graph.output}
        new.output.extend(known.get(name) or onnx.ValueInfoProto(name=name) for name in names)
        return made


_WEIGHING = frozenset({
    "Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits", "MatMulInteger", "ConvInteger", "LSTM", "GRU", "RNN",
    "LayerNormalization", "BatchNormalization", "InstanceNormalization", "GroupNormalization", "Attention",
    "FusedMatMul", "FusedConv", "EmbedLayerNormalization", "SkipLayerNormalization",
})  # fmt: skip


def _read_by(node: Any) -> list[str]:
    """The values a node reads, those that its subgraphs take from around them too."""
    names = [name for name in node.input if name]
    for graph in onnx_model.subgraphs(node):
        own = {v.name for v in graph.input} | {t.name for t in graph.initializer}
        own |= {name for inner in graph.node for name in inner.output}
        names += [name for inner in graph.node for name in _read_by(inner) if name not in own]
        names += [v.name for v in graph.output if v.name not in own]
    return list(dict.fromkeys(names))


def _redirect(node: Any, given: Mapping[str, Any]) -> None:
    for k, name in enumerate(node.input):
        if name in given:
            node.input[k] = _GIVEN + name
    for graph in onnx_model.subgraphs(node):
        for inner in graph.node:
            _redirect(inner, given)


@contextmanager
def inside(artifact: Artifact, threads: int = 1, chosen: Mapping[str, Any] | None = None) -> Iterator[OnnxInside]:
    """The inner tensors of a model in a file, run by onnxruntime on the CPU."""
    yield OnnxInside(artifact, threads, chosen)
