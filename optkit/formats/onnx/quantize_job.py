"""A model about to be quantised: which nodes, with which types, and what stays as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optkit.errors import StepError, did_you_mean
from optkit.formats.onnx import integer as onnx_integer
from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx import qdq as onnx_qdq
from optkit.formats.onnx import value_types as onnx_types
from optkit.formats.onnx.quantize_options import BETWEEN, DYNAMIC, STATIC, QuantizeOptions

if TYPE_CHECKING:
    from optkit.artifact import Artifact

INSERTED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger")


@dataclass
class Job:
    """A model about to be quantised; `static` is None where ranges are found at run time.

    shielded: how many layers that stay float had to be kept so by a copy of their output (`onnx_shield`).
    """

    rewrite: onnx_integer.Rewrite
    targets: Sequence[Any]
    types: Mapping[str, int]
    op_types: tuple[str, ...]
    excluded: set[str]
    static: onnx_qdq.Static | None
    shielded: int = 0

    @property
    def convolutional(self) -> bool:
        """Whether integers pay between layers too."""
        return _convolutional(self.rewrite.model)


def job_of(artifact: Artifact, options: QuantizeOptions) -> Job:
    """A model, read and prepared. Raises StepError for one that is quantised already, too old, or of unknown types."""
    model = onnx_integer.prepare(onnx_model.load(artifact.path, weights=False))
    already = onnx_model.count_operators(model)
    if any(already[name] for name in INSERTED):
        raise StepError("the model is quantised already", hint="quantise the float model this one was made from",
                        subject="from")  # fmt: skip
    op_types, excluded = op_types_of(model, options), onnx_integer.matching(model, options.exclude)
    targets = [
        n for n in model.graph.node if n.op_type in op_types and n.domain in ("", "ai.onnx") and n.name not in excluded
    ]
    rewrite = onnx_integer.Rewrite(model, artifact.path.parent, options.scheme)
    types = onnx_types.value_types(model.graph, onnx_types.opsets(model))
    if options.method == "dynamic":
        _needs_opset(model, 11)
        fit = [n for n in targets if not onnx_integer.unfit(rewrite, n, types)] if options.budget else targets
        return Job(rewrite, fit, types, op_types, excluded, None)
    halves = any(types.get(name) == onnx_integer.FLOAT16 for node in targets for name in node.input)
    _needs_opset(model, 19 if halves else 13)
    static = onnx_qdq.Static(rewrite, targets, types, options.activations, options.rule.symmetric,
                             options.target == "tensorrt")  # fmt: skip
    return Job(rewrite, static.targets, types, op_types, excluded, static)


def op_types_of(model: Any, options: QuantizeOptions) -> tuple[str, ...]:
    """The operators to quantise. Raises StepError for one that does not exist."""
    import onnx

    for name in options.op_types:
        if not onnx.defs.has(name):
            known = {node.op_type for node in model.graph.node}
            raise StepError(f"there is no operator {name!r}", hint=did_you_mean(name, known), subject="with.op_types")
    if options.op_types:
        return tuple(sorted(set(options.op_types)))
    if options.method == "dynamic":
        return DYNAMIC
    return STATIC + BETWEEN if _convolutional(model) and options.target == "onnxruntime" else STATIC


def _convolutional(model: Any) -> bool:
    counts = Counter(node.op_type for node in model.graph.node)
    return counts["Conv"] + counts["ConvTranspose"] >= counts["MatMul"] + counts["Gemm"]


def _needs_opset(model: Any, version: int) -> None:
    if onnx_model.opset(model) < version:
        raise StepError(f"the model has opset {onnx_model.opset(model)}; its quantisation needs {version}",
                        hint=f"export it at opset {version} or newer")  # fmt: skip
