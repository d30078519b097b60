"""The recipe's `model:` section as an Artifact: what file a runner opens, and the digest of all that decides it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from optkit.artifact import Artifact, digest_of
from optkit.cache import Cache
from optkit.data.imports import local_files, locate_module
from optkit.errors import SourceError
from optkit.recipe import (
    ExportedSource,
    FileSource,
    HuggingFaceSource,
    OnnxSource,
    OpenVINOSource,
    PickleSource,
    Recipe,
    TorchScriptSource,
    TorchSource,
)

_SIDE_FILES = (".data", ".bin")


def source_artifact(recipe: Recipe, cache: Cache, *, known_only: bool = False) -> Artifact | None:
    """The source model at rest, its signature not yet known; loads no backend.

    A torch source becomes a descriptor, torch.json, kept in the cache. With `known_only`, None where the digest would
    mean reading a big file. Raises SourceError for a file that went missing.
    """
    try:
        if isinstance(recipe.model, OnnxSource | OpenVINOSource | FileSource):
            return _file_artifact(recipe, cache, known_only)
        return _torch_artifact(recipe, cache, known_only)
    except OSError as error:
        raise SourceError(
            f"a file of the model cannot be read: {error}", subject="model", hint="check that it is there and readable"
        ) from error


def _file_artifact(recipe: Recipe, cache: Cache, known_only: bool) -> Artifact | None:
    model = recipe.model
    if isinstance(model, OnnxSource):
        path = recipe.path(model.onnx).absolute()
        names = _onnx_files(path)
    elif isinstance(model, FileSource):
        path = recipe.path(model.file).absolute()
        names = (path.name, *model.files)
    else:
        assert isinstance(model, OpenVINOSource)
        path = recipe.path(model.openvino).absolute()
        names = (path.name, path.with_suffix(".bin").name)
        if not path.with_suffix(".bin").is_file():
            raise SourceError(
                f"{path.name} lies here without {path.with_suffix('.bin').name}, which holds its weights",
                subject="model.openvino",
                hint="copy both files together",
            )
    digest = cache.digest_all([path.parent / n for n in names], known_only=known_only)
    return None if digest is None else Artifact(recipe.source_format, path, digest, None, names)


def _onnx_files(path: Path) -> tuple[str, ...]:
    """The file and what it keeps its weights in, found without a protobuf reader: its neighbours that it names.

    External data locations stand in the file as plain text; a neighbour of a common ending whose name occurs in the
    first or last megabyte is one. Whether all of them are there is checked when the file is opened.
    """
    neighbours = [p for p in path.parent.iterdir() if p != path and p.is_file()]
    if not neighbours:
        return (path.name,)
    blob = path.read_bytes() if path.stat().st_size < 256 << 20 else b""
    return (path.name, *sorted(p.name for p in neighbours if p.name.encode() in blob))


def _torch_artifact(recipe: Recipe, cache: Cache, known_only: bool) -> Artifact | None:
    model = recipe.model
    descriptor: dict[str, Any] = {
        "inputs": [t.to_json() for t in recipe.inputs], "outputs": list(recipe.outputs) or None,
    }  # fmt: skip
    content: list[Any] = [descriptor.copy()]
    hashed: list[Path] = []
    if isinstance(model, TorchSource):
        place, _, name = model.torch.rpartition(":")
        is_file = place.endswith(".py")
        factory = f"{recipe.path(place).absolute()}:{name}" if is_file else model.torch
        weights = recipe.path(model.weights).absolute() if model.weights else None
        descriptor |= {
            "kind": "factory",
            "factory": factory,
            "kwargs": model.kwargs,
            "weights": str(weights) if weights else None,
            "trust_pickle": model.trust_pickle,
            "strict": True,
        }
        content += ["factory", name, model.kwargs, place if not is_file else ""]
        hashed += _code_of(recipe, place, is_file)
        hashed += [weights] if weights else []
        hashed += [f for t in model.files for f in _tree(recipe.path(t))]
    elif isinstance(model, HuggingFaceSource):
        folder = recipe.path(model.huggingface).absolute()
        descriptor |= {
            "kind": "huggingface",
            "path": str(folder),
            "class": model.class_,
            "pooling": model.pooling,
            "normalize": model.normalize,
        }
        content += ["huggingface", model.class_, model.pooling, model.normalize]
        hashed += [p for p in _tree(folder) if p.suffix in (".json", ".safetensors", ".bin", ".py", ".txt", ".model")]
    else:
        kind, text = {
            ExportedSource: ("exported", "pt2"),
            TorchScriptSource: ("torchscript", "torchscript"),
            PickleSource: ("pickle", "pickle"),
        }[type(model)]
        path = recipe.path(getattr(model, text)).absolute()
        descriptor |= {"kind": kind, "path": str(path), "trust_pickle": getattr(model, "trust_pickle", False)}
        content += [kind]
        hashed.append(path)
    files = cache.digest_all(hashed, known_only=known_only)
    if files is None:
        return None
    digest = digest_of([*content, files])
    # Two checkouts of the same model share a digest, but not a place: the descriptor's key tells them apart.
    key = digest_of(["torch-source", digest, descriptor])
    entry = cache.get(key)
    if entry is None:
        staged = cache.stage()
        (staged / "torch.json").write_text(json.dumps(descriptor, indent=1), encoding="utf-8")
        entry = cache.put(key, {}, staged)
    return Artifact("torch", entry.folder / "torch.json", digest, None, ("torch.json",))


def _code_of(recipe: Recipe, place: str, is_file: bool) -> list[Path]:
    if is_file:
        return list(local_files(recipe.path(place)))
    file = locate_module(place)
    if file is None:
        raise SourceError(
            f"there is no module {place!r} with Python source on this machine",
            subject="model.torch",
            hint="install it, or name a file: models/net.py:build",
        )
    return list(local_files(file, place))


def _tree(path: Path) -> list[Path]:
    return (
        sorted(p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts) if path.is_dir() else [path]
    )
