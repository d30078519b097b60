"""The channels that can be removed, layer by layer, tried on the model itself before any is."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optkit.errors import SourceError, StepError
from optkit.formats.torch.modes import evaluate
from optkit.formats.torch.structure import cut
from optkit.formats.torch_pruning.graph import Graph
from optkit.plugin import need

TOLERANCE = {"float32": 1e-4, "float64": 1e-9}
"""Of the largest output: what another order of summation costs, with room; 1e-2 in half precisions."""


@dataclass(frozen=True)
class Group:
    """Channels that are alike: each can be removed without the others, and all lie in the same weights.

    layers: the modules that make them. members: one unit per channel, or per block of `width` of them (a head).
    sites: (tensor, axis) where they lie. exact: whether the model without one is the model in which nothing reads it.
    """

    layers: tuple[str, ...]
    members: tuple[int, ...]
    sites: tuple[tuple[str, int], ...]
    width: int
    exact: bool

    @property
    def name(self) -> str:
        return self.layers[0] if self.layers else module_of(self.sites[0][0])

    @property
    def key(self) -> tuple[Any, ...]:
        """What stays the same of a group while members go."""
        return self.sites, self.width, self.exact


def groups(graph: Graph) -> list[Group]:
    """Every group of a graph, in the order of its tensors. Channels that no layer sums over are in none."""
    sites: dict[int, dict[tuple[str, int], int]] = defaultdict(dict)
    for name, axes in graph.tensors.items():
        for number, axis in enumerate(axes):
            if axis is not None:
                for root in graph.units.roots(axis).tolist():
                    found = sites[root]
                    found[name, number] = found.get((name, number), 0) + 1
    blurred = graph.units.blurred()
    alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for root, found in sites.items():
        if graph.units.why(root) is None and any(site in graph.reads for site in found):
            alike[tuple(sorted(found.items())), root in blurred].append(root)
    return [
        Group(_layers(graph, [site for site, _ in key]), tuple(sorted(members)), tuple(site for site, _ in key),
              min(count for _, count in key), not blur)
        for (key, blur), members in alike.items()
    ]  # fmt: skip


def _layers(graph: Graph, sites: Sequence[tuple[str, int]]) -> tuple[str, ...]:
    """The modules that make channels: those with a matrix whose other axis is summed over, in the model's order."""
    order = {name: number for number, name in enumerate(graph.tensors)}
    makes = [name for name, axis in sites if len(graph.tensors[name]) > 1 and (name, axis) not in graph.reads]
    return tuple(dict.fromkeys(module_of(name) for name in sorted(makes, key=order.__getitem__)))


def module_of(tensor: str) -> str:
    """The path of the module that holds a tensor: "head" of "head.weight"; "the model" for one it holds itself."""
    return tensor.rpartition(".")[0] or "the model"


WHOLE = "torch computes all of nn.MultiheadAttention in one call, and what this one adds to it cannot be written out"


def left_alone(graph: Graph) -> list[dict[str, str]]:
    """The layers whose channels cannot be removed, each with its reason."""
    attention = need("torch").nn.MultiheadAttention
    found: dict[str, str] = {}
    for name, axes in graph.tensors.items():
        weights = [a for a, axis in enumerate(axes) if axis is not None]
        made = [a for a in weights if (name, a) not in graph.reads]
        if len(axes) < 2 or not made:
            continue
        if made == weights:  # no known sum over any of them: an embedding's width, a recurrent layer's weights
            if not all(graph.units.frozen(axis) for axis in axes if axis is not None):
                continue
            made = made[-1:]
        axis = axes[made[0]]
        assert axis is not None
        if graph.units.frozen(axis):
            whole = isinstance(graph.module.get_submodule(name.rpartition(".")[0]), attention)
            found.setdefault(module_of(name), WHOLE if whole else graph.units.why(int(axis[0])) or "")
    return [{"layer": layer, "why": why} for layer, why in found.items()]


# ------------------------------------------------------------------------------------------------ trying


Call = Callable[[Any], Mapping[str, Any]]
"""A module to its outputs by name, on the example inputs."""


