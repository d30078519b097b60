"""The tensors inside a TFLite file: what makes each, and their values on a feed, by LiteRT's own kernels.

XNNPACK keeps no inner tensor, so it is left out. LiteRT holds all tensors of the graph at once meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from optkit.artifact import Artifact
from optkit.errors import StepError
from optkit.formats.tflite import look as tflite_look
from optkit.formats.tflite import model as tflite_model
from optkit.formats.tflite import session as tflite_session
from optkit.formats.tflite.noise import captured
from optkit.plugin import Point, need

if TYPE_CHECKING:
    from optkit.plugin import Tensors

LIMIT_BYTES = 2 << 30
"""Inner tensors that may be held: a graph with more of them is not looked into."""

_WEIGHING = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL", "TRANSPOSE_CONV", "CONV_3D"})
_NO_MODULE = ("", "model", "constant")  # what a file of optkit's calls tensors that no module made
_RENAMED = re.compile(r"(.*?)_(?:quantized|dequant|dequantized|requant|requantized)(?:_\d+)?")


class TfliteInside:
    """An open file; see `optkit.plugin.Inside`.

    Of a file with a graph for each size, a feed is run by the smallest that holds it. The graphs call the same tensor
    otherwise: here it has the name of the first.
    """

    replaces = False

    def __init__(self, artifact: Artifact, threads: int) -> None:
        model = tflite_model.read(artifact.path)
        agreed = tflite_model.contract(model)
        if artifact.signature is not None:
            agreed = tflite_session.widened(agreed, artifact.signature.inputs)
        self._agreed = agreed
        keeping = partial(_keeping, artifact, threads)
        self._session = tflite_session.TfliteSession(artifact.path, agreed, threads, keeping)
        self._inputs = {spec.name for spec in agreed.inputs}
        keys = {tflite_model.text_of(d.signatureKey): d.subgraphIndex for d in model.signatureDefs or ()}
        wanted = [agreed.key(sizes) for sizes in tflite_session.combinations(agreed)] if agreed.sizes else []
        names = tflite_look.operator_names(model)
        self._graphs: dict[str, _Graph] = {}
        for key in wanted or [self._session.key]:
            graph = _Graph(self._session.interpreter, model, names, key, keys[key])
            first = next(iter(self._graphs.values()), graph)
            if graph.kinds == first.kinds:  # a batch of another size can need other operators
                graph.call_as(first)
                self._graphs[key] = graph
        self.points = next(iter(self._graphs.values())).points
        size = max(graph.size_bytes for graph in self._graphs.values())
        if size > LIMIT_BYTES:
            raise StepError(f"the tensors of {artifact.path.name} take {size / 2**30:.1f} GiB at once, over 2 GiB",
                            hint="compare a smaller batch or input")  # fmt: skip

    def values(self, names: Sequence[str], tensors: Tensors, given: Tensors | None = None) -> Tensors:
        """The values of tensors by name, dequantised; see `optkit.plugin.Inside`. Batches go in whole."""
        graph = self._graph(tensors)
        outputs = self._session.infer(tensors)
        found = {}
        for name in names:
            if name in tensors:
                found[name] = tensors[name]
            elif name in outputs:
                found[name] = outputs[name]
            else:
                found[name] = graph.value(self._session.interpreter, name)
        return found

    def _graph(self, tensors: Tensors) -> _Graph:
        """The graph that runs a feed. Raises StepError where there is none that runs it whole and can be matched."""
        keys = self._session.keys(tensors)
        if len(keys) > 1:
            raise StepError("the file has no graph for a batch of this size, and puts it together from several runs")
        if keys[0] not in self._graphs:
            raise StepError(f"the graph {keys[0]!r} has other operators than that of the smallest sizes")
        return self._graphs[keys[0]]


class _Graph:
    """A signature's tensors and operators. points: of its inner tensors, in the order they are made."""

    def __init__(self, interpreter: Any, model: Any, names: Sequence[str], key: str, number: int) -> None:
        self._number = number
        self._details = {t["index"]: dict(t) for t in interpreter.get_tensor_details(number)}
        self.size_bytes = sum(_bytes(t) for t in self._details.values())
        self._ops = [(names[op.opcodeIndex], op.inputs, op.outputs) for op in model.subgraphs[number].operators or ()]
        self.kinds = [kind for kind, _, _ in self._ops]
        self._ends = interpreter.get_signature_runner(key).get_input_details()
        self.points, self._index = self._look()

    def value(self, interpreter: Any, name: str) -> Any:
        """A tensor's value in the last run, dequantised."""
        index = self._index[name]
        return _real(interpreter.get_tensor(index, self._number), self._details[index])

    def call_as(self, other: _Graph) -> None:
        """Use the names of a graph of the same operators."""
        called = {i: name for name, i in other._index.items()}
        pairs = ((mine, theirs) for (_, _, ours), (_, _, others) in zip(self._ops, other._ops, strict=True)
                 for mine, theirs in zip(ours, others, strict=True))  # fmt: skip
        self._index = {called[int(theirs)]: int(mine) for mine, theirs in pairs if int(theirs) in called}

    def _look(self) -> tuple[list[Point], dict[str, int]]:
        live = {d["index"]: name for name, d in self._ends.items()}
        points: list[Point] = []
        where: dict[str, int] = {}
        last: dict[str, int] = {}
        for kind, taken, given in self._ops:
            reads = [int(i) for i in taken if int(i) in live]
            if not reads:
                continue
            weights = [int(i) for i in taken if int(i) >= 0 and int(i) not in live]
            for index in map(int, given):
                if index not in self._details:
                    continue
                detail = self._details[index]
                name = str(detail["name"])
                name = name if name not in where else f"{name}#{index}"
                live[index] = name
                if not _is_real(detail):
                    continue
                where[name] = index
                found = _RENAMED.fullmatch(name)
                module = _module(name, [str(self._details[i]["name"]) for i in weights if i in self._details])
                points.append(Point(
                    name, kind, name, module, tuple(dict.fromkeys(live[i] for i in reads)),
                    (found[1],) if found else (), kind in _WEIGHING and bool(weights),
                ))  # fmt: skip
                last[_scopes(name)[0]] = len(points) - 1
        for path, at in last.items():  # the last that a module computes is what it gives
            point = points[at]
            points[at] = Point(point.name, point.operator, point.node, point.module, point.inputs,
                               (*point.also, f"module {path}"), point.weighs)  # fmt: skip
        return points, where


