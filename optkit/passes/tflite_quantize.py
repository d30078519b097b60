"""tflite.quantize: a float TFLite file with smaller weights, or with integer arithmetic, by ai-edge-quantizer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from optkit.artifact import Artifact, TensorSpec
from optkit.errors import DataError, StepError, did_you_mean
from optkit.formats import budget, tflite_look, tflite_model, tflite_session
from optkit.formats.tflite_model import Contract
from optkit.formats.tflite_noise import captured, quiet
from optkit.plugin import Context, Options, Pass, need

if TYPE_CHECKING:
    from optkit.plugin import Tensors

HEAVY = ("CONV_2D", "CONV_2D_TRANSPOSE", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
SCHEMA_NAMES = {"CONV_2D_TRANSPOSE": "TRANSPOSE_CONV"}  # where the quantiser calls an operator otherwise than the file
NOTHING = "nothing was quantised"
STATIC = ("static", "selective", "int16x8")


class TfliteQuantize(Options):
    mode: Literal["fp16", "dynamic", "weight_only", "static", "selective", "int16x8"] = Field(
        "selective",
        description="fp16: weights in float16. dynamic: int8 weights, activations quantised in each call. weight_only: "
        "int8 weights, float arithmetic. static: all that has an int8 kernel, ranges from data, for microcontrollers "
        f"and Edge TPU. selective: static for {', '.join(HEAVY)} alone, which transformers need and CPUs run fastest, "
        "embeddings weight_only. int16x8: static with int16 activations: precise and slow",
    )
    io: Literal["float", "int8"] = Field(
        "float", description="int8: the file takes and gives int8, with a scale; for mode: static alone"
    )
    calibration: Literal["minmax", "moving_average"] | None = Field(
        None, description="how a range follows from the data (static); minmax unless given"
    )
    op_types: tuple[str, ...] = Field((), description="operators to quantise, such as FULLY_CONNECTED; unless given all"
                                                      ", or those of mode: selective")  # fmt: skip
    exclude: tuple[str, ...] = Field(
        (), description="regular expressions: an operator whose output tensor's name matches one stays float"
    )
    excluded: Literal["float", "weight_only"] = Field(
        "float",
        description="what excluded operators, and those that a budget keeps, become; weight_only: int8 weights, "
        "float arithmetic",
    )
    embeddings: bool = Field(True, description="with mode: selective, tables of EMBEDDING_LOOKUP in int8, weights only")
    max_samples: int | None = Field(None, ge=1, description="how many samples to calibrate on; default all")
    budget: tuple[str, ...] = Field((), description=budget.DESCRIPTION)

    @model_validator(mode="after")
    def _consistent(self) -> TfliteQuantize:
        wrong = [text for holds, text in (
            (self.io == "int8" and self.mode != "static", "io: int8 goes with mode: static"),
            (self.io == "int8" and bool(self.op_types), "io: int8 quantises everything: leave out op_types"),
            (self.mode not in STATIC and self.calibration is not None, f"mode: {self.mode} does not calibrate"),
            (self.excluded != "float" and not (self.exclude or self.budget),
             "excluded needs exclude, with patterns, or a budget"),
            (self.excluded != "float" and self.mode in ("fp16", "weight_only"),
             f"mode: {self.mode} leaves excluded operators float"),
            (self.io == "int8" and bool(self.budget), "io: int8 quantises everything: leave out budget"),
            (self.mode not in STATIC and self.max_samples is not None, f"mode: {self.mode} takes no samples"),
        ) if holds]  # fmt: skip
        for pattern in self.exclude:
            try:
                re.compile(pattern)
            except re.error as error:
                wrong.append(f"{pattern!r} is no regular expression: {error}")
        if wrong:
            raise ValueError("; ".join(wrong))
        budget.stated(self.budget)
        return self


def run(artifact: Artifact, out_dir: Path, options: TfliteQuantize, context: Context) -> dict[str, Any]:
    """Quantises the file. Samples are streamed, one batch of the file's smallest size at a time, for each signature.

    Raises DataError where static quantisation has no data or it lacks an input; StepError for a file that is quantised
    already, a pattern in `exclude` or an operator that matches nothing, where nothing was quantised, and for a budget
    that cannot be held.
    """
    job = _job(artifact, options, context)
    if not options.budget:
        return _quantised(artifact, out_dir, job, options, context)
    wanted = {SCHEMA_NAMES.get(n, n) for n in (options.op_types or HEAVY)}
    scopes = [(tflite_look.scope(op, graph), name, op.inputs) for name, op, graph in tflite_look.operations(job.model)]
    free = [one for one in scopes if one[0] and not any(re.search(pattern, one[0]) for pattern in options.exclude)]
    groups = budget.grouped([(scope, name in wanted, str(inputs[:1])) for scope, name, inputs in free])
    probe = budget.Probe(context, tflite_session.open_session(artifact.path, job.agreed, context.threads))

    def lower(chosen: Sequence[budget.Group], quick: bool) -> Mapping[str, Any]:
        trial = budget.emptied(context)
        try:
            _quantised(artifact, trial, job, _sparing(options, budget.others(groups, chosen)), context)
        except StepError as error:
            if error.what.startswith(NOTHING):  # a group of operators that the mode leaves float anyway
                return probe.measure(tflite_session.open_session(artifact.path, job.agreed, context.threads))
            raise
        return probe.measure(tflite_session.open_session(trial / tflite_model.MAIN, job.agreed, context.threads))

    kept = budget.keep(groups, budget.stated(options.budget), lower, context)
    return {
        **_quantised(artifact, out_dir, job, _sparing(options, budget.members(kept)), context),
        "budget": budget.found(context),
    }


def _sparing(options: TfliteQuantize, scopes: Sequence[str]) -> TfliteQuantize:
    """The options with further operators excluded, each by all of its outputs' names."""
    return options.model_copy(update={"exclude": (*options.exclude, *(f"^{re.escape(s)}$" for s in scopes))})


