"""Models that lie somewhere, and questions about them put to a worker: what `check`, `verify` and `bench` share."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optkit.artifact import Dim, Signature
from optkit.caching import keys
from optkit.models.common_inputs import Side
from optkit.models.opened import artifact_at, dims_at, specs_of
from optkit.running.pool import Pool
from optkit.worker import raise_if_failed

LIMIT_SECONDS = 3600.0


def ask(pool: Pool, step: dict[str, Any], work: Path) -> dict[str, Any]:
    """The result of a task. Raises the error of one that failed."""
    pool.submit("task", step, Path(tempfile.mkdtemp(dir=work)), LIMIT_SECONDS)
    while True:
        message = pool.wait(0.2)
        if message is not None and message.kind == "result":
            return raise_if_failed(message.data)


def side_at(
    ref: str,
    inputs: Mapping[str, Mapping[str, Any]] | None,
    sizes: Mapping[str, Dim],
    pool: Pool,
    work: Path,
    common: Mapping[str, Any],
) -> tuple[Side, dict[str, Any]]:
    """The model a path or callable stands for with its signature, the ranges of its dims where it was delivered, and
    its `model:` section (empty for a delivered folder).

    work: a folder to put files into. common: what every task is told. Raises UserError for what is no model.
    """
    artifact, section = artifact_at(ref, inputs, sizes, Path(tempfile.mkdtemp(dir=work)))
    if artifact.signature is not None:
        return (artifact, dims_at(Path(ref))), section
    told = ask(pool, {
        **common, "task": "source", "artifact": artifact.to_json(), "dims": keys.dims_json(sizes),
        "inputs": [t.to_json() for t in specs_of(inputs)],
    }, work)  # fmt: skip
    return (artifact.with_signature(Signature.from_json(told["signature"])), {}), section
