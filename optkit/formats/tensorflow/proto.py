"""What TensorFlow's files say of themselves, read from their bytes: graphs, nodes, signatures. Loads no TensorFlow.

Field numbers are those of saved_model.proto, meta_graph.proto, graph.proto, node_def.proto and attr_value.proto.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optkit.artifact import TensorSpec
from optkit.errors import SourceError
from optkit.models.protobuf import LENGTH_DELIMITED, fields, varint

_TYPES = {
    1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 7: "string", 9: "int64", 10: "bool",
    14: "bfloat16", 17: "uint16", 19: "float16", 22: "uint32", 23: "uint64", 29: "int4", 30: "uint4",
}  # fmt: skip
_OTHERS = {8: "complex64", 11: "qint8", 12: "quint8", 13: "qint32", 15: "qint16", 16: "quint16", 18: "complex128",
           20: "resource", 21: "variant"}  # fmt: skip


@dataclass(frozen=True)
class Port:
    """A tensor of a signature. tensor: its name in the graph ("serving_default_x:0"), "" for a composite one.

    dtype: as optkit names it, or TensorFlow's name of one optkit does not know. shape: -1 for an unnamed dynamic axis,
    the name of a named one; None for an unknown rank.
    """

    tensor: str
    dtype: str
    shape: tuple[int | str, ...] | None

    def spec(self, name: str) -> TensorSpec:
        """The tensor by its name; an axis without one is called `<name>_<axis>`. Raises SourceError for its type."""
        if self.dtype not in _TYPES.values():
            raise SourceError(
                f"tensor {name!r} is of type {self.dtype}, which optkit does not know",
                subject="model",
                hint="export a signature of plain tensors",
            )
        shape = self.shape
        if shape is not None:
            shape = tuple(f"{name}_{axis}" if d == -1 else d for axis, d in enumerate(shape))
        return TensorSpec(name, self.dtype, shape)


@dataclass(frozen=True)
class SignatureDef:
    """A signature: inputs and outputs by name, in the file's order, and the method it stands for."""

    inputs: dict[str, Port]
    outputs: dict[str, Port]
    method: str = ""


@dataclass(frozen=True)
class Node:
    """A node of a graph; `inputs` as written ("name", "name:1", "^control")."""

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    dtype: str = ""
    shape: tuple[int | str, ...] | None = None


@dataclass(frozen=True)
class MetaGraph:
    """One of a SavedModel's graphs. nodes: those of its functions too. version: of the TensorFlow that wrote it."""

    tags: tuple[str, ...]
    version: str
    signatures: dict[str, SignatureDef]
    nodes: tuple[Node, ...] = field(repr=False, default=())


@contextmanager
def _mapped(path: Path, what: str) -> Iterator[Any]:
    """The file's bytes. Raises SourceError, also for the ValueError of a broken message."""
    try:
        with path.open("rb") as handle:
            if path.stat().st_size == 0:
                raise SourceError(f"{path} is empty", subject="model", hint="copy it again, or export it again")
            with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as view:
                if view[:23] == b"version https://git-lfs":
                    raise SourceError(f"{path.name} is a Git LFS pointer, not the model itself", hint="git lfs pull",
                                      subject="model")  # fmt: skip
                yield view
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}", subject="model") from error
    except ValueError as error:
        if _is_text(path):
            raise SourceError(f"{path} is a protobuf message in text form, and this takes the binary form",
                              hint="write it again with tf.io.write_graph(graph, folder, name, as_text=False)",
                              subject="model") from error  # fmt: skip
        raise SourceError(f"{path} is no {what}, or damaged ({error})", subject="model",
                          hint="copy it again, or export it again") from error  # fmt: skip


def _is_text(path: Path) -> bool:
    with path.open("rb") as handle:
        return re.match(rb"\s*(#.*\n\s*)*(node|meta_graphs|saved_model_schema_version|versions|library)\s*[{:]",
                        handle.read(4096)) is not None  # fmt: skip


def read_saved_model(path: Path, *, nodes: bool = False) -> list[MetaGraph]:
    """The graphs of a saved_model.pb; `nodes` too where asked for. Raises SourceError."""
    with _mapped(path, "SavedModel") as view:
        graphs = [_meta_graph(view, *span, nodes) for span in _messages(view, 0, len(view), 2)]
    if not graphs:
        raise SourceError(f"{path} is no SavedModel, or damaged (it holds no graph)", subject="model",
                          hint="copy it again, or export it again")  # fmt: skip
    return graphs


def read_graph(path: Path) -> list[Node]:
    """The nodes of a frozen GraphDef. Raises SourceError, by name for a SavedModel's file."""
    with _mapped(path, "frozen TensorFlow graph") as view:
        found = list(_nodes(view, 0, len(view)))
        named = [node for node in found if node.name and node.op.isidentifier()]
        if not found or len(named) != len(found):
            try:
                saved = [g for span in _messages(view, 0, len(view), 2) for g in [_meta_graph(view, *span, False)]]
            except ValueError:
                saved = []
            if any(g.signatures or g.tags for g in saved):
                raise SourceError(
                    f"{path} is the main file of a SavedModel, not a frozen graph",
                    subject="model.tf_graph",
                    hint=f"write model: {{savedmodel: {path.parent.name or path.parent}}}, its folder",
                )
            raise ValueError("it holds no nodes" if not found else "a node has no name or no operator")
    return found


