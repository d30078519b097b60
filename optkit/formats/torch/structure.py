"""What was removed from a torch module, written down so that a freshly built one can be cut to the same shape.

A torch artifact with a structure is `torch.json`, the descriptor of the module it was made from, with two keys more:

    {..., "pruned": {"structure": "structure.json", "weights": "weights.safetensors"},
     "made_from": digest of the model it was cut from,
     "sparse": true}        where weights were set to zero, which stay so whatever learns them

both files beside it. structure.json has no code and no pickle in it:

    {"version": 1, "stages": [{"keep": [[0, 2, 3], ...],
                               "tensors": {"stem.weight": {"0": 0}, ...},     parameter or buffer, axis, number in keep
                               "attributes": {"stem": {"out_channels": 3, "normalized_shape": [3]}}}]}

Stages are applied in order, each to what the one before left. A stage may also name attentions that are written out
(`torch_attention`) before anything is cut: {"written_out": ["encoder.0.attention"], ...}, which makes it version 2.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optkit.errors import SourceError
from optkit.formats.torch import attention as torch_attention
from optkit.formats.torch import quantised as torch_quantised
from optkit.formats.torch.files import existing, fit_weights, read_weights
from optkit.formats.torch.modes import evaluate
from optkit.plugin import need

STRUCTURE = "structure.json"
WEIGHTS = "weights.safetensors"
VERSION = 1
WRITTEN_OUT = 2
"""The version of a record in which attentions are written out."""


@dataclass
class Stage:
    """One cut. tensors: name of a parameter or buffer to {axis: positions that stay}. attributes: module to values.

    written_out: the attentions that are written out before.
    """

    tensors: dict[str, dict[int, list[int]]] = field(default_factory=dict)
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    written_out: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        keep: dict[tuple[int, ...], int] = {}
        tensors = {
            name: {str(axis): keep.setdefault(tuple(stay), len(keep)) for axis, stay in sorted(axes.items())}
            for name, axes in sorted(self.tensors.items())
        }
        attributes = {path: dict(sorted(values.items())) for path, values in sorted(self.attributes.items())}
        first = {"written_out": self.written_out} if self.written_out else {}
        return {**first, "keep": [list(stay) for stay in keep], "tensors": tensors, "attributes": attributes}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Stage:
        keep = data["keep"]
        tensors = {
            name: {int(axis): list(keep[number]) for axis, number in axes.items()}
            for name, axes in data["tensors"].items()
        }
        attributes = {path: dict(values) for path, values in data["attributes"].items()}
        return Stage(tensors, attributes, list(data.get("written_out", [])))


def cut(module: Any, stage: Stage) -> None:
    """Apply a stage to a module, in place, which is in evaluation mode afterwards. Raises SourceError.

    Tensors that were one (tied weights) stay one.
    """
    torch = need("torch")
    torch_attention.replace(module, stage.written_out)
    made: dict[int, tuple[Any, Any]] = {}
    for name, axes in stage.tensors.items():
        path, _, leaf = name.rpartition(".")
        owner = _submodule(module, path, name)
        tensor = getattr(owner, leaf, None)
        if not isinstance(tensor, torch.Tensor):
            raise _unlike(name, "the model has no such tensor")
        if id(tensor) not in made:  # the tensor is held too, so that its id stays its own
            made[id(tensor)] = tensor, _kept(name, tensor, axes)
        smaller = made[id(tensor)][1]
        setattr(owner, leaf, smaller)
    for path, values in stage.attributes.items():
        owner = _submodule(module, path, path)
        for attribute, value in values.items():
            if not hasattr(owner, attribute):
                raise _unlike(f"{path}.{attribute}", "the model has no such attribute")
            setattr(owner, attribute, tuple(value) if isinstance(value, list) else value)
    evaluate(module)


def _kept(name: str, tensor: Any, axes: Mapping[int, Sequence[int]]) -> Any:
    torch = need("torch")
    smaller = tensor.detach()
    for axis, stay in axes.items():
        if axis >= smaller.dim() or (stay and stay[-1] >= smaller.shape[axis]):
            raise _unlike(name, f"it has shape {tuple(tensor.shape)}")
        smaller = smaller.index_select(axis, torch.tensor(stay, dtype=torch.long, device=smaller.device))
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(smaller, requires_grad=tensor.requires_grad)
    return smaller


def _submodule(module: Any, path: str, name: str) -> Any:
    try:
        return module.get_submodule(path)
    except AttributeError as error:
        raise _unlike(name, f"the model has no module {path!r}") from error


def _unlike(name: str, what: str) -> SourceError:
    return SourceError(
        f"the model was built otherwise than when it was pruned: {name}: {what}",
        subject="model.torch",
        hint="build it with the code and the kwargs it was pruned with, or prune it again",
    )


# ------------------------------------------------------------------------------------------------ at rest


def absolute(descriptor: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A descriptor with the files beside it named by absolute paths."""
    pruned = descriptor.get("pruned")
    if not pruned:
        return dict(descriptor)
    record = {"quantised": str(folder / descriptor["quantised"])} if descriptor.get("quantised") else {}
    return {**descriptor, "pruned": {key: str(folder / name) for key, name in pruned.items()}, **record}


