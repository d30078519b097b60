"""torch.prune: a smaller torch model, without its least important channels and heads; or a sparser one."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from optkit.artifact import Artifact
from optkit.errors import DataError, SourceError, StepError
from optkit.formats.torch import model as torch_model
from optkit.formats.torch import quantised as torch_quantised
from optkit.formats.torch import structure as torch_structure
from optkit.formats.torch.export import runnable_feeds
from optkit.formats.torch_pruning import sparse as torch_sparse
from optkit.formats.torch_training import recovery as torch_recovery
from optkit.formats.torch_training.distill_options import Lessons
from optkit.formats.torch_training.options import Share
from optkit.plugin import Context, Options, Pass, need

if TYPE_CHECKING:
    from optkit.formats.torch_pruning.importance import Fit
    from optkit.formats.torch_pruning.pruning import Measure, Target
    from optkit.plugin import Ratio

FITTED = ("taylor", "activation")
TARGETS = ("ratio", "remove_macs", "remove_parameters", "latency")
BATCH = 16
"""Samples in a batch of fit data."""


class Recover(Lessons):
    """How a model learns between rounds what it lost, from the source model: the options of torch.distill."""


class TorchPrune(Options):
    how: Literal["structured", "unstructured", "2:4"] = Field(
        "structured",
        description="structured: whole channels, attention heads and hidden units are removed, the model is smaller "
        "everywhere. unstructured: the smallest weights of linear, convolutional, attention and recurrent layers "
        "become zero. 2:4: two of every four do, which sparse tensor cores need; recurrent layers stay",
    )
    ratio: Share | None = Field(
        None, description="the share of channels (structured) or of weights (unstructured) to remove: 0.5, or 50%"
    )
    remove_macs: Share | None = Field(
        None, description="remove channels until this share of the multiply-accumulates is gone: 0.6, or 60%"
    )
    remove_parameters: Share | None = Field(
        None, description="remove channels until this share of the parameters is gone: 0.6, or 60%"
    )
    latency: Share | None = Field(
        None,
        description="remove channels until the latency, measured on a runtime, is down to this share of the unpruned "
        "model's: 0.6, or 60%",
    )
    runtime: str | None = Field(
        None,
        description="the format on whose runtime latency is measured: onnx, openvino, tflite, torch. Candidates are "
        "converted as to: does it and raced against the unpruned model at the dims' opt sizes",
    )
    importance: Literal["l1", "l2", "batch_norm", "activation", "taylor"] | None = Field(
        None,
        description="what ranks channels, l2 unless given. l1, l2: the weights' magnitude. batch_norm: its scales. "
        "activation: how much a channel adds to the layers that read it, on data. taylor: how much the loss changes "
        "without it, on data: cross-entropy where the dataset has labels, otherwise the distance to the model's own "
        "outputs",
    )
    scope: Literal["global", "layer"] = Field(
        "global", description="global: channels of all layers compete. layer: every layer loses the same share"
    )
    keep: tuple[str, ...] = Field((), description="layers that stay as they are, as globs: head, encoder.layer.0.*")
    keep_at_least: float = Field(
        0.1,
        ge=0,
        le=1,
        description="the share of its channels that every layer keeps, whatever they score; one at least",
    )
    rounds: int = Field(1, ge=1, le=100, description="remove in so many rounds, and rank anew in each")
    recover: Recover | None = Field(
        None,
        description="between rounds the model learns from the source model, as torch.distill does it, with these "
        "options: {epochs: 2, lr: 0.001}. After the last round it does not: torch.distill is the step for that",
    )
    round_to: int = Field(1, ge=1, description="leave every layer a multiple of so many channels")
    max_samples: int | None = Field(None, ge=1, description="how many samples to rank on; default all")

    @property
    def ranks_by(self) -> str:
        return self.importance or "l2"

    @model_validator(mode="after")
    def _consistent(self) -> TorchPrune:
        targets = [n for n in TARGETS if getattr(self, n) is not None]
        structured = self.how == "structured"
        # By value, not by what was written: a recorded step has every option in it.
        defaults = {"importance": None, "rounds": 1, "recover": None, "round_to": 1,
                    "keep_at_least": 0.1}  # fmt: skip
        whole = [name for name, default in defaults.items() if getattr(self, name) != default]
        wrong = [text for holds, text in (
            (structured and not targets, "name a target: ratio, remove_macs, remove_parameters or latency"),
            (len(targets) > 1, f"name one target, not {' and '.join(targets)}"),
            (self.how == "unstructured" and targets != ["ratio"], "how: unstructured takes ratio, and nothing else"),
            (self.how == "2:4" and bool(targets), "how: 2:4 removes half of the weights: leave out the target"),
            (self.how == "2:4" and self.scope != "global", "how: 2:4 has no scope"),
            (not structured and bool(whole), f"{' and '.join(whole)} goes with how: structured"),
            (self.latency is not None and self.runtime is None,
             "latency is measured on a runtime: name it, as in runtime: onnx"),
            (self.latency is None and self.runtime is not None, "runtime goes with latency"),
            (self.recover is not None and self.rounds < 2,
             "recover works between rounds: name rounds, or take torch.distill as the next step"),
            (self.ranks_by not in FITTED and self.max_samples is not None,
             f"importance: {self.ranks_by} takes no samples"),
        ) if holds]  # fmt: skip
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


def run(artifact: Artifact, out_dir: Path, options: TorchPrune, context: Context) -> dict[str, Any]:
    """Prunes the module and writes it with the record of its new structure.

    Context: `trial` measures candidates for a target of latency; `source` is who a model learns from between rounds.
    Notes: the target and how far it was met, multiply-accumulates and parameters before and after, per group of layers
    the channels before and after, and the layers left alone with the reason. Raises StepError for a source without an
    nn.Module and for a target that cannot be met, DataError where a ranking needs data and there is none.
    """
    from optkit.formats.torch_pruning.pruning import macs, parameter_count, prune
    from optkit.formats.torch_pruning.selecting import Rules

    torch = need("torch")
    if options.ranks_by in FITTED and context.data is None:
        raise DataError(f"importance: {options.ranks_by} needs data to rank on", subject="data",
                        hint="give the step `data:`, or set with.importance: l2")  # fmt: skip
    descriptor = torch_model.read_descriptor(artifact.path)
    torch_quantised.refuse(descriptor, "torch.prune")
    model = torch_model.load(artifact.path)
    if model.exported is not None or model.scripted:
        kind = "a torch.export program" if model.exported is not None else "TorchScript"
        raise StepError(
            f"the source is {kind}, whose structure is fixed; pruning needs the nn.Module",
            subject="model",
            hint="give the factory that builds it: model: {torch: FILE.py:build, weights: ...}",
        )
    recovery = None
    if options.recover is not None:
        recovery = torch_recovery.Recovery(model, options.recover, options.rounds, context)
        recovery.sparse = bool(descriptor.get("sparse"))
    with _threads(recovery.threads if recovery else context.threads):
        _, feeds = runnable_feeds(model, context.inputs or model.inputs, context.dims)
        module = model.source.module
        before = {"macs": macs(model, feeds), "parameters": parameter_count(module)}
        if options.how == "structured":
            done = prune(
                model,
                feeds,
                _target(options),
                Rules(options.scope == "layer", options.keep_at_least, options.round_to),
                importance=options.ranks_by,
                rounds=options.rounds,
                keep=options.keep,
                fit=_fit(options, context, model),
                measure=_measure(descriptor, artifact, options, context),
                recover=recovery,
                progress=context.progress,
            )
            stages, notes = done.stages, {**done.notes, **({"recovered": recovery.notes} if recovery else {})}
        else:
            stages, notes = [], _sparse(module, options)
        sparse = options.how != "structured"
        after = {"macs": macs(model, feeds), "parameters": parameter_count(module)}
        answers = model.call(feeds)
    _check_finite(torch, answers)
    context.progress("write", None)
    torch_structure.save(module, descriptor, artifact.digest, stages, out_dir, sparse=sparse)
    counted = {key: {"before": before[key], "after": after[key]} for key in before}
    return {**notes, **counted, "sizes": {name: list(feed.shape) for name, feed in feeds.items()},
            "counted_by": f"torch.utils.flop_counter of torch {torch.__version__}"}  # fmt: skip


def _target(options: TorchPrune) -> Target:
    from optkit.formats.torch_pruning.pruning import Target

    if options.remove_macs is not None:
        return Target("macs", options.remove_macs)
    if options.remove_parameters is not None:
        return Target("parameters", options.remove_parameters)
    if options.latency is not None:
        return Target("latency", 1 - options.latency)
    assert options.ratio is not None
    return Target("channels", options.ratio)


def _measure(
    descriptor: Mapping[str, Any], artifact: Artifact, options: TorchPrune, context: Context
) -> Measure | None:
    """What writes a candidate and races it."""
    trial = context.trial
    if options.latency is None:
        return None
    assert trial is not None, "a pass that tries its candidates is given what measures them"

    def measure(module: Any, stages: list[torch_structure.Stage], about: float, seconds: float) -> Ratio:
        with tempfile.TemporaryDirectory(dir=context.scratch) as folder:
            torch_structure.save(module, descriptor, artifact.digest, stages, Path(folder))
            return trial(Path(folder), about, seconds)

    return measure


def _fit(options: TorchPrune, context: Context, model: torch_model.TorchModel) -> Fit | None:
    if options.ranks_by not in FITTED or context.data is None:
        return None
    from optkit.formats.torch_pruning.importance import fit_of

    return fit_of(context.data, model.inputs, context.seed, BATCH, options.max_samples)


def _sparse(module: Any, options: TorchPrune) -> dict[str, Any]:
    from optkit.formats.torch_pruning.pruning import matched

    kept = matched(module, options.keep, "keep")
    found = torch_sparse.matrices(module, kept, recurrent=options.how != "2:4")
    if not found:
        raise StepError(
            "the model has no linear layer, convolution or attention to prune",
            subject="with.keep" if kept else "model",
            hint="take layers out of with.keep" if kept else "prune a model that has some",
        )
    was = torch_sparse.zeros(found)
    left = torch_sparse.left_dense(module, found, kept)
    if options.how == "2:4":
        zeros, odd = torch_sparse.two_of_four(found)
        left = odd + left
    else:
        assert options.ratio is not None
        zeros = torch_sparse.smallest(found, options.ratio, per_layer=options.scope == "layer")
    sizes = {m.name: m.tensor.numel() for m in found if m.name in zeros}
    if all(zeros[name] == was[name] for name in zeros):
        raise StepError(f"nothing was removed: {sum(was.values())} of {sum(sizes.values())} weights were zero already",
                        subject="with.ratio", hint="ask for more")  # fmt: skip
    return {
        "zeros": {name: [zeros[name], sizes[name]] for name in zeros},
        "zero_share": round(sum(zeros.values()) / sum(sizes.values()), 6),
        "left": left,
    }


def _check_finite(torch: Any, answers: Mapping[str, Any]) -> None:
    for name, tensor in answers.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise StepError(f"output {name!r} of the pruned model is not finite", subject="outputs",
                            hint="remove less, or in several rounds")  # fmt: skip


@contextmanager
def _threads(count: int) -> Iterator[None]:
    torch = need("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# ------------------------------------------------------------------------------------------------ confirming


def confirm(parent: Artifact, artifact: Artifact, options: TorchPrune, context: Context) -> list[str]:
    """Loads both models anew and counts: what was asked to go is gone, and the outputs are finite."""
    from optkit.formats.torch_pruning.pruning import macs, matched, parameter_count

    try:
        old, new = torch_model.load(parent.path), torch_model.load(artifact.path)
        _, feeds = runnable_feeds(new, context.inputs or new.inputs, context.dims)
        answers = new.call(feeds)
        first = old.call(feeds)
    except SourceError as error:
        return [f"the pruned model cannot be loaded and run: {error.what}"]
    torch = need("torch")
    complaints = [f"output {name!r} has shape {tuple(answers[name].shape)}, not {tuple(first[name].shape)}"
                  for name in first if answers[name].shape != first[name].shape]  # fmt: skip
    complaints += [f"output {n!r} is not finite" for n, t in answers.items()
                   if t.is_floating_point() and not torch.isfinite(t).all()]  # fmt: skip
    if options.how == "2:4":
        kept = matched(new.source.module, options.keep, "keep")
        found = torch_sparse.matrices(new.source.module, kept, recurrent=False)
        found = [m for m in found if m.tensor.shape[m.axis] % 4 == 0]
        return complaints + [f"{m.name} is not 2:4 sparse" for m in found if not torch_sparse.holds_two_of_four(m)]
    if options.how == "unstructured":
        return complaints + _confirm_zeros(new.source.module, options)
    counts = [{"macs": macs(m, feeds), "parameters": parameter_count(m.source.module)} for m in (old, new)]
    for key, wanted in (("macs", options.remove_macs), ("parameters", options.remove_parameters)):
        gone = 1 - counts[1][key] / max(1, counts[0][key])
        if wanted is not None and gone < wanted - 1e-6:
            complaints.append(f"{gone:.2%} of the {key} are gone, not {wanted:.2%}")
    if counts[1]["parameters"] >= counts[0]["parameters"]:
        complaints.append(f"the model has {counts[1]['parameters']} parameters, no fewer than before")
    return complaints


def _confirm_zeros(module: Any, options: TorchPrune) -> list[str]:
    from optkit.formats.torch_pruning.pruning import matched

    assert options.ratio is not None
    found = torch_sparse.matrices(module, matched(module, options.keep, "keep"))
    zeros, sizes = torch_sparse.zeros(found), {m.name: m.tensor.numel() for m in found}
    parts = [[name] for name in sizes] if options.scope == "layer" else [list(sizes)]
    complaints = []
    for part in parts:
        asked, there = round(sum(sizes[n] for n in part) * options.ratio), sum(zeros[n] for n in part)
        if there < math.floor(asked):
            complaints.append(f"{there} weights of {', '.join(part[:3])} are zero, not {asked}")
    return complaints


PASS = Pass(
    name="torch.prune",
    version=4,
    source="torch",
    target="torch",
    summary="Remove channels, heads and hidden units of a torch model, or set weights to zero",
    run=run,
    confirm=confirm,
    options=TorchPrune,
    fidelity="lossy",
    floating=True,
    tools=("torch", "safetensors"),
    needs_data=lambda options: options.ranks_by in FITTED or options.recover is not None,
    needs_source=lambda options: options.recover is not None,
    tries=lambda options: options.runtime,
    resumes=True,
    modules=("optkit.formats.warm.torch", "optkit.formats.warm.torch_export"),
    timeout_seconds=7 * 24 * 3600.0,
)
