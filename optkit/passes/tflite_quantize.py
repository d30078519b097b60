"""tflite.quantize: a float TFLite file with smaller weights, or with integer arithmetic, by ai-edge-quantizer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from optkit.artifact import Artifact
from optkit.errors import DataError, StepError, did_you_mean
from optkit.formats import budget, tuning
from optkit.formats.tflite import calibration as tflite_calibration
from optkit.formats.tflite import groups as tflite_groups
from optkit.formats.tflite import look as tflite_look
from optkit.formats.tflite import model as tflite_model
from optkit.formats.tflite import session as tflite_session
from optkit.formats.tflite import smooth as tflite_smooth
from optkit.formats.tflite.model import Contract
from optkit.formats.tflite.noise import captured, quiet
from optkit.plugin import Context, Options, Pass, need

if TYPE_CHECKING:
    from optkit.plugin import Tensors

HEAVY = ("CONV_2D", "CONV_2D_TRANSPOSE", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV")
SCHEMA_NAMES = {"CONV_2D_TRANSPOSE": "TRANSPOSE_CONV"}  # where the quantiser calls an operator otherwise than the file
NOTHING = "nothing was quantised"
WAYS: tuple[tuning.Way, ...] = (
    {"mode": "static"},
    {"mode": "selective"},
    {"mode": "selective", "smooth_quant": 0.5},
)
DYNAMIC_WAYS: tuple[tuning.Way, ...] = (  # convolutions become slower by it
    {"mode": "dynamic", "smooth_quant": 0.5},
    {"mode": "dynamic", "smooth_quant": 0.7},
    {"mode": "dynamic"},
)
STATIC = ("static", "selective", "int16x8")
SMOOTHS = ("dynamic", "selective")  # where the input of a product is float until the product: a range of its own


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
    smooth_quant: float | None = Field(None, ge=0, le=1, description=(
        "first move this share of the outliers in what goes into FULLY_CONNECTED to its weights, by data (dynamic, "
        "selective); try 0.5 to 0.7; exact"))  # fmt: skip
    max_samples: int | None = Field(None, ge=1, description="how many samples to calibrate on; default all")
    budget: tuple[str, ...] = Field((), description=budget.DESCRIPTION)
    tune: bool = Field(False, description=tuning.DESCRIPTION)

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
            (self.smooth_quant is not None and self.mode not in SMOOTHS,
             f"smooth_quant goes with mode: {' and mode: '.join(SMOOTHS)}, which round a product's input where it "
             "is used"),
            (self.tune and not self.budget, tuning.ALONE),
            (not self.learns and self.max_samples is not None, f"mode: {self.mode} takes no samples"),
        ) if holds]  # fmt: skip
        for pattern in self.exclude:
            try:
                re.compile(pattern)
            except re.error as error:
                wrong.append(f"{pattern!r} is no regular expression: {error}")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def learns(self) -> bool:
        """Whether the file depends on the data, apart from a budget."""
        return self.mode in STATIC or self.smooth_quant is not None

    @property
    def excludes(self) -> Callable[[str], bool]:
        """Whether `exclude` matches an operator, by its scope. Compiled here: take it once for many."""
        patterns = [re.compile(pattern) for pattern in self.exclude]
        return lambda scope: any(pattern.search(scope) for pattern in patterns)


def run(artifact: Artifact, out_dir: Path, options: TfliteQuantize, context: Context) -> dict[str, Any]:
    """Quantises the file. Samples are streamed, one batch of the file's smallest size at a time, for each signature.

    Raises DataError where what needs data has none or it lacks an input; StepError for a file that is quantised
    already, a pattern in `exclude` or an operator that matches nothing, where nothing was quantised, and for a budget
    that cannot be held.
    """
    if options.tune:
        model = tflite_model.read(artifact.path)
        agreed = _agreed(artifact, model)
        return tuning.within(
            artifact, out_dir, options, _ways(model), run,
            tflite_session.open_session(artifact.path, agreed, context.threads),
            lambda folder: tflite_session.open_session(folder / tflite_model.MAIN, agreed, context.threads), context,
        )  # fmt: skip
    job, options = _job(artifact, options, context)
    if not options.budget:
        return _quantised(artifact, out_dir, job, options, context)
    wanted = {SCHEMA_NAMES.get(n, n) for n in (options.op_types or HEAVY)}
    groups = tflite_groups.groups(job.model, wanted.__contains__, options.excludes)
    probe = budget.Probe(context, options.budget, tflite_session.open_session(job.path, job.agreed, context.threads))

    def lower(chosen: Sequence[budget.Group], quick: bool) -> Mapping[str, Any]:
        trial = budget.emptied(context)
        try:
            _quantised(artifact, trial, job, _sparing(options, budget.others(groups, chosen)), context)
        except StepError as error:
            if error.what.startswith(NOTHING):  # a group of operators that the mode leaves float anyway
                return probe.measure(tflite_session.open_session(job.path, job.agreed, context.threads), quick)
            raise
        made = tflite_session.open_session(trial / tflite_model.MAIN, job.agreed, context.threads)
        return probe.measure(made, quick)

    kept = budget.keep(groups, probe.bounds, lower, context)
    return {
        **_quantised(artifact, out_dir, job, _sparing(options, budget.members(kept)), context),
        "budget": budget.found(context),
    }


def _ways(model: Any) -> Sequence[tuning.Way]:
    counts = Counter(name for name, _, _ in tflite_look.operations(model))
    products = counts["FULLY_CONNECTED"] + counts["BATCH_MATMUL"]
    return WAYS if sum(counts[name] for name in CONVOLUTIONS) >= products else (*WAYS, *DYNAMIC_WAYS)


def _sparing(options: TfliteQuantize, scopes: Sequence[str]) -> TfliteQuantize:
    """The options with further operators excluded, each by all of its outputs' names."""
    return options.model_copy(update={"exclude": (*options.exclude, *(f"^{re.escape(s)}$" for s in scopes))})


