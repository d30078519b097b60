"""onnx.fp16: mixed precision in an ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from optkit.artifact import Artifact
from optkit.errors import SourceError, StepError, did_you_mean
from optkit.formats import budget
from optkit.formats.onnx import half as onnx_half
from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx import session as onnx_session
from optkit.formats.onnx import weights as onnx_weights
from optkit.plugin import Context, Options, Pass, need


class Fp16Options(Options):
    """What stays float32."""

    keep_io: bool = Field(True, description="keep the model's float32 inputs and outputs as they are")
    block: tuple[str, ...] = Field((), description="operator types that compute in float32, such as [Softmax]")
    block_nodes: tuple[str, ...] = Field((), description="names of nodes that compute in float32")
    protect: bool = Field(True, description="also compute in float32 where float16 is known to overflow or lose "
                                            "digits: " + ", ".join(sorted(onnx_half.FRAGILE)))  # fmt: skip
    budget: tuple[str, ...] = Field((), description=budget.DESCRIPTION)


def run(artifact: Artifact, out_dir: Path, options: Fp16Options, context: Context) -> dict[str, Any]:
    """Halve a model's float32 weights and arithmetic.

    Stays float32: what the options name; operators without a float16 version; control flow's own inputs and outputs;
    nodes with a constant that float16 cannot hold (beyond 65504, or a scalar that rounds to 0); arithmetic on shapes;
    and cheap operators between such nodes. Constants of 1e8 and more act as infinity (attention masks) and become
    65504. Raises StepError where a named operator or node does not exist, nothing is left to convert, or the budget
    cannot be held.
    """
    need("onnx")
    need("onnxruntime")
    if options.budget:
        return _within_budget(artifact, out_dir, options, context)
    return _halved(artifact, out_dir, options, context)


def _within_budget(artifact: Artifact, out_dir: Path, options: Fp16Options, context: Context) -> dict[str, Any]:
    """The model with as few nodes left in float32 as the budget allows."""
    nodes = onnx_model.load(artifact.path, weights=False).graph.node
    stay = {*options.block, *(onnx_half.FRAGILE if options.protect else ())}
    free = [n for n in nodes if n.name and n.op_type not in stay and n.name not in options.block_nodes]
    groups = budget.grouped([(n.name, n.op_type in onnx_half.HEAVY, n.name) for n in free if onnx_half.computes(n)])
    probe = budget.Probe(context, options.budget, onnx_session.opened(artifact.path, context.threads))

    def lower(chosen: Sequence[budget.Group], quick: bool) -> Mapping[str, Any]:
        trial = budget.emptied(context)
        _halved(artifact, trial, _sparing(options, budget.others(groups, chosen)), context)
        return probe.measure(onnx_session.opened(trial / onnx_model.MAIN, context.threads), quick)

    kept = budget.keep(groups, probe.bounds, lower, context)
    return {
        **_halved(artifact, out_dir, _sparing(options, budget.members(kept)), context),
        "budget": budget.found(context),
    }


def _sparing(options: Fp16Options, nodes: Sequence[str]) -> Fp16Options:
    """The options with further nodes left in float32."""
    return options.model_copy(update={"block_nodes": (*options.block_nodes, *nodes)})


def _halved(artifact: Artifact, out_dir: Path, options: Fp16Options, context: Context) -> dict[str, Any]:
    model = onnx_model.load(artifact.path, weights=False)
    if model.functions:
        model = need("onnx.inliner").inline_local_functions(model)
    nodes = list(onnx_model.all_nodes(model.graph))
    _known(options, nodes)
    context.progress("computing in float16 where that is safe", None)
    half = onnx_half.convert(
        model,
        artifact.path.parent,
        keep_io=options.keep_io,
        block=frozenset(options.block) | (onnx_half.FRAGILE if options.protect else frozenset()),
        block_nodes=frozenset(options.block_nodes),
    )
    if not half.converted:
        raise StepError(
            f"nothing was converted to float16: {_listed(half.kept)}", hint="shorten with.block, or drop this step"
        )
    path = onnx_model.save(model, out_dir, source=artifact.path.parent, payloads=half.payloads)
    # converters are known to leave wrong types behind: only a load proves the graph is typed throughout
    try:
        onnx_session.open_session(path, optimise=False, prepack=False)
    except (SourceError, StepError) as error:
        raise StepError(
            f"the float16 graph does not load: {error.what}",
            details=error.details,
            hint="name the operator in with.block",
        ) from error
    return {
        "float16_nodes": half.converted,
        "float32_nodes": dict(half.kept.most_common()),
        "float32_operators": dict(sorted(half.operators.items())),
        "casts_added": half.casts,
        "clamped_constants": sorted(half.clamped),
        "beyond_float16": sorted(half.beyond),
    }


def confirm(parent: Artifact, artifact: Artifact, options: Fp16Options, context: Context) -> list[str]:
    """Whether inputs, outputs, weights and blocked nodes have the types that were asked for."""
    import onnx

    if found := budget.found(context):
        options = _sparing(options, found["kept"])
    before, model = (onnx_model.load(a.path, weights=False) for a in (parent, artifact))
    complaints = []
    for old, new in zip((*_inputs(before), *before.graph.output), (*_inputs(model), *model.graph.output), strict=False):
        was, now = (onnx_model.dtype_name(v.type.tensor_type.elem_type) for v in (old, new))
        wanted = "float16" if was == "float32" and not options.keep_io else was
        if now != wanted:
            complaints.append(f"{new.name} is {now}, not {wanted}")
    types = onnx_half.types_of(model)
    if onnx.TensorProto.FLOAT16 not in types.values():
        complaints.append("nothing is float16")
    blocked = set(options.block) | (onnx_half.FRAGILE if options.protect else set())
    for node in model.graph.node:
        stays = node.op_type in blocked or node.name in options.block_nodes
        halves = [name for name in node.input if types.get(name) == onnx.TensorProto.FLOAT16]
        if stays and halves and onnx_half.computes(node):
            complaints.append(f"{node.op_type} {node.name} was to stay float32 and takes float16 {halves[0]}")
    weights = {t.name: t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    for node in model.graph.node:
        heavy = node.op_type in onnx_half.HEAVY and node.op_type not in blocked and node.name not in options.block_nodes
        for name in node.input if heavy else ():
            if name in weights and onnx_half.excess(onnx_weights.read(weights[name], artifact.path.parent)) is None:
                complaints.append(f"weight {name} of {node.op_type} {node.name} is still float32")
    return complaints


def _inputs(model: Any) -> list[Any]:
    initializers = {t.name for t in model.graph.initializer}
    return [v for v in model.graph.input if v.name not in initializers]


def _known(options: Fp16Options, nodes: Sequence[Any]) -> None:
    import onnx

    present = {node.op_type for node in nodes}
    for operator in options.block:
        if operator not in present and not onnx.defs.has(operator):
            raise StepError(
                f"there is no operator {operator!r}", hint=did_you_mean(operator, present), subject="with.block"
            )
    names = {node.name for node in nodes if node.name}
    for name in options.block_nodes:
        if name not in names:
            raise StepError(
                f"the model has no node {name!r}",
                hint=did_you_mean(name, names) or "optkit inspect",
                subject="with.block_nodes",
            )


def _listed(counts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{why} ({n})" for why, n in counts.items())
    return f"every node stays float32: {shown}" if shown else "the model has no float32 arithmetic"


PASS = Pass(
    name="onnx.fp16",
    version=1,
    source="onnx",
    target="onnx",
    summary="compute in float16, and in float32 where that is needed",
    run=run,
    confirm=confirm,
    options=Fp16Options,
    fidelity="rounding",
    precision="float16",
    keeps=frozenset({"names", "dims"}),
    tools=("onnx", "onnxruntime"),
    modules=("optkit.formats.warm.onnxruntime",),
    needs_data=lambda options: bool(options.budget),
    budget=lambda options: options.budget,
)
