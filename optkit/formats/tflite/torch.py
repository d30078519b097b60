"""From a torch model to a `ModelT` by litert-torch, and the proof that a file answers as the model does."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.artifact import Dim
from optkit.errors import OptkitError, StepError
from optkit.formats.tflite import model as tflite_model
from optkit.formats.tflite import session as tflite_session
from optkit.formats.tflite.model import Contract
from optkit.formats.tflite.noise import captured, quiet
from optkit.formats.tflite.sizes import disproved
from optkit.formats.torch import model as torch_model
from optkit.formats.torch.experts import batched_experts
from optkit.formats.torch.files import WRAPPED
from optkit.formats.torch.files import quiet as quiet_torch
from optkit.formats.torch.guards import node_place, program_places, quiet_failure
from optkit.plugin import need

if TYPE_CHECKING:
    from optkit.plugin import Tensors


def load() -> Any:
    """litert-torch, imported without what its libraries print then."""
    with captured(), quiet():
        return need("litert_torch", "litert-torch")


@dataclass(frozen=True)
class Conversion:
    """What is converted: a loaded model, its program (for places in errors), what a session shall take and give."""

    model: torch_model.TorchModel
    program: Any
    agreed: Contract
    dims: Mapping[str, Dim]
    keep_int64: bool

    def convert(self, path: Path, *, sizes: Mapping[str, int], symbolic: bool = False) -> None:
        """Write the file: one signature for each combination of the contract's sizes.

        sizes: of the example that is traced, for dims that the contract does not fix. symbolic: let litert-torch carry
        these through the graph as symbols. Raises StepError.
        """
        litert = load()
        module = _ends(self.model, self.agreed)
        converter: Any = litert
        shapes = self._dynamic_shapes() if symbolic else None
        for fixed in tflite_session.combinations(self.agreed):
            feeds = self.feeds({**sizes, **fixed}, seed=0)
            converter = converter.signature(self.agreed.key(fixed), module, sample_kwargs=feeds, dynamic_shapes=shapes)
        raw = path.with_suffix(".raw")
        with captured() as said, quiet(), quiet_torch(), quiet_failure(), batched_experts(self.model.module):
            try:
                converter.convert(enable_x64=self.keep_int64).export(str(raw))
            except OptkitError:
                raise
            except Exception as error:  # torch, jax and MLIR each raise their own
                raise failure(error, self.program, said()) from error
        converted = tflite_model.read(raw)
        tflite_model.rename(converted, self.agreed, self._names())
        _name_tensors(converted, self.model.module)
        tflite_model.write(converted, path, self.agreed)
        raw.unlink()

    def with_contract(self, agreed: Contract) -> Conversion:
        """The same, of another contract."""
        return replace(self, agreed=agreed)

    def feeds(self, sizes: Mapping[str, int], seed: int) -> dict[str, Any]:
        """Example inputs by parameter name, as the file takes them."""
        drawn = torch_model.example_feeds(self.agreed.inputs, self.dims, sizes, seed)
        return {
            parameter: (value.movedim(1, -1).contiguous() if name in self.agreed.channels_last else value)
            for parameter, (name, value) in zip(self._parameters(), drawn.items(), strict=True)
        }

    def _parameters(self) -> list[str]:
        known = dict(zip(self.model.input_names, self.model.parameters, strict=True))
        return [known[spec.name] for spec in self.agreed.inputs]

    def _names(self) -> dict[str, str]:
        inputs = dict(zip(self._parameters(), (spec.name for spec in self.agreed.inputs), strict=True))
        return inputs | {f"output_{index}": spec.name for index, spec in enumerate(self.agreed.outputs)}

    def _dynamic_shapes(self) -> dict[str, dict[int, Any]]:
        shapes = torch_model.dynamic_shapes(self.agreed.inputs, self.dims)
        moved = {}
        for parameter, spec, axes in zip(self._parameters(), self.agreed.inputs, shapes, strict=True):
            last = len(spec.shape or ()) - 1
            turned = spec.name in self.agreed.channels_last
            moved[parameter] = {
                (last if axis == 1 else axis - 1) if turned and axis else axis: dim for axis, dim in axes.items()
            }
        return moved

    def disproved(self, path: Path, threads: int) -> str:
        """Where the file does not answer as the model does, over min, opt, max and an odd size of each dim; or "".

        Raises whatever the model itself raises.
        """
        import numpy as np

        def ask(sizes: Mapping[str, int]) -> tuple[Tensors, Tensors]:
            drawn = torch_model.example_feeds(self.agreed.inputs, self.dims, sizes, seed=1)
            answer = self.model.call(drawn)
            return {name: value.numpy() for name, value in drawn.items()}, {
                name: np.asarray(value.double() if value.is_floating_point() else value)
                for name, value in answer.items()
            }

        return disproved(path, self.agreed, self.dims, threads, ask)


def _ends(model: torch_model.TorchModel, agreed: Contract) -> Any:
    """The model as a module that takes what the file takes and gives a tuple, in the contract's order."""
    torch = need("torch")
    known = dict(zip(model.input_names, model.parameters, strict=True))
    order = [known[spec.name] for spec in agreed.inputs]
    turned = {known[name] for name in agreed.channels_last if name in known}

    def forward(*tensors: Any, **named: Any) -> tuple[Any, ...]:
        named |= dict(zip(order, tensors, strict=False))
        # Cloned, as a forward may write into its inputs, which the converter cannot follow.
        given = {key: value.movedim(-1, 1) if key in turned else value.clone() for key, value in named.items()}
        results = dict(zip(model.output_names or (), model.module(*(given[p] for p in model.parameters)), strict=True))
        return tuple(
            results[spec.name].movedim(1, -1) if spec.name in agreed.channels_last else results[spec.name]
            for spec in agreed.outputs
        )

    class Ends(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            setattr(self, WRAPPED, model.module)

    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in order]
    )
    ends = Ends()
    ends.forward = forward
    ends.training = False
    return ends