@dataclass
class _Job:
    """A file about to be quantised: its parent, or that with its outliers moved into the weights.

    ranges: by tensor name, with the number of samples they are from; None at first. notes: how much was moved, on how
    many samples.
    """

    path: Path
    model: Any
    agreed: Contract
    notes: Mapping[str, Any] = field(default_factory=dict)
    ranges: tuple[Any, int] | None = None


def _job(artifact: Artifact, options: TfliteQuantize, context: Context) -> tuple[_Job, TfliteQuantize]:
    """The job, and the options with what they exclude excluded in every signature."""
    model = tflite_model.read(artifact.path)
    if options.learns and context.data is None:
        needs = (
            "static quantisation needs data to calibrate on" if options.mode in STATIC else "smooth_quant needs data"
        )
        raise DataError(needs, subject="data", hint="give the step `data:`" + (
            ", or set with.mode: dynamic" if options.mode in STATIC else ""))  # fmt: skip
    if any(tflite_model.is_quantised(t) for graph in model.subgraphs for t in graph.tensors):
        raise StepError("the model is quantised already", subject="from",
                        hint="quantise the float model this one was made from")  # fmt: skip
    _check_patterns(model, options)
    agreed = _agreed(artifact, model)
    options = _sparing(options, tflite_groups.siblings(model, options.excludes))
    job = _Job(artifact.path, model, agreed)
    return job if options.smooth_quant is None else _smoothed(job, options.smooth_quant, options, context), options


def _agreed(artifact: Artifact, model: Any) -> Contract:
    """What the file takes and gives; that of a file from elsewhere by the recipe's names for its dims."""
    known = artifact.signature
    given = Contract(known.inputs, known.outputs) if known else None
    return tflite_model.recorded(model) or given or tflite_model.contract(model)


def _smoothed(job: _Job, alpha: float, options: TfliteQuantize, context: Context) -> _Job:
    """The job with its outliers moved into the weights, as a file in the scratch folder."""
    wanted = not options.op_types or "FULLY_CONNECTED" in options.op_types
    apart = options.excludes
    groups = tflite_smooth.groups(job.model, lambda op, graph: wanted and not apart(tflite_look.scope(op, graph)))
    done = seen = 0
    if groups:
        total = min(len(context.data or ()), options.max_samples or len(context.data or ()))

        def counted() -> Iterator[Tensors]:
            nonlocal seen
            for feed, count in tflite_calibration.samples(job.agreed, options.max_samples, context):
                yield feed
                seen += count
                context.progress(f"smoothing on {seen} of {total} samples", min(seen / max(total, 1), 1.0))

        most = tflite_smooth.peaks(job.path, groups, job.agreed, counted(), context.scratch, context.threads)
        done = tflite_smooth.smooth(job.model, groups, most, alpha)
    if not done:
        raise StepError("there is nothing to smooth: no FULLY_CONNECTED of a computed input and a weight of its own",
                        subject="with.smooth_quant", hint="leave smooth_quant out")  # fmt: skip
    path = context.scratch / "smoothed.tflite"
    tflite_model.write(job.model, path, job.agreed)
    return _Job(path, tflite_model.read(path), job.agreed, {"smoothed": done, "samples": seen})


