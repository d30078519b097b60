"""ONNX's operators on shapes, places and types in TensorFlow; see `optkit.formats.onnx_tf.translate`."""

from __future__ import annotations

from typing import Any

from optkit.formats.onnx_tf.translate import Build, Image, Node, Unsupported, operator
from optkit.plugin import need

_END = (1 << 31) - 1


@operator("Constant")
def constant(build: Build, node: Node) -> Any:
    import numpy as np

    for name, kind in (("value", None), ("value_float", np.float32), ("value_floats", np.float32),
                       ("value_int", np.int64), ("value_ints", np.int64)):  # fmt: skip
        if node.get(name) is not None:
            return np.asarray(node.get(name), kind)
    raise Unsupported("only numbers can be constants")


@operator("ConstantOfShape")
def constant_of_shape(build: Build, node: Node, shape: Any) -> Any:
    import numpy as np

    value = node.get("value", np.zeros(1, np.float32)).reshape(())
    return build.tf.fill(shape, value)


def _type(build: Build, number: int) -> Any:
    onnx = need("onnx")
    return build.tf.dtypes.as_dtype(onnx.helper.tensor_dtype_to_np_dtype(number))


@operator("Cast", raw=True)
def cast(build: Build, node: Node, x: Any) -> Any:
    tf, kind = build.tf, _type(build, node.get("to"))

    def make(value: Any) -> Any:
        value = tf.convert_to_tensor(value)
        return tf.not_equal(value, tf.zeros([], value.dtype)) if kind == tf.bool and value.dtype != tf.bool else (
            tf.cast(value, kind))  # fmt: skip

    return Image(make(x.last)) if isinstance(x, Image) else make(build.plain(x))


@operator("CastLike")
def cast_like(build: Build, node: Node, x: Any, like: Any) -> Any:
    return build.tf.cast(x, build.tf.convert_to_tensor(like).dtype)


@operator("Shape", raw=True)
def shape(build: Build, node: Node, x: Any) -> Any:
    import numpy as np

    x = x if hasattr(x, "shape") and not isinstance(x, Image) else build.tensor(x)
    known = list(x.shape)[node.get("start", 0) : node.get("end", None)]
    if None not in known:
        return np.array([int(n) for n in known], np.int64)
    return build.tf.shape(x, out_type=build.tf.int64)[node.get("start", 0) : node.get("end", None)]


@operator("Size")
def size(build: Build, node: Node, x: Any) -> Any:
    import numpy as np

    if x.shape is not None and None not in list(x.shape):
        return np.array(np.prod(list(x.shape)), np.int64)
    return build.tf.size(x, out_type=build.tf.int64)


@operator("Reshape")
def reshape(build: Build, node: Node, x: Any, target: Any = None) -> Any:
    tf = build.tf
    known = build.static(node.get("shape") if target is None else target)
    sizes = build.shape(x)
    if known is not None:
        asked = [int(n) for n in known.reshape(-1)]
        if not node.get("allowzero"):
            asked = [sizes[axis] if n == 0 else n for axis, n in enumerate(asked)]
        return tf.reshape(x, build.dims(asked))
    if not node.get("allowzero"):
        length = target.shape[0]
        if length is None:
            raise Unsupported("the number of axes of its result is not known")
        own = build.dims([*sizes, *[1] * length][:length])
        target = tf.where(tf.equal(target, 0), tf.cast(own, target.dtype), target)
    return tf.reshape(x, target)


@operator("Flatten")
def flatten(build: Build, node: Node, x: Any) -> Any:
    axis = node.get("axis", 1)
    sizes = build.shape(x)
    axis += len(sizes) if axis < 0 else 0
    rows: Any = 1
    for n in sizes[:axis]:
        rows = rows * n
    left = sizes[axis:]
    if all(isinstance(n, int) for n in left):
        columns = 1
        for n in left:
            columns *= n
        return build.tf.reshape(x, build.dims([-1 if columns else rows, columns]))
    return build.tf.reshape(x, build.dims([rows, -1]))


def _axes(build: Build, node: Node, given: Any) -> list[int] | None:
    if given is not None:
        return [int(n) for n in build.static(given, "axes").reshape(-1)]
    return node.get("axes")  # type: ignore[no-any-return]


@operator("Squeeze")
def squeeze(build: Build, node: Node, x: Any, axes: Any = None) -> Any:
    return build.tf.squeeze(x, _axes(build, node, axes))


@operator("Unsqueeze")
def unsqueeze(build: Build, node: Node, x: Any, axes: Any = None) -> Any:
    wanted = _axes(build, node, axes) or []
    rank = build.rank(x) + len(wanted)
    for axis in sorted(a % rank for a in wanted):
        x = build.tf.expand_dims(x, axis)
    return x


@operator("Transpose")
def transpose(build: Build, node: Node, x: Any) -> Any:
    return build.tf.transpose(x, node.get("perm"))


