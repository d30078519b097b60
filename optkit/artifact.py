"""A model at rest, what goes in and comes out of it, and the digest that identifies it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

Shape = tuple["int | str", ...]

DTYPES = (
    "float32", "float64", "float16", "bfloat16", "int8", "int16", "int32", "int64",
    "uint8", "uint16", "uint32", "uint64", "bool", "int4", "uint4", "string",
)  # fmt: skip


@dataclass(frozen=True)
class Dim:
    """The sizes a named dynamic dimension may take: smallest, the one to tune for, largest."""

    min: int
    opt: int
    max: int

    def to_json(self) -> dict[str, int]:
        return {"min": self.min, "opt": self.opt, "max": self.max}

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes a check visits: min, opt, max and, where there is one, a size that is none of these.

        The extra size is odd, where one lies in the range: exporters that specialise tend to do so on the traced
        size, on 1, or on divisibility by a power of two.
        """
        named = [self.min, self.opt, self.max]
        centre = (self.min + self.max) // 2
        # Four odd numbers lie this near to any centre, and at most three of them are taken.
        near = [n for n in range(centre + 4, centre - 5, -1) if self.min < n < self.max and n not in named]
        middle = sorted(near, key=lambda n: (n % 2 == 0, abs(n - centre)))
        return tuple(dict.fromkeys(named + middle[:1]))


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    shape: per axis a size, or the name of a dynamic dimension; () is a scalar, None an unknown rank.
    layout: axis letters such as "NCHW", where it is known.
    range: smallest and largest value the input is meant to take, in the tensor's own unit.
    """

    name: str
    dtype: str
    shape: Shape | None
    layout: str | None = None
    range: tuple[float, float] | None = None

    @property
    def dynamic(self) -> tuple[str, ...]:
        """Names of the dynamic dimensions, in axis order."""
        return tuple(d for d in self.shape or () if isinstance(d, str))

    def resolved(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with every named dimension replaced by its size. Raises KeyError for a name without one."""
        return tuple(d if isinstance(d, int) else sizes[d] for d in self.shape or ())

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape) if self.shape is not None else None,
        }
        if self.layout:
            data["layout"] = self.layout
        if self.range:
            data["range"] = list(self.range)
        return data

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TensorSpec:
        shape = data["shape"]
        return TensorSpec(
            data["name"],
            data["dtype"],
            None if shape is None else tuple(shape),
            data.get("layout"),
            tuple(data["range"]) if data.get("range") else None,
        )

    def __str__(self) -> str:
        dims = "?" if self.shape is None else ", ".join(str(d) for d in self.shape)
        return f"{self.name}: {self.dtype}[{dims}]"


@dataclass(frozen=True)
class Signature:
    """Named inputs and outputs, in the model's own order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def input(self, name: str) -> TensorSpec:
        return next(t for t in self.inputs if t.name == name)

    @property
    def dynamic(self) -> tuple[str, ...]:
        """Names of the inputs' dynamic dimensions, in order of appearance."""
        return tuple(dict.fromkeys(d for t in self.inputs for d in t.dynamic))

    def to_json(self) -> dict[str, Any]:
        return {"inputs": [t.to_json() for t in self.inputs], "outputs": [t.to_json() for t in self.outputs]}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Signature:
        return Signature(
            tuple(TensorSpec.from_json(t) for t in data["inputs"]),
            tuple(TensorSpec.from_json(t) for t in data["outputs"]),
        )


@dataclass(frozen=True)
class Artifact:
    """A model at rest. Immutable: whoever changes a model makes another artifact.

    path: the file a runner opens (model.onnx, model.xml, model.pt2, torch.json).
    files: every file that belongs to it, relative to `path.parent` (external data, IR weights).
    digest: sha256 over the contents of `files`, or of what a descriptor points to; names nothing machine-specific.
    meta: what the format's own code needs to reopen it, JSON data.
    """

    format: str
    path: Path
    digest: str
    signature: Signature | None = None
    files: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files on disk."""
        return sum((self.path.parent / name).stat().st_size for name in self.files)

    def with_signature(self, signature: Signature) -> Artifact:
        return replace(self, signature=signature)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "path": str(self.path),
            "digest": self.digest,
            "files": list(self.files),
            "signature": self.signature.to_json() if self.signature else None,
            "meta": dict(self.meta),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Artifact:
        signature = data.get("signature")
        return Artifact(
            data["format"],
            Path(data["path"]),
            data["digest"],
            Signature.from_json(signature) if signature else None,
            tuple(data["files"]),
            data.get("meta") or {},
        )


def canonical(data: Any) -> str:
    """JSON with one spelling per value: what digests and cache keys are taken over."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(data: Any) -> str:
    """sha256 (hex) of JSON data."""
    return hashlib.sha256(canonical(data).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes, read in pieces."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_files(folder: Path, names: Iterable[str]) -> str:
    """sha256 (hex) over the relative names and contents of files under `folder`."""
    return digest_of([[name, digest_file(folder / name)] for name in sorted(names)])
