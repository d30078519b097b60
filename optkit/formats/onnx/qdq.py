"""Static quantisation of an ONNX graph: pairs of QuantizeLinear and DequantizeLinear around 8-bit operators.

Weights are quantised here, one at a time; onnxruntime's quantiser places the pairs around activations, in a graph
whose weights it need not read.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.errors import StepError
from optkit.formats.onnx import weights as onnx_weights
from optkit.formats.onnx.integer import FLOAT, FLOAT16, Kind, Rewrite, Weight, channel_axis, measure, weight_input

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optkit.formats.onnx.ranges import Ranges

    Array = NDArray[Any]

_INT32 = 2**31 - 1
_HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FLOAT_OUT = ("Gemm", "MatMul")  # onnxruntime's integer products give floats as fast, and far closer ones


@dataclass
class Static:
    """A static quantisation before it is done. targets: the nodes to quantise; types: of every value of the graph.

    tensorrt: one pair per consumer, none behind a product or convolution, bias in float. Products of two activations
    stay float: they gain little, and attention loses much. left: why targets were left alone, with how many each.
    each_weight: called with every node and its weight, before biases are quantised.
    """

    rewrite: Rewrite
    targets: Sequence[Any]
    types: Mapping[str, int]
    activation_type: Kind
    symmetric: bool
    tensorrt: bool
    left: Counter[str] = field(default_factory=Counter)
    each_weight: Callable[[Any, Weight], None] = lambda node, weight: None

    def __post_init__(self) -> None:
        found = []
        for node in self.targets:
            unknown = [name for name in (*node.input, *node.output) if name and name not in self.types]
            if unknown:
                raise StepError(f"the type of {unknown[0]!r}, at {node.op_type} {node.name!r}, is unknown",
                                hint="run onnx.simplify first, or name the node in with.exclude")  # fmt: skip
            constant = any(name in self.rewrite.initializers for name in node.input)
            if not any(self.types.get(name) in (FLOAT, FLOAT16) for name in (*node.input, *node.output)):
                self.left["not floating point"] += 1
            elif node.op_type in _HEAVY and not constant:
                self.left["without a constant weight"] += 1
            else:
                found.append(node)
        self.targets = found

    def activations(self) -> dict[str, int]:
        """The tensors whose range is needed, with their ONNX types."""
        names = [name for node in self.targets for name in (*node.input, *(() if self._bare(node) else node.output))]
        return {
            name: self.types[name]
            for name in names
            if name and self.types[name] in (FLOAT, FLOAT16) and name not in self.rewrite.initializers
        }

    def _bare(self, node: Any) -> bool:
        """Whether a node's output stays unquantised."""
        return node.op_type in (_HEAVY if self.tensorrt else _FLOAT_OUT)

    def insert(self, ranges: Ranges, op_types: Sequence[str]) -> list[str]:
        """Rewrite the graph; returns what onnxruntime's quantiser had to say."""
        import numpy as np
        from onnxruntime.quantization import CalibrationMethod, QuantType
        from onnxruntime.quantization.calibrate import TensorData, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        model, scheme = self.rewrite.model, self.rewrite.scheme
        self._weights(ranges)
        data = {}
        for name, (low, high) in ranges.items():
            dtype = np.float16 if self.types[name] == FLOAT16 else np.float32
            data[name] = TensorData(lowest=np.array(low, dtype), highest=np.array(high, dtype))
        kinds = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}
        extra = {
            "ActivationSymmetric": self.symmetric, "WeightSymmetric": True, "QuantizeBias": not self.tensorrt,
            "DedicatedQDQPair": self.tensorrt,
            "OpTypesToExcludeOutputQuantization": _HEAVY if self.tensorrt else _FLOAT_OUT,
        }  # fmt: skip
        mark = model.metadata_props.add(key="onnx.infer", value="onnxruntime.quant")  # its types are known already
        with _captured() as messages:
            quantiser = QDQQuantizer(model, scheme.per_channel, scheme.reduce_range, kinds[scheme.kind],
                                     kinds[self.activation_type], TensorsData(CalibrationMethod.MinMax, data),
                                     [node.name for node in self.targets], [], list(op_types), extra)  # fmt: skip
            quantiser.quantize_model()
            self._spare_others(ranges)
            quantiser.model.topological_sort()
        model.metadata_props.remove(mark)
        lost = [text for text in messages if "exceeds the range" in text or "failed to infer" in text]
        if lost:
            raise StepError(f"onnxruntime's quantiser: {lost[0]}", hint="name the node in with.exclude")
        self.rewrite.prune()
        return messages

    def _spare_others(self, ranges: Ranges) -> None:
        """Give nodes that stay float the float value of what only other nodes need quantised, such as a residual."""
        quantised = {name for node in self.targets if not self._bare(node) for name in node.output}
        targets = {node.name for node in self.targets}
        spared = {f"{name}_DequantizeLinear_Output": name for name in ranges if name not in quantised}
        for node in self.rewrite.model.graph.node:
            if node.name in targets:
                continue
            for i, name in enumerate(node.input):
                if name in spared:
                    node.input[i] = spared[name]

    def _weights(self, ranges: Ranges) -> None:
        """Put integers and a DequantizeLinear in the place of every target's constant weight."""
        import numpy as np
        import onnx

        rewrite, model = self.rewrite, self.rewrite.model
        uses: dict[tuple[str, int | None], list[Any]] = {}
        for node in self.targets:
            for index, name in enumerate(node.input):
                tensor = rewrite.initializers.get(name)
                if tensor is None or tensor.data_type not in (FLOAT, FLOAT16):
                    continue
                rank = len(tensor.dims)
                if index == weight_input(node) and node.op_type in _HEAVY:
                    axis = channel_axis(node, rank) if rewrite.scheme.per_channel else None
                    uses.setdefault((name, axis), []).append(node)
                elif node.op_type == "MatMul":
                    uses.setdefault((name, None), []).append(node)
                else:  # a bias, or a constant of an operator between products: its values go to the quantiser
                    onnx_weights.load_small([tensor], rewrite.folder, 1 << 62)
        dequantise = []
        for (name, axis), nodes in uses.items():
            floor = functools.reduce(np.maximum, [self._bias_floor(node, axis, ranges) for node in nodes])
            weight = measure(rewrite.initializers[name], rewrite.folder, axis, rewrite.scheme, floor)
            integers = rewrite.integers(weight)
            output = ""
            for node in nodes:
                if node.input[1] == name:
                    self.each_weight(node, weight)
                if self.tensorrt or not output:
                    output = rewrite.fresh(f"{name}_dequantized")
                    dequantise.append(onnx.helper.make_node("DequantizeLinear", list(integers), [output], axis=axis,
                                                            name=output))  # fmt: skip
                    model.graph.value_info.append(
                        onnx.helper.make_tensor_value_info(
                            output, rewrite.initializers[name].data_type, list(rewrite.initializers[name].dims)
                        )
                    )
                for i in [i for i, source in enumerate(node.input) if source == name]:
                    node.input[i] = output
        nodes = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend([*dequantise, *nodes])
        by_name = {node.name: node for node in model.graph.node}
        self.targets = [by_name[node.name] for node in self.targets]

    def _bias_floor(self, node: Any, axis: int | None, ranges: Ranges) -> Array | float:
        """The smallest weight scale at which a node's bias fits 32 bits at the scale input x weight."""
        import numpy as np

        name = node.input[2] if node.op_type in ("Conv", "ConvTranspose", "Gemm") and len(node.input) > 2 else ""
        if self.tensorrt or name not in self.rewrite.initializers or node.input[0] not in ranges:
            return 0.0
        low, high = ranges[node.input[0]]
        span = 2 * max(abs(low), abs(high)) / 254 if self.symmetric else (max(high, 0.0) - min(low, 0.0)) / 255
        bias = np.abs(onnx_weights.read(self.rewrite.initializers[name], self.rewrite.folder)).astype(np.float64)
        if span <= 0 or not bias.size:
            return 0.0
        floor: Array = 1.001 * bias / (span * _INT32)
        per_channel = axis is not None and floor.ndim == 1 and node.op_type != "ConvTranspose"
        return floor if per_channel else float(floor.max())


@contextlib.contextmanager
def _captured() -> Iterator[list[str]]:
    """Collect what onnxruntime's quantiser logs, which it does on the root logger."""
    messages: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if Path(record.pathname).parent.name == "quantization":
                messages.append(record.getMessage())

    handler = Collect(logging.WARNING)
    root = logging.getLogger()
    others = root.handlers[:]
    root.handlers[:] = [handler]
    try:
        yield messages
    finally:
        root.handlers[:] = others
        messages[:] = dict.fromkeys(messages)
