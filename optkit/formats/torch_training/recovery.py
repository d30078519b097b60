"""Between the rounds of a pruning: the smaller module learns again what it lost, from the source model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from optkit.artifact import digest_of
from optkit.errors import StepError
from optkit.formats.torch import model as torch_model
from optkit.formats.torch.call import TorchModel
from optkit.formats.torch.device import check_device
from optkit.formats.torch.modes import evaluate
from optkit.formats.torch.structure import Stage
from optkit.formats.torch_training import lesson as torch_lesson
from optkit.formats.torch_training.distill_options import Lessons
from optkit.formats.torch_training.training import Trained
from optkit.plugin import Context

THREADS = "threads.json"


class Recovery:
    """Trains a module in place, round by round; `notes` says what came of each.

    Killed at any moment, the rounds that are over are read from their checkpoints and the one that was running goes on.
    A checkpoint lies under the digest of all cuts before it: other cuts begin anew.
    """

    def __init__(self, model: TorchModel, options: Lessons, rounds: int, context: Context) -> None:
        """Raises StepError without a torch model as the source, DataError for data that cannot be learned from."""
        source = context.source
        if source is None or source.format != "torch":
            what = f"a {source.format} model" if source else "not known"
            raise StepError(f"what was lost is learned again from the source model, which is {what}", subject="model",
                            hint="give the torch model as the source, or leave out recover")  # fmt: skip
        check_device(context.device)
        self.model, self.options, self.rounds = model, options, rounds
        self.notes: list[dict[str, Any]] = []
        self.sparse = False
        self.kept = context.kept or context.scratch / "kept"
        self.kept.mkdir(exist_ok=True)
        self.threads = threads_of(self.kept, context.threads)
        self.context = replace(context, threads=self.threads)
        self.teacher = torch_model.load(source.path, device=context.device)
        self.data = torch_lesson.fit_data(model, options, context, "model")

    def __call__(self, number: int, stages: list[Stage]) -> None:
        """Train the module after a round. Raises StepError where it cannot be trained, or learns nothing."""
        module = self.model.source.module
        learned = [parameter.requires_grad for parameter in module.parameters()]
        try:
            trained = self._trained(number, stages)
        except StepError as error:
            error.what = f"recovery after round {number} of {self.rounds}: {error.what}"
            if (error.subject or "").startswith("with."):
                error.subject = f"with.recover.{(error.subject or '').removeprefix('with.')}"
            raise
        finally:
            evaluate(module.to("cpu"))
            for parameter, before in zip(module.parameters(), learned, strict=True):
                parameter.requires_grad_(before)
        state, best = trained.state, trained.state.best
        self.notes.append({
            "after_round": number, "held_out_loss": {"before": state.epochs[0]["held_out"]["loss"],
                                                     "after": best["held_out"]["loss"]},
            "best_epoch": best["epoch"], "steps": state.step, "seconds": round(trained.seconds, 3),
        })  # fmt: skip

    def _trained(self, number: int, stages: list[Stage]) -> Trained:
        def progress(text: str, done: float | None) -> None:
            self.context.progress(f"recovery after round {number} of {self.rounds}, {text}",
                                  (number - 1 + (done or 0)) / self.rounds)  # fmt: skip

        folder = self.kept / f"{number}-{digest_of([stage.to_json() for stage in stages])[:16]}"
        seed = self.context.seed + number  # another order of the samples in every round
        context = replace(self.context, seed=seed, kept=folder, progress=progress)
        self.model.source.module.to(context.device)
        lesson = torch_lesson.lesson(self.model, self.data, self.options, context, teacher=self.teacher,
                                     sparse=self.sparse)  # fmt: skip
        try:
            return torch_lesson.learn(lesson, self.options, context)
        finally:
            lesson.distillation.close()


def threads_of(kept: Path, now: int) -> int:
    """The threads a step began with, which it goes on with after a kill: the same sums in the same order."""
    file = kept / THREADS
    try:
        return int(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        temporary = kept / f"{THREADS}.tmp"
        temporary.write_text(json.dumps(now), encoding="utf-8")
        temporary.replace(file)
        return now


__all__ = ["Recovery", "threads_of"]
