"""tf_graph.to_savedmodel: a frozen TensorFlow graph as a SavedModel, with the recipe's inputs and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optkit.artifact import Artifact
from optkit.formats.tensorflow import graph as tf_graph
from optkit.formats.tensorflow import savedmodel, savedmodel_write
from optkit.formats.tensorflow.signature import asked
from optkit.plugin import Context, Options, Pass


def run(artifact: Artifact, out_dir: Path, options: Options, context: Context) -> dict[str, Any]:
    """Its weights stay constants of the graph. Notes: operators."""
    context.progress("convert", None)
    graph = tf_graph.load(artifact.path, artifact.meta)
    savedmodel_write.write(out_dir, graph.call, asked(artifact, context))
    return {"operators": savedmodel.inspect(out_dir / savedmodel.MAIN)["operators"]}


def confirm(parent: Artifact, artifact: Artifact, options: Options, context: Context) -> list[str]:
    """Re-reads the file: one signature, called serving_default."""
    held = savedmodel.inspect(artifact.path)["signatures"]
    return [] if held == [savedmodel.DEFAULT] else [f"the signatures are {', '.join(held) or 'none'}"]


PASS = Pass(
    name="tf_graph.to_savedmodel",
    version=1,
    source="tf_graph",
    target="savedmodel",
    summary="Put a frozen TensorFlow graph into a SavedModel with a serving signature",
    run=run,
    confirm=confirm,
    fidelity="exact",
    tools=("tensorflow-cpu",),
    modules=("optkit.formats.warm.tensorflow",),
)
