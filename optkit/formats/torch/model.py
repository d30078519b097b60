"""A torch model at rest is `torch.json`, a descriptor of where the module comes from and what goes in and out.

    {"kind": "factory", "factory": "/abs/model.py:build" or "package.module:build", "kwargs": {},
     "weights": "/abs/x.safetensors" (or .pt, .pth, null), "strict": true, "trust_pickle": false}
    {"kind": "exported", "path": "/abs/model.pt2"}        torch.export.save
    {"kind": "torchscript", "path": "/abs/model.pt"}      torch.jit.save
    {"kind": "pickle", "path": "/abs/model.pt", "trust_pickle": true}      a whole nn.Module
    {"kind": "huggingface", "path": "/abs/folder", "class": "AutoModel" or null, "pooling": "mean", "cls" or null,
     "normalize": false}

each with "inputs", a list of `TensorSpec` (which an exported program can do without), and "outputs", names or null. The
kinds that give an nn.Module may have "pruned" too: what was cut from it, and the weights left (`torch_structure`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optkit.artifact import Dim, Shape, Signature, TensorSpec
from optkit.errors import SourceError
from optkit.formats.torch.call import TorchModel as TorchModel
from optkit.formats.torch.call import dtype_name
from optkit.formats.torch.call import named_tensors as named_tensors
from optkit.formats.torch.export import check_ranges, own_symbols, runnable_feeds
from optkit.formats.torch.export import dynamic_shapes as dynamic_shapes
from optkit.formats.torch.export import export as export
from optkit.formats.torch.feeds import example_feeds as example_feeds
from optkit.formats.torch.files import kind_of as kind_of
from optkit.formats.torch.files import quiet
from optkit.formats.torch.sources import Source, of_module, open_source
from optkit.formats.torch.structure import absolute
from optkit.plugin import need

MAIN = "torch.json"


def load(descriptor_path: Path, precision: str | None = None, *, device: str = "cpu") -> TorchModel:
    """The model that a torch.json describes. precision "float64" computes all of it in float64, casts included.

    Raises SourceError for whatever is wrong with the files, the user's code or the declared inputs.
    """
    return load_described(read_descriptor(descriptor_path), precision, device=device)


def load_described(descriptor: Mapping[str, Any], precision: str | None = None, *, device: str = "cpu") -> TorchModel:
    """As `load`, of a descriptor that lies in no file yet; its paths are absolute."""
    source = open_source(descriptor, device)
    inputs = tuple(TensorSpec.from_json(spec) for spec in descriptor.get("inputs") or ())
    if source.exported is not None:
        inputs = inputs or exported_inputs(source.exported)
        _check_exported(source, inputs)
    elif not inputs:
        raise SourceError(
            "the model does not say what goes in",
            subject="inputs",
            hint=f"declare shape and dtype of {', '.join(source.takes) or 'each input'}",
        )
    return TorchModel(source, inputs, descriptor.get("outputs"), precision)


def read_descriptor(path: Path) -> dict[str, Any]:
    """The JSON of a torch.json, with the files beside it named by absolute paths. Raises SourceError."""
    try:
        descriptor: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read: {error}", subject="model") from error
    return absolute(descriptor, path.absolute().parent)


# ------------------------------------------------------------------------------------------------ exported programs


def exported_inputs(program: Any) -> tuple[TensorSpec, ...]:
    """An exported program's own inputs; a dynamic axis is called `<input>_<axis>`, after the first axis of its size."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    names: dict[str, str] = {}
    specs = []
    for name in program.graph_signature.user_inputs:
        if isinstance(name, str):
            shape = tuple(
                size if isinstance(size, int) else names.setdefault(str(size), f"{name}_{axis}")
                for axis, size in enumerate(values[name].shape)
            )
            specs.append(TensorSpec(name, dtype_name(values[name].dtype), shape))
    return tuple(specs)


