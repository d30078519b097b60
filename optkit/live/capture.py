"""Live model objects put at rest, so that a child process can work on them.

A torch module is captured with torch.export in the caller's process and compared there with the live one: from then on
the captured program is the source model every step is judged against. What was captured lies in the cache under its
content's digest: an unchanged model is known again, and `optkit replay` finds it later.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.artifact import Dim, TensorSpec
from optkit.cache import Cache
from optkit.errors import CheckError, SourceError, UserError, did_you_mean
from optkit.live.livedata import keep

if TYPE_CHECKING:
    from optkit.recipe import Recipe

Specs = dict[str, dict[str, Any]]

MAX_REL_L2 = 1e-4
"""How far a captured program may be from the live module: float32 rounding, as between kernels."""


@dataclass(frozen=True)
class Captured:
    """A live model at rest.

    section: the recipe's `model:`. inputs, outputs: the recipe's of these names; empty where the file knows its own.
    """

    section: dict[str, Any]
    inputs: Specs = field(default_factory=dict)
    outputs: tuple[str, ...] = ()


def capture(
    model: Any,
    store: Cache,
    *,
    example_inputs: Any = None,
    inputs: Mapping[str, Mapping[str, Any]] | None = None,
    outputs: Sequence[str] = (),
    dims: Mapping[str, Dim] | None = None,
) -> Captured:
    """A live object as a recipe's `model:`, `inputs:` and `outputs:`, its file kept in the cache.

    The object stays as it is: modes, device, gradients, weights. Raises UserError for an object of no known kind or
    missing inputs, SourceError when it cannot be captured, StepError when torch.export refuses it, and CheckError when
    the captured program does not answer as the live module does.
    """
    kind, model = _kind(model)
    folder = store.stage()
    try:
        if kind in ("onnx", "openvino"):
            if example_inputs is not None:
                raise UserError(
                    f"an {'ONNX' if kind == 'onnx' else 'OpenVINO'} model knows what goes into it, so example_inputs "
                    "say nothing new",
                    hint="leave them out; ranges of values go into inputs={...}, samples into data=",
                )
            (_save_onnx if kind == "onnx" else _save_openvino)(model, folder)
            made = Captured({}, _specs(inputs), tuple(outputs))
        else:
            made = _torch(kind, model, folder, example_inputs, inputs, outputs, dims or {})
        kept = keep(folder, store)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    section, name = _SECTIONS[kind]
    return Captured({section: str(kept / name)}, made.inputs, made.outputs)


def capture_weights(model: Any, recipe: Recipe, store: Cache, *, example_inputs: Any = None) -> Captured:
    """A live module as the weights of the factory that a recipe names; the module stays as it is.

    What the factory builds with them is held against the module, on the example inputs and at both ends of every dim.
    Raises UserError for what is no torch module, SourceError where the factory does not take the weights, and
    CheckError where it builds another model.
    """
    from optkit.models.sources import torch_descriptor

    kind, module = _kind(model)
    if kind != "module":
        raise UserError(
            f"the recipe's model: names a factory, and a {type(model).__name__} has no state dict for it",
            hint="give the nn.Module, or leave model: out of the recipe",
            subject="model",
        )
    from optkit.plugin import need

    tensors = _named(kind, module, example_inputs) if example_inputs is not None else {}
    module = _on_cpu(module)
    folder = store.stage()
    try:
        # Clones: a safetensors file takes no two names for the same memory, as tied weights have.
        state = {name: t.detach().cpu().contiguous().clone() for name, t in module.state_dict().items()}
        need("safetensors.torch", "safetensors").save_file(state, str(folder / "weights.safetensors"))
        kept = keep(folder, store) / "weights.safetensors"
        descriptor = {**torch_descriptor(recipe), "weights": str(kept), "strict": True}
        work = store.stage()
        try:
            _compare(module, descriptor, work, recipe.inputs, recipe.dims, tensors, "what the recipe's factory builds")
        except SourceError as error:
            if error.subject != "model.weights":
                raise
            what = error.what.replace(f"the weights in {kept}", "the live module's weights")
            hint = f"give the part of the module that {descriptor['factory']} builds, or leave model: out of the recipe"
            raise SourceError(what, subject="model", hint=hint, details=error.details) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Captured({"weights": str(kept)})


_SECTIONS = {
    "module": ("pt2", "model.pt2"),
    "exported": ("pt2", "model.pt2"),
    "torchscript": ("torchscript", "model.pt"),
    "onnx": ("onnx", "model.onnx"),
    "openvino": ("openvino", "model.xml"),
}
"""Per kind of live object the recipe's key and the file."""