def _name_tensors(model: Any, module: Any) -> None:
    """Tensors called after the modules they come from, "encoder.layer.0.dense", unique in the file.

    litert-torch gives the whole class names too, with this package's wrappers: they say nothing about the model, and
    differ from one checkout to the next. The ends have the names in their signature.
    """
    attributes = {part for path, _ in module.named_modules() for part in path.split(".") if part} | {WRAPPED}
    taken: set[str] = set()
    ends: dict[int, str] = {}
    for definition in model.signatureDefs:
        tensors = model.subgraphs[definition.subgraphIndex].tensors
        key = tflite_model.text_of(definition.signatureKey)
        for entry in (*definition.inputs, *definition.outputs):
            name = tflite_model.text_of(entry.name)
            ends.setdefault(id(tensors[entry.tensorIndex]), name if key == tflite_model.DEFAULT else f"{key}/{name}")
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            wanted = ends.get(id(tensor)) or _readable(tflite_model.text_of(tensor.name), attributes)
            name, count = wanted, 0
            while name in taken:
                count += 1
                name = f"{wanted}:{count}"
            taken.add(name)
            tensor.name = name.encode()


def _readable(name: str, attributes: Collection[str]) -> str:
    parts: dict[str, None] = {}
    for piece in name.split(";"):
        path = []
        for component in piece.split("/"):
            ends = [component[i + 1 :] for i, letter in enumerate(component) if letter == "_"]
            path += [next((end for end in ends if end in attributes), "")]
        while path and path[0] in ("", WRAPPED):
            del path[0]
        if path:
            parts[".".join(filter(None, path))] = None
    return ";".join(parts) or ("constant" if name.startswith("arith.constant") else "model")


def failure(error: Exception, program: Any, said: str = "") -> StepError:
    """What an exception of litert-torch means: the operator, its node, and where the model uses it."""
    text = str(error)
    missing = re.search(r"Lowering not found: (\S+)", text)
    illegal = re.search(r"failed to legalize operation '([\w.]+)'", text)
    node = re.search(r"While executing %(\w+)", text)
    target = re.search(r"target=torch\.ops\.([\w.]+)\]", text)
    operator = missing[1] if missing else illegal[1] if illegal else target[1] if target else ""
    spot = re.search(r"([^\s:\"]+\.py):(\d+):\d+: error", text)
    built = re.search(r"error: '([\w.]+)' op (.+)", text)
    place = node_place(error) or (program_places(program, [operator]).get(operator, "") if program is not None else "")
    place = place or (f"at {spot[1]}:{spot[2]}" if spot else "")
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    if missing:
        flow = operator in ("cond", "while_loop", "scan", "map")
        what = f"TFLite has no {'control flow for' if flow else 'operator for'} {operator}"
    elif illegal:
        types = re.findall(r"tensor<[^>]*?(\w+)>", text.split("error:", 1)[-1])
        what = f"TFLite cannot compute {operator}" + (f" on {', '.join(dict.fromkeys(types))}" if types else "")
    elif "complex" in first:
        what = f"TFLite has no complex numbers, which {operator or 'an operator'} gives"
    elif built:
        what = f"litert-torch makes an invalid {built[1]} out of the model: {built[2].strip()}"
    else:
        what = f"litert-torch failed{f' at {operator}' if operator else ''}: {type(error).__name__}: {first}"
    if node:
        what += f" (node {node[1]})"
    hint = "replace the operator in the model, or deliver ONNX or OpenVINO instead"
    if built and not (missing or illegal) and place:
        other = "without expand or repeat" if "broadcast" in built[2] else "with other operators"
        hint = f"write that line {other}, or deliver ONNX or OpenVINO instead"
    if missing and operator in ("cond", "while_loop", "scan", "map"):
        hint = "compute both branches and choose with torch.where, or deliver ONNX or OpenVINO instead"
    return StepError(
        what + (f", used {place}" if place else ""),
        subject="model",
        details="\n".join(part for part in (text, said.strip()) if part),
        hint=hint,
    )
