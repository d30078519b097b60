"""Steps checked: each one's output against the source model and its parent, and after a failure the layer to blame."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from optkit.artifact import digest_of
from optkit.cache import Entry
from optkit.caching import keys
from optkit.delivery.deferral import beside
from optkit.errors import from_json
from optkit.recipe import SOURCE
from optkit.registry import get_runner
from optkit.running import blaming
from optkit.running.dispatch import Dispatch
from optkit.running.judging import judge_cases, with_scores
from optkit.running.runstate import RunState
from optkit.running.stepstate import StepState


def start(run: RunState, hands: Dispatch, state: StepState) -> None:
    """Check a step that was made, or judge anew what the cache knows of it."""
    step = state.step
    assert state.artifact is not None
    if step.check.waived is not None:
        state.check = _check_json(run, state, [], None)
        run.finish(state, "waived")
        return
    if run.record is None or run.source is None:
        return
    parent = run.runnable_parent(step)
    entry = run.cache.get(_key(run, state))
    scores = _scores_of(run, state)
    missing = [metric for metric in run.recipe.metrics if metric.name not in scores]
    task, modules = f"check:{step.id}", get_runner(state.artifact.format).modules
    if entry is not None and not missing:
        state.cached["check"] = True
        _set_checked(run, state, entry, scores)
    elif hands.can_start(task):
        state.metric_keys = _metric_keys(run, state)
        references = {"source": {"artifact": run.source.to_json(), "tape": str(run.record.folder)}}
        if parent is not None and entry is None:
            references["parent"] = {"artifact": parent.to_json(), "tape": str(run.tape(step.parent))}
        hands.submit(task, {
            "task": "check", "artifact": state.artifact.to_json(), "references": references, "defer": True,
            "check_on": run.recipe.check_on,
            # Where only a metric is new, nothing but the judging set is run again.
            "cases": [c.to_json() for c in (run.cases if entry is None else run.cases[:1])],
            "metrics": [metric.to_json() for metric in missing], "scores_only": entry is not None,
            "tape": str(run.tape(step.id)) if run.plan.children(step.id) else None,
            "out": str(hands.stage(task)),
        }, modules, partial(_take, run, state), limit=step.timeout_seconds)  # fmt: skip
        state.phase = "checking"


def _take(run: RunState, state: StepState, result: Mapping[str, Any], staged: Path | None) -> None:
    if not run.went_well(state, "check", result):
        return
    if result.get("deferred"):
        _set_deferred(run, state, result, staged)
        return
    known = _metric_keys(run, state)
    for name, score in result["scores"].items():
        if "problem" not in score and known[name] == state.metric_keys[name]:  # not if a file changed meanwhile
            run.cache.put(known[name], {"score": score})
    key = _key(run, state)
    entry = run.cache.get(key)
    if entry is None:
        entry = run.cache.put(key, {"cases": result["cases"], "provider": result["provider"]}, staged)
    _set_checked(run, state, entry, {**_scores_of(run, state), **result["scores"]})


def _key(run: RunState, state: StepState) -> str:
    assert state.artifact is not None
    assert run.source is not None
    parent = run.runnable_parent(state.step)
    return keys.check_key(run.recipe, state.artifact, run.source, parent, run.judge_key, run.cases)


def _scores_of(run: RunState, state: StepState) -> dict[str, Any]:
    """What the cache knows of the task metrics of a step's output, by name."""
    found = {name: run.cache.get(key) for name, key in _metric_keys(run, state).items()}
    return {name: entry.data["score"] for name, entry in found.items() if entry is not None}


def _metric_keys(run: RunState, state: StepState) -> dict[str, str]:
    assert state.artifact is not None
    assert run.source is not None
    return {
        m.name: keys.metric_key(run.recipe, m, state.artifact, run.source, run.judge_key, run.cases[0], run.cache)
        for m in run.recipe.metrics
    }


