"""What a run knows so far: its source model, its data, the source's answers, and where each step has got to."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from optkit.artifact import Artifact, Dim, digest_of
from optkit.cache import Cache, Entry
from optkit.caching import keys
from optkit.errors import OptkitError, from_json
from optkit.events import Listener, Notice, StepFinished
from optkit.parity.cases import Case
from optkit.planning import Plan, Step
from optkit.recipe import SOURCE, HuggingFaceSource, Recipe
from optkit.registry import get_runner
from optkit.running.racing import heats
from optkit.running.stepstate import StepState


@dataclass
class RunState:
    """What a run knows so far; `optkit.execute` says in which order it gets to know it.

    unsigned: the source model as it lies there; source: the same with its signature, once that was read.
    data_keys, data_info: of every dataset that is used, its cache key and what was read of it. record: the source's
    answers to `cases`. dims: the recipe's, and the source's own. heats: the steps to race, by what they are raced
    against; a heat is taken out when it is over. benchmark, delivered: as the report has them.
    """

    plan: Plan
    out: Path
    cache: Cache
    scratch: Path
    listen: Listener
    steps: dict[str, StepState]
    unsigned: Artifact
    dims: dict[str, Dim]
    threads: int
    heats: dict[str, list[Step]]
    source: Artifact | None = None
    data_keys: dict[str, str] = field(default_factory=dict)
    data_info: Mapping[str, Any] | None = None
    record: Entry | None = None
    cases: tuple[Case, ...] = ()
    benchmark: dict[str, Any] | None = None
    delivered: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def recipe(self) -> Recipe:
        """The recipe that is run."""
        return self.plan.recipe

    @property
    def judge_key(self) -> str:
        """The key of the dataset that judges."""
        return self.data_keys[self.recipe.check_on]

    @property
    def source_modules(self) -> set[str]:
        """What a worker imports to run the source model."""
        extra = {"optkit.formats.warm.transformers"} if isinstance(self.recipe.model, HuggingFaceSource) else set()
        return {*get_runner(self.recipe.source_format).modules, *extra}

    def artifact_of(self, step_id: str) -> Artifact | None:
        """The output of a step, or the source model; None where it is not there yet."""
        return self.source if step_id == SOURCE else self.steps[step_id].artifact

    def runnable_parent(self, step: Step) -> Artifact | None:
        """The output of the step before, where there is one that this machine runs: what a check compares with."""
        parent = self.steps.get(step.parent)
        return parent.artifact if parent is not None and parent.status != "deferred" else None

    def tape(self, step_id: str) -> Path:
        """Where a step's answers lie, for the checks of the steps after it."""
        return self.scratch / "tapes" / digest_of(step_id)[:16]

    def located(self, error: OptkitError, step: Step | None = None) -> OptkitError:
        """The error with the place in the recipe that it is about."""
        subject = error.subject
        if step and (not subject or subject.startswith(("with", "data", "from"))) and subject != f"data.{step.data}":
            subject = f"steps.{step.id}" + (f".{subject}" if subject else "")
        elif step and subject.partition(".")[0] not in self.recipe.document.data:  # the recipe left that to optkit
            subject = f"steps.{step.id}"
        error.where = self.recipe.place_of(subject) if subject else None
        return error

    def went_well(self, state: StepState, phase: str, result: Mapping[str, Any]) -> bool:
        """Keep what a task of a step took, and how to repeat it; whether it went well. One that did not ends the step.

        phase: "run" or "check". Raises what fails every step alike.
        """
        state.seconds[phase] = result["seconds"]
        state.replay = str(self.out / "logs" / f"{phase}-{state.step.id}" / "step.json")
        if result["ok"]:
            return True
        error = from_json(result["error"])
        if error.subject.startswith("metric."):  # what the source or the labels cannot feed
            raise self.located(error)
        error = self.located(error, state.step)
        state.error = {**error.to_json(), "phase": phase}
        self.finish(state, "error")
        return False

    def finish(self, state: StepState, status: str) -> None:
        """Give a step its status, and tell of it."""
        state.phase, state.status = "done", status
        seconds = sum(state.seconds.values())
        text = state.blocked_by or (state.error or {}).get("what", "")
        cached = state.cached["run"] and (state.cached["check"] or status == "waived")
        self.listen(StepFinished(state.step.id, status, seconds, cached, text, state.to_json()))  # type: ignore[arg-type]

    def interrupt(self) -> None:
        """Give their last status to the steps that are in work; those that wait were "skipped" all along."""
        for state in self.steps.values():
            if state.phase not in ("waiting", "done"):
                self.finish(state, "failed" if state.phase in ("failing", "blaming") else "interrupted")

    def tell_of_cache(self) -> None:
        """Pass on what the cache has to tell."""
        for text in self.cache.notices():
            self.listen(Notice("cache", text))


def at_start(plan: Plan, out: Path, cache: Cache, scratch: Path, listen: Listener) -> RunState:
    """A run that knows its plan and nothing else yet."""
    return RunState(
        plan, out, cache, scratch, listen,
        steps={step.id: StepState(step) for step in plan.steps},
        unsigned=Artifact(plan.recipe.source_format, Path(), ""),
        dims=dict(plan.recipe.dims),
        threads=plan.recipe.threads or keys.cores(),
        heats=heats(plan),
    )  # fmt: skip
