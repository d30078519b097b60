"""What a target refuses of a model file, told before any long build."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optkit.delivery.deliver import RECORD
from optkit.errors import UserError, did_you_mean

TARGETS: Mapping[str, str] = {
    "edgetpu": "optkit.lints.edgetpu",
    "onnxruntime": "optkit.lints.onnxruntime",
    "openvino": "optkit.lints.openvino",
    "tensorrt": "optkit.lints.tensorrt",
    "tflite": "optkit.lints.tflite",
}
"""Targets, and the module that knows each; `READS` there are the files it looks at, ONNX where it does not say."""


def lint(path: str | Path, target: str) -> dict[str, Any]:
    """What a runtime refuses of a model file, or of a folder that optkit delivered: operators, types, opsets, integers.

    All look at ONNX; tflite also at TFLite files, and edgetpu at these alone.

    Returns {"target", "refused": [{"node", "operator", "module", "what", "hint"}], "unchecked": [text]}; `unchecked`
    says what could not be looked at in this environment. The runtime's own parser does the work, in a child process.
    Raises UserError for what is no such file or an unknown target, SourceError for a damaged file, UnavailableError
    where the runtime is not installed.
    """
    from optkit.running.pool import run_alone
    from optkit.worker import raise_if_failed

    file = model_file(Path(path), known(target))
    done = raise_if_failed(run_alone({"task": "lint", "path": str(file.absolute()), "target": target}))
    return {key: done[key] for key in ("target", "refused", "unchecked")}


def known(target: str) -> str:
    """The target, if it is one. Raises UserError with the nearest name."""
    if target not in TARGETS:
        raise UserError(f"there is nothing to lint for {target!r}", hint=did_you_mean(target, TARGETS))
    return target


def model_file(path: Path, target: str) -> Path:
    """The file that a path stands for, of a kind that the target's lint reads. Raises UserError where there is none."""
    module = importlib.import_module(TARGETS[known(target)])
    reads: tuple[str, ...] = getattr(module, "READS", (".onnx",))
    name = path.name
    if (path / RECORD).is_file():
        try:
            name = json.loads((path / RECORD).read_text(encoding="utf-8"))["main"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            what = f"{path / RECORD} is damaged: {error}"
            raise UserError(what, hint="deliver it again with optkit convert") from error
        path = path / name
    if name.endswith("_edgetpu.tflite"):
        what = f"{path} is compiled for the Edge TPU already"
        raise UserError(what, hint="lint the .tflite file that it was made from")
    if not name.lower().endswith(reads):
        if not path.exists() and ":" not in name:
            near = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UserError(f"there is no {path}", hint=did_you_mean(name, near, listing=False) or "check the path")
        kinds = " or ".join(_KINDS[suffix] for suffix in reads)
        what = f"{path} is no {kinds} model, which is what lint --for {target} looks at"
        raise UserError(what, hint=getattr(module, "MAKE", "make one first: optkit convert MODEL --to onnx"))
    return path


_KINDS = {".onnx": "ONNX", ".tflite": "TFLite"}


def look(path: Path, target: str) -> dict[str, Any]:
    """`lint` of a file, in this process: where a parser crashes, so does it."""
    model: Any
    if path.suffix.lower() == ".tflite":
        from optkit.formats.tflite import model as tflite_model

        model = tflite_model.read(path)
    else:
        from optkit.formats.onnx import model as onnx_model

        model = onnx_model.load(path, weights=False)
    refused, unchecked = importlib.import_module(TARGETS[known(target)]).look(path, model)
    return {"target": target, "refused": [refusal.to_json() for refusal in refused], "unchecked": unchecked}
