"""openvino.fp16: weights stored in float16, half the size; inputs and outputs stay float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optkit.artifact import Artifact
from optkit.errors import StepError
from optkit.formats.openvino import ir as openvino_ir
from optkit.formats.openvino import model as openvino_model
from optkit.plugin import Context, Options, Pass

LARGEST = 65504.0
# Measured on CNNs and encoders: what OpenVINO keeps in float32 (epsilons, scalars, operators sensitive to rounding)
# is under 0.1 % of a model's elements. A model under this share was not compressed.
ENOUGH = 0.99


class OpenVinoFp16(Options):
    pass


def run(artifact: Artifact, out_dir: Path, options: OpenVinoFp16, context: Context) -> dict[str, Any]:
    """Stores each float32 constant as float16 behind a Convert; what computes in which precision is the runtime's.

    OpenVINO clips what float16 cannot hold to +-65504, and keeps a constant that is mostly out of range in float32;
    `clipped` in the notes counts such values. Raises StepError for a model without float32 weights.
    """
    model = openvino_model.read(artifact.path)
    single = [
        op for op in model.get_ops() if op.get_type_name() == "Constant" and op.get_element_type().to_string() == "f32"
    ]
    if not single:
        raise StepError(
            "the model has no float32 weights to store as float16", subject="model", hint="leave this step out"
        )
    clipped = {op.get_friendly_name(): n for op in single if (n := _beyond(op))}
    del single
    openvino_model.save(
        model,
        out_dir,
        context.inputs,
        context.dims,
        compress_to_fp16=True,
        outputs=artifact.signature.outputs if artifact.signature else (),
    )
    found = openvino_ir.inspect(out_dir / openvino_model.MAIN)
    if not found["compressed"].get("float16"):
        raise StepError(
            "OpenVINO stored no weight as float16: what the model has in float32 are ranges and scales",
            subject="model",
            hint="leave this step out",
        )
    return {
        "size_ratio": round(found["size_bytes"] / max(artifact.size_bytes, 1), 4) if artifact.files else None,
        "compressed": found["compressed"].get("float16", 0),
        "clipped": clipped,
    }


def _beyond(op: Any) -> int:
    """How many values of a float32 constant float16 cannot hold; no copy is made where there are none."""
    import numpy as np

    data = op.data
    if data.size == 0 or (data.max() <= LARGEST and data.min() >= -LARGEST):
        return 0
    return int(np.count_nonzero(np.abs(data) > LARGEST))


def confirm(parent: Artifact, artifact: Artifact, options: OpenVinoFp16, context: Context) -> list[str]:
    """Re-reads the IR: the share of float constants' elements that are float16, and inputs and outputs."""
    constants = openvino_ir.constants(openvino_ir.parse(artifact.path))
    found = [c for c in constants if c.user != "FakeQuantize"]  # OpenVINO keeps the ranges of int8 in float32
    half = sum(c.elements for c in found if c.dtype == "float16")
    single = sum(c.elements for c in found if c.dtype == "float32")
    complaints = []
    if half < ENOUGH * (half + single):
        complaints.append(f"{half} of {half + single} float values are stored as float16, under {ENOUGH:.0%}")
    signature = openvino_model.describe(artifact.path)
    for spec in (*signature.inputs, *signature.outputs):
        if spec.dtype == "float16":
            complaints.append(f"tensor {spec.name!r} became float16; only weights should")
    return complaints


PASS = Pass(
    name="openvino.fp16",
    version=1,
    source="openvino",
    target="openvino",
    summary="Store an IR's weights in float16",
    run=run,
    confirm=confirm,
    options=OpenVinoFp16,
    fidelity="rounding",
    precision="float16",
    tools=("openvino",),
    modules=("optkit.formats.warm.openvino",),
)
