"""Layers that a Q/DQ graph keeps in float, kept so when onnxruntime runs it.

Where a convolution or product with a float weight reads a DequantizeLinear and its output goes to a QuantizeLinear,
onnxruntime 1.32 quantises the weight by itself and runs an integer kernel: the float weight in the file then says
nothing. A Sum of one input between the output and the QuantizeLinear copies its values, and no optimiser of onnxruntime
removes it, while an Identity goes.
"""

from __future__ import annotations

from typing import Any

from optkit.formats.onnx.integer import Rewrite, weight_input

THROUGH = ("Clip", "LeakyRelu", "Relu")
"""Activations that onnxruntime looks through on its way to the QuantizeLinear."""


def shield(rewrite: Rewrite) -> int:
    """Put a Sum behind each layer that is to stay float and would not; how many there were."""
    import onnx

    graph = rewrite.model.graph
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def quantised(name: str) -> list[tuple[str, list[Any]]]:
        """The tensors on the way from an output that are quantised, with the nodes that do it."""
        found = [node for node in readers.get(name, ()) if node.op_type == "QuantizeLinear" and node.input[0] == name]
        rest = [node for node in readers.get(name, ()) if node.op_type in THROUGH and node.input[0] == name]
        return [*([(name, found)] if found else []), *(pair for node in rest for pair in quantised(node.output[0]))]

    shielded, added = 0, {}
    for node in graph.node:
        index = weight_input(node)
        if index != 1 or node.input[1] not in rewrite.initializers:
            continue
        feed = makers.get(node.input[0])
        if feed is None or feed.op_type != "DequantizeLinear":
            continue
        ends = quantised(node.output[0])
        shielded += bool(ends)
        for name, quantisers in ends:
            copied = rewrite.fresh(f"{name}_float")
            added[name] = onnx.helper.make_node("Sum", [name], [copied], name=copied)
            for quantiser in quantisers:
                quantiser.input[0] = copied
    if added:
        nodes = list(graph.node)
        del graph.node[:]
        for node in nodes:
            graph.node.append(node)
            graph.node.extend(added[name] for name in node.output if name in added)
    return shielded


__all__ = ["shield"]
