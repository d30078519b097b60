"""ONNX's element-wise operators, reductions and products in TensorFlow; see `optkit.formats.onnx_tf.translate`."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

from optkit.formats.onnx_tf.translate import Build, Image, Integers, Node, Unsupported, is_array, operator

Make = Callable[[Any, Node], Callable[[Any], Any]]


def _unary(**made: Make) -> None:
    """Enter operators of one input, each by what makes a function of it; images stay images."""
    for kind, make in made.items():

        def apply(build: Build, node: Node, x: Any, *, _make: Make = make) -> Any:
            function = _make(build.tf, node)
            return Image(function(x.last)) if isinstance(x, Image) else function(build.plain(x))

        operator(kind, raw=True)(apply)


def _named(path: str) -> Make:
    """A function of TensorFlow's by its name."""
    return lambda tf, node: reduce(getattr, path.split("."), tf)


_unary(
    Abs=_named("abs"), Acos=_named("math.acos"), Acosh=_named("math.acosh"), Asin=_named("math.asin"),
    Asinh=_named("math.asinh"), Atan=_named("math.atan"), Atanh=_named("math.atanh"), Ceil=_named("math.ceil"),
    Cos=_named("math.cos"), Cosh=_named("math.cosh"), Erf=_named("math.erf"), Exp=_named("exp"),
    Floor=_named("math.floor"), Identity=_named("identity"), IsNaN=_named("math.is_nan"), Log=_named("math.log"),
    Neg=_named("negative"), Not=_named("logical_not"), Reciprocal=_named("math.reciprocal"), Relu=_named("nn.relu"),
    Round=_named("round"), Sigmoid=_named("sigmoid"), Sign=_named("sign"), Sin=_named("math.sin"),
    Sinh=_named("math.sinh"), Softplus=_named("math.softplus"), Softsign=_named("nn.softsign"), Sqrt=_named("sqrt"),
    Tan=_named("math.tan"), Tanh=_named("tanh"),
    Mish=lambda tf, node: lambda x: x * tf.tanh(tf.math.softplus(x)),
    Swish=lambda tf, node: lambda x: x * tf.sigmoid(node.get("alpha", 1.0) * x),
    Gelu=lambda tf, node: lambda x: tf.nn.gelu(x, approximate=node.get("approximate", "none") == "tanh"),
    HardSigmoid=lambda tf, node: lambda x: tf.clip_by_value(
        node.get("alpha", 0.2) * x + node.get("beta", 0.5), tf.zeros([], x.dtype), tf.ones([], x.dtype)),
    HardSwish=lambda tf, node: lambda x: x * tf.clip_by_value(
        x / 6 + 0.5, tf.zeros([], x.dtype), tf.ones([], x.dtype)),
    LeakyRelu=lambda tf, node: lambda x: tf.nn.leaky_relu(x, node.get("alpha", 0.01)),
    Elu=lambda tf, node: lambda x: tf.where(x > 0, x, node.get("alpha", 1.0) * tf.math.expm1(tf.minimum(x, 0))),
    Celu=lambda tf, node: lambda x: tf.maximum(x, 0) + tf.minimum(
        node.get("alpha", 1.0) * tf.math.expm1(x / node.get("alpha", 1.0)), 0),
    Selu=lambda tf, node: lambda x: node.get("gamma", 1.0507009873554805) * tf.where(
        x > 0, x, node.get("alpha", 1.6732632423543772) * tf.math.expm1(tf.minimum(x, 0))),
    ThresholdedRelu=lambda tf, node: lambda x: tf.where(x > node.get("alpha", 1.0), x, tf.zeros_like(x)),
    Shrink=lambda tf, node: lambda x: tf.where(
        x < -node.get("lambd", 0.5), x + node.get("bias", 0.0),
        tf.where(x > node.get("lambd", 0.5), x - node.get("bias", 0.0), tf.zeros_like(x))),
)  # fmt: skip


def _binary(**functions: Callable[[Any], Callable[[Any, Any], Any]]) -> None:
    for kind, make in functions.items():

        def apply(build: Build, node: Node, *given: Any, _make: Any = make) -> Any:
            function = _make(build.tf)
            return _over(build, given, lambda values: reduce(function, values))

        operator(kind, raw=True)(apply)


