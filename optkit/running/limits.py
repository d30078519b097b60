"""What a step must be beside its parent, and the gates on it, held against what the run measured."""

from __future__ import annotations

from optkit.models.sizes import model_bytes
from optkit.running.gating import Measured, judged
from optkit.running.racing import musts
from optkit.running.runstate import RunState
from optkit.running.stepstate import StepState


def judge_limits(run: RunState) -> None:
    """Hold every step against its limits; one that breaks any is failed."""
    for state in run.steps.values():
        parent = run.artifact_of(state.step.parent)
        if state.step.must and state.proven and state.artifact and parent:
            state.musts = musts(
                state.step, model_bytes(state.artifact), model_bytes(parent), state.speed, state.untimed
            )
        state.gates = judged(run.plan.gates_of(state.step), _measured(run, state))
        failed = any(not m["held"] for m in state.musts) or any(g["status"] == "failed" for g in state.gates)
        if failed:
            run.finish(state, "failed")


def _measured(run: RunState, state: StepState) -> Measured | None:
    """What the gates on a step are held against; None where it does not hold."""
    if state.artifact is None or not state.usable:
        return None
    parent = run.artifact_of(state.step.parent)
    made = [run.steps[step_id].made_seconds for step_id in run.plan.ancestors(state.step.id)]
    known = [seconds for seconds in made if seconds is not None]
    return Measured(
        size_bytes=model_bytes(state.artifact) or state.artifact.size_bytes,
        source_bytes=model_bytes(run.source) if run.source else None,
        parent_bytes=model_bytes(parent) if parent else None,
        seconds=sum(known) if len(known) == len(made) else None,
        speeds={"source": state.source_speed, "parent": state.speed},
        scores=next((c.get("scores") or {} for c in (state.check or {}).get("cases", ())), {}),
        untimed=state.untimed,
        here=state.proven,
    )
