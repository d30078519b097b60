"""Structured pruning of a torch model: channels, heads and hidden units physically removed, and proven to be gone."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optkit.errors import StepError, did_you_mean
from optkit.formats.torch_call import TorchModel
from optkit.formats.torch_pruning_graph import Graph, trace
from optkit.formats.torch_pruning_groups import Group, differs, groups, hide, left_alone, usable
from optkit.formats.torch_pruning_importance import Fit, scores
from optkit.formats.torch_pruning_select import Rules, channels, least, order, parameters, rounded, shortest
from optkit.formats.torch_structure import Stage, cut
from optkit.plugin import need

NAMED = 4
"""How many layers an error names."""


@dataclass(frozen=True)
class Target:
    """What is to be removed: a share (0 to 1) of "channels", "macs" or "parameters"."""

    kind: str
    share: float


@dataclass(frozen=True)
class Pruned:
    """What was done to the module, in place. stages: the cuts. notes: what is worth reporting."""

    stages: list[Stage]
    notes: dict[str, Any]


def matched(module: Any, patterns: Sequence[str], option: str) -> list[str]:
    """The paths of the modules that globs name. Raises StepError for a pattern that matches nothing."""
    paths = [path for path, _ in module.named_modules() if path]
    found: dict[str, None] = {}
    for pattern in patterns:
        named = [path for path in paths if fnmatch.fnmatchcase(path, pattern)]
        if not named:
            raise StepError(
                f"no layer is called {pattern!r}", subject=f"with.{option}", hint=did_you_mean(pattern, paths)
            )
        found |= dict.fromkeys(named)
    return list(found)


def macs(model: TorchModel, feeds: Mapping[str, Any]) -> int:
    """Multiply-accumulates of one call, as torch.utils.flop_counter counts them: matrix products and convolutions.

    Attention and encoder layers are computed in their plain forms meanwhile: the counter does not know the fused ones.
    """
    torch = need("torch")
    counter = need("torch.utils.flop_counter", "torch").FlopCounterMode(display=False)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]), counter:
            model.call(feeds)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2


def parameter_count(module: Any) -> int:
    """How many numbers a module's parameters hold; tied ones count once."""
    return sum(p.numel() for p in module.parameters())


def prune(
    model: TorchModel,
    feeds: Mapping[str, Any],
    target: Target,
    rules: Rules,
    *,
    importance: str,
    rounds: int = 1,
    keep: Sequence[str] = (),
    fit: Fit | None = None,
    progress: Callable[[str, float | None], None] = lambda text, fraction: None,
) -> Pruned:
    """Remove channels from a model until the target is met, at most one channel (or head, or multiple) past it.

    feeds: example inputs, at whose sizes operations are counted. Raises StepError where nothing can be removed, where
    the target cannot be met, and where the smaller model does not compute what it should.
    """
    kept = matched(model.source.module, keep, "keep")
    progress("trace", None)
    graph = trace(model, feeds, kept)
    call = _caller(model, feeds)
    progress("try what can be removed", None)
    found = usable(graph, groups(graph), call)
    if not found:
        raise StepError(
            "no channel of the model can be removed" + _because(graph, []),
            subject="with.keep" if keep else "model",
            hint="how: unstructured sets single weights to zero in any model",
        )
    work = _Work(model, feeds, graph, call, target, rules, found, fit, importance)
    for number in range(1, rounds + 1):
        progress(f"rank, round {number}" if rounds > 1 else "rank", number / (rounds + 1))
        work.round(target.share * number / rounds, last=number == rounds)
    return Pruned(work.stages, work.notes())


def _caller(model: TorchModel, feeds: Mapping[str, Any]) -> Callable[[Any], Mapping[str, Any]]:
    def call(module: Any) -> Mapping[str, Any]:
        return TorchModel(replace(model.source, module=module), model.inputs, model.output_names).call(feeds)

    return call


