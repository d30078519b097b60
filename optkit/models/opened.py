"""Models that lie somewhere, found by path and opened: delivered folders, model files, callables."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from optkit.artifact import Artifact, Dim, Signature, TensorSpec
from optkit.caching import keys
from optkit.delivery.deliver import RECORD, SCHEMA
from optkit.drafting.shorthand import model_section, of_delivery
from optkit.errors import RecipeError, UserError, did_you_mean
from optkit.models.common_inputs import UNKNOWN
from optkit.models.sources import opened_artifact
from optkit.recipe import Recipe, recipe_from
from optkit.registry import get_runner

if TYPE_CHECKING:
    from optkit.plugin import Session, Tensors

Ranges = Mapping[str, "Dim | Mapping[str, int] | Sequence[int]"]
"""The sizes of each named dim: (min, opt, max), (min, max), or a mapping of these."""

_NEED_INPUTS = ("torch", "torchscript", "huggingface", "pickle")


class Model:
    """An open model: call it with named arrays, whatever its format. Close it, or use it in a `with` block.

    signature: what goes in and comes out. provider: what really runs it.
    """

    def __init__(self, artifact: Artifact, device: str, threads: int, dims: Mapping[str, Dim] | None = None) -> None:
        runner = get_runner(artifact.format)
        meta = {**artifact.meta, "dims": keys.dims_json(dims or {})}
        self.signature: Signature = artifact.signature or runner.describe(artifact.path, meta)
        self.artifact = artifact.with_signature(self.signature)
        self._stack = ExitStack()
        self._session: Session | None = self._stack.enter_context(
            runner.open(self.artifact, device=device, threads=threads)
        )
        self.provider = self._session.provider

    def __call__(self, tensors: Any = None, /, **named: Any) -> Tensors:
        """Outputs by name, for inputs by name with their batch axis: arrays, or tensors of torch.

        An int32 array goes into an int64 input and the other way round, where no value is lost. Raises UserError for
        inputs that are not what the model takes, and once it is closed.
        """
        from optkit.live.livedata import array_of

        if self._session is None:
            raise UserError("the model is closed", hint="call it before close(), or inside the `with` block")
        if tensors is not None and not isinstance(tensors, Mapping):
            name = self.signature.inputs[0].name
            what = f"inputs go by name, and a {type(tensors).__name__} has none"
            raise UserError(what, hint=f"model({name}=array), or model({{{name!r}: array}})")
        for name in named:
            if tensors is not None and name in tensors:
                raise UserError(f"input {name!r} is given twice", subject=f"inputs.{name}", hint="leave one out")
        given = {**(tensors or {}), **named}
        feeds = {n: array_of(v, "inputs", n) if hasattr(v, "detach") else v for n, v in given.items()}
        return self._session.infer({name: self._in_width(name, value) for name, value in feeds.items()})

    def _in_width(self, name: str, value: Any) -> Any:
        """int32 and int64 in the signature's width, where that holds every value; all else as it is."""
        import numpy as np

        wanted = next((spec.dtype for spec in self.signature.inputs if spec.name == name), "")
        if not isinstance(value, np.ndarray) or {value.dtype.name, wanted} != {"int32", "int64"}:
            return value
        cast = value.astype(wanted)
        if not np.array_equal(cast, value):
            raise UserError(f"input {name!r} has values that {wanted} cannot hold, which the model takes",
                            hint="give values in its range", subject=f"inputs.{name}")  # fmt: skip
        return cast

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        self._session = None
        self._stack.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_artifact(
    path: str | Path,
    device: str = "cpu",
    threads: int | None = None,
    *,
    inputs: Mapping[str, Mapping[str, Any]] | None = None,
    dims: Ranges | None = None,
    model: Mapping[str, Any] | None = None,
) -> Model:
    """The model at `path`, ready to be called with named arrays.

    path: a folder that optkit delivered, a model file, a Hugging Face folder or FILE.py:NAME. threads: default, all
    cores. inputs, dims: as `convert` takes them, for models that do not know their own. model: further keys of a
    recipe's `model:` section, such as {"signature": "second"} of a SavedModel. Raises UserError for what is no model,
    UnavailableError when its runtime or the device is not there.
    """
    if threads is not None and threads < 1:
        raise UserError(f"threads is {threads}", hint="at least 1; None takes all cores")
    sizes = sizes_to_try(inputs, ranges_of(dims))
    with tempfile.TemporaryDirectory(prefix="optkit-open-") as folder:  # a descriptor is read once, on opening
        artifact, _ = artifact_at(str(path), inputs, sizes, Path(folder), model or {})
        return Model(artifact, device, threads or keys.cores(), sizes)


