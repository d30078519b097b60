"""Samples from a NumPy .npz file, read row by row out of the zip's own streams."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from optkit.artifact import Dim, TensorSpec
from optkit.data.check import check_names
from optkit.data.source import Array, Row, Source, fault, label_of
from optkit.errors import did_you_mean
from optkit.spec.dataspec import NpzData, existing, label_names, resolve_path

_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError)


@dataclass(frozen=True)
class _Header:
    """What stands before an array's bytes: shape with the sample axis first, and dtype."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def open_npz(spec: NpzData, base: Path, inputs: Sequence[TensorSpec], dims: Mapping[str, Dim], name: str) -> Source:
    """Rows along axis 0 of each array. Reads the headers; raises DataError when they don't fit together."""
    path = existing(resolve_path(spec.npz, base), name)
    headers = _headers(path, name)
    check_names(
        name,
        headers,
        inputs,
        path.name,
        labels=label_names(spec),
        ignore=spec.ignore,
        extra_hint="name the labels with label:, and what is not needed with ignore: [...]",
    )
    labels = label_names(spec)
    used = [*(i.name for i in inputs), *labels]
    counts = {}
    for key in used:
        header = headers[key]
        if isinstance(header, str):
            raise fault(
                name,
                f"array {key!r} of {path.name} {header}",
                f"save it again as numbers, with np.savez({path.name!r}, {key}=np.ascontiguousarray({key}))",
            )
        if not header.shape:
            raise fault(
                name,
                f"array {key!r} of {path.name} is a single number, without a sample axis",
                f"save one per sample, shape (samples,), or leave it out with ignore: [{key}]",
            )
        counts[key] = header.shape[0]
    if len(set(counts.values())) > 1:
        raise fault(
            name,
            "the arrays disagree on the number of samples: "
            + ", ".join(f"{key} {count}" for key, count in counts.items()),
            "axis 0 counts the samples in each",
        )
    for key, order in spec.transpose.items():
        if key not in used:
            raise fault(name, f"transpose: no input is called {key!r}", did_you_mean(key, [i.name for i in inputs]))
        header = headers[key]
        assert isinstance(header, _Header)
        if len(order) != len(header.shape) - 1:
            what = f"transpose: {key!r} has {len(header.shape) - 1} axes per sample, the order given {len(order)}"
            raise fault(name, what, "list each axis of a sample once, without the batch: [1, 2, 0]")
    count = counts[used[0]]
    if count == 0:
        raise fault(
            name, f"{path.name} has no samples", "put some in it: axis 0 of its arrays is empty", code="OPK-232"
        )

    about: dict[str, Any] = {"kind": "npz"}
    if spec.transpose:
        about["transpose"] = {key: list(order) for key, order in spec.transpose.items()}

    def rows() -> Iterator[Row]:
        with ExitStack() as opened:
            try:
                archive = opened.enter_context(zipfile.ZipFile(path))
                streams = {key: opened.enter_context(archive.open(f"{key}.npy")) for key in used}
                now = {key: _read_header(stream) for key, stream in streams.items()}
            except _BROKEN as error:
                raise _damaged(path, name, error) from error
            if any(now[key] != headers[key] for key in used):
                raise fault(name, f"{path.name} was changed while it was in use", "run again")
            for index in range(count):
                row = {key: _row(stream, headers[key], path, name, index) for key, stream in streams.items()}
                row |= {key: np.ascontiguousarray(row[key].transpose(order)) for key, order in spec.transpose.items()}
                yield row, label_of(spec.label, {key: row.pop(key) for key in labels})
            for key, stream in streams.items():  # reading on to the end checks the zip's own checksum
                if _read(stream, 1, path, name):
                    raise _damaged(path, name, ValueError(f"{key!r} is longer than its header says"))

    return Source(rows, lambda: count, bool(labels), about)


def _row(stream: IO[bytes], header: _Header | str, path: Path, name: str, index: int) -> Array:
    assert isinstance(header, _Header)
    size = math.prod(header.shape[1:]) * header.dtype.itemsize
    data = _read(stream, size, path, name)
    if len(data) != size:
        raise _damaged(path, name, EOFError(f"it ends within sample {index}"))
    # A copy through bytearray: the caller may write to its sample.
    return np.frombuffer(bytearray(data), header.dtype).reshape(header.shape[1:])


def _read(stream: IO[bytes], size: int, path: Path, name: str) -> bytes:
    """Up to `size` bytes; fewer only at the end of the member."""
    parts = []
    try:
        while size > 0 and (part := stream.read(size)):
            parts.append(part)
            size -= len(part)
    except _BROKEN as error:
        raise _damaged(path, name, error) from error
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _damaged(path: Path, name: str, error: Exception) -> Exception:
    hint = "make the file again with np.savez"
    if path.suffix == ".npy":
        hint = "this is a single array: save it with np.savez, named as the model's input"
    return fault(name, f"{path.name} is no readable .npz file ({type(error).__name__}: {error})", hint)


def _headers(path: Path, name: str) -> dict[str, _Header | str]:
    """Per array its header, or why it can't be read in rows."""
    headers: dict[str, _Header | str] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if not member.endswith(".npy"):
                    headers[member] = "is no array"
                    continue
                with archive.open(member) as stream:
                    headers[member.removesuffix(".npy")] = _read_header(stream)
    except _BROKEN as error:
        raise _damaged(path, name, error) from error
    return headers


def _read_header(stream: IO[bytes]) -> _Header | str:
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        return "has a header with field names that are not Latin-1"
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        return "holds pickled Python objects, which optkit does not load"
    if dtype.names:
        return "holds records, not plain numbers"
    if fortran and len(shape) > 1:
        return "is stored column by column (Fortran order), so its samples can't be read one after the other"
    return _Header(shape, dtype)