class _Work:
    """The state of a pruning between its rounds."""

    def __init__(
        self, model: TorchModel, feeds: Mapping[str, Any], graph: Graph, call: Callable[[Any], Mapping[str, Any]],
        target: Target, rules: Rules, found: list[Group], fit: Fit | None, importance: str,
    ) -> None:  # fmt: skip
        self.model, self.graph, self.call, self.target, self.rules = model, graph, call, target, rules
        self.found, self.fit, self.importance = found, fit, importance
        self.first = {group.key: group for group in found}
        self.unscored: list[Group] = []
        self.stages: list[Stage] = []
        # What the graph does not know of (a recurrent layer, say) is part of the whole, and stays.
        self.rest = {"macs": macs(model, feeds) - graph.macs(set()),
                     "parameters": parameter_count(graph.module) - parameters(graph, frozenset())}  # fmt: skip
        self.before = {"macs": macs(model, feeds), "parameters": parameter_count(graph.module),
                       "channels": channels(found, frozenset(m for g in found for m in g.members))}  # fmt: skip
        self.reached = 0.0

    def round(self, share: float, *, last: bool) -> None:
        """Rank what is left, and remove until `share` of what there was at first is gone."""
        ranked = scores(self.importance, self.graph, self.found, self.model, self.fit)
        self.unscored = [g for g in self.found if not any(m in ranked for m in g.members)]
        if self.importance == "taylor" and not self.rules.per_layer:
            ranked = self._per_cost(ranked)
        if self.target.kind == "channels":
            able = [g for g in self.found if g not in self.unscored]
            self.before["channels"] = sum(len(self.first[g.key].members) * g.width for g in able)
        sizes = {key: len(group.members) for key, group in self.first.items()}
        if self.target.kind == "channels" and self.rules.per_layer:
            removed = self._same_share(ranked, share, sizes, last=last)
        else:
            ordered = order(self.found, ranked, sizes, self.rules)
            choice = shortest(self.found, ordered, self.rules, share, self._gone)
            if choice.reached < share - 1e-9 and last:
                raise self._short(choice.reached, sizes)
            removed = choice.removed
        if removed:
            self._remove(set(removed))
        self.reached = self._gone(frozenset())
        if last and not self.stages:
            raise StepError(
                f"nothing was removed: {self.target.share:.3g} of {self.before['channels']} channels in "
                f"{len(self.found)} groups is less than one of any",
                subject="with",
                hint="ask for more, or scope: global" + ("" if self.rules.round_to == 1 else ", or a smaller round_to"),
            )

    def _per_cost(self, ranked: Mapping[int, float]) -> dict[int, float]:
        """A loss in ratio to what its removal gains of the target: what is to go must go where it costs least."""
        now, made = self._gone(frozenset()), dict[int, float]()
        for group in self.found:
            gain = self._gone(frozenset(group.members[:1])) - now
            made |= {m: ranked[m] / max(gain, 1e-12) for m in group.members if m in ranked}
        return made

    def _same_share(self, ranked: Mapping[int, float], share: float, sizes: Mapping[Any, int], *, last: bool) -> Any:
        """The lowest of every group, so that each has lost `share` of its first size, rounded down."""
        chosen: list[int] = []
        for group in self.found:
            size = sizes[group.key]
            gone = size - len(group.members)
            count = int(size * share + 1e-9) - gone
            spare = len(group.members) - least(group, size, self.rules)
            if count > spare and last and group not in self.unscored:
                raise StepError(
                    f"{group.name} would keep {len(group.members) - count} of {size} "
                    f"{'heads or blocks' if group.width > 1 else 'channels'}, fewer than the "
                    f"{least(group, size, self.rules)} that have to stay",
                    subject="with.ratio",
                    hint="a smaller ratio, a smaller keep_at_least, or that layer under keep",
                )
            members = sorted((m for m in group.members if m in ranked), key=lambda m: (ranked[m], m))
            chosen += members[: max(0, min(count, spare))]
        return rounded(self.found, chosen, self.rules.round_to)

    def _gone(self, removed: frozenset[int]) -> float:
        """The share of what there was at first that is gone once these classes are too."""
        kind = self.target.kind
        if kind == "macs":
            return 1 - (self.rest["macs"] + self.graph.macs(set(removed))) / max(1, self.before["macs"])
        if kind == "parameters":
            return 1 - (self.rest["parameters"] + parameters(self.graph, removed)) / self.before["parameters"]
        able = [g for g in self.found if g not in self.unscored]
        left = channels(able, frozenset(m for g in able for m in g.members)) - channels(able, removed)
        return 1 - left / self.before["channels"]

    def _remove(self, removed: set[int]) -> None:
        """Cut the module, and compare it with itself when nothing reads what goes."""
        exact = removed & {m for g in self.found if g.exact for m in g.members}
        for part, proven in ((exact, True), (removed - exact, False)):
            if not part:
                continue
            module, stage = self.graph.module, self.graph.stage(part)
            wanted = None
            if proven:
                hide(self.graph, module, part)
                wanted = self.call(module)
            cut(module, stage)
            problem = differs(wanted, self.call(module)) if wanted is not None else ""
            if problem:
                raise StepError(
                    "without the channels the model computes something else than when nothing reads them: " + problem,
                    subject="model",
                    hint=f"put layers under keep, one of {', '.join(self._named(part))}",
                )
            self.graph.shrink(part)
            self.stages.append(stage)
        self.found = [
            replace(group, members=tuple(m for m in group.members if m not in removed)) for group in self.found
        ]

    def _named(self, removed: set[int]) -> list[str]:
        names = [g.name for g in self.found if removed & set(g.members)]
        return [*names[:NAMED], *(["..."] if len(names) > NAMED else [])]

    def _short(self, reached: float, sizes: Mapping[Any, int]) -> StepError:
        at_least = [g for g in self.found if len(g.members) and g not in self.unscored]
        return StepError(
            f"of the {self.target.kind} {reached:.1%} can be removed, not {self.target.share:.1%}"
            + _because(self.graph, self.unscored)
            + "; at the least they may keep would be "
            + f"{', '.join(g.name for g in at_least[:NAMED])}{', ...' if len(at_least) > NAMED else ''}",
            subject="with",
            hint="ask for less, or a smaller keep_at_least or round_to",
        )

    def notes(self) -> dict[str, Any]:
        """What was removed, group by group, and what was not, and why."""
        layers = []
        for group in self.found:
            size = len(self.first[group.key].members)
            layers.append({
                "layer": group.name, "with": list(group.layers[1:]),
                "channels": [size * group.width, len(group.members) * group.width],
                **({"in_blocks_of": group.width} if group.width > 1 else {}),
                **({} if group.exact else {"normalised": True}),
            })  # fmt: skip
        left = left_alone(self.graph) + [
            {"layer": g.name, "why": f"{self.importance} says nothing of it"} for g in self.unscored
        ]
        return {"layers": layers, "left": left, "reached": round(self.reached, 6)}


def _because(graph: Graph, unscored: Sequence[Group]) -> str:
    """The layers that stand in the way, for an error."""
    left = left_alone(graph) + [{"layer": g.name, "why": "the importance says nothing of it"} for g in unscored]
    if not left:
        return ""
    shown = "; ".join(f"{item['layer']}: {item['why']}" for item in left[:NAMED])
    return f": {shown}" + (f" and {len(left) - NAMED} more layers" if len(left) > NAMED else "")


__all__ = ["Pruned", "Target", "macs", "matched", "parameter_count", "prune"]
