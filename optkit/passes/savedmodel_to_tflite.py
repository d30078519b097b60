"""savedmodel.to_tflite: a SavedModel as a float TFLite file for LiteRT, with the recipe's names and dims."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from optkit.artifact import Artifact
from optkit.errors import StepError
from optkit.formats import savedmodel, tf_core, tf_session, tflite_look, tflite_model
from optkit.formats.tf_signature import asked
from optkit.formats.tflite_model import Contract
from optkit.formats.tflite_noise import captured
from optkit.formats.torch_feeds import static_shape
from optkit.plugin import Context, Options, Pass

SHOWN = 3


class SavedModelToTflite(Options):
    select_tf_ops: bool = Field(
        False,
        description="leave operators that TFLite lacks to TensorFlow's own kernels (Flex): such a file needs the Flex "
        "delegate, which LiteRT does not bring, so it cannot be checked here",
    )


def run(artifact: Artifact, out_dir: Path, options: SavedModelToTflite, context: Context) -> dict[str, Any]:
    """Weights stay float32; layouts are kept: what takes NHWC takes NHWC. Dynamic dims are resized at run time.

    Notes: what the file takes and gives, operators, bytes. Raises StepError that names the operators TFLite lacks and
    the nodes they are.
    """
    signature = asked(artifact, context)
    name, _ = savedmodel.choose(artifact.path, artifact.meta.get("signature"))
    context.progress("convert", None)
    file = context.scratch / "converted.tflite"
    file.write_bytes(_converted(artifact.path, name, options))
    context.progress("write", None)
    agreed = Contract(
        tuple(replace(spec, shape=static_shape(spec, context.dims)) for spec in signature.inputs), signature.outputs
    )
    model = tflite_model.read(file)
    for definition in model.signatureDefs:
        definition.signatureKey = tflite_model.DEFAULT.encode()
    tflite_model.rename(model, agreed, {})
    tflite_model.write(model, out_dir / tflite_model.MAIN, agreed)
    held = tflite_look.inspect(out_dir / tflite_model.MAIN)
    return {"file": held["signatures"], "operators": held["operators"], "size_bytes": held["size_bytes"]}


def _converted(path: Path, name: str, options: SavedModelToTflite) -> bytes:
    tf = tf_core.load()
    sets = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if options.select_tf_ops:
        sets.append(tf.lite.OpsSet.SELECT_TF_OPS)
    with captured() as said:
        try:
            with tf_session.loading():
                tags = set(savedmodel.serving(path).tags)
                converter = tf.lite.TFLiteConverter.from_saved_model(str(path.parent), signature_keys=[name], tags=tags)
                converter.target_spec.supported_ops = sets
                return bytes(converter.convert())
        except Exception as error:  # ConverterError of a private module, and whatever its passes raise
            raise _failure(path, error, said()) from error


def _failure(path: Path, error: Exception, said: str) -> StepError:
    text = f"{error}\n{said}"
    lacking = dict.fromkeys(re.findall(r"error: 'tf\.(\w+)' op is neither", text))
    for listed in re.findall(r"(?:Flex|TF Select|Custom) ops: ([\w, ]+)", text):
        lacking |= dict.fromkeys(word.strip() for word in listed.split(","))
    if not lacking:
        return StepError(f"TensorFlow's converter failed: {tf_core.reason(error)}", subject="model", details=text,
                         hint="to: onnx, then to: tflite from that step, or deliver another format")  # fmt: skip
    nodes = [(node.op, node.name) for node in savedmodel.serving(path).nodes]
    places = []
    for operator in lacking:
        found = [node for op, node in nodes if op == operator]
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        places.append(f"{operator} (node {', '.join(found[:SHOWN])}{more})" if found else operator)
    return StepError(f"TFLite lacks {'; '.join(places)}", subject="model", details=text,
                     hint="replace the operator in the model, or deliver ONNX or OpenVINO")  # fmt: skip


def confirm(parent: Artifact, artifact: Artifact, options: SavedModelToTflite, context: Context) -> list[str]:
    """Re-reads the file: names, dtypes and dims as declared, float weights, and no TensorFlow kernels unless asked."""
    model = tflite_model.read(artifact.path)
    agreed = tflite_model.recorded(model)
    if agreed is None:
        return ["the recipe's names are not in the file"]
    complaints = tflite_look.differences(model, agreed, [{}])
    operators = Counter(name for name, _, _ in tflite_look.operations(model))
    flex = [name for name in operators if name.startswith("Flex")]
    if flex and not options.select_tf_ops:
        complaints.append(f"{', '.join(flex)} need TensorFlow's own kernels")
    if tflite_look.counts(model)["weights"]:
        complaints.append(f"{tflite_look.counts(model)['weights']} weights are quantised, which nobody asked for")
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
