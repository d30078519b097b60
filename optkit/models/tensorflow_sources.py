"""TensorFlow kinds of source: the file a runner opens, and all that decides what the model is. Loads no TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optkit.data.imports import local_files, locate_module
from optkit.errors import SourceError
from optkit.formats.tensorflow.savedmodel import MAIN, files
from optkit.recipe import KerasSource, Recipe, SavedModelSource, TFGraphSource
from optkit.spec.dataspec import is_file, split_callable


@dataclass(frozen=True)
class Located:
    """A source on disk.

    path: what a runner opens. names: the model's own files, relative to `path.parent`. meta: what opening it needs.
    content: what of the recipe decides the model, wherever it lies. code: files of the user's that decide it too.
    """

    path: Path
    names: tuple[str, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    content: tuple[Any, ...] = ()
    code: tuple[Path, ...] = ()


def locate(recipe: Recipe, model: SavedModelSource | KerasSource | TFGraphSource) -> Located:
    """Where a TensorFlow source lies. Raises SourceError for one that is not there."""
    if isinstance(model, SavedModelSource):
        path = saved_model(recipe.path(model.savedmodel).absolute())
        chosen = {"signature": model.signature} if model.signature else {}
        return Located(path, files(path), chosen, (chosen,))
    if isinstance(model, TFGraphSource):
        path = recipe.path(model.tf_graph).absolute()
        ends = {"inputs": [_tensor(n) for n in model.inputs], "outputs": [_tensor(n) for n in model.outputs]}
        return Located(path, (path.name,), ends, (ends,))
    path = recipe.path(model.keras).absolute()
    declared: dict[str, Any] = {"inputs": [spec.to_json() for spec in recipe.inputs], "outputs": list(recipe.outputs)}
    place, name = "", ""
    code: tuple[Path, ...] = ()
    if model.custom_objects:
        place, name = split_callable(model.custom_objects)
        code = (*_code(recipe, place), *(recipe.path(text).absolute() for text in model.files))
        place = str(recipe.path(place).absolute()) if is_file(place) else place
    meta = {**declared, "custom_objects": f"{place}:{name}"} if place else declared
    return Located(path, (path.name,), meta, (declared, name, "" if is_file(place) else place), code)


def _tensor(name: str) -> str:
    """A tensor's name without the ":0" that every first output of a node has."""
    return name.removesuffix(":0")


def _code(recipe: Recipe, place: str) -> Iterable[Path]:
    if is_file(place):
        return local_files(recipe.path(place).absolute())
    file = locate_module(place)
    if file is None:
        raise SourceError(
            f"there is no module {place!r} with Python source on this machine",
            subject="model.custom_objects",
            hint="install it, or name a file: models/layers.py:CUSTOM_OBJECTS",
        )
    return local_files(file, place)


def saved_model(path: Path) -> Path:
    """The saved_model.pb that a path means: itself, that of the folder, or of the one version folder in it.

    Raises SourceError for anything else.
    """
    if path.is_file() and path.name == MAIN:
        return path
    if not path.is_dir():
        hint = "a SavedModel is the folder with saved_model.pb in it" if path.exists() else "check the path"
        what = f"{path} is no SavedModel folder" if path.exists() else f"there is no folder {path}"
        raise SourceError(what, subject="model.savedmodel", hint=hint)
    if (path / MAIN).is_file():
        return path / MAIN
    versions = version_folders(path)
    if len(versions) > 1:
        raise SourceError(
            f"{path} holds versions {', '.join(p.name for p in versions)} of a SavedModel",
            subject="model.savedmodel",
            hint=f"name one: {versions[-1]}",
        )
    if versions:
        return versions[0] / MAIN
    if (path / f"{MAIN}txt").is_file():
        raise SourceError(f"{path} holds {MAIN}txt, which is text", subject="model.savedmodel",
                          hint="export the model again, as_text=False")  # fmt: skip
    raise SourceError(f"{path} is no SavedModel: it has no {MAIN}", subject="model.savedmodel",
                      hint="name the folder that holds saved_model.pb and variables/")  # fmt: skip


def version_folders(path: Path) -> list[Path]:
    """The folders called by a number, as TensorFlow Serving wants them, that hold a SavedModel; oldest first."""
    inner = [p for p in path.iterdir() if p.name.isdecimal() and (p / MAIN).is_file()]
    return sorted(inner, key=lambda p: int(p.name))
