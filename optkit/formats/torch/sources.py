"""From a torch descriptor to the module it describes, and to what that module's forward takes.

Kinds: a factory with weights, a program that torch.export saved, TorchScript, a pickled module, a Hugging Face folder.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from optkit.errors import SourceError, did_you_mean
from optkit.formats.torch.factory import build_module, kind_of_value
from optkit.formats.torch.files import (
    check_exported,
    existing,
    fit_weights,
    kind_of,
    load_pickle,
    quiet,
    read_weights,
    untrusted,
)
from optkit.formats.torch.huggingface import from_folder
from optkit.formats.torch.modes import evaluate
from optkit.formats.torch.structure import restore
from optkit.plugin import need

KEYS = {"exported": "pt2", "torchscript": "torchscript", "pickle": "pickle"}
"""How a recipe's `model:` spells the kinds that are one file."""

KINDS = ("factory", "exported", "torchscript", "pickle", "huggingface")


@dataclass(frozen=True)
class Source:
    """A loaded module and how it is called.

    takes: names of forward's parameters, in order. required: those without a default.
    anything: forward takes names beyond `takes` (**kwargs). by_order: names say nothing, only the order does (*args).
    folder: where the user's code lies, for naming the line an error comes from.
    """

    kind: str
    module: Any
    takes: tuple[str, ...]
    required: frozenset[str]
    anything: bool = False
    by_order: bool = False
    positional: frozenset[str] = field(default_factory=frozenset)
    exported: Any = None
    folder: Path | None = None

    def call(self, names: Sequence[str], tensors: Sequence[Any]) -> Any:
        """forward's result for inputs given by name."""
        if self.by_order:
            return self.module(*tensors)
        if self.exported is not None:
            pytree = need("torch.utils._pytree", "torch")
            given = dict(zip(names, tensors, strict=True))
            leaves = [given[n] if isinstance(n, str) else n for n in self.exported.graph_signature.user_inputs]
            args, kwargs = pytree.tree_unflatten(leaves, self.exported.call_spec.in_spec)
            return self.module(*args, **kwargs)
        given = dict(zip(names, tensors, strict=True))
        leading = [given.pop(n) for n in self.takes if n in self.positional and n in given]
        return self.module(*leading, **given)

    def check(self, names: Sequence[str]) -> None:
        """Raises SourceError unless these inputs are what forward takes."""
        if self.by_order:
            return
        for name in names:
            if name not in self.takes and not self.anything:
                raise SourceError(
                    f"the model's forward has no input {name!r}; it takes {', '.join(self.takes) or 'nothing'}",
                    subject=f"inputs.{name}",
                    hint=did_you_mean(name, self.takes),
                )
        lacking = [name for name in self.takes if name in self.required and name not in names]
        if lacking:
            raise SourceError(
                f"the model's forward needs {', '.join(map(repr, lacking))}, which no input feeds",
                subject="inputs",
                hint=f"declare it under inputs: {lacking[0]}: {{shape: [...], dtype: ...}}",
            )


def open_source(descriptor: Mapping[str, Any], device: str = "cpu") -> Source:
    """The module of a torch descriptor, in eval mode, without gradients. Raises SourceError."""
    kind = descriptor.get("kind")
    if kind not in KINDS:
        raise SourceError(
            f"unknown kind of torch model: {kind!r}", subject="model", hint=did_you_mean(str(kind), KINDS)
        )
    with quiet():
        source: Source = {
            "factory": _factory,
            "exported": _exported,
            "torchscript": _torchscript,
            "pickle": _pickle,
            "huggingface": _huggingface,
        }[kind](descriptor)
    if descriptor.get("pruned"):
        restore(source.module, descriptor)
    if kind != "exported":  # a GraphModule from torch.export refuses eval(): its mode was fixed at export
        evaluate(source.module)  # the factory may have called it before it got these weights
    stuck = [name for name, p in source.module.named_parameters() if p.device.type == "meta"]
    if stuck:
        raise SourceError(
            f"{len(stuck)} parameters have no values (device meta), first {stuck[0]!r}",
            subject="model.weights",
            hint="give weights for them",
        )
    for parameter in source.module.parameters():  # ScriptModules have no requires_grad_ of their own
        parameter.requires_grad_(False)
    return source if device == "cpu" else _moved(source, device)


def _moved(source: Source, device: str) -> Source:
    if source.exported is None:
        source.module.to(device)
        return source
    # Devices are written into an exported graph, so that moving its weights is not enough.
    moved = need("torch.export.passes", "torch").move_to_device_pass(source.exported, device)
    return replace(source, module=moved.module(), exported=moved)


