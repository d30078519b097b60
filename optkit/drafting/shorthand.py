"""The command line without a recipe: a model and some flags, made into the recipe they stand for."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from optkit.drafting.targets import delivered_steps
from optkit.errors import UserError

_NO_NAMES = ("model", "openvino_model", "saved_model")  # what every exporter calls its file: the folder says more
RECIPE_SUFFIXES = (".yaml", ".yml")
LABELS = ("label", "labels")
"""What an array of labels is called that nobody has named."""

_KIND_OF = {
    ".onnx": "onnx", ".xml": "openvino", ".pt2": "pt2", ".keras": "keras", ".h5": "keras", ".hdf5": "keras",
    ".pb": "tf_graph",
}  # fmt: skip

_INPUT_FORM = "NAME:dtype[dims], for example --input image:float32[batch,3,224,224]"


def is_recipe(text: str) -> bool:
    """Whether an argument names a recipe, not a model."""
    return text.lower().endswith(RECIPE_SUFFIXES)


def recipe_data(
    model: str,
    to: Sequence[str],
    inputs: Sequence[str] = (),
    dims: Sequence[str] = (),
    data: str | None = None,
    weights: str | None = None,
    int8: Sequence[str] = (),
    fit: str | None = None,
    *,
    inputs_given: bool = False,
) -> dict[str, Any]:
    """The recipe that a model and flags stand for, as plain data; paths start from the working directory.

    inputs_given: the caller adds the inputs by itself, so none are asked for. Raises UserError that names the flag to
    add or correct.
    """
    _check_int8(int8, fit, data)
    section = model_section(model, weights)
    if not to:
        from optkit.registry import formats

        raise UserError(
            "nothing says what to make of the model",
            hint=f"add --to FORMAT; one of: {', '.join(f for f in formats() if f != 'torch')}",
        )
    specs = dict(parse_input(text) for text in inputs)
    kind = next(iter(section))
    if kind in ("torch", "torchscript", "huggingface") and not specs and not inputs_given:
        hint = "add --input NAME:dtype[dims], for example --input 'image:float32[batch,3,224,224]' --dim batch=1:8:64"
        raise UserError(f"a {kind} model does not say what goes into it", hint=hint, subject="inputs")
    ranges = dict(parse_dim(text) for text in dims)
    if not specs and not inputs_given:
        specs, known = of_delivery(model)
        ranges = {**known, **ranges}
    named = list(dict.fromkeys(d for spec in specs.values() for d in spec["shape"] if isinstance(d, str)))
    if missing := [name for name in named if name not in ranges]:
        raise UserError(
            f"nothing says which sizes {', '.join(missing)} may take",
            hint=" ".join(f"--dim {name}=1:8:64" for name in missing) + " (smallest:typical:largest)",
        )
    recipe: dict[str, Any] = {
        "version": 1,
        "name": safe_name(model_name(model)),
        "model": section,
        "data": {"judge": data_section(data, section, inputs=list(specs))},
        "check_on": "judge",
        **delivered_steps(section, list(dict.fromkeys(to)), int8),
    }
    if fit:
        recipe["data"]["fit"] = data_section(fit, section, inputs=list(specs), flag="--fit")
    return recipe | ({"inputs": specs} if specs else {}) | ({"dims": ranges} if ranges else {})


def _check_int8(int8: Sequence[str], fit: str | None, data: str | None) -> None:
    """Raise UserError where int8 has nothing to be fitted on or judged by, and for data that nothing is fitted on."""
    if fit and not int8:
        raise UserError("--fit: nothing is fitted on data", hint="add --int8 BOUND, as in --int8 'cosine >= 0.99'")
    if int8 and not fit:
        hint = "add --fit SPEC: samples like those that the model will see, and none of those in --data"
        raise UserError("--int8 finds ranges and settings on data, and none was given", hint=hint)
    if int8 and data is None:
        hint = "add --data SPEC: real samples, and none of those in --fit"
        raise UserError("--int8 is judged on data, and none was given", hint=hint)


def model_name(model: str) -> str:
    """What to call a model by its path or callable."""
    if model.startswith("package:"):
        return model.removeprefix("package:").partition("/")[0]
    place, colon, _ = model.rpartition(":")
    if colon and (place.endswith(".py") or not Path(model).exists()):
        return Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]
    path = Path(model).absolute()
    return path.parent.name if path.stem in _NO_NAMES and path.parent.name else path.stem


def of_delivery(model: str) -> tuple[dict[str, Any], dict[str, dict[str, int]]]:
    """What a delivered folder's record says of its inputs and of the range of each dim; nothing for anything else.

    Raises UserError for a record that cannot be read.
    """
    from optkit.delivery.deliver import RECORD

    if not (Path(model) / RECORD).is_file():
        return {}, {}
    from optkit.models.opened import delivered, dims_at

    signature = delivered(Path(model)).signature
    assert signature is not None
    specs = {t.name: {k: v for k, v in t.to_json().items() if k != "name"} for t in signature.inputs}
    used = signature.dynamic
    return specs, {name: dim.to_json() for name, dim in dims_at(Path(model)).items() if name in used}


def safe_name(text: str) -> str:
    """A name for a recipe, made of characters that it may have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._") or "model"


