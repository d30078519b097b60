"""keras.to_openvino: a Keras model as OpenVINO IR, weights as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optkit.artifact import Artifact
from optkit.formats.tensorflow import keras_model, keras_saved
from optkit.formats.tensorflow import openvino as tf_openvino
from optkit.formats.tensorflow.openvino import ToOpenVino, confirm
from optkit.formats.tensorflow.signature import asked
from optkit.plugin import Context, Pass


def run(artifact: Artifact, out_dir: Path, options: ToOpenVino, context: Context) -> dict[str, Any]:
    """By way of a SavedModel, which is not kept. Notes: operators, and dims whose range the file holds."""
    signature = asked(artifact, context)
    context.progress("load", None)
    loaded = keras_model.load(artifact.path, artifact.meta, fresh=True)
    keras_saved.write(context.scratch / "saved", loaded, signature)
    return tf_openvino.convert(context.scratch / "saved", signature, out_dir, options, context)


PASS = Pass(
    name="keras.to_openvino",
    version=1,
    source="keras",
    target="openvino",
    summary="Convert a Keras model to OpenVINO IR",
    run=run,
    confirm=confirm,
    options=ToOpenVino,
    fidelity="rounding",
    tools=("tensorflow-cpu", "keras", "openvino"),
    modules=("optkit.formats.warm.keras", "optkit.formats.warm.openvino"),
)
