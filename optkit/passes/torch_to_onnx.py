"""torch.to_onnx: a torch model as an ONNX file, with the recipe's names, dims and opset."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging import LogRecord, getLogger
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from optkit.artifact import Artifact, TensorSpec
from optkit.errors import StepError
from optkit.formats.onnx import model as onnx_model
from optkit.formats.torch import model as torch_model
from optkit.formats.torch import quantised as torch_quantised
from optkit.formats.torch.export import baked_in, symbols, trace
from optkit.formats.torch.feeds import static_shape
from optkit.formats.torch.files import quiet
from optkit.formats.torch.guards import node_place
from optkit.formats.torch.onnx import name_dims, rename, to_proto, turn_integers
from optkit.plugin import Context, Options, Pass, need

# The IR version that came with each opset: a file cannot name an older one. From onnx.helper.VERSION_TABLE.
IR_OF_OPSET = {19: 9, 20: 9, 21: 10, 22: 10, 23: 11}
OLDEST_EXPORTED = 18  # what torch.onnx translates to directly; below, it converts and may not manage
NEWEST_TORCHSCRIPT = 20


class TorchToOnnx(Options):
    opset: int = Field(
        20, ge=9, le=23, description="ONNX operator set; 20 is read by every runtime of the last two years"
    )
    exporter: Literal["auto", "export", "torchscript"] = Field(
        "auto",
        description="torchscript is the old tracer: for LSTM or GRU of dynamic length, and what auto takes for "
        "TorchScript models",
    )
    external_data: bool | Literal["auto"] = Field(
        "auto", description="weights in a file of their own, model.onnx.data; auto: from 1 GiB on"
    )
    optimize: bool = Field(True, description="fold constants and drop what has no effect")
    ir_version: int | None = Field(
        None, ge=8, le=13, description="format version of the file; by default 10, or what the opset needs"
    )

    def model_post_init(self, context: Any, /) -> None:
        """Raises ValueError for options that cannot go together."""
        if self.ir_version is not None and self.ir_version < IR_OF_OPSET.get(self.opset, 8):
            raise ValueError(f"opset {self.opset} needs ir_version {IR_OF_OPSET[self.opset]} or later")
        if self.exporter == "torchscript" and self.opset > NEWEST_TORCHSCRIPT:
            raise ValueError(f"the torchscript exporter writes opsets up to {NEWEST_TORCHSCRIPT}")

    @property
    def written_ir_version(self) -> int:
        """The IR version the file gets."""
        return self.ir_version or max(10, IR_OF_OPSET.get(self.opset, 8))


def run(artifact: Artifact, out_dir: Path, options: TorchToOnnx, context: Context) -> dict[str, Any]:
    """Notes: seconds per phase, the operators, and what the exporter warned of."""
    for module in ("torch", "onnx", "onnxscript"):
        need(module)
    ir = need("onnx_ir", "onnx-ir")
    clock = _Clock(context)
    clock.start("load")
    model = torch_model.load(artifact.path)
    inputs = context.inputs or model.inputs
    warned: list[str] = []
    exporter = ("torchscript" if model.scripted else "export") if options.exporter == "auto" else options.exporter
    if exporter == "torchscript" and options.opset > NEWEST_TORCHSCRIPT:
        raise StepError(
            f"opset {options.opset} was asked for, and TorchScript models can be written up to {NEWEST_TORCHSCRIPT}",
            subject="with.opset",
            hint=f"opset {NEWEST_TORCHSCRIPT}",
        )
    if exporter == "torchscript" and torch_quantised.written(model.source.module):
        raise StepError("the torchscript exporter cannot write the model's fake quantisers (torch.qat)",
                        subject="with.exporter", hint="leave out `exporter: torchscript`")  # fmt: skip
    with _quiet_exporter():
        if exporter == "export":
            onnx, names = _export(model, inputs, options, context, clock)
        else:
            onnx, names = _trace(model, inputs, options, context, clock, warned), {}
        clock.start("optimize")
        if options.optimize:
            need("onnxscript.optimizer", "onnxscript").optimize(onnx)
    got = onnx.opset_imports.get("", 0)
    if got != options.opset:
        raise StepError(
            f"opset {options.opset} was asked for, but torch gave {got}: it could not convert an operator down",
            subject="with.opset",
            hint=f"opset {got}, or `exporter: torchscript`, which writes {options.opset} directly",
        )
    clock.start("write")
    turn_integers(onnx)
    outputs = context.outputs or model.output_names or ()
    rename(onnx, [spec.name for spec in inputs], outputs)
    known = artifact.signature.outputs if artifact.signature else ()
    name_dims(onnx, inputs, context.dims, names, known)
    onnx.ir_version = options.written_ir_version
    onnx.producer_name, onnx.producer_version = "pytorch", need("torch").__version__
    proto, payloads = to_proto(onnx)
    size = onnx_model.size_bytes(proto)
    onnx_model.save(proto, out_dir, options.external_data, payloads=payloads)
    clock.stop()
    operators = Counter(node.op_type for node in ir.traversal.RecursiveGraphIterator(onnx.graph))
    return {
        "opset": got,
        "ir_version": onnx.ir_version,
        "exporter": exporter,
        "size_bytes": size,
        "external_data": (out_dir / onnx_model.DATA).exists(),
        "operators": dict(sorted(operators.items())),
        "exporter_warned": warned,
        "seconds": clock.seconds,
    }


class _Clock:
    """Seconds per phase, told to the user as they begin."""

    def __init__(self, context: Context) -> None:
        self.context, self.seconds, self._phase, self._since = context, dict[str, float](), "", 0.0

    def start(self, phase: str) -> None:
        self.stop()
        self.context.progress(phase, None)
        self._phase, self._since = phase, time.perf_counter()

    def stop(self) -> None:
        if self._phase:
            self.seconds[self._phase] = round(time.perf_counter() - self._since, 3)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without log lines of torch.onnx and onnxscript on what this pass reports itself (opset) or concerns nobody."""
    logs = [
        getLogger(name)
        for name in (
            "torch.onnx._internal.exporter._registration",
            "torch.onnx._internal.exporter._compat",
            "onnxscript.version_converter",
            "onnx_ir.passes.common.initializer_deduplication",
        )
    ]
    noise = (
        "torchvision is not installed",
        "Skipped deduplication of initializer",
        "Setting ONNX exporter to use operator set version",
        "The model version conversion is not supported",
        "Failed to convert the model to the target version",
    )

    def wanted(record: LogRecord) -> bool:
        return not str(record.msg).startswith(noise) and not record.getMessage().startswith(noise)

    for log in logs:
        log.addFilter(wanted)
    try:
        with quiet():
            yield
    finally:
        for log in logs:
            log.removeFilter(wanted)


