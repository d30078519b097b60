"""Recipe to Plan: what will run, in which order, and how each result will be judged.

Planning is pure: it opens no model, imports no backend and touches no device. It finds every mistake that can be found
so, all of them at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from optkit.errors import Location, UserError, did_you_mean
from optkit.parity.bounds import Bound
from optkit.plugin import Options, Pass
from optkit.recipe import SOURCE, Recipe
from optkit.spec.gates import Gate


@dataclass(frozen=True)
class Check:
    """How a step's output is judged against the source model.

    bounds: the stated bounds, those of lossy steps before it included; empty when they derive from `precision` and the
        source's measured noise floor. stated_by: the step that stated each of them.
    precision: the coarsest floating-point type on the way here.
    lossy: some step on the way here is lossy, so edge values are judged on finiteness and shape alone. Without `bounds`
        then, since its bounds were waived, the distance from the source says nothing.
    floating: every lossy step on the way gives an ordinary floating-point model (see `Pass.floating`).
    as_parent: the step is faithful and states nothing after such a lossy one, so that its answers must be
        its parent's but for rounding.
    waived: the written reason why this check is skipped.
    """

    bounds: tuple[Bound, ...]
    precision: str
    lossy: bool
    stated_by: tuple[str, ...]
    waived: str | None = None
    floating: bool = True
    as_parent: bool = False

    @property
    def unbounded(self) -> bool:
        """Whether nothing says how near it has to be: bounds were waived before it, and its parent is no guide."""
        return self.lossy and not self.bounds and not self.as_parent and self.waived is None


@dataclass(frozen=True)
class Step:
    """One pass to run. `parent` is the id of the step (or "source") whose output it takes.

    python: the interpreter of another environment, an absolute path. environment: the name of that environment where it
        is the one the pass wants, None where the recipe names an interpreter.
    must: what the output has to be beside its parent: "faster", "smaller". gates: what it may take or must gain.
    runtime: the settings that its runner opens it with, by the runtime's own names.
    implied: the plan put it there on the way to a `to:` target; the recipe does not name it.
    """

    id: str
    use: Pass
    options: Options
    parent: str
    check: Check
    data: str | None = None
    timeout_seconds: float = 1800.0
    python: str | None = None
    environment: str | None = None
    on_target: bool = False
    must: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()
    runtime: Mapping[str, Any] = field(default_factory=dict)
    implied: bool = False
    where: Location | None = None

    def options_json(self) -> dict[str, Any]:
        """The options as JSON data, defaults included: part of the cache key."""
        return self.options.model_dump(mode="json", by_alias=True)


@dataclass(frozen=True)
class Plan:
    """Steps in an order in which each comes after its parent; a step without a check cannot be built."""

    recipe: Recipe
    steps: tuple[Step, ...]
    deliver: tuple[str, ...]
    chosen: tuple[str, ...] = ()
    """The steps the plan was cut to, if it was."""
    gates: tuple[Gate, ...] = ()
    """The gates on every delivery."""

    def step(self, step_id: str) -> Step:
        """The step of that id. Raises KeyError."""
        return {s.id: s for s in self.steps}[step_id]

    def children(self, step_id: str) -> tuple[Step, ...]:
        """The steps that take this one's output."""
        return tuple(s for s in self.steps if s.parent == step_id)

    def height(self, step_id: str) -> int:
        """How many steps the longest chain from this one down has, itself counted."""
        return 1 + max((self.height(child.id) for child in self.children(step_id)), default=0)

    def ancestors(self, step_id: str) -> tuple[str, ...]:
        """Ids from the source (excluded) down to and with `step_id`."""
        chain: list[str] = []
        while step_id != SOURCE:
            chain.append(step_id)
            step_id = self.step(step_id).parent
        return tuple(reversed(chain))

    def gates_of(self, step: Step) -> list[tuple[Gate, str]]:
        """The gates on a step, its own and, where it is delivered, those on all; each with "step" or "recipe"."""
        own = [(gate, "step") for gate in step.gates]
        return [*own, *((gate, "recipe") for gate in self.gates if step.id in self.deliver)]

    def only(self, step_ids: Sequence[str]) -> Plan:
        """The plan cut to these steps and what they need. Raises UserError for an unknown id."""
        known = [s.id for s in self.steps]
        for step_id in step_ids:
            if step_id not in known:
                raise UserError(f"--only: there is no step {step_id!r}", hint=did_you_mean(step_id, known))
        wanted = {a for step_id in step_ids for a in self.ancestors(step_id)}
        steps = tuple(s for s in self.steps if s.id in wanted)
        chosen = tuple(dict.fromkeys(step_ids))
        return replace(self, steps=steps, deliver=chosen, chosen=chosen)


def make_plan(recipe: Recipe) -> Plan:
    """The plan of a recipe. Raises RecipeError with every mistake found, each with its place and a remedy."""
    from optkit.plans.planner import Planner

    return Planner(recipe).plan()
