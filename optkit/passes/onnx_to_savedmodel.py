"""onnx.to_savedmodel: an ONNX file as a SavedModel of TensorFlow's own operators, for TensorFlow Serving."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from optkit.artifact import Artifact, Signature
from optkit.errors import StepError, did_you_mean
from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx_tf import all_operators as onnx_tf_all
from optkit.formats.tensorflow import core as tf_core
from optkit.formats.tensorflow import savedmodel, savedmodel_write
from optkit.plugin import Context, Options, Pass


def run(artifact: Artifact, out_dir: Path, options: Options, context: Context) -> dict[str, Any]:
    """Rebuilds the graph node by node; dims that the ONNX file leaves open stay open.

    Weights of 8 bits behind a DequantizeLinear stay 8 bits wide in the file. Notes: nodes, and the variables' bytes by
    type. Raises StepError that names the node, and the torch module it came from, where TensorFlow has no operator.
    """
    tf = tf_core.load()
    context.progress("read", None)
    model = onnx_model.load(artifact.path)
    known = artifact.signature or onnx_model.describe(artifact.path, {})
    signature = _ordered(known, context)
    build = onnx_tf_all.Build(tf, onnx_model.opset(model))

    def call(feeds: Mapping[str, Any]) -> dict[str, Any]:
        values = build.run(model.graph, dict(feeds))
        return {spec.name: build.tensor(values[spec.name]) for spec in signature.outputs}

    context.progress("build", None)
    savedmodel_write.write(out_dir, call, signature)
    held = savedmodel.inspect(out_dir / savedmodel.MAIN)
    return {"operators": held["operators"], "variables": held["variables"]}


def _ordered(known: Signature, context: Context) -> Signature:
    """The recipe's inputs and outputs, in its order."""
    inputs = context.inputs or known.inputs
    found = {spec.name: spec for spec in known.outputs}
    for name in context.outputs:
        if name not in found:
            raise StepError(f"the ONNX model has no output {name!r}", hint=did_you_mean(name, found),
                            subject=f"outputs.{name}")  # fmt: skip
    return Signature(inputs, tuple(found[name] for name in context.outputs) or known.outputs)


def confirm(parent: Artifact, artifact: Artifact, options: Options, context: Context) -> list[str]:
    """Re-reads the folder: names and dtypes as asked, dims still open, and TensorFlow's own operators alone."""
    found = savedmodel.describe(artifact.path, {})
    complaints = []
    mine = {spec.name: spec for spec in found.inputs}
    for spec in context.inputs:
        got = mine.get(spec.name)
        if got is None:
            complaints.append(f"input {spec.name!r} is not in the signature, which has {', '.join(mine)}")
        elif got.dtype != spec.dtype:
            complaints.append(f"input {spec.name!r} is {got.dtype}, not {spec.dtype}")
        else:
            fixed = [axis for axis, (was, size) in enumerate(zip(spec.shape or (), got.shape or (), strict=False))
                     if isinstance(was, str) and isinstance(size, int)]  # fmt: skip
            complaints += [f"axis {axis} of input {spec.name!r} was dynamic and is fixed" for axis in fixed]
    names = [spec.name for spec in found.outputs]
    if context.outputs and names != list(context.outputs):
        complaints.append(f"the outputs are {', '.join(names)}, not {', '.join(context.outputs)}")
    foreign = {"XlaCallModule", "PyFunc", "EagerPyFunc"} & set(savedmodel.inspect(artifact.path)["operators"])
    complaints += [f"it has {kind}, which TensorFlow Serving cannot run or convert" for kind in sorted(foreign)]
    return complaints


PASS = Pass(
    name="onnx.to_savedmodel",
    version=1,
    source="onnx",
    target="savedmodel",
    summary="Convert an ONNX file to a SavedModel for TensorFlow Serving",
    run=run,
    confirm=confirm,
    fidelity="rounding",
    tools=("tensorflow-cpu", "onnx"),
    modules=("optkit.formats.warm.tensorflow",),
)
