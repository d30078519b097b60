"""savedmodel.to_tflite: a SavedModel as a float TFLite file for LiteRT, with the recipe's names, dims and layout."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import Field

from optkit.artifact import Artifact
from optkit.errors import StepError
from optkit.formats import savedmodel_load, tflite_look, tflite_model, tflite_sizes
from optkit.formats.tf_signature import asked
from optkit.formats.tflite_sizes import TfliteOptions
from optkit.formats.tflite_tf import Conversion
from optkit.formats.torch_feeds import dynamic_dims
from optkit.plugin import Context, Pass


class SavedModelToTflite(TfliteOptions):
    select_tf_ops: bool = Field(
        False,
        description="leave operators that TFLite lacks to TensorFlow's own kernels (Flex): such a file needs the Flex "
        "delegate, which LiteRT does not bring, so that its check has to be waived",
    )


def run(artifact: Artifact, out_dir: Path, options: SavedModelToTflite, context: Context) -> dict[str, Any]:
    """Converts, and tries the file out: it must answer as TensorFlow does at min, opt and max of every dim.

    Weights stay float32. Notes: how dims vary, what the file itself takes and gives, operators, bytes. Raises StepError
    that names the operators TFLite lacks and their nodes, or the dim that cannot vary and what to declare.
    """
    signature = asked(artifact, context)
    for spec in (*signature.inputs, *signature.outputs):
        if spec.dtype == "string":
            raise StepError(f"{spec.name!r} is a string, which LiteRT sessions of optkit do not take", subject="model",
                            hint="leave tokenisation outside of the model")  # fmt: skip
    dims = {n: dim for n, dim in context.dims.items() if any(n in spec.dynamic for spec in signature.inputs)}
    agreed = tflite_sizes.contract(signature.inputs, signature.outputs, dims, options)
    context.progress("load", None)
    function = savedmodel_load.function(artifact.path, artifact.meta.get("signature"))
    conversion = Conversion(artifact.path, function, agreed, dims, context.scratch, options.select_tf_ops)
    context.progress("convert", None)
    final, how = tflite_sizes.converted(conversion, dynamic_dims(signature.inputs, dims), options, context)
    final.rename(out_dir / tflite_model.MAIN)
    held = tflite_look.inspect(out_dir / tflite_model.MAIN)
    return {"dims": how, "file": held["signatures"], "operators": held["operators"], "size_bytes": held["size_bytes"]}


def confirm(parent: Artifact, artifact: Artifact, options: SavedModelToTflite, context: Context) -> list[str]:
    """Re-reads the file: names, dtypes, dims and layout as asked, float weights, no TensorFlow kernels unless asked."""
    model = tflite_model.read(artifact.path)
    flex = [n for n in Counter(name for name, _, _ in tflite_look.operations(model)) if n.startswith("Flex")]
    if options.select_tf_ops:
        return []
    complaints = tflite_sizes.complaints_of(artifact, options, context)
    if flex:
        complaints.append(f"{', '.join(flex)} need TensorFlow's own kernels")
    if quantised := tflite_look.counts(model)["weights"]:
        complaints.append(f"{quantised} weights are quantised, which nobody asked for")
    return complaints


PASS = Pass(
    name="savedmodel.to_tflite",
    version=1,
    source="savedmodel",
    target="tflite",
    summary="Convert a SavedModel to a float TFLite file for LiteRT",
    run=run,
    confirm=confirm,
    options=SavedModelToTflite,
    fidelity="rounding",
    tools=("tensorflow-cpu", "ai-edge-litert"),
    modules=("optkit.formats.warm_tensorflow", "optkit.formats.warm_tflite"),
)