def artifact_at(
    ref: str,
    inputs: Mapping[str, Mapping[str, Any]] | None,
    dims: Mapping[str, Dim],
    folder: Path,
    further: Mapping[str, Any] = {},
) -> tuple[Artifact, dict[str, Any]]:
    """The artifact a path or callable stands for, and its `model:` section (empty for a delivered folder).

    It has no digest, and a signature only where it was delivered. further: keys that the section gets. Raises UserError
    for what is no model.
    """
    if (Path(ref) / RECORD).is_file():
        if further:
            raise UserError(f"{ref} was delivered by optkit and takes no {', '.join(further)}", hint="leave model out")
        return delivered(Path(ref)), {}
    section = {**model_section(ref), **further}
    kind = next(iter(section))
    if kind in _NEED_INPUTS and not inputs:
        raise UserError(
            f"{ref}: a {kind} model does not say what goes into it",
            hint='say so: inputs={"image": {"shape": ["batch", 3, 224, 224]}}, dims={"batch": (1, 8, 64)}',
            subject="inputs",
        )
    declared = inputs if kind in (*_NEED_INPUTS, "pt2") else None
    try:
        recipe = stub(section, declared, dims)
    except RecipeError as error:  # the stub's own want of steps and data is nobody's mistake
        own = [problem for problem in error.problems if problem.what.startswith("model")]
        raise RecipeError(own or error.problems) from error
    return opened_artifact(recipe, folder), section


def stub(
    section: Mapping[str, Any], inputs: Mapping[str, Mapping[str, Any]] | None = None, dims: Mapping[str, Dim] = {}
) -> Recipe:
    """A recipe that has a source, and nothing to do with it. Raises RecipeError."""
    used = {d for spec in (inputs or {}).values() for d in spec.get("shape", ()) if isinstance(d, str)}
    return recipe_from(
        {
            "version": 1,
            "model": dict(section),
            "inputs": {name: dict(spec) for name, spec in (inputs or {}).items()},
            "dims": {name: dim.to_json() for name, dim in dims.items() if name in used},
            "steps": [{"id": "any", "to": "any"}],
        }
    )


def described(section: Mapping[str, Any]) -> Signature:
    """The signature of a model file, read in this process."""
    with tempfile.TemporaryDirectory(prefix="optkit-open-") as folder:
        artifact = opened_artifact(stub(section), Path(folder))
        return get_runner(artifact.format).describe(artifact.path, artifact.meta)


def ranges_of(dims: Ranges | None) -> dict[str, Dim]:
    """Dims as a program gives them. Raises UserError for what is no range of sizes."""
    made = {}
    for name, given in (dims or {}).items():
        sizes: Any = given
        if isinstance(given, Dim):
            sizes = (given.min, given.opt, given.max)
        elif isinstance(given, Mapping):
            sizes = [given[key] for key in ("min", "opt", "max") if key in given] if set(given) <= _SIZES else ()
        sizes = [sizes] if isinstance(sizes, int) else sizes
        whole = isinstance(sizes, Sequence) and all(isinstance(n, int) and not isinstance(n, bool) for n in sizes)
        if not whole or len(sizes) not in (1, 2, 3) or list(sizes) != sorted(sizes) or sizes[0] < 1:
            raise UserError(
                f"dims: {name!r} is {given!r}, which is no range of sizes",
                hint=f"dims={{{name!r}: (1, 8, 64)}}: the smallest, the typical and the largest size",
                subject=f"dims.{name}",
            )
        low, high = sizes[0], sizes[-1]
        made[name] = Dim(low, sizes[1] if len(sizes) == 3 else min(max(low, 2), high), high)
    return made


