"""torch.qat: a torch model whose layers compute on 8-bit integers, trained so that it loses little by them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from optkit.artifact import Artifact
from optkit.errors import SourceError, StepError
from optkit.formats.torch import attention as torch_attention
from optkit.formats.torch import model as torch_model
from optkit.formats.torch import quantised as torch_quantised
from optkit.formats.torch import structure as torch_structure
from optkit.formats.torch.device import check_device
from optkit.formats.torch.files import read_weights
from optkit.formats.torch_training import checkpoint as torch_checkpoint
from optkit.formats.torch_training import lesson as torch_lesson
from optkit.formats.torch_training import qat_flow as torch_qat_flow
from optkit.formats.torch_training.data import TrainingData
from optkit.formats.torch_training.distill_options import Lessons
from optkit.formats.torch_training.lesson import Lesson
from optkit.formats.torch_training.options import BATCH_SIZE
from optkit.formats.torch_training.qat_flow import Places
from optkit.formats.torch_training.qat_ranges import Measured, grids, learned
from optkit.plugin import Context, Pass, need

MEASURED = 512
"""From how many samples first ranges are taken, at most."""
FOLDED = 1e-3
"""The part by which a model may answer otherwise with its batch norms multiplied into its layers."""
OTHERWISE = "; where rounding costs as little as this, onnx.quantize does as well without training"


class TorchQat(Lessons):
    epochs: int | None = Field(None, ge=1, description="how often every sample is learned from; default 10")
    lr: float = Field(1e-4, gt=0, description="the learning rate at its highest, of weights that are nearly right")
    target: Literal["onnxruntime", "openvino", "tensorrt"] = Field(
        "onnxruntime", alias="for", description="whose kernels: onnxruntime takes uint8 activations, and integers "
        "between convolutions too; openvino the same, but rounds no convolution before it is added to another branch; "
        "tensorrt symmetric int8, bias in float"
    )  # fmt: skip
    per_channel: bool = Field(True, description="a scale for each output channel of a weight, not one for all")
    reduce_range: bool = Field(
        False, description="7-bit weights, for x86 processors without VNNI, whose 8-bit products saturate"
    )
    learn_ranges: bool = Field(
        True, description="learn the ranges with the weights; false: those measured on the fit data stay"
    )
    keep: tuple[str, ...] = Field((), description="layers that stay float, as globs: head, encoder.layer.0.*")


def run(artifact: Artifact, out_dir: Path, options: TorchQat, context: Context) -> dict[str, Any]:
    """Puts fake quantisers into the model, trains it through them, and writes integers and scales.

    Notes: the layers that are quantised, those that are not and why, folded batch norms, from how many samples the
    first ranges are, and what `torch.distill` notes. Raises StepError, DataError or SourceError for a model in which
    nothing can be quantised, losses that do not fit, and training that never gets better than its start.
    """
    source = context.source
    if source is None or source.format != "torch":
        raise StepError("the teacher is the source model, which is no torch model", subject="model",
                        hint="give the torch model as the source")  # fmt: skip
    check_device(context.device)
    descriptor = torch_model.read_descriptor(artifact.path)
    torch_quantised.refuse(descriptor, "another torch.qat")
    student = torch_model.load_described(descriptor, device=context.device)
    data = torch_lesson.fit_data(student, options, context, "model")
    size = data.batch_size(options.batch_size, BATCH_SIZE)
    with torch_checkpoint.reproducible(context.seed, context.threads, context.device):
        written_out = _write_out_attention(student, data, size)
        places, folded = _places(student, data, size, options)
        measured, samples = _measured(student, data, size, places, options, context)
        rounding = learned(student.source.module, places, measured, options.learn_ranges).to(context.device)
        torch_quantised.attach(student.source.module, places.calls, rounding)
    lesson = torch_lesson.lesson(student, data, options, context, rounding, otherwise=OTHERWISE,
                                 sparse=bool(descriptor.get("sparse")))  # fmt: skip
    trained = torch_lesson.learn(lesson, options, context)
    context.progress("write", 1.0)
    record, scales = rounding.record(options.target, folded)
    first = [torch_structure.Stage(written_out=written_out)] if written_out else []
    torch_structure.save(student.source.module.to("cpu"), descriptor, artifact.digest, first, out_dir, (record, scales))
    torch_lesson.remember(trained, context)
    return {
        "quantised": sorted(set(places.layers.values())),
        "left_float": {why: sorted(set(layers)) for why, layers in sorted(places.left.items())},
        "activations": len(places.activations),
        "folded_batch_norms": len(folded),
        "ranges": {"first_from": f"lowest and highest value in {samples} samples", "learned": options.learn_ranges},
        **torch_lesson.notes(lesson, trained),
    }


def _write_out_attention(student: torch_model.TorchModel, data: TrainingData, size: int) -> list[str]:
    """The attentions whose layers can be rounded now that they are layers."""
    batch = next(data.batches(size))
    return torch_attention.write_out(student.source.module, lambda: student.call(batch.feeds))


def _places(
    student: torch_model.TorchModel, data: TrainingData, size: int, options: TorchQat
) -> tuple[Places, list[tuple[str, str]]]:
    """What is to be rounded in the student, whose batch norms are folded on the way."""
    module = student.source.module
    batch = next(data.batches(size))

    def answers() -> dict[str, Any]:
        return student.call(batch.feeds)

    before = answers()
    folded = torch_qat_flow.foldable(module, torch_qat_flow.watch(module, answers))
    torch_qat_flow.fold(module, folded)
    for name, tensor in answers().items() if folded else ():
        off = (tensor.double() - before[name].double()).norm() / before[name].double().norm().clamp(min=1e-30)
        if not float(off) <= FOLDED:
            raise StepError("with its batch norms multiplied into the layers before them, the model answers "
                            f"otherwise: {name} is {float(off):.2g} off", subject="model", hint="call layers and "
                            "batch norms as modules, and read no weights of theirs elsewhere")  # fmt: skip
    flow = torch_qat_flow.watch(module, answers)
    bits = 7 if options.reduce_range else 8
    places = torch_qat_flow.places(module, flow, target=options.target, per_channel=options.per_channel, bits=bits,
                                   keep=options.keep)  # fmt: skip
    return places, folded


def _measured(
    student: torch_model.TorchModel, data: TrainingData, size: int, places: Places, options: TorchQat, context: Context
) -> tuple[dict[str, torch_quantised.Activation], int]:
    """The first grid of each activation, and the number of samples it is from."""
    measured = Measured()
    end = torch_quantised.attach(student.source.module, places.calls, measured)
    seen = 0
    for batch in data.batches(size):
        context.progress(f"measuring ranges on {seen} of {min(MEASURED, len(data.train))} samples", None)
        student.call(batch.feeds)
        seen += batch.rows
        if seen >= MEASURED:
            break
    end()
    missing = set(places.activations) - set(measured.low)
    if missing:
        raise StepError("the model calls other functions on some samples than on others", subject="model",
                        hint="keep: the layers behind such a decision")  # fmt: skip
    return grids(measured, "int8" if options.target == "tensorrt" else "uint8"), seen


def confirm(parent: Artifact, artifact: Artifact, options: TorchQat, context: Context) -> list[str]:
    """Loads the written model anew: its weights are integers in the file, and its held-out loss is the one measured."""
    torch = need("torch")
    best = torch_lesson.remembered(context)
    if best is None:
        return ["there is no record of the best weights"]
    descriptor = torch_model.read_descriptor(artifact.path)
    if not descriptor.get("quantised"):
        return ["the written model has no fake quantisers"]
    try:
        record = torch_quantised.read(descriptor["quantised"])
        student = torch_model.load(artifact.path, device=context.device)
        data = torch_lesson.fit_data(student, options, context, "model")
        lesson: Lesson = torch_lesson.lesson(student, data, options, context)
    except (SourceError, StepError) as error:
        return [f"the model cannot be loaded and run: {error.what}"]
    state = read_weights(artifact.path.parent / torch_structure.WEIGHTS)
    complaints = [
        f"{name} is stored as {state[f'{name}_quantised'].dtype}" for name in record.weights
        if state[f"{name}_quantised"].dtype != torch.int8
    ]  # fmt: skip
    complaints += [f"{name} is stored in float beside its integers" for name in record.weights if name in state]
    prefix = "helpers.losses."
    helpers = lesson.distillation.helpers
    helpers.load_state_dict({k.removeprefix(prefix): v for k, v in best["learner"].items() if k.startswith(prefix)})
    learner = replace(lesson.learner, still=True)
    return complaints + torch_lesson.complaints(learner, data, best, context)


PASS = Pass(
    name="torch.qat",
    version=4,
    source="torch",
    target="torch",
    summary="Train a torch model on 8-bit integers, which to_onnx and to_openvino write as such",
    run=run,
    confirm=confirm,
    options=TorchQat,
    fidelity="lossy",
    precision="float32",
    tools=("torch", "safetensors", "numpy"),
    needs_data=True,
    needs_source=True,
    resumes=True,
    modules=("optkit.formats.warm.torch",),
    timed=False,  # torch itself rounds in float32: the artifacts made from it are the fast ones
    timeout_seconds=7 * 24 * 3600.0,
)
