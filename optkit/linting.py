"""What a target refuses of an ONNX file, told before any long build."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optkit.errors import UserError, did_you_mean

TARGETS: Mapping[str, str] = {
    "onnxruntime": "optkit.lints.onnxruntime",
    "openvino": "optkit.lints.openvino",
    "tensorrt": "optkit.lints.tensorrt",
}
"""Targets, and the module that knows each."""


def lint(path: Path, target: str) -> dict[str, Any]:
    """What `target` refuses of the ONNX file at `path`: {"target", "refused": [...], "unchecked": [text]}.

    A refusal has node, operator, module, what and hint; `unchecked` says what could not be looked at in this
    environment. Runs the target's own parser in this process. Raises UserError for an unknown target, SourceError for a
    file that is no ONNX model, UnavailableError where the target is not installed.
    """
    if target not in TARGETS:
        raise UserError(f"there is nothing to lint for {target!r}", hint=did_you_mean(target, TARGETS))
    from optkit.formats import onnx_model

    model = onnx_model.load(path, weights=False)
    refused, unchecked = importlib.import_module(TARGETS[target]).look(path, model)
    return {"target": target, "refused": [refusal.to_json() for refusal in refused], "unchecked": unchecked}