def _over(build: Build, given: Any, function: Callable[[list[Any]], Any]) -> Any:
    """An element-wise function, over images where all inputs are, or can be made, such."""
    images = [value for value in given if isinstance(value, Image)]
    if images:
        rank = images[0].last.shape.rank
        last = [_as_last(value, rank) for value in given]
        if all(value is not None for value in last):
            return Image(function([build.plain(value) for value in last]))
    return function([build.plain(value) for value in given])


def _as_last(value: Any, rank: int) -> Any:
    """A value that broadcasts with images of that rank, its channels last; None where that takes a transpose."""
    import numpy as np

    if isinstance(value, Image):
        return value.last if value.last.shape.rank == rank else None
    if is_array(value) and value.size == 1:
        return value.reshape(())
    if is_array(value) and value.ndim in (rank - 1, rank):
        return np.ascontiguousarray(np.moveaxis(value, value.ndim - rank + 1, -1))
    return None


def _div(tf: Any) -> Callable[[Any, Any], Any]:
    def divide(a: Any, b: Any) -> Any:
        a, b = tf.convert_to_tensor(a), tf.convert_to_tensor(b)
        return tf.truncatediv(a, b) if a.dtype.is_integer else tf.divide(a, b)

    return divide


_binary(
    Add=lambda tf: tf.add, Sub=lambda tf: tf.subtract, Mul=lambda tf: tf.multiply, Div=_div,
    And=lambda tf: tf.logical_and, Or=lambda tf: tf.logical_or, Xor=lambda tf: tf.math.logical_xor,
    Equal=lambda tf: tf.equal, Greater=lambda tf: tf.greater, GreaterOrEqual=lambda tf: tf.greater_equal,
    Less=lambda tf: tf.less, LessOrEqual=lambda tf: tf.less_equal, Max=lambda tf: tf.maximum, Min=lambda tf: tf.minimum,
    Sum=lambda tf: tf.add, BitwiseAnd=lambda tf: tf.bitwise.bitwise_and, BitwiseOr=lambda tf: tf.bitwise.bitwise_or,
    BitwiseXor=lambda tf: tf.bitwise.bitwise_xor,
)  # fmt: skip


@operator("Mean", raw=True)
def mean(build: Build, node: Node, *given: Any) -> Any:
    return _over(build, given, lambda values: build.tf.add_n(values) / len(values))


@operator("PRelu", raw=True)
def prelu(build: Build, node: Node, x: Any, slope: Any) -> Any:
    tf = build.tf
    return _over(build, (x, slope), lambda v: tf.maximum(v[0], 0) + v[1] * tf.minimum(v[0], 0))


@operator("Dropout", raw=True)
def dropout(build: Build, node: Node, x: Any, ratio: Any = None, training: Any = None) -> Any:
    known = build.static(False if training is None else training)
    if known is None or bool(known.reshape(())):
        raise Unsupported("it is in training mode: export the model in eval mode")
    return (x, build.tf.ones_like(build.plain(x), build.tf.bool)) if len(node.outputs) > 1 else x


@operator("Pow")
def power(build: Build, node: Node, x: Any, exponent: Any) -> Any:
    tf = build.tf
    x, exponent = tf.convert_to_tensor(x), tf.convert_to_tensor(exponent)
    if x.dtype == exponent.dtype:
        known = build.static(exponent)
        if known is not None and known.size == 1 and float(known.reshape(())) == 2.0:
            return tf.broadcast_to(x * x, tf.broadcast_dynamic_shape(tf.shape(x), tf.shape(exponent))) if (
                known.ndim > build.rank(x)) else x * x  # fmt: skip
        return tf.pow(x, exponent)
    if x.dtype.is_integer and not exponent.dtype.is_integer:
        return tf.cast(tf.pow(tf.cast(x, exponent.dtype), exponent), x.dtype)
    return tf.pow(x, tf.cast(exponent, x.dtype))


@operator("Mod")
def mod(build: Build, node: Node, a: Any, b: Any) -> Any:
    return build.tf.truncatemod(a, b) if node.get("fmod") else build.tf.math.floormod(a, b)