def stages(descriptor: Mapping[str, Any]) -> list[Stage]:
    """The cuts of a descriptor whose paths are absolute. Raises SourceError for a record that cannot be read."""
    pruned = descriptor.get("pruned")
    if not pruned:
        return []
    path = existing(pruned["structure"], "model")
    try:
        data = json.loads(path.read_text())
        if data["version"] not in (VERSION, WRITTEN_OUT):
            raise SourceError(
                f"{path} is of version {data['version']}; this optkit reads {VERSION} and {WRITTEN_OUT}",
                subject="model",
                hint="use the optkit that wrote it, or prune again",
            )
        return [Stage.from_json(stage) for stage in data["stages"]]
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise SourceError(
            f"{path} is damaged: {type(error).__name__}: {error}", subject="model", hint="prune again"
        ) from error


def restore(module: Any, descriptor: Mapping[str, Any]) -> None:
    """Cut a freshly built module as its descriptor's record says, and give it the weights that were left."""
    for stage in stages(descriptor):
        cut(module, stage)
    path = descriptor["pruned"]["weights"]
    state = read_weights(path)
    record = torch_quantised.read(descriptor["quantised"]) if descriptor.get("quantised") else None
    if record:
        torch_quantised.prepare(module, record, state)
    fit_weights(module, state, path)
    if record:
        torch_quantised.finish(module, record)


def save(
    module: Any, parent: Mapping[str, Any], digest: str, done: Sequence[Stage], out_dir: Path,
    quantised: tuple[torch_quantised.Quantised, Mapping[str, Any]] | None = None, sparse: bool = False,
) -> None:  # fmt: skip
    """Write torch.json, structure.json and weights.safetensors.

    parent: the descriptor the module was loaded by. digest: of what it describes; it is written down, so that the same
    weights under other code are another artifact. Tied weights are stored once per name, so that any reader finds each.
    quantised: the record of which tensors are integers, and those tensors' scales by name; it gets a file of its own.
    sparse: weights were set to zero.
    """
    torch = need("torch")
    whole = [*stages(parent), *done]
    version = WRITTEN_OUT if any(stage.written_out for stage in whole) else VERSION
    record = {"version": version, "stages": [stage.to_json() for stage in whole]}
    (out_dir / STRUCTURE).write_text(json.dumps(record, sort_keys=True, separators=(",", ":")), encoding="utf-8")
    state = {
        name: value.detach().clone().contiguous()
        for name, value in module.state_dict().items()
        if isinstance(value, torch.Tensor)
    }
    descriptor = {**parent, "pruned": {"structure": STRUCTURE, "weights": WEIGHTS}, "made_from": digest,
                  **({"sparse": True} if sparse else {})}  # fmt: skip
    if quantised:
        written, scales = quantised
        state = torch_quantised.state_of(written, state, scales)
        (out_dir / torch_quantised.RECORD).write_text(json.dumps(written.to_json(), indent=1), encoding="utf-8")
        descriptor["quantised"] = torch_quantised.RECORD
    need("safetensors.torch", "safetensors").save_file(state, str(out_dir / WEIGHTS))
    (out_dir / "torch.json").write_text(json.dumps(descriptor, indent=1), encoding="utf-8")


__all__ = ["STRUCTURE", "WEIGHTS", "Stage", "absolute", "cut", "restore", "save", "stages"]
