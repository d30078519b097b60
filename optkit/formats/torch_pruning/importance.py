"""How much each removable channel matters, as a number per channel.

Where scores of different layers are compared (`scope: global`), those that have a layer's own scale are divided by
their mean over the group.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optkit.errors import DataError, StepError
from optkit.formats.torch.call import TorchModel
from optkit.formats.torch.feeds import torch_dtype
from optkit.formats.torch.modes import evaluate
from optkit.formats.torch_pruning.graph import Graph
from optkit.formats.torch_pruning.groups import Group
from optkit.plugin import Samples, need

Batches = Callable[[], Iterator[tuple[Mapping[str, Any], Any]]]
"""A fresh pass over the fit data: inputs by name, and labels or None."""

Scores = dict[int, float]


@dataclass(frozen=True)
class Fit:
    """The data that importance is measured on. labelled: whether it comes with labels."""

    batches: Batches
    labelled: bool
    seed: int


def scores(kind: str, graph: Graph, found: Sequence[Group], model: TorchModel, fit: Fit | None) -> Scores:
    """A score per member of every group it can be said of; a member without one is left in the model.

    Raises StepError where it can be said of none, DataError for labels that no loss fits.
    """
    if kind == "taylor":
        assert fit is not None
        return _taylor(graph, found, model, fit)
    if kind == "activation":
        assert fit is not None
        raw = _activation(graph, found, model, fit)
    elif kind == "batch_norm":
        raw = _batch_norm(graph, found)
    else:
        raw = _magnitude(graph, found, 1 if kind == "l1" else 2)
    return _relative(raw, found)


def _relative(raw: Scores, found: Sequence[Group]) -> Scores:
    made: Scores = {}
    for group in found:
        members = [m for m in group.members if m in raw]
        mean = sum(raw[m] for m in members) / len(members) if members else 0.0
        made |= {m: raw[m] / mean if mean else 0.0 for m in members}
    return made


def _gather(graph: Graph, sites: Sequence[tuple[str, int]], of: Callable[[str, int], Any]) -> tuple[Scores, Scores]:
    """Sums and counts, per class, of a value per position. of: tensor and axis to that value, or None."""
    sums: dict[int, float] = {}
    counts: dict[int, float] = {}
    for name, number in sites:
        axis = graph.tensors[name][number]
        values = of(name, number)
        if axis is None or values is None:
            continue
        per, count = values
        for root, value in zip(graph.units.roots(axis).tolist(), per.tolist(), strict=True):
            sums[root] = sums.get(root, 0.0) + value
            counts[root] = counts.get(root, 0.0) + count
    return sums, counts


def _over(tensor: Any, axis: int) -> Any:
    """A tensor summed over all axes but one, in float64."""
    others = [n for n in range(tensor.dim()) if n != axis]
    return tensor.double().sum(others) if others else tensor.double()


def _magnitude(graph: Graph, found: Sequence[Group], power: int) -> Scores:
    """The mean absolute (l1) or root mean square (l2) weight over every matrix a channel lies in.

    Li et al., "Pruning Filters for Efficient ConvNets" (ICLR 2017), over all coupled layers.
    """
    parameters = dict(graph.module.named_parameters(remove_duplicate=False))

    def weights(name: str, axis: int) -> Any:
        tensor = parameters.get(name)
        if tensor is None or tensor.dim() < 2:
            return None
        return _over(tensor.detach().double().abs() ** power, axis), tensor.numel() // tensor.shape[axis]

    sums, counts = _gather(graph, _sites(found), weights)
    return {root: float((total / counts[root]) ** (1 / power)) for root, total in sums.items()}


def _sites(found: Sequence[Group]) -> list[tuple[str, int]]:
    return list(dict.fromkeys(site for group in found for site in group.sites))


def _batch_norm(graph: Graph, found: Sequence[Group]) -> Scores:
    """The mean absolute scale that batch norm gives a channel (Liu et al., "Network Slimming", ICCV 2017)."""
    sites = [site for site in _sites(found) if site in graph.scales]
    if not sites:
        raise StepError(
            "no channel that can be removed goes through a batch norm",
            subject="with.importance",
            hint="importance: l2, or taylor with data",
        )

    def scale(name: str, axis: int) -> Any:
        return graph.module.get_parameter(name).detach().double().abs(), 1

    sums, counts = _gather(graph, sites, scale)
    return {root: total / counts[root] for root, total in sums.items()}


# ------------------------------------------------------------------------------------------------ with data


def _activation(graph: Graph, found: Sequence[Group], model: TorchModel, fit: Fit) -> Scores:
    """What a channel adds to the layers that read it: the root mean square of its values times their weights' norm.

    As in Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (ICLR 2024), per channel.
    """
    read = {name: axis for name, axis in _sites(found) if (name, axis) in graph.reads}
    squares: dict[str, tuple[Any, int]] = {}
    with ExitStack() as stack:
        for name, axis in read.items():
            try:
                owner = graph.module.get_submodule(name.rpartition(".")[0])
            except AttributeError:
                continue
            hook = owner.register_forward_pre_hook(_record(graph, name, axis, squares))
            stack.callback(hook.remove)
        for feeds, _ in fit.batches():
            model.call(feeds)

    def contribution(name: str, axis: int) -> Any:
        if name not in squares:
            return None
        total, count = squares[name]
        weight = graph.module.get_parameter(name).detach()
        return (total / count) * _over(weight.double() ** 2, axis), 1

    sums, _ = _gather(graph, list(read.items()), contribution)
    if not sums:
        raise StepError(
            "the layers that read the channels are no modules with an input of their own",
            subject="with.importance",
            hint="importance: taylor, or l2",
        )
    return {root: float(total**0.5) for root, total in sums.items()}


def _record(graph: Graph, name: str, axis: int, squares: dict[str, tuple[Any, int]]) -> Callable[[Any, Any], None]:
    size = len(graph.tensors[name][axis])  # type: ignore[arg-type]
    torch = need("torch")
    weight = graph.module.get_parameter(name)
    spatial = weight.dim() - 2

    def hook(module: Any, given: Any) -> None:
        x = given[0] if given else None
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            return
        channel = x.dim() - 1 - spatial
        if channel < 0 or x.shape[channel] != size:
            return
        before = squares.get(name, (0.0, 0))
        squares[name] = before[0] + _over(x.detach().double() ** 2, channel), before[1] + x.numel() // size

    return hook


def _taylor(graph: Graph, found: Sequence[Group], model: TorchModel, fit: Fit) -> Scores:
    """The squared first-order change of the loss when nothing reads a channel, summed over the batches.

    Molchanov et al., "Importance Estimation for Neural Network Pruning" (CVPR 2019). With labels the loss is their
    cross-entropy. Without, it is the squared distance to the model's own outputs; its gradient is zero there, so what
    is measured is the change of the outputs themselves, each in units of its own spread, along random directions:
    for a direction v of independent standard normals E[(v . J d)^2] = |J d|^2, the distance that removal d causes.
    """
    torch = need("torch")
    generator = torch.Generator().manual_seed(fit.seed)
    sites = [site for site in _sites(found) if site in graph.reads]
    weights = {name: graph.module.get_parameter(name) for name, _ in sites}
    total: Scores = {}
    with _gradients(graph.module, weights.values()):
        for feeds, labels in fit.batches():
            outputs = _outputs(model, feeds)
            loss = _cross_entropy(outputs, labels, generator) if fit.labelled else _directions(outputs, generator)
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            by_name = dict(zip(weights, gradients, strict=True))

            def change(name: str, axis: int, by_name: Mapping[str, Any] = by_name) -> Any:
                gradient = by_name[name]
                return (
                    None if gradient is None else (_over(gradient.double() * weights[name].detach().double(), axis), 1)
                )

            for root, value in _gather(graph, sites, change)[0].items():
                total[root] = total.get(root, 0.0) + value * value
    return total


@contextmanager
def _gradients(module: Any, weights: Any) -> Iterator[None]:
    torch = need("torch")
    weights = list(weights)
    try:
        for weight in weights:
            weight.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for weight in weights:
            weight.requires_grad_(False)
        evaluate(module)


def _outputs(model: TorchModel, feeds: Mapping[str, Any]) -> dict[str, Any]:
    evaluate(model.source.module)  # nothing that the gradient goes through is of the call before
    values = model.module(*(feeds[name].clone() for name in model.input_names))
    assert model.output_names is not None
    return dict(zip(model.output_names, values, strict=True))


def _directions(outputs: Mapping[str, Any], generator: Any) -> Any:
    torch = need("torch")
    terms = []
    for tensor in outputs.values():
        if tensor.is_floating_point() and tensor.requires_grad:
            spread = tensor.detach().float().std() if tensor.numel() > 1 else tensor.detach().float().abs().mean()
            direction = torch.randn(tensor.shape, generator=generator)
            terms.append((tensor.float() * direction).sum() / spread.clamp(min=1e-30))
    if not terms:
        raise StepError(
            "no output of the model can be differentiated",
            subject="with.importance",
            hint="importance: l2 or activation",
        )
    return sum(terms)


def _cross_entropy(outputs: Mapping[str, Any], labels: NDArray[Any] | None, generator: Any) -> Any:
    torch = need("torch")
    wide = [t for t in outputs.values() if t.is_floating_point() and t.dim() == 2]
    fits = labels is not None and np.issubdtype(labels.dtype, np.integer) and labels.ndim == 1
    if labels is None or len(wide) != 1 or not fits or labels.min() < 0 or labels.max() >= wide[0].shape[1]:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in outputs.items())
        given = "missing" if labels is None else f"{labels.dtype} {labels.shape}"
        if labels is not None and fits:
            given += f" from {labels.min()} to {labels.max()}"
        what = f"the labels ({given}) are no class numbers for the one output of classes"
        if len(wide) > 1 and fits:
            what = "importance: taylor cannot tell which output has the classes that the labels are of"
        raise DataError(
            f"{what}; the outputs are {shapes}",
            subject="data",
            hint="name a dataset without its labels (no label:, but ignore: [their name]): taylor then takes the "
            "change of the outputs themselves",
        )
    each = torch.nn.functional.cross_entropy(
        wide[0][: len(labels)].float(), torch.from_numpy(labels).long(), reduction="none"
    )
    return (each * (torch.randint(0, 2, each.shape, generator=generator) * 2 - 1)).sum()


def fit_of(data: Samples, inputs: Sequence[Any], seed: int, batch: int, limit: int | None) -> Fit:
    """The fit data as torch tensors, with their labels as an array where there are any. limit: of samples."""
    torch = need("torch")

    def batches() -> Iterator[tuple[Mapping[str, Any], Any]]:
        seen = 0
        known = (label for _, label in data.iter_labelled()) if data.labelled else iter(())
        for feeds in data.feeds(batch):
            count = int(feeds[inputs[0].name].shape[0])
            yield (
                {s.name: torch.from_numpy(np.ascontiguousarray(feeds[s.name])).to(torch_dtype(s)) for s in inputs},
                _stacked(list(itertools.islice(known, count))) if data.labelled else None,
            )
            seen += count
            if limit is not None and seen >= limit:
                return

    return Fit(batches, data.labelled, seed)


def _stacked(labels: Sequence[Any]) -> Any:
    """Labels of a batch along axis 0; None where they are no array."""
    try:
        return None if any(isinstance(label, Mapping) for label in labels) else np.asarray(labels)
    except ValueError:  # lists of unequal length
        return None


__all__ = ["Fit", "Scores", "fit_of", "scores"]
