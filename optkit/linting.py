"""What a target refuses of an ONNX file, told before any long build."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optkit.deliver import RECORD
from optkit.errors import UserError, did_you_mean

TARGETS: Mapping[str, str] = {
    "onnxruntime": "optkit.lints.onnxruntime",
    "openvino": "optkit.lints.openvino",
    "tensorrt": "optkit.lints.tensorrt",
}
"""Targets, and the module that knows each."""


def lint(path: str | Path, target: str) -> dict[str, Any]:
    """What a runtime refuses of an ONNX file, or of a folder that optkit delivered: operators, types, opsets, integers.

    Returns {"target", "refused": [{"node", "operator", "module", "what", "hint"}], "unchecked": [text]}; `unchecked`
    says what could not be looked at in this environment. The runtime's own parser does the work, in a child process.
    Raises UserError for what is no ONNX model or an unknown target, SourceError for a damaged file, UnavailableError
    where the runtime is not installed.
    """
    from optkit.pool import run_alone
    from optkit.worker import raise_if_failed

    file = onnx_file(Path(path))
    done = raise_if_failed(run_alone({"task": "lint", "path": str(file.absolute()), "target": known(target)}))
    return {key: done[key] for key in ("target", "refused", "unchecked")}


def known(target: str) -> str:
    """The target, if it is one. Raises UserError with the nearest name."""
    if target not in TARGETS:
        raise UserError(f"there is nothing to lint for {target!r}", hint=did_you_mean(target, TARGETS))
    return target


def onnx_file(path: Path) -> Path:
    """The ONNX file that a path stands for. Raises UserError where it stands for none."""
    name = path.name
    if (path / RECORD).is_file():
        try:
            name = json.loads((path / RECORD).read_text(encoding="utf-8"))["main"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            what = f"{path / RECORD} is damaged: {error}"
            raise UserError(what, hint="deliver it again with optkit convert") from error
        path = path / name
    if not name.endswith(".onnx"):
        what = f"{path} is no ONNX model, which is what lint looks at"
        raise UserError(what, hint="make one first: optkit convert MODEL --to onnx")
    return path


def look(path: Path, target: str) -> dict[str, Any]:
    """`lint` of a file, in this process: where a parser crashes, so does it."""
    from optkit.formats import onnx_model

    model = onnx_model.load(path, weights=False)
    refused, unchecked = importlib.import_module(TARGETS[known(target)]).look(path, model)
    return {"target": target, "refused": [refusal.to_json() for refusal in refused], "unchecked": unchecked}
