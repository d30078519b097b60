"""onnx.quantize: 8-bit integers in an ONNX graph, with ranges from data (static) or found while it runs (dynamic)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from optkit.artifact import Artifact
from optkit.errors import DataError, StepError, did_you_mean
from optkit.formats import (
    budget,
    onnx_feeds,
    onnx_integer,
    onnx_model,
    onnx_qdq,
    onnx_ranges,
    onnx_session,
    onnx_types,
    onnx_weights,
)
from optkit.plugin import Context, Options, Pass, need

if TYPE_CHECKING:
    from optkit.plugin import Tensors

_STATIC = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_BETWEEN = ("Add", "AveragePool", "Clip", "Concat", "Flatten", "GlobalAveragePool", "MaxPool", "Relu", "Reshape",
            "Squeeze", "Unsqueeze")  # fmt: skip
_DYNAMIC = ("Gemm", "MatMul")
_BATCH, _HELD = 16, 4  # samples in one feed of a calibration: where its activations stay in the graph, and are held


class QuantizeOptions(Options):
    """What is quantised, and how."""

    method: Literal["static", "dynamic"] = Field(
        "static", description="static: ranges of activations from data; dynamic: found in each call, without data"
    )
    target: Literal["onnxruntime", "tensorrt"] = Field(
        "onnxruntime", alias="for", description="whose kernels: tensorrt takes symmetric int8 alone, bias in float"
    )
    calibration: Literal["minmax", "entropy", "percentile"] | None = Field(
        None, description="how a range follows from the data (static); minmax unless given"
    )
    percentile: float | None = Field(
        None, gt=50, le=100, description="percent of the values inside the range, with calibration: percentile; 99.99 "
                                         "unless given")  # fmt: skip
    per_channel: bool = Field(True, description="a scale for each output channel of a weight, not one for all")
    activation_type: Literal["int8", "uint8"] | None = Field(
        None, description="static; unless given uint8 for onnxruntime, int8 for tensorrt"
    )
    weight_type: Literal["int8", "uint8"] = Field("int8", description="integer type of weights")
    symmetric: bool | None = Field(
        None, description="ranges of activations symmetric around 0 (static); unless given only for tensorrt"
    )
    op_types: tuple[str, ...] = Field((), description=(
        f"operators to quantise. Unless given: {', '.join(_STATIC)}, and with onnxruntime's convolutional models what "
        f"lies between them ({', '.join(_BETWEEN)}); dynamic: {', '.join(_DYNAMIC)}, and Gather for tables on request. "
        "Products of two activations stay float"))  # fmt: skip
    exclude: tuple[str, ...] = Field((), description="names of nodes that stay float; * stands for anything")
    reduce_range: bool = Field(False, description="7-bit weights, for x86 processors without VNNI, whose 8-bit "
                                                  "products saturate")  # fmt: skip
    budget: tuple[str, ...] = Field((), description=budget.DESCRIPTION)

    @model_validator(mode="after")
    def _consistent(self) -> QuantizeOptions:
        wrong = [text for holds, text in (
            (self.percentile is not None and self.calibration != "percentile",
             "percentile goes with calibration: percentile"),
            (self.method == "dynamic" and self.calibration is not None, "dynamic quantisation does not calibrate"),
            (self.method == "dynamic" and self.symmetric, "dynamic quantisation has asymmetric activations"),
            (self.method == "dynamic" and self.activation_type == "int8", "dynamic activations are uint8"),
            (self.method == "dynamic" and not set(self.op_types) <= {*_DYNAMIC, "Gather"},
             f"dynamic quantisation takes {', '.join(_DYNAMIC)} and Gather: convolutions become slower by it"),
            (self.target == "tensorrt" and self.method == "dynamic", "tensorrt takes static quantisation alone"),
            (self.target == "tensorrt" and "uint8" in (self.activation_type, self.weight_type),
             "tensorrt takes int8 alone, not uint8"),
            (self.target == "tensorrt" and self.symmetric is False, "tensorrt takes symmetric ranges alone"),
            (self.target == "tensorrt" and self.reduce_range, "reduce_range is for x86 processors, not tensorrt"),
        ) if holds]  # fmt: skip
        if wrong:
            raise ValueError("; ".join(wrong))
        budget.stated(self.budget)
        return self

    @property
    def activations(self) -> Literal["int8", "uint8"]:
        """The integer type of activations."""
        return self.activation_type or ("int8" if self.target == "tensorrt" else "uint8")

    @property
    def scheme(self) -> onnx_integer.Scheme:
        """How weights are quantised."""
        return onnx_integer.Scheme(self.weight_type, self.per_channel, self.reduce_range)


def run(artifact: Artifact, out_dir: Path, options: QuantizeOptions, context: Context) -> dict[str, Any]:
    """Quantise a model. Weights are read and written one at a time, calibration samples a batch at a time.

    Raises DataError where static quantisation has no data or it lacks an input; StepError where a name in `exclude`
    matches no node, a tensor becomes NaN on the data, nothing in the model can be quantised, or the budget cannot be
    held.
    """
    need("onnx")
    if options.budget:
        return _within_budget(artifact, out_dir, options, context)
    return _quantised(artifact, out_dir, options, context)


def _within_budget(artifact: Artifact, out_dir: Path, options: QuantizeOptions, context: Context) -> dict[str, Any]:
    """The model with as few nodes left float as the budget allows. The ranges are found once, for all trials."""
    job = _job(artifact, options, context)
    ranges = _ranges(artifact, job, options, context) if job.static else None
    heavy = (*_DYNAMIC, *_STATIC)
    groups = budget.grouped([(n.name, n.op_type in heavy, n.input[0]) for n in job.targets])
    probe = budget.Probe(context, onnx_session.opened(artifact.path, context.threads))

    def lower(chosen: Sequence[budget.Group], quick: bool) -> Mapping[str, Any]:
        trial = budget.emptied(context)
        _quantised(artifact, trial, _sparing(options, budget.others(groups, chosen)), context, ranges)
        return probe.measure(onnx_session.opened(trial / onnx_model.MAIN, context.threads))

    kept = budget.keep(groups, budget.stated(options.budget), lower, context)
    return {
        **_quantised(artifact, out_dir, _sparing(options, budget.members(kept)), context, ranges),
        "budget": budget.found(context),
    }


def _sparing(options: QuantizeOptions, nodes: Sequence[str]) -> QuantizeOptions:
    """The options with further nodes left float."""
    return options.model_copy(update={"exclude": (*options.exclude, *nodes)})


@dataclass
class _Job:
    """A model about to be quantised; `static` is None where ranges are found at run time."""

    rewrite: onnx_integer.Rewrite
    targets: Sequence[Any]
    types: Mapping[str, int]
    op_types: tuple[str, ...]
    excluded: set[str]
    static: onnx_qdq.Static | None


def _job(artifact: Artifact, options: QuantizeOptions, context: Context) -> _Job:
    if options.method == "static" and context.data is None:
        raise DataError("static quantisation needs data to calibrate on", subject="data",
                        hint="give the step `data:`, or set with.method: dynamic")  # fmt: skip
    model = onnx_integer.prepare(onnx_model.load(artifact.path, weights=False))
    already = onnx_model.count_operators(model)
    if any(already[name] for name in _INSERTED):
        raise StepError("the model is quantised already", hint="quantise the float model this one was made from",
                        subject="from")  # fmt: skip
    op_types, excluded = _op_types(model, options), onnx_integer.matching(model, options.exclude)
    targets = [
        n for n in model.graph.node if n.op_type in op_types and n.domain in ("", "ai.onnx") and n.name not in excluded
    ]
    rewrite = onnx_integer.Rewrite(model, artifact.path.parent, options.scheme)
    types = onnx_types.value_types(model.graph, onnx_types.opsets(model))
    if options.method == "dynamic":
        _needs_opset(model, 11)
        fit = [n for n in targets if not onnx_integer.unfit(rewrite, n, types)] if options.budget else targets
        return _Job(rewrite, fit, types, op_types, excluded, None)
    halves = any(types.get(name) == onnx_integer.FLOAT16 for node in targets for name in node.input)
    _needs_opset(model, 19 if halves else 13)
    symmetric = options.target == "tensorrt" if options.symmetric is None else options.symmetric
    static = onnx_qdq.Static(rewrite, targets, types, options.activations, symmetric, options.target == "tensorrt")
    return _Job(rewrite, static.targets, types, op_types, excluded, static)


def _quantised(
    artifact: Artifact, out_dir: Path, options: QuantizeOptions, context: Context, known: _Ranges | None = None
) -> dict[str, Any]:
    """The quantised model in `out_dir`; known: ranges found before, of more tensors than are needed here."""
    job = _job(artifact, options, context)
    model, rewrite, op_types = job.rewrite.model, job.rewrite, job.op_types
    inner = sum(n.op_type in op_types for n in onnx_model.all_nodes(model.graph))
    notes: dict[str, Any] = {
        "op_types": list(op_types),
        "excluded": sorted(job.excluded),
        "left_in_subgraphs": inner - sum(n.op_type in op_types for n in model.graph.node),
    }
    if job.static is None:
        context.progress("quantising weights", None)
        notes["left_float"] = dict(onnx_integer.quantise_dynamically(rewrite, job.targets, job.types))
    else:
        static = job.static
        wanted = static.activations()
        found = known or (_ranges(artifact, job, options, context) if wanted else _Ranges({}, 0))
        notes |= {"samples": found.samples, "left_float": dict(static.left)}
        if wanted:
            context.progress("quantising weights", None)
            notes["messages"] = static.insert({name: found.values[name] for name in wanted}, op_types)
    counts = onnx_model.count_operators(model)
    if not any(counts[name] for name in _INSERTED):
        raise StepError(f"nothing was quantised: no {' or '.join(op_types)} fits"
                        + (" outside of with.exclude" if job.excluded else ""), subject="with.op_types",
                        hint=f"the model has {onnx_integer.shown(model)}")  # fmt: skip
    onnx_model.save(model, out_dir, source=artifact.path.parent, payloads=rewrite.payloads)
    return {**notes, "inserted": {name: counts[name] for name in _INSERTED if counts[name]}}


def confirm(parent: Artifact, artifact: Artifact, options: QuantizeOptions, context: Context) -> list[str]:
    """Whether the integers that were asked for are in the file, and excluded nodes are as they were."""
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
    heavy = set(_op_types(before, options)) & set(_STATIC) if options.method == "static" else set()
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


_INSERTED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger")


@dataclass(frozen=True)
class _Ranges:
    """The range of each tensor, and the number of samples it is from."""

    values: onnx_ranges.Ranges
    samples: int


def _ranges(artifact: Artifact, job: _Job, options: QuantizeOptions, context: Context) -> _Ranges:
    """The range of every activation that is to be quantised, in one pass over the data."""
    assert job.static is not None
    data = context.data
    assert data is not None
    seen = 0
    most = _HELD if options.calibration in ("entropy", "percentile") else _BATCH
    feeds = onnx_feeds.calibration_feeds(artifact, data, context, most)

    def counted() -> Iterator[Tensors]:
        nonlocal seen
        for feed, count in feeds:
            yield feed
            seen += count
            context.progress(f"calibrating on {seen} of {len(data)} samples", min(seen / max(len(data), 1), 1.0))

    values = onnx_ranges.ranges(
        job.rewrite.model, artifact.path.parent, job.static.activations(), counted(), options.calibration or "minmax",
        percentile=options.percentile or 99.99, threads=context.threads,
    )  # fmt: skip
    if not seen:
        raise DataError("the calibration data has no samples", subject="data", hint="name a dataset that is not empty")
    return _Ranges(values, seen)


def _op_types(model: Any, options: QuantizeOptions) -> tuple[str, ...]:
    import onnx

    for name in options.op_types:
        if not onnx.defs.has(name):
            known = {node.op_type for node in model.graph.node}
            raise StepError(f"there is no operator {name!r}", hint=did_you_mean(name, known), subject="with.op_types")
    if options.op_types:
        return tuple(sorted(set(options.op_types)))
    if options.method == "dynamic":
        return _DYNAMIC
    counts = Counter(node.op_type for node in model.graph.node)
    convolutional = counts["Conv"] + counts["ConvTranspose"] >= counts["MatMul"] + counts["Gemm"]
    return _STATIC + _BETWEEN if convolutional and options.target == "onnxruntime" else _STATIC


def _needs_opset(model: Any, version: int) -> None:
    if onnx_model.opset(model) < version:
        raise StepError(f"the model has opset {onnx_model.opset(model)}; its quantisation needs {version}",
                        hint=f"export it at opset {version} or newer")  # fmt: skip


PASS = Pass(
    name="onnx.quantize",
    version=1,
    source="onnx",
    target="onnx",
    summary="8-bit integers, with ranges from data or found at run time",
    run=run,
    confirm=confirm,
    options=QuantizeOptions,
    fidelity="lossy",
    tools=("onnx", "onnxruntime"),
    modules=("optkit.formats.warm_onnxruntime", "optkit.formats.warm_quantization"),
    needs_data=lambda options: bool(options.method == "static" or options.budget),
    timed=lambda options: bool(options.target == "onnxruntime"),
)
