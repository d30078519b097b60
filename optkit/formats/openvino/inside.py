"""The tensors inside an OpenVINO model: what makes each, and their values on a feed, a few at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from optkit.artifact import Artifact
from optkit.errors import StepError
from optkit.formats.openvino import core as openvino_core
from optkit.formats.openvino import model as openvino_model
from optkit.plugin import Point

if TYPE_CHECKING:
    from optkit.plugin import Tensors

_SILENT = ("Parameter", "Constant", "Result", "Assign", "ReadValue")
_WEIGHT = re.compile(r"([\w.]+)\.weight")
_WEIGHING = frozenset({"Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData",
                       "MatMul", "LSTMSequence", "GRUSequence", "RNNSequence"})  # fmt: skip


SAME_DB = 10.0
"""Outputs of int8 kernels that are at least this close to those of the float arithmetic which the file describes."""


class OpenVinoInside:
    """An open IR; see `optkit.plugin.Inside`. Compiled anew for each set of tensors, with the graph cut to it.

    OpenVINO 2026.4 gives zeros for inner tensors of an int8 model, and for what follows them, where they are asked for
    beside others. Inner values are therefore computed in float, FakeQuantize as it is defined, unless the int8 kernels
    make the outputs other ones.
    """

    replaces = True

    def __init__(self, artifact: Artifact, threads: int, hint: str) -> None:
        self._path, self._threads, self._hint = artifact.path, threads, hint
        signed = artifact.signature
        self._names = {"inputs": [s.name for s in signed.inputs], "outputs": [s.name for s in signed.outputs]} if (
            signed) else {}  # fmt: skip
        model = openvino_model.read(artifact.path)
        signature = openvino_model.signature_of(model, self._names)
        self._outputs = [spec.name for spec in signature.outputs]
        self._inputs = [spec.name for spec in signature.inputs]
        self.points = self._look(model)
        self._kept: tuple[Any, Any] | None = None
        quantised = any(op.get_type_name() == "FakeQuantize" for op in model.get_ops())
        self._kernels: bool | None = None if quantised else True  # whether they are asked; None until it is known

    def values(self, names: Sequence[str], tensors: Tensors, given: Tensors | None = None) -> Tensors:
        """The values of tensors by name; see `optkit.plugin.Inside`."""
        given = given or {}
        kernels = set(names) <= {*self._outputs, *self._inputs} and not given
        if not kernels:
            kernels = self._kernels_differ(tensors) if self._kernels is None else self._kernels
        return self._values(names, tensors, given, kernels)

    def _kernels_differ(self, tensors: Tensors) -> bool:
        """Whether int8 kernels give other outputs than the file describes, which only they can show then."""
        import numpy as np

        outputs: list[Any] = [self._values(self._outputs, tensors, {}, kernels) for kernels in (False, True)]
        power = off = 0.0
        for name in self._outputs:
            described, real = (np.asarray(found[name]) for found in outputs)
            if described.dtype.kind == "f":
                power += float((described.astype(np.float64) ** 2).sum())
                off += float(((described.astype(np.float64) - real) ** 2).sum())
        self._kernels = not off <= power * 10 ** (-SAME_DB / 10)
        return self._kernels

    def _values(self, names: Sequence[str], tensors: Tensors, given: Tensors, kernels: bool) -> Tensors:
        import numpy as np

        inner = [name for name in names if name not in self._inputs]
        found: dict[str, Any] = {name: tensors[name] for name in names if name in self._inputs}
        if not inner:
            return found
        key = (kernels, tuple(inner), tuple((name, value.dtype.str, value.ndim) for name, value in given.items()))
        try:
            if self._kept is None or self._kept[0] != key:
                self._kept = None  # the one before, with its weights, goes first
                self._kept = (key, self._compiled(inner, given, kernels))
            compiled, fed = self._kept[1]
            feed = {i: np.ascontiguousarray(tensors[name] if own else given[name]) for i, (name, own) in enumerate(fed)}
            request = compiled.create_infer_request()
            openvino_core.infer(request, feed)
            for i, name in enumerate(inner):
                found[name] = request.get_output_tensor(i).data.copy()
        except RuntimeError as error:
            raise StepError(f"OpenVINO failed on a part of the model: {openvino_core.reason(error)}") from error
        return {name: found[name] for name in names}

    def _compiled(self, names: Sequence[str], given: Tensors, kernels: bool) -> tuple[Any, list[tuple[str, bool]]]:
        """The part of the model that leads to `names`, and what it is fed: a name, and whether it is an input's."""
        ov = openvino_core.load()
        import openvino.opset15 as ops

        model = openvino_model.read(self._path)  # a model that is cut stays cut
        ports = self._ports(model)
        own_inputs = dict(zip(self._inputs, (port.get_node() for port in model.inputs), strict=True))
        fed: list[tuple[str, bool]] = []
        parameters = []
        for name, value in given.items():
            port = own_inputs[name].output(0) if name in own_inputs else ports[name]
            parameter = ops.parameter(ov.PartialShape([-1] * value.ndim), port.get_element_type())
            for target in list(port.get_target_inputs()):
                target.replace_source_output(parameter.output(0))
            parameters.append(parameter)
            fed.append((name, False))
        half = (ov.Type.f16, ov.Type.bf16)  # which numpy would not tell from integers, or not know
        results = [
            ops.result(ops.convert(port, "f32") if port.get_element_type() in half else port)
            for port in (ports[name] for name in names)
        ]
        part = ov.Model(results, [*parameters, *own_inputs.values()], "part")
        config: dict[str, Any] = {"INFERENCE_NUM_THREADS": self._threads, "ENABLE_CPU_PINNING": False, "NUM_STREAMS": 1}
        config |= {} if self._hint == "default" else {"INFERENCE_PRECISION_HINT": self._hint}
        config |= {"EXECUTION_MODE_HINT": "ACCURACY"} if self._hint == "f32" else {}
        config |= {} if kernels else {"LP_TRANSFORMS_MODE": "NO"}
        return openvino_core.core().compile_model(part, "CPU", config), [*fed, *((name, True) for name in own_inputs)]

    def _ports(self, model: Any) -> dict[str, Any]:
        """Each inner output port by its name here, and each output of the model by its own."""
        found = {}
        for op in model.get_ordered_ops():
            if op.get_type_name() in _SILENT:
                continue
            for index, port in enumerate(op.outputs()):
                found[_name(op, index)] = port
        for name, port in zip(self._outputs, model.outputs, strict=True):
            found[name] = port.get_node().input_value(0)
        return found

    def _look(self, model: Any) -> list[Point]:
        live: set[str] = set(self._inputs)
        inputs = {port.get_node().get_friendly_name(): name
                  for name, port in zip(self._inputs, model.inputs, strict=True)}  # fmt: skip
        made: dict[str, list[str]] = {}
        shown: set[str] = set()
        found = []
        for op in model.get_ordered_ops():
            kind = op.get_type_name()
            if kind in _SILENT:
                continue
            sources = [_source(value, inputs) for value in op.input_values()]
            reads = [name for name in sources if name in live]
            if not reads:
                continue
            weights = [name for name in sources if name not in live]
            before = _nearest(reads, shown, set(self._inputs), made)
            for index, port in enumerate(op.outputs()):
                name = _name(op, index)
                live.add(name)
                made[name] = reads
                if port.get_element_type().to_string() not in ("float32", "float16", "f32", "f16", "bf16", "f64"):
                    continue
                shown.add(name)
                also = sorted(port.get_names()) or ([op.get_friendly_name()] if index == 0 else [])
                if kind == "FakeQuantize" and not port.get_names():  # stands for the tensor that it rounds
                    also = [*sorted(op.input_value(0).get_names()), sources[0]]
                found.append(Point(
                    name, kind, op.get_friendly_name(), _module(weights), before, tuple(n for n in also if n != name),
                    kind in _WEIGHING and bool(weights),
                ))  # fmt: skip
        return found


def _name(op: Any, index: int) -> str:
    return str(op.get_friendly_name() if index == 0 else f"{op.get_friendly_name()}.{index}")


def _source(value: Any, inputs: Mapping[str, str]) -> str:
    op = value.get_node()
    return inputs.get(op.get_friendly_name()) or _name(op, value.get_index())


def _nearest(reads: Sequence[str], shown: set[str], inputs: set[str], made: Mapping[str, list[str]]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    seen: set[str] = set()
    todo = list(reads)
    while todo:
        name = todo.pop(0)
        if name in seen:
            continue
        seen.add(name)
        if name in shown or name in inputs:
            found[name] = None
        else:
            todo += made.get(name, [])
    return tuple(found)


def _module(weights: Sequence[str]) -> str:
    """The torch module whose weight an operator reads, where its name tells."""
    return next((found[1] for name in weights if (found := _WEIGHT.fullmatch(name))), "")


@contextmanager
def inside(artifact: Artifact, threads: int = 1, hint: str = "f32") -> Iterator[OpenVinoInside]:
    """The inner tensors of an IR, run on the CPU in a precision: "f32", "bf16", "f16", or the "default"."""
    yield OpenVinoInside(artifact, threads, hint)
