"""onnx.quantize: 8-bit integers in an ONNX graph, with ranges from data (static) or found while it runs (dynamic)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optkit.artifact import Artifact
from optkit.errors import DataError, StepError
from optkit.formats import budget, tuning
from optkit.formats.onnx import balance as onnx_balance
from optkit.formats.onnx import integer as onnx_integer
from optkit.formats.onnx import learning as onnx_learning
from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx import session as onnx_session
from optkit.formats.onnx import weights as onnx_weights
from optkit.formats.onnx.learning import Learned, learn
from optkit.formats.onnx.quantize_job import INSERTED, job_of, op_types_of
from optkit.formats.onnx.quantize_options import DYNAMIC, DYNAMIC_WAYS, STATIC, WAYS, QuantizeOptions
from optkit.plugin import Context, Pass, need


def run(artifact: Artifact, out_dir: Path, options: QuantizeOptions, context: Context) -> dict[str, Any]:
    """Quantise a model. Weights are read and written one at a time, calibration samples a batch at a time.

    Raises DataError where static quantisation has no data or it lacks an input; StepError where a name in `exclude`
    matches no node, a tensor becomes NaN on the data, nothing in the model can be quantised, or the budget cannot be
    held.
    """
    need("onnx")
    if context.data is None and options.method == "static":
        raise DataError("static quantisation needs data to calibrate on", subject="data",
                        hint="give the step `data:`, or set with.method: dynamic")  # fmt: skip
    if context.data is None and options.learns:
        raise DataError("smooth_quant and rounding: gptq learn from data, and the step has none", subject="data",
                        hint="give the step `data:`")  # fmt: skip
    if options.tune:
        return tuning.within(
            artifact, out_dir, options, _ways(artifact, options), run,
            onnx_session.opened(artifact.path, context.threads),
            lambda folder: onnx_session.opened(folder / onnx_model.MAIN, context.threads), context,
        )  # fmt: skip
    source, notes = onnx_balance.balanced(artifact, options, context)
    try:
        made = _within_budget if options.budget else _quantised
        return notes | made(source, out_dir, options, context)
    finally:
        for folder in (onnx_balance.FOLDER, onnx_learning.FOLDER):
            shutil.rmtree(context.scratch / folder, ignore_errors=True)


def _ways(artifact: Artifact, options: QuantizeOptions) -> Sequence[tuning.Way]:
    """What to try; ranges found in each call too, where that pays."""
    dynamic = options.target == "onnxruntime" and not job_of(artifact, options).convolutional
    return (*WAYS, *DYNAMIC_WAYS) if dynamic else WAYS


def _within_budget(artifact: Artifact, out_dir: Path, options: QuantizeOptions, context: Context) -> dict[str, Any]:
    """The model with as few nodes left float as the budget allows. What data tells is found once, for all trials."""
    job = job_of(artifact, options)
    learned = learn(artifact, job, options, context)
    heavy = (*DYNAMIC, *STATIC)
    groups = budget.grouped([(n.name, n.op_type in heavy, n.input[0]) for n in job.targets])
    probe = budget.Probe(context, options.budget, onnx_session.opened(artifact.path, context.threads))

    def lower(chosen: Sequence[budget.Group], quick: bool) -> Mapping[str, Any]:
        trial = budget.emptied(context)
        _quantised(artifact, trial, _sparing(options, budget.others(groups, chosen)), context, learned)
        return probe.measure(onnx_session.opened(trial / onnx_model.MAIN, context.threads), quick)

    kept = budget.keep(groups, probe.bounds, lower, context)
    return {
        **_quantised(artifact, out_dir, _sparing(options, budget.members(kept)), context, learned),
        "budget": budget.found(context),
    }


def _sparing(options: QuantizeOptions, nodes: Sequence[str]) -> QuantizeOptions:
    """The options with further nodes left float."""
    return options.model_copy(update={"exclude": (*options.exclude, *nodes)})


def _quantised(
    artifact: Artifact, out_dir: Path, options: QuantizeOptions, context: Context, known: Learned | None = None
) -> dict[str, Any]:
    """The quantised model in `out_dir`; known: what was learned before, of more tensors than are needed here."""
    job = job_of(artifact, options)
    model, rewrite, op_types = job.rewrite.model, job.rewrite, job.op_types
    inner = sum(n.op_type in op_types for n in onnx_model.all_nodes(model.graph))
    notes: dict[str, Any] = {
        "op_types": list(op_types),
        "excluded": sorted(job.excluded),
        "left_in_subgraphs": inner - sum(n.op_type in op_types for n in model.graph.node),
    }
    learned = known or learn(artifact, job, options, context)
    if job.static is None:
        context.progress("quantising weights", None)
        rewrite.rounding = learned.rounding
        notes["left_float"] = dict(onnx_integer.quantise_dynamically(rewrite, job.targets, job.types))
    else:
        notes |= {"samples": learned.samples, "left_float": dict(job.static.left)}
        if job.static.activations():
            context.progress("quantising weights", None)
            notes["messages"], corrected = onnx_learning.insert(job, learned)
            notes |= {"biases_corrected": corrected} if options.correct_bias else {}
            notes |= {"kept_float_by_a_copy": kept} if (kept := job.shielded) else {}
    counts = onnx_model.count_operators(model)
    if not any(counts[name] for name in INSERTED):
        raise StepError(f"nothing was quantised: no {' or '.join(op_types)} fits"
                        + (" outside of with.exclude" if job.excluded else ""), subject="with.op_types",
                        hint=f"the model has {onnx_integer.shown(model)}")  # fmt: skip
    onnx_model.save(model, out_dir, source=artifact.path.parent, payloads=rewrite.payloads)
    return {**notes, "inserted": {name: counts[name] for name in INSERTED if counts[name]}}


def confirm(parent: Artifact, artifact: Artifact, options: QuantizeOptions, context: Context) -> list[str]:
    """Whether the integers that were asked for are in the file, and excluded nodes are as they were."""
    options = tuning.settled(options, context)
    if held := budget.found(context):
        options = _sparing(options, held["kept"])
    before = onnx_integer.prepare(onnx_model.load(parent.path, weights=False))
    model = onnx_model.load(artifact.path, weights=False)
    counts = onnx_model.count_operators(model)
    wanted = ["QuantizeLinear", "DequantizeLinear"] if options.method == "static" else []
    wanted += ["MatMulInteger"] if options.method == "dynamic" and "Gather" not in options.op_types else []
    kinds = {t.name: onnx_model.dtype_name(t.data_type) for t in model.graph.initializer}
    return [
        *(f"the graph has no {name}" for name in wanted if not counts[name]),
        *_unlike(before, model, kinds, options),
        *_wrong_integers(model, kinds, options, artifact.path.parent),
    ]


def _unlike(before: Any, model: Any, kinds: Mapping[str, str], options: QuantizeOptions) -> Iterator[str]:
    """What is not as it was to be at the nodes of the source that have a weight."""
    makers = {name: node for node in model.graph.node for name in node.output}
    now = {node.name: node for node in model.graph.node}
    excluded = onnx_integer.matching(before, options.exclude)
    heavy = set(op_types_of(before, options)) & set(STATIC) if options.method == "static" else set()
    reals = (onnx_integer.FLOAT, onnx_integer.FLOAT16)
    weights = {t.name for t in before.graph.initializer if t.data_type in reals and len(t.dims) > 1}
    for node in before.graph.node:
        label, index = f"{node.op_type} {node.name}", onnx_integer.weight_input(node)
        if index is None or node.input[index] not in weights:
            continue
        new = now.get(node.name)
        maker = makers.get(new.input[index]) if new is not None else None
        held = maker.input[0] if maker is not None and maker.op_type == "DequantizeLinear" else ""
        if node.name in excluded:
            if new is None or held or new.input[index] != node.input[index]:
                yield f"{label} was excluded and is quantised"
        elif node.op_type in heavy:
            if kinds.get(held) != options.weight_type:
                yield f"the weight of {label} is {kinds.get(held, 'float')}, not {options.weight_type}"
            feed = makers.get(new.input[0]) if new is not None else None
            if feed is None or feed.op_type != "DequantizeLinear":
                yield f"the input of {label} is not quantised"


def _wrong_integers(model: Any, kinds: Mapping[str, str], options: QuantizeOptions, folder: Path) -> Iterator[str]:
    """Which integers have another type or zero point than was asked for."""
    tensors = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        label = f"{node.op_type} {node.name}"
        zeros = [name for name in node.input[2:] if name in tensors]
        if node.op_type == "MatMulInteger":
            if kinds.get(node.input[1]) != options.weight_type:
                yield f"the weight of {label} is {kinds.get(node.input[1])}, not {options.weight_type}"
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            for name in zeros if options.target == "tensorrt" else ():
                if kinds[name] != "int8" or onnx_weights.read(tensors[name], folder).any():
                    yield f"{label} has a zero point of type {kinds[name]} that is not int8 0"
            if node.op_type == "QuantizeLinear" and zeros and kinds[zeros[0]] != options.activations:
                yield f"{label} gives {kinds[zeros[0]]}, not {options.activations}"


PASS = Pass(
    name="onnx.quantize",
    version=4,
    source="onnx",
    target="onnx",
    summary="8-bit integers, with ranges from data or found at run time",
    run=run,
    confirm=confirm,
    options=QuantizeOptions,
    fidelity="lossy",
    tools=("onnx", "onnxruntime"),
    modules=("optkit.formats.warm.onnxruntime", "optkit.formats.warm.quantization"),
    needs_data=lambda options: bool(options.learns or options.budget),
    budget=lambda options: options.budget,
    timed=lambda options: bool(options.target == "onnxruntime"),
)
