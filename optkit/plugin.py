"""All that a pass or a runner imports, ours or a third party's.

A pass is data plus functions; so is a runner. Neither is subclassed. See `optkit.testing` for the contract tests.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from optkit.artifact import Artifact, Dim, Signature, TensorSpec
from optkit.errors import UnavailableError
from optkit.feeds import checked_feeds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from optkit.spec.metricspec import Metric as Metric
    from optkit.speed.ratio import Ratio as Ratio

    Tensors = dict[str, NDArray[np.generic]]

Fidelity = Literal["exact", "rounding", "lossy"]


class Options(BaseModel):
    """Base of a pass's typed options: frozen, and an unknown key is an error. Describe each with `Field`."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Settings(Options):
    """Base of a runner's typed settings of its runtime; each has the runtime's own name, and None leaves it alone."""

    def arithmetic(self) -> str:
        """What models compute in under these settings.

        "file" for what the file says, the name of a precision, or "runtime" where only the runtime knows.
        """
        return "file"


S = TypeVar("S", bound=Settings)


def settings_of(artifact: Artifact, kind: type[S]) -> S:
    """The runtime settings that an artifact is to be opened with, which `Artifact.meta` holds under "runtime"."""
    return kind.model_validate(artifact.meta.get("runtime") or {})


class Samples(Protocol):
    """A dataset as a pass sees it: streamed, never held whole."""

    @property
    def labelled(self) -> bool:
        """Whether samples come with labels."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Tensors]:
        """One sample at a time: input name to array without the batch axis."""
        ...

    def feeds(self, batch: int) -> Iterator[Tensors]:
        """Up to `batch` samples stacked along axis 0, in the signature's dtypes.

        Samples of unequal size along a dynamic axis are padded to the longest of their batch.
        """
        ...

    def iter_labelled(self) -> Iterator[tuple[Tensors, Any]]:
        """One sample at a time with its label, None where there are none."""
        ...

    def stack(self, samples: Sequence[Tensors]) -> Tensors:
        """Samples that this dataset gave, in any order and number, stacked and padded as `feeds` does it."""
        ...

    @property
    def stacker(self) -> Callable[[Sequence[Tensors]], Tensors]:
        """What `stack` does, as something that can be pickled for another process, once samples were read."""
        ...


class Trial(Protocol):
    """How fast a candidate is that a pass has written."""

    def __call__(self, candidate: Path, about: float = 1.0, seconds: float = 2.0) -> Ratio:
        """How many times as fast the model in the folder `candidate` is as the step's input, with its interval.

        Both are converted as `to:` converts them, and run in turns at the dims' opt sizes, each in a process of its
        own. about: the ratio that is in doubt; what lies far off it is measured in fewer rounds. seconds: after so long
        no further round is begun. Raises what a conversion or a runtime raises.
        """
        ...


@dataclass(frozen=True)
class Answered:
    """Samples, and what two models answer to them. labels: one for each, as the dataset has them; None without.

    source, own: outputs by name, axis 0 the batch: the source model's, and those of the model that is measured.
    """

    feeds: Tensors
    labels: Sequence[Any] | None
    count: int
    source: Tensors
    own: Tensors


Score = Callable[[Iterable[Answered]], Mapping[str, Mapping[str, Any]]]
"""The recipe's metrics: each by its name, with `value`, that of the `source`, and a `text` to show; or a `problem`."""