def model_section(model: str, weights: str | None = None) -> dict[str, Any]:
    """The `model:` section for a path (also "package:NAME/path") or a callable.

    Raises UserError for what is no model optkit reads.
    """
    from optkit.spec.dataspec import resolve_path

    place, colon, name = model.rpartition(":")
    if colon and name.isidentifier() and (place.endswith(".py") or re.fullmatch(r"[A-Za-z_][\w.]*", place)):
        return {"torch": model} | ({"weights": weights} if weights else {})
    if weights:
        raise UserError(
            f"--weights goes with FILE.py:NAME, and {model} is a file with weights of its own",
            hint="leave --weights out",
        )
    path = resolve_path(model, Path())
    if not path.exists():
        from optkit.errors import did_you_mean

        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(
            f"there is no {model}",
            hint=did_you_mean(path.name, near, listing=False)
            or "name a recipe (.yaml), a model file, a Hugging Face folder or FILE.py:NAME",
        )
    if path.is_dir():
        return _folder(model, path)
    suffix = path.suffix.lower()
    if suffix == ".py":
        raise UserError(f"{model} does not say which callable returns the model", hint=f"{model}:build")
    if path.name == "saved_model.pb":  # its folder is the model
        return {"savedmodel": str(Path(model).parent)}
    if kind := _KIND_OF.get(suffix):
        return {kind: model}
    if suffix in (".pt", ".pth") and _is_torchscript(path):
        return {"torchscript": model}
    if suffix in (".pt", ".pth", ".bin", ".safetensors"):
        raise UserError(
            f"{model} holds weights or a pickled module, not a network that can be run as it is",
            hint=f"optkit convert FILE.py:build --weights {model}, FILE.py holding the code that builds it",
        )
    from optkit.registry import format_of

    if format_of(path.name) not in (None, "torch"):
        return {"file": model}
    raise UserError(
        f"{model} is of no kind optkit reads",
        hint="a recipe (.yaml), .onnx, .xml, .pt2, .keras, .h5, .pb, a SavedModel or Hugging Face folder, FILE.py:NAME",
    )


def _folder(text: str, path: Path) -> dict[str, Any]:
    for name, kind in (("model.onnx", "onnx"), ("model.xml", "openvino")):
        if (path / name).is_file():
            return {kind: f"{text.rstrip('/')}/{name}"}
    if (path / "saved_model.pb").is_file() or _versions(path):
        return {"savedmodel": text}
    if (path / "config.json").is_file():
        return {"huggingface": text}
    from optkit.registry import runners

    for runner in runners().values():
        if runner.format != "torch" and (path / runner.main).is_file():
            return {"file": f"{text.rstrip('/')}/{runner.main}"}
    raise UserError(
        f"the folder {path} holds no model optkit knows",
        hint="a Hugging Face folder has a config.json, a SavedModel a saved_model.pb; otherwise name the model's file",
    )


def _versions(path: Path) -> bool:
    """Whether a folder holds versions of a SavedModel, each in a folder called by a number."""
    return any(p.name.isdecimal() and (p / "saved_model.pb").is_file() for p in path.iterdir())


def _is_torchscript(path: Path) -> bool:
    return any("/code/" in name for name in _members(path))


