"""The kit plugin authors and optkit's own tests use: what every pass and every runner must satisfy, as assertions."""

from __future__ import annotations

import copy
import gc
import importlib.metadata
import importlib.util
import json
import os
import pickle
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from optkit import environments
from optkit.artifact import Artifact, Signature, digest_files
from optkit.errors import OptkitError, UnavailableError
from optkit.plugin import Context, Look, Options, Pass, Runner

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optkit.plugin import Tensors


@dataclass(frozen=True)
class ListSamples:
    """A `Samples` over a short list of input name to array without the batch axis. labels: one per item, or None."""

    items: Sequence[Tensors]
    labels: Sequence[Any] | None = None

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.labels is not None

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Tensors]:
        return iter(self.items)

    def feeds(self, batch: int) -> Iterator[Tensors]:
        """Up to `batch` equally shaped samples stacked along axis 0."""
        for start in range(0, len(self.items), batch):
            yield self.stack(self.items[start : start + batch])

    def iter_labelled(self) -> Iterator[tuple[Tensors, Any]]:
        """Each item with its label."""
        return zip(self.items, self.labels or [None] * len(self.items), strict=True)

    def stack(self, samples: Sequence[Tensors]) -> Tensors:
        """Equally shaped items along axis 0."""
        return _stacked(samples)

    @property
    def stacker(self) -> Callable[[Sequence[Tensors]], Tensors]:
        """What `stack` does, as a function that can be pickled."""
        return _stacked


def _stacked(samples: Sequence[Tensors]) -> Tensors:
    import numpy as np

    return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}


def assert_pass_contract(
    use: Pass,
    artifact: Artifact,
    options: Mapping[str, Any],
    context: Mapping[str, Any],
    tmp_path: Path,
    *,
    runner: Runner | None = None,
    deterministic: bool = True,
) -> Artifact:
    """The artifact a pass makes of another, after it has shown that it keeps the contract of `optkit.plugin.Pass`.

    artifact: a model of the pass's source format, with its signature. options: as a recipe writes them under `with:`.
    context: fields of `Context` beside the model's own (`dims`, `data`, `seed`). runner: what opens the output; default
    the registered one. deterministic: whether equal input gives equal bytes; say False only where a backend cannot.

    Checks that the pass is described well; that an unknown option is refused; that it writes its target file, and into
    `out_dir` alone; that its input, its options and the working directory stay as they were; that its notes are JSON
    data; that it kept what `keeps` promises, and finds itself in order (`confirm`). A pass that wants an environment of
    its own is tested there, in a child process, where `artifact` and `context` must be picklable. Raises
    AssertionError.
    """
    from optkit.named import named_files
    from optkit.signatures import promised
    from optkit.tasks import reread
    from optkit.trials import Trials

    if use.environment is not None and environments.running() != use.environment:
        assert runner is None, f"{use.name} runs in {use.environment}, which has the registered runners alone"
        return _assert_there(
            environments.require(use.environment), use.name, (artifact, options, context, tmp_path, deterministic)
        )
    _assert_described(use)
    given = use.options.model_validate(dict(options))
    _assert_options(use, given)
    signature = artifact.signature
    assert signature is not None, "give an artifact with its signature"
    assert artifact.format == use.source, f"{use.name} takes {use.source}, not {artifact.format}"
    if use.wants_data(given):
        assert context.get("data") is not None, f"{use.name} needs data with these options: give it in `context`"
    made: list[Artifact] = []
    for turn in ("first", "second"):
        out, scratch, elsewhere = (tmp_path / f"{turn}-{name}" for name in ("out", "scratch", "cwd"))
        for folder in (out, scratch, elsewhere):
            folder.mkdir(parents=True)
        told: list[tuple[str, float | None]] = []
        whole = Context(
            **{
                "inputs": signature.inputs,
                "outputs": tuple(t.name for t in signature.outputs),
                "dims": {},
                "scratch": scratch,
                "progress": _Teller(told),
                "files": named_files(use, given, Path.cwd()),
                **context,
            }
        )
        if (tried := use.tries(given)) is not None and whole.trial is None:
            whole = replace(whole, trial=Trials(use, artifact, tried, whole))
        before = _tree(artifact.path.parent), given.model_copy(deep=True), dict(whole.dims)
        with chdir(elsewhere):
            notes = use.run(artifact, out, given, whole)
            assert Path.cwd() == elsewhere, f"{use.name} changed the working directory"
        assert list(elsewhere.iterdir()) == [], f"{use.name} wrote outside its folder: {list(elsewhere.iterdir())}"
        assert _tree(artifact.path.parent) == before[0], f"{use.name} changed what lies beside its input"
        assert (given, dict(whole.dims)) == before[1:], f"{use.name} changed its options or its dims"
        assert isinstance(notes, Mapping), f"{use.name} returned {notes!r}, not notes"
        json.dumps(notes, allow_nan=False)
        for text, fraction in told:
            assert isinstance(text, str), f"progress: {text!r} is no text"
            assert fraction is None or 0 <= fraction <= 1, f"progress: {fraction!r} is no part done"
        one = reread(use, artifact, out, whole, runner)
        assert not (broken := promised(use, artifact, one)), f"{use.name}: {'; '.join(broken)}"
        if use.confirm is not None:
            complaints = list(use.confirm(artifact, one, given, whole))
            assert not complaints, f"{use.name} does not confirm its own work: {'; '.join(complaints)}"
        made.append(one)
    assert set(made[0].files) == set(made[1].files)
    if deterministic:
        assert made[0].digest == made[1].digest, f"{use.name} gave other bytes the second time"
    return made[0]


