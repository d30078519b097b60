"""ONNX's LSTM, GRU and RNN in TensorFlow, as a loop over the sequence; see `optkit.formats.onnx_tf.translate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from optkit.formats.onnx_tf.translate import Build, Node, Unsupported, operator

_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
_DEFAULTS = {"RNN": ["Tanh"], "GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}


@operator("LSTM", "GRU", "RNN")
def recurrent(build: Build, node: Node, x: Any, w: Any, r: Any, bias: Any = None, lengths: Any = None, h: Any = None,
              c: Any = None, peep: Any = None) -> Any:  # fmt: skip
    """x (time, batch, inputs), or with the batch first in layout 1; weights (directions, gates * hidden, ...)."""
    tf, kind = build.tf, node.kind
    if lengths is not None:
        known, whole = build.static(lengths), x.shape[1 if node.get("layout") else 0]
        if known is None or whole is None or (known != whole).any():
            raise Unsupported("its sequences have different lengths")
    for name in ("clip", "input_forget"):
        if node.get(name):
            raise Unsupported(f"it has {name}")
    if peep is not None:
        raise Unsupported("it has peepholes")
    hidden, direction = node.get("hidden_size"), node.get("direction", "forward")
    ways = 2 if direction == "bidirectional" else 1
    names = node.get("activations") or _DEFAULTS[kind] * ways
    each = len(names) // ways
    if node.get("layout"):
        x = tf.transpose(x, [1, 0, 2])
        h, c = (None if state is None else tf.transpose(state, [1, 0, 2]) for state in (h, c))
    batch = build.shape(x)[1]
    zeros = tf.zeros(build.dims([batch, hidden]), tf.convert_to_tensor(x).dtype)
    sequences, ends, cells = [], [], []
    for way in range(ways):
        back = direction == "reverse" or way == 1
        made = _one(
            build, node, tf.reverse(x, [0]) if back else x, (w[way], r[way], None if bias is None else bias[way]),
            (zeros if h is None else h[way], zeros if c is None else c[way]),
            [_activation(tf, name) for name in names[way * each : (way + 1) * each]],
        )  # fmt: skip
        sequences.append(tf.reverse(made[0], [0]) if back else made[0])
        ends.append(made[1])
        cells.append(made[2])
    y, last, cell = tf.stack(sequences, 1), tf.stack(ends), tf.stack(cells)
    if node.get("layout"):
        y, last, cell = tf.transpose(y, [2, 0, 1, 3]), tf.transpose(last, [1, 0, 2]), tf.transpose(cell, [1, 0, 2])
    return (y, last, cell) if kind == "LSTM" else (y, last)


def _activation(tf: Any, name: str) -> Callable[[Any], Any]:
    known = {"Tanh": tf.tanh, "Sigmoid": tf.sigmoid, "Relu": tf.nn.relu}
    if name not in known:
        raise Unsupported(f"activation {name!r} is not known")
    found: Callable[[Any], Any] = known[name]
    return found


def _one(build: Build, node: Node, x: Any, weights: Sequence[Any], start: Sequence[Any],
         act: Sequence[Callable[[Any], Any]]) -> tuple[Any, Any, Any]:  # fmt: skip
    """One direction: (time, batch, hidden) and the last states. The product with the inputs is made at once."""
    tf, hidden, gates = build.tf, node.get("hidden_size"), _GATES[node.kind]
    w, r, bias = weights
    own, back = (0.0, tf.zeros([gates * hidden], x.dtype)) if bias is None else tf.split(bias, 2)
    steps, batch, _ = build.shape(x)
    into = tf.reshape(tf.matmul(tf.reshape(x, build.dims([-1, x.shape[-1]])), w, transpose_b=True) + own,
                      build.dims([steps, batch, gates * hidden]))  # fmt: skip

    def step(state: Any, given: Any) -> Any:
        h, c = state
        if node.kind == "RNN":
            h = act[0](given + tf.matmul(h, r, transpose_b=True) + back)
        elif node.kind == "LSTM":
            i, o, f, g = tf.split(given + tf.matmul(h, r, transpose_b=True) + back, 4, -1)
            c = act[0](f) * c + act[0](i) * act[1](g)
            h = act[0](o) * act[2](c)
        else:
            z_in, r_in, h_in = tf.split(given, 3, -1)
            update = act[0](z_in + tf.matmul(h, r[:hidden], transpose_b=True) + back[:hidden])
            reset = act[0](r_in + tf.matmul(h, r[hidden : 2 * hidden], transpose_b=True) + back[hidden : 2 * hidden])
            if node.get("linear_before_reset"):
                new = act[1](h_in + reset * (tf.matmul(h, r[2 * hidden :], transpose_b=True) + back[2 * hidden :]))
            else:
                new = act[1](h_in + tf.matmul(reset * h, r[2 * hidden :], transpose_b=True) + back[2 * hidden :])
            h = (1.0 - update) * new + update * h
        return h, c

    if isinstance(steps, int) and steps <= 8:  # short ones without a loop, which any converter reads
        state, seen = tuple(start), []
        for place in range(steps):
            state = step(state, into[place])
            seen.append(state[0])
        return tf.stack(seen), state[0], state[1]
    hs, cs = tf.scan(step, into, initializer=tuple(start))
    return hs, hs[-1], cs[-1]