def _quantised(
    artifact: Artifact, out_dir: Path, job: _Job, options: TfliteQuantize, context: Context
) -> dict[str, Any]:
    """The quantised file in `out_dir`. The ranges are found the first time, and kept in the job."""
    model, agreed = job.model, job.agreed
    with captured() as said, quiet():
        recipe = _recipe(options)
        quantizer = need("ai_edge_quantizer.quantizer", "ai-edge-quantizer").Quantizer(str(job.path))
        quantizer.load_quantization_recipe(recipe.get_quantization_recipe())
        ranges, samples = (None, 0)
        if options.mode in STATIC:
            if job.ranges is None:
                every = _recipe(options.model_copy(update={"exclude": ()})) if options.budget else recipe
                job.ranges = tflite_calibration.ranges(
                    job.path, agreed, every, options.calibration == "moving_average", options.max_samples, context
                )
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
        **job.notes,
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


def confirm(parent: Artifact, artifact: Artifact, options: TfliteQuantize, context: Context) -> list[str]:
    """Re-reads the file: contract as before, the weights of the heavy operators in the type asked for, and so on."""
    options = tuning.settled(options, context)
    if found := budget.found(context):
        options = _sparing(options, found["kept"])
    before, model = tflite_model.read(parent.path), tflite_model.read(artifact.path)
    options = _sparing(options, tflite_groups.siblings(before, options.excludes))
    agreed = tflite_model.contract(before)
    complaints = tflite_look.differences(model, agreed, tflite_session.combinations(agreed))
    if tflite_model.recorded(before) is not None and tflite_model.recorded(model) != agreed:
        complaints.append("the file does not hold its parent's contract")
    wanted = {SCHEMA_NAMES.get(n, n) for n in (options.op_types or HEAVY)}
    held = {"fp16": "float16"}.get(options.mode, "int8")
    activations = {"static": "int8", "selective": "int8", "int16x8": "int16"}.get(options.mode)
    is_apart = options.excludes
    for name, op, graph in tflite_look.operations(model):
        label = f"{name} {tflite_look.scope(op, graph).rstrip(';') or '?'}"
        asked = name in wanted and name in {SCHEMA_NAMES.get(n, n) for n in HEAVY}
        weight = tflite_look.weight(model, op, graph) if asked else None
        if weight is None:
            continue
        apart = is_apart(tflite_look.scope(op, graph))
        dtype = tflite_model.kind_of(weight)
        must = held if not apart else "int8" if options.excluded == "weight_only" else "float32"
        if dtype != must:
            complaints.append(f"the weight of {label} is {dtype}, not {must}" + (": it is excluded" if apart else ""))
        inputs = [graph.tensors[i] for i in op.inputs if i != -1]
        feed = next((t for t in inputs if t is not weight and len(t.shape if t.shape is not None else ()) > 1), None)
        got = tflite_model.kind_of(feed) if feed is not None else activations
        if activations and got != (activations if not apart else "float32"):
            complaints.append(f"the input of {label} is {got}, not {activations if not apart else 'float32'}")
    if options.smooth_quant is not None and not tflite_smooth.count(model):
        complaints.append("no input of a FULLY_CONNECTED is divided by SmoothQuant's scales")
    for taken, given in tflite_model.signatures(model).values():
        said = {spec.name: spec.dtype for spec in (*agreed.inputs, *agreed.outputs)}
        for name, tensor in (*taken.items(), *given.items()):
            dtype, must = tflite_model.dtype_of(tensor, name), "int8" if options.io == "int8" else "float32"
            if said.get(name) == "float32" and dtype != must:
                complaints.append(f"{name!r} is {dtype} in the file, not {must}")
    return complaints


PASS = Pass(
    name="tflite.quantize",
    version=2,
    source="tflite",
    target="tflite",
    summary="Quantise a TFLite file: float16 or int8 weights, or integer arithmetic fitted on data",
    run=run,
    confirm=confirm,
    options=TfliteQuantize,
    fidelity="lossy",
    tools=("ai-edge-quantizer", "ai-edge-litert"),
    modules=("optkit.formats.warm.tflite", "optkit.formats.warm.ai_edge_quantizer"),
    needs_data=lambda options: options.learns or bool(options.budget),
    budget=lambda options: options.budget,
    timeout_seconds=7200.0,
)
