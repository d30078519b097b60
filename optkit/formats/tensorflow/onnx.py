"""TensorFlow to ONNX with tf2onnx: the recipe's names and dims, and no TensorFlow operator left behind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from optkit.artifact import Artifact, Signature
from optkit.errors import StepError
from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx.tidy import tidied
from optkit.formats.tensorflow import core as tf_core
from optkit.formats.tensorflow.freeze import Frozen, frozen
from optkit.formats.torch.feeds import static_shape
from optkit.formats.torch.onnx import name_dims, rename, to_proto
from optkit.plugin import Context, Options, need

NEWEST = 18  # what tf2onnx 1.17 writes
IR_VERSION = 10
SHOWN = 3


class ToOnnx(Options):
    opset: int = Field(18, ge=9, le=NEWEST, description="ONNX operator set; tf2onnx writes up to 18")


def convert(
    call: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    signature: Signature,
    out_dir: Path,
    options: ToOnnx,
    context: Context,
) -> dict[str, Any]:
    """Writes `model.onnx` for a function on tensors by name; layouts are kept: what takes NHWC takes NHWC.

    Raises StepError that names the operators ONNX has no equivalent for, and the nodes they are.
    """
    need("onnx")
    ir = need("onnx_ir", "onnx-ir")
    context.progress("freeze", None)
    graph = frozen(call, signature)
    context.progress("convert", None)
    proto = _converted(graph, options.opset)
    if left := _left(proto):
        raise _unsupported(left)
    model = tidied(ir.from_proto(proto))
    context.progress("write", None)
    rename(model, [spec.name for spec in signature.inputs], [spec.name for spec in signature.outputs])
    name_dims(model, signature.inputs, context.dims, {}, signature.outputs)
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "tensorflow", str(tf_core.load().__version__)
    model.graph.name = "model"
    proto, payloads = to_proto(model)
    onnx_model.save(proto, out_dir, payloads=payloads)
    return {"opset": options.opset, "operators": dict(sorted(onnx_model.count_operators(proto).items()))}


def _converted(graph: Frozen, opset: int) -> Any:
    loader, mapper = need("tf2onnx.tf_loader", "tf2onnx"), need("tf2onnx.tfonnx", "tf2onnx")
    optimizer, tf = need("tf2onnx.optimizer", "tf2onnx"), tf_core.load()
    # It goes through sets of nodes, so which of two equal ones stays is another in each process: see `onnx_tidy`.
    optimizers = {n: o for n, o in optimizer._get_optimizers().items() if n != "merge_duplication"}
    said: list[str] = []
    try:
        with _listening(said), tf_core.quiet(), tf.device("CPU:0"):
            with tf.Graph().as_default():
                definition = loader.tf_optimize(graph.inputs, graph.outputs, graph.graph)
            with tf.Graph().as_default() as tf_graph:
                tf.import_graph_def(definition, name="")
                mapped = mapper.process_tf_graph(
                    tf_graph, opset=opset, input_names=graph.inputs, output_names=graph.outputs,
                    custom_op_handlers={"Erfc": (_erfc, [])},
                )  # fmt: skip
                proto = optimizer.optimize_graph(mapped, optimizers=optimizers).make_model("model")
    except Exception as error:  # its handlers raise whatever they meet
        first = next((line for line in said if line.startswith("Failed to convert")), "").splitlines()
        raise StepError(
            f"tf2onnx cannot convert the model: {tf_core.reason(error)}" + (f" ({first[0]})" if first else ""),
            subject="model",
            details="\n".join([*said, str(error)]),
            hint="try another opset, or convert the SavedModel to OpenVINO or TFLite directly",
        ) from error
    return proto


def _erfc(graph: Any, node: Any, name: str, _: Any) -> None:
    """Erfc, which exact GELUs are made of and tf2onnx does not know, as 1 - Erf."""
    numpy = need("numpy")
    dtypes, shapes = [graph.get_dtype(node.output[0])], [graph.get_shape(node.output[0])]
    mapping = need("tf2onnx.utils", "tf2onnx")
    erf = graph.make_node("Erf", [node.input[0]], name=f"{name}/erf", dtypes=dtypes, shapes=shapes)
    one = graph.make_const(f"{name}/one", numpy.array(1, mapping.map_onnx_to_numpy_type(dtypes[0])))
    outputs = list(node.output)
    graph.remove_node(name)
    graph.make_node("Sub", [one.output[0], erf.output[0]], outputs=outputs, name=name, dtypes=dtypes, shapes=shapes)


@contextmanager
def _listening(said: list[str]) -> Iterator[None]:
    """What tf2onnx logs, collected; it logs what it could not do and goes on."""

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.ERROR:
                said.append(record.getMessage())

    log, handler = logging.getLogger("tf2onnx"), Keep()
    before = log.propagate, log.level, list(log.handlers)
    log.propagate, log.handlers = False, [handler]
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.propagate, log.handlers = before[0], before[2]
        log.setLevel(before[1])


def _left(proto: Any) -> dict[str, list[str]]:
    """Operators that no standard ONNX operator set has, with the nodes they are."""
    onnx = need("onnx")
    versions = {o.domain or "": o.version for o in proto.opset_import}
    found: dict[str, list[str]] = {}
    for node in onnx_model.all_nodes(proto.graph):
        domain = "" if node.domain == "ai.onnx" else node.domain
        known = domain in versions and onnx.defs.has(node.op_type, versions[domain], domain)
        if not known:
            found.setdefault(node.op_type, []).append(node.name)
    return found


def _unsupported(left: Mapping[str, Sequence[str]]) -> StepError:
    places = []
    for operator, nodes in left.items():
        more = f" and {len(nodes) - SHOWN} more" if len(nodes) > SHOWN else ""
        places.append(f"{operator} (node {', '.join(nodes[:SHOWN])}{more})")
    return StepError(
        f"ONNX has no equivalent for TensorFlow's {'; '.join(places)}",
        subject="model",
        hint="replace the operator in the model, or convert it to OpenVINO or TFLite directly",
    )


def confirm(parent: Artifact, artifact: Artifact, options: ToOnnx, context: Context) -> list[str]:
    """Re-reads the file: validity, opset, names, dtypes, dims, and that every operator is ONNX's own."""
    onnx = need("onnx")
    complaints = []
    try:
        onnx.checker.check_model(str(artifact.path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        complaints.append(f"the file is not valid ONNX: {str(error).strip().splitlines()[0]}")
    model = onnx_model.load(artifact.path, weights=False)
    if onnx_model.opset(model) != options.opset:
        complaints.append(f"opset {options.opset} was asked for, the file has {onnx_model.opset(model)}")
    complaints += [f"operator {name} is not ONNX's" for name in _left(model)]
    found = onnx_model.describe(artifact.path, {})
    names, wanted = [spec.name for spec in found.inputs], [spec.name for spec in context.inputs]
    if names != wanted:
        return [*complaints, f"the inputs are {', '.join(names)}, not {', '.join(wanted)}"]
    for got, spec in zip(found.inputs, context.inputs, strict=True):
        if got.dtype != spec.dtype or (spec.shape is not None and got.shape != static_shape(spec, context.dims)):
            complaints.append(f"input {spec.name!r} is {got}, not {spec}")
    return complaints
