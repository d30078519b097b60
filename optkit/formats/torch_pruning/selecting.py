"""Which channels go: the least important first, until a target is met."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optkit.formats.torch_pruning.graph import Graph
from optkit.formats.torch_pruning.groups import Group


@dataclass(frozen=True)
class Rules:
    """What holds whatever the scores say.

    per_layer: rank within each group in place of over all of them. floor: of a group's first size, what stays at
    least. round_to: the sizes that are left are multiples of it, where the first size was one or more.
    """

    per_layer: bool
    floor: float
    round_to: int


@dataclass(frozen=True)
class Choice:
    """removed: the classes that go. reached: the target's value with them gone."""

    removed: frozenset[int]
    reached: float


def least(group: Group, size: int, rules: Rules) -> int:
    """How many members of a group stay at least. size: how many it had at first."""
    return max(1, math.ceil(size * rules.floor - 1e-9))


def order(found: Sequence[Group], scores: Mapping[int, float], sizes: Mapping[Any, int], rules: Rules) -> list[int]:
    """Members in the order in which they may go, without those that have to stay."""
    keyed: list[tuple[float, int]] = []
    for group in found:
        ranked = sorted((m for m in group.members if m in scores), key=lambda m: (scores[m], m))
        spare = max(0, len(group.members) - least(group, sizes[group.key], rules))
        for rank, member in enumerate(ranked[:spare]):
            # Within layers the rank decides: every layer has lost the same share at any time.
            keyed.append(((rank + 1) / len(group.members) if rules.per_layer else scores[member], member))
    return [member for _, member in sorted(keyed)]


def rounded(found: Sequence[Group], removed: Sequence[int], round_to: int) -> frozenset[int]:
    """The first of `removed`, group by group, that leave every group a multiple of `round_to` channels."""
    if round_to == 1:
        return frozenset(removed)
    home = {member: group for group in found for member in group.members}
    gone: dict[int, list[int]] = defaultdict(list)
    for member in removed:
        gone[id(home[member])].append(member)
    made: set[int] = set()
    for group in found:
        mine = gone.get(id(group), [])
        count = len(mine)
        while count and (len(group.members) - count) * group.width % round_to:
            count -= 1
        made |= set(mine[:count])
    return frozenset(made)


def shortest(
    found: Sequence[Group],
    ordered: Sequence[int],
    rules: Rules,
    target: float,
    value: Callable[[frozenset[int]], float],
) -> Choice:
    """The shortest run from the start of `ordered` whose removal brings `value` to `target`, or else all of it.

    value: classes that are removed to a number that does not fall as more go.
    """
    low, high = 0, len(ordered)

    def at(count: int) -> Choice:
        removed = rounded(found, ordered[:count], rules.round_to)
        return Choice(removed, value(removed))

    whole = at(high)
    if whole.reached < target - 1e-9:
        return whole
    while low < high:
        middle = (low + high) // 2
        if at(middle).reached >= target - 1e-9:
            high = middle
        else:
            low = middle + 1
    return at(high)


def channels(found: Sequence[Group], removed: frozenset[int]) -> int:
    """How many channels are in `removed`; a head counts all of its own."""
    return sum(group.width for group in found for member in group.members if member in removed)


def parameters(graph: Graph, removed: frozenset[int]) -> int:
    """How many numbers are left in the parameters the graph knows."""
    named = {name for name, _ in graph.module.named_parameters(remove_duplicate=False)}
    total = 0
    shapes = {name: tuple(graph.module.get_parameter(name).shape) for name in graph.tensors if name in named}
    for name, shape in shapes.items():
        sizes = [
            size if axis is None or not removed else len(graph.kept(axis, set(removed)))
            for size, axis in zip(shape, graph.tensors[name], strict=True)
        ]
        total += int(np.prod(sizes, dtype=np.int64))
    return total


__all__ = ["Choice", "Rules", "channels", "least", "order", "parameters", "rounded", "shortest"]
