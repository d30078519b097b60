"""A whole optkit plug-in in one file: a model format of its own, runners for it, and passes between its forms.

A toy model is `y = x W^T`, kept as JSON: {"weights": [[...]], "input": {"name", "dtype", "shape"}, "output": {...}}.
`toy` is that text; `toybin` and `toypack` hold the same with the weights' bytes as hexadecimal digits, so that there
are conversions to chain. How it reaches optkit is in `optkit_toy-1.0.dist-info/entry_points.txt`:

    [optkit.runners]
    toy = optkit_toy:TOY
    [optkit.passes]
    copy = optkit_toy:COPY

Only numpy is imported, and that inside functions, as every plug-in should do with its backend.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from optkit.artifact import Artifact, Signature, TensorSpec
from optkit.errors import DataError, SourceError, StepError, UnavailableError
from optkit.plugin import Context, Options, Pass, Runner

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optkit.plugin import Tensors

Model = dict[str, Any]


# --- the format: reading and writing a model file


def read(path: Path) -> Model:
    """The model in a file. Raises SourceError for one that is damaged."""
    try:
        model: Model = json.loads(path.read_text(encoding="utf-8"))
        model["weights"], model["input"]["shape"], model["output"]["shape"]
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{path.name} is no toy model: {error!r}", hint="write it anew", subject="model") from error
    return model


def write(model: Model, path: Path) -> None:
    path.write_text(json.dumps(model), encoding="utf-8")


def weights_of(model: Model) -> NDArray[Any]:
    """The matrix, `(outputs, inputs)`, float32."""
    import numpy as np

    kept = model["weights"]
    if isinstance(kept, str):
        return np.frombuffer(bytes.fromhex(kept), np.float32).reshape(model["rows"], -1)
    return np.array(kept, np.float32)


# --- the runners: what the format is called, how a file is described, how it is run


def describe(path: Path, meta: Mapping[str, Any]) -> Signature:
    """What goes in and out, read from the file without running it."""
    model = read(path)
    put, got = (
        TensorSpec(t["name"], t["dtype"], tuple(t["shape"]), t.get("layout")) for t in (model["input"], model["output"])
    )
    return Signature((put,), (got,))


class Session:
    """An open model; see `optkit.plugin.Session`."""

    provider = "numpy"

    def __init__(self, artifact: Artifact, precision: str | None) -> None:
        import numpy as np

        model = read(artifact.path)
        self.put, self.got = model["input"], model["output"]
        self.last = model.get("last", 1)  # a factor on the last row: 1, but in models that are wrong on purpose
        self.seconds = (
            model.get("milliseconds", 0) / 1000
        )  # what an inference takes, for models that are slow on purpose
        self.breaks = model.get("breaks_in_a_race", False)
        self.dtype = np.dtype(precision or self.got["dtype"])
        self.weights: NDArray[Any] | None = weights_of(model).astype(precision or np.float32)

    def infer(self, tensors: Tensors) -> Tensors:
        if self.weights is None:
            raise StepError("the model is closed", hint="infer inside the with block")
        if list(tensors) != [self.put["name"]]:
            raise DataError(f"the model takes {self.put['name']}, not {', '.join(tensors)}", hint="feed that")
        x = tensors[self.put["name"]]
        if not hasattr(x, "dtype"):
            raise DataError(f"input is a {type(x).__name__}, not an array", hint="numpy.asarray(...)")
        if str(x.dtype) != self.put["dtype"]:
            raise DataError(f"input is {x.dtype}, not {self.put['dtype']}", hint="cast it")
        shape = self.put["shape"]
        if x.ndim != len(shape) or any(isinstance(d, int) and d != n for d, n in zip(shape, x.shape, strict=True)):
            raise DataError(f"input has shape {x.shape}, not {shape}", hint="reshape it")
        if self.breaks and "optkit.speed.contender" in sys.orig_argv:
            os._exit(7)
        time.sleep(self.seconds)
        y = x.astype(self.weights.dtype) @ self.weights.T
        y[-1] *= self.last
        return {self.got["name"]: y.astype(self.dtype)}


@contextmanager
def open_model(
    artifact: Artifact, device: str = "cpu", threads: int = 1, precision: str | None = None
) -> Iterator[Session]:
    if device != "cpu":
        raise UnavailableError(f"toys have no device {device!r}", hint="device: cpu")
    if precision not in (None, "float64"):
        raise UnavailableError(f"toys cannot compute in {precision}", hint="float64")
    session = Session(artifact, precision)
    try:
        yield session
    finally:
        session.weights = None


def inspect(path: Path) -> Mapping[str, Any]:
    return {"parameters": int(weights_of(read(path)).size)}


def _runner(name: str) -> Runner:
    return Runner(
        format=name,
        version=1,
        main=f"model.{name}",
        suffixes=(f".{name}",),
        describe=describe,
        open=open_model,
        inspect=inspect,
        tools=("numpy",),
        precisions=frozenset({"float64"}),  # it can be run in float64, as a reference: measures the source's noise
    )


TOY, TOYBIN, TOYPACK = _runner("toy"), _runner("toybin"), _runner("toypack")


# --- the passes: options, a function, and what optkit has to know about it


class CopyOptions(Options):
    """Options are a pydantic model: described, typed, defaults included in the cache key."""

    note: str = Field("", description="text that the report repeats; the model stays as it is")
    mark: str | None = Field(None, description="a file to which every run of the pass adds a line")
    fail: bool = Field(False, description="raise a StepError instead")


def copy(artifact: Artifact, out_dir: Path, options: CopyOptions, context: Context) -> Mapping[str, Any]:
    """The same model again. What it returns is in the report under `notes`."""
    context.progress("copying", 0.5)
    if options.fail:
        raise StepError("the toy was asked to fail", hint="set fail: false", subject="with.fail")
    if options.mark:
        with Path(options.mark).open("a", encoding="utf-8") as handle:
            handle.write(f"{options.note}\n")
    write(read(artifact.path), out_dir / TOY.main)
    return {"note": options.note}


COPY = Pass(
    name="toy.copy",
    version=1,
    source="toy",
    target="toy",
    summary="write the model again",
    run=copy,
    options=CopyOptions,
    fidelity="exact",
    tools=("numpy",),
)


class RoundOptions(Options):
    digits: int = Field(3, ge=0, le=7, description="decimal digits that stay")
    milliseconds: float | None = Field(
        None, description="how long an inference of the result takes; default: as before"
    )


def round_weights(artifact: Artifact, out_dir: Path, options: RoundOptions, context: Context) -> Mapping[str, Any]:
    """Lossy, and fitted: it looks at the data it was given, as a calibration would."""
    import numpy as np

    assert context.data is not None
    largest = max(float(np.abs(sample["x"]).max()) for sample in context.data)
    model = read(artifact.path)
    model["weights"] = weights_of(model).round(options.digits).astype(np.float64).tolist()
    if options.milliseconds is not None:
        model["milliseconds"] = options.milliseconds
    write(model, out_dir / TOY.main)
    return {"largest": largest, "samples": len(context.data)}


def confirm_round(parent: Artifact, artifact: Artifact, options: RoundOptions, context: Context) -> list[str]:
    """Re-reads the file: what was asked for and not done."""
    import numpy as np

    weights = weights_of(read(artifact.path))
    off = int((np.abs(weights - weights.round(options.digits)) > 1e-6).sum())
    return [f"{off} weights have over {options.digits} digits"] if off else []


ROUND = Pass(
    name="toy.round",
    version=1,
    source="toy",
    target="toy",
    summary="round the weights",
    run=round_weights,
    confirm=confirm_round,
    options=RoundOptions,
    fidelity="lossy",
    needs_data=True,
    tools=("numpy",),
)


class PullOptions(Options):
    turns: int = Field(3, ge=1, description="how often the weights are drawn to the source model's")
    die_at: int | None = Field(None, description="end the process at this turn, unless it was reached before")


def pull(artifact: Artifact, out_dir: Path, options: PullOptions, context: Context) -> Mapping[str, Any]:
    """Learns from the source model, and goes on from its checkpoint after a kill."""
    import numpy as np

    assert context.source is not None
    assert context.kept is not None
    checkpoint = context.kept / "turn.json"
    model, teacher = read(artifact.path), weights_of(read(context.source.path))
    start, weights = 0, weights_of(model)
    if checkpoint.is_file():
        state = json.loads(checkpoint.read_text(encoding="utf-8"))
        start, weights = state["turn"], np.array(state["weights"], np.float32)
    for turn in range(start, options.turns):
        if options.die_at == turn and not start:
            os._exit(9)
        weights = (weights + teacher) / 2
        text = json.dumps({"turn": turn + 1, "weights": weights.astype(np.float64).tolist()})
        checkpoint.write_text(text, encoding="utf-8")
    write({**model, "weights": weights.astype(np.float64).tolist()}, out_dir / TOY.main)
    return {"resumed_at": start}


PULL = Pass(
    name="toy.pull",
    version=1,
    source="toy",
    target="toy",
    summary="draw the weights to the source model's",
    run=pull,
    options=PullOptions,
    fidelity="lossy",
    needs_source=True,
    resumes=True,
    tools=("numpy",),
)


def half(artifact: Artifact, out_dir: Path, options: Options, context: Context) -> Mapping[str, Any]:
    import numpy as np

    model = read(artifact.path)
    model["weights"] = weights_of(model).astype(np.float16).astype(np.float64).tolist()
    write(model, out_dir / TOY.main)
    return {}


HALF = Pass(
    name="toy.half",
    version=1,
    source="toy",
    target="toy",
    summary="weights in float16",
    run=half,
    precision="float16",
    tools=("numpy",),
)


def _convert(target: Runner) -> Any:
    def run(artifact: Artifact, out_dir: Path, options: Options, context: Context) -> Mapping[str, Any]:
        model = read(artifact.path)
        weights = weights_of(model)
        write({**model, "weights": weights.tobytes().hex(), "rows": len(weights)}, out_dir / target.main)
        return {}

    return run


def _conversion(source: str, target: str, writes: Runner) -> Pass:
    name = f"{source}.to_{target}"
    return Pass(name, 1, source, target, f"convert {source} to {target}", _convert(writes), tools=("numpy",))


TO_TOYBIN = _conversion("toy", "toybin", TOYBIN)
TO_TOYPACK = _conversion("toybin", "toypack", TOYPACK)

# Two ways of equal length from toypack to toyend: only planning ever sees these.
TO_LEFT = _conversion("toypack", "toyleft", TOY)
TO_RIGHT = _conversion("toypack", "toyright", TOY)
FROM_LEFT = _conversion("toyleft", "toyend", TOY)
FROM_RIGHT = _conversion("toyright", "toyend", TOY)