@operator("Clip", raw=True)
def clip(build: Build, node: Node, x: Any, low: Any = None, high: Any = None) -> Any:
    tf = build.tf
    low, high = (node.get(name) if given is None else build.plain(given)
                 for name, given in (("min", low), ("max", high)))  # fmt: skip

    def bound(value: Any) -> Any:
        value = tf.convert_to_tensor(value)
        value = value if low is None else tf.maximum(value, tf.cast(low, value.dtype))
        return value if high is None else tf.minimum(value, tf.cast(high, value.dtype))

    return Image(bound(x.last)) if isinstance(x, Image) else bound(build.plain(x))


@operator("IsInf")
def is_inf(build: Build, node: Node, x: Any) -> Any:
    tf = build.tf
    up, down = node.get("detect_positive", 1), node.get("detect_negative", 1)
    return tf.math.is_inf(x) & (((x > 0) if up else False) | ((x < 0) if down else False))


@operator("Where")
def where(build: Build, node: Node, condition: Any, x: Any, y: Any) -> Any:
    return build.tf.where(condition, x, y)


@operator("Softmax", "LogSoftmax")
def softmax(build: Build, node: Node, x: Any) -> Any:
    tf = build.tf
    function = tf.nn.softmax if node.kind == "Softmax" else tf.nn.log_softmax
    axis = node.get("axis", -1 if build.opset >= 13 else 1)
    rank = build.rank(x)
    if build.opset >= 13 or axis in (-1, rank - 1):
        return function(x, axis=axis)
    sizes = build.shape(x)
    rows = reduce(lambda a, b: a * b, sizes[: axis % rank], 1)
    return tf.reshape(function(tf.reshape(x, build.dims([rows, -1])), axis=-1), build.dims(sizes))


@operator("Hardmax")
def hardmax(build: Build, node: Node, x: Any) -> Any:
    axis = node.get("axis", -1 if build.opset >= 13 else 1)
    if build.opset < 13 and axis not in (-1, build.rank(x) - 1):
        raise Unsupported("before opset 13 its axis must be the last")
    return build.tf.one_hot(build.tf.argmax(x, axis), x.shape[axis], axis=axis, dtype=x.dtype)


# --- reductions

_REDUCTIONS: dict[str, Callable[[Any], Callable[..., Any]]] = {
    "ReduceSum": lambda tf: tf.reduce_sum,
    "ReduceMean": lambda tf: tf.reduce_mean,
    "ReduceMax": lambda tf: tf.reduce_max,
    "ReduceMin": lambda tf: tf.reduce_min,
    "ReduceProd": lambda tf: tf.reduce_prod,
    "ReduceL1": lambda tf: lambda x, **how: tf.reduce_sum(tf.abs(x), **how),
    "ReduceL2": lambda tf: lambda x, **how: tf.sqrt(tf.reduce_sum(x * x, **how)),
    "ReduceSumSquare": lambda tf: lambda x, **how: tf.reduce_sum(x * x, **how),
    "ReduceLogSum": lambda tf: lambda x, **how: tf.math.log(tf.reduce_sum(x, **how)),
    "ReduceLogSumExp": lambda tf: tf.reduce_logsumexp,
}


@operator(*_REDUCTIONS, raw=True)
def reduced(build: Build, node: Node, x: Any, axes: Any = None) -> Any:
    tf = build.tf
    over = node.get("axes") if axes is None else build.static(axes, "axes").reshape(-1).tolist()
    if not over and node.get("noop_with_empty_axes"):
        return x
    keep = bool(node.get("keepdims", 1))
    function = _REDUCTIONS[node.kind](tf)
    if isinstance(x, Image) and over:
        rank = x.last.shape.rank
        moved = [0 if a % rank == 0 else rank - 1 if a % rank == 1 else a % rank - 1 for a in over]
        if keep:
            return Image(function(x.last, axis=moved, keepdims=True))
        if rank - 1 in moved or set(moved) == set(range(1, rank - 1)):  # what is left is in the same order
            return function(x.last, axis=moved, keepdims=False)
    x = tf.convert_to_tensor(build.plain(x))
    if x.dtype == tf.bool:
        function = tf.reduce_any if node.kind == "ReduceMax" else tf.reduce_all  # ONNX has no others of bool
    return function(x, axis=over or None, keepdims=keep)