def _kind(model: Any) -> tuple[str, Any]:
    """Which kind of live object this is, and the model inside its wrappers.

    A backend that is not imported cannot have made it.
    """
    torch, onnx, openvino = (sys.modules.get(name) for name in ("torch", "onnx", "openvino"))
    if torch is not None:
        if isinstance(model, torch.jit.ScriptModule):
            return "torchscript", model
        if isinstance(model, torch.nn.Module):
            return "module", _unwrapped(model, torch)
        if isinstance(model, torch.export.ExportedProgram):
            return "exported", model
    if onnx is not None and isinstance(model, onnx.ModelProto):
        return "onnx", model
    if openvino is not None and isinstance(model, openvino.Model):
        return "openvino", model
    raise UserError(
        f"a {type(model).__module__}.{type(model).__name__} is no model optkit knows",
        hint="give a torch module, ExportedProgram or ScriptModule, onnx.ModelProto, openvino.Model, a path "
        "or a recipe",
    )


def _unwrapped(module: Any, torch: Any) -> Any:
    """The module inside torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        if isinstance(module, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(getattr(module, "_orig_mod", None), torch.nn.Module):
            module = module._orig_mod
        else:
            return module


def _specs(inputs: Mapping[str, Mapping[str, Any]] | None) -> Specs:
    return {name: dict(spec) for name, spec in (inputs or {}).items()}


# ------------------------------------------------------------------------------------------------ ONNX, OpenVINO


def _save_onnx(model: Any, folder: Path) -> None:
    from optkit.formats.onnx import model as onnx_model
    from optkit.formats.onnx import weights as onnx_weights

    if elsewhere := [where[0] for t in onnx_weights.all_tensors(model) if (where := onnx_weights.reference(t))]:
        raise SourceError(
            f"the ModelProto keeps weights in {elsewhere[0]!r} and does not say in which folder",
            subject="model",
            hint="give the path of the .onnx file, or load it with its external data",
        )
    if model.ByteSize() >= onnx_model.EXTERNAL_FROM:
        model, whole = type(model)(), model  # writing external data changes the object it is given
        model.CopyFrom(whole)
    onnx_model.save(model, folder)


def _save_openvino(model: Any, folder: Path) -> None:
    import openvino

    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)


# ------------------------------------------------------------------------------------------------ torch


def _torch(
    kind: str,
    model: Any,
    folder: Path,
    example_inputs: Any,
    inputs: Mapping[str, Mapping[str, Any]] | None,
    outputs: Sequence[str],
    dims: Mapping[str, Dim],
) -> Captured:
    from optkit.formats.torch import model as torch_model

    tensors = _named(kind, model, example_inputs) if example_inputs is not None else {}
    if not tensors and not inputs and kind != "exported":
        raise UserError(
            "nothing says what goes into the model",
            hint='give example_inputs={"image": tensor}, or inputs={"image": {"shape": [...]}}',
        )
    specs = _declared(tensors, inputs or {}, dims)
    if kind == "module":
        model = _on_cpu(model)
    path = folder / _SECTIONS[kind][1]
    descriptor = torch_model.save_live(model, path, specs, dims, list(outputs) or None)
    if kind == "module":
        _compare(model, descriptor, folder, specs, dims, tensors)
    shown = {t.name: {k: v for k, v in t.to_json().items() if k != "name"} for t in specs}
    return Captured({}, shown, tuple(descriptor["outputs"] or ()))


def _named(kind: str, model: Any, example: Any) -> dict[str, Any]:
    """Example inputs as tensors by name; a tuple is in forward()'s order, a single value the only input."""
    import torch

    if isinstance(example, Mapping):
        named = {str(name): value for name, value in example.items()}
    else:
        values: Sequence[Any] = example if isinstance(example, tuple | list) else (example,)
        names = _parameters(kind, model)
        if len(names) < len(values):
            raise UserError(
                f"{len(values)} example inputs were given, and forward() names {len(names)}",
                hint="give them by name: example_inputs={...}",
            )
        named = dict(zip(names, values, strict=False))
    made = {}
    for name, value in named.items():
        try:
            if value is None or isinstance(value, bool | int | float):
                raise TypeError("a fixed value is no input")
            tensor = value if isinstance(value, torch.Tensor) else torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                f"example input {name!r} is a {type(value).__name__}, not a tensor or an array: {error}",
                hint="leave arguments that are no tensors to forward()'s defaults, or fix them in a module around it",
            ) from error
        made[name] = tensor.detach().cpu()
    return made


def _parameters(kind: str, model: Any) -> list[str]:
    import inspect

    if kind == "torchscript":
        return [argument.name for argument in model.forward.schema.arguments[1:]]
    if kind == "exported":
        return [name for name in model.graph_signature.user_inputs if isinstance(name, str)]
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind not in kinds]


