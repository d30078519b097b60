"""A loaded torch model, called with tensors by name, in its own arithmetic or in float64."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

from optkit.artifact import TensorSpec
from optkit.errors import DataError, OptkitError, SourceError, UnavailableError, did_you_mean
from optkit.formats.torch.feeds import torch_dtype
from optkit.formats.torch.files import WRAPPED, place, user_frame
from optkit.formats.torch.sources import Source
from optkit.plugin import need


class TorchModel:
    """A loaded model, in eval mode, called with tensors by name.

    module: an nn.Module that takes tensors in `input_names` order and returns a tuple in `output_names` order; it can
        be exported and traced. parameters: the names of its forward's parameters, as torch sees them.
    output_names: as declared; else found at the first call: a dict's or dataclass's keys, "output" for one tensor,
        "output_0" and so on for a sequence. None before that.
    exported: the ExportedProgram, where the source is one. scripted: whether the source is TorchScript.
    """

    def __init__(
        self,
        source: Source,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[str] | None = None,
        precision: str | None = None,
    ) -> None:
        torch = need("torch")
        self.source, self.inputs, self.precision = source, tuple(inputs), precision
        self.input_names = tuple(spec.name for spec in inputs)
        self.parameters = tuple(n if n.isidentifier() else f"input_{i}" for i, n in enumerate(self.input_names))
        self.output_names: tuple[str, ...] | None = tuple(outputs) if outputs else None
        self.exported = source.exported
        self.scripted = isinstance(source.module, torch.jit.ScriptModule)
        source.check(self.input_names)
        if precision == "float64":
            _to_float64(source.module)
        elif precision is not None:
            raise UnavailableError(f"torch models are not run in {precision!r}", hint="precision float64, or none")
        self.module = _wrapper(self)

    def call(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Outputs by name. Raises DataError for inputs that are not as declared, SourceError if the model fails."""
        return self.consume({name: feed.clone() for name, feed in feeds.items()})

    def consume(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """As `call`, on tensors that forward may write into."""
        torch = need("torch")
        self._check(feeds)
        try:
            with torch.no_grad():
                outputs = self.module(*(feeds[name] for name in self.input_names))
        except OptkitError:
            raise
        except Exception as error:  # the model's own code
            raise _failed(error, feeds, self.source.folder) from error
        assert self.output_names is not None
        return dict(zip(self.output_names, outputs, strict=True))

    def select(self, result: Any) -> tuple[Any, ...]:
        """The tensors in forward's result, in `output_names` order. Raises SourceError if they are not as declared."""
        found = named_tensors(result, self.output_names)
        self.output_names = self.output_names or tuple(found)
        return tuple(found[name] for name in self.output_names)

    def natural_names(self, feeds: Mapping[str, Any]) -> tuple[str, ...]:
        """Names of the outputs in the order forward gives them, where that is not the declared order."""
        torch = need("torch")
        with torch.no_grad():
            result = self.source.call(self.input_names, [feeds[name].clone() for name in self.input_names])
        found = named_tensors(result, None)
        return tuple(found) if isinstance(result, Mapping) or not self.output_names else self.output_names

    def _check(self, feeds: Mapping[str, Any]) -> None:
        for name in feeds:
            if name not in self.input_names:
                raise DataError(
                    f"the model has no input {name!r}",
                    subject=f"inputs.{name}",
                    hint=did_you_mean(name, self.input_names),
                )
        for spec in self.inputs:
            feed = feeds.get(spec.name)
            if feed is None:
                raise DataError(f"input {spec.name!r} is missing", subject=f"inputs.{spec.name}", hint="feed it")
            if feed.dtype != torch_dtype(spec):
                raise DataError(
                    f"input {spec.name!r} is {dtype_name(feed.dtype)}, not {spec.dtype}",
                    subject=f"inputs.{spec.name}",
                    hint=f"convert it to {spec.dtype}",
                )
            fixed = [
                (d, n) for d, n in zip(spec.shape or (), feed.shape, strict=False) if isinstance(d, int) and d != n
            ]
            if spec.shape is not None and (feed.dim() != len(spec.shape) or fixed):
                raise DataError(
                    f"input {spec.name!r} has shape {tuple(feed.shape)}, not {spec}",
                    subject=f"inputs.{spec.name}",
                    hint="check layout and padding of the data",
                )


def _wrapper(model: TorchModel) -> Any:
    torch = need("torch")

    class Flat(torch.nn.Module):  # type: ignore[misc, name-defined]
        """Tensors in the recipe's order in, a tuple of tensors out."""

        def __init__(self) -> None:
            super().__init__()
            setattr(self, WRAPPED, model.source.module)

    def forward(*tensors: Any) -> tuple[Any, ...]:
        with _in_float64() if model.precision == "float64" else nullcontext():
            if model.precision == "float64":
                tensors = tuple(t.double() if t.is_floating_point() else t for t in tensors)
            result = model.select(model.source.call(model.input_names, tensors))
        if model.precision == "float64" and any(t.is_floating_point() and t.dtype != torch.float64 for t in result):
            raise UnavailableError(
                "the model does not compute in float64: an output is of another type",
                hint="remove the fixed dtype from its forward",
            )
        return result

    # torch.export and torch.jit.trace take the names of a program's inputs from here.
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in model.parameters]
    )
    flat = Flat()
    flat.forward = forward
    flat.training = False
    return flat


