"""A torch model's channels as a dependency graph: which can be removed, with what, and which not, and why.

The exported program is walked operator by operator; each says how the positions of its inputs' axes become positions of
its output's (`torch_pruning_rules`). What no rule describes is frozen, so that a gap in the rules costs size, never
correctness. The idea of grouping coupled channels is that of Fang et al., "DepGraph: Towards Any Structural Pruning"
(CVPR 2023); here it is worked out on tensor positions in place of module types.
"""

from __future__ import annotations

import operator
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.errors import StepError
from optkit.formats.torch.files import WRAPPED, quiet
from optkit.formats.torch.guards import quiet_failure
from optkit.formats.torch.modes import evaluate
from optkit.formats.torch.structure import Stage
from optkit.formats.torch_pruning import rules
from optkit.formats.torch_pruning.call import flat
from optkit.formats.torch_pruning.units import Axes, Axis, Follows, Product, Units
from optkit.plugin import need

PASSES = 8
"""How often the graph is walked at most; each walk joins what the one before froze or joined further on."""


@dataclass
class Graph:
    """What the walk has found. Names of tensors and modules are those of the user's own module.

    tensors: parameter or buffer to the units of its axes. aliases: every name to the first of the same tensor.
    reads: (tensor, axis) of weights whose channels are summed over: zeros there hide what feeds them.
    uses: how many operators read a tensor.
    """

    module: Any
    program: Any
    units: Units = field(default_factory=Units)
    tensors: dict[str, Axes] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    values: dict[Any, Any] = field(default_factory=dict)
    names: dict[Any, str] = field(default_factory=dict)
    reads: set[tuple[str, int]] = field(default_factory=set)
    scales: set[tuple[str, int]] = field(default_factory=set)
    uses: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    follows: list[Follows] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    feeds: list[tuple[Any, Any, str, int]] = field(default_factory=list)

    def owner(self, node: Any) -> str:
        """The path of the module whose forward an operator is in."""
        stack = node.meta.get("nn_module_stack") or {}
        path = next(reversed(stack.values()))[0] if stack else ""
        return own_name(str(path))

    def attribute(self, node: Any, name: str, axis: Axis, divisor: int = 1) -> None:
        """The operator's module has this attribute; it follows the axis, if it says the axis's size now."""
        path = self.owner(node)
        try:
            value = getattr(self.module.get_submodule(path), name, None)
        except AttributeError:
            return
        if axis is None or isinstance(value, bool):
            return
        in_tuple = isinstance(value, tuple | list) and len(value) == 1
        number: Any = value[0] if isinstance(value, tuple | list) and in_tuple else value
        if isinstance(number, int) and number == len(axis) // divisor:
            self.follows.append(Follows(path, name, axis, divisor, in_tuple))

    def literal(self, node: Any, axis: Axis, *, heads: bool = False) -> None:
        """An operator was given the axis's size as a number; attributes of its module that hold it follow the axis."""
        if axis is None:
            return
        path = self.owner(node)
        try:
            held = vars(self.module.get_submodule(path))
        except AttributeError:
            return
        for name, value in held.items():
            if type(value) is int and value == len(axis) and re.search(SIZES, name):
                if heads and re.search(r"dim|size", name):
                    continue
                self.follows.append(Follows(path, name, axis))

    def kept(self, axis: NDArray[np.int64], removed: set[int]) -> list[int]:
        """Positions of an axis whose class is not removed."""
        return [i for i, root in enumerate(self.units.roots(axis).tolist()) if root not in removed]

    def stage(self, removed: set[int]) -> Stage:
        """The cut that removes these classes."""
        made = Stage()
        for name, axes in self.tensors.items():
            for number, axis in enumerate(axes):
                if axis is not None:
                    kept = self.kept(axis, removed)
                    if len(kept) < len(axis):
                        made.tensors.setdefault(name, {})[number] = kept
        for name, first in self.aliases.items():
            if first in made.tensors:
                made.tensors[name] = made.tensors[first]
        for item in self.follows:
            kept = self.kept(item.axis, removed)
            if len(kept) < len(item.axis):
                size = len(kept) // item.divisor
                made.attributes.setdefault(item.path, {})[item.name] = [size] if item.in_tuple else size
        return made

    def shrink(self, removed: set[int]) -> None:
        """Forget the units of removed classes, once the module has been cut."""

        def less(axis: Axis) -> Axis:
            return None if axis is None else axis[self.kept(axis, removed)]

        self.tensors = {name: tuple(less(axis) for axis in axes) for name, axes in self.tensors.items()}
        self.follows = [
            Follows(f.path, f.name, f.axis[self.kept(f.axis, removed)], f.divisor, f.in_tuple) for f in self.follows
        ]
        self.products = [Product(tuple(a[self.kept(a, removed)] for a in p.axes), p.times) for p in self.products]

    def macs(self, removed: set[int]) -> int:
        """Multiply-accumulates of a call at the traced sizes, once these classes are gone."""
        total = 0
        for product in self.products:
            count = product.times
            for axis in product.axes:
                count *= len(self.kept(axis, removed)) if removed else len(axis)
            total += count
        return total


