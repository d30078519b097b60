"""What each operator of a torch model gives, read and replaced in its exported graph.

The names are those of torch.export's graph, which the converters that start from it keep: "relu_1", "getitem_3".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from optkit.artifact import Artifact, Dim
from optkit.errors import StepError
from optkit.formats.torch.export import export
from optkit.formats.torch.files import WRAPPED, quiet
from optkit.formats.torch.inside import as_array, fed, threads_set
from optkit.formats.torch.model import TorchModel, load
from optkit.plugin import Point, need

if TYPE_CHECKING:
    from optkit.plugin import Tensors


class TracedInside:
    """An exported model; see `optkit.plugin.Inside`."""

    replaces = True

    def __init__(self, model: TorchModel, dims: Mapping[str, Dim]) -> None:
        torch = need("torch")
        if model.exported is not None or model.scripted:
            raise StepError("only a torch module is exported to be looked into", subject="model")
        self._model = model
        program = export(model, model.inputs, dims)
        with quiet(), torch.no_grad():
            self._program = program.run_decompositions()
        self._weights, self._inputs = {}, []
        signature = self._program.graph_signature
        held = {**self._program.state_dict, **self._program.constants}
        for spec in signature.input_specs:
            if spec.kind.name == "USER_INPUT":
                self._inputs.append(spec.arg.name)
            else:
                self._weights[spec.arg.name] = held[spec.target]
        self._outputs = dict(zip(model.output_names or (), signature.user_outputs, strict=False))
        self.points = list(self._look())

    def _look(self) -> Iterator[Point]:
        before: dict[str, tuple[str, ...]] = dict(
            zip(self._inputs, ((n,) for n in self._model.input_names), strict=True)
        )
        for node in self._program.graph.nodes:
            if node.op != "call_function":
                continue
            read = [one for one in node.all_input_nodes if one.name in before]
            if not read:
                continue
            inputs = tuple(dict.fromkeys(name for one in read for name in before[one.name]))
            before[node.name] = inputs
            given = node.meta.get("val")
            if hasattr(given, "is_floating_point") and given.is_floating_point():
                before[node.name] = (node.name,)
                weighs = any(one.name in self._weights for one in node.all_input_nodes)
                operator = str(node.target).removesuffix(".default")
                yield Point(node.name, operator, node.name, _module(node), inputs, (f"{node.name}:0",), weighs)

    def values(self, names: Sequence[str], tensors: Tensors, given: Tensors | None = None) -> Tensors:
        """The values of operators by name; see `optkit.plugin.Inside`."""
        torch = need("torch")
        put = given or {}
        inner = {self._outputs.get(name, name) for name in names}
        kept: dict[str, Any] = {}

        class Reading(torch.fx.Interpreter):  # type: ignore[misc, name-defined]
            def run_node(self, n: Any) -> Any:
                result = super().run_node(n)
                if n.name in inner and isinstance(result, torch.Tensor):
                    kept[n.name] = as_array(result)
                if n.name in put and n.op == "call_function":
                    return torch.from_numpy(put[n.name].copy()).to(result.dtype).reshape(result.shape)
                return result

        feeds = fed(self._model, tensors, put)
        arguments = [
            self._weights[node.name] if node.name in self._weights
            else feeds[self._model.input_names[self._inputs.index(node.name)]]
            for node in self._program.graph.nodes if node.op == "placeholder"
        ]  # fmt: skip
        with torch.no_grad():
            Reading(self._program.graph_module).run(*arguments)
        return {n: tensors[n] if n in tensors else kept[self._outputs.get(n, n)] for n in names}


def _module(node: Any) -> str:
    """The path of the module an operator belongs to: "encoder.layer.0"."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    return path.removeprefix(WRAPPED).removeprefix(".")


@contextmanager
def inside(artifact: Artifact, threads: int = 1) -> Iterator[TracedInside]:
    """The operators of a torch model, exported over the ranges of dims that `Artifact.meta` holds under "dims"."""
    with threads_set(threads):
        yield TracedInside(load(artifact.path), {k: Dim(**d) for k, d in artifact.meta.get("dims", {}).items()})
