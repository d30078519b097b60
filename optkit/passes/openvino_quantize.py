"""openvino.quantize: static int8 of an IR by NNCF, weights and activations, fitted on the step's data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from optkit.artifact import Artifact
from optkit.errors import StepError
from optkit.formats import budget, tuning
from optkit.formats.openvino import ir as openvino_ir
from optkit.formats.openvino import model as openvino_model
from optkit.formats.openvino import trial as openvino_trial
from optkit.formats.openvino.nncf import HELD, Ignored, Session, counts, nncf_session
from optkit.plugin import Context, Options, Pass

HEAVY = ("Convolution", "ConvolutionBackpropData", "GroupConvolution", "GroupConvolutionBackpropData", "LSTMSequence",
         "MatMul")  # fmt: skip
FREE = ("Constant", "Parameter", "Result")
QUICK = 16  # samples of a trial that only ranks
ATTENTION = ("ScaledDotProductAttention", "Softmax")
WAYS: tuple[tuning.Way, ...] = (
    {},
    {"range_estimator": "minmax"},
    {"preset": "mixed", "range_estimator": "histogram"},
    {"fast_bias_correction": False},
    {"fast_bias_correction": False, "range_estimator": "minmax"},
)
TRANSFORMER_WAYS: tuple[tuning.Way, ...] = (
    {"model_type": "transformer"},
    {"model_type": "transformer", "smooth_quant_alpha": 0.7},
    {"model_type": "transformer", "smooth_quant_alpha": 0.7, "range_estimator": "minmax"},
    {"model_type": "transformer", "smooth_quant_alpha": 0.5, "range_estimator": "minmax"},
)
NOTHING = "NNCF quantised nothing"
CAP = 300  # NNCF's own default: its range estimators settle well before
ESTIMATORS = {
    "minmax": "MINMAX",
    "mean_minmax": "MEAN_MINMAX",
    "median_minmax": "MEDIAN_MINMAX",
    "mean_no_outliers": "MEAN_NO_OUTLIERS_MINMAX",
    "quantile": "MEAN_QUANTILE",
    "histogram": "HISTOGRAM",
}


class OpenVinoQuantize(Options):
    preset: Literal["performance", "mixed"] | None = Field(
        None,
        description="performance: weights and activations symmetric; mixed: activations asymmetric, for activations "
        "that are not ReLU's. Default: mixed for a transformer, else performance",
    )
    model_type: Literal["transformer"] | None = Field(
        None, description="transformer: keep what attention is sensitive to in float, and apply SmoothQuant"
    )
    smooth_quant: bool | None = Field(
        None, description="move outliers from activations into weights; default: for a transformer only, as NNCF has it"
    )
    smooth_quant_alpha: float | None = Field(
        None, ge=0, le=1, description="share of the outliers moved into the weights of MatMul; default 0.95"
    )
    fast_bias_correction: bool = Field(
        True,
        description="correct each layer's bias from its input's mean; false: layer by layer on the quantised model, on "
        f"a fifth of the samples and at most {HELD}, which are then held in memory: slower and sometimes better",
    )
    subset_size: int | None = Field(
        None, ge=1, description=f"how many samples to fit on; default all of the dataset, at most {CAP}"
    )
    ignored: Ignored = Field(default_factory=Ignored, description="operators to leave in floating point")
    range_estimator: (
        Literal["minmax", "mean_minmax", "median_minmax", "mean_no_outliers", "quantile", "histogram"] | None
    ) = Field(
        None,
        description="how the range of activations is found; default mean_minmax, and minmax per channel. histogram: "
        "with the least squared error, but minmax for activations quantised per channel (depthwise convolutions)",
    )
    target_device: Literal["any", "cpu", "gpu", "npu"] = Field("any", description="whose int8 rules to follow")
    budget: tuple[str, ...] = Field((), description=budget.DESCRIPTION)
    tune: bool = Field(False, description=tuning.DESCRIPTION)

    def model_post_init(self, context: Any, /) -> None:
        """Raises ValueError for SmoothQuant where NNCF would not apply it."""
        asked = self.smooth_quant or self.smooth_quant_alpha is not None
        if asked and self.model_type != "transformer":
            raise ValueError("smooth_quant needs model_type: transformer")
        if self.smooth_quant is False and self.smooth_quant_alpha is not None:
            raise ValueError("smooth_quant_alpha is given, but smooth_quant is false")
        if self.tune and not self.budget:
            raise ValueError(tuning.ALONE)

    @property
    def smooths(self) -> bool:
        return self.model_type == "transformer" and self.smooth_quant is not False


def run(artifact: Artifact, out_dir: Path, options: OpenVinoQuantize, context: Context) -> dict[str, Any]:
    """Samples are streamed once per phase (twice with SmoothQuant), each at batch 1 and its natural length.

    Raises DataError for too few or wrongly named samples; StepError for an ignored entry that matches nothing, for a
    model that is quantised already or in which nothing was quantised, for a budget that cannot be held, and for
    whatever NNCF refuses.
    """
    openvino_ir.require_float(artifact.path)
    if options.tune:
        return tuning.within(
            artifact, out_dir, options, _ways(artifact), run,
            openvino_trial.opened(artifact.path, context.threads),
            lambda folder: openvino_trial.opened(folder / openvino_model.MAIN, context.threads), context,
        )  # fmt: skip
    if options.budget:
        return _within_budget(artifact, out_dir, options, context)
    return _quantised(artifact, out_dir, options, context)


def _ways(artifact: Artifact) -> Sequence[tuning.Way]:
    """What to try: the rules for transformers first where there is attention, and also where products prevail."""
    found = counts(openvino_model.read(artifact.path), (*ATTENTION, *HEAVY))
    if any(found[name] for name in ATTENTION):
        return (*TRANSFORMER_WAYS, *WAYS)
    return (*WAYS, *TRANSFORMER_WAYS) if 2 * found["MatMul"] > sum(found[name] for name in HEAVY) else WAYS


def _within_budget(artifact: Artifact, out_dir: Path, options: OpenVinoQuantize, context: Context) -> dict[str, Any]:
    """The model with as few operators left float as the budget allows. Trials that only rank fit on few samples."""
    model = openvino_model.read(artifact.path)
    left = options.ignored.matching(model)
    operators = [op for op in model.get_ordered_ops() if op.get_friendly_name() not in left]
    groups = budget.grouped([
        (op.get_friendly_name(), op.get_type_name() in HEAVY, op.input_value(0).get_node().get_friendly_name()
         if op.get_input_size() else "")
        for op in operators if op.get_type_name() not in FREE
    ])  # fmt: skip
    probe = budget.Probe(context, options.budget, openvino_trial.opened(artifact.path, context.threads))

    def lower(chosen: Sequence[budget.Group], quick: bool) -> Mapping[str, Any]:
        trial = budget.emptied(context)
        spared = _sparing(options, budget.others(groups, chosen))
        most = min(QUICK, options.subset_size or QUICK) if quick else CAP
        spared = spared.model_copy(update={"subset_size": None}) if quick else spared
        try:
            _quantised(artifact, trial, spared, context, most)
        except StepError as error:
            if quick and error.what.startswith(NOTHING):  # a group of operators that NNCF leaves float anyway
                return probe.measure(openvino_trial.opened(artifact.path, context.threads), quick)
            raise
        return probe.measure(openvino_trial.opened(trial / openvino_model.MAIN, context.threads), quick)

    kept = budget.keep(groups, probe.bounds, lower, context)
    return {
        **_quantised(artifact, out_dir, _sparing(options, budget.members(kept)), context),
        "budget": budget.found(context),
    }


def _sparing(options: OpenVinoQuantize, names: Sequence[str]) -> OpenVinoQuantize:
    """The options with further operators left float."""
    ignored = options.ignored.model_copy(update={"names": (*options.ignored.names, *names)})
    return options.model_copy(update={"ignored": ignored})


def _quantised(
    artifact: Artifact, out_dir: Path, options: OpenVinoQuantize, context: Context, cap: int = CAP
) -> dict[str, Any]:
    """The quantised model in `out_dir`, fitted on at most `cap` samples where the options do not say on how many."""
    model = openvino_model.read(artifact.path)
    with nncf_session(context, stages=4 if options.smooths else 2) as session:
        nncf = session.nncf
        ignored = options.ignored.scope(nncf, model)
        dataset, size = session.feeds(model, options.subset_size, cap)
        context.progress("fit", 0.0)
        quantised = nncf.quantize(
            model,
            dataset,
            preset=nncf.QuantizationPreset(options.preset) if options.preset else None,
            target_device=nncf.TargetDevice(options.target_device.upper()),
            subset_size=size,
            fast_bias_correction=options.fast_bias_correction,
            model_type=nncf.ModelType(options.model_type) if options.model_type else None,
            ignored_scope=ignored,
            advanced_parameters=_advanced(session, options),
        )
    made = counts(quantised, ["FakeQuantize"])["FakeQuantize"] - counts(model, ["FakeQuantize"])["FakeQuantize"]
    if made <= 0:
        raise StepError(
            f"{NOTHING}: the model has no operator it takes, or all are ignored",
            subject="with.ignored" if ignored else "model",
            hint="ignore less" if ignored else "leave this step out",
        )
    smoothed = sum(op.get_friendly_name().endswith("nncf_smooth_quant") for op in quantised.get_ops())
    if not smoothed and (options.smooth_quant or options.smooth_quant_alpha is not None):
        raise StepError(
            "SmoothQuant found nothing to smooth", subject="with.smooth_quant", hint="leave smooth_quant out"
        )
    openvino_model.save(
        quantised,
        out_dir,
        context.inputs,
        context.dims,
        outputs=artifact.signature.outputs if artifact.signature else (),
    )
    return {"samples": size * session.batch, "fake_quantize": made, "smoothed": smoothed, "warnings": session.warnings}


def _advanced(session: Session, options: OpenVinoQuantize) -> Any:
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    found = session.nncf.AdvancedQuantizationParameters()
    if options.smooth_quant is False:
        found.smooth_quant_alphas = session.nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
    elif options.smooth_quant_alpha is not None:
        found.smooth_quant_alphas = session.nncf.AdvancedSmoothQuantParameters(matmul=options.smooth_quant_alpha)
    if options.range_estimator:
        estimator = getattr(RangeEstimatorParametersSet, ESTIMATORS[options.range_estimator])
        found.activations_range_estimator_params = estimator
    return found


def confirm(parent: Artifact, artifact: Artifact, options: OpenVinoQuantize, context: Context) -> list[str]:
    """Re-reads the IR: int8 weights and FakeQuantize must be there."""
    root = openvino_ir.parse(artifact.path)
    complaints = []
    if not openvino_ir.operators(root)["FakeQuantize"]:
        complaints.append("the file has no FakeQuantize: its activations are not quantised")
    found = openvino_ir.constants(root)
    if not any(c.stored == "compressed" and c.dtype in {"int8", "uint8"} for c in found):
        complaints.append("the file has no int8 weights")
    return complaints


PASS = Pass(
    name="openvino.quantize",
    version=2,
    source="openvino",
    target="openvino",
    summary="Quantise an IR's weights and activations to int8, fitted on data (NNCF)",
    run=run,
    confirm=confirm,
    options=OpenVinoQuantize,
    fidelity="lossy",
    tools=("openvino", "nncf"),
    modules=("optkit.formats.warm.openvino", "optkit.formats.warm.nncf"),
    needs_data=True,
    budget=lambda options: options.budget,
    timeout_seconds=7200.0,
)
