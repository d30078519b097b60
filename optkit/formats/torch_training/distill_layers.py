"""What the layers of a model give while it runs, and how layers of unlike width are compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from optkit.errors import StepError, did_you_mean
from optkit.formats.torch.call import TorchModel
from optkit.plugin import need


class Taps:
    """The tensors that named layers of a model gave in its last call. who: "student" or "teacher", for errors."""

    def __init__(self, model: TorchModel, paths: Iterable[str], who: str) -> None:
        self.who = who
        self._given: dict[str, list[Any]] = {path: [] for path in paths}
        self._hooks: list[Any] = []
        known = dict(model.source.module.named_modules())
        for path in self._given:
            if model.scripted or model.exported is not None:
                raise StepError(f"the {who} is a compiled graph, whose layers cannot be looked into",
                                subject="with.losses", hint="compare outputs, or give the nn.Module")  # fmt: skip
            if path not in known or not path:
                raise StepError(f"the {who} has no layer {path!r}", subject="with.losses",
                                hint=did_you_mean(path, [name for name in known if name]))  # fmt: skip
            self._hooks.append(known[path].register_forward_hook(self._keeper(path)))

    def _keeper(self, path: str) -> Any:
        def keep(module: Any, args: Any, result: Any) -> None:
            self._given[path].append(result)

        return keep

    def forget(self) -> None:
        """Before a call of the model: what was given before is gone."""
        for given in self._given.values():
            given.clear()

    def close(self) -> None:
        """The model's layers are looked into no longer."""
        self.forget()
        while self._hooks:
            self._hooks.pop().remove()

    def tensors(self, path: str) -> list[Any]:
        """All tensors in a layer's result. Raises StepError for a layer that did not run, or more than once."""
        given = self._given[path]
        if len(given) != 1:
            times = "did not run" if not given else f"ran {len(given)} times in one call"
            raise StepError(f"the {self.who}'s layer {path!r} {times}", subject="with.losses",
                            hint="name one that every call of the model runs once")  # fmt: skip
        return list(flat(given[0]))


def flat(result: Any) -> Iterator[Any]:
    """The tensors in a layer's result, however deep they lie in tuples and mappings."""
    if isinstance(result, need("torch").Tensor):
        yield result
    elif isinstance(result, Mapping):
        for value in result.values():
            yield from flat(value)
    elif isinstance(result, tuple | list):
        for value in result:
            yield from flat(value)


def is_map(tensor: Any) -> bool:
    """Whether a tensor holds attention weights: rows along the last axis, none negative, that sum to one."""
    torch = need("torch")
    if not tensor.is_floating_point() or tensor.dim() < 3 or tensor.shape[-1] < 2:
        return False
    sums = tensor.float().sum(-1)
    return bool((tensor >= 0).all()) and bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-2))


def width_axis(mine: tuple[int, ...], other: tuple[int, ...]) -> int | None:
    """The axis in which two layers' results differ, for a projection to bridge; None where they do not.

    The last one, or the channels of an image's: axis 1 of four or more. Raises ValueError where no projection can.
    """
    if mine == other:
        return None
    if len(mine) == len(other):
        unlike = [axis for axis, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b]
        if unlike in ([len(mine) - 1], [1] if len(mine) > 3 else []) and unlike != [0]:
            return unlike[0]
    raise ValueError("no projection leads from one to the other")


def projection(mine: int, other: int, axis: int) -> Any:
    """A learned linear map of one axis, without bias: for images a 1x1 convolution."""
    torch = need("torch")

    class Projection(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(mine, other, bias=False)

        def forward(self, tensor: Any) -> Any:
            return self.linear(tensor.movedim(axis, -1)).movedim(-1, axis)

    return Projection()


__all__ = ["Taps", "flat", "is_map", "projection", "width_axis"]