# ------------------------------------------------------------------------------------------------ messages


def _messages(view: Any, start: int, stop: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Where each message in field `wanted` lies."""
    for number, wire, begin, end in fields(view, start, stop):
        if number == wanted and wire == LENGTH_DELIMITED:
            yield begin, end


def _text(view: Any, begin: int, end: int) -> str:
    return bytes(view[begin:end]).decode("utf-8")


def _meta_graph(view: Any, start: int, stop: int, with_nodes: bool) -> MetaGraph:
    tags: list[str] = []
    version = ""
    signatures: dict[str, SignatureDef] = {}
    nodes: tuple[Node, ...] = ()
    for number, wire, begin, end in fields(view, start, stop):
        if wire != LENGTH_DELIMITED:
            continue
        if number == 1:
            for inner, kind, first, last in fields(view, begin, end):
                if inner == 4 and kind == LENGTH_DELIMITED:
                    tags.append(_text(view, first, last))
                elif inner == 5 and kind == LENGTH_DELIMITED:
                    version = _text(view, first, last)
        elif number == 2 and with_nodes:
            nodes = (*_nodes(view, begin, end), *_functions(view, begin, end))
        elif number == 5:
            key, value = _entry(view, begin, end)
            signatures[key] = _signature(view, *value)
    return MetaGraph(tuple(tags), version, signatures, nodes)


def _entry(view: Any, start: int, stop: int) -> tuple[str, tuple[int, int]]:
    """Key and place of the value of a map's entry."""
    key, value = "", (stop, stop)
    for number, wire, begin, end in fields(view, start, stop):
        if wire == LENGTH_DELIMITED and number == 1:
            key = _text(view, begin, end)
        elif wire == LENGTH_DELIMITED and number == 2:
            value = (begin, end)
    return key, value


def _signature(view: Any, start: int, stop: int) -> SignatureDef:
    sides: dict[int, dict[str, Port]] = {1: {}, 2: {}}
    method = ""
    for number, wire, begin, end in fields(view, start, stop):
        if wire == LENGTH_DELIMITED and number in sides:
            key, value = _entry(view, begin, end)
            sides[number][key] = _port(view, *value)
        elif wire == LENGTH_DELIMITED and number == 3:
            method = _text(view, begin, end)
    return SignatureDef(sides[1], sides[2], method)


def _port(view: Any, start: int, stop: int) -> Port:
    name, dtype = "", ""
    shape: tuple[int | str, ...] | None = ()
    for number, wire, begin, end in fields(view, start, stop):
        if number == 1 and wire == LENGTH_DELIMITED:
            name = _text(view, begin, end)
        elif number == 2 and wire == 0:
            dtype = _dtype(varint(view, begin, end)[0])
        elif number == 3 and wire == LENGTH_DELIMITED:
            shape = _shape(view, begin, end)
        elif number in (4, 5) and wire == LENGTH_DELIMITED:
            dtype = "sparse or composite"
    return Port(name, dtype, shape)


def _dtype(number: int) -> str:
    return _TYPES.get(number) or _OTHERS.get(number, f"number {number}")


def _shape(view: Any, start: int, stop: int) -> tuple[int | str, ...] | None:
    dims: list[int | str] = []
    for number, wire, begin, end in fields(view, start, stop):
        if number == 3 and wire == 0 and varint(view, begin, end)[0]:
            return None
        if number == 2 and wire == LENGTH_DELIMITED:
            size, name = 0, ""
            for inner, kind, first, last in fields(view, begin, end):
                if inner == 1 and kind == 0:
                    size = varint(view, first, last)[0]
                elif inner == 2 and kind == LENGTH_DELIMITED:
                    name = _text(view, first, last)
            dims.append(size if size < 1 << 63 else name or -1)  # -1 is written as 2 ** 64 - 1
    return tuple(dims)


def _nodes(view: Any, start: int, stop: int, wanted: int = 1) -> Iterator[Node]:
    for span in _messages(view, start, stop, wanted):
        name, op, inputs, dtype, shape = "", "", [], "", None
        for number, wire, begin, end in fields(view, *span):
            if wire != LENGTH_DELIMITED:
                continue
            if number == 1:
                name = _text(view, begin, end)
            elif number == 2:
                op = _text(view, begin, end)
            elif number == 3:
                inputs.append(_text(view, begin, end))
            elif number == 5 and op == "Placeholder":
                key, value = _entry(view, begin, end)
                for inner, kind, first, last in fields(view, *value):
                    if key == "dtype" and inner == 6 and kind == 0:
                        dtype = _dtype(varint(view, first, last)[0])
                    elif key == "shape" and inner == 7 and kind == LENGTH_DELIMITED:
                        shape = _shape(view, first, last)
        yield Node(name, op, tuple(inputs), dtype, shape)


def _functions(view: Any, start: int, stop: int) -> Iterator[Node]:
    for library in _messages(view, start, stop, 2):
        for function in _messages(view, *library, 1):
            yield from _nodes(view, *function, 3)