_CHILD = """
import pathlib, pickle, sys
from optkit.registry import get_pass
from optkit.testing import assert_pass_contract
artifact, options, context, tmp_path, deterministic = pickle.loads(pathlib.Path(sys.argv[2]).read_bytes())
made = assert_pass_contract(get_pass(sys.argv[1]), artifact, options, context, tmp_path, deterministic=deterministic)
pathlib.Path(sys.argv[2]).write_bytes(pickle.dumps(made))
"""


def _assert_there(there: environments.Environment, name: str, given: Any) -> Artifact:
    """`assert_pass_contract` in another environment."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "optkit").symlink_to(Path(__file__).parent, target_is_directory=True)
        file = Path(folder) / "given"
        file.write_bytes(pickle.dumps(given))
        done = subprocess.run([there.python, "-P", "-c", _CHILD, name, file], capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": folder}, check=False)  # fmt: skip
        assert done.returncode == 0, f"in the environment {there.name}: {done.stderr}"
        made: Artifact = pickle.loads(file.read_bytes())
        return made


@dataclass(frozen=True)
class _Teller:
    """Keeps what a pass tells of its progress."""

    told: list[tuple[str, float | None]]

    def __call__(self, text: str, fraction: float | None) -> None:
        self.told.append((text, fraction))


def _assert_described(use: Pass) -> None:
    assert use.version >= 1
    assert use.summary, f"{use.name} has no summary"
    assert use.summary == use.summary.strip().rstrip("."), "a summary is a phrase, without a full stop"
    assert use.fidelity in ("exact", "rounding", "lossy")
    assert use.timeout_seconds > 0
    _assert_tools(use.name, use.tools, use.modules)


def _assert_tools(name: str, tools: Sequence[str], modules: Sequence[str]) -> None:
    """Tools are part of cache keys, so a misspelt one would go unnoticed for ever."""
    for tool in tools:
        importlib.metadata.version(tool)
    for module in modules:
        assert importlib.util.find_spec(module), f"{name}: there is no module {module!r} to load ahead"


def _assert_options(use: Pass, given: Options) -> None:
    for name, info in use.options.model_fields.items():
        assert info.description, f"{use.name}: the option {name!r} has no description"
    try:
        use.options.model_validate({**given.model_dump(by_alias=True), "no_such_option": 1})
    except ValidationError:
        pass
    else:
        raise AssertionError(f"{use.name} takes options it does not know")
    again = use.options.model_validate(json.loads(given.model_dump_json(by_alias=True)))
    assert again == given, f"{use.name}: its options do not survive being written down"


def _tree(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Every file under a folder: size, time of change, digest."""
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {n: (p.stat().st_size, p.stat().st_mtime_ns, digest_files(folder, [n])) for n, p in files.items()}


