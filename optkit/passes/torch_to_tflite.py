"""torch.to_tflite: a torch model as a TFLite file for LiteRT, with the recipe's names, dims and layout."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from optkit.artifact import Artifact
from optkit.errors import StepError
from optkit.formats.tflite import look as tflite_look
from optkit.formats.tflite import model as tflite_model
from optkit.formats.tflite import sizes as tflite_sizes
from optkit.formats.tflite import torch as tflite_torch
from optkit.formats.tflite.sizes import TfliteOptions
from optkit.formats.tflite.torch import Conversion
from optkit.formats.torch import model as torch_model
from optkit.formats.torch import quantised as torch_quantised
from optkit.formats.torch.feeds import dynamic_dims
from optkit.plugin import Context, Pass, need


class TorchToTflite(TfliteOptions):
    """What litert-torch is asked for."""

    int64: Literal["keep", "int32"] = Field(
        "keep", description="int32: the file takes and gives 32-bit integers, which most accelerators ask for"
    )


def run(artifact: Artifact, out_dir: Path, options: TorchToTflite, context: Context) -> dict[str, Any]:
    """Exports, converts and tries the file out: it must answer as the model does at min, opt and max of every dim.

    Notes: how dims vary, what the file itself takes and gives, operators, seconds per phase. Raises StepError that
    names the operator and where it is used, or the dim that cannot vary and what to declare.
    """
    need("torch")
    tflite_torch.load()
    seconds: dict[str, float] = {}
    since = time.perf_counter()
    context.progress("export", None)
    if torch_quantised.record_of(artifact.path):
        # Its files were looked at: each rounding becomes QUANTIZE and DEQUANTIZE around kernels that stay float.
        raise StepError("the model has fake quantisers in it (torch.qat), which litert-torch writes as float kernels",
                        subject="from", hint="deliver it as ONNX or OpenVINO; for TFLite take the step before "
                        "torch.qat, then tflite.quantize")  # fmt: skip
    model = torch_model.load(artifact.path)
    if model.scripted:
        raise StepError("litert-torch cannot read TorchScript", subject="model",
                        hint="give the nn.Module or a torch.export program, or deliver ONNX")  # fmt: skip
    inputs = context.inputs or model.inputs
    dims = {name: dim for name, dim in context.dims.items() if any(name in spec.dynamic for spec in inputs)}
    program = torch_model.export(model, inputs, dims)
    known = artifact.signature or torch_model.describe(
        artifact.path, {"dims": {name: dim.to_json() for name, dim in dims.items()}}
    )
    if options.int64 == "int32" and (wide := [s.name for s in (*inputs, *known.outputs) if s.dtype == "float64"]):
        raise StepError(f"{wide[0]!r} is float64, which int64: int32 would make float32", subject="with.int64",
                        hint="int64: keep, or a model in float32")  # fmt: skip
    agreed = tflite_sizes.contract(inputs, known.outputs, dims, options)
    conversion = Conversion(model, program, agreed, dims, options.int64 == "keep")
    seconds["export"] = round(time.perf_counter() - since, 3)
    since = time.perf_counter()
    context.progress("convert", None)
    varying = dynamic_dims(inputs, dims)
    final, how = tflite_sizes.converted(conversion, varying, options, context)
    final.rename(out_dir / tflite_model.MAIN)
    seconds["convert"] = round(time.perf_counter() - since, 3)
    written = tflite_model.read(out_dir / tflite_model.MAIN)
    held = tflite_look.inspect(out_dir / tflite_model.MAIN)
    return {
        "dims": how,
        "file": held["signatures"],
        "operators": dict(sorted(Counter(name for name, _, _ in tflite_look.operations(written)).items())),
        "size_bytes": held["size_bytes"],
        "seconds": seconds,
    }


def confirm(parent: Artifact, artifact: Artifact, options: TorchToTflite, context: Context) -> list[str]:
    """Re-reads the file: names, dtypes and layout as asked, and that it runs at the ends of every declared range."""
    complaints = []
    for _, ends in tflite_model.signatures(tflite_model.read(artifact.path)).items():
        wide = [name for side in ends for name, t in side.items() if tflite_model.dtype_of(t, name) == "int64"]
        if wide and options.int64 == "int32":
            complaints.append(f"{wide[0]!r} is int64 in the file")
    return complaints + tflite_sizes.complaints_of(artifact, options, context)


PASS = Pass(
    name="torch.to_tflite",
    version=2,
    source="torch",
    target="tflite",
    summary="Convert a torch model to TFLite for LiteRT with the recipe's names and dims",
    run=run,
    confirm=confirm,
    options=TorchToTflite,
    fidelity="rounding",
    tools=("torch", "litert-torch", "litert-converter", "ai-edge-litert"),
    modules=("optkit.formats.warm.torch", "optkit.formats.warm.litert_torch"),
)
