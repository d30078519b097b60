"""A torch model that learns from the source model: torch.distill and torch.qat once, torch.prune after each round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optkit.errors import DataError, StepError
from optkit.formats import torch_checkpoint, torch_model, torch_training
from optkit.formats.torch_distill_loss import Distillation
from optkit.formats.torch_distill_options import Lessons
from optkit.formats.torch_training import Learner, Trained
from optkit.formats.torch_training_data import TrainingData
from optkit.formats.torch_training_options import BATCH_SIZE
from optkit.plugin import Context, need

SAME = 1e-5
"""The part by which the held-out loss of the written model may differ from the one measured in training."""


@dataclass(frozen=True)
class Lesson:
    """Student, teacher, the data they meet over, and the losses between them. learner: what is trained."""

    student: torch_model.TorchModel
    teacher: torch_model.TorchModel
    data: TrainingData
    distillation: Distillation
    learner: Learner


def fit_data(student: torch_model.TorchModel, options: Lessons, context: Context, subject: str) -> TrainingData:
    """The step's fit data, copied once. Raises DataError without any, StepError for a student that cannot learn."""
    if context.data is None:
        raise DataError("there is no data to learn from", subject="data", hint="give the step `data:`")
    if student.exported is not None or student.scripted:
        kind = "a torch.export program" if student.exported is not None else "TorchScript"
        raise StepError(f"the student is {kind}, a graph fixed in evaluation mode; learning needs the nn.Module",
                        subject=subject,
                        hint="give the factory that builds it: {torch: FILE.py:build, weights: ...}")  # fmt: skip
    context.progress("read the fit data", None)
    return TrainingData(context.data, context.scratch / "data", context.inputs or student.inputs,
                        held_out=options.held_out, seed=context.seed, device=context.device)  # fmt: skip


def lesson(
    student: torch_model.TorchModel, data: TrainingData, options: Lessons, context: Context, grids: Any = None,
    otherwise: str = "", teacher: torch_model.TorchModel | None = None,
) -> Lesson:  # fmt: skip
    """Made by running both models once. grids: what learns beside the student and stays with it, an nn.Module.

    teacher: the source model, where it is loaded already.
    """
    if teacher is None:
        assert context.source is not None
        teacher = torch_model.load(context.source.path, device=context.device)
    size = data.batch_size(options.batch_size, BATCH_SIZE)
    with torch_checkpoint.reproducible(context.seed, context.threads, context.device):
        losses = Distillation(student, teacher, options.losses, data, mask=options.mask, size=size, seed=context.seed)
    helpers = losses.helpers
    if grids is not None:
        helpers = need("torch").nn.ModuleDict({"losses": helpers, "grids": grids})
    learner = Learner(student.source.module, helpers, losses, still=grids is not None, otherwise=otherwise)
    return Lesson(student, teacher, data, losses, learner)


def learn(of: Lesson, options: Lessons, context: Context) -> Trained:
    """Train, from the last checkpoint on where there is one."""
    folder = context.kept or context.scratch / "kept"
    folder.mkdir(exist_ok=True)
    return torch_training.train(
        of.learner, of.data, options, seed=context.seed, threads=context.threads, device=context.device, kept=folder,
        progress=context.progress,
    )  # fmt: skip


def _best(context: Context) -> Path:
    """Where a run leaves for its confirmation what it measured last."""
    folder = context.scratch / "best"
    folder.mkdir(exist_ok=True)
    return folder


def remember(trained: Trained, context: Context) -> None:
    """Keep the best weights and their held-out loss for the confirmation."""
    best = {"learner": trained.state.best["learner"], "held_out": trained.state.best["held_out"]}
    torch_checkpoint.save({**best, "size": trained.batch_size, "threads": trained.state.threads}, _best(context))


def remembered(context: Context) -> dict[str, Any] | None:
    """What `remember` kept."""
    return torch_checkpoint.load(_best(context))


def complaints(learner: Learner, data: TrainingData, best: Mapping[str, Any], context: Context) -> list[str]:
    """What differs where the held-out loss is measured again."""
    with torch_checkpoint.reproducible(context.seed, best["threads"], context.device):
        held = torch_training.held_out_loss(learner, data, best["size"])
    wanted = best["held_out"]["loss"]
    if abs(held["loss"] - wanted) <= SAME * abs(wanted):
        return []
    return [f"its held-out loss is {held['loss']:.6g}, in training it was {wanted:.6g}"]


def notes(of: Lesson, trained: Trained) -> dict[str, Any]:
    """What a report says about a training."""
    state, chosen = trained.state, of.distillation.chosen
    best = {key: value for key, value in state.best.items() if key != "learner"}
    losses = [loss.model_dump(exclude_none=True, exclude_defaults=True) for loss in of.distillation.losses]
    counts = {who: sum(p.numel() for p in model.source.module.parameters())
              for who, model in (("student", of.student), ("teacher", of.teacher))}  # fmt: skip
    return {
        "losses": losses,
        **({"chosen": "no losses were named: cosine for outputs of length one, mse for others"} if chosen else {}),
        "held_out_loss": {"before": state.epochs[0]["held_out"]["loss"], "after": best["held_out"]["loss"]},
        "epochs": {"first": state.epochs[1], "best": best, "last": state.epochs[-1]},
        "steps": state.step,
        **({"stopped": f"after {state.stale} epochs in which the held-out loss did not fall, {trained.steps} steps "
            "were planned"} if state.step < trained.steps else {}),
        **({"resumed_at_step": trained.resumed} if trained.resumed is not None else {}),
        "samples": {"learned_from": len(of.data.train), "held_out": len(of.data.held_out)},
        "batch_size": trained.batch_size,
        "parameters": counts,
        "threads": state.threads,
        "seconds": round(trained.seconds, 3),
    }  # fmt: skip


__all__ = ["Lesson", "complaints", "fit_data", "learn", "lesson", "notes", "remember", "remembered"]
