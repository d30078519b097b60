"""An ONNX graph as TensorFlow operators, of which nothing but TensorFlow's own kernels is needed to run them.

The graph is walked once while a TensorFlow function is traced. A value is one of

- a numpy array: a constant, and whatever follows from constants alone, computed now;
- a TensorFlow tensor;
- `Image`: a tensor with channels last, where the ONNX value has them at axis 1. Convolutions give these, since
  TensorFlow's CPU kernels know no other layout, and element-wise operators pass them on, so that a transpose is made
  only where an operator in between needs ONNX's own order;
- `Integers`: quantised weights, which stay 8 bits wide in the file and are dequantised when the model runs.

Operators are functions `(build, node, *values) -> value or tuple of values` in the table OPERATORS.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optkit.errors import OptkitError, StepError, did_you_mean
from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx.refusal import module_of
from optkit.plugin import need

VARIABLE_FROM_BYTES = 1024
"""Constants from this size on are variables: they lie outside the graph, which ends at 2 GiB."""


@dataclass(frozen=True)
class Node:
    """An ONNX node, its attributes decoded: ints, floats, texts, lists, numpy arrays, graphs."""

    kind: str
    name: str
    attributes: Mapping[str, Any]
    outputs: tuple[str, ...]

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or the default."""
        return self.attributes.get(name, default)


@dataclass(eq=False)
class Image:
    """(batch, *space, channels) for an ONNX value (batch, channels, *space)."""

    last: Any
    _first: dict[int, Any] = field(default_factory=dict)

    def first(self, tf: Any) -> Any:
        """The value as ONNX has it; made once per TensorFlow graph."""
        graph = id(tf.compat.v1.get_default_graph())
        if graph not in self._first:
            rank = self.last.shape.rank
            self._first[graph] = tf.transpose(self.last, [0, rank - 1, *range(1, rank - 1)])
        return self._first[graph]


@dataclass(frozen=True, eq=False)
class Integers:
    """A constant of integers with what makes real numbers of them: (values - zero) * scale, per `axis` if not None."""

    values: Any
    scale: Any
    zero: Any
    axis: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def turned(self, order: Sequence[int]) -> Integers:
        """With axes in another order."""
        axis = None if self.axis is None else list(order).index(self.axis)
        return Integers(self.values.transpose(order), self.scale, self.zero, axis)

    def real(self, build: Build) -> Any:
        """The dequantised tensor: integers from the file, then arithmetic."""
        import numpy as np

        tf = build.tf

        def spread(value: Any) -> Any:
            value = np.asarray(value)
            return value.reshape([-1 if n == self.axis else 1 for n in range(len(self.shape))]) if value.size > 1 else (
                value.reshape(()))  # fmt: skip

        scale = spread(self.scale)
        wide = tf.cast(build.tensor(self.values), scale.dtype)
        if np.any(self.zero):
            wide = wide - spread(self.zero).astype(scale.dtype)
        return wide * scale


Operator = Callable[..., Any]

OPERATORS: dict[str, Operator] = {}
RAW: set[str] = set()
"""Operators that take images and integers as they are; the others get plain tensors and arrays."""

UNFOLDED = {"DequantizeLinear", "If", "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"}


def operator(*kinds: str, raw: bool = False) -> Callable[[Operator], Operator]:
    """Enter a function into the table under one or more ONNX operators."""

    def enter(function: Operator) -> Operator:
        for kind in kinds:
            OPERATORS[kind] = function
            if raw:
                RAW.add(kind)
        return function

    return enter


class Unsupported(Exception):
    """An operator is asked for in a way that there is no TensorFlow operator for; the text says which."""