@operator("ArgMax", "ArgMin")
def arg(build: Build, node: Node, x: Any) -> Any:
    tf = build.tf
    function = tf.argmax if node.kind == "ArgMax" else tf.argmin
    axis = node.get("axis", 0)
    if node.get("select_last_index"):
        found = tf.shape(x, out_type=tf.int64)[axis] - 1 - function(tf.reverse(x, [axis]), axis=axis)
    else:
        found = function(x, axis=axis)
    return tf.expand_dims(found, axis) if node.get("keepdims", 1) else found


@operator("CumSum")
def cumsum(build: Build, node: Node, x: Any, axis: Any) -> Any:
    return build.tf.cumsum(x, axis=int(build.static(axis, "the axis").reshape(())), exclusive=bool(
        node.get("exclusive")), reverse=bool(node.get("reverse")))  # fmt: skip


@operator("TopK")
def top_k(build: Build, node: Node, x: Any, k: Any = None) -> Any:
    tf = build.tf
    count = tf.cast(tf.reshape(node.get("k") if k is None else k, []), tf.int32)
    axis, rank = node.get("axis", -1), build.rank(x)
    order = [*(a for a in range(rank) if a != axis % rank), axis % rank]
    back = [order.index(a) for a in range(rank)]
    turned = tf.transpose(tf.convert_to_tensor(x), order)
    values, places = tf.math.top_k(turned if node.get("largest", 1) else -turned, count)
    values = values if node.get("largest", 1) else -values
    return tf.transpose(values, back), tf.cast(tf.transpose(places, back), tf.int64)


# --- products


@operator("MatMul", raw=True)
def matmul(build: Build, node: Node, a: Any, b: Any) -> Any:
    tf = build.tf
    a, b = build.tensor(a), build.tensor(b)
    left, right = build.rank(a), build.rank(b)
    a = a[None] if left == 1 else a
    b = b[:, None] if right == 1 else b
    if build.rank(b) == 2 and build.rank(a) > 2:  # as one product of matrices, which is faster than many small ones
        sizes = build.shape(a)
        made = tf.matmul(tf.reshape(a, build.dims([-1, sizes[-1]])), b)
        made = tf.reshape(made, build.dims([*sizes[:-1], build.shape(b)[-1]]))
    else:
        made = tf.matmul(a, b)
    if left == 1:
        made = tf.squeeze(made, -2)
    return tf.squeeze(made, -1) if right == 1 else made


@operator("Gemm", raw=True)
def gemm(build: Build, node: Node, a: Any, b: Any, c: Any = None) -> Any:
    import numpy as np

    tf = build.tf
    if node.get("transB") and isinstance(b, Integers):
        b = b.turned([1, 0])
    elif node.get("transB") and is_array(b):
        b = np.ascontiguousarray(b.T)
    elif node.get("transB"):
        b = tf.transpose(build.tensor(b))
    a = build.tensor(a)
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    made = tf.matmul(a, build.tensor(b), transpose_a=bool(node.get("transA")))
    made = made if alpha == 1.0 else tf.cast(alpha, made.dtype) * made
    if c is None:
        return made
    c = build.plain(c)
    return made + (c if beta == 1.0 else tf.cast(beta, made.dtype) * c)


@operator("Einsum")
def einsum(build: Build, node: Node, *given: Any) -> Any:
    return build.tf.einsum(node.get("equation"), *given)


@operator("MatMulInteger")
def matmul_integer(build: Build, node: Node, a: Any, b: Any, a_zero: Any = None, b_zero: Any = None) -> Any:
    tf = build.tf
    a, b = tf.cast(a, tf.int32), tf.cast(b, tf.int32)
    if a_zero is not None:
        zero = tf.cast(a_zero, tf.int32)
        a = a - (zero[:, None] if build.rank(zero) == 1 and zero.shape[0] != 1 else zero)
    if b_zero is not None:
        b = b - tf.cast(b_zero, tf.int32)
    return matmul(build, node, a, b)
