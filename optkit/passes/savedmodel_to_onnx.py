"""savedmodel.to_onnx: a SavedModel's signature as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optkit.artifact import Artifact
from optkit.formats.tensorflow import onnx as tf_onnx
from optkit.formats.tensorflow import savedmodel_load
from optkit.formats.tensorflow.onnx import ToOnnx, confirm
from optkit.formats.tensorflow.signature import asked
from optkit.plugin import Context, Pass


def run(artifact: Artifact, out_dir: Path, options: ToOnnx, context: Context) -> dict[str, Any]:
    """Notes: opset and operators. Raises StepError as `tf_onnx.convert` does."""
    function = savedmodel_load.function(artifact.path, artifact.meta.get("signature"))
    return tf_onnx.convert(function.by_name, asked(artifact, context), out_dir, options, context)


PASS = Pass(
    name="savedmodel.to_onnx",
    version=1,
    source="savedmodel",
    target="onnx",
    summary="Convert a SavedModel to ONNX",
    run=run,
    confirm=confirm,
    options=ToOnnx,
    fidelity="rounding",
    tools=("tensorflow-cpu", "tf2onnx", "onnx", "onnx-ir"),
    modules=("optkit.formats.warm.tf2onnx",),
)
