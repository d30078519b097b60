"""keras.to_savedmodel: a Keras model as a SavedModel, in inference mode, with the recipe's names in its signature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optkit.artifact import Artifact
from optkit.formats.tensorflow import keras_model, keras_saved, savedmodel
from optkit.formats.tensorflow.signature import asked
from optkit.plugin import Context, Options, Pass


def run(artifact: Artifact, out_dir: Path, options: Options, context: Context) -> dict[str, Any]:
    """Notes: variables, the model's parameters, operators. Raises StepError where the model cannot be traced."""
    context.progress("load", None)
    loaded = keras_model.load(artifact.path, artifact.meta, fresh=True)
    context.progress("trace", None)
    keras_saved.write(out_dir, loaded, asked(artifact, context))
    held = savedmodel.inspect(out_dir / savedmodel.MAIN)
    return {
        "variables": held["variables"],
        "parameters": loaded.model.count_params(),
        "operators": held["operators"],
    }


def confirm(parent: Artifact, artifact: Artifact, options: Options, context: Context) -> list[str]:
    """Re-reads the file: one signature, called serving_default, and every variable in it."""
    held = savedmodel.inspect(artifact.path)
    complaints = []
    if held["signatures"] != [savedmodel.DEFAULT]:
        complaints.append(f"the signatures are {', '.join(held['signatures']) or 'none'}, not {savedmodel.DEFAULT}")
    return complaints


PASS = Pass(
    name="keras.to_savedmodel",
    version=1,
    source="keras",
    target="savedmodel",
    summary="Export a Keras model as a SavedModel for TensorFlow Serving and the converters",
    run=run,
    confirm=confirm,
    fidelity="rounding",
    tools=("tensorflow-cpu", "keras"),
    modules=("optkit.formats.warm.keras",),
)
