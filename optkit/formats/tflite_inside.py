"""The tensors inside a TFLite file: what makes each, and their values on a feed, by LiteRT's own kernels.

XNNPACK keeps no inner tensor, so it is left out. LiteRT holds all tensors of the graph at once meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from optkit.artifact import Artifact
from optkit.errors import StepError
from optkit.formats import tflite_model, tflite_session
from optkit.formats.tflite_noise import captured
from optkit.plugin import Point, need

if TYPE_CHECKING:
    from optkit.plugin import Tensors

LIMIT_BYTES = 2 << 30
"""Inner tensors that may be held: a graph with more of them is not looked into."""

_WEIGHING = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL", "TRANSPOSE_CONV", "CONV_3D"})
_NO_MODULE = ("", "model", "constant")  # what a file of optkit's calls tensors that no module made
_RENAMED = re.compile(r"(.*?)_(?:quantized|dequant|dequantized|requant|requantized)(?:_\d+)?")


class TfliteInside:
    """An open file; see `optkit.plugin.Inside`."""

    replaces = False

    def __init__(self, artifact: Artifact, threads: int) -> None:
        agreed = tflite_model.contract(tflite_model.read(artifact.path))
        if artifact.signature is not None:
            agreed = tflite_session.widened(agreed, artifact.signature.inputs)
        if agreed.sizes:
            raise StepError(f"{artifact.path.name} has a graph for each size, of which inner tensors cannot be matched")
        keeping = partial(_keeping, artifact, threads)
        self._session = tflite_session.TfliteSession(artifact.path, agreed, threads, keeping)
        self._details = [dict(t) for t in self._session.interpreter.get_tensor_details()]
        size = sum(_bytes(t) for t in self._details)
        if size > LIMIT_BYTES:
            raise StepError(f"the tensors of {artifact.path.name} take {size / 2**30:.1f} GiB at once, over 2 GiB",
                            hint="compare a smaller batch or input")  # fmt: skip
        self._inputs = {spec.name for spec in agreed.inputs}
        self.points, self._index = self._look()

    def values(self, names: Sequence[str], tensors: Tensors, given: Tensors | None = None) -> Tensors:
        """The values of tensors by name, dequantised; see `optkit.plugin.Inside`. Batches go in whole."""
        import numpy as np

        outputs = self._session.infer(tensors)
        found = {}
        for name in names:
            if name in tensors:
                found[name] = tensors[name]
            elif name in outputs:
                found[name] = outputs[name]
            else:
                detail = self._details[self._index[name]]
                found[name] = _real(self._session.interpreter.get_tensor(detail["index"]), detail, np)
        return found

    def _look(self) -> tuple[list[Point], dict[str, int]]:
        details = {t["index"]: i for i, t in enumerate(self._details)}
        signature = self._session.interpreter.get_signature_runner(self._session.key)
        live = {d["index"]: name for name, d in signature.get_input_details().items()}
        points: list[Point] = []
        where: dict[str, int] = {}
        last: dict[str, int] = {}
        for op in self._session.interpreter._get_ops_details():
            reads = [int(i) for i in op["inputs"] if int(i) in live]
            if not reads:
                continue
            weights = [int(i) for i in op["inputs"] if int(i) >= 0 and int(i) not in live]
            for index in map(int, op["outputs"]):
                if index not in details:
                    continue
                detail = self._details[details[index]]
                name = str(detail["name"])
                name = name if name not in where else f"{name}#{index}"
                live[index] = name
                if not _is_real(detail):
                    continue
                where[name] = details[index]
                found = _RENAMED.fullmatch(name)
                module = _module(name, self._weight_names(weights))
                points.append(Point(
                    name, op["op_name"], name, module, tuple(dict.fromkeys(live[i] for i in reads)),
                    (found[1],) if found else (), op["op_name"] in _WEIGHING and bool(weights),
                ))  # fmt: skip
                last[_scopes(name)[0]] = len(points) - 1
        for path, at in last.items():  # the last that a module computes is what it gives
            point = points[at]
            points[at] = Point(point.name, point.operator, point.node, point.module, point.inputs,
                               (*point.also, f"module {path}"), point.weighs)  # fmt: skip
        return points, where

    def _weight_names(self, indices: Sequence[int]) -> list[str]:
        held = {t["index"]: str(t["name"]) for t in self._details}
        return [held[i] for i in indices if i in held]


def _scopes(name: str) -> list[str]:
    """The torch modules in a tensor's name, the last that worked on it first: "mix;mix.first.1:2" has two."""
    return [part.partition(":")[0] for part in name.split(";")]


def _module(name: str, weights: Sequence[str]) -> str:
    """The module that computes: among those fused into one operator, that of the weights, which stands last."""
    named = [scope for weight in weights for scope in _scopes(weight) if scope not in _NO_MODULE]
    return (named or _scopes(name))[-1] if named or ";" in name or "." in name else ""


def _keeping(artifact: Artifact, threads: int) -> Any:
    runtime = need("ai_edge_litert.interpreter", "ai-edge-litert")
    with captured():
        return runtime.Interpreter(
            model_path=str(artifact.path), num_threads=threads, experimental_preserve_all_tensors=True,
            experimental_op_resolver_type=runtime.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )  # fmt: skip


def _bytes(detail: Mapping[str, Any]) -> int:
    import numpy as np

    return int(np.prod(detail["shape"], dtype=np.int64) * np.dtype(detail["dtype"]).itemsize)


def _is_real(detail: Mapping[str, Any]) -> bool:
    import numpy as np

    kind = np.dtype(detail["dtype"]).kind
    return bool(kind == "f" or (kind in "iu" and len(detail["quantization_parameters"]["scales"])))


def _real(value: Any, detail: Mapping[str, Any], np: Any) -> Any:
    held = detail["quantization_parameters"]
    scales, zeros = held["scales"], held["zero_points"]
    if value.dtype.kind == "f" or not len(scales):
        return value.copy()
    if len(scales) > 1:
        shape = [1] * value.ndim
        shape[held["quantized_dimension"]] = -1
        scales, zeros = scales.reshape(shape), zeros.reshape(shape)
    return (value.astype(np.float64) - zeros) * scales


@contextmanager
def inside(artifact: Artifact, threads: int = 1) -> Iterator[TfliteInside]:
    """The inner tensors of a TFLite file, on the CPU."""
    yield TfliteInside(artifact, threads)
