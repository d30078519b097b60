"""The bytes of an ONNX model's tensors, without holding them: a graph is read with references to its weights.

An embedded weight is referred to as external data that lies in the model file itself, so that one way of reading
serves both layouts. Field numbers are those of onnx.proto (ModelProto 7 graph, GraphProto 5 initializer, TensorProto
9 raw_data), the encoding that of https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Payloads = Mapping[str, "Callable[[], NDArray[Any]]"]

LAZY_FROM = 8 << 20  # bytes: a smaller file is parsed whole, which is faster than scanning it
SMALL = 1024  # bytes: tensors up to this size are always read (shapes, axes, scalars)
_LENGTH_DELIMITED = 2


def parse(path: Path) -> Any:
    """A ModelProto whose large initializers are references. Raises ValueError where the file is not protobuf."""
    import onnx

    if path.stat().st_size < LAZY_FROM:
        return onnx.ModelProto.FromString(path.read_bytes())
    with path.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as view:
        parts: list[bytes] = []
        for number, wire, begin, start, end in _fields(view, 0, len(view)):
            if number == 7 and wire == _LENGTH_DELIMITED:
                graph = b"".join(_graph_fields(view, start, end, path.name))
                parts += [b"\x3a", _varint(len(graph)), graph]
            else:
                parts.append(view[begin:end])
        return onnx.ModelProto.FromString(b"".join(parts))


def _graph_fields(view: Any, start: int, stop: int, location: str) -> Iterator[bytes]:
    import onnx

    for number, wire, begin, inner, end in _fields(view, start, stop):
        if number != 5 or wire != _LENGTH_DELIMITED or end - inner <= 4 * SMALL:
            yield view[begin:end]
            continue
        rest, raw = [], None
        for field, kind, first, data, last in _fields(view, inner, end):
            if field == 9 and kind == _LENGTH_DELIMITED:
                raw = (data, last - data)
            else:
                rest.append(view[first:last])
        tensor = onnx.TensorProto.FromString(b"".join(rest))
        if raw:
            refer(tensor, location, *raw)
        body = tensor.SerializeToString()
        yield b"\x2a" + _varint(len(body)) + body


def _fields(view: Any, at: int, stop: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Number, wire type, first byte of the tag, first and past-the-last byte of the value of each field."""
    while at < stop:
        begin = at
        tag, at = _read_varint(view, at, stop)
        wire, start = tag & 7, at
        if wire == 0:
            _, at = _read_varint(view, at, stop)
        elif wire == 1:
            at += 8
        elif wire == 5:
            at += 4
        elif wire == _LENGTH_DELIMITED:
            size, start = _read_varint(view, at, stop)
            at = start + size
        else:
            raise ValueError(f"wire type {wire} at byte {begin}")
        if at > stop:
            raise ValueError(f"the field at byte {begin} ends past the end of its message")
        yield tag >> 3, wire, begin, start, at


def _read_varint(view: Any, at: int, stop: int) -> tuple[int, int]:
    value = shift = 0
    while at < stop and shift < 64:
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError(f"a number at byte {at} does not end")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def refer(tensor: Any, location: str, offset: int, length: int) -> None:
    """Make a tensor a reference to `length` bytes of the file `location`."""
    import onnx

    for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(field)
    del tensor.external_data[:]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def reference(tensor: Any) -> tuple[str, int, int] | None:
    """Location, offset and length in bytes of a tensor kept elsewhere; None where the model holds it."""
    import onnx

    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    entries = {e.key: e.value for e in tensor.external_data}
    try:
        return entries.get("location", ""), int(entries.get("offset", 0)), int(entries.get("length", size_of(tensor)))
    except ValueError as error:
        raise ValueError(f"tensor {tensor.name!r} has a malformed external offset or length") from error


def size_of(tensor: Any) -> int:
    """Bytes of a tensor's values, from its dims and type; 0 for strings."""
    import math

    import onnx

    kinds, kind = onnx.TensorProto, tensor.data_type
    count: int = math.prod(tensor.dims)
    if kind in (kinds.STRING, kinds.UNDEFINED):
        return 0
    if kind in (kinds.INT4, kinds.UINT4, kinds.FLOAT4E2M1):
        return (count + 1) // 2
    if kind in (getattr(kinds, "INT2", -1), getattr(kinds, "UINT2", -1)):
        return (count + 3) // 4
    return int(count * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)


def read(tensor: Any, folder: Path) -> Array:
    """A tensor's values, memory-mapped where they lie in a file of `folder` and numpy has the type."""
    import numpy as np
    import onnx

    where, whole = reference(tensor), tensor
    if where is not None:
        location, offset, length = where
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        if length and dtype.isbuiltin == 1 and length == size_of(tensor):
            return np.memmap(folder / location, dtype, "r", offset, tuple(tensor.dims))
        whole = onnx.TensorProto(dims=tensor.dims, data_type=tensor.data_type, name=tensor.name)
        whole.raw_data = _bytes_at(folder / location, offset, length)
    values: Array = onnx.numpy_helper.to_array(whole)
    return values


def load_small(tensors: Iterable[Any], folder: Path, limit: int = SMALL) -> None:
    """Bring referenced tensors of up to `limit` bytes into the model."""
    for tensor in tensors:
        where = reference(tensor)
        if where and where[2] <= limit:
            embed(tensor, _bytes_at(folder / where[0], where[1], where[2]))