@operator("Concat", raw=True)
def concat(build: Build, node: Node, *given: Any) -> Any:
    axis = node.get("axis", 1)
    if all(isinstance(value, Image) for value in given):
        rank = given[0].last.shape.rank
        moved = {0: 0, 1: rank - 1}.get(axis % rank, axis % rank - 1)
        return Image(build.tf.concat([value.last for value in given], moved))
    return build.tf.concat([build.plain(value) for value in given], axis)


@operator("Split")
def split(build: Build, node: Node, x: Any, sizes: Any = None) -> Any:
    tf, axis = build.tf, node.get("axis", 0)
    wanted = node.get("split") if sizes is None else [int(n) for n in build.static(sizes, "the sizes")]
    if wanted is None:
        whole, count = x.shape[axis], node.get("num_outputs") or len(node.outputs)
        if whole is None:
            raise Unsupported("the axis it splits must have a known size")
        each = -(-whole // count)
        wanted = [min(each, whole - each * n) for n in range(count)]
    return tuple(tf.split(x, wanted, axis))


@operator("Slice")
def slice_(build: Build, node: Node, x: Any, starts: Any = None, ends: Any = None, axes: Any = None,
           steps: Any = None) -> Any:  # fmt: skip
    tf = build.tf
    rank = build.rank(x)
    first, last = node.get("starts") if starts is None else starts, node.get("ends") if ends is None else ends
    count = len(first) if isinstance(first, list) else first.shape[0]
    over = node.get("axes") if axes is None else build.static(axes, "axes").tolist()
    over = list(range(count)) if over is None else over
    strides = [1] * count if steps is None else [int(n) for n in build.static(steps, "steps")]
    begins, finishes = _each(build, first, count), _each(build, last, count)
    cuts: list[Any] = [slice(None)] * rank
    for axis, begin, end, step in zip(over, begins, finishes, strides, strict=True):
        begin = None if isinstance(begin, int) and (begin >= _END if step < 0 else begin <= -_END) else begin
        end = None if isinstance(end, int) and (end <= -_END if step < 0 else end >= _END) else end
        cuts[axis % rank] = slice(begin, end, step)
    return tf.convert_to_tensor(x)[tuple(cuts)]


def _each(build: Build, vector: Any, count: int) -> list[Any]:
    """A vector's elements: ints where they are known, else scalars."""
    known = vector if isinstance(vector, list) else build.static(vector)
    return [int(n) for n in known] if known is not None else [vector[n] for n in range(count)]


def _positive(build: Build, indices: Any, size: Any) -> Any:
    """Indices from the end as those from the start, which TensorFlow takes alone."""
    import numpy as np

    known = build.static(indices)
    if known is not None and (isinstance(size, int) or not (known < 0).any()):
        return np.where(known < 0, known + size, known).astype(known.dtype) if (known < 0).any() else indices
    tf = build.tf
    indices = tf.convert_to_tensor(indices)
    return tf.where(indices < 0, indices + tf.cast(size, indices.dtype), indices)


@operator("Gather")
def gather(build: Build, node: Node, x: Any, indices: Any) -> Any:
    axis = node.get("axis", 0)
    x = build.tf.convert_to_tensor(x)
    return build.tf.gather(x, _positive(build, indices, build.shape(x)[axis]), axis=axis)


@operator("GatherElements")
def gather_elements(build: Build, node: Node, x: Any, indices: Any) -> Any:
    tf, axis = build.tf, node.get("axis", 0)
    x = tf.convert_to_tensor(x)
    places = _grid(build, _positive(build, indices, build.shape(x)[axis]), axis % build.rank(x))
    return tf.gather_nd(x, places)


def _grid(build: Build, indices: Any, axis: int) -> Any:
    """(..., rank): the full place of each index along `axis`."""
    tf = build.tf
    indices = tf.cast(indices, tf.int64)
    sizes = build.shape(indices)
    target = build.dims(sizes)
    parts = []
    for place, n in enumerate(sizes):
        if place == axis:
            parts.append(indices)
            continue
        line = tf.reshape(tf.range(tf.cast(n, tf.int64)), [-1 if a == place else 1 for a in range(len(sizes))])
        parts.append(tf.broadcast_to(line, target))
    return tf.stack(parts, -1)


@operator("GatherND")
def gather_nd(build: Build, node: Node, x: Any, indices: Any) -> Any:
    known = build.static(indices)
    if known is not None and (known < 0).any():
        raise Unsupported("its indices count from the end")
    return build.tf.gather_nd(x, indices, batch_dims=node.get("batch_dims", 0))


def _scatter(build: Build, node: Node, x: Any, places: Any, updates: Any) -> Any:
    tf = build.tf
    functions = {"none": tf.tensor_scatter_nd_update, "add": tf.tensor_scatter_nd_add,
                 "max": tf.tensor_scatter_nd_max, "min": tf.tensor_scatter_nd_min}  # fmt: skip
    how = node.get("reduction", "none")
    if how not in functions:
        raise Unsupported(f"reduction {how!r} is not known")
    return functions[how](x, places, updates)


@operator("ScatterND")
def scatter_nd(build: Build, node: Node, x: Any, indices: Any, updates: Any) -> Any:
    tf = build.tf
    x, indices = tf.convert_to_tensor(x), tf.convert_to_tensor(indices)
    sizes = tf.cast(build.dims(build.shape(x)), indices.dtype)[: indices.shape[-1]]
    return _scatter(build, node, x, tf.where(indices < 0, indices + sizes, indices), updates)


@operator("ScatterElements", "Scatter")
def scatter_elements(build: Build, node: Node, x: Any, indices: Any, updates: Any) -> Any:
    x = build.tf.convert_to_tensor(x)
    axis = node.get("axis", 0) % build.rank(x)
    places = _grid(build, _positive(build, indices, build.shape(x)[axis]), axis)
    return _scatter(build, node, x, places, updates)


@operator("Expand")
def expand(build: Build, node: Node, x: Any, target: Any) -> Any:
    tf = build.tf
    x = tf.convert_to_tensor(x)
    known = build.static(target)
    if known is not None and None not in list(x.shape):
        import numpy as np

        return tf.broadcast_to(x, np.broadcast_shapes(tuple(x.shape), tuple(int(n) for n in known)))
    own = tf.shape(x, out_type=tf.int64)
    return tf.broadcast_to(x, tf.broadcast_dynamic_shape(own, tf.cast(target, tf.int64)))


@operator("Tile")
def tile(build: Build, node: Node, x: Any, repeats: Any) -> Any:
    return build.tf.tile(x, repeats)


@operator("Range")
def range_(build: Build, node: Node, start: Any, limit: Any, delta: Any) -> Any:
    tf = build.tf
    return tf.range(*(tf.reshape(value, []) for value in (start, limit, delta)))


@operator("Trilu")
def trilu(build: Build, node: Node, x: Any, k: Any = None) -> Any:
    tf = build.tf
    x = tf.convert_to_tensor(x)
    shift = tf.constant(0, tf.int64) if k is None else tf.cast(tf.reshape(k, []), tf.int64)
    rows, columns = build.shape(x)[-2:]
    down = tf.range(tf.cast(rows, tf.int64))[:, None]
    across = tf.range(tf.cast(columns, tf.int64))[None, :]
    kept = across - down >= shift if node.get("upper", 1) else across - down <= shift
    return tf.where(kept, x, tf.zeros([], x.dtype))


@operator("OneHot")
def one_hot(build: Build, node: Node, indices: Any, depth: Any, values: Any) -> Any:
    tf = build.tf
    count = tf.cast(tf.reshape(depth, []), tf.int32)
    axis = node.get("axis", -1)
    axis = axis if axis >= -1 else axis + build.rank(indices) + 1
    values = tf.convert_to_tensor(values)
    indices = tf.cast(indices, tf.int64)
    indices = tf.where(indices < 0, indices + tf.cast(count, tf.int64), indices)
    return tf.one_hot(indices, count, values[1], values[0], axis=axis)


@operator("NonZero")
def non_zero(build: Build, node: Node, x: Any) -> Any:
    tf = build.tf
    x = tf.convert_to_tensor(x)
    return tf.transpose(tf.where(x if x.dtype == tf.bool else tf.not_equal(x, tf.zeros([], x.dtype))))


@operator("EyeLike")
def eye_like(build: Build, node: Node, x: Any) -> Any:
    tf = build.tf
    rows, columns = build.shape(x)
    kind = _type(build, node.get("dtype")) if node.get("dtype") else tf.convert_to_tensor(x).dtype
    across, down = (tf.range(tf.cast(n, tf.int64)) for n in (columns, rows))
    return tf.cast(tf.equal(across[None, :] - down[:, None], node.get("k", 0)), kind)


@operator("ReverseSequence")
def reverse_sequence(build: Build, node: Node, x: Any, lengths: Any) -> Any:
    return build.tf.reverse_sequence(x, lengths, seq_axis=node.get("time_axis", 0),
                                     batch_axis=node.get("batch_axis", 1))  # fmt: skip


@operator("If")
def if_(build: Build, node: Node, condition: Any, *, values: Any) -> Any:
    def branch(graph: Any) -> Any:
        def call() -> Any:
            made = build.run(graph, dict(values))
            return [build.tensor(made[output.name]) for output in graph.output]

        return call

    then, other = node.get("then_branch"), node.get("else_branch")
    known = build.static(condition)
    if known is not None:
        return tuple(branch(then if bool(known.reshape(())) else other)())
    taken = build.tf.cond(build.tf.reshape(condition, []), branch(then), branch(other))
    return tuple(taken) if isinstance(taken, list | tuple) else taken
