"""Runs SavedModels with TensorFlow on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optkit.artifact import Artifact, Signature
from optkit.errors import UnavailableError
from optkit.formats import savedmodel, tf_core, tf_session
from optkit.plugin import Runner

if TYPE_CHECKING:
    from optkit.plugin import Tensors


@contextmanager
def open_model(
    artifact: Artifact, device: str = "cpu", threads: int = 1, precision: str | None = None
) -> Iterator[tf_session.TensorFlowSession]:
    """An open session on the artifact's signature. Inputs are taken as that says: nothing is cast or turned.

    Raises UnavailableError for a device other than the CPU and for any precision, SourceError where it is broken.
    """
    tf_core.check_place(device, precision)
    name, _ = savedmodel.choose(artifact.path, artifact.meta.get("signature"))
    signature = savedmodel.describe(artifact.path, artifact.meta)
    with tf_session.opened(savedmodel.load(artifact.path), threads) as (loaded, provider):
        yield tf_session.TensorFlowSession(loaded.signatures[name], signature, provider)