def _check_exported(source: Source, inputs: Sequence[TensorSpec]) -> None:
    own = {spec.name: spec for spec in exported_inputs(source.exported)}
    source.check([spec.name for spec in inputs])
    for spec in inputs:
        there = own[spec.name]
        shape, fixed = spec.shape or (), there.shape or ()
        if spec.dtype != there.dtype or len(shape) != len(fixed):
            raise SourceError(
                f"input {spec.name!r} is declared as {spec}, but the exported program takes {there}",
                subject=f"inputs.{spec.name}",
                hint="declare what was exported",
            )
        for axis, (declared, size) in enumerate(zip(shape, fixed, strict=True)):
            if isinstance(size, int) and declared != size:
                raise SourceError(
                    f"axis {axis} of input {spec.name!r} is declared as {declared!r}, but it is fixed at {size} in the "
                    "exported program",
                    subject=f"inputs.{spec.name}",
                    hint=f"write {size} in the shape, or export again with that axis in dynamic_shapes",
                )


# ------------------------------------------------------------------------------------------------ describing


def describe(path: Path, meta: Mapping[str, Any] | None = None) -> Signature:
    """Inputs as declared and outputs as found by running the model on small inputs of two sizes.

    An output axis that follows a declared dim has its name, one that changes otherwise is `<output>_<axis>`.
    meta: "dims" holds the ranges, name to {min, opt, max}. Raises SourceError, also for a model whose two equal calls
    differ.
    """
    model = load(path)
    dims = {
        name: Dim(d["min"], d.get("opt", d["max"]), d["max"]) for name, d in ((meta or {}).get("dims") or {}).items()
    }
    if not dims and model.exported is not None:
        dims = _exported_dims(model)
    check_ranges(model, model.inputs, dims)
    sizes, feeds = runnable_feeds(model, model.inputs, dims)
    first, again = model.call(feeds), model.call(feeds)
    check_deterministic(model, feeds, first, again)
    other_sizes, other_feeds = runnable_feeds(model, model.inputs, dims, unlike=sizes) if sizes else (sizes, feeds)
    other = model.call(other_feeds) if sizes else first
    outputs = tuple(
        TensorSpec(name, dtype_name(tensor.dtype), _followed(name, tensor.shape, other[name].shape, sizes, other_sizes))
        for name, tensor in first.items()
    )
    odd = [spec.name for spec in outputs if spec.dtype.startswith("complex")]
    if odd:
        raise SourceError(
            f"output {odd[0]!r} is complex, which no target can hold",
            subject="outputs",
            hint="return torch.view_as_real of it",
        )
    return Signature(model.inputs, outputs)


def _followed(
    name: str, first: Sequence[int], other: Sequence[int], sizes: Mapping[str, int], other_sizes: Mapping[str, int]
) -> Shape | None:
    if len(first) != len(other):
        return None
    pairs = {(sizes[dim], other_sizes[dim]): dim for dim in sizes}
    return tuple(
        a if a == b else pairs.get((a, b), f"{name}_{axis}")
        for axis, (a, b) in enumerate(zip(first, other, strict=True))
    )


def _exported_dims(model: TorchModel) -> dict[str, Dim]:
    """The ranges an exported program itself has, for the names `exported_inputs` gave."""
    limits = {str(symbol): limit for symbol, limit in model.exported.range_constraints.items()}
    found = {}
    for symbol, name in own_symbols(model, model.inputs).items():
        low = max(int(limits[symbol].lower), 1) if symbol in limits else 1
        high = min(int(limits[symbol].upper), low + 1024) if symbol in limits else 1024
        found[name] = Dim(low, low, high)
    return found


