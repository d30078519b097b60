"""torch.distill: a smaller torch model that has learned to answer as the source model does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from optkit.artifact import Artifact, digest_file, digest_of
from optkit.errors import SourceError, StepError
from optkit.formats.torch import model as torch_model
from optkit.formats.torch import quantised as torch_quantised
from optkit.formats.torch import structure as torch_structure
from optkit.formats.torch.device import check_device
from optkit.formats.torch.files import read_weights
from optkit.formats.torch_pruning import sparse as torch_sparse
from optkit.formats.torch_training import lesson as torch_lesson
from optkit.formats.torch_training.distill_options import Lessons, Student
from optkit.formats.torch_training.lesson import Lesson
from optkit.plugin import Context, Pass, need


class TorchDistill(Lessons):
    student: Student | None = Field(
        None,
        description="the model that learns, {torch: FILE.py:build}; default the one that the step comes from, such "
        "as a pruned one",
    )


def run(artifact: Artifact, out_dir: Path, options: TorchDistill, context: Context) -> dict[str, Any]:
    """Trains the student, and writes its best weights with the record of its structure.

    Notes: the losses (and which were chosen for want of any), the held-out loss before and after, the first, best and
    last epoch, steps, seconds, parameters of both, samples. Raises StepError, DataError or SourceError for a student
    that does not fit the teacher, losses that do not fit either, data without what they need, and training that fails.
    """
    descriptor, digest = _student(artifact, options, context)
    with _named_as_the_student(options, "the student: "):
        student = torch_model.load_described(descriptor, device=context.device)
    with _named_as_the_student(options):
        zeros = torch_sparse.zeros_of(student.source.module) if descriptor.get("sparse") else {}
        lesson = _lesson(student, options, context, sparse=bool(zeros))
        trained = torch_lesson.learn(lesson, options, context)
    context.progress("write", 1.0)
    torch_structure.save(student.source.module.to("cpu"), descriptor, digest, [], out_dir)
    torch_lesson.remember(trained, context)
    kept = {"zeros_kept": sum(int(mask.sum()) for mask in zeros.values())} if zeros else {}
    return {**torch_lesson.notes(lesson, trained), **kept}


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
        descriptor = torch_model.read_descriptor(artifact.path)
        torch_quantised.refuse(descriptor, "torch.distill")
        return descriptor, artifact.digest
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


@contextmanager
def _named_as_the_student(options: TorchDistill, lead: str = "") -> Iterator[None]:
    """Errors of a student of its own are about with.student, not about the recipe's model. lead: is put before them."""
    try:
        yield
    except (SourceError, StepError) as error:
        first, _, key = error.subject.partition(".")
        if options.student is not None and first in ("model", "inputs"):
            own = first == "model" and key.partition(".")[0] in Student.model_fields
            error.subject = f"with.student.{key}" if own else "with.student"
            error.what = f"{lead}{error.what}"
        raise


def _lesson(
    student: torch_model.TorchModel, options: TorchDistill, context: Context, *, sparse: bool = False
) -> Lesson:
    data = torch_lesson.fit_data(student, options, context, "with.student" if options.student else "model")
    return torch_lesson.lesson(student, data, options, context, sparse=sparse)


def confirm(parent: Artifact, artifact: Artifact, options: TorchDistill, context: Context) -> list[str]:
    """Loads the written model anew: its weights are the best ones, and its held-out loss is the one measured."""
    best = torch_lesson.remembered(context)
    if best is None:
        return ["there is no record of the best weights"]
    try:
        student = torch_model.load(artifact.path, device=context.device)
        lesson = _lesson(student, options, context)
    except (SourceError, StepError) as error:
        return [f"the student cannot be loaded and run: {error.what}"]
    complaints = _unsparse(parent, student, options)
    complaints += _unlike(read_weights(artifact.path.parent / torch_structure.WEIGHTS), best["learner"])
    own = {f"module.{name}": tensor for name, tensor in student.source.module.state_dict().items()}
    lesson.learner.load({**best["learner"], **own})  # the projections are no part of the model
    return complaints + torch_lesson.complaints(lesson.learner, lesson.data, best, context)


def _unsparse(parent: Artifact, student: torch_model.TorchModel, options: TorchDistill) -> list[str]:
    if options.student is not None or not torch_model.read_descriptor(parent.path).get("sparse"):
        return []
    was = torch_sparse.zeros_of(torch_model.load(parent.path).source.module)
    lost = torch_sparse.lost(was, student.source.module.state_dict())
    return [f"{name} is no longer zero where it was" for name in lost]


def _unlike(written: Mapping[str, Any], best: Mapping[str, Any]) -> list[str]:
    torch = need("torch")
    wanted = {name.removeprefix("module."): tensor for name, tensor in best.items() if name.startswith("module.")}
    return [
        f"{name} is not as it was learned" for name, tensor in wanted.items()
        if name not in written or not torch.equal(written[name], tensor)
    ][:4]  # fmt: skip


PASS = Pass(
    name="torch.distill",
    version=3,
    source="torch",
    target="torch",
    summary="Train a smaller torch model to answer as the source model does",
    run=run,
    confirm=confirm,
    options=TorchDistill,
    fidelity="lossy",
    floating=True,
    precision="float32",
    tools=("torch", "safetensors", "numpy"),
    needs_data=True,
    needs_source=True,
    reads=lambda options: options.student.named if options.student else (),
    resumes=True,
    modules=("optkit.formats.warm.torch",),
    timeout_seconds=7 * 24 * 3600.0,
)
