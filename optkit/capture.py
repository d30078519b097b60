"""Live model objects put at rest, so that a child process can work on them.

A torch module is captured with torch.export in the caller's process and compared there with the live one: from then on
the captured program is the source model every step is judged against.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optkit.artifact import Dim, TensorSpec
from optkit.errors import CheckError, SourceError, UserError

Specs = dict[str, dict[str, Any]]
Ranges = dict[str, tuple[int, int, int]]

MAX_REL_L2 = 1e-4
"""How far a captured program may be from the live module: float32 rounding, as between kernels."""


def capture(
    model: Any,
    folder: Path,
    example_inputs: Any,
    inputs: Mapping[str, Mapping[str, Any]] | None,
    dims: Mapping[str, tuple[int, int, int]],
) -> tuple[dict[str, Any], Specs, Ranges]:
    """The recipe's `model:` section for a live object, its `inputs:` and its dims, with the model's file in `folder`.

    Raises UserError for an object of no known kind or missing inputs, SourceError when it cannot be captured, and
    CheckError when the captured program does not answer as the live module does.
    """
    kind = _kind(model)
    if kind == "onnx":
        import onnx

        path = folder / "model.onnx"
        onnx.save_model(model, path, save_as_external_data=model.ByteSize() > 1 << 30, location="model.onnx.data")
        return {"onnx": str(path)}, _specs(inputs), dict(dims)
    if kind == "openvino":
        import openvino

        path = folder / "model.xml"
        openvino.save_model(model, path, compress_to_fp16=False)
        return {"openvino": str(path)}, _specs(inputs), dict(dims)
    from optkit.formats import torch_model

    known = inputs or kind == "exported"
    tensors = _named(model, example_inputs) if example_inputs is not None else None
    if tensors is None and not known:
        raise UserError(
            "nothing says what goes into the model",
            hint='give example_inputs={"image": tensor}, or inputs={"image": {"shape": [...]}}',
        )
    specs = tuple(
        TensorSpec(name, str(spec.get("dtype", "float32")), tuple(spec["shape"]), spec.get("layout"), spec.get("range"))
        for name, spec in (inputs or {}).items()
    )
    if not specs and tensors is not None:
        first: list[int | str] = ["batch"] if "batch" in dims else []
        specs = tuple(TensorSpec(name, _dtype(t), (*first, *t.shape[len(first) :])) for name, t in tensors.items())
    ranges = {name: Dim(*sizes) for name, sizes in dims.items()}
    if kind == "torchscript":
        path = folder / "model.pt"
        section = {"torchscript": str(path)}
    else:
        path = folder / "model.pt2"
        section = {"pt2": str(path)}
    descriptor = torch_model.save_live(model, path, specs, ranges)
    if kind == "module":
        _compare(model, descriptor, folder, specs, ranges, tensors)
    shown = {t.name: {k: v for k, v in t.to_json().items() if k != "name"} for t in specs}
    return section, shown, dict(dims)


def _kind(model: Any) -> str:
    """Which kind of live object this is; a backend that is not imported cannot have made it."""
    torch, onnx, openvino = (sys.modules.get(name) for name in ("torch", "onnx", "openvino"))
    if torch is not None:
        if isinstance(model, torch.jit.ScriptModule):
            return "torchscript"
        if isinstance(model, torch.nn.Module):
            return "module"
        if isinstance(model, torch.export.ExportedProgram):
            return "exported"
    if onnx is not None and isinstance(model, onnx.ModelProto):
        return "onnx"
    if openvino is not None and isinstance(model, openvino.Model):
        return "openvino"
    raise UserError(
        f"a {type(model).__module__}.{type(model).__name__} is no model optkit knows",
        hint="give a torch module, ExportedProgram or ScriptModule, onnx.ModelProto, openvino.Model, a path "
        "or a recipe",
    )


def _specs(inputs: Mapping[str, Mapping[str, Any]] | None) -> Specs:
    return {name: dict(spec) for name, spec in (inputs or {}).items()}


def _named(model: Any, example: Any) -> dict[str, Any]:
    import inspect

    import torch

    if isinstance(example, Mapping):
        named = dict(example)
    else:
        values: Sequence[Any] = example if isinstance(example, tuple | list) else (example,)
        names = list(inspect.signature(model.forward).parameters) if hasattr(model, "forward") else []
        if len(names) < len(values):
            raise UserError(
                f"{len(values)} example inputs were given, forward() takes {len(names)}",
                hint="give them by name: example_inputs={...}",
            )
        named = dict(zip(names, values, strict=False))
    return {name: value if isinstance(value, torch.Tensor) else torch.as_tensor(value) for name, value in named.items()}


def _dtype(tensor: Any) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _compare(
    module: Any,
    descriptor: Mapping[str, Any],
    folder: Path,
    specs: Sequence[TensorSpec],
    ranges: Mapping[str, Dim],
    tensors: Mapping[str, Any] | None,
) -> None:
    """Hold the captured program against the live module: on the caller's inputs, and at both ends of every dim."""
    import json

    import torch

    from optkit.formats import torch_model
    from optkit.parity.metrics import Comparison

    path = folder / "torch.json"
    path.write_text(json.dumps(dict(descriptor)), encoding="utf-8")
    captured = torch_model.load(path)
    # The same wrapper on both sides: it orders inputs and names outputs.
    names = list(dict.fromkeys(d for t in specs for d in t.dynamic))
    cases = [{n: ranges[n].opt for n in names}]
    cases += [{**cases[0], n: size} for n in names for size in ranges[n].sizes]
    was_training = module.training
    module.eval()
    try:
        for position, sizes in enumerate(cases):
            feeds = torch_model.example_feeds(specs, ranges, sizes, seed=position)
            if (
                position == 0
                and tensors is not None
                and all(tuple(tensors[t.name].shape) == t.resolved(sizes) for t in specs)
            ):
                feeds = dict(tensors)
            with torch.inference_mode():
                live = _flat(module(**feeds), captured.output_names or ())
                again = captured.call(feeds)
            comparison = Comparison()
            comparison.add(
                {k: v.detach().cpu().numpy() for k, v in live.items()},
                {k: v.detach().cpu().numpy() for k, v in again.items()},
                None,
            )
            result = comparison.result()
            worst = max((m["rel_l2"]["worst"] for m in result["outputs"].values() if "rel_l2" in m), default=0.0)
            if result["problems"] or worst > MAX_REL_L2:
                at = ", ".join(f"{k}={v}" for k, v in sizes.items()) or "its inputs"
                why = result["problems"][0]["text"] if result["problems"] else f"rel_l2 {worst:.3g}"
                raise CheckError(
                    f"the captured program does not answer as the live module does at {at}: {why}",
                    hint="control flow that depends on the input's size or values is the usual cause",
                )
    finally:
        module.train(was_training)


def _flat(answer: Any, names: Sequence[str]) -> dict[str, Any]:
    import torch

    if isinstance(answer, torch.Tensor):
        values = [answer]
    elif isinstance(answer, Mapping):
        values = [v for v in answer.values() if isinstance(v, torch.Tensor)]
    else:
        values = [v for v in answer if isinstance(v, torch.Tensor)]
    if len(values) != len(names):
        raise SourceError(
            f"the live module gives {len(values)} tensors, the captured program {len(names)}",
            hint="return tensors, a tuple or a flat dict of tensors",
        )
    return dict(zip(names, values, strict=True))
