"""The source model read, the data read, and the source run on every case, for `optkit.running.groundwork`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from optkit.artifact import Artifact, TensorSpec
from optkit.errors import DataError, SourceError, UnavailableError
from optkit.models.signatures import merge
from optkit.parity.cases import Case, batch_dim, feeds
from optkit.parity.tape import Tape
from optkit.registry import get_runner
from optkit.tasks.common import Data, Say, dataset_of, first_rows, session_of

if TYPE_CHECKING:
    from optkit.plugin import Tensors


NOISE_SAMPLES = 16
"""Samples on which the source's own rounding error, float32 against float64, is measured."""


def source(step: Data, say: Say) -> Data:
    """The source model's signature, with what the recipe declared checked against it and merged in."""
    artifact = Artifact.from_json(step["artifact"])
    found = get_runner(artifact.format).describe(artifact.path, {**artifact.meta, "dims": step["dims"]})
    declared = tuple(TensorSpec.from_json(t) for t in step["inputs"])
    return {"signature": merge(declared, found, step["outputs"]).to_json()}


def data(step: Data, say: Say) -> Data:
    """Every dataset read once: counts and digests; fitting sets must share no sample with the judging set."""
    from optkit.data import overlap

    found = {}
    for name in step["datasets"]:
        say(f"reading {name}", None)
        dataset = dataset_of(step, name)
        found[name] = {
            "samples": len(dataset),
            "digest": dataset.digest(),
            "synthetic": dataset.synthetic,
            "preprocessing": dataset.preprocessing,
        }
    judge = dataset_of(step, step["check_on"])
    for name, users in step["fitted"].items():
        pairs = overlap(dataset_of(step, name), judge)
        if pairs:
            mine, theirs = pairs[0]
            raise DataError(
                f"{len(pairs)} samples of {name!r} are also in {step['check_on']!r}, which judges what is fitted on it "
                f"({', '.join(users)}); the first is number {mine}, number {theirs} there",
                subject=f"data.{name}",
                hint="take the shared samples out of one of them",
                code="OPK-231",
            )
    return {"datasets": found}


def record(step: Data, say: Say) -> Data:
    """The source model's answers to every case, on a tape, and its own rounding error where that can be measured."""
    from optkit.parity.metrics import Comparison

    artifact = Artifact.from_json(step["artifact"])
    runner = get_runner(artifact.format)
    assert artifact.signature is not None
    tape = Tape(Path(step["out"]))
    dataset = dataset_of(step, step["check_on"])
    cases = [Case.from_json(c) for c in step["cases"]]
    noise: dict[str, dict[str, float]] = {}
    fixed = batch_dim(artifact.signature.inputs) is None
    with ExitStack() as stack:
        session = stack.enter_context(session_of(step, artifact))
        exact = None
        if "float64" in runner.precisions and all(
            t.dtype == "float32" for t in artifact.signature.outputs if t.dtype.startswith("float")
        ):
            exact = stack.enter_context(session_of(step, artifact, precision="float64"))
        for number, case in enumerate(cases):
            done = 0
            comparison = Comparison()
            for batch, (tensors, count, _) in enumerate(feeds(case, dataset, artifact.signature.inputs)):
                outputs = session.infer(tensors)
                tape.write(number, batch, outputs)
                if exact and case.kind != "dims" and done < NOISE_SAMPLES:
                    rows = min(NOISE_SAMPLES - done, count)
                    part = tensors if fixed else first_rows(tensors, rows, count)  # a fixed batch is fed whole
                    try:
                        found = first_rows(exact.infer(part), rows, count)
                        comparison.add(_plain(found), _plain(first_rows(outputs, rows, count)), rows)
                    except (SourceError, UnavailableError):  # it just ran on these inputs: it has no float64
                        exact = None
                        noise.clear()
                done += count
                say(f"source model, {case.name}", min(1.0, done / max(1, len(dataset))))
            if exact and case.kind != "dims":
                result = comparison.result()
                noise[case.name] = {
                    name: metrics["rel_l2"]["worst"]
                    for name, metrics in result["outputs"].items()
                    if "rel_l2" in metrics
                }
        provider = session.provider
    return {"noise": noise or None, "provider": provider}


def _plain(tensors: Tensors) -> Tensors:
    import numpy as np

    return {name: t.astype(np.float64) if t.dtype.kind == "f" else t for name, t in tensors.items()}