def of_module(
    kind: str, module: Any, *, forward: Callable[..., Any] | None = None, folder: Path | None = None
) -> Source:
    """A Source for a live nn.Module. forward: whose parameters count, where the module is a wrapper."""
    torch = need("torch")
    if isinstance(module, torch.nn.Sequential):  # its forward's one parameter is torch's name, not the user's
        return Source(kind, module, (), frozenset(), by_order=True, folder=folder)
    kinds = inspect.Parameter
    parameters = list(inspect.signature(forward or module.forward).parameters.values())
    named = [p for p in parameters if p.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)]
    return Source(
        kind,
        module,
        tuple(p.name for p in named),
        frozenset(p.name for p in named if p.default is kinds.empty),
        anything=any(p.kind is kinds.VAR_KEYWORD for p in parameters),
        by_order=not named and any(p.kind is kinds.VAR_POSITIONAL for p in parameters),
        positional=frozenset(p.name for p in named if p.kind is kinds.POSITIONAL_ONLY),
        folder=folder,
    )


# ------------------------------------------------------------------------------------------------ kinds


def _factory(descriptor: Mapping[str, Any]) -> Source:
    torch = need("torch")
    module, folder = build_module(descriptor)
    if descriptor.get("weights") and not descriptor.get("pruned"):  # what was pruned has weights of its own
        state = read_weights(descriptor["weights"], trust_pickle=bool(descriptor.get("trust_pickle")))
        fit_weights(module, state, descriptor["weights"], strict=bool(descriptor.get("strict", True)))
    if all(p.device.type != "meta" for p in module.parameters()):
        module.to("cpu")
    if isinstance(module, torch.jit.ScriptModule):
        return _scripted("factory", module)
    return of_module("factory", module, folder=folder or _home(module))


def _home(module: Any) -> Path:
    """The folder that holds the code of a module's class."""
    return Path(inspect.getsourcefile(type(module)) or "/").parent


def _path(descriptor: Mapping[str, Any], kind: str) -> Path:
    path = existing(descriptor["path"], "model")
    found = kind_of(path)
    if found != kind:
        says = {
            "state_dict": "weights alone, without a model",
            "pickle": "a pickle",
            "exported": "a torch.export program",
            "torchscript": "TorchScript",
        }[found]
        hint = (
            "give the factory that builds the model, and this file as its weights"
            if found == "state_dict"
            else f"write model: {{{KEYS[found]}: {path.name}}}"
        )
        raise SourceError(f"{path} is {says}, not of kind {kind}", subject="model", hint=hint)
    return path


def _exported(descriptor: Mapping[str, Any]) -> Source:
    torch = need("torch")
    path = _path(descriptor, "exported")
    check_exported(path, bool(descriptor.get("trust_pickle")))
    try:
        program = torch.export.load(path)
    except Exception as error:  # versions differ, custom operators are not registered
        raise SourceError(
            f"{path} cannot be loaded: {type(error).__name__}: {error}",
            subject="model",
            hint="import what registers its custom operators, or export it again with this torch",
        ) from error
    takes = tuple(name for name in program.graph_signature.user_inputs if isinstance(name, str))
    return Source("exported", program.module(), takes, frozenset(takes), exported=program)


def _torchscript(descriptor: Mapping[str, Any]) -> Source:
    torch = need("torch")
    path = _path(descriptor, "torchscript")
    try:
        return _scripted("torchscript", torch.jit.load(str(path), map_location="cpu"))
    except RuntimeError as error:
        raise SourceError(
            f"{path} cannot be loaded: {str(error).strip().splitlines()[0]}",
            subject="model",
            hint="import what registers its custom operators, or save it again with this torch",
        ) from error


def _scripted(kind: str, module: Any) -> Source:
    arguments = module.forward.schema.arguments[1:]
    return Source(
        kind,
        module,
        tuple(a.name for a in arguments),
        frozenset(a.name for a in arguments if not a.has_default_value()),
        positional=frozenset(a.name for a in arguments),
    )


def _pickle(descriptor: Mapping[str, Any]) -> Source:
    torch = need("torch")
    path = existing(descriptor["path"], "model")
    found = kind_of(path)
    if found in {"torchscript", "exported"}:
        _path(descriptor, "pickle")
    if not descriptor.get("trust_pickle"):
        raise untrusted(path, ["code of the module's class"], "model.trust_pickle")
    module = load_pickle(path, trust_pickle=True, subject="model")
    if not isinstance(module, torch.nn.Module):
        raise SourceError(
            f"{path} holds {kind_of_value(module)}, not an nn.Module",
            subject="model",
            hint="give the factory that builds the model, and this file as its weights",
        )
    return of_module("pickle", module, folder=_home(module))


def _huggingface(descriptor: Mapping[str, Any]) -> Source:
    module, forward = from_folder(descriptor)
    # transformers' **kwargs are its own: a misspelt input would go there and have no effect.
    return replace(of_module("huggingface", module, forward=forward), anything=False)
