"""What is in a model file or a delivered folder, read without running it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def look(path: Path) -> dict[str, Any]:
    """What the file says of itself, as JSON data. Raises UserError for what is no model file."""
    from optkit.errors import UserError
    from optkit.registry import format_of, get_runner

    record: dict[str, Any] = {}
    if path.is_dir():
        path, record = in_folder(path)
    elif not path.exists():
        from optkit.errors import did_you_mean

        near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"there is no {path}", hint=did_you_mean(path.name, near, listing=False) or "check the path")
    known = record.get("format") or format_of(path.name)
    if known is None:
        raise UserError(
            f"{path} is of no format optkit can look into",
            hint=".onnx, .xml, .pt2, .tflite, .keras, .h5, .pb, a SavedModel folder; optkit init looks at FILE.py:NAME "
            "and Hugging Face folders",
        )
    runner = get_runner(known)
    files = sum(p.stat().st_size for p in sidecars(path))
    about = dict(runner.inspect(path))
    several = len(about.get("signatures", ())) != 1 and "serving_default" not in about.get("signatures", ())
    nameless = (
        known == "tf_graph"
        or (known == "savedmodel" and several)
        or (known == "torch" and about.get("kind") != "exported")
    )
    signature = None if nameless else described(known, path)
    return {
        "path": str(path), "format": known, "size_bytes": files, "signature": signature, **about,
        **({"delivered": {key: record.get(key) for key in ("step", "status", "digest", "preprocessing", "provenance")}}
           if record else {}),
    }  # fmt: skip


def described(known: str, path: Path) -> dict[str, Any]:
    """A file's signature. Of torch's files only an exported program has one; weights and modules do not."""
    if known == "torch":
        from optkit.models.opened import described as signature_in

        return signature_in({"pt2": str(path.absolute())}).to_json()
    from optkit.registry import get_runner

    return get_runner(known).describe(path, {}).to_json()


def in_folder(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The model file of a folder, and its optkit.json where optkit delivered it. Raises UserError."""
    import json

    from optkit.errors import UserError
    from optkit.registry import runners

    if (folder / "optkit.json").is_file():
        try:
            record: dict[str, Any] = json.loads((folder / "optkit.json").read_text(encoding="utf-8"))
            return folder / record["main"], record
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder / 'optkit.json'} is damaged: {error}", hint="deliver it again with optkit convert"
            ) from error
    for runner in runners().values():
        if (folder / runner.main).is_file():
            return folder / runner.main, {}
    if any(p.name.isdecimal() for p in folder.iterdir()):  # versions of a SavedModel
        from optkit.models.tensorflow_sources import saved_model

        return saved_model(folder), {}
    raise UserError(f"{folder} holds no model file optkit knows", hint="name the file, or a folder optkit delivered")


def sidecars(path: Path) -> list[Path]:
    """The file and what belongs to it: beside it under its own name (model.onnx.data, model.bin), or a SavedModel's."""
    if path.name == "saved_model.pb":
        from optkit.formats.tensorflow.savedmodel import files

        return [path.parent / name for name in files(path)]
    beside = [path.with_name(path.name + ".data"), path.with_suffix(".bin")]
    return [path, *(p for p in beside if p.is_file() and p != path)]
