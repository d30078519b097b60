"""NNCF on OpenVINO models, for the passes that use it: quiet, offline, on the threads it was given.

NNCF has no switches for most of this (3.4), so `nncf_session` changes six things inside it and puts them back: its
telemetry (on by default), its log handler (stdout), its progress bars, its inference engine (all cores; see also
`openvino_core.infer`), what it remembers of samples (all of it), and what it imports. It imports torch and onnx only to
ask whether an OpenVINO model is one of theirs; without them its import takes 0.4 s in place of 2 s, and its results are
the same to the byte.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pydantic import Field

from optkit.errors import DataError, OptkitError, StepError, did_you_mean
from optkit.formats.openvino.core import core, infer, load, reason
from optkit.plugin import Context, Options

if TYPE_CHECKING:
    from optkit.plugin import Samples, Tensors

REMEMBERED = 1024
"""Most values, one a sample, that NNCF remembers of a statistic it cannot update as it goes: a mean, a quantile."""

HELD = 60
"""Most samples that full bias correction is done on: a fifth of NNCF's own default of 300."""


class Ignored(Options):
    """Operators to leave in floating point."""

    names: tuple[str, ...] = Field(default=(), description="names of operators, as in the IR")
    types: tuple[str, ...] = Field(default=(), description='OpenVINO operator types, such as "MatMul"')
    patterns: tuple[str, ...] = Field(
        default=(), description="regular expressions; one matches from the start of a name"
    )

    def matching(self, model: Any) -> set[str]:
        """The names of the model's operators that are left in floating point."""
        matches = [re.compile(pattern).match for pattern in self.patterns]
        return {
            op.get_friendly_name()
            for op in _operators(model)
            if op.get_friendly_name() in self.names
            or op.get_type_name() in self.types
            or any(match(op.get_friendly_name()) for match in matches)
        }

    def scope(self, nncf: ModuleType, model: Any) -> Any:
        """The `nncf.IgnoredScope`, or None. Raises StepError for an entry that matches no operator of the model."""
        if not (self.names or self.types or self.patterns):
            return None
        operators = [op for op in _operators(model) if op.get_type_name() not in {"Constant", "Result"}]
        names = [op.get_friendly_name() for op in operators]
        for subject, given, known in (
            ("names", self.names, set(names)),
            ("types", self.types, {op.get_type_name() for op in operators}),
        ):
            for word in given:
                if word not in known:
                    raise StepError(
                        f"ignored.{subject}: the model has no operator {subject[:-1]} {word!r}",
                        hint=did_you_mean(word, known),
                        subject="with.ignored",
                    )
        for pattern in self.patterns:
            try:
                matches = re.compile(pattern).match
            except re.error as error:
                raise StepError(
                    f"ignored.patterns: {pattern!r} is not a regular expression: {error}",
                    hint="escape special characters with a backslash",
                    subject="with.ignored",
                ) from error
            if not any(matches(name) for name in names):
                raise StepError(
                    f"ignored.patterns: {pattern!r} matches no operator name from its start",
                    hint=did_you_mean(pattern, names) or "begin it with .*",
                    subject="with.ignored",
                )
        return nncf.IgnoredScope(list(self.names), list(self.patterns), list(self.types))


def _operators(model: Any) -> Iterator[Any]:
    for op in model.get_ops():
        yield op
        if op.get_type_name() == "If":
            for body in (0, 1):
                yield from _operators(op.get_function(body))


@dataclass(frozen=True)
class Feeds:
    """The step's samples as NNCF's data source: iterated anew for each of its phases, one feed alive at a time.

    Batch 1 at each sample's natural length, or the model's own batch where that is fixed.
    """

    samples: Samples
    batch: int
    names: frozenset[str]
    hidden: Hidden

    def __len__(self) -> int:
        with self.hidden.shown():  # a user's own dataset may import anything
            return len(self.samples) // self.batch

    def __iter__(self) -> Iterator[Tensors]:
        with self.hidden.shown():
            feeds = iter(self.samples.feeds(self.batch))
        for _ in range(len(self)):
            with self.hidden.shown():
                feed = next(feeds, None)
            if feed is None:
                return
            if self.names != set(feed):
                raise DataError(
                    f"the samples have {', '.join(sorted(feed))}, the model's inputs are "
                    f"{', '.join(sorted(self.names))}",
                    subject="data",
                    hint="name the dataset's arrays as the model's inputs",
                )
            yield feed


