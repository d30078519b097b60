"""A SavedModel loaded by TensorFlow: one of its signatures as a concrete function."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optkit.errors import SourceError
from optkit.formats.tensorflow import core as tf_core
from optkit.formats.tensorflow import savedmodel
from optkit.formats.tensorflow import session as tf_session


class Function:
    """A signature of a loaded SavedModel; it keeps the model, whose variables it reads, alive."""

    def __init__(self, model: Any, name: str) -> None:
        self.model = model
        self.concrete = model.signatures[name]

    def by_name(self, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        """Outputs by name, for inputs by name."""
        found: Mapping[str, Any] = self.concrete(**tensors)
        return found


def function(path: Path, wanted: str | None = None) -> Function:
    """The signature by that name, see `savedmodel.choose`. Raises SourceError."""
    name, _ = savedmodel.choose(path, wanted)
    tf = tf_core.load()
    try:
        with tf_session.loading():
            model = tf.saved_model.load(str(path.parent), tags=list(savedmodel.serving(path).tags) or None)
            return Function(model, name)
    except (tf.errors.OpError, OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise _failure(path, error) from error


def _failure(path: Path, error: Exception) -> SourceError:
    text = tf_core.reason(error)
    if unknown := re.search(r"Op type not registered '?(\w+)", str(error)):
        what = f"{path.parent} has the operator {unknown[1]}, which this TensorFlow does not know"
        hint = "export it without custom operators (tensorflow-text, a .so of its own)"
    else:
        what = f"{path.parent} cannot be loaded: {text}"
        hint = "copy the whole folder again, or export it with this version of TensorFlow"
    return SourceError(what, subject="model", details=str(error), hint=hint)