def _declared(
    tensors: Mapping[str, Any], inputs: Mapping[str, Mapping[str, Any]], dims: Mapping[str, Dim]
) -> tuple[TensorSpec, ...]:
    """Inputs as stated, what they leave open taken from the example; its axis 0 is the dim "batch" if there is one."""
    for name in inputs if tensors else ():
        if name not in tensors:
            hint = did_you_mean(name, tensors)
            raise UserError(f"inputs: there is no example input {name!r}", hint=hint, subject=f"inputs.{name}")
    specs = []
    for name in tensors or inputs:
        said, tensor = inputs.get(name, {}), tensors.get(name)
        if tensor is None:
            shape, dtype = said.get("shape"), said.get("dtype", "float32")
            if shape is None:
                hint = f"inputs={{{name!r}: {{'shape': ['batch', 3, 224, 224]}}}}"
                raise UserError(f"inputs: {name!r} has no shape", hint=hint, subject=f"inputs.{name}")
        else:
            first = ["batch"] if "batch" in dims and tensor.ndim else []
            shape = said.get("shape", [*first, *tensor.shape[len(first) :]])
            dtype = said.get("dtype", str(tensor.dtype).removeprefix("torch."))
        low, high = said.get("range") or (None, None)
        limits = None if low is None or high is None else (low, high)
        specs.append(TensorSpec(name, str(dtype), tuple(shape), said.get("layout"), limits))
    used = {dim for spec in specs for dim in spec.dynamic}
    for dim in dims if specs else ():
        if dim not in used:
            one = specs[0]
            shape = [dim, *(one.shape or ())[1:]]
            raise UserError(
                f"dims: no input has a dim called {dim!r}",
                hint=f'call the batch axis "batch", or name the axes: inputs={{{one.name!r}: {{"shape": {shape}}}}}',
                subject=f"dims.{dim}",
            )
    return tuple(specs)


def _on_cpu(module: Any) -> Any:
    """The module itself if it lies on the CPU, else a copy there; nothing is copied on its own device."""
    tensors = [*module.parameters(), *module.buffers()]
    if all(t.device.type == "cpu" for t in tensors):
        return module
    return _copied(module, tensors)


def _copied(module: Any, tensors: Sequence[Any]) -> Any:
    """A copy of a module with these of its tensors on the CPU."""
    import copy

    import torch

    memo: dict[int, Any] = {}
    for tensor in tensors:
        moved = tensor.detach().cpu()
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        memo[id(tensor)] = torch.nn.Parameter(moved, tensor.requires_grad) if is_parameter else moved
    return copy.deepcopy(module, memo).cpu()


def _compare(
    module: Any,
    descriptor: Mapping[str, Any],
    folder: Path,
    specs: Sequence[TensorSpec],
    dims: Mapping[str, Dim],
    tensors: Mapping[str, Any],
    what: str = "the captured program",
) -> None:
    """Hold the captured program against the live module: on the caller's inputs, and at both ends of every dim."""
    import json

    import torch

    from optkit.formats.torch import model as torch_model
    from optkit.formats.torch.sources import of_module
    from optkit.parity.metrics import Comparison

    path = folder / "torch.json"
    path.write_text(json.dumps(dict(descriptor)), encoding="utf-8")
    captured = torch_model.load(path)
    path.unlink()
    live = torch_model.TorchModel(of_module("factory", module), specs, captured.output_names)
    names = list(dict.fromkeys(d for t in specs for d in t.dynamic))
    opt = {n: dims[n].opt for n in names}
    cases = [opt, *({**opt, n: size} for n in names for size in dims[n].sizes)]
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        for position, sizes in enumerate([None, *cases] if _inside(tensors, specs, dims) else cases):
            drawn = torch_model.example_feeds(specs, dims, sizes or opt, seed=position)
            feeds = {t.name: tensors[t.name] for t in specs} if sizes is None else drawn
            with torch.inference_mode():
                one, two = live.call(feeds), captured.call(feeds)
                torch_model.check_deterministic(live, feeds, one, live.call(feeds))
            comparison = Comparison()
            comparison.add(_arrays(one), _arrays(two), None)
            result = comparison.result()
            worst = max((m["rel_l2"]["worst"] for m in result["outputs"].values() if "rel_l2" in m), default=0.0)
            if result["problems"] or worst > MAX_REL_L2:
                at = "the example inputs" if sizes is None else ", ".join(f"{k}={v}" for k, v in sizes.items())
                why = result["problems"][0]["text"] if result["problems"] else f"rel_l2 {worst:.3g}"
                raise CheckError(
                    f"{what} does not answer as the live module does at {at or 'its inputs'}: {why}",
                    hint="control flow that depends on the input's size or values is the usual cause"
                    if descriptor["kind"] == "exported"
                    else "it builds another model from the same weights: mend the factory or its kwargs, or leave "
                    "model: out of the recipe",
                )
    finally:
        for part, training in modes.items():
            part.training = training


def _inside(tensors: Mapping[str, Any], specs: Sequence[TensorSpec], dims: Mapping[str, Dim]) -> bool:
    """Whether there are example inputs, of sizes within the dims' ranges: those of the batch may well be outside."""
    return bool(tensors) and all(
        dims[d].min <= size <= dims[d].max
        for spec in specs
        for d, size in zip(spec.shape or (), tensors[spec.name].shape, strict=False)
        if isinstance(d, str)
    )


def _arrays(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name: (t.float() if str(t.dtype) == "torch.bfloat16" else t).numpy() for name, t in tensors.items()}
