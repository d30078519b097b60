"""Structured pruning of a torch model: channels, heads and hidden units physically removed, and proven to be gone."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from optkit.errors import StepError, did_you_mean
from optkit.formats.torch import attention as torch_attention
from optkit.formats.torch.call import TorchModel
from optkit.formats.torch.structure import Stage, cut
from optkit.formats.torch_pruning.graph import Graph, trace
from optkit.formats.torch_pruning.groups import Group, copied, differs, groups, hide, left_alone, usable
from optkit.formats.torch_pruning.importance import Fit, scores
from optkit.formats.torch_pruning.latency import Search, search
from optkit.formats.torch_pruning.selecting import Rules, channels, least, order, parameters, rounded, shortest
from optkit.plugin import need

if TYPE_CHECKING:
    from optkit.plugin import Ratio

Measure = Callable[[Any, list[Stage], float, float], "Ratio"]
"""A smaller module, all its cuts, the ratio in doubt and seconds, to how many times as fast it is as the first."""

NAMED = 4
"""How many layers an error names."""


@dataclass(frozen=True)
class Target:
    """What is to be removed: a share (0 to 1) of "channels", "macs", "parameters" or "latency"."""

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
    measure: Measure | None = None,
    recover: Callable[[int, list[Stage]], None] | None = None,
    progress: Callable[[str, float | None], None] = lambda text, fraction: None,
) -> Pruned:
    """Remove channels from a model until the target is met, at most one channel (or head, or multiple) past it.

    feeds: example inputs, at whose sizes operations are counted. measure: for a target of latency. recover: is called
    between rounds, with the round's number and all cuts so far, and may train the module. Raises StepError where
    nothing can be removed, where the target cannot be met, and where the smaller model does not compute what it should.
    """
    written_out = torch_attention.write_out(model.source.module, lambda: model.call(feeds))
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
            hint=("keep fewer layers, or " if keep else "")
            + "how: unstructured, which sets single weights to zero in any model",
        )
    work = _Work(model, feeds, graph, call, target, rules, found, fit, importance, measure, progress)
    if written_out:
        work.stages.append(Stage(written_out=written_out))
    for number in range(1, rounds + 1):
        progress(f"rank, round {number}" if rounds > 1 else "rank", (number - 1) / rounds)
        work.round(target.share * number / rounds, last=number == rounds)
        if recover is not None and number < rounds:
            recover(number, work.stages)
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
        measure: Measure | None, progress: Callable[[str, float | None], None],
    ) -> None:  # fmt: skip
        self.model, self.graph, self.call, self.target, self.rules = model, graph, call, target, rules
        self.found, self.fit, self.importance = found, fit, importance
        self.measure, self.progress = measure, progress
        self.searched: Search | None = None
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
        elif self.target.kind == "latency":
            removed = self._fast_enough(order(self.found, ranked, sizes, self.rules), share, sizes, last=last)
        else:
            ordered = order(self.found, ranked, sizes, self.rules)
            choice = shortest(self.found, ordered, self.rules, share, self._gone)
            if choice.reached < share - 1e-9 and last:
                what = f"at most {choice.reached:.1%} of the {self.target.kind} can be removed, not {share:.1%}"
                raise self._short(what, sizes)
            removed = choice.removed
        if removed:
            self._remove(set(removed))
        self.reached = self._gone(frozenset())
        if last and not any(stage.tensors for stage in self.stages):
            raise StepError(
                f"nothing was removed: {self.target.share:.3g} of {self.before['channels']} channels in "
                f"{len(self.found)} groups is less than one of any",
                subject="with",
                hint="ask for more, or scope: global" + ("" if self.rules.round_to == 1 else ", or a smaller round_to"),
            )

    def _fast_enough(self, ordered: list[int], share: float, sizes: Mapping[Any, int], *, last: bool) -> frozenset[int]:
        """The first of `ordered` without which `share` of the latency is gone, measured."""
        assert self.measure is not None
        measured = self.measure
        count = 0

        def ratio_without(removed: frozenset[int], seconds: float) -> Ratio:
            nonlocal count
            count += 1
            self.progress(f"convert and race candidate {count}, {self._gone(removed):.0%} of the multiply-accumulates "
                          "gone", None)  # fmt: skip
            module, stage = copied(self.graph.module), self.graph.stage(set(removed))
            cut(module, stage)
            return measured(module, [*self.stages, stage], 1 / (1 - share), seconds)

        found = search(ordered, 1 - share, lambda part: rounded(self.found, part, self.rules.round_to), self._gone,
                       ratio_without, sure=last)  # fmt: skip
        self.searched = found
        if found.met is not None:
            return found.met.removed
        if last:
            raise self._short(
                f"the latency comes down to {found.best.share()} of the unpruned model's, not to {1 - share:.1%}; "
                f"{found.best.gone:.0%} of the multiply-accumulates are gone then", sizes,
            )  # fmt: skip
        return found.tried[0].removed

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
        if kind in ("macs", "latency"):
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

    def _short(self, what: str, sizes: Mapping[Any, int]) -> StepError:
        rest = [g.name for g in self.found if len(g.members) and g not in self.unscored]
        shown = ", ".join(rest[:NAMED]) + (", ..." if len(rest) > NAMED else "")
        smaller = [f"a smaller {name}" for name, holds in (("keep_at_least", self.rules.floor > 0),
                                                           ("round_to", self.rules.round_to > 1)) if holds]  # fmt: skip
        return StepError(
            f"{what}{_because(self.graph, self.unscored)}; down to the least that has to stay: {shown}",
            subject="with",
            hint=" or ".join(["ask for less", *smaller]),
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
        found = {"layers": layers, "left": left, "reached": round(self.reached, 6)}
        if self.searched is None or self.searched.met is None:
            return found
        met = self.searched.met.to_json()
        tried = [probe.to_json() for probe in self.searched.tried]
        return {**found, "reached": round(1 - met["latency"], 6), "latency": {**met, "tried": tried}}


def _because(graph: Graph, unscored: Sequence[Group]) -> str:
    """The layers that stand in the way, for an error."""
    left = left_alone(graph) + [{"layer": g.name, "why": "the importance says nothing of it"} for g in unscored]
    if not left:
        return ""
    shown = "; ".join(f"{item['layer']}: {item['why']}" for item in left[:NAMED])
    return f": {shown}" + (f" and {len(left) - NAMED} more layers" if len(left) > NAMED else "")


__all__ = ["Pruned", "Target", "macs", "matched", "parameter_count", "prune"]
