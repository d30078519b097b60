"""tf_graph.to_tflite: a frozen TensorFlow graph as a float TFLite file for LiteRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optkit.artifact import Artifact
from optkit.formats.tensorflow import graph as tf_graph
from optkit.formats.tensorflow import proto as tf_proto
from optkit.formats.tensorflow.signature import asked
from optkit.formats.tflite import tf as tflite_tf
from optkit.formats.tflite.tf import Origin, TfToTflite, confirm
from optkit.plugin import Context, Pass


def run(artifact: Artifact, out_dir: Path, options: TfToTflite, context: Context) -> dict[str, Any]:
    """Notes and errors as `tflite_tf.write` says."""
    context.progress("load", None)
    graph = tf_graph.load(artifact.path, artifact.meta)
    nodes = [(node.op, node.name) for node in tf_proto.read_graph(artifact.path)]
    origin = Origin(graph.call, traced=True, nodes=nodes)
    return tflite_tf.write(origin, asked(artifact, context), out_dir, options, context)


PASS = Pass(
    name="tf_graph.to_tflite",
    version=1,
    source="tf_graph",
    target="tflite",
    summary="Convert a frozen TensorFlow graph to a float TFLite file for LiteRT",
    run=run,
    confirm=confirm,
    options=TfToTflite,
    fidelity="rounding",
    tools=("tensorflow-cpu", "ai-edge-litert"),
    modules=("optkit.formats.warm.tensorflow", "optkit.formats.warm.tflite"),
)
