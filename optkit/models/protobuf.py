"""Protocol buffers read without their libraries, and the names of the files an ONNX model keeps its weights in.

Only what leads to a TensorProto's `external_data` is looked at; weights inside the file are stepped over. Field numbers
are those of onnx.proto, the encoding that of https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Message -> field number -> message in that field.
_INNER: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
LENGTH_DELIMITED = 2


def external_files(path: Path) -> tuple[str, ...]:
    """The locations of external data that an ONNX file names, sorted; none for a file that is no ONNX model.

    Raises OSError when it cannot be read.
    """
    with path.open("rb") as handle:
        if path.stat().st_size == 0:
            return ()
        with mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as view:
            try:
                places = {name for span in _tensors(view, "model", 0, len(view)) for name in _locations(view, *span)}
            except ValueError:  # whoever opens the file says what is wrong with it
                return ()
    return tuple(sorted(places))


def _tensors(view: Any, message: str, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Where each TensorProto of a message lies."""
    for number, wire, begin, end in fields(view, start, stop):
        inner = _INNER[message].get(number)
        if inner is None or wire != LENGTH_DELIMITED:
            continue
        if inner == "tensor":
            yield begin, end
        else:
            yield from _tensors(view, inner, begin, end)


def _locations(view: Any, start: int, stop: int) -> Iterator[str]:
    """The "location" among a tensor's `external_data` (13), where its `data_location` (14) is EXTERNAL (1)."""
    external, entries = False, []
    for number, wire, begin, end in fields(view, start, stop):
        if number == 14 and wire == 0:
            external = varint(view, begin, end)[0] == 1
        elif number == 13 and wire == LENGTH_DELIMITED:
            entries.append((begin, end))
    for entry in entries if external else []:
        found = {number: view[begin:end] for number, _, begin, end in fields(view, *entry)}
        if found.get(1) == b"location" and 2 in found:
            yield found[2].decode("utf-8", "replace")


def fields(view: Any, at: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, first and past-the-last byte of the value of each field. Raises ValueError for no message."""
    while at < stop:
        tag, at = varint(view, at, stop)
        wire, begin = tag & 7, at
        if wire == 0:
            _, at = varint(view, at, stop)
        elif wire == LENGTH_DELIMITED:
            size, begin = varint(view, at, stop)
            at = begin + size
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if at > stop:
            raise ValueError("a field ends past its message")
        yield tag >> 3, wire, begin, at


def varint(view: Any, at: int, stop: int) -> tuple[int, int]:
    """A number and where it ends. Raises ValueError where it does not."""
    value = shift = 0
    while at < stop and shift < 64:
        byte = view[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a number does not end")
