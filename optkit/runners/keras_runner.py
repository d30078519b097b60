"""Runs Keras models, `.keras` and whole-model `.h5`, with TensorFlow on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from optkit.artifact import Artifact
from optkit.formats.tensorflow import core as tf_core
from optkit.formats.tensorflow import keras_model
from optkit.formats.tensorflow import session as tf_session
from optkit.plugin import Runner


@contextmanager
def open_model(
    artifact: Artifact, device: str = "cpu", threads: int = 1, precision: str | None = None
) -> Iterator[tf_session.TensorFlowSession]:
    """An open session, layers in inference mode.

    Raises UnavailableError for a device other than the CPU and for any precision, SourceError where it is broken.
    """
    tf_session.check_place(device, precision)
    used = tf_core.threads(threads)  # before anything is loaded, which would start TensorFlow with its own number
    loaded = keras_model.load(artifact.path, artifact.meta)
    yield tf_session.TensorFlowSession(loaded.call, loaded.signature, used)


RUNNER = Runner(
    format="keras",
    version=1,
    main=keras_model.MAIN,
    suffixes=keras_model.SUFFIXES,
    describe=keras_model.describe,
    open=open_model,
    inspect=keras_model.inspect,
    tools=("tensorflow-cpu", "keras"),
    modules=("optkit.formats.warm.keras",),
)
