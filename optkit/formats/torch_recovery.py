"""Between the rounds of a pruning: the smaller module learns again what it lost, from the source model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from optkit.artifact import digest_of
from optkit.errors import StepError
from optkit.formats import torch_checkpoint, torch_model, torch_training
from optkit.formats.torch_call import TorchModel
from optkit.formats.torch_device import check_device
from optkit.formats.torch_distill_loss import Distillation
from optkit.formats.torch_distill_options import Lessons
from optkit.formats.torch_structure import Stage
from optkit.formats.torch_training import Learner, Trained
from optkit.formats.torch_training_data import TrainingData
from optkit.formats.torch_training_options import BATCH_SIZE
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
        assert context.data is not None
        check_device(context.device)
        self.model, self.options, self.rounds, self.context = model, options, rounds, context
        self.notes: list[dict[str, Any]] = []
        self.sparse = False
        self.kept = context.kept or context.scratch / "kept"
        self.kept.mkdir(exist_ok=True)
        self.threads = threads_of(self.kept, context.threads)
        self.teacher = torch_model.load(source.path, device=context.device)
        context.progress("read the fit data", None)
        self.data = TrainingData(context.data, context.scratch / "data", context.inputs or model.inputs,
                                 held_out=options.held_out, seed=context.seed, device=context.device)  # fmt: skip

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
            module.to("cpu").eval()
            for parameter, before in zip(module.parameters(), learned, strict=True):
                parameter.requires_grad_(before)
        state, best = trained.state, trained.state.best
        self.notes.append({
            "after_round": number, "held_out_loss": {"before": state.epochs[0]["held_out"]["loss"],
                                                     "after": best["held_out"]["loss"]},
            "best_epoch": best["epoch"], "steps": state.step, "seconds": round(trained.seconds, 3),
        })  # fmt: skip

    def _trained(self, number: int, stages: list[Stage]) -> Trained:
        options, context = self.options, self.context
        seed = context.seed + number  # another order of the samples in every round

        def progress(text: str, done: float | None) -> None:
            context.progress(f"recovery after round {number} of {self.rounds}, {text}",
                             (number - 1 + (done or 0)) / self.rounds)  # fmt: skip

        self.model.source.module.to(context.device)
        with torch_checkpoint.reproducible(seed, self.threads, context.device):
            size = self.data.batch_size(options.batch_size, BATCH_SIZE)
            distillation = Distillation(self.model, self.teacher, options.losses, self.data, mask=options.mask,
                                        size=size, seed=seed)  # fmt: skip
        folder = self.kept / f"{number}-{digest_of([stage.to_json() for stage in stages])[:16]}"
        folder.mkdir(exist_ok=True)
        learner = Learner(self.model.source.module, distillation.helpers, distillation, sparse=self.sparse)
        try:
            return torch_training.train(learner, self.data, options, seed=seed, threads=self.threads,
                                        device=context.device, kept=folder, progress=progress)  # fmt: skip
        finally:
            distillation.close()


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
