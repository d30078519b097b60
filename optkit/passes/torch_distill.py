"""torch.distill: a smaller torch model that has learned to answer as the source model does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from optkit.artifact import Artifact, digest_file, digest_of
from optkit.errors import DataError, SourceError, StepError
from optkit.formats import torch_checkpoint, torch_model, torch_structure, torch_training
from optkit.formats.torch_device import check_device
from optkit.formats.torch_distill_loss import Distillation
from optkit.formats.torch_distill_options import Lesson, Student
from optkit.formats.torch_files import read_weights
from optkit.formats.torch_training import Learner, Trained
from optkit.formats.torch_training_data import TrainingData
from optkit.formats.torch_training_options import BATCH_SIZE
from optkit.plugin import Context, Pass, need

SAME = 1e-5
"""The part by which the held-out loss of the written model may differ from the one measured in training."""


class TorchDistill(Lesson):
    student: Student | None = Field(
        None, description="the model that learns; default the one that the step comes from, such as a pruned one"
    )


@dataclass(frozen=True)
class _Lesson:
    """Student, teacher, the data they meet over, and the losses between them."""

    student: torch_model.TorchModel
    teacher: torch_model.TorchModel
    data: TrainingData
    distillation: Distillation

    @property
    def learner(self) -> Learner:
        return Learner(self.student.source.module, self.distillation.helpers, self.distillation)


def run(artifact: Artifact, out_dir: Path, options: TorchDistill, context: Context) -> dict[str, Any]:
    """Trains the student, and writes its best weights with the record of its structure.

    Notes: the losses (and which were chosen for want of any), the held-out loss before and after, the first, best and
    last epoch, steps, seconds, parameters of both, samples. Raises StepError, DataError or SourceError for a student
    that does not fit the teacher, losses that do not fit either, data without what they need, and training that fails.
    """
    descriptor, digest = _student(artifact, options, context)
    student = torch_model.load_described(descriptor, device=context.device)
    lesson = _lesson(student, options, context)
    trained = torch_training.train(
        lesson.learner, lesson.data, options, seed=context.seed, threads=context.threads, device=context.device,
        kept=_kept(context), progress=context.progress,
    )  # fmt: skip
    context.progress("write", 1.0)
    torch_structure.save(student.source.module.to("cpu"), descriptor, digest, [], out_dir)
    best = {"learner": trained.state.best["learner"], "held_out": trained.state.best["held_out"]}
    torch_checkpoint.save({**best, "size": trained.batch_size, "threads": trained.state.threads}, _best(context))
    return _notes(lesson, trained, options)


def _student(artifact: Artifact, options: TorchDistill, context: Context) -> tuple[dict[str, Any], str]:
    """The descriptor of the student, and the digest of what it describes."""
    source = context.source
    if source is None or source.format != "torch":
        what = f"a {source.format} model" if source else "not known"
        raise StepError(f"the teacher is the source model, which is {what}; a torch model can learn from torch alone",
                        subject="model", hint="give the torch model as the source")  # fmt: skip
    check_device(context.device)
    if options.student is None:
        if artifact.digest == source.digest:
            raise StepError("the student is the source model itself, which has nothing to learn from itself",
                            subject="with.student", hint="take the step from torch.prune, or name a smaller one: "
                            "student: {torch: FILE.py:build}")  # fmt: skip
        return torch_model.read_descriptor(artifact.path), artifact.digest
    spec, files = options.student, context.files
    place, _, name = spec.torch.rpartition(":")
    code = files[spec.torch][0]
    descriptor = {
        "kind": "factory", "factory": f"{code}:{name}" if place.endswith(".py") else spec.torch, "kwargs": spec.kwargs,
        "weights": str(files[spec.weights][0]) if spec.weights else None, "strict": spec.strict,
        "inputs": [t.to_json() for t in context.inputs], "outputs": list(context.outputs) or None,
    }  # fmt: skip
    digest = digest_of([[[p.name, digest_file(p)] for text in spec.named for p in files[text]], name, spec.kwargs])
    return descriptor, digest


def _lesson(student: torch_model.TorchModel, options: TorchDistill, context: Context) -> _Lesson:
    assert context.source is not None
    if context.data is None:
        raise DataError("there is no data to learn from", subject="data", hint="give the step `data:`")
    if student.exported is not None or student.scripted:
        kind = "a torch.export program" if student.exported is not None else "TorchScript"
        raise StepError(f"the student is {kind}, a graph fixed in evaluation mode; learning needs the nn.Module",
                        subject="with.student" if options.student else "model",
                        hint="give the factory that builds it: {torch: FILE.py:build, weights: ...}")  # fmt: skip
    teacher = torch_model.load(context.source.path, device=context.device)
    context.progress("read the fit data", None)
    data = TrainingData(context.data, context.scratch / "data", context.inputs or teacher.inputs,
                        held_out=options.held_out, seed=context.seed, device=context.device)  # fmt: skip
    size = data.batch_size(options.batch_size, BATCH_SIZE)
    with torch_checkpoint.reproducible(context.seed, context.threads, context.device):
        distillation = Distillation(student, teacher, options.losses, data, mask=options.mask, size=size,
                                    seed=context.seed)  # fmt: skip
    return _Lesson(student, teacher, data, distillation)


def _kept(context: Context) -> Path:
    folder = context.kept or context.scratch / "kept"
    folder.mkdir(exist_ok=True)
    return folder


def _best(context: Context) -> Path:
    """Where `run` leaves for `confirm` what it measured last."""
    folder = context.scratch / "best"
    folder.mkdir(exist_ok=True)
    return folder


def _notes(lesson: _Lesson, trained: Trained, options: TorchDistill) -> dict[str, Any]:
    state, chosen = trained.state, lesson.distillation.chosen
    best = {key: value for key, value in state.best.items() if key != "learner"}
    losses = [loss.model_dump(exclude_none=True, exclude_defaults=True) for loss in lesson.distillation.losses]
    counts = {who: sum(p.numel() for p in model.source.module.parameters())
              for who, model in (("student", lesson.student), ("teacher", lesson.teacher))}  # fmt: skip
    return {
        "losses": losses,
        **({"chosen": "no losses were named: cosine for outputs of length one, mse for others"} if chosen else {}),
        "held_out_loss": {"before": state.epochs[0]["held_out"]["loss"], "after": best["held_out"]["loss"]},
        "epochs": {"first": state.epochs[1], "best": best, "last": state.epochs[-1]},
        "steps": state.step,
        **({"stopped": f"after {state.stale} epochs in which the held-out loss did not fall, {trained.steps} steps "
            "were planned"} if state.step < trained.steps else {}),
        **({"resumed_at_step": trained.resumed} if trained.resumed is not None else {}),
        "samples": {"learned_from": len(lesson.data.train), "held_out": len(lesson.data.held_out)},
        "batch_size": trained.batch_size,
        "parameters": counts,
        "threads": state.threads,
        "seconds": round(trained.seconds, 3),
    }  # fmt: skip


def confirm(parent: Artifact, artifact: Artifact, options: TorchDistill, context: Context) -> list[str]:
    """Loads the written model anew: its weights are the best ones, and its held-out loss is the one measured."""
    best = torch_checkpoint.load(_best(context))
    if best is None:
        return ["there is no record of the best weights"]
    try:
        student = torch_model.load(artifact.path, device=context.device)
        lesson = _lesson(student, options, context)
    except (SourceError, StepError) as error:
        return [f"the student cannot be loaded and run: {error.what}"]
    complaints = _unlike(read_weights(artifact.path.parent / torch_structure.WEIGHTS), best["learner"])
    own = {f"module.{name}": tensor for name, tensor in student.source.module.state_dict().items()}
    lesson.learner.load({**best["learner"], **own})  # the projections are no part of the model
    with torch_checkpoint.reproducible(context.seed, best["threads"], context.device):
        held = torch_training.held_out_loss(lesson.learner, lesson.data, best["size"])
    wanted = best["held_out"]["loss"]
    if not abs(held["loss"] - wanted) <= SAME * abs(wanted):
        complaints.append(f"its held-out loss is {held['loss']:.6g}, in training it was {wanted:.6g}")
    return complaints


def _unlike(written: Mapping[str, Any], best: Mapping[str, Any]) -> list[str]:
    torch = need("torch")
    wanted = {name.removeprefix("module."): tensor for name, tensor in best.items() if name.startswith("module.")}
    return [
        f"{name} is not as it was learned" for name, tensor in wanted.items()
        if name not in written or not torch.equal(written[name], tensor)
    ][:4]  # fmt: skip


PASS = Pass(
    name="torch.distill",
    version=1,
    source="torch",
    target="torch",
    summary="Train a smaller torch model to answer as the source model does",
    run=run,
    confirm=confirm,
    options=TorchDistill,
    fidelity="lossy",
    precision="float32",
    tools=("torch", "safetensors", "numpy"),
    needs_data=True,
    needs_source=True,
    reads=lambda options: options.student.named if options.student else (),
    resumes=True,
    modules=("optkit.formats.warm_torch",),
    timeout_seconds=7 * 24 * 3600.0,
)