SIZES = r"head|dim|size|channel|feature|width|split|hidden|group|inner|embed|planes"
"""What the attributes are called that hold a number of channels or heads."""


def own_name(name: str) -> str:
    """A name in the exported program as the user's module has it."""
    return name.removeprefix(WRAPPED).removeprefix(".")


def trace(model: Any, feeds: Mapping[str, Any], keep: Sequence[str] = ()) -> Graph:
    """The dependency graph of a TorchModel, traced at the sizes of `feeds`.

    keep: modules (their paths) that have to stay as they are. Raises StepError where torch.export does not follow.
    """
    torch = need("torch")
    evaluate(model.source.module)  # what it kept would be constants to the export
    try:
        with quiet(), quiet_failure(), torch.no_grad():
            program = torch.export.export(model.module, tuple(feeds.values()), strict=False)
    except Exception as error:  # torch raises many kinds, most of them private
        raise StepError(
            f"torch.export cannot follow the model: {str(error).strip().splitlines()[0]}",
            subject="model",
            details=str(error),
            hint="how: unstructured needs no tracing",
        ) from error
    program.graph.eliminate_dead_code()  # what nothing reads, such as the mean of attention weights, ties nothing
    graph = Graph(model.source.module, program)
    _tensors(graph, keep)
    before = -1
    for _ in range(PASSES):
        if graph.units.changes == before:
            break
        before = graph.units.changes
        _walk(graph)
    return graph


def _tensors(graph: Graph, keep: Sequence[str]) -> None:
    """Units for every axis of every parameter and buffer."""
    signature = graph.program.graph_signature
    first: dict[int, str] = {}
    held = {**dict(graph.module.named_parameters(remove_duplicate=False)),
            **dict(graph.module.named_buffers(remove_duplicate=False))}  # fmt: skip
    for name, tensor in held.items():
        graph.aliases[name] = first.setdefault(id(tensor), name)
    for spec in signature.input_specs:
        name = own_name(str(spec.target)) if spec.target is not None else ""
        if name not in held:
            continue
        name = graph.aliases[name]
        graph.names[spec.arg.name] = name
        if name not in graph.tensors:
            shape = held[name].shape
            graph.tensors[name] = tuple(graph.units.make(size) if size > 1 else None for size in shape)
    for alias, name in graph.aliases.items():
        module = alias.rpartition(".")[0]
        for path in keep:
            if name in graph.tensors and (module == path or module.startswith(path + ".") or not path):
                for axis in graph.tensors[name]:
                    graph.units.freeze(axis, f"{path} is to be kept")


def _walk(graph: Graph) -> None:
    graph.values, graph.follows, graph.products, graph.feeds = {}, [], [], []
    graph.uses = defaultdict(int)
    for node in graph.program.graph.nodes:
        if node.op == "placeholder":
            value = node.meta.get("val")
            name = graph.names.get(node.name)
            shape = getattr(value, "shape", ())
            graph.values[node] = graph.tensors[name] if name else (None,) * len(shape)
            if name:
                graph.uses[name] += len(node.users)
        elif node.op == "call_function" and node.target is operator.getitem:
            graph.values[node] = graph.values[node.args[0]][node.args[1]]
        elif node.op == "call_function":
            graph.values[node] = rules.apply(graph, node)
        elif node.op == "output":
            _freeze_outputs(graph, node)
        elif node.op != "get_attr":
            raise AssertionError(node.op)


def _freeze_outputs(graph: Graph, node: Any) -> None:
    for result in node.all_input_nodes:
        for axis in flat(graph.values.get(result, ())):
            graph.units.freeze(axis, "it is an output of the model")


__all__ = ["Follows", "Graph", "Product", "own_name", "trace"]
