"""A loaded Keras model written as a SavedModel, in inference mode."""

from __future__ import annotations

from pathlib import Path

from optkit.artifact import Signature
from optkit.errors import StepError
from optkit.formats.tensorflow import core as tf_core
from optkit.formats.tensorflow import savedmodel_write
from optkit.formats.tensorflow.keras_model import KerasModel


def write(folder: Path, loaded: KerasModel, signature: Signature) -> None:
    """See `savedmodel_write.write`. Raises StepError where the model cannot be traced."""
    try:
        savedmodel_write.write(folder, loaded.call, signature, resources=loaded.resources)
    except StepError:
        raise
    except Exception as error:  # the model's own code, traced
        raise StepError(
            f"TensorFlow cannot trace the model: {tf_core.reason(error)}",
            subject="model",
            details=str(error),
            hint="a layer's call must use TensorFlow or keras.ops throughout, and fixed sizes where it asks for one",
        ) from error
