"""`optkit plan`: what a recipe would do, drawn as a tree. Opens no model and imports no backend."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from optkit.cli import completing
from optkit.cli.common import cache_option, frozen_options, frozen_plan, json_option, overrides, read_plan
from optkit.cli.text import Cell, can_draw, clean, count, table

if TYPE_CHECKING:
    from optkit.errors import Problem
    from optkit.planning import Check, Plan, Step

_FIDELITY = {"exact": "", "rounding": "", "lossy": "warn"}
_LINES, _ASCII = ("├─ ", "└─ ", "│  ", "   "), ("|- ", "`- ", "|  ", "   ")


@click.command("plan")
@click.argument("recipes", metavar="RECIPE...", nargs=-1, required=True, shell_complete=completing.files)
@overrides
@frozen_options
@cache_option
@json_option
def command(
    recipes: tuple[str, ...], sets: tuple[str, ...], only: tuple[str, ...], frozen: bool, lock: Path | None,
    cache: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Draw what a recipe would do: its steps, what each is judged by, and what the cache has.

    Finds every mistake that can be found without opening the model, in all recipes given. Runs nothing. Exits 4, the
    plan drawn, where a step needs an environment that is not there. --json prints a list where several are given.
    """
    import json

    from optkit.caching.keys import require_environments

    plans = [
        frozen_plan(plan, recipe, frozen, lock) for plan, recipe in zip(read(recipes, sets, only), recipes, strict=True)
    ]
    if as_json:
        found = [as_data(plan, cached(plan, cache)) for plan in plans]
        click.echo(json.dumps(found if len(found) > 1 else found[0], indent=1, ensure_ascii=False))
    else:
        from optkit.caching.place import place_of

        remote = place_of(cache).remote
        click.echo("\n\n".join(draw(plan, cached(plan, cache), remote) for plan in plans))
    for plan in plans:
        require_environments(plan)


def read(recipes: Sequence[str], sets: Sequence[str], only: Sequence[str]) -> list[Plan]:
    """The plan of each recipe. Raises RecipeError with the mistakes of all of them, UserError at the first other."""
    from optkit.errors import RecipeError

    plans: list[Plan] = []
    problems: list[Problem] = []
    for recipe in recipes:
        try:
            plans.append(read_plan(recipe, sets, only))
        except RecipeError as error:
            problems += error.problems
    if problems:
        raise RecipeError(problems)
    return plans


def cached(plan: Plan, given: str | None) -> Mapping[str, bool | None]:
    """Per step whether its result is in the cache's folder, which is not made where it is not there.

    A remote cache is not asked: a plan needs no network.
    """
    from optkit.cache import Cache
    from optkit.caching.place import place_of

    root = place_of(given).root
    if not (root / "entries").is_dir():
        return {step.id: False for step in plan.steps}
    from optkit.running.making import cached_steps

    return cached_steps(plan, Cache(root))


def draw(plan: Plan, known: Mapping[str, bool | None], remote: str | None = None) -> str:
    """The plan as a tree with its source at the root. remote: the URL behind the cache, which may have more."""
    from optkit.caching.place import shown

    recipe = plan.recipe
    marks = _LINES if can_draw(sys.stdout, "".join(_LINES)) else _ASCII
    states = {True: Cell("cached", "good"), False: Cell("to run"), None: Cell("unknown")}
    rows: list[list[str | Cell]] = [["source", recipe.source_format, "", "", "", "", source_text(plan)]]
    for step, branch in walk(plan, "source", "", marks):
        rows.append([
            branch + clean(step.id),
            step.use.name,
            Cell(step.use.fidelity, _FIDELITY[step.use.fidelity]),
            step.data or "",
            Cell("deliver", "name") if step.id in plan.deliver else "",
            states[known.get(step.id)],
            check_text(step),
        ])  # fmt: skip
    delivered, run = len(plan.deliver), sum(not known.get(s.id) for s in plan.steps)
    fetch = f" or to fetch from {clean(shown(remote))}" if remote and run else ""
    foot = (
        f"{clean(recipe.name)}: {count(len(plan.steps), 'step')}, {run} to run{fetch}, {delivered} to deliver; "
        f"checks run on {clean(recipe.check_on)}"
    )
    head = ("step", "pass", "fidelity", "fit on", "", "", "check")
    gates = [(step.id, gate.text) for step in plan.steps for gate, _ in plan.gates_of(step)]
    gated = f"\n\n{table(('delivery', 'gate'), gates, sys.stdout)}" if gates else ""
    return f"{table(head, rows, sys.stdout)}{gated}\n\n{foot}"


def walk(plan: Plan, parent: str, prefix: str, marks: tuple[str, ...]) -> Iterator[tuple[Step, str]]:
    """Every step below `parent`, depth first, with the branches drawn before its name."""
    children = plan.children(parent)
    for number, step in enumerate(children):
        last = number == len(children) - 1
        yield step, prefix + marks[1 if last else 0]
        yield from walk(plan, step.id, prefix + marks[3 if last else 2], marks)


def source_text(plan: Plan) -> str:
    """What the source is and what goes into it."""
    model = plan.recipe.model.model_dump(by_alias=True)
    inputs = ", ".join(map(str, plan.recipe.inputs))
    return str(next(iter(model.values()))) + (f"; {inputs}" if inputs else "")


def check_text(step: Step) -> str:
    """What a step is judged by, in one line."""
    if step.check.waived:
        return f"waived: {step.check.waived}"
    parts = [bounds_text(step.check, step.id)] if step.check.bounds or not step.check.as_parent else []
    parts += [f"as {step.parent} but for {step.check.precision} rounding"] if step.check.as_parent else []
    return ", ".join([*parts, *(["on the target"] if step.on_target else [])])


def bounds_text(check: Check, step_id: str) -> str:
    """The bounds, each inherited one with the step that stated it."""
    if not check.bounds:
        return f"default for {check.precision}"
    return ", ".join(
        f"{bound}" + (f" (from {by})" if by != step_id else "")
        for bound, by in zip(check.bounds, check.stated_by, strict=True)
    )


def as_data(plan: Plan, known: Mapping[str, bool | None]) -> dict[str, Any]:
    """The plan as JSON data."""
    recipe = plan.recipe
    return {
        "name": recipe.name,
        "source": {"format": recipe.source_format, "model": recipe.model.model_dump(mode="json", by_alias=True),
                   "inputs": [t.to_json() for t in recipe.inputs]},
        "dims": {name: dim.to_json() for name, dim in recipe.dims.items()},
        "check_on": recipe.check_on,
        "steps": [
            {
                "id": s.id, "pass": s.use.name, "parent": s.parent, "target": s.use.target, "fidelity": s.use.fidelity,
                "implied": s.implied, "options": s.options_json(), "data": s.data, "on_target": s.on_target,
                "timeout_seconds": s.timeout_seconds, "python": s.python,
                "environment": s.environment, "cached": known.get(s.id),
                "where": str(s.where) if s.where else None,
                "gates": [gate.text for gate, _ in plan.gates_of(s)],
                "check": {"bounds": [str(b) for b in s.check.bounds], "stated_by": list(s.check.stated_by),
                          "precision": s.check.precision, "lossy": s.check.lossy, "as_parent": s.check.as_parent,
                          "waived": s.check.waived},
            }
            for s in plan.steps
        ],
        "deliver": list(plan.deliver),
    }  # fmt: skip
