"""What every runner must satisfy."""

from __future__ import annotations

import copy
import gc
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.artifact import Artifact, Signature
from optkit.errors import OptkitError, UnavailableError
from optkit.plugin import Look, Runner
from optkit.testing.passes import assert_tools

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from optkit.plugin import Tensors


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
    assert_tools(runner.format, runner.tools, runner.modules)
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