def embed(tensor: Any, raw: bytes) -> None:
    """Put a tensor's bytes into the model."""
    tensor.ClearField("data_location")
    del tensor.external_data[:]
    tensor.raw_data = raw


def _bytes_at(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as handle:
        handle.seek(offset)
        return handle.read(length)


def all_tensors(model: Any) -> Iterator[Any]:
    """Every dense TensorProto of a model: initializers, attributes, those of subgraphs and functions."""
    yield from model.graph.initializer
    yield from _inner(model.graph)
    for function in model.functions:
        yield from _inner(function)


def _inner(graph: Any) -> Iterator[Any]:
    for sparse in getattr(graph, "sparse_initializer", ()):
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            if attribute.HasField("sparse_tensor"):
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
            yield from attribute.tensors
            for subgraph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from subgraph.initializer
                yield from _inner(subgraph)


def write_external(model: Any, path: Path, data: str, source: Path, payloads: Payloads) -> None:
    """Write a model whose tensors above `SMALL` bytes lie in the file `data` beside it, one tensor at a time.

    Afterwards `model` refers to the new file.
    """
    with (path.parent / data).open("wb") as out:
        for tensor in all_tensors(model):
            size = size_of(tensor)
            if size <= SMALL:
                if tensor.name in payloads:
                    embed(tensor, payloads[tensor.name]().tobytes())
                elif reference(tensor):
                    load_small([tensor], source)
                continue
            # 4 KiB boundaries let a runtime map large tensors instead of copying them
            out.write(b"\0" * (-out.tell() % (4096 if size >= 65536 else 64)))
            offset = out.tell()
            _copy(tensor, source, payloads, out)
            refer(tensor, data, offset, out.tell() - offset)
    path.write_bytes(model.SerializeToString())


def write_embedded(model: Any, path: Path, source: Path, payloads: Payloads) -> None:
    """Write a model as one file, one referenced tensor at a time. `model` keeps its references."""
    import onnx

    inner = [*_inner(model.graph), *(t for function in model.functions for t in _inner(function))]
    load_small(inner, source, 1 << 62)
    if not payloads and not any(reference(t) for t in model.graph.initializer):
        path.write_bytes(model.SerializeToString())
        return
    kept = list(model.graph.initializer)
    del model.graph.initializer[:]
    graph = model.graph.SerializeToString()
    shell = onnx.ModelProto()
    for field, value in model.ListFields():
        if field.name != "graph":
            _assign(shell, field, value)
    heads = [_head(t, payloads) for t in kept]
    sizes = [len(head) + len(tail) + size for head, tail, size in heads]
    total = len(graph) + sum(1 + len(_varint(size)) + size for size in sizes)
    with path.open("wb") as out:
        out.write(shell.SerializeToString() + b"\x3a" + _varint(total) + graph)
        for tensor, (head, tail, size), length in zip(kept, heads, sizes, strict=True):
            out.write(b"\x2a" + _varint(length) + head + tail)
            if size:
                _copy(tensor, source, payloads, out)
    model.graph.initializer.extend(kept)


def _assign(target: Any, field: Any, value: Any) -> None:
    if isinstance(value, (int, str, bytes)):
        setattr(target, field.name, value)
    elif hasattr(value, "extend"):
        getattr(target, field.name).extend(value)
    else:
        getattr(target, field.name).CopyFrom(value)


def _head(tensor: Any, payloads: Payloads) -> tuple[bytes, bytes, int]:
    """A tensor's fields without its raw data, the tag and length of that, and the data's size."""
    import onnx

    if tensor.name not in payloads and reference(tensor) is None:
        return tensor.SerializeToString(), b"", 0
    head = onnx.TensorProto(
        dims=tensor.dims, data_type=tensor.data_type, name=tensor.name, doc_string=tensor.doc_string
    )
    size = size_of(tensor)
    return head.SerializeToString(), b"\x4a" + _varint(size), size


def _copy(tensor: Any, source: Path, payloads: Payloads, out: IO[bytes]) -> None:
    where = None if tensor.name in payloads else reference(tensor)
    if where:
        with (source / where[0]).open("rb") as handle:
            handle.seek(where[1])
            left = where[2]
            while left:
                piece = handle.read(min(left, 8 << 20))
                if not piece:
                    raise ValueError(f"{where[0]} ends before the values of {tensor.name!r}")
                left -= out.write(piece)
        return
    if tensor.name not in payloads and tensor.raw_data:
        out.write(tensor.raw_data)
        return
    values = payloads[tensor.name]() if tensor.name in payloads else read(tensor, source)
    if values.nbytes != size_of(tensor):
        raise ValueError(f"{tensor.name!r}: {values.nbytes} bytes for {size_of(tensor)}")
    out.write(_flat(values))


def _flat(values: Array) -> memoryview:
    import numpy as np

    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def placeholder(name: str, dims: Sequence[int], dtype: np.dtype[Any]) -> Any:
    """A tensor without values: they come from the `payloads` of a save, under this name."""
    import onnx

    tensor = onnx.TensorProto(name=name, dims=dims, data_type=onnx.helper.np_dtype_to_tensor_dtype(dtype))
    refer(tensor, "", 0, size_of(tensor))
    return tensor
