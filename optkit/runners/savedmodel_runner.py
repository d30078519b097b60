"""Runs SavedModels with TensorFlow on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from optkit.artifact import Artifact
from optkit.formats.tensorflow import core as tf_core
from optkit.formats.tensorflow import savedmodel, savedmodel_load
from optkit.formats.tensorflow import session as tf_session
from optkit.plugin import Runner


@contextmanager
def open_model(
    artifact: Artifact, device: str = "cpu", threads: int = 1, precision: str | None = None
) -> Iterator[tf_session.TensorFlowSession]:
    """An open session on the artifact's signature, which takes its inputs as that says: nothing is cast or turned.

    Raises UnavailableError for a device other than the CPU and for any precision, SourceError where it is broken.
    """
    tf_session.check_place(device, precision)
    used = tf_core.threads(threads)  # before anything is loaded, which would start TensorFlow with its own number
    function = savedmodel_load.function(artifact.path, artifact.meta.get("signature"))
    signature = savedmodel.describe(artifact.path, artifact.meta)
    yield tf_session.TensorFlowSession(function.by_name, signature, used)


RUNNER = Runner(
    format="savedmodel",
    version=1,
    main=savedmodel.MAIN,
    suffixes=(),
    describe=savedmodel.describe,
    open=open_model,
    inspect=savedmodel.inspect,
    tools=("tensorflow-cpu",),
    modules=("optkit.formats.warm.tensorflow",),
    delivered_in="1",
)
