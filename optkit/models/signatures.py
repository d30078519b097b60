"""Signatures held against one another: what the recipe declares, what a file says, what a pass promised to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from optkit.artifact import Artifact, Signature, TensorSpec
from optkit.errors import SourceError, did_you_mean
from optkit.plugin import Pass

if TYPE_CHECKING:
    from optkit.plugin import Tensors


def merge(declared: Sequence[TensorSpec], found: Signature, outputs: Sequence[str]) -> Signature:
    """The model's signature with declared layouts, ranges and dim names. Raises SourceError where they disagree."""
    known = [t.name for t in found.outputs]
    if outputs and list(outputs) != known:
        raise SourceError(
            f"the model's outputs are {', '.join(known)}, the recipe says {', '.join(outputs)}",
            subject="outputs",
            hint="name them as the model does, in its order",
        )
    if not declared:
        return found
    names = [t.name for t in found.inputs]
    for tensor in declared:
        if tensor.name not in names:
            raise SourceError(
                f"the model has no input {tensor.name!r}; it has {', '.join(names)}",
                subject=f"inputs.{tensor.name}",
                hint=did_you_mean(tensor.name, names),
            )
    by_name = {t.name: t for t in declared}
    inputs = []
    for tensor in found.inputs:
        said = by_name.get(tensor.name)
        if said is None:
            raise SourceError(
                f"the model also has an input {tensor.name!r}, which the recipe does not declare",
                subject="inputs",
                hint=f"add it: {tensor.name}: {{shape: [...], dtype: {tensor.dtype}}}",
            )
        inputs.append(_merged(said, tensor))
    return Signature(tuple(inputs), found.outputs)


def _merged(said: TensorSpec, found: TensorSpec) -> TensorSpec:
    subject = f"inputs.{said.name}"
    if said.dtype != found.dtype:
        raise SourceError(
            f"input {said.name} is {found.dtype}, the recipe says {said.dtype}",
            subject=subject,
            hint=f"dtype: {found.dtype}",
        )
    if found.shape is not None:
        shape = f"[{', '.join(map(str, found.shape))}]"
        if len(found.shape) != len(said.shape or ()):
            raise SourceError(
                f"input {said.name} has {len(found.shape)} axes, {shape}; the recipe gives {len(said.shape or ())}",
                subject=subject,
                hint=f"shape: {shape}",
            )
        for axis, (mine, theirs) in enumerate(zip(said.shape or (), found.shape, strict=True)):
            if isinstance(theirs, int) and mine != theirs:
                raise SourceError(
                    f"input {said.name}, axis {axis}: the model is fixed at {theirs}, the recipe says {mine}",
                    subject=subject,
                    hint=f"shape: {shape}, or re-export the model",
                )
    return TensorSpec(said.name, said.dtype, said.shape, said.layout or found.layout, said.range)


def carried(signature: Signature, parent: Signature | None) -> Signature:
    """The signature with the parent's layouts and ranges, which files seldom hold, where names and ranks agree."""
    if parent is None:
        return signature
    known = {t.name: t for t in parent.inputs}
    inputs = []
    for tensor in signature.inputs:
        was = known.get(tensor.name)
        same = was and was.shape is not None and tensor.shape is not None and len(was.shape) == len(tensor.shape)
        inputs.append(
            TensorSpec(tensor.name, tensor.dtype, tensor.shape, was.layout, was.range) if was and same else tensor
        )
    return Signature(tuple(inputs), signature.outputs)


def promised(use: Pass, parent: Artifact, artifact: Artifact) -> list[str]:
    """What of the parent's signature a pass promised to keep and did not."""
    before, after = parent.signature, artifact.signature
    assert before is not None
    assert after is not None
    complaints: list[str] = []
    for kind, old, new in (("input", before.inputs, after.inputs), ("output", before.outputs, after.outputs)):
        if "names" in use.keeps and [t.name for t in old] != [t.name for t in new]:
            complaints.append(
                f"{kind}s are called {', '.join(t.name for t in new)}, not {', '.join(t.name for t in old)}"
            )
            continue
        for was, now in zip(old, new, strict=False):
            if "dtypes" in use.keeps and was.dtype != now.dtype:
                complaints.append(f"{kind} {now.name} is {now.dtype}, not {was.dtype}")
            if "dims" in use.keeps and was.shape is not None and now.shape is not None:
                complaints += _dims_lost(kind, was, now)
    return complaints


def _dims_lost(kind: str, was: TensorSpec, now: TensorSpec) -> list[str]:
    old, new = was.shape or (), now.shape or ()
    if len(old) != len(new):
        return [f"{kind} {now.name} has {len(new)} axes, not {len(old)}"]
    lost = []
    for axis, (mine, theirs) in enumerate(zip(old, new, strict=True)):
        if isinstance(mine, str) and isinstance(theirs, int):
            lost.append(f"{kind} {now.name}, axis {axis}: the dynamic dim {mine!r} came out fixed at {theirs}")
        elif isinstance(mine, int) and isinstance(theirs, int) and mine != theirs:
            lost.append(f"{kind} {now.name}, axis {axis} is {theirs}, not {mine}")
        elif isinstance(mine, int) and isinstance(theirs, str) and kind == "input":
            lost.append(f"{kind} {now.name}, axis {axis} came out dynamic, not fixed at {mine}")
    return lost


def adapted(tensors: Mapping[str, Any], signature: Signature) -> Tensors:
    """The tensors in the dtypes an artifact takes, where a pass changed them on request (float16 inputs)."""
    import numpy as np

    made: Tensors = {}
    for spec in signature.inputs:
        tensor = tensors[spec.name]
        if spec.dtype not in (str(tensor.dtype), "bfloat16", "string"):
            tensor = tensor.astype(np.dtype(spec.dtype))
        made[spec.name] = tensor
    return made