class Hidden:
    """A finder and loader for modules that, for this thread and this long, are not to be found."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names)
        self.thread = threading.get_ident()
        self.active = True

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        wanted = self.active and name in self.names and threading.get_ident() == self.thread
        return ModuleSpec(name, self, origin="hidden") if wanted else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        raise ModuleNotFoundError(f"{spec.name} is not needed here", name=spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass

    @contextmanager
    def shown(self) -> Iterator[None]:
        before, self.active = self.active, False
        try:
            yield
        finally:
            self.active = before


@dataclass
class Session:
    """`nncf` ready to use.

    batch: samples per feed. logged: level and text of what NNCF has logged so far, from INFO up.
    """

    nncf: ModuleType
    context: Context
    hidden: Hidden
    batch: int = 1
    logged: list[tuple[int, str]] = field(default_factory=list)

    @property
    def warnings(self) -> list[str]:
        """What it warned of, for the notes."""
        return [text for level, text in self.logged if level >= logging.WARNING]

    def feeds(self, model: Any, limit: int | None, cap: int) -> tuple[Any, int]:
        """The step's data as an `nncf.Dataset` over `model`'s inputs, and how many of its feeds to use.

        limit: as many samples were asked for; None means all, up to `cap`. Raises DataError.
        """
        samples = self.context.data
        if samples is None:
            raise DataError("this step fits on data, and none was given", subject="data", hint="add data: to the step")
        batch = self.batch = _fixed_batch(model) or 1
        source = Feeds(samples, batch, frozenset(self._name(port) for port in model.inputs), self.hidden)
        wanted = -(-(limit or 1) // batch)
        if len(source) < wanted:
            raise DataError(
                f"the dataset has {len(samples)} samples, {wanted * batch} are needed",
                subject="data" if limit is None else "with.subset_size",
                hint="give more samples, or a smaller subset_size",
            )
        return self.nncf.Dataset(source), wanted if limit else min(len(source), max(cap // batch, 1))

    def _name(self, port: Any) -> str:
        own = {spec.name for spec in self.context.inputs} & port.get_names()
        return str(min(own or port.get_names()))


def _fixed_batch(model: Any) -> int | None:
    """The size of every input's first axis, where it is fixed and one and the same."""
    shapes = [port.get_partial_shape() for port in model.inputs]
    first = [s[0] if not s.rank.is_dynamic and s.rank.get_length() else None for s in shapes]
    sizes = {dim.get_length() if dim is not None and dim.is_static else None for dim in first}
    return sizes.pop() if len(sizes) == 1 else None


@contextmanager
def nncf_session(context: Context, stages: int) -> Iterator[Session]:
    """NNCF, imported and made quiet. stages: how many progress bars it will show, for the fraction done.

    Raises StepError in place of whatever NNCF or OpenVINO raise inside; optkit's own errors pass.
    """
    with _hiding() as hidden:
        session = Session(_nncf(), context, hidden)
        try:
            with _patched(session, stages):
                yield session
        except OptkitError:
            raise
        except Exception as error:  # NNCF raises its own errors and, from its internals, nearly any other
            raise StepError(f"NNCF failed: {reason(error)}", details=type(error).__name__) from error


@contextmanager
def _hiding() -> Iterator[Hidden]:
    hidden = Hidden({"torch", "onnx", "nncf.torch"})
    sys.meta_path.insert(0, hidden)
    try:
        yield hidden
    finally:
        sys.meta_path.remove(hidden)


def _nncf() -> ModuleType:
    load()
    return load("nncf")


def preload() -> None:
    """Import NNCF, and what of it a step imports only when it runs, ahead of the step."""
    with _hiding():
        _nncf()
        load("nncf.openvino.quantization.quantize_model")


@contextmanager
def _patched(session: Session, stages: int) -> Iterator[None]:
    import nncf.common.tensor_statistics.collectors as collectors
    import nncf.openvino.engine as engine
    import nncf.quantization.algorithms.post_training.pipeline as pipeline
    import nncf.telemetry.decorator as tracking
    from nncf.common.logging import nncf_logger
    from nncf.common.logging.track_progress import track
    from nncf.telemetry.wrapper import NNCFTelemetryStub

    bars = _bars(track, session.context.progress, stages)
    places: list[tuple[Any, str, Any]] = [
        (tracking, "telemetry", NNCFTelemetryStub()),
        (engine, "OVNativeEngine", _engine(engine, session.context.threads)),
        (nncf_logger, "handlers", [_Collect(session.logged)]),
        *((track, name, method) for name, method in bars.items()),
        *(
            (kind, "register_reduced_input", _remembering(kind))
            for kind in (collectors.OfflineAggregatorBase, collectors.PercentileAggregator)
        ),
        (pipeline, "BiasCorrection", _on_few(pipeline.BiasCorrection)),
    ]
    before = [(place, name, getattr(place, name)) for place, name, _ in places]
    level = nncf_logger.level
    nncf_logger.setLevel(logging.INFO)
    try:
        for place, name, value in places:
            setattr(place, name, value)
        yield
    finally:
        nncf_logger.setLevel(level)
        for place, name, value in before:
            setattr(place, name, value)