class Build:
    """One walk over a graph. `opset` is the version of the standard operators."""

    def __init__(self, tf: Any, opset: int) -> None:
        self.tf, self.opset = tf, opset
        self._variables: dict[str, Any] = {}

    # --- values

    def tensor(self, value: Any) -> Any:
        """A value as a tensor in ONNX's layout; large constants as variables."""
        if isinstance(value, Image):
            return value.first(self.tf)
        if isinstance(value, Integers):
            return value.real(self)
        if hasattr(value, "nbytes") and hasattr(value, "tobytes") and not self.tf.is_tensor(value):
            if value.nbytes < VARIABLE_FROM_BYTES or value.dtype.kind in "OSUb":
                return self.tf.constant(value)
            return self.tf.convert_to_tensor(self._variable(value))
        return value

    def _variable(self, value: Any) -> Any:
        """One variable for all arrays of these values: TensorFlow traces twice, and may make variables but once."""
        mark = hashlib.sha256(value.tobytes()).hexdigest() + str((value.dtype, value.shape))
        if mark not in self._variables:
            with self.tf.init_scope():
                name = f"weight_{len(self._variables)}"
                self._variables[mark] = self.tf.Variable(value, trainable=False, name=name)
        return self._variables[mark]

    def plain(self, value: Any) -> Any:
        """A value without its layout: a tensor, or a small array as it is."""
        if value is None or (is_array(value) and value.nbytes < VARIABLE_FROM_BYTES):
            return value
        return self.tensor(value)

    def static(self, value: Any, what: str = "") -> Any:
        """A value that is known now, as a numpy array, else None; with `what` that is Unsupported."""
        import numpy as np

        if isinstance(value, bool | int | float | list):
            return np.asarray(value)
        found = value if is_array(value) or value is None else self.tf.get_static_value(self.tensor(value))
        if found is None and what:
            raise Unsupported(f"{what} must be a constant")
        return None if found is None else np.asarray(found)

    def shape(self, tensor: Any) -> list[Any]:
        """Sizes of a tensor: an int where it is known, else a scalar int64 tensor."""
        known = list(tensor.shape)
        if None not in known:
            return [int(n) for n in known]
        sizes = self.tf.shape(tensor, out_type=self.tf.int64)
        return [sizes[axis] if n is None else int(n) for axis, n in enumerate(known)]

    def dims(self, sizes: Iterable[Any]) -> Any:
        """Sizes, of which some may be tensors, as one int64 vector."""
        parts = list(sizes)
        if all(isinstance(n, int) for n in parts):
            return parts
        return self.tf.stack([self.tf.cast(n, self.tf.int64) for n in parts])

    def rank(self, tensor: Any) -> int:
        """How many axes a value has. Raises Unsupported where that is not known."""
        found = tensor.shape
        rank = found.rank if hasattr(found, "rank") else len(found)
        if rank is None:
            raise Unsupported("the number of axes of its input is not known")
        return int(rank)

    # --- the walk

    def run(self, graph: Any, values: dict[str, Any]) -> dict[str, Any]:
        """Values by name after all nodes of a graph, from those of its inputs; `values` is added to."""
        numpy_helper = need("onnx").numpy_helper
        for held in graph.initializer:
            values[held.name] = _array(numpy_helper.to_array(held))
        for proto in graph.node:
            node = _decoded(proto)
            given = [values[name] if name else None for name in proto.input]
            try:
                made = self.apply(node, given, values)
            except Exception as error:  # TensorFlow raises its own and Python's; all are about this node
                raise _explained(error, proto) from error
            for name, value in zip(node.outputs, made if isinstance(made, tuple) else (made,), strict=False):
                if name:
                    values[name] = value
        return values

    def apply(self, node: Node, given: Sequence[Any], values: Mapping[str, Any]) -> Any:
        """What a node makes of its inputs."""
        function = OPERATORS.get(node.kind)
        if function is None:
            raise Unsupported("there is no TensorFlow operator for it")
        if node.kind == "If":
            return function(self, node, *given, values=values)
        if given and node.kind not in UNFOLDED and all(value is None or is_array(value) for value in given):
            with self.tf.init_scope(), self.tf.device("CPU:0"):
                made = function(self, node, *given)
                return tuple(_settled(m, self.tf) for m in made) if isinstance(made, tuple) else _settled(made, self.tf)
        if node.kind not in RAW:
            given = [self.plain(value) for value in given]
        return function(self, node, *given)


def is_array(value: Any) -> bool:
    """Whether a value is known now."""
    import numpy as np

    return isinstance(value, np.ndarray | np.generic)


def _settled(value: Any, tf: Any) -> Any:
    import numpy as np

    if isinstance(value, Image):
        value = value.first(tf)
    return np.asarray(value.numpy() if tf.is_tensor(value) else value)


def _array(value: Any) -> Any:
    """An array in a type that TensorFlow computes in: 4-bit integers as 8-bit ones."""
    import numpy as np

    narrow = {"int4": np.int8, "uint4": np.uint8, "int2": np.int8, "uint2": np.uint8}.get(str(value.dtype))
    return value if narrow is None else value.astype(narrow)


def _decoded(proto: Any) -> Node:
    onnx = need("onnx")
    attributes: dict[str, Any] = {}
    for attribute in proto.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, onnx.TensorProto):
            value = onnx.numpy_helper.to_array(value)
        attributes[attribute.name] = value
    return Node(onnx_model.operator(proto), proto.name, attributes, tuple(proto.output))


def _explained(error: Exception, proto: Any) -> OptkitError:
    if isinstance(error, OptkitError):
        return error
    module = module_of(proto)
    kind = onnx_model.operator(proto)
    where = f"{kind} (node {proto.name or proto.output[0]})" + (f", used in {module}" if module else "")
    why = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    hint = "replace it in the model, or deliver ONNX, OpenVINO or TFLite instead"
    if isinstance(error, Unsupported):
        near = did_you_mean(kind, OPERATORS, listing=False) if kind not in OPERATORS else ""
        return StepError(f"TensorFlow cannot take {where}: {why}", subject="model",
                         hint="run onnx.simplify before it, which folds constants; or " + hint + (f" ({near})" if near
                         else ""))  # fmt: skip
    return StepError(f"TensorFlow cannot take {where}: {type(error).__name__}: {why[:300]}", subject="model",
                     details=str(error), hint=hint)  # fmt: skip
