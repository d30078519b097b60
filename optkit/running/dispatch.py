"""Tasks handed to workers, and each result to who asked for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from optkit.caching import keys
from optkit.events import StepProgress, StepStarted
from optkit.recipe import SOURCE
from optkit.running.pool import Pool
from optkit.running.runstate import RunState

Then = Callable[[dict[str, Any], "Path | None"], None]
"""then(result, staged): takes a task's result and the folder with its files, which is removed after it."""

_SETUP_LIMIT_SECONDS = 3600.0


class Dispatch:
    """The tasks of a run that workers have in hand, by name: "PHASE" of the source, or "PHASE:STEP"."""

    def __init__(self, run: RunState, pool: Pool) -> None:
        self._run, self._pool = run, pool
        self._then: dict[str, Then] = {}
        self._staging: dict[str, Path] = {}
        self._warmed = 0

    @property
    def is_idle(self) -> bool:
        """Whether no worker has a task."""
        return not self._then

    def can_start(self, task: str) -> bool:
        """Whether a worker is free for a task that is not in hand yet."""
        return task not in self._then and self._pool.free > 0

    def stage(self, task: str) -> Path:
        """An empty folder for a task's files, beside the cache's entries."""
        self._staging[task] = self._run.cache.stage()
        return self._staging[task]

    def submit(
        self,
        task: str,
        step: dict[str, Any],
        loads: Collection[str],
        then: Then,
        *,
        limit: float = _SETUP_LIMIT_SECONDS,
        python: str | None = None,
    ) -> None:
        """Hand a task to a worker. step: what it is told beside what all tasks are. loads: modules that it imports."""
        run, recipe = self._run, self._run.recipe
        signature = run.source.signature if run.source else None
        common = {
            "inputs": [t.to_json() for t in (signature.inputs if signature else recipe.inputs)],
            "outputs": [t.name for t in signature.outputs] if signature else list(recipe.outputs),
            "dims": keys.dims_json(run.dims), "base": str(recipe.base), "seed": recipe.seed, "device": recipe.device,
            "threads": run.threads, "scratch": str(run.scratch),
            "datasets": {name: spec.model_dump(mode="json", exclude_unset=True) for name, spec in recipe.data.items()
                         if name in run.data_keys},
        }  # fmt: skip
        phase, _, step_id = task.partition(":")
        folder = run.out / "logs" / task.replace(":", "-")
        run.listen(StepStarted(step_id or SOURCE, phase))
        self._pool.submit(task, {**common, **step}, folder, limit, python, loads)
        self._then[task] = then

    def warm(self, modules: Collection[str]) -> None:
        """Let workers that would idle import modules that are needed soon."""
        while self._pool.free:
            self._pool.start()
            module = self._pool.cold(modules)
            if module is None:
                return
            task = f"warm:{self._warmed}"
            self._warmed += 1
            self._pool.warm(task, module, self._run.scratch / f"warm-{self._warmed}")
            self._then[task] = _warmed

    def wait(self) -> None:
        """Take one message from a worker, if one comes within a moment."""
        message = self._pool.wait(0.1)
        if message is None:
            return
        if message.kind == "progress":
            step_id = message.task.partition(":")[2]
            self._run.listen(StepProgress(step_id or SOURCE, message.data["progress"], message.data["fraction"]))
            return
        then, staged = self._then.pop(message.task), self._staging.pop(message.task, None)
        try:
            then(message.data, staged)
        finally:
            if staged is not None and staged.exists():
                shutil.rmtree(staged, ignore_errors=True)

    def close(self) -> None:
        """Remove the files of tasks that have no result."""
        for folder in self._staging.values():
            shutil.rmtree(folder, ignore_errors=True)


def _warmed(result: dict[str, Any], staged: Path | None) -> None:
    """A module that failed to import is left to the task that needs it."""
