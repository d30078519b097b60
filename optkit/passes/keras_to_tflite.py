"""keras.to_tflite: a Keras model as a float TFLite file for LiteRT, with the recipe's names, dims and layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optkit.artifact import Artifact
from optkit.formats.tensorflow import keras_model
from optkit.formats.tensorflow.signature import asked
from optkit.formats.tflite import tf as tflite_tf
from optkit.formats.tflite.tf import Origin, TfToTflite, confirm
from optkit.plugin import Context, Pass


def run(artifact: Artifact, out_dir: Path, options: TfToTflite, context: Context) -> dict[str, Any]:
    """Not by way of a SavedModel, as recurrent layers have to know the sizes when they are traced.

    Notes and errors as `tflite_tf.write` says.
    """
    context.progress("load", None)
    loaded = keras_model.load(artifact.path, artifact.meta, fresh=True)
    origin = Origin(loaded.call, resources=loaded.resources)
    return tflite_tf.write(origin, asked(artifact, context), out_dir, options, context)


PASS = Pass(
    name="keras.to_tflite",
    version=1,
    source="keras",
    target="tflite",
    summary="Convert a Keras model to a float TFLite file for LiteRT",
    run=run,
    confirm=confirm,
    options=TfToTflite,
    fidelity="rounding",
    tools=("tensorflow-cpu", "keras", "ai-edge-litert"),
    modules=("optkit.formats.warm.keras", "optkit.formats.warm.tflite"),
)
