"""Calling the user's function that builds a module, from a file or an importable module."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optkit.errors import OptkitError, SourceError, did_you_mean
from optkit.formats.user_code import raised, user_callable
from optkit.plugin import need


def build_module(descriptor: Mapping[str, Any]) -> tuple[Any, Path | None]:
    """The nn.Module a descriptor's factory returns, and the folder the factory's file lies in. Raises SourceError."""
    torch = need("torch")
    kwargs = dict(descriptor.get("kwargs") or {})
    with user_callable(str(descriptor["factory"]), "model.torch") as (build, folder):
        where, _, attribute = str(descriptor["factory"]).rpartition(":")
        _check_kwargs(build, kwargs, attribute)
        try:
            # Weights the factory draws must be the same at every load: the model is loaded once per step.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                module = build(**kwargs)
        except OptkitError:
            raise
        except (Exception, SystemExit) as error:
            raise raised(
                f"{attribute} in {where}", error, folder, "call it by hand in Python", "model.torch"
            ) from error
    if not isinstance(module, torch.nn.Module):
        raise SourceError(
            f"{attribute} in {where} returned {kind_of_value(module)}, not an nn.Module",
            subject="model.torch",
            hint="return the module itself",
        )
    return module, folder


def kind_of_value(value: Any) -> str:
    """A value's type in words: "a dict", "a tuple of Linear, str", "None"."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"a {type(value).__name__} of {', '.join(type(v).__name__ for v in value)}"
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"


def _check_kwargs(build: Callable[..., Any], kwargs: Mapping[str, Any], name: str) -> None:
    try:
        parameters = inspect.signature(build).parameters
    except (TypeError, ValueError):
        return
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for key in kwargs:
        if key not in parameters:
            raise SourceError(
                f"{name} takes no argument {key!r}",
                subject=f"model.kwargs.{key}",
                hint=did_you_mean(key, parameters) or "it takes none at all",
            )