_SIZES = {"min", "opt", "max"}


def sizes_to_try(inputs: Mapping[str, Mapping[str, Any]] | None, dims: Mapping[str, Dim]) -> dict[str, Dim]:
    """The range of each dim that `inputs` name: as stated, or a small one, which will do to look at a model."""
    return {d: UNKNOWN for spec in specs_of(inputs) for d in spec.dynamic} | dict(dims)


def beside(
    refs: Iterable[str], inputs: Mapping[str, Mapping[str, Any]] | None, dims: Mapping[str, Dim]
) -> tuple[Mapping[str, Mapping[str, Any]] | None, dict[str, Dim]]:
    """What a model that does not say what goes into it gets, and the sizes to look at it with: the `inputs` and `dims`
    given, else those of the first delivered folder among `refs`. Raises UserError for a damaged folder.
    """
    for ref in refs if inputs is None else ():
        specs, ranges = of_delivery(ref)
        if specs:
            return specs, sizes_to_try(specs, {**ranges_of(ranges), **dims})
    return inputs, sizes_to_try(inputs, dims)


def specs_of(inputs: Mapping[str, Mapping[str, Any]] | None) -> tuple[TensorSpec, ...]:
    """Inputs as a program gives them, typed."""
    return tuple(
        TensorSpec.from_json({"dtype": "float32", "shape": None, **spec, "name": name})
        for name, spec in (inputs or {}).items()
    )


# ------------------------------------------------------------------------------------------------ delivered folders


def delivered(folder: Path) -> Artifact:
    """The artifact in a delivered folder, from its optkit.json. Raises UserError when that is missing or damaged."""
    record = read_record(folder)
    try:
        path = folder / record["main"]
        inner = [folder / name for name in record["files"] if name != record["vectors"]]
        files = tuple(p.relative_to(path.parent).as_posix() for p in inner)
        meta = {"runtime": record["runtime"]} if record.get("runtime") else {}
        return Artifact(record["format"], path, record["digest"], Signature.from_json(record["signature"]), files, meta)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder, error) from error


def dims_at(folder: Path) -> dict[str, Dim]:
    """The ranges of a delivered artifact's dims. Raises UserError as `delivered` does."""
    try:
        return {name: Dim(**sizes) for name, sizes in read_record(folder)["dims"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(folder, error) from error


def read_record(folder: Path) -> dict[str, Any]:
    """A delivered folder's optkit.json. Raises UserError when it is missing, unreadable or of another version."""
    path = folder / RECORD
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        schema = record["schema"]
    except FileNotFoundError as error:
        near = did_you_mean(folder.name, [p.name for p in folder.parent.iterdir()]) if folder.parent.is_dir() else ""
        missing = not folder.exists()
        raise UserError(
            f"there is no folder {folder}" if missing else f"{folder} has no {RECORD}",
            hint=(near if missing else "") or "name a folder that optkit convert delivered",
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from error
    if schema != SCHEMA:
        raise UserError(f"{path} has schema {schema}; this optkit reads {SCHEMA}", hint="read it with the optkit that "
                        "delivered it, or deliver it again")  # fmt: skip
    return record


def _damaged(folder: Path, error: Exception) -> UserError:
    what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
    return UserError(f"{folder / RECORD} is damaged: {what}", hint="deliver it again with optkit convert")
