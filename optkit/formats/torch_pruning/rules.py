"""What each operator of an exported program does with channels: the table of rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from optkit.formats.torch_pruning import layers, shapes
from optkit.formats.torch_pruning.call import Call, none, shape_of, unknown
from optkit.formats.torch_pruning.units import Axes, combine
from optkit.plugin import need

if TYPE_CHECKING:
    from optkit.formats.torch_pruning.graph import Graph


POINTWISE = frozenset({
    "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "contiguous", "alias", "detach", "to",
    "type_as", "hardswish", "hardtanh", "relu6", "zeros_like", "ones_like", "full_like", "rand_like", "_to_copy",
    "selu", "celu", "lift_fresh_copy", "fill", "float_power", "square", "where", "masked_fill", "rrelu", "log_sigmoid",
    "clamp", "softplus", "expand_as",
})  # fmt: skip
"""Operators that work position by position and are not tagged so by torch."""

Rule = Callable[[Call], Any]

RULES: dict[str, Rule] = {
    "linear": layers.linear,
    "addmm": layers.addmm,
    "embedding": layers.embedding,
    "batch_norm": layers.batch_norm, "instance_norm": layers.batch_norm,
    "_native_batch_norm_legit_no_training": layers.batch_norm,
    "group_norm": layers.group_norm,
    "layer_norm": layers.layer_norm, "rms_norm": layers.layer_norm,
    "prelu": layers.prelu,
    "scaled_dot_product_attention": layers.attention,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution"), layers.conv),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), layers.conv_transpose),
    **dict.fromkeys(("matmul", "bmm", "mm"), layers.matmul),
    **dict.fromkeys((
        "view", "reshape", "_unsafe_view", "flatten", "unflatten", "_reshape_alias", "view_copy",
    ), shapes.view),
    **dict.fromkeys(("permute", "transpose", "t", "numpy_T", "mT", "movedim"), shapes.permute),
    "unsqueeze": shapes.unsqueeze, "squeeze": shapes.squeeze, "expand": shapes.expand, "repeat": shapes.repeat,
    **dict.fromkeys(("cat", "concat", "concatenate"), shapes.cat), "stack": shapes.stack,
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split"), shapes.split),
    "unbind": shapes.unbind, "select": shapes.dropped, "slice": shapes.cut, "index": shapes.index,
    "gather": shapes.gather,
    **dict.fromkeys(("pad", "constant_pad_nd"), shapes.pad),
    **dict.fromkeys((
        "mean", "sum", "amax", "amin", "max", "min", "prod", "var", "std", "norm", "linalg_vector_norm", "softmax",
        "log_softmax", "_softmax", "cumsum", "roll", "flip", "argmax", "argmin", "any", "all", "logsumexp",
    ), shapes.along),
    **dict.fromkeys((
        "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d",
        "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool2d", "max_pool2d_with_indices",
        "upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
    ), shapes.pool),
    "pixel_shuffle": shapes.pixel_shuffle,
    "tril": shapes.cut_triangle, "triu": shapes.cut_triangle,
    **dict.fromkeys(("_assert_tensor_metadata", "arange", "new_ones", "new_zeros", "zeros", "ones", "full", "empty",
                     "scalar_tensor", "_assert_async", "_assert_scalar"), none),
}  # fmt: skip


def apply(graph: Graph, node: Any) -> Any:
    """The units of an operator's result: axes, or a list of them where it gives several tensors."""
    torch = need("torch")
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return unknown(Call(graph, node, getattr(target, "__name__", str(target)), {}))
    arguments = target._schema.arguments
    given = {a.name: a.default_value for a in arguments if a.has_default_value()}
    given |= {a.name: value for a, value in zip(arguments, node.args, strict=False)} | dict(node.kwargs)
    name = target._schema.name.removeprefix("aten::")
    call = Call(graph, node, name, given)
    rule = RULES.get(name) or RULES.get(name.rstrip("_"))
    if rule is not None:
        return rule(call)
    if torch.Tag.pointwise in target.tags or name.rstrip("_") in POINTWISE:
        return _pointwise(call)
    return unknown(call)


def _pointwise(call: Call) -> Axes:
    cast = call.name in ("to", "type_as")  # of the other tensor they take the type alone
    named = [v for name, v in call.given.items() if hasattr(v, "op") and not (cast and name == "other")]
    tensors = [v for v in named if hasattr(v.meta.get("val"), "shape")]
    if not tensors:
        return (None,) * len(call.out)
    made = combine(
        call.units, [call.axes(v) for v in tensors], [shape_of(v) for v in tensors], f"{call.name} {call.where}"
    )
    return (None,) * (len(call.out) - len(made)) + made


__all__ = ["RULES", "apply"]
