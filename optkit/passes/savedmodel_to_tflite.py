"""savedmodel.to_tflite: a SavedModel as a float TFLite file for LiteRT, with the recipe's names, dims and layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optkit.artifact import Artifact
from optkit.formats.tensorflow import savedmodel, savedmodel_load
from optkit.formats.tensorflow.signature import asked
from optkit.formats.tflite import tf as tflite_tf
from optkit.formats.tflite.tf import Origin, TfToTflite, confirm
from optkit.plugin import Context, Pass


def run(artifact: Artifact, out_dir: Path, options: TfToTflite, context: Context) -> dict[str, Any]:
    """Notes and errors as `tflite_tf.write` says."""
    context.progress("load", None)
    function = savedmodel_load.function(artifact.path, artifact.meta.get("signature"))
    nodes = [(node.op, node.name) for node in savedmodel.serving(artifact.path).nodes]
    origin = Origin(function.by_name, function.concrete.variables, [function.model], traced=True, nodes=nodes)
    return tflite_tf.write(origin, asked(artifact, context), out_dir, options, context)


PASS = Pass(
    name="savedmodel.to_tflite",
    version=1,
    source="savedmodel",
    target="tflite",
    summary="Convert a SavedModel to a float TFLite file for LiteRT",
    run=run,
    confirm=confirm,
    options=TfToTflite,
    fidelity="rounding",
    tools=("tensorflow-cpu", "ai-edge-litert"),
    modules=("optkit.formats.warm.tensorflow", "optkit.formats.warm.tflite"),
)
