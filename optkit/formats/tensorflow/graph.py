"""A frozen TensorFlow graph at rest: a GraphDef whose weights are constants, and which of its tensors go in and out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optkit.artifact import Signature
from optkit.errors import SourceError, did_you_mean
from optkit.formats.tensorflow import core as tf_core
from optkit.formats.tensorflow import session as tf_session
from optkit.formats.tensorflow.proto import Node, Port, read_graph
from optkit.plugin import need

MAIN = "graph.pb"
SHOWN = 8
_PLACEHOLDERS = ("Placeholder", "PlaceholderWithDefault", "PlaceholderV2")
_NO_OUTPUT = (*_PLACEHOLDERS, "Const", "NoOp", "Assert", "SaveV2", "RestoreV2", "Print")
_VARIABLES = ("VarHandleOp", "VariableV2", "Variable")


@dataclass(frozen=True)
class Graph:
    """A graph made into a function. call: TensorFlow tensors by input name, to such by output name."""

    concrete: Any
    signature: Signature
    call: Callable[[Mapping[str, Any]], Mapping[str, Any]]


def candidates(nodes: Sequence[Node]) -> tuple[list[str], list[str]]:
    """What may go in (placeholders) and what may come out (what no other node takes)."""
    taken = {name.lstrip("^").partition(":")[0] for node in nodes for name in node.inputs}
    ends = [node.name for node in nodes if node.name not in taken and node.op not in _NO_OUTPUT]
    return [node.name for node in nodes if node.op in _PLACEHOLDERS], ends


def load(path: Path, meta: Mapping[str, Any] | None = None) -> Graph:
    """The function from the tensors that `meta` names under "inputs" to those under "outputs". Raises SourceError."""
    inputs, outputs = chosen(path, read_graph(path), meta or {})
    tf = tf_core.load()
    protos = need("tensorflow.core.framework.graph_pb2", tf_core.DISTRIBUTION)
    try:
        with tf_session.loading():
            definition = protos.GraphDef.FromString(path.read_bytes())
            wrapped = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(definition, name=""), [])
            feeds, fetches = ([wrapped.graph.as_graph_element(tensor(n)) for n in names] for names in (inputs, outputs))
            concrete = wrapped.prune(feeds, fetches)
    except Exception as error:  # protobuf's, TensorFlow's and Python's own errors
        raise SourceError(
            f"{path} cannot be made into a function of {', '.join(inputs)}: {tf_core.reason(error)}",
            subject="model.tf_graph",
            details=str(error),
            hint="check inputs: and outputs: under model:, and that the graph has no operators of its own",
        ) from error
    signature = Signature(
        tuple(_port(n, t).spec(n) for n, t in zip(inputs, feeds, strict=True)),
        tuple(_port(n, t).spec(n) for n, t in zip(outputs, fetches, strict=True)),
    )

    def call(tensors: Mapping[str, Any]) -> dict[str, Any]:
        return dict(zip(outputs, concrete(*(tensors[name] for name in inputs)), strict=True))

    return Graph(concrete, signature, call)


def tensor(name: str) -> str:
    """A tensor's full name: "image:0" for the first output of the node "image"."""
    return name if ":" in name else f"{name}:0"


def _port(name: str, element: Any) -> Port:
    shape = element.shape
    return Port(name, element.dtype.name, None if shape.rank is None else tuple(
        -1 if size is None else int(size) for size in shape.as_list()))  # fmt: skip


def chosen(path: Path, nodes: Sequence[Node], meta: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The names of the inputs and outputs. Raises SourceError for those that lack, with what they might be."""
    if variables := [node.name for node in nodes if node.op in _VARIABLES]:
        raise SourceError(
            f"{path} is not frozen: {variables[0]!r} is a variable, whose value is not in the file",
            subject="model.tf_graph",
            hint="export a SavedModel instead, and write model: {savedmodel: FOLDER}",
        )
    listed = candidates(nodes)
    for kind, found in zip(("inputs", "outputs"), listed, strict=True):
        if not meta.get(kind):
            shown = ", ".join(found[:SHOWN]) + (", ..." if len(found) > SHOWN else "")
            ends = " and ".join(
                f"{k}: [{', '.join(f[:SHOWN])}]" for k, f in zip(("inputs", "outputs"), listed, strict=True)
            )
            raise SourceError(
                f"a frozen graph does not say what its {kind} are; in {path.name} they might be {shown or 'nothing'}",
                subject=f"model.{kind}",
                hint=f"add to model: {ends}",
            )
        known = {node.name for node in nodes}
        for name in meta[kind]:
            if name.partition(":")[0] not in known:
                hint = did_you_mean(name, found, listing=False) or did_you_mean(name, known, listing=False)
                raise SourceError(f"{path.name} has no tensor {name!r}", subject=f"model.{kind}",
                                  hint=hint or f"they might be {', '.join(found[:SHOWN])}")  # fmt: skip
    return list(meta["inputs"]), list(meta["outputs"])


def describe(path: Path, meta: Mapping[str, Any] | None = None) -> Signature:
    """What goes in and comes out; see `load`."""
    return load(path, meta).signature


def inspect(path: Path) -> dict[str, Any]:
    """JSON data about a graph: operators, and what its inputs and outputs might be."""
    nodes = read_graph(path)
    inputs, outputs = candidates(nodes)
    operators = Counter(node.op for node in nodes if node.op not in ("Const", "NoOp", *_PLACEHOLDERS))
    return {"operators": dict(operators.most_common()), "inputs_may_be": inputs, "outputs_may_be": outputs[:SHOWN]}
