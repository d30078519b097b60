"""torch.train: a training loop of your own as a step, proven and cached like every other.

The function that `call:` names is given the module to train and the fit data, and returns the module:

    def train(module, data, *, source, kept, seed, progress, **kwargs):
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
        for epoch in range(kwargs["epochs"]):
            for batch in data.batches(32, seed=seed, epoch=epoch):
                loss = torch.nn.functional.mse_loss(module(**batch.feeds), source(**batch.feeds))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            progress(f"epoch {epoch}: loss {loss:.4g}", (epoch + 1) / kwargs["epochs"])
        return module

module: an nn.Module in train mode, its parameters free to learn. data: `TrainingData`; `data.batches(size)` are
    shuffled and hold `feeds` and `labels`, tensors by name; `data.held_out_batches(size)` are not to be learned from.
source: the source model as an nn.Module in eval mode. kept: a folder that outlives a kill, for checkpoints, empty in a
    first run. seed: the recipe's. progress(text, fraction=None): is shown. kwargs: as the recipe gives them.

With `processes: 2` two processes call it. Each gets its share of the batches, and all that are held out. An
engine joins them, accelerate, Lightning Fabric or torch.distributed itself, as under torchrun:

    def train(module, data, *, source, kept, seed, progress, **kwargs):
        accelerator = accelerate.Accelerator()
        module, optimizer = accelerator.prepare(module, torch.optim.AdamW(module.parameters(), lr=1e-3))
        for batch in data.batches(32, seed=seed):
            loss = torch.nn.functional.mse_loss(module(**batch.feeds), source(**batch.feeds))
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
        return accelerator.unwrap_model(module)

The first process's module counts, and its progress is shown. Parameters that are not the same in all are an error. A
process that fails or dies ends the step, with its number and its output. All end with the run.

It may change weights and buffers, not the structure: the module is rebuilt from its own code in every later step.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from optkit.artifact import Artifact
from optkit.errors import DataError, SourceError, StepError
from optkit.formats.torch import model as torch_model
from optkit.formats.torch import quantised as torch_quantised
from optkit.formats.torch import structure as torch_structure
from optkit.formats.torch.device import check_device
from optkit.formats.torch.modes import evaluate
from optkit.formats.torch_pruning import sparse as torch_sparse
from optkit.formats.torch_training import checkpoint as torch_checkpoint
from optkit.formats.torch_training import ranks as torch_ranks
from optkit.formats.torch_training.data import Batch, TrainingData
from optkit.formats.torch_training.options import BATCH_SIZE, Share
from optkit.formats.torch_training.user_training import Call, answers, called
from optkit.plugin import Context, Options, Pass, need

SHOWN = 4
"""How many differences an error names."""

CLOSE = 1e-4
"""Of the largest output: what the written model may differ by from the one that was returned."""


class TorchTrain(Options):
    call: str = Field(description="your training function, FILE.py:NAME or MODULE:NAME: train(module, data, *, source, "
                      "kept, seed, progress, **kwargs) returns the module", examples=["train.py:train"])  # fmt: skip
    kwargs: dict[str, Any] = Field({}, description="the function's further arguments")
    files: tuple[str, ...] = Field((), description="further files and folders that it reads")
    processes: int = Field(
        1, ge=1, le=64, description="how many processes of this machine call it, each on a GPU of its own or on a part "
        "of the cores; torch.distributed.run starts them"
    )  # fmt: skip
    held_out: Share = Field(
        0.1, description="the part of the fit data that data.batches leaves out and data.held_out_batches gives"
    )

    @field_validator("call")
    @classmethod
    def _names_a_function(cls, value: str) -> str:
        place, _, name = value.rpartition(":")
        if not place or not name.isidentifier():
            raise ValueError(f"{value!r} is not FILE.py:NAME or MODULE:NAME")
        return value


def run(artifact: Artifact, out_dir: Path, options: TorchTrain, context: Context) -> dict[str, Any]:
    """Calls the function, and writes the module that it returns with the record of its structure.

    Notes: samples, parameters, how many tensors changed. Raises StepError for what the function raises, and for a
    result that is no module, has another structure, is not finite, or cannot be rebuilt.
    """
    torch = need("torch")
    if context.data is None:
        raise DataError("there is no data to train on", subject="data", hint="give the step `data:`")
    check_device(context.device)
    descriptor = torch_model.read_descriptor(artifact.path)
    torch_quantised.refuse(descriptor, "torch.train")
    model = torch_model.load_described(descriptor, device=context.device)
    if model.exported is not None or model.scripted:
        kind = "a torch.export program" if model.exported is not None else "TorchScript"
        raise StepError(f"the model is {kind}, a graph fixed in evaluation mode; training needs the nn.Module",
                        subject="model", hint="give the factory that builds it: {torch: FILE.py:build, weights: "
                        "...}")  # fmt: skip
    context.progress("read the fit data", None)
    data = TrainingData(context.data, context.scratch / "data", context.inputs or model.inputs,
                        held_out=options.held_out, seed=context.seed, device=context.device)  # fmt: skip
    module = model.source.module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    zeros = torch_sparse.zeros_of(module) if descriptor.get("sparse") else {}
    batch = next(data.held_out_batches(BATCH_SIZE))
    call = _call(artifact, data, options, context)
    if options.processes > 1:
        found = torch_ranks.trained_in(options.processes, call, context.scratch / "processes", context.threads,
                                       context.device, context.progress)  # fmt: skip
        trained, state, wanted = module.to("cpu"), found["state"], found["answers"]
        _same_structure(state, before)
        trained.load_state_dict(state)
    else:
        with torch_checkpoint.reproducible(context.seed, context.threads, context.device):
            trained = called(call, module, data, context.device, context.progress)
        state = trained.state_dict()
        _same_structure(state, before)
        evaluate(trained)
        wanted = answers(model, trained, batch)
    _still_zero(zeros, state)
    changed = sum(not torch.equal(before[name], tensor.to(before[name].device)) for name, tensor in state.items())
    if not changed:
        raise StepError(f"{options.call} changed nothing: all {len(before)} tensors are as they were",
                        subject="with.call", hint="train the module that it is given, and return it")  # fmt: skip
    torch_structure.save(trained.to("cpu"), descriptor, artifact.digest, [], out_dir)
    _rebuilt(out_dir, wanted, batch, context.device)
    return {
        "samples": {"learned_from": len(data.train), "held_out": len(data.held_out)},
        "parameters": sum(p.numel() for p in trained.parameters()),
        "tensors_changed": [changed, len(before)],
        **({"processes": options.processes} if options.processes > 1 else {}),
    }


def _call(artifact: Artifact, data: TrainingData, options: TorchTrain, context: Context) -> Call:
    kept = context.kept or context.scratch / "kept"
    kept.mkdir(exist_ok=True)
    place, _, name = options.call.rpartition(":")
    return Call(
        f"{context.files[options.call][0]}:{name}" if place.endswith(".py") else options.call, options.call,
        options.kwargs, artifact, context.source, data.inputs, context.scratch / "data", data.stack, options.held_out,
        kept, context.seed,
    )  # fmt: skip


def _same_structure(after: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Raises StepError where a fresh module could not take this one's weights, naming what differs."""
    torch = need("torch")
    lost = [f"{name} is gone" for name in before if name not in after]
    new = [f"{name} is new" for name in after if name not in before]
    other = [
        f"{name} was {list(before[name].shape)} and is {list(after[name].shape)}"
        for name in before if name in after and before[name].shape != after[name].shape
    ] + [
        f"{name} was {before[name].dtype} and is {after[name].dtype}"
        for name in before if name in after and before[name].dtype != after[name].dtype
    ]  # fmt: skip
    if found := [*other, *lost, *new]:
        types = not lost and not new and all(before[n].shape == after[n].shape for n in before)
        wrapped = next((p for p in ("module.", "_orig_mod.", "model.") if all(n.startswith(p) for n in after)), "")
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise StepError(
            f"the returned module has another structure than the one to train: {'; '.join(found[:SHOWN])}{more}",
            subject="with.call",
            hint=f"it is wrapped: return its .{wrapped.rstrip('.')}" if wrapped
            else "return it in the types that it came in: module.float()" if types
            else "train the module that it is given; torch.prune changes structures",
        )  # fmt: skip
    bad = [name for name, tensor in after.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if bad:
        more = f", nor are {len(bad) - 1} more" if len(bad) > 1 else ""
        raise StepError(f"the returned module's {bad[0]} is not finite{more}", subject="with.call",
                        hint="a smaller learning rate, or clipped gradients")  # fmt: skip


def _still_zero(zeros: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Raises StepError where a weight that torch.prune set to zero is not any more."""
    if lost := torch_sparse.lost(zeros, state):
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise StepError(f"the returned module's {lost[0]}{more} has values where torch.prune had set zeros",
                        subject="with.call", hint="keep them: masks = {n: p == 0 for n, p in module.named_parameters() "
                        "if p.dim() > 1} at first, and p.data.masked_fill_(masks[n], 0) after each optimizer.step(); "
                        "torch.distill does so by itself")  # fmt: skip


def _rebuilt(out_dir: Path, wanted: Mapping[str, Any], batch: Batch, device: str) -> None:
    """Raises StepError unless the written model answers as the returned one did."""
    torch = need("torch")
    again = torch_model.load(out_dir / torch_model.MAIN, device=device).call(batch.feeds)
    for name, tensor in wanted.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise StepError(f"output {name!r} of the returned module is not finite", subject="with.call",
                            hint="a smaller learning rate, or clipped gradients")  # fmt: skip
        scale = float(tensor.double().abs().max()) if tensor.numel() else 0.0
        if again[name].shape != tensor.shape or not torch.allclose(
            again[name].double(), tensor.to(again[name].device).double(), rtol=0, atol=CLOSE * scale
        ):
            raise StepError(f"rebuilt from its code and the new weights, the module gives another {name!r}",
                            subject="with.call", hint="change weights and buffers alone: what else it holds is "
                            "not kept")  # fmt: skip


def confirm(parent: Artifact, artifact: Artifact, options: TorchTrain, context: Context) -> list[str]:
    """Loads the written model anew, which must have its parent's structure."""
    try:
        old, new = torch_model.load(parent.path), torch_model.load(artifact.path)
    except SourceError as error:
        return [f"the trained model cannot be loaded: {error.what}"]
    shapes = [{n: tuple(t.shape) for n, t in m.source.module.state_dict().items()} for m in (old, new)]
    return [] if shapes[0] == shapes[1] else ["it has another structure than the model it was trained from"]


PASS = Pass(
    name="torch.train",
    version=2,
    source="torch",
    target="torch",
    summary="Train a torch model with a function of your own",
    run=run,
    confirm=confirm,
    options=TorchTrain,
    fidelity="lossy",
    floating=True,
    precision="float32",
    tools=("torch", "safetensors", "numpy"),
    needs_data=True,
    needs_source=True,
    reads=lambda options: (options.call, *options.files),
    resumes=True,
    modules=("optkit.formats.warm.torch",),
    timeout_seconds=7 * 24 * 3600.0,
)