# ------------------------------------------------------------------------------------------------ exporters


def _export(
    model: torch_model.TorchModel, inputs: Sequence[TensorSpec], options: TorchToOnnx, context: Context, clock: _Clock
) -> tuple[Any, dict[str, str]]:
    """The onnx_ir model, and symbol to dim name."""
    torch = need("torch")
    clock.start("export")
    program = torch_model.export(model, inputs, context.dims)
    clock.start("translate")
    try:
        converted = torch.onnx.export(
            program, (), dynamo=True, opset_version=options.opset, optimize=False, verbose=False
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise _untranslated(error) from error
    return converted.model, symbols(program, inputs)


def _untranslated(error: Exception) -> StepError:
    chain = [error]
    while chain[-1].__cause__ is not None and isinstance(chain[-1].__cause__, Exception):
        chain.append(chain[-1].__cause__)
    operator = next((m[1] for e in reversed(chain) if (m := re.search(r"OpOverload\(op='([\w.]+)'", str(e)))), "")
    where = next((place for e in reversed(chain) if (place := node_place(e))), "")
    first = str(chain[-1]).strip().splitlines()[0] if str(chain[-1]).strip() else type(chain[-1]).__name__
    what = f"torch.onnx has no translation for {operator}" if operator else f"torch.onnx failed: {first}"
    return StepError(
        what + (f", used {where}" if where else ""),
        subject="model",
        details="\n".join(map(str, chain[1:])),
        hint="write it with other operators, or take it out of the model",
    )


def _trace(
    model: torch_model.TorchModel,
    inputs: Sequence[TensorSpec],
    options: TorchToOnnx,
    context: Context,
    clock: _Clock,
    warned: list[str],
) -> Any:
    torch, ir = need("torch"), need("onnx_ir", "onnx-ir")
    clock.start("trace")
    traced, feeds = trace(model, inputs, context.dims, warned)
    axes = {
        spec.name: {i: d for i, d in enumerate(static_shape(spec, context.dims)) if isinstance(d, str)}
        for spec in inputs
    }
    file = context.scratch / "traced.onnx"
    clock.start("translate")
    try:
        with _no_graph_dump(torch), baked_in(warned):
            torch.onnx.export(
                traced,
                tuple(feeds.values()),
                file,
                dynamo=False,
                opset_version=options.opset,
                input_names=[spec.name for spec in inputs],
                output_names=list(model.output_names or ()),
                dynamic_axes=axes,
                do_constant_folding=options.optimize,
            )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        raise StepError(
            f"the torchscript exporter failed: {str(error).strip().splitlines()[0]}",
            subject="model",
            details=str(error),
            hint="replace the operator in the model"
            + ("" if model.scripted else ", or leave out `exporter: torchscript`"),
        ) from error
    return ir.load(file)


@contextmanager
def _no_graph_dump(torch: Any) -> Iterator[None]:
    """Without the whole graph on stdout when the torchscript exporter fails; torch 2.13 always turns its log on."""
    before = torch._C._jit_onnx_log
    torch._C._jit_onnx_log = lambda *_: None
    try:
        yield
    finally:
        torch._C._jit_onnx_log = before
        torch._C._jit_set_onnx_log_enabled(False)


# ------------------------------------------------------------------------------------------------ confirm


def confirm(parent: Artifact, artifact: Artifact, options: TorchToOnnx, context: Context) -> list[str]:
    """Re-reads the file: validity, opset, IR version, names, dtypes, dims, and nothing left in training mode."""
    onnx = need("onnx")
    complaints = []
    try:
        onnx.checker.check_model(str(artifact.path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        complaints.append(f"the file is not valid ONNX: {str(error).strip().splitlines()[0]}")
    model = onnx_model.load(artifact.path, weights=False)
    if onnx_model.opset(model) != options.opset:
        complaints.append(f"opset {options.opset} was asked for, the file has {onnx_model.opset(model)}")
    if model.ir_version != options.written_ir_version:
        complaints.append(f"IR version {options.written_ir_version} was asked for, the file has {model.ir_version}")
    signature = onnx_model.describe(artifact.path, {})
    complaints += _inputs_differ(signature.inputs, context)
    names = [spec.name for spec in signature.outputs]
    if context.outputs and names != list(context.outputs):
        complaints.append(f"the outputs are {', '.join(names)}, not {', '.join(context.outputs)}")
    complaints += [
        f"{node.op_type} {node.name!r} is in training mode"
        for node in onnx_model.all_nodes(model.graph)
        if _trains(node, model)
    ]
    record = torch_quantised.record_of(parent.path)
    return complaints + (list(_lost(record, model)) if record else [])


def _lost(record: torch_quantised.Quantised, model: Any) -> Iterator[str]:
    """What of a model's fake quantisers is not in the file as integers."""
    held = {t.name: t for t in model.graph.initializer}
    stored = Counter(onnx_model.dtype_name(held[node.input[0]].data_type) for node in model.graph.node
                     if node.op_type == "DequantizeLinear" and node.input[0] in held)  # fmt: skip
    for kind, wanted in (("int8", len(record.weights)), ("int32", len(record.biases))):
        if stored[kind] < wanted:
            yield f"{stored[kind]} of {wanted} tensors are stored in {kind}"
    rounded = sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
    if rounded < len(record.activations):
        yield f"{rounded} of {len(record.activations)} activations are rounded"


def _inputs_differ(found: Sequence[TensorSpec], context: Context) -> Iterator[str]:
    names, wanted = [spec.name for spec in found], [spec.name for spec in context.inputs]
    if names != wanted:
        yield f"the inputs are {', '.join(names)}, not {', '.join(wanted)}"
        return
    for got, spec in zip(found, context.inputs, strict=True):
        shape = static_shape(spec, context.dims)
        if got.dtype != spec.dtype or got.shape != shape:
            yield f"input {spec.name!r} is {got}, not {spec.dtype}[{', '.join(map(str, shape))}]"


def _trains(node: Any, model: Any) -> bool:
    """Whether a BatchNormalization or Dropout would behave as in training."""
    if node.op_type == "BatchNormalization":
        return any(a.name == "training_mode" and a.i for a in node.attribute)
    if node.op_type != "Dropout" or len(node.input) < 3 or not node.input[2]:
        return False
    numpy_helper = need("onnx").numpy_helper
    held = {i.name: i for i in model.graph.initializer}
    held |= {
        n.output[0]: a.t
        for n in onnx_model.all_nodes(model.graph)
        if n.op_type == "Constant"
        for a in n.attribute
        if a.name == "value"
    }
    mode = held.get(node.input[2])
    return mode is None or bool(numpy_helper.to_array(mode))


PASS = Pass(
    name="torch.to_onnx",
    version=2,
    source="torch",
    target="onnx",
    summary="Export a torch model to ONNX with the recipe's names and dims",
    run=run,
    confirm=confirm,
    options=TorchToOnnx,
    fidelity="rounding",
    tools=("torch", "onnx", "onnxscript", "onnx-ir"),
    modules=("optkit.formats.warm.torch", "optkit.formats.warm.torch_export"),
)
