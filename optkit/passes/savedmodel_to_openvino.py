"""savedmodel.to_openvino: a SavedModel as OpenVINO IR, weights as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optkit.artifact import Artifact
from optkit.formats.tensorflow import openvino as tf_openvino
from optkit.formats.tensorflow import savedmodel, savedmodel_load, savedmodel_write
from optkit.formats.tensorflow.openvino import ToOpenVino, confirm
from optkit.formats.tensorflow.signature import asked
from optkit.plugin import Context, Pass


def run(artifact: Artifact, out_dir: Path, options: ToOpenVino, context: Context) -> dict[str, Any]:
    """OpenVINO reads the folder itself, and knows the default signature alone: another one is made that first."""
    folder, signature = artifact.path.parent, asked(artifact, context)
    name, _ = savedmodel.choose(artifact.path, artifact.meta.get("signature"))
    if name != savedmodel.DEFAULT:
        function = savedmodel_load.function(artifact.path, name)
        folder = context.scratch / "default"
        savedmodel_write.write(folder, function.by_name, signature, function.concrete.variables)
    return tf_openvino.convert(folder, signature, out_dir, options, context)


PASS = Pass(
    name="savedmodel.to_openvino",
    version=1,
    source="savedmodel",
    target="openvino",
    summary="Convert a SavedModel to OpenVINO IR",
    run=run,
    confirm=confirm,
    options=ToOpenVino,
    fidelity="rounding",
    tools=("openvino",),
    modules=("optkit.formats.warm.openvino",),
)
