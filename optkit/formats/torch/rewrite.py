"""Operators of a torch.export program written in terms that every runtime has, with the same result.

A runtime may know an operator in its usual form alone: an average over a window larger than the image (OpenVINO and
TensorRT refuse it), patches that do not overlap cut out and put back with im2col and col2im (TensorRT has neither), a
float minus integers (the ONNX exporter stumbles over its types), sliding windows with `Tensor.unfold` (OpenVINO fails).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optkit.plugin import need


def rewrite(program: Any) -> None:
    """Replace, in a program that torch.export just made, what `_RULES` know; the rest stays as it is."""
    torch = need("torch")
    graph, changed = program.graph_module.graph, False
    for node in list(graph.nodes):
        rule = _RULES.get(str(node.target)) if node.op == "call_function" else None
        if rule is None:
            continue
        with graph.inserting_before(node):
            made = rule(torch, graph, node)
        if made is None:
            continue
        node.replace_all_uses_with(made)
        graph.erase_node(node)
        changed = True
    if changed:
        _rename_outputs(program)
        graph.lint()
        program.graph_module.recompile()


def _mean_of_all(torch: Any, graph: Any, node: Any) -> Any:
    """avg_pool2d whose one window is larger than the image, so that `ceil_mode` cuts it: the mean over the image."""
    image, kernel, padding, divisor = (_argument(node, i) for i in (0, 1, 3, 6))
    size, out = image.meta["val"].shape[-2:], node.meta["val"].shape[-2:]
    kernel = [*kernel] * (2 // len(kernel))
    fits = all(isinstance(n, int) for n in (*size, *out)) and tuple(out) == (1, 1)
    if not fits or any(padding) or divisor is not None or not any(k > n for k, n in zip(kernel, size, strict=True)):
        return None
    if any(k < n for k, n in zip(kernel, size, strict=True)):
        return None
    return _call(graph, node, torch.ops.aten.mean.dim, image, [-2, -1], True)


def _cut(torch: Any, graph: Any, node: Any) -> Any:
    """im2col of patches that do not overlap: a view, its axes in another order, and a view of that."""
    image, kernel, dilation, padding, stride = (_argument(node, i) for i in range(5))
    shape = image.meta["val"].shape
    if len(shape) != 4 or not _tiles(shape[-2:], kernel, dilation, padding, stride) or not isinstance(shape[1], int):
        return None
    (rows, columns), channels = [n // k for n, k in zip(shape[-2:], kernel, strict=True)], shape[1]
    aten = torch.ops.aten
    tiles = _call(graph, node, aten.view.default, image, [-1, channels, rows, kernel[0], columns, kernel[1]])
    turned = _call(graph, node, aten.permute.default, tiles, [0, 1, 3, 5, 2, 4])
    return _call(graph, node, aten.reshape.default, turned, [-1, channels * kernel[0] * kernel[1], rows * columns])


def _put_back(torch: Any, graph: Any, node: Any) -> Any:
    """col2im of patches that do not overlap, the reverse of `_cut`."""
    patches, size, kernel, dilation, padding, stride = (_argument(node, i) for i in range(6))
    shape = patches.meta["val"].shape
    if len(shape) != 3 or not _tiles(size, kernel, dilation, padding, stride) or not isinstance(shape[1], int):
        return None
    rows, columns = (n // k for n, k in zip(size, kernel, strict=True))
    channels = shape[1] // (kernel[0] * kernel[1])
    aten = torch.ops.aten
    tiles = _call(graph, node, aten.reshape.default, patches, [-1, channels, *kernel, rows, columns])
    turned = _call(graph, node, aten.permute.default, tiles, [0, 1, 4, 2, 5, 3])
    return _call(graph, node, aten.reshape.default, turned, [-1, channels, *size])


def _windows(torch: Any, graph: Any, node: Any) -> Any:
    """Tensor.unfold of an axis of known length: one strided slice per place in the window, stacked."""
    tensor, axis, size, step = (_argument(node, i) for i in range(4))
    length = tensor.meta["val"].shape[axis]
    if not isinstance(length, int) or not 0 < size <= _WIDEST:
        return None
    span = (length - size) // step * step + 1
    aten = torch.ops.aten
    slices = [_call(graph, node, aten.slice.Tensor, tensor, axis, at, at + span, step) for at in range(size)]
    return _call(graph, node, aten.stack.default, slices, -1)


def _from_float(torch: Any, graph: Any, node: Any) -> Any:
    """rsub of integers from a float, as in `1.0 - mask`: of their floats."""
    tensor, other, alpha = (_argument(node, i) for i in range(3))
    dtype = node.meta["val"].dtype
    if tensor.meta["val"].dtype == dtype:
        return None
    aten = torch.ops.aten
    return _call(graph, node, aten.rsub.Scalar, _call(graph, node, aten.to.dtype, tensor, dtype), other, alpha)


_RULES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "aten.avg_pool2d.default": _mean_of_all,
    "aten.rsub.Scalar": _from_float,
    "aten.im2col.default": _cut,
    "aten.col2im.default": _put_back,
    "aten.unfold.default": _windows,
}
_WIDEST = 64
"""The widest window that is written as that many slices."""


def _tiles(size: Any, kernel: Any, dilation: Any, padding: Any, stride: Any) -> bool:
    """Whether patches cover an image of known size without gap and overlap."""
    known = all(isinstance(n, int) for n in size)
    return (
        known
        and not any(padding)
        and all(n == 1 for n in dilation)
        and list(stride) == list(kernel)
        and all(n % k == 0 for n, k in zip(size, kernel, strict=True))
    )


def _argument(node: Any, index: int) -> Any:
    """An argument by its place in the operator's schema, with its default where the call leaves it out."""
    schema = node.target._schema.arguments[index]
    if index < len(node.args):
        return node.args[index]
    return node.kwargs.get(schema.name, schema.default_value if schema.has_default_value() else None)


def _call(graph: Any, old: Any, target: Any, *arguments: Any) -> Any:
    """A new node with the fake tensor it gives, otherwise told to be from where `old` is: errors name that place."""
    made = graph.call_function(target, arguments)
    made.meta.update({key: value for key, value in old.meta.items() if key not in ("val", "tensor_meta")})
    tensors = [_value(argument) for argument in arguments]
    first = tensors[0][0] if isinstance(tensors[0], list) else tensors[0]
    with first.fake_mode:
        made.meta["val"] = target(*tensors)
    return made


def _value(argument: Any) -> Any:
    """What a node is known to give; other arguments as they are."""
    if isinstance(argument, list):
        return [_value(item) for item in argument]
    return argument.meta["val"] if hasattr(argument, "meta") else argument


def _rename_outputs(program: Any) -> None:
    """Outputs go by the name of the node that gives them."""
    names = [argument.name for argument in program.graph.output_node().args[0] if hasattr(argument, "name")]
    for spec, name in zip(program.graph_signature.output_specs, names, strict=False):
        spec.arg.name = name
