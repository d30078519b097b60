"""Steps made: the pass of each run by a worker, or its output taken from the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from optkit.artifact import Artifact, Signature
from optkit.cache import Cache, Entry
from optkit.caching import keys
from optkit.errors import OptkitError
from optkit.models.sources import source_artifact
from optkit.planning import Plan
from optkit.recipe import SOURCE
from optkit.running.dispatch import Dispatch
from optkit.running.runstate import RunState
from optkit.running.stepstate import StepState


def cached_steps(plan: Plan, cache: Cache) -> dict[str, bool | None]:
    """Which steps have their output in the cache; None where telling would mean reading a big file."""
    found: dict[str, bool | None] = dict.fromkeys((s.id for s in plan.steps), None)
    absent = keys.unusable(plan)
    try:
        source = source_artifact(plan.recipe, cache, known_only=True)
    except OptkitError:
        source = None
    if source is None:
        return found
    entry = cache.get(keys.describe_key(plan.recipe, source))
    if entry is None:
        return dict.fromkeys(found, False)
    made: dict[str, Artifact] = {SOURCE: source.with_signature(Signature.from_json(entry.data["signature"]))}
    for step in plan.steps:
        parent = made.get(step.parent)
        data = keys.data_key(plan.recipe, step.data, cache, known_only=True) if step.data else None
        if step.environment in absent:  # what is in it is part of the key
            found[step.id] = False
            continue
        if parent is None or (step.data and data is None):
            found[step.id] = None if found.get(step.parent, True) is None else False
            continue
        reads = keys.reads_key(plan, step, cache, known_only=True)
        if reads is None:
            continue
        entry = cache.get(keys.step_key(plan, step, parent, data, made[SOURCE], reads))
        found[step.id] = entry is not None
        if entry is not None:
            made[step.id] = _artifact_in(entry)
    return found


def start(run: RunState, hands: Dispatch, state: StepState) -> None:
    """Run a waiting step's pass once its parent and its data are there; a step on one that does not hold is blocked."""
    step = state.step
    parent = run.steps.get(step.parent)
    if parent is not None and parent.phase == "done" and not parent.usable:
        state.blocked_by = parent.blocked_by or parent.step.id
        run.finish(state, "blocked")
        return
    made = run.artifact_of(step.parent)
    if made is None or (parent is not None and not parent.usable) or (step.data and run.data_info is None):
        return
    data = run.data_keys.get(step.data or "")
    if not state.key:
        assert run.source is not None
        reads = keys.reads_key(run.plan, step, run.cache)
        state.key = keys.step_key(run.plan, step, made, data, run.source, reads)
        entry = run.cache.get(state.key)
        if entry is not None:
            state.cached["run"] = True
            _set_made(state, entry)
            return
    task = f"run:{step.id}"
    if hands.can_start(task):
        hands.submit(task, {
            "task": "run", "pass": step.use.name, "options": step.options_json(), "artifact": made.to_json(),
            "data": step.data, "out": str(hands.stage(task)),
            "source": run.source.to_json() if run.source and step.use.wants_source(step.options) else None,
            "kept": str(run.cache.partial(state.key)) if step.use.resumes else None,
            "metrics": [metric.to_json() for metric in keys.budgeted(run.plan, step)],
            "scores": [metric.to_json() for metric in run.recipe.metrics]
            if step.use.resumes and step.use.wants_source(step.options) else [],
            "shared": {"root": str(run.cache.root), "key": keys.shared_key(run.plan, step, data)} if data else None,
        }, {*step.use.modules}, partial(_take, run, state), limit=step.timeout_seconds, python=step.python)  # fmt: skip
        state.phase = "running"


def _take(run: RunState, state: StepState, result: Mapping[str, Any], staged: Path | None) -> None:
    if run.went_well(state, "run", result):
        data = {k: result[k] for k in ("artifact", "notes", "seconds", "peak_bytes")}
        _set_made(state, run.cache.put(state.key, data, staged, result["digests"]))
        run.cache.drop_partial(state.key)


def _set_made(state: StepState, entry: Entry) -> None:
    made = _artifact_in(entry)
    runtime = dict(state.step.runtime)
    state.artifact = replace(made, meta={**made.meta, "runtime": runtime}) if runtime else made
    state.notes = entry.data["notes"]
    state.peak_bytes = entry.data.get("peak_bytes")
    state.made_seconds = entry.data.get("seconds")
    state.phase = "made"


def _artifact_in(entry: Entry) -> Artifact:
    data = dict(entry.data["artifact"])
    return Artifact.from_json({**data, "path": str(entry.folder / Path(data["path"]).name)})