@dataclass
class _Job:
    """A file about to be quantised. ranges: by tensor name, with the number of samples they are from; None at first."""

    model: Any
    agreed: Contract
    ranges: tuple[Any, int] | None = None


def _job(artifact: Artifact, options: TfliteQuantize, context: Context) -> _Job:
    model = tflite_model.read(artifact.path)
    if options.mode in STATIC and context.data is None:
        raise DataError("static quantisation needs data to calibrate on", subject="data",
                        hint="give the step `data:`, or set with.mode: dynamic")  # fmt: skip
    if any(tflite_model.is_quantised(t) for graph in model.subgraphs for t in graph.tensors):
        raise StepError("the model is quantised already", subject="from",
                        hint="quantise the float model this one was made from")  # fmt: skip
    _check_patterns(model, options)
    agreed = tflite_model.recorded(model)
    if agreed is None:  # a file from elsewhere: the recipe's names for its dims
        known = artifact.signature
        agreed = Contract(known.inputs, known.outputs) if known else tflite_model.contract(model)
    return _Job(model, agreed)


def _quantised(
    artifact: Artifact, out_dir: Path, job: _Job, options: TfliteQuantize, context: Context
) -> dict[str, Any]:
    """The quantised file in `out_dir`. The ranges are found the first time, and kept in the job."""
    model, agreed = job.model, job.agreed
    with captured() as said, quiet():
        recipe = _recipe(options)
        quantizer = need("ai_edge_quantizer.quantizer", "ai-edge-quantizer").Quantizer(str(artifact.path))
        quantizer.load_quantization_recipe(recipe.get_quantization_recipe())
        ranges, samples = (None, 0)
        if options.mode in STATIC:
            if job.ranges is None:
                job.ranges = _calibrated(artifact, agreed, _recipe(options.model_copy(update={"exclude": ()}))
                                         if options.budget else recipe, options, context)  # fmt: skip
            ranges, samples = job.ranges
        context.progress("quantise", None)
        try:
            made = quantizer.quantize(ranges, enable_progress_report=False, enable_progress_bar=False)
        except (ValueError, RuntimeError, NotImplementedError, KeyError, IndexError) as error:
            raise StepError(
                f"ai-edge-quantizer failed: {_first(error)}",
                subject="with.mode",
                details=f"{error}\n{said()}",
                hint="another mode, or fewer op_types",
            ) from error
    raw = context.scratch / "quantised.tflite"
    raw.write_bytes(made.quantized_model)
    written = tflite_model.read(raw)
    counts = tflite_look.counts(written)
    if not counts["weights"] and not counts["activations"]:
        raise StepError(f"{NOTHING}: no operator of the model fits", subject="with.mode",
                        hint=f"the model has {tflite_look.shown(model)}")  # fmt: skip
    tflite_model.write(written, out_dir / tflite_model.MAIN, agreed)
    raw.unlink()
    before, after = artifact.path.stat().st_size, (out_dir / tflite_model.MAIN).stat().st_size
    held = tflite_look.inspect(out_dir / tflite_model.MAIN)
    return {
        "samples": samples,
        "quantised": dict(counts),
        "left_float": dict(sorted(tflite_look.left_float(written).items())),
        "file": held["signatures"],
        "precision": held["precision"],
        "size_bytes": after,
        "size_ratio": round(after / before, 4),
    }


