"""A torch model that learns from the source model: torch.distill and torch.qat once, torch.prune after each round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optkit.errors import DataError, StepError
from optkit.formats.torch import model as torch_model
from optkit.formats.torch_training import checkpoint as torch_checkpoint
from optkit.formats.torch_training import training as torch_training
from optkit.formats.torch_training.data import TrainingData
from optkit.formats.torch_training.distill_loss import Distillation
from optkit.formats.torch_training.distill_options import Lessons
from optkit.formats.torch_training.options import BATCH_SIZE
from optkit.formats.torch_training.training import Learner, Trained
from optkit.plugin import Answered, Context, need

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
    otherwise: str = "", teacher: torch_model.TorchModel | None = None, sparse: bool = False,
) -> Lesson:  # fmt: skip
    """Made by running both models once. grids: what learns beside the student and stays with it, an nn.Module.

    teacher: the source model, where it is loaded already. sparse: the student's zeros stay zeros.
    """
    if teacher is None:
        assert context.source is not None
        teacher = torch_model.load(context.source.path, device=context.device)
    if teacher.exported is not None:  # its graph holds within the dims alone
        batch_axes = {str(spec.shape[0]) for spec in teacher.inputs if spec.shape}
        data.most = min((dim.max for name, dim in context.dims.items() if name in batch_axes), default=None)
    size = data.batch_size(options.batch_size, BATCH_SIZE)
    with torch_checkpoint.reproducible(context.seed, context.threads, context.device):
        losses = Distillation(student, teacher, options.losses, data, mask=options.mask, size=size, seed=context.seed)
    helpers = losses.helpers
    if grids is not None:
        helpers = need("torch").nn.ModuleDict({"losses": helpers, "grids": grids})
    learner = Learner(student.source.module, helpers, losses, still=grids is not None, otherwise=otherwise,
                      scores=_scores(losses, data, size, context), sparse=sparse)  # fmt: skip
    return Lesson(student, teacher, data, losses, learner)


def _scores(
    distillation: Distillation, data: TrainingData, size: int, context: Context
) -> Callable[[], Mapping[str, Mapping[str, Any]]] | None:
    """What measures the recipe's metrics of the student on the samples held out."""
    score = context.score
    if score is None:
        return None

    def answered() -> Iterator[Answered]:
        for batch, labels in data.held_out_labelled(size):
            own, source = distillation.answers(batch)
            yield Answered(_arrays(batch.feeds), labels, batch.rows, _arrays(source), _arrays(own))

    return lambda: score(answered())


def _arrays(tensors: Mapping[str, Any]) -> dict[str, Any]:
    torch = need("torch")
    return {
        name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().cpu().numpy()
        for name, tensor in tensors.items()
    }


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
        **({"held_out_metrics": _before_and_after(first, best["metrics"])}
           if (first := state.epochs[0].get("metrics")) and "metrics" in best else {}),
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


def _before_and_after(first: Mapping[str, Any], best: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {"problem": last["problem"]} if "problem" in last
        else {"before": first[name].get("value"), "after": last["value"], "source": last["source"]}
        for name, last in best.items()
    }  # fmt: skip


__all__ = ["Lesson", "complaints", "fit_data", "learn", "lesson", "notes", "remember", "remembered"]