def assert_runner_contract(
    runner: Runner, artifact: Artifact, feeds: Tensors, *, device: str = "cpu", deterministic: bool = True
) -> None:
    """Assert that a runner keeps the contract of `optkit.plugin.Runner` on an artifact of its format.

    feeds: one batch of inputs by name, with at least two rows. deterministic: whether it answers twice to the last bit.

    Checks that `describe` and `infer` agree on names, dtypes and shapes; that answers are finite, its own (not
    overwritten by the next call) and independent of the inputs' memory layout; that inputs stay as they were; that a
    missing, unknown, wrongly typed or wrongly shaped input, an unknown device and an unknown precision are refused with
    a remedy, and that it goes on working after that; that closing it lets its files go; of what looks inside, that
    names are unique and in order, and that a tensor that is given is what its readers see. Raises AssertionError.
    """
    assert runner.version >= 1
    known = artifact.path.name == runner.main or artifact.path.name.lower().endswith(runner.suffixes)
    assert known, f"{artifact.path.name} is neither {runner.main} nor one of {runner.suffixes}"
    _assert_tools(runner.format, runner.tools, runner.modules)
    described = runner.describe(artifact.path, artifact.meta)
    assert described == runner.describe(artifact.path, artifact.meta)
    assert Signature.from_json(json.loads(json.dumps(described.to_json()))) == described
    json.dumps(runner.inspect(artifact.path), allow_nan=False)
    signature = artifact.signature or described
    artifact = artifact.with_signature(signature)
    assert [t.name for t in signature.inputs] == [t.name for t in described.inputs]
    assert [t.name for t in signature.outputs] == [t.name for t in described.outputs]
    _assert_answers(runner, artifact, described, feeds, device, deterministic)
    _assert_refused("an unknown device", partial(_open, runner, artifact, device="no such device"))
    _assert_refused("an unknown precision", partial(_open, runner, artifact, device=device, precision="float3"))
    for look in runner.inside:
        _assert_inside(look, artifact, feeds)
    gc.collect()
    assert not (held := _held(artifact)), f"after closing, {', '.join(held)} is still open"


def _assert_answers(
    runner: Runner, artifact: Artifact, described: Signature, feeds: Tensors, device: str, deterministic: bool
) -> None:
    """What an open session must do; a function of its own, so that nothing here keeps it alive."""
    import numpy as np

    kept = copy.deepcopy(feeds)
    with runner.open(artifact, device=device, threads=1) as session:
        assert isinstance(session.provider, str)
        assert session.provider
        answer = session.infer(dict(feeds))
        _assert_agrees(described, answer, feeds)
        first = copy.deepcopy(answer)
        session.infer({name: np.zeros_like(t) for name, t in feeds.items()})
        _assert_equal(first, answer, "an answer changed when the next was given")
        _assert_equal(kept, feeds, "infer changed its inputs")
        again = session.infer({name: _strided(t) for name, t in feeds.items()})
        _assert_equal(first, again, "the inputs' memory layout makes a difference", exact=deterministic)
        backwards = session.infer(dict(reversed(feeds.items())))
        _assert_equal(first, backwards, "the inputs' order makes a difference", exact=deterministic)
        for what, wrong in _wrong_feeds(described, feeds):
            _assert_refused(what, partial(session.infer, wrong))
        _assert_equal(first, session.infer(dict(feeds)), "after refusals, the answer is another", exact=deterministic)
        with runner.open(artifact, device=device, threads=2) as other:
            _assert_equal(first, other.infer(dict(feeds)), "two open at once, and two threads", exact=False)
        _assert_equal(first, session.infer(dict(feeds)), "another was closed", exact=deterministic)
        for precision in runner.precisions:
            # A precision that this machine does not compute in is refused, not quietly replaced.
            with (
                suppress(UnavailableError),
                runner.open(artifact, device=device, threads=1, precision=precision) as other,
            ):
                share = 0.1 if precision in ("float16", "bfloat16") else 1e-3
                _assert_equal(first, other.infer(dict(feeds)), f"in {precision}", exact=False, share=share)


def _open(runner: Runner, artifact: Artifact, **how: Any) -> None:
    with runner.open(artifact, threads=1, **how):
        pass


def _assert_agrees(described: Signature, answer: Tensors, feeds: Tensors) -> None:
    """Names, dtypes and shapes as described, one size per dim, and every number finite."""
    import numpy as np

    names = [t.name for t in described.outputs]
    assert list(answer) == names, f"the answer is named {', '.join(answer)}, described as {', '.join(names)}"
    sizes: dict[str, int] = {}
    pairs = [(t, feeds[t.name]) for t in described.inputs] + [(t, answer[t.name]) for t in described.outputs]
    for spec, tensor in pairs:
        assert isinstance(tensor, np.ndarray | np.generic), f"{spec.name} is a {type(tensor).__name__}"
        wanted = "float32" if spec.dtype == "bfloat16" else spec.dtype
        assert str(tensor.dtype) == wanted, f"{spec.name} is {tensor.dtype}, described as {spec.dtype}"
        if spec.shape is not None:
            assert tensor.ndim == len(spec.shape), f"{spec.name} has shape {tensor.shape}, described as {spec.shape}"
            for axis, dim in enumerate(spec.shape):
                size = dim if isinstance(dim, int) else sizes.setdefault(dim, tensor.shape[axis])
                assert tensor.shape[axis] == size, f"{spec.name} has shape {tensor.shape}, described as {spec.shape}"
        if tensor.dtype.kind == "f":
            assert np.isfinite(tensor).all(), f"{spec.name} is not finite"


