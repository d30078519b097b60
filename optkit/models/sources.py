"""The recipe's `model:` section as an Artifact: what file a runner opens, and the digest of all that decides it."""

from __future__ import annotations

import json
import pickletools
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from optkit.artifact import Artifact, digest_of
from optkit.cache import Cache
from optkit.data.imports import local_files, locate_module, project_root
from optkit.disk import FULL
from optkit.errors import SourceError
from optkit.models.protobuf import external_files
from optkit.models.tensorflow_sources import locate
from optkit.recipe import (
    ExportedSource,
    FileSource,
    HuggingFaceSource,
    KerasSource,
    OnnxSource,
    OpenVINOSource,
    PickleSource,
    Recipe,
    SavedModelSource,
    TFGraphSource,
    TorchScriptSource,
    TorchSource,
)

DESCRIPTOR = "torch.json"

_HUGGINGFACE = (".json", ".safetensors", ".bin", ".py", ".txt", ".model")
"""Endings of the files in a Hugging Face folder that decide what it computes."""


def source_artifact(recipe: Recipe, cache: Cache, *, known_only: bool = False) -> Artifact | None:
    """The source model at rest, its signature not yet known; loads no backend.

    A torch source becomes a descriptor, torch.json, kept in the cache. With `known_only`, None where the digest would
    mean reading a big file. Raises SourceError for a file that went missing.
    """
    try:
        if isinstance(recipe.model, OnnxSource | OpenVINOSource | FileSource):
            path, names = _files(recipe, cache)
            digest = cache.digest_all([path.parent / n for n in names], known_only=known_only)
            return None if digest is None else Artifact(recipe.source_format, path, digest, None, names)
        if isinstance(recipe.model, SavedModelSource | KerasSource | TFGraphSource):
            found = locate(recipe, recipe.model)
            own = [(name, cache.digest(found.path.parent / name, known_only=known_only)) for name in found.names]
            code = cache.digest_all(found.code, known_only=known_only)
            if code is None or any(one is None for _, one in own):
                return None
            digest = digest_of([recipe.source_format, *found.content, own, code])
            return Artifact(recipe.source_format, found.path, digest, None, found.names, found.meta)
        descriptor, content, hashed = _torch(recipe)
        files = cache.digest_all(hashed, known_only=known_only)
    except OSError as error:
        if error.errno in FULL:
            raise
        raise _unreadable(error) from error
    if files is None:
        return None
    digest = digest_of([*content, files])
    # Two checkouts of the same model share a digest, but not a place: the descriptor's key tells them apart.
    key = digest_of(["torch-source", digest, descriptor])
    entry = cache.get(key, shared=False)
    if entry is None:
        staged = cache.stage()
        _write(descriptor, staged)
        entry = cache.put(key, {}, staged, shared=False)
    return Artifact("torch", entry.folder / DESCRIPTOR, digest, None, (DESCRIPTOR,))


def opened_artifact(recipe: Recipe, folder: Path) -> Artifact:
    """The source model to be opened right away, without a digest; a torch source's descriptor is put into `folder`.

    Raises SourceError for a file that is not there.
    """
    try:
        if isinstance(recipe.model, OnnxSource | OpenVINOSource | FileSource):
            path, names = _files(recipe, None)
            return Artifact(recipe.source_format, path, "", None, names)
        if isinstance(recipe.model, SavedModelSource | KerasSource | TFGraphSource):
            found = locate(recipe, recipe.model)
            return Artifact(recipe.source_format, found.path, "", None, found.names, found.meta)
        return Artifact("torch", _write(_torch(recipe)[0], folder), "", None, (DESCRIPTOR,))
    except OSError as error:
        raise _unreadable(error) from error


def _unreadable(error: OSError) -> SourceError:
    if isinstance(error, FileNotFoundError) and error.filename:
        what = f"a file of the model is not there: {error.filename}"
    else:
        what = f"a file of the model cannot be read: {error}"
    return SourceError(what, subject="model", hint="check that it is there and readable")


