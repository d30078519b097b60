"""A TensorFlow function as one graph of constants and operators, as converters read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from optkit.artifact import Signature
from optkit.formats.tensorflow import core as tf_core
from optkit.formats.tensorflow.savedmodel_write import tensor_spec
from optkit.plugin import need


@dataclass(frozen=True)
class Frozen:
    """graph: a GraphDef, variables as constants and calls inlined. inputs, outputs: tensors ("x:0"), in order."""

    graph: Any
    inputs: list[str]
    outputs: list[str]

    def operators(self) -> dict[str, list[str]]:
        """Per operator the names of its nodes, those of its functions too."""
        found: dict[str, list[str]] = {}
        for nodes in (self.graph.node, *(f.node_def for f in self.graph.library.function)):
            for node in nodes:
                found.setdefault(node.op, []).append(node.name)
        return found


def frozen(call: Callable[[Mapping[str, Any]], Mapping[str, Any]], signature: Signature) -> Frozen:
    """The graph of `call`, which takes and gives tensors by the signature's names. Dynamic dims stay open."""
    tf = tf_core.load()
    convert = need("tensorflow.python.framework.convert_to_constants", tf_core.DISTRIBUTION)
    names = [spec.name for spec in signature.inputs]

    def serve(*tensors: Any) -> list[Any]:
        made = call(dict(zip(names, tensors, strict=True)))
        return [tf.identity(made[spec.name]) for spec in signature.outputs]

    with tf.device("CPU:0"), tf_core.quiet():
        specs = [tensor_spec(tf, spec, f"input_{index}") for index, spec in enumerate(signature.inputs)]
        traced = tf.function(serve, input_signature=specs, autograph=False).get_concrete_function()
        held = convert.convert_variables_to_constants_v2(traced, lower_control_flow=False)
    return Frozen(held.graph.as_graph_def(), [t.name for t in held.inputs], [t.name for t in held.outputs])