def _set_checked(run: RunState, state: StepState, entry: Entry, scores: Mapping[str, Any]) -> None:
    assert run.record is not None
    assert state.artifact is not None
    noise = run.record.data.get("noise")
    scores = {metric.name: scores[metric.name] for metric in run.recipe.metrics}
    measured = with_scores(entry.data["cases"], scores)
    cases = judge_cases(measured, state.step.check, noise, state.artifact.signature, state.step.parent)
    state.check = _check_json(run, state, cases, entry.data["provider"])
    vectors = entry.folder / "vectors.npz"
    state.vectors = vectors if vectors.is_file() else None
    if state.check["held"] or not run.recipe.blame:
        run.finish(state, "passed" if state.check["held"] else "failed")
    else:
        state.phase = "failing"


def _set_deferred(run: RunState, state: StepState, result: Mapping[str, Any], staged: Path | None) -> None:
    """No verdict here: keep the reason, what the target needs to give one, and the nearest verdict there is."""
    assert staged is not None
    error = run.located(from_json(result["deferred"]), state.step)
    state.error = {**error.to_json(), "phase": "check"}
    state.check = _check_json(run, state, [], None)
    # Not into the cache: the next run may find the device there.
    state.vectors = run.scratch / "vectors" / f"{digest_of(state.step.id)[:16]}.npz"
    state.vectors.parent.mkdir(exist_ok=True)
    (staged / "vectors.npz").replace(state.vectors)
    before = [run.steps[a].to_json() for a in run.plan.ancestors(state.step.id)[:-1]]
    state.deferred = {"beside": beside(before), "cases": [c.to_json() for c in run.cases]}
    run.finish(state, "deferred")


def _check_json(run: RunState, state: StepState, cases: list[dict[str, Any]], provider: str | None) -> dict[str, Any]:
    check = state.step.check
    return {
        "against": SOURCE,
        "data": run.recipe.check_on,
        "precision": check.precision,
        "lossy": check.lossy,
        "bounds": [str(bound) for bound in check.bounds],
        "stated_by": list(check.stated_by),
        "metrics": [metric.to_json() for metric in run.recipe.metrics],
        "as_parent": check.as_parent,
        "waived": check.waived,
        "provider": provider,
        "held": bool(cases) and all(c["held"] for c in cases),
        "cases": cases,
    }


def start_blame(run: RunState, hands: Dispatch, state: StepState) -> None:
    """Look for the layer that made a check fail, or take what is known of it."""
    assert state.check is not None
    assert state.artifact is not None
    case, samples = blaming.failing(state.check["cases"]) or ({}, [])
    if not case:
        run.finish(state, "failed")
        return
    if not get_runner(state.artifact.format).inside:
        state.blame = blaming.untold(f"{state.artifact.format} artifacts cannot be looked into")
        run.finish(state, "failed")
        return
    before = [*reversed(run.plan.ancestors(state.step.id)[:-1]), SOURCE]
    chain = [(name, a) for name in before if (a := run.artifact_of(name)) is not None]
    artifacts = [a for _, a in chain]
    state.blame_key = keys.blame_key(run.recipe, state.artifact, artifacts, run.judge_key, case, samples)
    entry = run.cache.get(state.blame_key)
    task = f"blame:{state.step.id}"
    if entry is not None:
        state.blame = entry.data["blame"]
        run.finish(state, "failed")
    elif hands.can_start(task):
        modules = {m for _, a in chain[:1] for m in get_runner(a.format).modules}
        hands.submit(
            task,
            blaming.task(case, samples, state.artifact, chain, run.recipe.check_on),
            {*modules, *get_runner(state.artifact.format).modules},
            partial(_take_blame, run, state),
            limit=blaming.LIMIT_SECONDS,
        )
        state.phase = "blaming"


def _take_blame(run: RunState, state: StepState, result: Mapping[str, Any], staged: Path | None) -> None:
    """The layer, where one was found; a search that fails leaves the step's verdict as it is."""
    if result["ok"]:
        state.blame = run.cache.put(state.blame_key, {"blame": result["blame"]}).data["blame"]
    else:
        state.blame = blaming.untold(f"the search for the layer failed: {result['error']['what']}")
    state.seconds["check"] += result["seconds"]
    run.finish(state, "failed")
