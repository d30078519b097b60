"""tf_graph.to_openvino: a frozen TensorFlow graph as OpenVINO IR, weights as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optkit.artifact import Artifact
from optkit.formats.tensorflow import graph as tf_graph
from optkit.formats.tensorflow import openvino as tf_openvino
from optkit.formats.tensorflow import savedmodel_write
from optkit.formats.tensorflow.openvino import ToOpenVino, confirm
from optkit.formats.tensorflow.signature import asked
from optkit.plugin import Context, Pass


def run(artifact: Artifact, out_dir: Path, options: ToOpenVino, context: Context) -> dict[str, Any]:
    """By way of a SavedModel, whose signature holds the names that OpenVINO is to keep."""
    signature = asked(artifact, context)
    graph = tf_graph.load(artifact.path, artifact.meta)
    savedmodel_write.write(context.scratch / "saved", graph.call, signature)
    return tf_openvino.convert(context.scratch / "saved", signature, out_dir, options, context)


PASS = Pass(
    name="tf_graph.to_openvino",
    version=1,
    source="tf_graph",
    target="openvino",
    summary="Convert a frozen TensorFlow graph to OpenVINO IR",
    run=run,
    confirm=confirm,
    options=ToOpenVino,
    fidelity="rounding",
    tools=("tensorflow-cpu", "openvino"),
    modules=("optkit.formats.warm.tensorflow", "optkit.formats.warm.openvino"),
)