@dataclass(frozen=True)
class Context:
    """What a pass may know about the run it is part of.

    inputs: the source model's inputs, with named dynamic dims. outputs: its outputs' names, in order.
    dims: the declared range of each dynamic dim.
    data: the samples the step was given with `data:`, or None.
    scratch: an empty folder that is thrown away afterwards.
    source: the source model, for a pass that asks for it with `needs_source`.
    files: for a pass that `reads` files its options name: the absolute paths behind each text, the file itself first,
        then, of a callable FILE.py:NAME, the files that it imports from beside it.
    score: measures the recipe's metrics, for a pass that asks for the source model; None where it has none.
    trial: for a pass that `tries` its candidates on a runtime, what measures one.
    kept: for a pass that `resumes`, a folder that outlives a kill, empty at first: a run of the same step, with the
        same input, options and data, finds in it what the last one wrote. It goes once the step has succeeded.
    progress: tell the user a sentence, and how much is done (0 to 1) where that is known.
    shared: shared(what, make) gives the folder that make(folder) filled, once for all steps and runs on the same data
        that ask for the same; `what` is JSON data that says all else that decides it. None where nothing is kept.
    metrics: the recipe's task metrics that the step's `budget` names. base: the folder that their files start from.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    dims: Mapping[str, Dim]
    scratch: Path
    data: Samples | None = None
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    progress: Callable[[str, float | None], None] = lambda text, fraction: None
    source: Artifact | None = None
    kept: Path | None = None
    files: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    trial: Trial | None = None
    score: Score | None = None
    shared: Callable[[Sequence[Any], Callable[[Path], None]], Path] | None = None
    metrics: Sequence[Metric] = ()
    base: Path = Path()


Run = Callable[[Artifact, Path, Any, Context], Mapping[str, Any]]
Confirm = Callable[[Artifact, Artifact, Any, Context], Sequence[str]]


@dataclass(frozen=True)
class Pass:
    """One kind of step.

    name: both ends for a conversion ("torch.to_onnx"), format and verb otherwise ("onnx.quantize").
    version: raise it when the same input and options give another output; it is part of the cache key.
    run(artifact, out_dir, options, context) -> notes: writes the new model into the empty `out_dir`, under the file
        name its format prescribes, and returns JSON data worth reporting. `file` among them, what the file itself takes
        and gives where its runner converts, goes into a delivery's optkit.json. Raises `StepError` or a `UserError`.
    confirm(parent, artifact, options, context) -> complaints: re-reads what `run` wrote and says what was not done
        as asked (opset, precision, operators). Names, dtypes and dims are compared for every pass without it.
    fidelity: "exact" (same arithmetic), "rounding" (another kernel), "lossy" (quantise, prune, distil).
    precision: the coarsest floating-point type the output computes in; None keeps the parent's.
    floating: of a lossy pass, whether what it makes is an ordinary floating-point model, smaller or trained anew. A
        faithful step after it is then held to its answers as closely as any conversion, beside the bounds it inherits.
    keeps: what of the parent's signature holds in the output; a pass that changes dtypes drops "dtypes".
    tools: distributions whose versions decide the output; part of the cache key.
    machine(options) -> what else of this machine decides the output (its GPU, a compiler's version), for the cache key.
    needs_data: the step must name a dataset; a callable decides from the options.
    needs_source: the pass works with the source model too, as a teacher, so that its output depends on that.
    reads: the texts among the options that name files: a path, or a callable FILE.py:NAME; what the files hold counts
        in the cache key, and the pass finds them in `context.files`.
    tries(options) -> the format on whose runtime the pass measures candidates, or None; `context.trial` does it. Their
        speed then decides the output, so that the hardware and the runtime's version count in the cache key.
    budget(options) -> the bounds that its option `budget` states. Planning checks them as it does those of `check:`,
        and the pass finds the task metrics that they name in `context.metrics`.
    resumes: the pass writes checkpoints to `context.kept` and goes on from them.
    modules: what an idle worker may import ahead of the pass, to save its time.
    timed: whether the output's speed on its own format's runtime says anything: not where it is made for another one.
    environment: the environment of its own that it runs in, a name of `optkit env list`; None for optkit's own. `run`
        and `confirm` both run there, with `tools` as installed there; the check of what it made runs in optkit's own.
    """

    name: str
    version: int
    source: str
    target: str
    summary: str
    run: Run
    confirm: Confirm | None = None
    options: type[Options] = Options
    fidelity: Fidelity = "rounding"
    precision: str | None = None
    floating: bool = False
    keeps: frozenset[str] = frozenset({"names", "dtypes", "dims"})
    tools: tuple[str, ...] = ()
    machine: Callable[[Any], Sequence[str]] | None = None
    needs_data: bool | Callable[[Any], bool] = False
    needs_source: bool | Callable[[Any], bool] = False
    reads: Callable[[Any], Sequence[str]] = lambda options: ()
    tries: Callable[[Any], str | None] = lambda options: None
    budget: Callable[[Any], Sequence[str]] = lambda options: ()
    resumes: bool = False
    modules: tuple[str, ...] = ()
    timed: bool | Callable[[Any], bool] = True
    timeout_seconds: float = 1800.0
    environment: str | None = None

    def is_timed(self, options: Options) -> bool:
        """Whether the output of a step with these options is raced against its parent."""
        return self.timed(options) if callable(self.timed) else self.timed

    def wants_source(self, options: Options) -> bool:
        """Whether a step with these options is given the source model."""
        return self.needs_source(options) if callable(self.needs_source) else self.needs_source

    def wants_data(self, options: Options) -> bool:
        """Whether a step with these options must name a dataset."""
        return self.needs_data(options) if callable(self.needs_data) else self.needs_data


class Session(Protocol):
    """An open model. `provider` is what really runs it ("CPUExecutionProvider", "CPU f32"), asserted, not assumed."""

    @property
    def provider(self) -> str: ...

    def infer(self, tensors: Tensors) -> Tensors:
        """Named inputs to named outputs. Raises DataError as `checked_feeds` does, StepError where it fails."""
        ...


Open = Callable[..., AbstractContextManager[Session]]


@dataclass(frozen=True)
class Point:
    """A floating-point tensor inside a model, at which two models can be compared.

    name: of the tensor, unique in its model. operator, node: what makes it, in the format's own words.
    module: the path of the torch module it comes from, "" where the file does not say.
    inputs: the points, and inputs of the model, that it is computed from, the nearest on each way back.
    also: other names that another model may know it by, such as "module encoder.layer.0" for what a module gives.
    weighs: whether it is computed with weights, and not from other tensors alone.
    """

    name: str
    operator: str
    node: str
    module: str = ""
    inputs: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    weighs: bool = False


class Inside(Protocol):
    """An open model whose inner tensors can be read.

    points: all of them, in the order of execution; a model's inputs are none. replaces: whether `given` is honoured.
    """

    @property
    def points(self) -> Sequence[Point]: ...

    @property
    def replaces(self) -> bool: ...

    def values(self, names: Sequence[str], tensors: Tensors, given: Tensors | None = None) -> Tensors:
        """Points and outputs of the model by name, for one feed; integers that stand for real numbers as these.

        given: points, or inputs, by name: whoever reads one sees this in its place, while asking for it still gives
        what the model itself computes. Only what is named is kept, so the caller decides how much memory it takes.
        """
        ...


Look = Callable[..., AbstractContextManager[Inside]]


@dataclass(frozen=True)
class Runner:
    """Runs artifacts of one format.

    describe(path, meta) -> Signature: reads the file, without running it where the format allows.
    open(artifact, device="cpu", threads=1, precision=None) -> context manager yielding a Session. `precision` asks for
        another arithmetic than the file's own where `precisions` lists it ("float64" for a reference).
    main: the file name the format prescribes inside an artifact's folder.
    suffixes: file endings by which a user's file of this format is known.
    inspect(path) -> JSON data for `optkit inspect`: opset, operator counts, parameter and byte counts, precision.
    delivered_in: the sub-folder that a delivery puts the files into, where what serves them prescribes one.
    settings: the runtime settings that `open` honours; it reads them with `settings_of(artifact, ...)`, and raises
        UnavailableError for one that did not take effect.
    inside: functions (artifact, threads=1) -> context manager yielding an Inside, tried in turn until one shows tensors
        that the other model has too; optional: with one a failed check names the layer. `Artifact.meta` holds the
        ranges of the dims under "dims".
    """

    format: str
    version: int
    main: str
    suffixes: tuple[str, ...]
    describe: Callable[[Path, Mapping[str, Any]], Signature]
    open: Open
    inspect: Callable[[Path], Mapping[str, Any]]
    tools: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    precisions: frozenset[str] = field(default_factory=frozenset)
    delivered_in: str = ""
    settings: type[Settings] = Settings
    inside: tuple[Look, ...] = ()


# Which extra brings which distribution: the install line of an error is made from this.
EXTRAS: dict[str, str] = {
    "torch": "torch", "onnxscript": "torch", "safetensors": "torch", "transformers": "transformers",
    "onnx": "onnx", "onnxruntime": "onnx", "onnxsim": "onnx", "onnx-ir": "onnx",
    "openvino": "openvino", "nncf": "openvino", "tokenizers": "transformers", "pillow": "images",
    "tensorrt_rtx": "tensorrt-rtx", "accelerate": "training",
    "tensorflow-cpu": "tensorflow", "keras": "tensorflow", "tf2onnx": "tensorflow",
    "h5py": "tensorflow", "fsspec": "remote-cache",
    "ai-edge-litert": "tflite", "ai-edge-quantizer": "tflite", "litert-torch": "tflite", "litert-converter": "tflite",
    "pytorch-lightning": "training", "tensorboard": "training",
}  # fmt: skip


def install_line(tool: str) -> str:
    """The command that installs a distribution the way optkit's extras pin it."""
    extra = EXTRAS.get(tool)
    return f'pip install "optkit[{extra}]"' if extra else f"pip install {tool}"


def need(module: str, tool: str | None = None) -> ModuleType:
    """Import a backend. Raises UnavailableError that tells apart "not installed" and "installed but broken"."""
    tool = tool or module.split(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and module.split(".")[0] == error.name.split(".")[0]:
            raise UnavailableError(f"{tool} is not installed", hint=install_line(tool), code="OPK-401") from error
        raise UnavailableError(
            f"{tool} is installed but broken: it needs {error.name!r}, which is missing",
            hint=install_line(tool),
            code="OPK-402",
        ) from error
    except Exception as error:  # a backend's import runs its own code and can fail in any way
        raise UnavailableError(
            f"{tool} is installed but broken: import {module} failed with {type(error).__name__}: {error}",
            hint=f"pip install --force-reinstall {tool}, then optkit doctor",
            code="OPK-402",
        ) from error


__all__ = [
    "Answered",
    "Artifact",
    "Confirm",
    "Context",
    "Dim",
    "Fidelity",
    "Inside",
    "Options",
    "Pass",
    "Point",
    "Run",
    "Runner",
    "Samples",
    "Score",
    "Session",
    "Signature",
    "TensorSpec",
    "Trial",
    "UnavailableError",
    "checked_feeds",
    "install_line",
    "need",
]
