"""Mistakes in the parts of a recipe around its steps: the model, its inputs and dims, the data. Opens none of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from optkit.errors import UserError, did_you_mean
from optkit.recipe import FileSource, KerasSource, PickleSource, Recipe, SavedModelSource, TorchSource
from optkit.spec.dataspec import files as data_files
from optkit.spec.dataspec import is_file, split_callable
from optkit.spec.yamlread import Key

Note = Callable[..., None]
"""note(key, what, hint, *about): a mistake at `key`; it is left out where one in a key of `about` is told already."""

_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")
_FILES = ("pt2", "torchscript", "pickle", "huggingface", "onnx", "openvino", "keras", "tf_graph", "file")
_KNOW_INPUTS = ("onnx", "openvino", "pt2", "savedmodel", "keras", "tf_graph", "file")
_FROM = "paths start from the recipe's folder"


def check_parts(recipe: Recipe, note: Note) -> None:
    """Note every mistake in the parts around the steps."""
    if ("model",) not in recipe.faults:
        _check_model(recipe, note)
    _check_dims(recipe, note)
    _check_data(recipe, note)


def check_file(recipe: Recipe, text: str, note: Note, key: Key, what: str, *, folder: bool = False) -> Path | None:
    """The file (or folder) a path of the recipe leads to; None, noted, when there is none."""
    kind = "folder" if folder else "file"
    try:
        path = recipe.path(text).absolute()
        if path.is_dir() if folder else path.is_file():
            return path
        hint = f"it is a {'file' if folder else 'folder'}" if path.exists() else _near(path)
        note(key, f"{what}: there is no {kind} {path}", hint, key, code="OPK-214")
    except UserError as error:
        note(key, f"{what}: {error.what}", error.hint, key)
    except (OSError, ValueError) as error:  # a name too long, a null byte
        note(key, f"{what}: {text!r:.80} is no path: {error}", _FROM, key)
    return None


def _near(path: Path) -> str:
    try:
        return did_you_mean(path.name, [p.name for p in path.parent.iterdir()], listing=False) or _FROM
    except OSError:
        return f"nor is there a folder {path.parent}; {_FROM}"


def _check_model(recipe: Recipe, note: Note) -> None:
    model = recipe.model
    if isinstance(model, TorchSource):
        _check_torch(recipe, model, note)
        kind = "torch"
    elif isinstance(model, SavedModelSource):
        _check_saved_model(recipe, model, note)
        kind = "savedmodel"
    else:
        written = model.model_dump(by_alias=True)
        kind = next(k for k in _FILES if k in written)
        check_file(recipe, written[kind], note, ("model", kind), f"model.{kind}", folder=kind == "huggingface")
    if isinstance(model, PickleSource) and not model.trust_pickle:
        hint = "add `trust_pickle: true` if you trust it, or save a state dict and name its factory"
        what = "model.pickle: a pickled module runs code from its file when it is loaded"
        note(("model", "pickle"), what, hint, ("model", "trust_pickle"), code="OPK-221")
    if isinstance(model, FileSource):
        _check_plugin_file(recipe, model, note)
    if isinstance(model, KerasSource):
        if model.custom_objects and is_file(place := split_callable(model.custom_objects)[0]):
            check_file(recipe, place, note, ("model", "custom_objects"), "model.custom_objects")
        for index, text in enumerate(model.files):
            check_file(recipe, text, note, ("model", "files", index), "model.files")
    if kind not in _KNOW_INPUTS and not recipe.inputs:
        hint = "add `inputs:`, for example inputs: {image: {shape: [batch, 3, 224, 224]}}"
        note(("model",), f"model: a {kind} source does not say what goes into it", hint, ("inputs",))


def _check_saved_model(recipe: Recipe, model: SavedModelSource, note: Note) -> None:
    from optkit.models.tensorflow_sources import saved_model

    key: Key = ("model", "savedmodel")
    try:
        saved_model(recipe.path(model.savedmodel).absolute())
    except UserError as error:
        note(key, f"model.savedmodel: {error.what}", error.hint, key)
    except (OSError, ValueError) as error:  # a name too long, a null byte
        note(key, f"model.savedmodel: {model.savedmodel!r:.80} is no path: {error}", _FROM, key)


_BUILT = "the callable that builds the module, torch: models/net.py:build, and weights: with this file beside it"
_OF_A_FILE = {
    ".pt2": "pt2: in place of torch:, for a torch.export program",
    ".onnx": "onnx: in place of torch:",
    ".pt": f"{_BUILT}; or torchscript: in place of torch:, where it is a TorchScript module",
    ".pth": _BUILT,
    ".safetensors": _BUILT,
}
"""What to try where model.torch names a file of this kind."""


def _check_torch(recipe: Recipe, model: TorchSource, note: Note) -> None:
    file, _, name = model.torch.rpartition(":")
    if not file or not all(part.isidentifier() for part in name.split(".")):
        what = f"model.torch: {model.torch!r} is not FILE.py:NAME or MODULE:NAME"
        end = model.torch[model.torch.rfind(".") :].lower()
        note(("model", "torch"), what, _OF_A_FILE.get(end, "for example models/net.py:build"), ("model", "torch"))
    elif file.endswith(".py"):
        check_file(recipe, file, note, ("model", "torch"), "model.torch")
    if model.weights is not None:
        key: Key = ("model", "weights")
        found = check_file(recipe, model.weights, note, key, "model.weights")
        if found and not model.weights.endswith(_WEIGHTS):
            note(key, f"model.weights: {found.name} is of no known kind", "use .safetensors, .pt or .pth", key)
    for index, text in enumerate(model.files):
        try:
            folder = recipe.path(text).is_dir()
        except (UserError, OSError, ValueError):
            folder = False
        check_file(recipe, text, note, ("model", "files", index), "model.files", folder=folder)


def _check_plugin_file(recipe: Recipe, model: FileSource, note: Note) -> None:
    from optkit.registry import runners

    known = [name for name in runners() if name not in ("torch", "onnx", "openvino")]
    shown = ", ".join(known) or "none; no plug-in brings a runner"
    for index, text in enumerate(model.files):
        if len(Path(text).parts) != 1 or text in ("", ".", ".."):
            key = ("model", "files", index)
            note(key, f"model.files: {text!r} is no bare file name", "it must lie beside `file`", key)
        else:
            beside = str(Path(model.file).parent / text)
            check_file(recipe, beside, note, ("model", "files", index), "model.files")
    if model.format is None:
        if not recipe.source_format:
            what = f"model.file: no runner knows a file called {Path(model.file).name!r}"
            note(("model", "file"), what, f"say its format, one of: {shown}", ("model", "file"), ("model", "format"))
    elif model.format in runners() and model.format not in known:
        what = f"model.format: {model.format} has a kind of source of its own"
        note(("model", "format"), what, f"write model: {{{model.format}: ...}}", ("model", "format"))
    elif model.format not in known:
        hint = did_you_mean(model.format, known) or "install the plug-in that brings it"
        note(("model", "format"), f"model.format: no runner opens {model.format!r}", hint, ("model", "format"))


def _check_dims(recipe: Recipe, note: Note) -> None:
    used = {dim for tensor in recipe.inputs for dim in tensor.dynamic}
    misspelt = {did_you_mean(dim, recipe.dims, listing=False) for dim in used - set(recipe.dims)}
    for tensor in recipe.inputs:
        for axis, dim in enumerate(tensor.shape or ()):
            if isinstance(dim, str) and dim not in recipe.dims:
                near = did_you_mean(dim, recipe.dims, listing=False)
                key: Key = ("inputs", tensor.name, "shape", axis)
                what = f"inputs.{tensor.name}: the dim {dim!r} has no range"
                note(key, what, near or f"add dims: {{{dim}: {{min: 1, opt: 8, max: 64}}}}", ("dims", dim))
    for dim in recipe.dims:
        if recipe.inputs and dim not in used and f"did you mean {dim!r}?" not in misspelt:
            note(("dims", dim), f"dims.{dim}: no input has a dim of this name", did_you_mean(dim, used) or "remove it",
                 ("dims", dim), ("inputs",))  # fmt: skip


def _check_data(recipe: Recipe, note: Note) -> None:
    for name, spec in recipe.data.items():
        try:
            data_files(spec, recipe.base)
        except UserError as error:
            note(_named_in(error.what, name, spec), f"data.{name}: {error.what}", error.hint, ("data", name))
        except (OSError, ValueError, RuntimeError) as error:  # a name too long, a null byte, no such home folder
            note(("data", name), f"data.{name}: a path cannot be used: {error}", _FROM, ("data", name))
    if not recipe.data:
        hint = "add data: {judge: {npz: FILE}} and check_on: judge"
        note(("data",), "the recipe has no data, so nothing could be checked", hint, ("data",))
    elif not recipe.check_on:
        hint = f"add `check_on: {list(recipe.data)[-1]}`"
        note(("data",), "the recipe does not say which data its checks run on", hint, ("check_on",))
    elif recipe.check_on not in recipe.data:
        what = f"check_on: there is no dataset {recipe.check_on!r}"
        note(("check_on",), what, did_you_mean(recipe.check_on, recipe.data), ("check_on",), ("data", recipe.check_on))


def _named_in(what: str, name: str, spec: Any) -> Key:
    """The key of a dataset's path that an error's text is about."""
    for field, value in spec.model_dump(exclude_unset=True).items():
        if isinstance(value, str) and Path(value.partition(":")[0] if field == "python" else value).name in what:
            return ("data", name, field)
    return ("data", name)
