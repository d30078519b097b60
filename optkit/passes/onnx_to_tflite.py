"""onnx.to_tflite: an ONNX file as a TFLite file for LiteRT, with its names, dims and layout."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

from optkit.artifact import Artifact
from optkit.errors import StepError
from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx import session as onnx_session
from optkit.formats.tflite import look as tflite_look
from optkit.formats.tflite import model as tflite_model
from optkit.formats.tflite import sizes as tflite_sizes
from optkit.formats.tflite.onnx import REFUSED, Conversion
from optkit.formats.tflite.sizes import TfliteOptions
from optkit.formats.torch.feeds import dynamic_dims
from optkit.plugin import Context, Pass, need

CONTROL_FLOW = ("If", "Loop", "Scan")


class OnnxToTflite(TfliteOptions):
    """What onnx2tf is asked for."""


def run(artifact: Artifact, out_dir: Path, options: OnnxToTflite, context: Context) -> dict[str, Any]:
    """Converts, and tries the file out: it must answer as onnxruntime does at min, opt and max of every dim.

    Notes: how dims vary, what the file itself takes and gives (an int64 output may be int32 there, which the session
    widens), operators, seconds. Raises StepError that names the operator and its node, or the dim that cannot vary and
    what to declare.
    """
    need("onnx2tf")
    since = time.perf_counter()
    model = onnx_model.load(artifact.path, weights=False)
    if onnx_model.size_bytes(model) > tflite_model.LIMIT:
        raise StepError("the model's weights do not fit a TFLite file, which ends at 2 GiB", subject="model",
                        hint="deliver ONNX or OpenVINO instead, or split the model")  # fmt: skip
    known = artifact.signature or onnx_model.describe(artifact.path, {})
    for spec in (*known.inputs, *known.outputs):
        if spec.dtype in REFUSED:
            raise StepError(f"{spec.name!r} is {spec.dtype}, of which onnx2tf would make another type", subject="model",
                            hint=f"convert a model of {REFUSED[spec.dtype]}; reduce the precision afterwards with "
                            "tflite.quantize")  # fmt: skip
    inputs = context.inputs or known.inputs
    dims = {name: dim for name, dim in context.dims.items() if any(name in spec.dynamic for spec in inputs)}
    agreed = tflite_sizes.contract(inputs, known.outputs, dims, options)
    session = onnx_session.open_session(artifact.path, threads=context.threads)
    conversion = Conversion(artifact.path, agreed, dims, context.scratch, session)
    context.progress("convert", None)
    try:
        final, how = tflite_sizes.converted(conversion, dynamic_dims(inputs, dims), options, context)
    except StepError as error:
        flow = next((node for node in onnx_model.all_nodes(model.graph) if node.op_type in CONTROL_FLOW), None)
        if flow is not None and not error.subject.startswith("with"):
            error.what += f"; the model has control flow, {flow.op_type} (node {flow.name or flow.output[0]})"
            error.hint = "compute both branches and choose with Where, or deliver ONNX or OpenVINO instead"
        raise
    final.rename(out_dir / tflite_model.MAIN)
    written = tflite_model.read(out_dir / tflite_model.MAIN)
    held = tflite_look.inspect(out_dir / tflite_model.MAIN)
    return {
        "dims": how,
        "file": held["signatures"],
        "operators": dict(sorted(Counter(name for name, _, _ in tflite_look.operations(written)).items())),
        "size_bytes": held["size_bytes"],
        "seconds": {"convert": round(time.perf_counter() - since, 3)},
    }


def confirm(parent: Artifact, artifact: Artifact, options: OnnxToTflite, context: Context) -> list[str]:
    """Re-reads the file: names, dtypes and layout as asked, and that it runs at the ends of every declared range."""
    return tflite_sizes.complaints_of(artifact, options, context)


PASS = Pass(
    name="onnx.to_tflite",
    version=1,
    source="onnx",
    target="tflite",
    summary="Convert an ONNX file to TFLite for LiteRT (onnx2tf)",
    run=run,
    confirm=confirm,
    options=OnnxToTflite,
    fidelity="rounding",
    tools=("onnx2tf", "onnx", "onnxruntime", "ai-edge-litert"),
    environment="onnx2tf",
)
