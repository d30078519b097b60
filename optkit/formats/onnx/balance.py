"""The same function in a form that loses less when it is quantised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from optkit.errors import StepError
from optkit.formats.onnx import bias as onnx_bias
from optkit.formats.onnx import equalise as onnx_equalise
from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx import smooth as onnx_smooth
from optkit.formats.onnx import statistics as onnx_statistics
from optkit.formats.onnx.quantize_job import Job, job_of

if TYPE_CHECKING:
    from optkit.artifact import Artifact
    from optkit.formats.onnx.quantize_options import QuantizeOptions
    from optkit.plugin import Context

FOLDER = "balanced"  # in the scratch folder


def balanced(artifact: Artifact, options: QuantizeOptions, context: Context) -> tuple[Artifact, dict[str, Any]]:
    """The model to quantise, in the scratch folder, with notes; the artifact itself where nothing of it is asked for.

    Nodes and weights keep their names. One weight at a time is written. Raises StepError where there is nothing to do.
    """
    notes: dict[str, Any] = {}
    for asked, change in (
        (options.equalise, _equalised),
        (options.smooth_quant is not None, _smoothed),
        (options.correct_bias is not None, _with_biases),
    ):
        if asked:
            job = job_of(artifact, options)
            notes |= change(artifact, job, options, context)
            folder = context.scratch / FOLDER / change.__name__
            folder.mkdir(parents=True)
            path = onnx_model.save(job.rewrite.model, folder, source=artifact.path.parent,
                                   payloads=job.rewrite.payloads)  # fmt: skip
            artifact = replace(artifact, path=path)
    return artifact, notes


def _equalised(artifact: Artifact, job: Job, options: QuantizeOptions, context: Context) -> dict[str, Any]:
    context.progress("equalising", None)
    clips = onnx_equalise.clipped(job.rewrite, job.targets) if context.data is not None else {}
    peaks: Mapping[str, Any] = {}
    if clips:
        request = onnx_statistics.Request({}, channels=clips)
        peaks = onnx_statistics.gather(artifact, job.rewrite.model, request, context).peaks
    pairs, below, left = onnx_equalise.equalise(job.rewrite, job.targets, peaks)
    if not pairs:
        why = "; ".join(f"{n} {text}" for text, n in left.most_common(3)) or "the model has no layer for it"
        raise StepError(f"there is nothing to equalise: {why}", subject="with.equalise", hint="leave equalise out")
    return {"equalised": pairs, "not_equalised": dict(left), "equalised_below_clips": below}


def _smoothed(artifact: Artifact, job: Job, options: QuantizeOptions, context: Context) -> dict[str, Any]:
    groups = onnx_smooth.groups(job.rewrite, job.targets)
    done = 0
    if groups:
        request = onnx_statistics.Request({}, channels={group.source: (-1, 0) for group in groups})
        form = options.form(smoothed=False)
        seen = onnx_statistics.gather(artifact, job.rewrite.model, request, context, form)
        done = onnx_smooth.smooth(job.rewrite, groups, seen.peaks, options.smooth_quant or 0.0)
    if not done:
        raise StepError("there is nothing to smooth: no MatMul or Gemm of a computed input and a matrix of its own",
                        subject="with.smooth_quant", hint="leave smooth_quant out")  # fmt: skip
    return {"smoothed": done}


def _with_biases(artifact: Artifact, job: Job, options: QuantizeOptions, context: Context) -> dict[str, Any]:
    return {"biases_added": onnx_bias.prepare(job.rewrite, job.targets)}