def check_deterministic(
    model: TorchModel, feeds: Mapping[str, Any], first: Mapping[str, Any], again: Mapping[str, Any]
) -> None:
    torch = need("torch")
    for name, tensor in first.items():
        same = tensor.shape == again[name].shape and torch.allclose(
            tensor.double() if not tensor.is_complex() else tensor,
            again[name].to(torch.float64 if not tensor.is_complex() else tensor.dtype),
            rtol=1e-4,
            atol=1e-6,
            equal_nan=True,
        )
        if not same:
            drawn = _random_operators(model, feeds)
            raise SourceError(
                f"output {name!r} differs between two equal calls in eval mode: the model "
                + (f"draws random numbers ({', '.join(drawn)})" if drawn else "keeps state between calls"),
                subject="model",
                hint="pass training=self.training to functional dropout, and sample outside the model"
                if drawn
                else "make the state an input and an output",
            )


def _random_operators(model: TorchModel, feeds: Mapping[str, Any]) -> list[str]:
    """Operators that draw random numbers in a call, with dropout told from sampling by its name."""
    torch = need("torch")
    drawn: dict[str, None] = {}

    class Watch(need("torch.utils._python_dispatch", "torch").TorchDispatchMode):  # type: ignore[misc]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if torch.Tag.nondeterministic_seeded in func.tags:
                drawn[str(func).replace("aten.", "").split(".")[0]] = None
            return func(*args, **(kwargs or {}))

    with Watch():
        model.call(feeds)
    return list(drawn)


# ------------------------------------------------------------------------------------------------ live objects


def save_live(
    obj: Any,
    out_path: Path,
    inputs: Sequence[TensorSpec],
    dims: Mapping[str, Dim],
    outputs: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Write a live model to `out_path` (.pt for TorchScript, .pt2 otherwise); returns its descriptor.

    An nn.Module is exported as it is, in eval mode; its own mode, device and gradients stay. Raises SourceError,
    StepError.
    """
    torch = need("torch")
    with quiet():
        if isinstance(obj, torch.jit.ScriptModule):
            path = out_path.with_suffix(".pt")
            modes = {part: part.training for part in obj.modules()}
            torch.jit.save(obj.eval(), str(path))
            _restore(modes)
            return _descriptor("torchscript", path, inputs, outputs)
        path = out_path.with_suffix(".pt2")
        if isinstance(obj, torch.export.ExportedProgram):
            torch.export.save(obj, path)
            return _descriptor("exported", path, inputs, outputs)
        if not isinstance(obj, torch.nn.Module):
            raise SourceError(
                f"{type(obj).__name__} is not a torch model",
                subject="model",
                hint="an nn.Module, an ExportedProgram or a ScriptModule",
            )
        program, names = _export_live(obj, inputs, dims, outputs)
        torch.export.save(program, path)
    return _descriptor("exported", path, inputs, names)


def _export_live(
    module: Any, inputs: Sequence[TensorSpec], dims: Mapping[str, Dim], outputs: Sequence[str] | None
) -> tuple[Any, tuple[str, ...] | None]:
    devices = {p.device.type for p in module.parameters()}
    if devices - {"cpu"}:
        raise SourceError(
            f"the model lies on {', '.join(sorted(devices))}", subject="model", hint="hand over model.cpu()"
        )
    modes = {part: part.training for part in module.modules()}
    try:
        module.eval()
        model = TorchModel(of_module("factory", module), inputs, outputs)
        return export(model, inputs, dims), model.output_names
    finally:
        _restore(modes)


def _restore(modes: Mapping[Any, bool]) -> None:
    for part, training in modes.items():
        part.training = training


def _descriptor(kind: str, path: Path, inputs: Sequence[TensorSpec], outputs: Sequence[str] | None) -> dict[str, Any]:
    return {
        "kind": kind,
        "path": str(path.resolve()),
        "inputs": [spec.to_json() for spec in inputs],
        "outputs": list(outputs) if outputs else None,
    }


__all__ = [
    "MAIN",
    "TorchModel",
    "describe",
    "dynamic_shapes",
    "example_feeds",
    "export",
    "exported_inputs",
    "kind_of",
    "load",
    "load_described",
    "named_tensors",
    "read_descriptor",
    "save_live",
]