def _first(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


# ------------------------------------------------------------------------------------------------ what to quantise


def _recipe(options: TfliteQuantize) -> Any:
    """The `RecipeManager` of a mode: later rules win."""
    need("ai_edge_quantizer", "ai-edge-quantizer")
    from ai_edge_quantizer import algorithm_manager, qtyping, recipe_manager

    ops, none = qtyping.TFLOperationName, algorithm_manager.AlgorithmName.NO_QUANTIZE
    recipe = recipe_manager.RecipeManager()
    named = options.op_types or (HEAVY if options.mode == "selective" else ("*",))
    for kind in (ops(name) for name in named):
        if options.mode == "fp16":
            half = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
            config = qtyping.OpQuantizationConfig(weight_tensor_config=half, explicit_dequantize=True,
                                                  compute_precision=qtyping.ComputePrecision.FLOAT)  # fmt: skip
            recipe.add_quantization_config(".*", kind, config, algorithm_manager.AlgorithmName.FLOAT_CASTING)
        elif options.mode == "dynamic":
            recipe.add_dynamic_config(".*", kind, 8)
        elif options.mode == "weight_only":
            recipe.add_weight_only_config(".*", kind, 8)
        else:
            recipe.add_static_config(".*", kind, 16 if options.mode == "int16x8" else 8, 8)
    if options.mode == "selective" and options.embeddings and ops.EMBEDDING_LOOKUP.value not in named:
        recipe.add_weight_only_config(".*", ops.EMBEDDING_LOOKUP, 8)
    if options.mode in ("static", "int16x8") and options.io == "float" and not options.op_types:
        for end in (ops.INPUT, ops.OUTPUT):
            recipe.add_quantization_config(".*", end, algorithm_key=none)
    for pattern in options.exclude:
        recipe.add_quantization_config(pattern, ops.ALL_SUPPORTED, algorithm_key=none)
        for name in HEAVY if options.excluded == "weight_only" else ():
            recipe.add_weight_only_config(pattern, ops(name), 8)
    return recipe


def _check_patterns(model: Any, options: TfliteQuantize) -> None:
    present = Counter(name for name, _, _ in tflite_look.operations(model))
    need("ai_edge_quantizer", "ai-edge-quantizer")
    from ai_edge_quantizer import qtyping

    known = {op.value for op in qtyping.TFLOperationName} - {"*", "INPUT", "OUTPUT"}
    for name in options.op_types:
        if name not in known:
            raise StepError(f"ai-edge-quantizer knows no operator {name!r}", subject="with.op_types",
                            hint=did_you_mean(name, known))  # fmt: skip
        if not present[SCHEMA_NAMES.get(name, name)]:
            raise StepError(
                f"the model has no {name}", subject="with.op_types", hint=f"it has {tflite_look.shown(model)}"
            )
    scopes = [tflite_look.scope(op, graph) for _, op, graph in tflite_look.operations(model)]
    for pattern in options.exclude:
        if not any(re.search(pattern, scope) for scope in scopes):
            raise StepError(f"no operator matches {pattern!r}", subject="with.exclude",
                            hint=did_you_mean(pattern, scopes))  # fmt: skip


# ------------------------------------------------------------------------------------------------ calibration


def _calibrated(
    artifact: Artifact, agreed: Contract, recipe: Any, options: TfliteQuantize, context: Context
) -> tuple[Any, int]:
    """Ranges by tensor name, and the number of samples they are from. Each signature sees all samples."""
    need("ai_edge_quantizer.calibrator", "ai-edge-quantizer")
    from ai_edge_quantizer import calibrator
    from ai_edge_quantizer.utils import qsv_utils

    update = qsv_utils.moving_average_update if options.calibration == "moving_average" else qsv_utils.min_max_update
    session = tflite_session.TfliteSession(artifact.path, agreed, context.threads)
    fitted = calibrator.Calibrator(str(artifact.path), num_threads=context.threads, qsv_update_func=update)
    data = context.data
    assert data is not None
    total = min(len(data), options.max_samples or len(data))
    every = tflite_session.combinations(agreed)
    seen = 0
    for number, sizes in enumerate(every):
        seen = 0
        for feed, count in _feeds(agreed, sizes, session, options, context):
            fitted.calibrate({agreed.key(sizes) if sizes else session.key: [feed]}, recipe)
            seen += count
            done = (number + seen / max(total, 1)) / len(every)
            context.progress(f"calibrating on {seen} of {total} samples", min(done, 1.0))
        if not seen:
            raise DataError("the calibration data has no samples", subject="data", hint="name a dataset with samples")
    ranges = fitted.get_model_qsvs()
    for name, found in ranges.items():
        _check_finite(name, found)
    return ranges, seen


def _check_finite(name: str, found: Mapping[str, Any]) -> None:
    import numpy as np

    for end in ("min", "max"):
        if end in found and not np.isfinite(found[end]).all():
            raise StepError(f"tensor {name!r} becomes NaN or infinite on the calibration data", subject="data",
                            hint="look for the sample that does it, or exclude the operator")  # fmt: skip


def _feeds(
    agreed: Contract,
    sizes: Mapping[str, int],
    session: tflite_session.TfliteSession,
    options: TfliteQuantize,
    context: Context,
) -> Iterator[tuple[Tensors, int]]:
    """Feeds of one signature as the file takes them, and the real samples in each.

    One sample at a time where the batch resizes: padding would count as data. A fixed batch is filled up with its last
    sample, a fixed length with the zeros that a session pads with.
    """
    data = context.data
    assert data is not None
    first = next((spec.shape[0] for spec in agreed.inputs if spec.shape), 1)
    held = first if isinstance(first, int) else sizes.get(first)
    least = context.dims[first].min if isinstance(first, str) and first in context.dims else 1
    batch = held or least
    left = min(len(data), options.max_samples or len(data))
    for feed in data.feeds(batch):
        tensors = {spec.name: _picked(feed, spec) for spec in agreed.inputs}
        have = len(next(iter(tensors.values())))
        if any(n > sizes[d] for spec in agreed.inputs for d, n in zip(spec.shape or (), tensors[spec.name].shape,
               strict=False) if d in agreed.padded and d in sizes):  # fmt: skip
            continue  # longer than this signature: the next one sees it
        yield session.fitted(tensors, sizes, rows=held), min(have, left)
        left -= have
        if left <= 0:
            return


def _picked(feed: Mapping[str, Any], spec: TensorSpec) -> Any:
    if spec.name not in feed:
        raise DataError(f"the calibration data has no {spec.name!r}", subject="data",
                        hint=did_you_mean(spec.name, feed))  # fmt: skip
    return feed[spec.name]


def confirm(parent: Artifact, artifact: Artifact, options: TfliteQuantize, context: Context) -> list[str]:
    """Re-reads the file: contract as before, the weights of the heavy operators in the type asked for, and so on."""
    if found := budget.found(context):
        options = _sparing(options, found["kept"])
    before, model = tflite_model.read(parent.path), tflite_model.read(artifact.path)
    agreed = tflite_model.contract(before)
    complaints = tflite_look.differences(model, agreed, tflite_session.combinations(agreed))
    if tflite_model.recorded(before) is not None and tflite_model.recorded(model) != agreed:
        complaints.append("the file does not hold its parent's contract")
    excluded = [re.compile(pattern) for pattern in options.exclude]
    wanted = {SCHEMA_NAMES.get(n, n) for n in (options.op_types or HEAVY)}
    held = {"fp16": "float16"}.get(options.mode, "int8")
    activations = {"static": "int8", "selective": "int8", "int16x8": "int16"}.get(options.mode)
    for name, op, graph in tflite_look.operations(model):
        label = f"{name} {tflite_look.scope(op, graph).rstrip(';') or '?'}"
        asked = name in wanted and name in {SCHEMA_NAMES.get(n, n) for n in HEAVY}
        weight = tflite_look.weight(model, op, graph) if asked else None
        if weight is None:
            continue
        apart = any(pattern.search(tflite_look.scope(op, graph)) for pattern in excluded)
        dtype = tflite_model.kind_of(weight)
        must = held if not apart else "int8" if options.excluded == "weight_only" else "float32"
        if dtype != must:
            complaints.append(f"the weight of {label} is {dtype}, not {must}" + (": it is excluded" if apart else ""))
        inputs = [graph.tensors[i] for i in op.inputs if i != -1]
        feed = next((t for t in inputs if t is not weight and len(t.shape if t.shape is not None else ()) > 1), None)
        got = tflite_model.kind_of(feed) if feed is not None else activations
        if activations and got != (activations if not apart else "float32"):
            complaints.append(f"the input of {label} is {got}, not {activations if not apart else 'float32'}")
    for taken, given in tflite_model.signatures(model).values():
        said = {spec.name: spec.dtype for spec in (*agreed.inputs, *agreed.outputs)}
        for name, tensor in (*taken.items(), *given.items()):
            dtype, must = tflite_model.dtype_of(tensor, name), "int8" if options.io == "int8" else "float32"
            if said.get(name) == "float32" and dtype != must:
                complaints.append(f"{name!r} is {dtype} in the file, not {must}")
    return complaints


PASS = Pass(
    name="tflite.quantize",
    version=1,
    source="tflite",
    target="tflite",
    summary="Quantise a TFLite file: float16 or int8 weights, or integer arithmetic fitted on data",
    run=run,
    confirm=confirm,
    options=TfliteQuantize,
    fidelity="lossy",
    tools=("ai-edge-quantizer", "ai-edge-litert"),
    modules=("optkit.formats.warm_tflite", "optkit.formats.warm_ai_edge_quantizer"),
    needs_data=lambda options: options.mode in STATIC or bool(options.budget),
    timeout_seconds=7200.0,
)