def _scopes(name: str) -> list[str]:
    """The torch modules in a tensor's name, the last that worked on it first: "mix;mix.first.1:2" has two."""
    return [part.partition(":")[0] for part in name.split(";")]


def _module(name: str, weights: Sequence[str]) -> str:
    """The module that computes: among those fused into one operator, that of the weights, which stands last."""
    named = [scope for weight in weights for scope in _scopes(weight) if scope not in _NO_MODULE]
    return (named or _scopes(name))[-1] if named or ";" in name or "." in name else ""


def _keeping(artifact: Artifact, threads: int) -> Any:
    runtime = need("ai_edge_litert.interpreter", "ai-edge-litert")
    with captured():
        return runtime.Interpreter(
            model_path=str(artifact.path), num_threads=threads, experimental_preserve_all_tensors=True,
            experimental_op_resolver_type=runtime.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )  # fmt: skip


def _bytes(detail: Mapping[str, Any]) -> int:
    import numpy as np

    return int(np.prod(detail["shape"], dtype=np.int64) * np.dtype(detail["dtype"]).itemsize)


def _is_real(detail: Mapping[str, Any]) -> bool:
    import numpy as np

    kind = np.dtype(detail["dtype"]).kind
    return bool(kind == "f" or (kind in "iu" and len(detail["quantization_parameters"]["scales"])))


def _real(value: Any, detail: Mapping[str, Any]) -> Any:
    import numpy as np

    held = detail["quantization_parameters"]
    scales, zeros = held["scales"], held["zero_points"]
    if value.dtype.kind == "f" or not len(scales):
        return value.copy()
    if len(scales) > 1:
        shape = [1] * value.ndim
        shape[held["quantized_dimension"]] = -1
        scales, zeros = scales.reshape(shape), zeros.reshape(shape)
    return (value.astype(np.float64) - zeros) * scales


@contextmanager
def inside(artifact: Artifact, threads: int = 1) -> Iterator[TfliteInside]:
    """The inner tensors of a TFLite file, on the CPU."""
    yield TfliteInside(artifact, threads)
