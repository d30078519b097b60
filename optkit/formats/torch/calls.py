"""The calls of torch functions inside a module's forward, each under a key that is the same in every run.

A key is "path of the module:function:number", "deep.first.0:conv2d:0": the number counts the function's calls in that
module. Results of methods and operators (`x + y`, `x.flatten(1)`) are calls like any other. Module paths alone would
miss the additions and activations that lie between layers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from optkit.plugin import need


class Handler(Protocol):
    """Does a call's work and returns its result; may change what goes in and comes out."""

    def __call__(self, key: str, name: str, func: Callable[..., Any], args: Sequence[Any],
                 kwargs: Mapping[str, Any]) -> Any: ...  # fmt: skip


def handle_calls(module: Any, handler: Handler) -> Callable[[], None]:
    """Have `handler` do every call in the module's forward from now on; returns what ends that."""
    overrides = need("torch.overrides", "torch")
    paths: list[str] = []
    counts: dict[tuple[str, str], int] = {}

    class Calls(overrides.TorchFunctionMode):  # type: ignore[misc, name-defined]
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name, path = getattr(func, "__name__", ""), paths[-1] if paths else ""
            if name in ("__get__", "__set__"):
                return func(*args, **(kwargs or {}))
            number = counts.get((path, name), 0)
            counts[path, name] = number + 1
            return handler(f"{path}:{name}:{number}", name, func, args, kwargs or {})

    handles = []
    for path, part in module.named_modules():
        if part is not module:
            handles.append(part.register_forward_pre_hook(_pusher(paths, path)))
            handles.append(part.register_forward_hook(_popper(paths), always_call=True))
    inner = module.forward

    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        paths.clear()
        counts.clear()
        with Calls():
            return inner(*args, **kwargs)

    module.forward = forward

    def end() -> None:
        for handle in handles:
            handle.remove()
        del module.forward

    return end


def _pusher(paths: list[str], path: str) -> Any:
    def push(module: Any, args: Any) -> None:
        paths.append(path)

    return push


def _popper(paths: list[str]) -> Any:
    def pop(module: Any, args: Any, result: Any) -> None:
        if paths:
            paths.pop()

    return pop


def tensor_slots(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors among a call's arguments: "0" a positional one, "0.2" one inside a list, "input" one by keyword."""
    tensor = need("torch").Tensor
    found: dict[str, Any] = {}
    for name, value in [*((str(i), a) for i, a in enumerate(args)), *kwargs.items()]:
        if isinstance(value, tensor):
            found[name] = value
        elif isinstance(value, list | tuple):
            found |= {f"{name}.{i}": item for i, item in enumerate(value) if isinstance(item, tensor)}
    return found


def with_slots(
    args: Sequence[Any], kwargs: Mapping[str, Any], new: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments with other tensors in some slots."""
    positional, named = list(args), dict(kwargs)
    for slot, value in new.items():
        name, _, inner = slot.partition(".")
        held: Any = positional if name.isdigit() else named
        where: Any = int(name) if name.isdigit() else name
        if inner:
            items = list(held[where])
            items[int(inner)] = value
            held[where] = items
        else:
            held[where] = value
    return positional, named


__all__ = ["Handler", "handle_calls", "tensor_slots", "with_slots"]
