"""A model compiled for the Edge TPU: `model_edgetpu.tflite`, and `edgetpu.json` that says what it takes and holds.

The compiler's bytes stay as they are. What the file's metadata held before, the contract with the recipe, is in the
sidecar; so its signature can be read anywhere, with neither LiteRT nor an Edge TPU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optkit.artifact import Signature, digest_file
from optkit.errors import SourceError
from optkit.formats.tflite import look as tflite_look
from optkit.formats.tflite import model as tflite_model
from optkit.formats.tflite.model import Contract

MAIN = "model_edgetpu.tflite"
SIDECAR = "edgetpu.json"
SCHEMA = 1
CUSTOM = "edgetpu-custom-op"
_AGAIN = "compile it again with tflite.to_edgetpu"


def write(folder: Path, compiled: Path, parent: Any, report: Mapping[str, Any]) -> None:
    """Put a compiled file into a folder, and beside it its contract, ports and the compiler's report.

    parent: the `ModelT` that was compiled.
    """
    compiled.rename(folder / MAIN)
    record = {
        "schema": SCHEMA,
        "contract": tflite_model.contract(parent).to_json(),
        "ports": ports(parent),
        "compiler": dict(report),
        "file": {"size_bytes": (folder / MAIN).stat().st_size, "sha256": digest_file(folder / MAIN)},
    }
    (folder / SIDECAR).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def ports(model: Any) -> dict[str, dict[str, int]]:
    """Where each input and output is among those of the graph: {"inputs": {name: position}, "outputs": ...}.

    The compiler keeps their order, and not always the signature that has their names.
    """
    graph = model.subgraphs[0]
    inputs, outputs = next(iter(tflite_model.signatures(model).values()))
    at = {id(graph.tensors[index]): index for index in (*graph.inputs, *graph.outputs)}
    return {
        "inputs": {name: list(graph.inputs).index(at[id(t)]) for name, t in inputs.items()},
        "outputs": {name: list(graph.outputs).index(at[id(t)]) for name, t in outputs.items()},
    }


def read(path: Path) -> dict[str, Any]:
    """The sidecar of a compiled file. Raises SourceError where it is missing or damaged, or another file's."""
    sidecar = path.parent / SIDECAR
    if not path.is_file():
        raise SourceError(f"there is no file {path}", hint="check the path", subject="model")
    try:
        found: dict[str, Any] = json.loads(sidecar.read_text(encoding="utf-8"))
        if found["schema"] != SCHEMA:
            raise ValueError(f"schema {found['schema']}, not {SCHEMA}")
        Contract.from_json(found["contract"])
        found["ports"]["inputs"], found["ports"]["outputs"], found["compiler"]["version"], found["file"]["size_bytes"]
    except FileNotFoundError as error:
        raise SourceError(
            f"{path.name} has no {SIDECAR} beside it, which says what goes in and comes out",
            hint=f"copy the whole folder, or {_AGAIN}",
            subject="model",
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{sidecar} is damaged: {error}", hint=_AGAIN, subject="model") from error
    if path.stat().st_size != found["file"]["size_bytes"]:
        raise SourceError(
            f"{path.name} has {path.stat().st_size} bytes, its {SIDECAR} says {found['file']['size_bytes']}: "
            "it is cut short, or another file",
            hint="copy both files again from where they were made",
            subject="model",
        )
    return found


def check(path: Path, record: Mapping[str, Any]) -> None:
    """Raise SourceError where a compiled file is not the one that its sidecar describes."""
    if digest_file(path) != record["file"]["sha256"]:
        raise SourceError(
            f"{path.name} is not the file that its {SIDECAR} describes: its bytes have changed",
            hint=f"copy both files again, or {_AGAIN}",
            subject="model",
        )


def contract(path: Path) -> Contract:
    """What a session takes and gives."""
    return Contract.from_json(read(path)["contract"])


def describe(path: Path, meta: Mapping[str, Any]) -> Signature:
    """Inputs and outputs, from the sidecar."""
    found = contract(path)
    return Signature(found.inputs, found.outputs)


def differences(parent: Any, path: Path) -> list[str]:
    """What a compiled file lacks: parts for the Edge TPU, and the inputs and outputs of the file it was made from."""
    model = tflite_model.read(path)
    complaints = []
    if CUSTOM not in [name for name, _, _ in tflite_look.operations(model)]:
        complaints.append(f"the file has no {CUSTOM}: nothing in it is for an Edge TPU")
    before, after = parent.subgraphs[0], model.subgraphs[0]
    for side in ("inputs", "outputs"):
        was, made = (
            [(tflite_model.kind_of(g.tensors[i]), [int(n) for n in g.tensors[i].shape]) for i in getattr(g, side)]
            for g in (before, after)
        )
        if was != made:
            complaints.append(f"the {side} are {_ports(made)}, and were {_ports(was)} before")
    return complaints


def _ports(found: list[tuple[str, list[int]]]) -> str:
    return ", ".join(f"{dtype}{shape}" for dtype, shape in found) or "none"
