"""What is timed once nothing else runs: the races that steps are judged by, and what `benchmark:` asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from optkit.artifact import digest_of
from optkit.caching import keys
from optkit.recipe import SOURCE
from optkit.running.dispatch import Dispatch
from optkit.running.racing import SECONDS, speed_of
from optkit.running.runstate import RunState
from optkit.running.stepstate import StepState


def race(run: RunState, hands: Dispatch) -> bool:
    """Measure speeds, one race at a time while nothing else runs; whether there is something to wait for."""
    while run.heats and hands.is_idle:
        parent_id = next(iter(run.heats))
        there = _entrants(run, parent_id)
        if not there or not (parent_id == SOURCE or run.steps[parent_id].proven):
            del run.heats[parent_id]
            continue
        entry = run.cache.get(_race_key(run, parent_id, there))
        if entry is None:
            task = f"race:{parent_id}"
            artifacts = {parent_id: run.artifact_of(parent_id), **{s.step.id: s.artifact for s in there}}
            hands.submit(task, {
                "task": "race", "artifacts": {name: a.to_json() for name, a in artifacts.items() if a},
                "check_on": run.recipe.check_on, "case": run.cases[0].to_json(),
                "seconds": SECONDS * len(artifacts), "out": str(hands.stage(task)),
                "rough": not _is_judged_by_speed(run, there),
            }, {"numpy"}, partial(_take_race, run, parent_id))  # fmt: skip
            return True
        _set_raced(run, parent_id, entry.data)
    return bool(run.heats)


def _entrants(run: RunState, parent_id: str) -> list[StepState]:
    """The steps to race against one, as far as they hold."""
    return [s for s in (run.steps[step.id] for step in run.heats[parent_id]) if s.proven]


def _race_key(run: RunState, parent_id: str, there: Sequence[StepState]) -> str:
    artifacts = [a for a in (run.artifact_of(parent_id), *(s.artifact for s in there)) if a]
    key = keys.race_key(run.recipe, artifacts, run.judge_key, run.cases[0], run.threads)
    return digest_of([key, _is_judged_by_speed(run, there)])


def _is_judged_by_speed(run: RunState, states: Sequence[StepState]) -> bool:
    """Whether something fails by how fast one of these steps is, or how much memory it takes."""
    timed = (gate.timed for s in states for gate, _ in run.plan.gates_of(s.step))
    return run.recipe.baseline is not None or any("faster" in s.step.must for s in states) or any(timed)


def _take_race(run: RunState, parent_id: str, result: Mapping[str, Any], staged: Path | None) -> None:
    there = _entrants(run, parent_id)
    if result["ok"]:
        found = {name: result[name] for name in ("entrants", "sizes", "threads", "samples")}
        _set_raced(run, parent_id, run.cache.put(_race_key(run, parent_id, there), found).data)
        return
    del run.heats[parent_id]
    for state in there:  # what was proven stays proven; a step that must be faster fails by it
        state.untimed = f"its speed could not be measured: {result['error']['what']}"


def _set_raced(run: RunState, parent_id: str, found: Mapping[str, Any]) -> None:
    for step in run.heats.pop(parent_id):
        state = run.steps[step.id]
        if state.proven:
            speed = speed_of(parent_id, step.id, found)
            state.speed = speed if step.parent == parent_id else state.speed
            state.source_speed = speed if parent_id == SOURCE else state.source_speed


def measure(run: RunState, hands: Dispatch) -> None:
    """What `benchmark:` asks for, one race after the other while nothing else runs."""
    spec = run.recipe.benchmark
    if spec is None or run.source is None:
        return
    from optkit.running.benchmarking import empty, failed, heats_of

    states = [run.steps[i] for i in run.plan.deliver]
    there = [s for s in states if s.proven and s.step.use.is_timed(s.step.options)]
    found = run.benchmark = empty(spec.against, [s.step.id for s in states if s not in there])
    for heat in heats_of(run.recipe, run.source, there, run.judge_key, run.cases[0], run.threads, run.dims):
        entry = run.cache.get(heat.key)
        if entry is None:
            result = _bench(hands, heat.task(run.recipe.check_on, str(hands.stage("bench:"))))
            if not result["ok"]:
                found["error"] = failed(result["error"])
                return
            entry = run.cache.put(heat.key, {"entrants": result["entrants"]})
        found["rows"] += heat.rows(entry.data["entrants"])


def _bench(hands: Dispatch, step: dict[str, Any]) -> Mapping[str, Any]:
    """The result of one race, waited for."""
    results: list[dict[str, Any]] = []
    hands.submit("bench:", step, {"numpy"}, lambda result, staged: results.append(result))
    while not results:
        hands.wait()
    return results[0]
