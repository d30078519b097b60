"""What the tensors of an ONNX model hold on data: found in one pass for every step that asks for the same."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.errors import DataError
from optkit.formats.onnx import feeds as onnx_feeds
from optkit.formats.onnx import integer as onnx_integer
from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx import ranges as onnx_ranges
from optkit.formats.onnx.ranges import Histogram

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optkit.artifact import Artifact
    from optkit.plugin import Context

    Array = NDArray[Any]

VERSION = 1  # raise it when the same request gives other numbers
_BATCH, _HELD = 16, 4  # samples in one feed: where its tensors stay in the graph, and where they are held
_FILE = "statistics.npz"


@dataclass(frozen=True)
class Request:
    """What to find out.

    spread: the tensors whose extremes are wanted, with their ONNX types (float32 or float16); binned: and how their
    values lie between. channels: tensors whose mean and greatest magnitude are wanted for each channel, with the axis
    of those, 1 or -1, and the tensor's rank where the axis is 1.
    """

    spread: Mapping[str, int]
    binned: bool = False
    channels: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def to_json(self) -> list[Any]:
        return [VERSION, sorted(self.spread), self.binned, sorted(self.channels.items())]


@dataclass
class Statistics:
    """What was found. means, peaks: of each channel of a tensor, `(channels,)`."""

    samples: int = 0
    spread: dict[str, Histogram] = field(default_factory=dict)
    means: dict[str, Array] = field(default_factory=dict)
    peaks: dict[str, Array] = field(default_factory=dict)


def gather(artifact: Artifact, model: Any, request: Request, context: Context, label: str = "") -> Statistics:
    """The statistics of `model`, which is `artifact` prepared, on the step's data; from another step that had them.

    label: how `model` differs from the artifact, where it does. One feed's tensors are held at a time. Raises DataError
    for data that is empty or lacks an input, StepError where a tensor becomes NaN or infinite.
    """
    if context.shared is None:
        return _observed(artifact, model, request, context)
    kept: list[Statistics] = []

    def make(folder: Path) -> None:
        kept.append(_observed(artifact, model, request, context))
        _save(kept[0], folder / _FILE)

    folder = context.shared(["onnx statistics", artifact.digest, label, request.to_json()], make)
    return kept[0] if kept else _load(folder / _FILE)


def feeds(artifact: Artifact, context: Context, most: int, doing: str = "calibrating on") -> Iterator[tuple[Any, int]]:
    """The step's data as the model's inputs, with the number of samples in each feed; tells how far it is.

    Raises DataError for data that is empty or lacks an input.
    """
    data, seen = context.data, 0
    assert data is not None
    for feed, count in onnx_feeds.calibration_feeds(artifact, data, context, most):
        yield feed, count
        seen += count
        context.progress(f"{doing} {seen} of {len(data)} samples", min(seen / max(len(data), 1), 1.0))
    if not seen:
        raise DataError("the calibration data has no samples", subject="data", hint="name a dataset that is not empty")


def _observed(artifact: Artifact, model: Any, request: Request, context: Context) -> Statistics:
    import numpy as np

    probe = Probe(model)
    if not request.binned:
        for name, kind in request.spread.items():
            probe.extremes(name, kind)
    for name, (axis, rank) in request.channels.items():
        probe.channels(name, axis, rank)
    found = Statistics(0, {name: Histogram(name) for name in request.spread})
    given = {v.name for v in model.graph.input}
    fetched = [name for name in request.spread if name not in given] if request.binned else []
    session = probe.open(artifact.path.parent, context.threads, fetched)
    totals: dict[str, int] = {}
    for feed, count in feeds(artifact, context, _HELD if request.binned else _BATCH):
        values = dict(zip((*fetched, *probe.outputs), onnx_ranges.run(session, [*fetched, *probe.outputs], feed),
                          strict=True))  # fmt: skip
        for name, seen in found.spread.items():
            if request.binned:
                seen.add(values[name] if name in values else feed[name])
            else:
                seen.widen(float(values[f"{PROBE}min_{name}"]), float(values[f"{PROBE}max_{name}"]))
        for name in request.channels:
            total, peak = values[f"{PROBE}sum_{name}"], values[f"{PROBE}peak_{name}"]
            if not np.isfinite(peak).all():
                raise onnx_ranges.not_finite(name)
            found.means[name] = found.means.get(name, 0.0) + total.astype(np.float64)
            found.peaks[name] = np.maximum(found.peaks.get(name, 0.0), peak)
            totals[name] = totals.get(name, 0) + int(values[f"{PROBE}size_{name}"]) // max(total.size, 1)
        found.samples += count
    found.means = {name: total / max(totals[name], 1) for name, total in found.means.items()}
    return found


PROBE = f"{onnx_integer.PREFIX}probe_"


class Probe:
    """A model that also gives out small facts about its tensors, found inside the graph so that no tensor leaves it."""

    def __init__(self, model: Any) -> None:
        import onnx

        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self.opset = onnx_model.opset(model)
        self.outputs: list[str] = []

    def extremes(self, name: str, kind: int) -> None:
        """Give out "min_" and "max_" of a tensor."""
        source = self._wide(name) if kind == onnx_integer.FLOAT16 else name  # no float16 kernel on a CPU
        for operator, short in (("ReduceMin", "min"), ("ReduceMax", "max")):
            self._node(operator, [source], self._out(short, name), keepdims=0)

    def channels(self, name: str, axis: int, rank: int) -> None:
        """Give out "sum_" and "peak_" of each channel of a tensor, and the "size_" of the whole."""
        wide = self._wide(name)
        if axis == 1:
            axes = [i for i in range(rank) if i != 1]
        else:  # of unknown rank: all but the last axis in one
            dims, last, shape, flat = (f"{PROBE}{part}_{name}" for part in ("dims", "last", "shape", "flat"))
            rest = self._constant(f"{PROBE}rest_{name}", [-1])
            self._node("Shape", [wide], dims)
            self._node("Gather", [dims, rest], last)
            self._node("Concat", [rest, last], shape, axis=0)
            self._node("Reshape", [wide, shape], flat)
            wide, axes = flat, [0]
        named = self._constant(f"{PROBE}axes_{name}", axes)
        self._node("ReduceSum", [wide, named], self._out("sum", name), keepdims=0)
        self._node("Abs", [wide], f"{PROBE}abs_{name}")
        if self.opset >= 18:
            self._node("ReduceMax", [f"{PROBE}abs_{name}", named], self._out("peak", name), keepdims=0)
        else:
            self._node("ReduceMax", [f"{PROBE}abs_{name}"], self._out("peak", name), keepdims=0, axes=axes)
        self._node("Size", [wide], self._out("size", name, 7))

    def open(self, folder: Path, threads: int, fetched: Sequence[str] = ()) -> Any:
        """A session over the model, which also gives out the tensors `fetched`."""
        import onnx

        there = {v.name for v in self.model.graph.output}
        self.model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in fetched if name not in there)
        return onnx_ranges.opened(self.model, folder, threads)

    def _wide(self, name: str) -> str:
        wide = f"{PROBE}wide_{name}"
        if not any(wide in node.output for node in reversed(self.model.graph.node)):
            self._node("Cast", [name], wide, to=onnx_integer.FLOAT)
        return wide

    def _out(self, short: str, name: str, kind: int = onnx_integer.FLOAT) -> str:
        import onnx

        output = f"{PROBE}{short}_{name}"
        self.model.graph.output.append(onnx.helper.make_tensor_value_info(output, kind, None))
        self.outputs.append(output)
        return output

    def _constant(self, name: str, values: Sequence[int]) -> str:
        import numpy as np
        import onnx

        self.model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def _node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> None:
        import onnx

        self.model.graph.node.append(onnx.helper.make_node(operator, inputs, [output], **attributes))


def _save(found: Statistics, path: Path) -> None:
    import numpy as np

    arrays: dict[str, Array] = {}
    for number, seen in enumerate(found.spread.values()):
        arrays[f"counts {number}"] = seen.counts
    for kind in ("means", "peaks"):
        arrays |= {f"{kind} {i}": values for i, values in enumerate(getattr(found, kind).values())}
    about = {
        "samples": found.samples, "means": list(found.means), "peaks": list(found.peaks),
        "spread": [[s.name, s.low, s.high, s.reach] for s in found.spread.values()],
    }  # fmt: skip
    arrays["about"] = np.array(json.dumps(about))
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]


def _load(path: Path) -> Statistics:
    import numpy as np

    with np.load(path, allow_pickle=False) as kept:
        about = json.loads(str(kept["about"]))
        found = Statistics(about["samples"])
        for number, (name, low, high, reach) in enumerate(about["spread"]):
            seen = found.spread[name] = Histogram(name)
            seen.low, seen.high, seen.reach, seen.counts = low, high, reach, kept[f"counts {number}"]
        for kind in ("means", "peaks"):
            getattr(found, kind).update({name: kept[f"{kind} {i}"] for i, name in enumerate(about[kind])})
    return found