def hide(graph: Graph, module: Any, removed: set[int]) -> None:
    """Set to zero, in place, the weights that read these classes: the model then computes as if they were gone."""
    torch = need("torch")
    for name, number in graph.reads:
        axis = graph.tensors[name][number]
        if axis is None:
            continue
        positions = [i for i, root in enumerate(graph.units.roots(axis).tolist()) if root in removed]
        if positions:
            with torch.no_grad():
                tensor = module.get_parameter(name)
                tensor.data.index_fill_(number, torch.tensor(positions, device=tensor.device), 0)
    evaluate(module)


def differs(wanted: Mapping[str, Any], got: Mapping[str, Any]) -> str:
    """How two results differ beyond rounding, or ""."""
    for name, tensor in wanted.items():
        other = got.get(name)
        if other is None or other.shape != tensor.shape or other.dtype != tensor.dtype:
            return f"output {name!r} has another shape"
        if not tensor.dtype.is_floating_point:
            continue
        scale = tensor.double().abs().nan_to_num(0, 0, 0).max().item() if tensor.numel() else 0.0
        off = (tensor.double() - other.double()).abs().nan_to_num(0, 0, 0).max().item() if tensor.numel() else 0.0
        if off > TOLERANCE.get(str(tensor.dtype).removeprefix("torch."), 1e-2) * scale:
            return f"output {name!r} is off by {off / scale if scale else off:.2g} of its largest value"
    return ""


def usable(graph: Graph, found: Sequence[Group], call: Call) -> list[Group]:
    """The groups that the model runs without a member of; the others are frozen, with what happened as the reason.

    A forward may have a number of heads or channels written into it where no attribute can be changed. Where removal
    is exact, the outputs must be those of the model in which nothing reads the channel. Groups are tried all together,
    and then so that of any two each was tried without the other: a forward may take one's size for the other's.
    """
    found = [group for group in found if len(group.members) > 1]
    for part in (found, *_apart(found)):
        free = [group for group in part if graph.units.why(group.members[0]) is None]
        for group, problem in _culprits(graph, free, call):
            for member in group.members:
                graph.units.freeze(_one(member), problem)
    return [group for group in found if graph.units.why(group.members[0]) is None]


def _apart(found: Sequence[Group]) -> Iterator[list[Group]]:
    """Parts of the groups, by each bit of their numbers: any two are apart once, either one without the other."""
    for bit in range(max(len(found) - 1, 0).bit_length()):
        for value in (0, 1):
            yield [group for number, group in enumerate(found) if number >> bit & 1 == value]


def _one(member: int) -> Any:
    import numpy as np

    return np.array([member], np.int64)


def copied(module: Any) -> Any:
    """A module of its own. Raises StepError for one that cannot be copied."""
    try:
        return copy.deepcopy(module)
    except Exception as error:  # whatever the user's module holds
        raise StepError(
            f"the module cannot be copied, to try a pruning on: {type(error).__name__}: {error}",
            subject="model",
            hint="build it without tensors that have a gradient history, locks or open files as attributes",
        ) from error


def _culprits(graph: Graph, found: Sequence[Group], call: Call) -> list[tuple[Group, str]]:
    """The groups that the model does not run without one of, by halves."""
    problem = _tried(graph, found, call)
    if not problem:
        return []
    if len(found) == 1:
        return [(found[0], problem)]
    half = len(found) // 2
    return [*_culprits(graph, found[:half], call), *_culprits(graph, found[half:], call)]


def _tried(graph: Graph, found: Sequence[Group], call: Call) -> str:
    """What goes wrong when one member of each group is removed from a copy of the module, or ""."""
    if not found:
        return ""
    module = copied(graph.module)
    exact = {group.members[0] for group in found if group.exact}
    others = {group.members[0] for group in found} - exact
    try:
        if exact:
            hide(graph, module, exact)
            wanted = call(module)
            cut(module, graph.stage(exact))
            if problem := differs(wanted, call(module)):
                return f"without it the model computes something else: {problem}"
        if others:
            before = call(module)
            module = copied(graph.module)
            cut(module, graph.stage(exact | others))
            after = call(module)
            if any(after[name].shape != tensor.shape for name, tensor in before.items()):
                return "without it an output has another shape"
    except SourceError as error:
        return f"its size is written into the code: {error.what.removeprefix('the model fails on ')}"
    return ""


__all__ = ["Call", "Group", "differs", "groups", "hide", "left_alone", "module_of", "usable"]
