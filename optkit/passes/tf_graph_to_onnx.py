"""tf_graph.to_onnx: a frozen TensorFlow graph as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optkit.artifact import Artifact
from optkit.formats.tensorflow import graph as tf_graph
from optkit.formats.tensorflow import onnx as tf_onnx
from optkit.formats.tensorflow.onnx import ToOnnx, confirm
from optkit.formats.tensorflow.signature import asked
from optkit.plugin import Context, Pass


def run(artifact: Artifact, out_dir: Path, options: ToOnnx, context: Context) -> dict[str, Any]:
    """Notes: opset and operators. Raises StepError as `tf_onnx.convert` does."""
    graph = tf_graph.load(artifact.path, artifact.meta)
    return tf_onnx.convert(graph.call, asked(artifact, context), out_dir, options, context)


PASS = Pass(
    name="tf_graph.to_onnx",
    version=1,
    source="tf_graph",
    target="onnx",
    summary="Convert a frozen TensorFlow graph to ONNX",
    run=run,
    confirm=confirm,
    options=ToOnnx,
    fidelity="rounding",
    tools=("tensorflow-cpu", "tf2onnx", "onnx", "onnx-ir"),
    modules=("optkit.formats.warm.tf2onnx",),
)
