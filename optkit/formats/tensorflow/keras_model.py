"""A Keras model at rest, `.keras` or whole-model `.h5`, loaded by Keras 3 on TensorFlow without running code in it."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optkit.artifact import Signature, TensorSpec
from optkit.errors import SourceError, did_you_mean
from optkit.formats.tensorflow import core as tf_core
from optkit.formats.tensorflow import session as tf_session
from optkit.formats.torch.files import existing
from optkit.formats.user_code import importable, imported, raised
from optkit.plugin import need

MAIN = "model.keras"
SUFFIXES = (".keras", ".h5", ".hdf5")
_HEADS = {".keras": b"PK\x03\x04", ".h5": b"\x89HDF\r\n\x1a\n", ".hdf5": b"\x89HDF\r\n\x1a\n"}
_MADE_UP = re.compile(r"(input_layer|keras_tensor|input|args?)(_\d+)?")


@dataclass(frozen=True)
class KerasModel:
    """A loaded model. call: TensorFlow tensors by the signature's input names, to such by its output names."""

    model: Any
    signature: Signature
    call: Callable[[Mapping[str, Any]], Mapping[str, Any]]

    @property
    def resources(self) -> list[Any]:
        """Layers with tables, such as vocabularies."""
        return [layer for layer in self.model._flatten_layers() if hasattr(layer, "lookup_table")]