class _Collect(logging.Handler):
    def __init__(self, logged: list[tuple[int, str]]) -> None:
        super().__init__()
        self.logged = logged

    def emit(self, record: logging.LogRecord) -> None:
        self.logged.append((record.levelno, record.getMessage()))


def _engine(engine: Any, threads: int) -> type:
    """NNCF's inference engine: in float32 as NNCF has it, on `threads` threads, and with failures reported."""

    class Request:
        def __init__(self, request: Any) -> None:
            self.request = request
            self.reset_state = request.reset_state

        def infer(self, feeds: Any, share_inputs: bool = False) -> Any:
            infer(self.request, feeds, share_inputs=share_inputs)
            return self.request.results

    class Engine(engine.OVNativeEngine):  # type: ignore[misc]
        def __init__(self, model: Any, use_fp32_precision: bool = True) -> None:
            config: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
            if use_fp32_precision:
                config["INFERENCE_PRECISION_HINT"] = "f32"
            compiled = core().compile_model(model, "CPU", config)
            self.engine = engine.OVCompiledModelEngine(compiled, engine.model_has_state(model))
            self.engine.infer_request = Request(self.engine.infer_request)

    return Engine


def _remembering(kind: Any) -> Any:
    """The method by which a statistic takes a sample's value: the same values up to `REMEMBERED`, then evenly fewer."""

    def register(self: Any, x: Any) -> None:
        if self._num_samples is not None and self._collected_samples >= self._num_samples:
            return
        every = getattr(self, "_optkit_every", 1) if self._collected_samples else 1
        if self._collected_samples % every == 0:
            self._register_reduced_input_impl(x)
        self._collected_samples += 1
        if len(self._container) > REMEMBERED:
            kept = list(self._container)[::2]
            self._container.clear()
            self._container.extend(kept)
            every *= 2
        self._optkit_every = every

    return register


def _on_few(algorithm: Any) -> Any:
    """Full bias correction on `HELD` samples at most: it holds the inputs of layers for each."""
    return lambda subset_size, *rest: algorithm(min(subset_size, HELD), *rest)


def _bars(track: Any, progress: Any, stages: int) -> Mapping[str, Any]:
    """Methods for NNCF's progress bar that report to `progress` and draw nothing."""
    init = track.__init__
    shown: list[Any] = []

    def report(bar: Any, done: float) -> None:
        total = len(bar.weights) if bar.weights is not None else bar.total or 0
        total = total or (len(bar.sequence) if hasattr(bar.sequence, "__len__") else 0)
        part = min(done / total, 1.0) if total else 0.0
        if bar not in shown:
            shown.append(bar)
        if int(part * 20) != getattr(bar, "_optkit_part", -1):
            bar._optkit_part = int(part * 20)
            text = f"{bar.description.lower()} {done:g}/{total:g}" if total else bar.description.lower()
            progress(text, min((shown.index(bar) + part) / max(stages, len(shown)), 1.0))

    def quiet_init(bar: Any, *args: Any, **kwargs: Any) -> None:
        init(bar, *args, **(kwargs | {"disable": True}))
        bar._optkit_done = 0.0

    def update(bar: Any, advance: float, **_: Any) -> None:
        bar._optkit_done += advance
        report(bar, bar._optkit_done)

    def items(bar: Any) -> Iterator[Any]:
        for index, item in enumerate(bar.sequence):
            yield item
            report(bar, index + 1)

    return {"__init__": quiet_init, "__iter__": items, "update": update}


def counts(model: Any, types: Sequence[str]) -> dict[str, int]:
    """How many operators of each of `types` an `openvino.Model` has, bodies of If included."""
    found = [op.get_type_name() for op in _operators(model)]
    return {kind: found.count(kind) for kind in types}
