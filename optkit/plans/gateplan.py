"""What planning says about gates: those that cannot be read, contradict each other or name what nothing measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from optkit.parity.bounds import BoundError, MetricInfo
from optkit.planning import Step
from optkit.recipe import Recipe, TorchSource
from optkit.spec.gates import Gate, clashes, parse_gate
from optkit.spec.yamlread import Key

Note = Callable[..., None]


def read_gates(texts: Sequence[str], key: Key, title: str, table: Mapping[str, MetricInfo], note: Note
               ) -> tuple[Gate, ...]:  # fmt: skip
    """The gates of one list that could be read, the mistakes of the others noted at `key`."""
    found: list[Gate] = []
    for index, text in enumerate(texts):
        try:
            found.append(parse_gate(text, table))
        except BoundError as error:
            note((*key, index), f"{title}{error}", error.hint, ("metric",))
    for index, earlier in clashes(found):
        what = f"{title}{found[index].text!r} contradicts {earlier.text!r}"
        note((*key, index), what, "keep the one that is meant")
    return tuple(found)


def check_gates(
    recipe: Recipe, overall: Sequence[Gate], steps: Mapping[str, Step], deliver: Sequence[str], note: Note
) -> None:
    """Note each gate that the rest of the recipe shows cannot be judged, or has no effect."""
    places = {spec.id: index for index, spec in enumerate(recipe.steps)}
    for step in steps.values():
        for number, gate in enumerate(step.gates):
            key: Key = ("steps", places[step.id], "gate", number)
            _measurable(recipe, step, gate, key, note)
            for other in overall if step.id in deliver else ():
                if gate.about == other.about and gate.looser_than(other):
                    what = f"step {step.id}: {gate.text!r} has no effect beside {other.text!r}, which holds for all"
                    note(key, what, "leave one of them out")
    for number, gate in enumerate(overall):
        for step_id in deliver:
            if step_id in steps:
                _measurable(recipe, steps[step_id], gate, ("gate", number), note)


def _measurable(recipe: Recipe, step: Step, gate: Gate, key: Key, note: Note) -> None:
    title = f"{gate.text!r} of {step.id}:"
    if gate.timed and not step.use.is_timed(step.options):
        what = f"{title} how fast it is cannot be seen here: {step.use.name} makes it for another runtime"
        note(key, what, "put the gate on steps that this machine runs")
    if gate.bound is not None and step.check.waived is not None:
        note(key, f"{title} its check is waived, so no metric is measured", "leave out waive:, or the gate")
    if gate.bound is not None and any(b.metric == gate.measure for b in step.check.bounds):
        bound = next(b for b in step.check.bounds if b.metric == gate.measure)
        note(key, f"{title} check: bounds it already, with {bound}", "keep one of them")
    weightless = isinstance(recipe.model, TorchSource) and recipe.model.weights is None
    if gate.measure == "size" and gate.relative == "source" and weightless:
        what = f"{title} the source has no weights on disk, so its size is not known"
        note(key, what, "name model.weights, or give an amount: size <= 10 MB")
