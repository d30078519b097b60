"""What every step needs first: the source model's signature, the data, and the source's own answers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from optkit.artifact import Dim, Signature
from optkit.cache import Entry
from optkit.caching import keys
from optkit.errors import OptkitError, SourceError, StepError, UserError, did_you_mean, from_json
from optkit.models.sources import source_artifact
from optkit.parity.cases import make_cases
from optkit.running.dispatch import Dispatch
from optkit.running.runstate import RunState

_DOING = {"source": "reading the model", "data": "reading the data", "record": "running the source model"}


def identify(run: RunState) -> None:
    """Digest the source model and the datasets, which the cache is asked by. Raises UserError."""
    if run.recipe.benchmark is not None:
        from optkit.running.benchmarking import require_threads

        try:
            require_threads(run.recipe.benchmark)
        except UserError as error:
            raise run.located(error) from None
    artifact = source_artifact(run.recipe, run.cache)
    assert artifact is not None
    run.unsigned = artifact
    for name in dict.fromkeys([run.recipe.check_on, *keys.fitted(run.plan)]):
        key = keys.data_key(run.recipe, name, run.cache)
        assert key is not None
        run.data_keys[name] = key


def advance(run: RunState, hands: Dispatch) -> None:
    """Take from the cache what it has, and hand out the next that is missing."""
    if run.source is None:
        _find_source(run, hands)
    if run.source is not None and run.data_info is None:
        _find_data(run, hands)
    if run.source is not None and run.data_info is not None and run.record is None:
        _find_record(run, hands)


def _find_source(run: RunState, hands: Dispatch) -> None:
    entry = run.cache.get(keys.describe_key(run.recipe, run.unsigned))
    if entry is not None:
        _set_source(run, entry)
    elif hands.can_start("source"):
        step = {"task": "source", "artifact": run.unsigned.to_json()}
        hands.submit("source", step, run.source_modules, partial(_take_source, run))


def _take_source(run: RunState, result: Mapping[str, Any], staged: Path | None) -> None:
    _require(run, "source", result)
    key = keys.describe_key(run.recipe, run.unsigned)
    _set_source(run, run.cache.put(key, {"signature": result["signature"], "seconds": result["seconds"]}))


def _set_source(run: RunState, entry: Entry) -> None:
    signature = Signature.from_json(entry.data["signature"])
    run.source = run.unsigned.with_signature(signature)
    for name in run.recipe.dims:
        if name not in signature.dynamic:
            error = SourceError(
                f"dims.{name}: the model has no dynamic dim of this name",
                subject=f"dims.{name}",
                hint=did_you_mean(name, signature.dynamic) or "remove it, or export the model with a dynamic dim",
            )
            raise run.located(error)
    for name in signature.dynamic:  # a file's own dynamic dims, which the recipe does not mention
        run.dims.setdefault(name, Dim(1, 2, 4))
    run.cases = make_cases(signature.inputs, run.dims)
    if run.recipe.benchmark is not None:
        from optkit.running.benchmarking import require_batches

        try:
            require_batches(run.recipe.benchmark, signature.inputs, run.dims)
        except UserError as error:
            raise run.located(error) from None


def _find_data(run: RunState, hands: Dispatch) -> None:
    assert run.source is not None
    entry = run.cache.get(keys.datasets_key(run.plan, run.data_keys, run.source))
    if entry is not None:
        run.data_info = entry.data["datasets"]
    elif hands.can_start("data"):
        step = {"task": "data", "check_on": run.recipe.check_on, "fitted": keys.fitted(run.plan)}
        hands.submit("data", step, {"numpy"}, partial(_take_data, run))


def _take_data(run: RunState, result: Mapping[str, Any], staged: Path | None) -> None:
    _require(run, "data", result)
    assert run.source is not None
    key = keys.datasets_key(run.plan, run.data_keys, run.source)
    run.data_info = run.cache.put(key, {"datasets": result["datasets"]}).data["datasets"]


def _find_record(run: RunState, hands: Dispatch) -> None:
    assert run.source is not None
    entry = run.cache.get(keys.record_key(run.recipe, run.source, run.judge_key, run.cases))
    if entry is not None:
        run.record = entry
    elif hands.can_start("record"):
        step = {
            "task": "record",
            "artifact": run.source.to_json(),
            "check_on": run.recipe.check_on,
            "cases": [c.to_json() for c in run.cases],
            "out": str(hands.stage("record")),
        }
        hands.submit("record", step, run.source_modules, partial(_take_record, run))


def _take_record(run: RunState, result: Mapping[str, Any], staged: Path | None) -> None:
    _require(run, "record", result)
    assert run.source is not None
    key = keys.record_key(run.recipe, run.source, run.judge_key, run.cases)
    run.record = run.cache.put(key, {name: result[name] for name in ("noise", "provider", "seconds")}, staged)


def _require(run: RunState, phase: str, result: Mapping[str, Any]) -> None:
    """Raise the error of a task that failed; a crash or a bug in a backend is told with what was going on."""
    if result["ok"]:
        return
    error: OptkitError = from_json(result["error"])
    if isinstance(error, StepError):
        error.what = f"{_DOING[phase]}: {error.what}"
        again = f"optkit replay {run.out / 'logs' / phase / 'step.json'} repeats it alone"
        error.hint = error.hint.replace("optkit replay repeats it alone", again) or again
    raise run.located(error)