def parse_input(text: str) -> tuple[str, dict[str, Any]]:
    """("image", {"shape": ["batch", 3, 224, 224], "dtype": "float32"}) of "image:float32[batch,3,224,224]".

    A range may follow, as in "ids:int64[batch,sequence]=0..30521".
    """
    from optkit.artifact import DTYPES
    from optkit.errors import did_you_mean

    match = re.fullmatch(r"\s*([^\[\]]+?)\s*\[([^\[\]]*)\]\s*(?:=\s*(-?[\d.eE+-]+?)\s*\.\.\s*(-?[\d.eE+-]+))?\s*", text)
    if match is None:
        raise UserError(f"--input {text}: this is no input", hint=_INPUT_FORM)
    name, colon, dtype = match[1].rpartition(":")
    if not colon:
        name, dtype = match[1], "float32"
    if dtype not in DTYPES:
        raise UserError(f"--input {text}: there is no dtype {dtype!r}", hint=did_you_mean(dtype, DTYPES))
    words = [word.strip() for word in match[2].split(",")] if match[2].strip() else []
    if bad := [w for w in words if not (w.isdigit() or re.fullmatch(r"[A-Za-z_]\w*", w))]:
        raise UserError(f"--input {text}: {bad[0]!r} is neither a size nor the name of a dim", hint=_INPUT_FORM)
    spec: dict[str, Any] = {"shape": [int(w) if w.isdigit() else w for w in words], "dtype": dtype}
    if match[3] is not None:
        try:
            spec["range"] = [float(match[3]), float(match[4])]
        except ValueError:
            raise UserError(
                f"--input {text}: the range is no pair of numbers",
                hint="NAME:dtype[dims]=LOW..HIGH, for example ids:int64[batch,sequence]=0..30521",
            ) from None
    return name.strip(), spec


def parse_dim(text: str) -> tuple[str, dict[str, int]]:
    """("batch", {"min": 1, "opt": 8, "max": 64}) of "batch=1:8:64"; "batch=1:64" leaves opt to optkit."""
    match = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*=\s*(\d+)(?::(\d+))?(?::(\d+))?\s*", text)
    if match is None:
        raise UserError(f"--dim {text}: this is no range", hint="NAME=MIN:OPT:MAX, for example --dim batch=1:8:64")
    name, *found = match.groups()
    sizes = [int(n) for n in found if n is not None]
    if sizes != sorted(sizes) or sizes[0] < 1:
        raise UserError(f"--dim {text}: needs 1 <= smallest <= typical <= largest", hint=f"--dim {name}=1:8:64")
    return name, {"min": sizes[0], "max": sizes[-1]} | ({"opt": sizes[1]} if len(sizes) == 3 else {})


def data_section(
    spec: str | None,
    model: Mapping[str, Any] | None = None,
    samples: int = 32,
    inputs: Collection[str] = (),
    flag: str = "--data",
) -> dict[str, Any]:
    """A dataset from one word: FILE.npz, FILE.jsonl, a folder of images, FILE.py:NAME, random:N; None is random.

    An array "label" or "labels" of a .npz that is none of the `inputs` is taken for the labels. A .jsonl is tokenised
    with the tokenizer of a Hugging Face `model`; its text is under the key "text".
    """
    kind, _, number = (spec or "random").partition(":")
    if kind == "random" and (not number or number.isdigit()):
        return {"random": int(number or samples)}
    assert spec is not None
    _, colon, name = spec.rpartition(":")
    if colon and name.isidentifier() and not Path(spec).exists():
        return {"python": spec}
    path = Path(spec)
    if path.is_dir():
        return {"images": spec}
    if path.suffix == ".npz":
        label = next((n for n in LABELS if n not in inputs and f"{n}.npy" in _members(path)), None)
        return {"npz": spec} | ({"label": label} if label else {})
    if path.suffix == ".jsonl":
        folder = (model or {}).get("huggingface")
        if folder is None:
            raise UserError(
                f"{flag} {spec}: texts need a tokenizer, and this model brings none",
                hint="write a recipe: data: {judge: {jsonl: FILE, tokenizer: FOLDER, text: text, max_length: 128}}",
            )
        return {"jsonl": spec, "tokenizer": folder, "text": "text", "max_length": 128}
    raise UserError(
        f"{flag} {spec}: this is no data optkit reads",
        hint="FILE.npz, FILE.jsonl, a folder of images, FILE.py:NAME or random:32",
    )


def _members(path: Path) -> list[str]:
    """The names in a zip archive; none where there is no archive."""
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()