def named_tensors(result: Any, declared: Sequence[str] | None) -> dict[str, Any]:
    """Name to tensor of what a forward returned. Raises SourceError (subject "outputs") if that is not as declared.

    Of a dict or dataclass, entries that are no tensors (None, a cache object) count only when they are declared. One
    with tensors inside (a tuple of them) must not be dropped unnoticed: then the outputs have to be declared.
    """
    tensor = need("torch").Tensor
    if dataclasses.is_dataclass(result) and not isinstance(result, Mapping | type):
        result = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    elif isinstance(result, tuple) and hasattr(result, "_fields"):
        result = dict(zip(result._fields, result, strict=True))
    if isinstance(result, Mapping):
        found = {str(name): value for name, value in result.items() if isinstance(value, tensor)}
        for name in declared or ():
            if name not in found:
                raise SourceError(
                    f"the model gives no tensor {name!r}", subject="outputs", hint=did_you_mean(name, found)
                )
        inside = [str(name) for name, value in result.items() if _holds_tensors(value)]
        if inside and not declared:
            raise SourceError(
                f"output {inside[0]!r} of the model is a {type(result[inside[0]]).__name__} with tensors in it",
                subject="outputs",
                hint=f"return a flat dict, or name the outputs to keep: {', '.join(found) or 'those that are tensors'}",
            )
        if not found:
            raise SourceError(
                f"the model gives no tensor at all, only {', '.join(map(str, result)) or 'an empty dict'}",
                subject="outputs",
                hint="return tensors from forward",
            )
        return found
    items = list(result) if isinstance(result, tuple | list) else [result]
    for index, item in enumerate(items):
        if not isinstance(item, tensor):
            raise SourceError(
                f"output {index} of the model is a {type(item).__name__}, not a tensor",
                subject="outputs",
                hint="return a flat tuple, or a dict, of tensors from forward",
            )
    names = (
        ["output"]
        if len(items) == 1 and not isinstance(result, tuple | list)
        else [f"output_{index}" for index in range(len(items))]
    )
    if declared and len(declared) != len(items):
        raise SourceError(
            f"the model gives {len(items)} output{'s' * (len(items) != 1)}, but {len(declared)} are declared: "
            f"{', '.join(declared)}",
            subject="outputs",
            hint=f"name all {len(items)}, in forward's order" if len(items) > 1 else "name one: outputs: [output]",
        )
    return dict(zip(declared or names, items, strict=True))


def _holds_tensors(value: Any) -> bool:
    """Whether a tuple, list or dict has tensors in it, however deep."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return any(isinstance(item, need("torch").Tensor) or _holds_tensors(item) for item in inner)


def _failed(error: Exception, feeds: Mapping[str, Any], folder: Path | None) -> SourceError:
    where = place(user_frame(error, folder))
    shapes = ", ".join(f"{name} {dtype_name(feed.dtype)}{list(feed.shape)}" for name, feed in feeds.items())
    first = str(error).strip().splitlines()[0] if str(error).strip() else ""
    return SourceError(
        f"the model fails on {shapes}: {type(error).__name__}: {first}" + (f", at {where}" if where else ""),
        subject="model",
        hint="check the declared shapes, dtypes and ranges; sizes that are always equal need one name",
        details=f"{where}\n{type(error).__name__}: {error}".strip(),
    )


def dtype_name(dtype: Any) -> str:
    """torch.float32 as "float32"."""
    return str(dtype).removeprefix("torch.")


# ------------------------------------------------------------------------------------------------ float64


def _to_float64(module: Any) -> None:
    """Parameters, buffers and plain tensor attributes of a freshly loaded module in float64."""
    torch = need("torch")
    module.double()
    if isinstance(module, torch.jit.ScriptModule):
        return
    for part in module.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                setattr(part, name, value.double())


@functools.cache
def _float64_mode() -> Any:
    torch = need("torch")
    lower = {torch.float32, torch.float16, torch.bfloat16}

    class Float64(need("torch.utils._python_dispatch", "torch").TorchDispatchMode):  # type: ignore[misc]
        """Every operator that asks for a smaller float by name gets float64: casts, factories, assertions."""

        supports_higher_order_operators = True  # torch.cond and while_loop, whose branches run in this mode too

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            def raised(value: Any) -> Any:
                if callable(value) and not isinstance(value, torch.Tensor):
                    return within(value)
                return torch.float64 if isinstance(value, torch.dtype) and value in lower else value

            def within(branch: Any) -> Any:
                def run(*tensors: Any) -> Any:
                    with self:
                        return branch(*tensors)

                return run

            return func(*map(raised, args), **{key: raised(value) for key, value in (kwargs or {}).items()})

    return Float64


def _in_float64() -> ExitStack:
    torch = need("torch")
    stack = ExitStack()
    stack.callback(torch.set_default_dtype, torch.get_default_dtype())
    torch.set_default_dtype(torch.float64)
    # torch.cond and while_loop compile themselves, which knows no modes. Patched, as torch's own switch loads the
    # compiler, and few models need it.
    stack.callback(setattr, torch, "compile", torch.compile)
    torch.compile = lambda model, *args, **kwargs: model  # type: ignore[attr-defined]
    stack.enter_context(_float64_mode()())
    return stack
