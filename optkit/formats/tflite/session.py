"""A TFLite file, run: the signature that fits, resized or composed of the sizes the file has, by its contract."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.artifact import TensorSpec
from optkit.errors import DataError, SourceError, StepError
from optkit.formats.tflite import model as tflite_model
from optkit.formats.tflite.model import Contract
from optkit.formats.tflite.noise import captured
from optkit.plugin import checked_feeds

if TYPE_CHECKING:
    from optkit.plugin import Tensors


class TfliteSession:
    """An open model; see `optkit.plugin.Session`.

    connect: gives an interpreter of the file; called again after a failure. hardware: what runs it, where that is not
    told by the interpreter.
    """

    def __init__(
        self,
        path: Path,
        agreed: Contract,
        threads: int,
        connect: Callable[[], Any] | None = None,
        hardware: str = "",
    ) -> None:
        self._path, self._agreed = path, agreed
        self._connect = connect or (lambda: tflite_model.interpreter(path, threads))
        self._hardware = hardware
        self._runners: dict[str, tuple[Any, Any, Any]] = {}
        self._shapes: dict[str, list[Any]] = {}
        with captured():
            self._interpreter = self._connect()
            keys = list(self._interpreter.get_signature_list())
            self._key = tflite_model.DEFAULT if tflite_model.DEFAULT in keys or not keys else keys[0]
            if not keys:
                raise SourceError(
                    f"{path.name} has no signature, so its inputs and outputs have no names",
                    subject="model",
                    hint="convert it again with a tool that writes signatures (TensorFlow 2.5 or later, litert-torch)",
                )
            self._provider = self._what_runs()

    @property
    def provider(self) -> str:
        """What runs ("CPU XNNPACK" or "CPU LiteRT kernels"), and each conversion at the session's border."""
        return self._provider

    def infer(self, tensors: Tensors) -> Tensors:
        """Named inputs to named outputs.

        Raises DataError on a missing or unknown name, and on a wrong dtype, rank or size; StepError where LiteRT fails.
        """
        import numpy as np

        tensors = checked_feeds(tensors, self._agreed.inputs)
        pieces = []
        for key, feed, have in self._parts(tensors):
            got = self._run(key, feed)
            pieces.append(got if have is None else {name: value[:have] for name, value in got.items()})
        whole = {name: np.concatenate([piece[name] for piece in pieces]) if len(pieces) > 1 else value
                 for name, value in pieces[0].items()}  # fmt: skip
        return self._cut(whole, self._sizes(tensors))

    def raw(self, tensors: Tensors) -> Iterator[Mapping[str, Any]]:
        """All that the file itself gives, by its own names, signature by signature: padded, and in its own dtypes."""
        for key, feed, _ in self._parts(checked_feeds(tensors, self._agreed.inputs)):
            yield self._results(key, feed)

    def keys(self, tensors: Tensors) -> list[str]:
        """The signatures that a feed is run by, one after the other."""
        return [key for key, _, _ in self._parts(checked_feeds(tensors, self._agreed.inputs))]

    @property
    def interpreter(self) -> Any:
        """LiteRT's own object, as it is after the last run."""
        return self._interpreter

    @property
    def key(self) -> str:
        """The signature that serves all sizes, where the contract lists none."""
        return self._key

    def fitted(self, tensors: Tensors, sizes: Mapping[str, int], rows: int | None = None) -> Tensors:
        """A feed as the file's own signature of `sizes` takes it: padded, filled up to `rows`, in its own dtypes."""
        with captured():
            _, details, _ = self._runner(self._agreed.key(sizes) if sizes else self._key)
        padded = {name: sizes[name] for name in self._agreed.padded if name in sizes}
        feed = {}
        for spec in self._agreed.inputs:
            value = self._pad(tensors[spec.name], spec, padded)
            value = _rows(value, 0, len(value), rows) if rows else value
            feed[spec.name] = self._into(value, spec, details[spec.name])
        return feed

    # --- what goes in

    def _sizes(self, tensors: Tensors) -> dict[str, int]:
        return {
            dim: size
            for spec in self._agreed.inputs
            for dim, size in zip(spec.shape or (), tensors[spec.name].shape, strict=False)
            if isinstance(dim, str)
        }

    def _parts(self, tensors: Tensors) -> Iterator[tuple[str, Tensors, int | None]]:
        """Signatures to run with their feeds, and how many of the rows are real where the batch is split."""
        listed = self._agreed.sizes
        if not listed:
            yield self._key, tensors, None
            return
        sizes = self._sizes(tensors)
        padded = {name: self._padded_size(name, sizes[name]) for name in self._agreed.padded}
        feed = {spec.name: self._pad(tensors[spec.name], spec, padded) for spec in self._agreed.inputs}
        rows = next((name for name in listed if name not in padded), None)
        if rows is None:
            yield self._agreed.key(padded), feed, None
            return
        for start, size, have in _pieces(sizes[rows], listed[rows]):
            part = {name: _rows(value, start, have, size) for name, value in feed.items()}
            yield self._agreed.key({**padded, rows: size}), part, have

    def _padded_size(self, name: str, size: int) -> int:
        held = self._agreed.sizes[name]
        fit = next((n for n in sorted(held) if n >= size), None)
        if fit is None:
            raise DataError(
                f"{name} is {size}, and the file holds it up to {max(held)}",
                subject=f"dims.{name}",
                hint=f"cut the sample, or convert with a size of {name} that is large enough",
            )
        return fit

    def _pad(self, value: Any, spec: TensorSpec, padded: Mapping[str, int]) -> Any:
        import numpy as np

        widths = [
            (0, padded[d] - n) if isinstance(d, str) and d in padded else (0, 0)
            for d, n in zip(spec.shape or (), value.shape, strict=True)
        ]
        return np.pad(value, widths) if any(after for _, after in widths) else value

    def _cut(self, outputs: Tensors, sizes: Mapping[str, int]) -> Tensors:
        cut = {}
        for spec in self._agreed.outputs:
            value = outputs[spec.name]
            for axis, dim in enumerate(spec.shape or ()):
                if isinstance(dim, str) and dim in self._agreed.padded:
                    value = value[(slice(None),) * axis + (slice(sizes[dim]),)]
            cut[spec.name] = value
        return cut

    # --- running

    def _runner(self, key: str) -> tuple[Any, Any, Any]:
        """The runner of a signature, and what it says of its inputs and outputs."""
        if key not in self._runners:
            try:
                runner = self._interpreter.get_signature_runner(key)
                self._runners[key] = (runner, runner.get_input_details(), runner.get_output_details())
            except (ValueError, RuntimeError) as error:
                raise StepError(
                    f"LiteRT cannot prepare signature {key!r}: {_first(error)}", details=str(error), subject="model"
                ) from error
        return self._runners[key]

    def _run(self, key: str, tensors: Mapping[str, Any]) -> Tensors:
        results = self._results(key, tensors)
        ends = self._runner(key)[2]
        return {spec.name: self._out(results[spec.name], spec, ends[spec.name]) for spec in self._agreed.outputs}

    def _results(self, key: str, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a signature gives, as the file has it."""
        shapes = [tensors[spec.name].shape for spec in self._agreed.inputs]
        # LiteRT speaks only where it prepares a signature for other shapes than before.
        with nullcontext() if self._shapes.get(key) == shapes else captured():
            runner, details, _ = self._runner(key)
            feed = {spec.name: self._into(tensors[spec.name], spec, details[spec.name]) for spec in self._agreed.inputs}
            try:
                results: Mapping[str, Any] = runner(**feed)
            except (ValueError, RuntimeError) as error:
                given = ", ".join(f"{name} {list(value.shape)}" for name, value in tensors.items())
                self._interpreter = self._connect()  # the old one stays broken
                self._runners.clear()
                self._shapes.clear()
                raise StepError(
                    f"LiteRT cannot run {self._path.name} on {given}: {_first(error)}",
                    details=str(error),
                    subject="model",
                    hint="the file cannot be resized to this: convert it with the sizes it has to take",
                ) from error
        self._shapes[key] = shapes
        return results

    def _into(self, value: Any, spec: TensorSpec, detail: Mapping[str, Any]) -> Any:
        """A tensor as the file holds it. Raises DataError for an integer that 32 bits cannot hold."""
        import numpy as np

        if spec.name in self._agreed.channels_last:
            value = np.moveaxis(value, 1, -1)
        held = np.dtype(detail["dtype"])
        if value.dtype != held:
            scale, zero = detail["quantization"]
            if value.dtype.kind == "f" and held.kind in "iu":
                limits = np.iinfo(held)
                value = np.clip(np.round(value / scale) + zero, limits.min, limits.max)
            elif held.kind in "iu" and value.size:
                limits = np.iinfo(held)
                if value.min() < limits.min or value.max() > limits.max:
                    raise DataError(
                        f"input {spec.name!r} has values that {held} cannot hold, which the file takes",
                        subject=f"inputs.{spec.name}",
                        hint="convert with int64: keep",
                    )
        return np.ascontiguousarray(value, held)

    def _out(self, value: Any, spec: TensorSpec, detail: Mapping[str, Any]) -> Any:
        import numpy as np

        if spec.dtype == "bfloat16":  # which numpy lacks: given as float32, as the torch runner does
            value = value.astype(np.float32)
        elif str(value.dtype) != spec.dtype and spec.dtype != "string":
            scale, zero = detail["quantization"]
            if value.dtype.kind in "iu" and spec.dtype.startswith("float"):
                value = (value.astype(np.float64) - zero) * scale
            value = value.astype(np.dtype(spec.dtype))
        if spec.name in self._agreed.channels_last:
            value = np.ascontiguousarray(np.moveaxis(value, -1, 1))
        return value

    def _what_runs(self) -> str:
        if self._hardware:
            _, inputs, outputs = self._runner(self._key)
            held = {name: str(self._dtype(detail)) for name, detail in (*inputs.items(), *outputs.items())}
        else:
            model = tflite_model.read(self._path)
            takes, gives = next(iter(tflite_model.signatures(model).values()))
            held = {name: tflite_model.dtype_of(t, name) for name, t in (*takes.items(), *gives.items())}
        said = {spec.name: spec.dtype for spec in (*self._agreed.inputs, *self._agreed.outputs)}
        turned = [f"{name} {said[name]} as {held[name]}" for name in said if held.get(name, said[name]) != said[name]]
        turned += [f"{name} channels last" for name in self._agreed.channels_last]
        return "; ".join([self._hardware or self._processor(), *turned])

    @staticmethod
    def _dtype(detail: Mapping[str, Any]) -> Any:
        import numpy as np

        return np.dtype(detail["dtype"])

    def _processor(self) -> str:
        try:
            self._interpreter.allocate_tensors()
            operators = self._interpreter._get_ops_details()
        except (ValueError, RuntimeError) as error:
            raise SourceError(
                f"LiteRT cannot prepare {self._path.name}: {_first(error)}", subject="model", hint=_prepared(error)
            ) from error
        return f"CPU {'XNNPACK' if any(op['op_name'] == 'DELEGATE' for op in operators) else 'LiteRT kernels'}"


def _prepared(error: Exception) -> str:
    """What to do about a file that LiteRT reads and cannot prepare."""
    text = str(error)
    if "edgetpu-custom-op" in text:
        return "it is compiled for the Edge TPU: open it with its edgetpu.json beside it, as *_edgetpu.tflite"
    if "custom op" in text or "Select TensorFlow op" in text:
        return "convert it again without custom and Select TensorFlow operators, which LiteRT has no kernels for"
    if unfit := re.search(r"\((\w+)\) failed to prepare", text):
        return (
            f"LiteRT has no kernel for {unfit[1]} of these types: where a step quantised it, leave it float there, by "
            "exclude or op_types"
        )
    return "convert it again"


def _first(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _pieces(rows: int, held: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Where a piece starts, the size the file has for it, and how many rows of it are real."""
    start = 0
    while start < rows:
        left = rows - start
        size = max((n for n in held if n <= left), default=min(held))
        yield start, size, min(size, left)
        start += size


def _rows(value: Any, start: int, have: int, size: int) -> Any:
    """`size` rows from `start`, the last real one repeated."""
    import numpy as np

    return np.take(value, np.minimum(np.arange(start, start + size), start + have - 1), axis=0)


@contextmanager
def open_session(path: Path, agreed: Contract | None = None, threads: int = 1) -> Iterator[TfliteSession]:
    """A session on a file by its own contract, or by another that has to be tried out."""
    yield TfliteSession(path, agreed or tflite_model.contract(tflite_model.read(path)), threads)


def widened(agreed: Contract, specs: Sequence[TensorSpec]) -> Contract:
    """A contract whose inputs take the dtypes of `specs` where the session may convert them: int64 over int32."""
    said = {spec.name: spec for spec in specs}
    return replace(
        agreed,
        inputs=tuple(
            replace(spec, dtype=said[spec.name].dtype, layout=said[spec.name].layout or spec.layout)
            if spec.name in said and tflite_model.convertible(said[spec.name].dtype, spec.dtype, False)
            else spec
            for spec in agreed.inputs
        ),
    )


def visited(dims: Mapping[str, Sequence[int]]) -> list[dict[str, int]]:
    """Sizes to try: every one of each dim alone, the others at their first, and all at their last."""
    first = {name: sizes[0] for name, sizes in dims.items()}
    every = [first, *({**first, name: n} for name, sizes in dims.items() for n in sizes[1:])]
    every.append({name: sizes[-1] for name, sizes in dims.items()})
    return [dict(pairs) for pairs in dict.fromkeys(tuple(sizes.items()) for sizes in every)]


def combinations(agreed: Contract) -> list[dict[str, int]]:
    """The sizes of every signature a contract has; one empty entry where all dims resize."""
    return [dict(zip(agreed.sizes, at, strict=True)) for at in itertools.product(*agreed.sizes.values())]
