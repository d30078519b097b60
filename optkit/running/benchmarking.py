"""A recipe's `benchmark:`: its deliveries measured beside the source at several batches and numbers of threads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from optkit.artifact import Artifact, Dim, TensorSpec, digest_of
from optkit.caching import keys
from optkit.errors import OptkitError, UserError, from_json
from optkit.parity.cases import Case, batch_dim, fixed_batch
from optkit.recipe import SOURCE, Recipe
from optkit.spec.sections import BenchmarkSpec
from optkit.speed.benching import row_of, set_up

if TYPE_CHECKING:
    from optkit.running.stepstate import StepState


@dataclass(frozen=True)
class Heat:
    """One race of all entrants, at one batch and number of threads. key: under which its result is kept."""

    artifacts: Mapping[str, Artifact]
    pairs: Mapping[str, str]
    case: Case
    dims: Mapping[str, Dim]
    batch: int
    threads: int
    seconds: float
    key: str

    def task(self, check_on: str, out: str) -> dict[str, Any]:
        """What a worker is told."""
        return {
            "task": "race", "artifacts": {name: a.to_json() for name, a in self.artifacts.items()},
            "pairs": dict(self.pairs), "check_on": check_on, "case": self.case.to_json(), "threads": self.threads,
            "dims": keys.dims_json(self.dims), "seconds": self.seconds * len(self.artifacts), "out": out,
        }  # fmt: skip

    def rows(self, entrants: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The rows of the report, as `optkit.bench` gives them."""
        return [row_of(name, artifact, self.batch, self.threads, entrants[name])
                for name, artifact in self.artifacts.items()]  # fmt: skip


def require_threads(spec: BenchmarkSpec) -> None:
    """Raise UserError for more threads than this machine has cores."""
    if spec.threads and max(spec.threads) > keys.cores():
        raise UserError(f"benchmark.threads: {max(spec.threads)}, and this process may use {keys.cores()} cores",
                        hint=f"at most {keys.cores()} here", subject="benchmark.threads")  # fmt: skip


def heats_of(
    recipe: Recipe, source: Artifact, delivered: Sequence[StepState], judged_on: str, case: Case, threads: int,
    dims: Mapping[str, Dim],
) -> Iterator[Heat]:  # fmt: skip
    """Every race that `benchmark:` asks for, over the source and the deliveries that this machine can run."""
    spec = recipe.benchmark
    assert spec is not None
    assert source.signature is not None
    artifacts = {SOURCE: source, **{s.step.id: s.artifact for s in delivered if s.artifact is not None}}
    if spec.against != SOURCE and spec.against in artifacts:
        artifacts = {spec.against: artifacts[spec.against], **artifacts}
    there = {a.format for a in artifacts.values()}
    artifacts, pairs = set_up(artifacts, {f: s for f, s in spec.settings.items() if f in there})
    batch = batch_dim(source.signature.inputs)
    for count in spec.threads or (threads,):
        for size in spec.batch or (case.sizes[batch] if batch else fixed_batch(source.signature.inputs),):
            at = replace(case, sizes={**case.sizes, batch: size}) if batch else case
            raced = keys.race_key(recipe, list(artifacts.values()), judged_on, at, count)
            ranges = {**dims, batch: Dim(min(size, dims[batch].min), size, size)} if batch else dims
            key = digest_of(["benchmark", raced, list(artifacts), pairs, spec.seconds])
            yield Heat(artifacts, pairs, at, ranges, size, count, spec.seconds, key)


def require_batches(spec: BenchmarkSpec, inputs: Sequence[TensorSpec], dims: Mapping[str, Dim]) -> None:
    """Raise UserError for a batch that the model does not take."""
    name = batch_dim(inputs)
    if name is None:
        fixed = fixed_batch(inputs)
        if wrong := [n for n in spec.batch if n != fixed]:
            raise UserError(f"benchmark.batch: {wrong[0]}, and the model is fixed at {fixed}",
                            hint="leave it out, or open that axis with a dim", subject="benchmark.batch")  # fmt: skip
    elif wrong := [n for n in spec.batch if not dims[name].min <= n <= dims[name].max]:
        what = f"benchmark.batch: {wrong[0]} is not within {name}: {dims[name].min} to {dims[name].max}"
        raise UserError(what, hint="measure within it, or widen dims:", subject="benchmark.batch")


def empty(against: str, absent: Sequence[str]) -> dict[str, Any]:
    """A benchmark with nothing measured yet. absent: deliveries that did not hold or that this machine cannot run."""
    notes = [f"{step}: not measured, it did not hold or runs elsewhere" for step in absent]
    return {"against": against, "rows": [], "notes": notes, "error": None}


def failed(error: Mapping[str, Any]) -> dict[str, Any]:
    """What kept a race from being run, as the report has it."""
    told: OptkitError = from_json(dict(error))
    return {**told.to_json(), "exit_code": told.exit_code}
