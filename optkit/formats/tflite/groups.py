"""Operators of a TFLite file that belong together: those on one input, and the same one in each signature's graph.

The signatures of a file compute on the same weights, under other tensor names. A weight's buffer tells which operators
are one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from optkit.formats import budget
from optkit.formats.tflite import look as tflite_look

Place = tuple[int, int]
"""Graph, and tensor or operator in it."""


def joined(places: Mapping[int, Collection[Place]]) -> list[tuple[int, ...]]:
    """Buffers, by the tensors that they meet, in sets that share no tensor with another set."""
    sets: list[tuple[set[int], set[Place]]] = []
    for buffer, found in places.items():
        at = set(found)
        met = [pair for pair in sets if pair[1] & at]
        sets = [pair for pair in sets if not pair[1] & at]
        sets.append(({buffer}.union(*(b for b, _ in met)), at.union(*(p for _, p in met))))
    return [tuple(sorted(buffers)) for buffers, _ in sets]


def groups(model: Any, heavy: Callable[[str], bool], apart: Callable[[str], bool]) -> list[budget.Group]:
    """Groups of operators by scope for a budget, in every graph alike; see `budget.grouped`.

    heavy: whether an operator of this name is one that matters. apart: whether one of this scope stays out.
    """
    names = tflite_look.operator_names(model)
    weights: dict[int, set[Place]] = {}
    found: list[list[tuple[str, bool, int, Place]]] = []
    for number, graph in enumerate(model.subgraphs):
        listed: list[tuple[str, bool, int, Place]] = []
        for op in graph.operators or ():
            scope = tflite_look.scope(op, graph)
            if not scope or apart(scope):
                continue
            matters, at = heavy(names[op.opcodeIndex]), (number, next(iter(op.inputs), -1))
            buffer = _buffer(model, op, graph) if matters else -1
            if buffer != -1:
                weights.setdefault(buffer, set()).add(at)
            listed.append((scope, matters, buffer, at))
        start = next((i for i, one in enumerate(listed) if one[1]), 0)
        found.append([*listed[start : start + 1], *listed[:start], *listed[start + 1 :]])  # each graph's own first ones
    sets = {buffer: number for number, buffers in enumerate(joined(weights)) for buffer in buffers}
    return budget.grouped([
        (scope, matters, str(sets[buffer]) if buffer != -1 else f"input {at[1]}")
        for listed in found for scope, matters, buffer, at in listed
    ])  # fmt: skip


def siblings(model: Any, chosen: Callable[[str], bool]) -> tuple[str, ...]:
    """The scopes of operators that are not chosen, though the same one of another signature is."""
    by_weight: dict[int, list[str]] = {}
    for _, op, graph in tflite_look.operations(model):
        if (buffer := _buffer(model, op, graph)) != -1:
            by_weight.setdefault(buffer, []).append(tflite_look.scope(op, graph))
    found = [scope for scopes in by_weight.values() if any(map(chosen, scopes)) for scope in scopes]
    return tuple(dict.fromkeys(scope for scope in found if not chosen(scope)))


def _buffer(model: Any, op: Any, graph: Any) -> int:
    weight = tflite_look.weight(model, op, graph)
    return -1 if weight is None else int(weight.buffer)
