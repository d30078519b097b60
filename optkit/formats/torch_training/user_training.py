"""A user's training function, called with all that it is promised; in this process, or in each of several."""

from __future__ import annotations

import errno
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.artifact import Artifact, TensorSpec
from optkit.errors import OptkitError, SourceError, StepError
from optkit.formats.torch import model as torch_model
from optkit.formats.torch.factory import kind_of_value
from optkit.formats.torch_training.data import Batch, TrainingData
from optkit.formats.user_code import raised, user_callable
from optkit.plugin import need

if TYPE_CHECKING:
    from optkit.plugin import Tensors


@dataclass(frozen=True)
class Call:
    """What a call of the function is made of, and can be pickled.

    call: FILE.py:NAME with the whole path, or MODULE:NAME. named: the same as the recipe has it. data: the folder of a
    `TrainingData`, and stack what makes batches of its samples. kept: the folder of the function's own checkpoints.
    """

    call: str
    named: str
    kwargs: Mapping[str, Any]
    artifact: Artifact
    source: Artifact | None
    inputs: tuple[TensorSpec, ...]
    data: Path
    stack: Callable[[Any], Tensors]
    held_out: float
    kept: Path
    seed: int


def called(
    call: Call, module: Any, data: TrainingData, device: str, progress: Callable[[str, float | None], None]
) -> Any:
    """The module that the function returns. Raises StepError for what it raises, and where it returns no module."""
    torch = need("torch")
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    module.train()
    teacher = torch_model.load(call.source.path, device=device) if call.source else None

    def tell(text: str, fraction: float | None = None) -> None:
        progress(str(text), fraction)

    with _as_step(), user_callable(call.call, "with.call") as (train, folder):
        given: dict[str, Any] = {"source": teacher.source.module if teacher else None, "kept": call.kept,
                                 "seed": call.seed, "progress": tell, **call.kwargs}  # fmt: skip
        _check_takes(train, call.named, (module, data), given)
        progress(f"{call.call.rpartition(':')[2]} begins", None)
        try:
            result = train(module, data, **given)
        except (OptkitError, MemoryError):
            raise
        except (Exception, SystemExit) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise raised(call.named, error, folder, "call it by hand in Python", "with.call") from error
    if not isinstance(result, torch.nn.Module):
        raise StepError(f"{call.named} returned {kind_of_value(result)}, not an nn.Module", subject="with.call",
                        hint="return the module")  # fmt: skip
    return result


def _check_takes(train: Callable[..., Any], named: str, positional: tuple[Any, ...], given: Mapping[str, Any]) -> None:
    """Raises StepError for a function that cannot be called so."""
    try:
        signature = inspect.signature(train)
    except (TypeError, ValueError):  # not one that Python can tell of
        return
    try:
        signature.bind(*positional, **given)
    except TypeError as error:
        raise StepError(f"{named} cannot be called as a training function: {error}", subject="with.call",
                        hint=f"def {named.rpartition(':')[2]}(module, data, *, source, kept, seed, progress, **kwargs),"
                        " whose further arguments are with.kwargs") from error  # fmt: skip


@contextmanager
def _as_step() -> Iterator[None]:
    """Errors of the function are this step's, not the source model's."""
    try:
        yield
    except SourceError as error:
        if error.subject != "with.call":
            raise
        raise StepError(error.what, subject="with.call", hint=error.hint, details=error.details) from error


def answers(model: torch_model.TorchModel, module: Any, batch: Batch) -> dict[str, Any]:
    """What a module answers to a batch, called as `model` is."""
    own = torch_model.TorchModel(replace(model.source, module=module), model.inputs, model.output_names)
    return own.call(batch.feeds)


__all__ = ["Call", "answers", "called"]