def _assert_equal(one: Tensors, other: Tensors, what: str, *, exact: bool = True, share: float = 1e-3) -> None:
    import numpy as np

    assert list(one) == list(other), what
    for name, tensor in one.items():
        if exact or tensor.dtype.kind not in "fc":
            assert np.array_equal(tensor, other[name]), f"{what}: {name}"
        else:
            limit = share * max(float(np.abs(tensor).max(initial=0)), 1e-12)
            off = float(np.abs(tensor.astype(np.float64) - other[name].astype(np.float64)).max(initial=0))
            assert off <= limit, f"{what}: {name} is off by {off}"


def _strided(tensor: NDArray[Any]) -> NDArray[Any]:
    """The same values, laid out otherwise: every second element of a larger array, columns first."""
    import numpy as np

    wide = np.zeros((*tensor.shape[:-1], 2 * tensor.shape[-1]) if tensor.ndim else (), tensor.dtype, order="F")
    if not tensor.ndim:
        return tensor
    wide[..., ::2] = tensor
    view: NDArray[Any] = wide[..., ::2]
    return view


def _wrong_feeds(signature: Signature, feeds: Tensors) -> Iterator[tuple[str, dict[str, Any]]]:
    """Feeds that no session may take, each with its name."""
    import numpy as np

    yield "no input at all", {}
    yield "an unknown input", {**feeds, "no_such_input": np.zeros(1, np.float32)}
    for spec in signature.inputs:
        tensor = feeds[spec.name]
        yield f"{spec.name} missing", {name: t for name, t in feeds.items() if name != spec.name}
        for dtype in {"float64", "int16", "float16"} - {str(tensor.dtype)}:
            yield f"{spec.name} as {dtype}", {**feeds, spec.name: tensor.astype(dtype)}
        yield f"{spec.name} with an axis more", {**feeds, spec.name: tensor[None]}
        if tensor.ndim:
            yield f"{spec.name} with an axis less", {**feeds, spec.name: tensor[0]}
        yield f"{spec.name} as a list", {**feeds, spec.name: tensor.tolist()}
        for axis, dim in enumerate(spec.shape or ()):
            if isinstance(dim, int):
                longer = np.concatenate([tensor, tensor], axis=axis)
                yield f"{spec.name} with axis {axis} twice as long", {**feeds, spec.name: longer}


def _assert_inside(look: Look, artifact: Artifact, feeds: Tensors) -> None:
    """What a model's inner tensors must be like; one that says that it cannot be looked into is let off."""
    import numpy as np

    with suppress(OptkitError), look(artifact, threads=1) as model:
        assert artifact.signature is not None
        outputs = [spec.name for spec in artifact.signature.outputs]
        answer = model.values(outputs, dict(feeds))
        assert list(answer) == outputs
        known = {*feeds}
        for point in model.points:  # known in full once it ran
            assert point.name not in known, f"{point.name} stands for two tensors"
            assert known.issuperset(point.inputs), f"{point.name} is computed from what comes after it"
            known.add(point.name)
        names = [point.name for point in model.points][:8]
        values = model.values(names, dict(feeds))
        assert set(values) == set(names)
        assert all(value.dtype.kind == "f" for value in values.values())
        if model.replaces and names:
            given = {names[0]: np.full_like(values[names[0]], 0.5)}
            again = model.values(names, dict(feeds), given)
            assert np.array_equal(again[names[0]], values[names[0]]), "asked for, it is what the model computes"


def _assert_refused(what: str, do: Callable[[], object]) -> None:
    try:
        do()
    except OptkitError as error:
        if error.hint:
            return
        raise AssertionError(f"{what}: refused without a remedy: {error}") from error
    except Exception as error:
        raise AssertionError(f"{what}: refused with {type(error).__name__}, none of optkit's own errors") from error
    raise AssertionError(f"{what}: nothing was said")


def _held(artifact: Artifact) -> list[str]:
    """Files of an artifact that this process has open or mapped; empty where the system does not tell."""
    files = {str((artifact.path.parent / name).resolve()) for name in artifact.files or (artifact.path.name,)}
    held = set()
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
        held |= {path for path in files if path in maps}
        for handle in Path("/proc/self/fd").iterdir():
            held |= {str(handle.readlink())} & files
    except OSError:
        pass
    return sorted(held)
