"""The report of a run, put together from what the run knows; what held is delivered on the way."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from optkit import __version__
from optkit.artifact import digest_of
from optkit.caching import keys
from optkit.delivery.deliver import clear, deliver
from optkit.report import INTERRUPTED, SCHEMA, Report, exit_code_of
from optkit.running.runstate import RunState
from optkit.running.stepstate import StepState


def finished_report(run: RunState) -> Report:
    """The report of a run that got to its end, after delivering what held and clearing away what did not."""
    steps = [s.to_json() for s in run.steps.values()]
    data = _document(run, steps, exit_code_of(steps))
    for step_id in run.plan.deliver:
        run.delivered.append(_hand_over(run, run.steps[step_id], data))
    if run.recipe.baseline is not None:
        from optkit.comparing.baseline import held_against

        data["baseline"] = held_against(run.recipe, data, run.plan.chosen)
        data["exit_code"] = exit_code_of(steps, data["baseline"])
    if run.benchmark and run.benchmark["error"]:
        data["exit_code"] = max(data["exit_code"], run.benchmark["error"]["exit_code"])
    data["seconds"] = round(time.perf_counter() - run.started, 3)
    return Report(data)


def interrupted_report(run: RunState) -> Report:
    """The report of a run that was stopped: what was delivered by then, what earlier runs delivered left as it is."""
    return Report(_document(run, [s.to_json() for s in run.steps.values()], INTERRUPTED))


def _document(run: RunState, steps: list[dict[str, Any]], exit_code: int) -> dict[str, Any]:
    source = run.source
    return {
        "schema": SCHEMA, "optkit": __version__, "name": run.recipe.name,
        "recipe": {"path": str(run.recipe.document.file) if run.recipe.document.file else None,
                   "digest": digest_of({k: v for k, v in run.recipe.document.data.items() if k != "baseline"}),
                   "set": list(run.recipe.document.assigned), "only": list(run.plan.chosen)},
        "started": run.began.isoformat(timespec="seconds"), "seconds": round(time.perf_counter() - run.started, 3),
        "environment": keys.environment(run.plan),
        "source": {"format": run.recipe.source_format, "digest": run.unsigned.digest,
                   "signature": source.signature.to_json() if source and source.signature else None,
                   "dims": keys.dims_json(run.dims),
                   "noise": run.record.data.get("noise") if run.record else None,
                   "provider": run.record.data.get("provider") if run.record else None},
        "data": run.data_info or {}, "steps": steps, "deliver": run.delivered,
        "benchmark": run.benchmark, "baseline": None,
        "exit_code": exit_code,
    }  # fmt: skip


def _hand_over(run: RunState, state: StepState, report: Mapping[str, Any]) -> dict[str, Any]:
    """Deliver a step's output, and clear what an earlier run delivered where this one does not hold."""
    step_id = state.step.id
    folder = run.out / step_id
    row = {
        "step": step_id,
        "status": state.status,
        "format": state.step.use.target,
        "path": None,
        "size_bytes": None,
    }
    if not (state.proven or state.status == "deferred") or state.artifact is None:
        clear(folder)
        return row
    chain = [run.steps[a].to_json() for a in run.plan.ancestors(step_id)]
    deliver(state.artifact, folder, step=state.to_json(), chain=chain, run=report, vectors=state.vectors)
    return {**row, "path": str(folder), "size_bytes": state.artifact.size_bytes}
