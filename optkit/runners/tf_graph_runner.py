"""Runs frozen TensorFlow graphs on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from optkit.artifact import Artifact
from optkit.formats.tensorflow import core as tf_core
from optkit.formats.tensorflow import graph as tf_graph
from optkit.formats.tensorflow import session as tf_session
from optkit.plugin import Runner


@contextmanager
def open_model(
    artifact: Artifact, device: str = "cpu", threads: int = 1, precision: str | None = None
) -> Iterator[tf_session.TensorFlowSession]:
    """An open session between the tensors that the artifact's `meta` names ("inputs", "outputs").

    Raises UnavailableError for a device other than the CPU and for any precision, SourceError where it is broken.
    """
    tf_session.check_place(device, precision)
    used = tf_core.threads(threads)  # before anything is loaded, which would start TensorFlow with its own number
    graph = tf_graph.load(artifact.path, artifact.meta)
    yield tf_session.TensorFlowSession(graph.call, graph.signature, used)


RUNNER = Runner(
    format="tf_graph",
    version=1,
    main=tf_graph.MAIN,
    suffixes=(".pb",),
    describe=tf_graph.describe,
    open=open_model,
    inspect=tf_graph.inspect,
    tools=("tensorflow-cpu",),
    modules=("optkit.formats.warm.tensorflow",),
)