def load(path: Path, meta: Mapping[str, Any] | None = None, *, fresh: bool = False) -> KerasModel:
    """The model of a file, its inputs and outputs named as the recipe names them where Keras made the names up.

    meta: "inputs" and "outputs" as a recipe declares them, "custom_objects" (FILE.py:NAME). fresh: forget what Keras
    has numbered in this process, so that names inside the model do not depend on it. Raises SourceError.
    """
    meta = meta or {}
    _look(path)
    known = _custom_objects(str(meta["custom_objects"])) if meta.get("custom_objects") else {}
    keras = tf_core.keras()
    if fresh:
        keras.utils.clear_session()
    try:
        with tf_session.loading():
            model = keras.models.load_model(path, custom_objects=known, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises whatever its layers, zipfile and h5py raise
        raise _failure(path, error) from error
    declared = tuple(TensorSpec.from_json(t) for t in meta.get("inputs") or ())
    with tf_session.loading():
        return _described(keras, path, model, declared, tuple(meta.get("outputs") or ()))


def describe(path: Path, meta: Mapping[str, Any] | None = None) -> Signature:
    """What the model takes and gives; see `load`."""
    return load(path, meta).signature


def inspect(path: Path) -> dict[str, Any]:
    """JSON data from the file's own config: layers by kind, who wrote it. Loads no TensorFlow for `.keras`."""
    _look(path)
    if path.suffix.lower() != ".keras":
        h5py = need("h5py")
        try:
            with h5py.File(path) as held:
                config = json.loads(held.attrs.get("model_config", "{}"))
                version = str(held.attrs.get("keras_version", "?"))
        except (OSError, ValueError) as error:
            raise SourceError(f"{path} is damaged ({tf_core.reason(error)})", subject="model.keras",
                              hint="copy it again, or save it again with Keras 3") from error  # fmt: skip
    else:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
            version = str(json.loads(archive.read("metadata.json")).get("keras_version", "?"))
    kinds = Counter(layer.get("class_name", "?") for layer in config.get("config", {}).get("layers", ()))
    return {"kind": str(config.get("class_name", "?")), "operators": dict(kinds.most_common()), "keras": version}


# ------------------------------------------------------------------------------------------------ files


def _look(path: Path) -> None:
    """Raise SourceError for a file that is plainly no Keras model, before anything is imported."""
    existing(path, "model.keras")
    suffix = path.suffix.lower()
    if suffix not in _HEADS:
        raise SourceError(f"{path.name} ends neither in .keras nor in .h5, by which Keras tells its formats",
                          subject="model.keras", hint="rename it as what it is")  # fmt: skip
    with path.open("rb") as handle:
        head = handle.read(23)
    if head == b"version https://git-lfs":
        raise SourceError(f"{path.name} is a Git LFS pointer, not the model itself", hint="git lfs pull",
                          subject="model.keras")  # fmt: skip
    if not head.startswith(_HEADS[suffix]):
        is_other = next((s for s, magic in _HEADS.items() if head.startswith(magic)), "")
        raise SourceError(
            f"{path} is no {suffix} file" + (f", but a {is_other} one" if is_other else " (or damaged)"),
            subject="model.keras",
            hint=f"rename it to end in {is_other}" if is_other else "copy it again, or save the model again",
        )
    if suffix != ".keras":
        return
    try:
        with zipfile.ZipFile(path) as archive:
            broken, names = archive.testzip(), archive.namelist()  # Keras itself skips the checksums of weights
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _damaged(path, str(error)) from error
    if broken:
        raise _damaged(path, f"the checksum of {broken} does not match")
    if "config.json" not in names:
        raise SourceError(f"{path} has no config.json, so it is no whole Keras model", subject="model.keras",
                          hint="save the model with model.save(FILE.keras)")  # fmt: skip


def _damaged(path: Path, why: str) -> SourceError:
    return SourceError(f"{path} is damaged ({why})", subject="model.keras", hint="copy it again, or save it again")


def _custom_objects(text: str) -> dict[str, Any]:
    """The user's layers and functions by name: a mapping, a function that returns one, or a class itself."""
    where, _, attribute = text.rpartition(":")
    subject = "model.custom_objects"
    folder = existing(where, subject).resolve().parent if where.endswith(".py") else None
    tf_core.keras()  # before the user's code imports it, perhaps on another backend
    with importable(folder):
        code = imported(where, folder, subject)
        found = getattr(code, attribute, None)
        if isinstance(found, type):
            return {found.__name__: found}
        if callable(found):
            try:
                found = found()
            except Exception as error:
                raise raised(text, error, folder, "call it by hand in Python", subject) from error
    if found is None:
        names = [n for n, v in vars(code).items() if not n.startswith("_") and (callable(v) or isinstance(v, Mapping))]
        raise SourceError(f"{where} has no {attribute!r}", subject=subject, hint=did_you_mean(attribute, names) or
                          "define a mapping from names to layers there")  # fmt: skip
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise SourceError(f"{text} is a {type(found).__name__}, not a mapping from names to layers and functions",
                          subject=subject, hint="CUSTOM_OBJECTS = {'MyLayer': MyLayer}")  # fmt: skip
    return dict(found)


def _failure(path: Path, error: Exception) -> SourceError:
    text = str(error)
    if "Lambda" in text and ("safe_mode" in text or "deserialization" in text):
        return SourceError(
            f"{path} has a Lambda layer, whose Python code is in the file; optkit runs no code from a model file",
            subject="model.keras",
            details=text,
            hint="write it as a layer class of its own, save again, and name it by custom_objects: FILE.py:NAME",
        )
    if unknown := re.search(
        r"Could not locate (class|function) '([\w.>]+)'|Unknown (layer|object)?:? ?'?([\w.>]+)", text
    ):
        name = unknown[2] or unknown[4]  # in an .h5 file with the package it was registered under: mine>MyLayer
        known_as = name.rpartition(">")[2]
        return SourceError(
            f"{path} uses {name}, which Keras does not know",
            subject="model.custom_objects" if "custom" in text else "model.keras",
            details=text,
            hint=f"give it: custom_objects: FILE.py:CUSTOM_OBJECTS, where CUSTOM_OBJECTS = {{{name!r}: {known_as}}}; "
            "without a recipe --set model.custom_objects=FILE.py:CUSTOM_OBJECTS",
        )
    if "No model config found" in text:
        return SourceError(
            f"{path} holds weights alone, without the layers they belong to",
            subject="model.keras",
            details=text,
            hint="load them into the model in Python and save the whole: model.save('model.keras')",
        )
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return SourceError(f"{path} cannot be loaded: {type(error).__name__}: {first[:300]}", subject="model.keras",
                       details=text, hint="copy it again, or save it again with Keras 3")  # fmt: skip


# ------------------------------------------------------------------------------------------------ inputs, outputs


def _described(keras: Any, path: Path, model: Any, declared: Sequence[TensorSpec],
               outputs: Sequence[str]) -> KerasModel:  # fmt: skip
    known = getattr(model, "inputs", None)  # a subclassed model has none
    if not model.built or not (known or model.variables):
        raise SourceError(
            f"{path} was saved before the model was built, so it has no weights",
            subject="model.keras",
            hint="call it once on data, model(x), and save it again",
        )
    if known:
        single = isinstance(model, keras.Sequential)
        takes, gives = (known[0], model.outputs[0]) if single else (model.input, model.output)
    else:
        takes = _symbolic(path, keras, declared)
        try:
            gives = model(takes, training=False)
        except Exception as error:  # the model's own code
            raise raised(f"calling {type(model).__name__} on the declared inputs", error, None,
                         "correct inputs:, their shapes and dtypes", "inputs") from error  # fmt: skip
    own = _names(keras, takes, outer=True)
    names = _renamed(own, [spec.name for spec in declared])
    made = _renamed(_names(keras, gives, outer=False) if known else _plain_names(keras, gives), outputs)
    for name, tensor in zip(names, keras.tree.flatten(takes), strict=True):
        if tensor.sparse or getattr(tensor, "ragged", False):
            raise SourceError(f"input {name!r} is {'sparse' if tensor.sparse else 'ragged'}", subject=f"inputs.{name}",
                              hint="give the model dense inputs")  # fmt: skip

    def call(tensors: Mapping[str, Any]) -> dict[str, Any]:
        given = keras.tree.pack_sequence_as(takes, [tensors[name] for name in names])
        return dict(zip(made, keras.tree.flatten(model(given, training=False)), strict=True))

    signature = Signature(
        tuple(_spec(n, t) for n, t in zip(names, keras.tree.flatten(takes), strict=True)),
        tuple(_spec(n, t) for n, t in zip(made, keras.tree.flatten(gives), strict=True)),
    )
    return KerasModel(model, signature, call)


def _symbolic(path: Path, keras: Any, declared: Sequence[TensorSpec]) -> Any:
    """Stand-ins for the inputs of a subclassed model, which the file does not describe."""
    if not declared:
        raise SourceError(
            f"{path} holds a subclassed model, which does not say what goes into it",
            subject="inputs",
            hint="add `inputs:`, for example inputs: {image: {shape: [batch, 224, 224, 3]}}",
        )
    made = {}
    for spec in declared:
        shape = tuple(d if isinstance(d, int) else None for d in spec.shape or ())
        made[spec.name] = keras.KerasTensor(shape, dtype=spec.dtype, name=spec.name)
    return next(iter(made.values())) if len(made) == 1 else made


def _names(keras: Any, structure: Any, *, outer: bool) -> list[str]:
    """A name per tensor: its key in a mapping, else its own (an input) or its layer's (an output); each once."""
    names: list[str] = []
    for place, tensor in keras.tree.flatten_with_path(structure):
        layer = getattr(getattr(tensor, "_keras_history", None), "operation", None)
        own = tensor.name if outer or layer is None else layer.name
        name = ".".join(part for part in place if isinstance(part, str)) or own
        names.append(name if name not in names else f"{name}_{len(names)}")
    return names


def _plain_names(keras: Any, structure: Any) -> list[str]:
    """Names for what a subclassed model returns: its keys, else "output", "output_1" and so on."""
    places = [place for place, _ in keras.tree.flatten_with_path(structure)]
    keys = [".".join(part for part in place if isinstance(part, str)) for place in places]
    return [key or (f"output_{index}" if index else "output") for index, key in enumerate(keys)]


def _renamed(own: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The recipe's names, by order, where there is but one tensor or Keras made all names up; else the model's."""
    free = len(own) == len(wanted) and set(own) != set(wanted)
    return list(wanted) if free and (len(own) == 1 or all(map(_MADE_UP.fullmatch, own))) else list(own)


def _spec(name: str, tensor: Any) -> TensorSpec:
    if tensor.shape is None:
        return TensorSpec(name, str(tensor.dtype), None)
    dims = ("batch" if axis == 0 else f"{name}_{axis}" for axis in range(len(tensor.shape)))
    shape = tuple(dim if size is None else int(size) for dim, size in zip(dims, tensor.shape, strict=True))
    return TensorSpec(name, str(tensor.dtype), shape)