def _write(descriptor: dict[str, Any], folder: Path) -> Path:
    path = folder / DESCRIPTOR
    path.write_text(json.dumps(descriptor, indent=1), encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------ model files


def _files(recipe: Recipe, cache: Cache | None) -> tuple[Path, tuple[str, ...]]:
    """A model's main file, and the names of all its files, relative to the folder they are in."""
    model = recipe.model
    if isinstance(model, OnnxSource):
        path = recipe.path(model.onnx).absolute()
        return path, (path.name, *_external(path, cache))
    if isinstance(model, FileSource):
        path = recipe.path(model.file).absolute()
        return path, (path.name, *model.files)
    assert isinstance(model, OpenVINOSource)
    path = recipe.path(model.openvino).absolute()
    weights = path.with_suffix(".bin")
    if path.is_file() and not weights.is_file():
        raise SourceError(
            f"{path.name} lies here without {weights.name}, which holds its weights",
            subject="model.openvino",
            hint="copy both files together",
        )
    return path, (path.name, weights.name)


def _external(path: Path, cache: Cache | None) -> tuple[str, ...]:
    """What an ONNX file keeps its weights in, relative to its folder. Raises SourceError for a file that is missing."""
    names = external_files(path) if cache is None else _known_external(path, cache)
    for name in names:
        windows = PureWindowsPath(name)
        if PurePosixPath(name).is_absolute() or windows.drive or windows.root or ".." in windows.parts:
            raise SourceError(
                f"{path.name} keeps weights at {name!r}, outside its own folder",
                subject="model.onnx",
                hint="save the model again with its external data beside it",
            )
        if not (path.parent / name).is_file():
            raise SourceError(
                f"{path.name} keeps weights in {name!r}, which is not beside it: it was left behind or renamed",
                subject="model.onnx",
                hint=f"put {name} into {path.parent}; a model is its whole folder",
            )
    return names


def _known_external(path: Path, cache: Cache) -> tuple[str, ...]:
    """`external_files`, remembered for as long as the file stays what it is."""
    digest = cache.digest(path, known_only=True)  # a big file is scanned sooner than it is read
    key = digest_of(["onnx-external", digest])
    entry = cache.get(key, shared=False) if digest else None
    if entry is not None:
        return tuple(entry.data["names"])
    names = external_files(path)
    if digest:
        cache.put(key, {"names": list(names)}, shared=False)
    return names


# ------------------------------------------------------------------------------------------------ torch


def torch_descriptor(recipe: Recipe) -> dict[str, Any]:
    """The `torch.json` of a recipe's torch model."""
    return _torch(recipe)[0]


def _torch(recipe: Recipe) -> tuple[dict[str, Any], list[Any], list[Path]]:
    """A torch source's descriptor, what of it decides the model wherever it lies, and the files that decide it."""
    model = recipe.model
    common: dict[str, Any] = {
        "inputs": [t.to_json() for t in recipe.inputs], "outputs": list(recipe.outputs) or None,
    }  # fmt: skip
    if isinstance(model, TorchSource):
        place, _, name = model.torch.rpartition(":")
        is_file = place.endswith(".py")
        weights = recipe.path(model.weights).absolute() if model.weights else None
        descriptor = {
            **common,
            "kind": "factory",
            "factory": f"{recipe.path(place).absolute()}:{name}" if is_file else model.torch,
            "kwargs": model.kwargs,
            "weights": str(weights) if weights else None,
            "trust_pickle": model.trust_pickle,
            "strict": model.strict,
        }
        files = [*_code_of(recipe, place, is_file), *([weights] if weights else [])]
        files += [f for text in model.files for f in _tree(recipe.path(text).absolute())]
        return descriptor, [common, "factory", name, model.kwargs, model.strict, place if not is_file else ""], files
    if isinstance(model, HuggingFaceSource):
        folder = recipe.path(model.huggingface).absolute()
        options = {"class": model.class_, "pooling": model.pooling, "normalize": model.normalize}
        descriptor = {**common, "kind": "huggingface", "path": str(folder), **options}
        return descriptor, [common, "huggingface", options], [p for p in _tree(folder) if p.suffix in _HUGGINGFACE]
    kind, key = {
        ExportedSource: ("exported", "pt2"),
        TorchScriptSource: ("torchscript", "torchscript"),
        PickleSource: ("pickle", "pickle"),
    }[type(model)]
    path = recipe.path(getattr(model, key)).absolute()
    trusted = getattr(model, "trust_pickle", False)
    code = _pickled_code(path) if isinstance(model, PickleSource) else []
    return {**common, "kind": kind, "path": str(path), "trust_pickle": trusted}, [common, kind], [path, *code]


def _pickled_code(path: Path) -> list[Path]:
    """The source files, none of an installed package, of the classes that a pickled module names; nothing is run."""
    if not zipfile.is_zipfile(path):
        return []
    modules: dict[str, None] = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if member.endswith("/data.pkl"):
                modules |= dict.fromkeys(_pickled_modules(archive.read(member)))
    files: dict[Path, None] = {}
    for name in modules:
        if project_root(name.split(".")[0]) and (file := locate_module(name)):
            files |= dict.fromkeys(local_files(file, name))
    return sorted(files, key=lambda p: (p.name, p))


def _pickled_modules(data: bytes) -> Iterator[str]:
    """The modules of what a pickle refers to by name."""
    texts: list[str] = []
    try:
        for opcode, value, _ in pickletools.genops(data):
            if opcode.name in ("GLOBAL", "INST"):
                yield str(value).split(" ")[0]
            elif opcode.name == "STACK_GLOBAL" and len(texts) > 1:
                yield texts[-2]
            elif isinstance(value, str):
                texts.append(value)
    except ValueError:  # whoever loads the file says what is wrong with it
        return


def _code_of(recipe: Recipe, place: str, is_file: bool) -> Iterable[Path]:
    if is_file:
        return local_files(recipe.path(place).absolute())
    file = locate_module(place)
    if file is None:
        raise SourceError(
            f"there is no module {place!r} with Python source on this machine",
            subject="model.torch",
            hint="install it, or name a file: models/net.py:build",
        )
    return local_files(file, place)


def _tree(path: Path) -> list[Path]:
    """The files of a folder, in one order wherever it lies; a file itself."""
    if not path.is_dir():
        return [path]
    inner = [p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return sorted(inner, key=lambda p: p.relative_to(path).parts)
