"""Ways to quantise, tried in turn: the first that holds a budget, or the one that comes nearest to it.

Which range rule, and how much smoothing, suits a model is not told by looking at it: the best share of outliers to move
differs from model to model, and a wrong one harms. So each way is made whole and measured, on the step's fitting data
as a budget's trials are. Where none holds, the nearest goes on to have its most harmful groups kept (`budget.keep`),
then the next nearest.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from optkit.errors import StepError
from optkit.formats import budget

if TYPE_CHECKING:
    from optkit.artifact import Artifact
    from optkit.plugin import Context, Options, Session

DESCRIPTION = (
    "with a budget: try other settings too, on the fitting data; the first that holds the budget with nothing kept is "
    "taken, else the one that comes nearest. What is given here other than its default stays"
)

ALONE = "tune looks for settings that hold a budget, and there is none: add budget"

NEAREST = 3
"""How many ways are gone on with where none holds the budget alone: a nearer one may need more kept."""

_RECORD = "tuned.json"

T = TypeVar("T", bound="Options")
Way = Mapping[str, Any]


def within(
    artifact: Artifact,
    out_dir: Path,
    options: T,
    ways: Sequence[Way],
    run: Callable[[Artifact, Path, T, Context], Mapping[str, Any]],
    reference: AbstractContextManager[Session],
    opened: Callable[[Path], AbstractContextManager[Session]],
    context: Context,
) -> dict[str, Any]:
    """A pass done with the way that suits the model: its notes, and under "tuned" what was tried.

    ways: settings by their names in a recipe, in the order in which they are tried; one that says otherwise than the
    options is left out, and the options as they are come last. run: the pass; opened: runs what it wrote into a folder.
    The way that was taken is written to the scratch folder, for `settled`. Raises StepError where no way can be gone,
    with the reason of the first, and Unheld where the nearest `NEAREST` do not hold the budget whatever is kept, with
    the best that was reached.
    """
    probe = budget.Probe(context, list(getattr(options, "budget", ())), reference)
    chosen = list(_open_ways(options, ways))
    tried: list[dict[str, Any]] = []
    measured: list[tuple[bool, float, Way]] = []
    refused: StepError | None = None
    for number, (way, candidate) in enumerate(chosen):
        context.progress(f"trying {spelt(way)}", number / len(chosen))
        row: dict[str, Any] = {"way": spelt(way), "reached": None, "error": None, "held": False, "problem": None}
        tried.append(row)
        folder = budget.emptied(context, "way")
        try:
            run(artifact, folder, candidate, context)
        except StepError as error:  # such as smoothing where there is nothing to smooth
            refused, row["problem"] = refused or error, error.what
            continue
        result = probe.measure(opened(folder))
        damage, row["held"] = budget.damage(result), budget.holds(result, probe.bounds)
        row |= {"reached": budget.reached(result, probe.bounds), "error": damage if damage < float("inf") else None}
        measured.append((not row["held"], damage, way))
        if row["held"]:
            break
    if not measured:
        assert refused is not None
        raise refused
    unheld: budget.Unheld | None = None
    for _, _, way in sorted(measured, key=lambda one: one[:2])[:NEAREST]:
        record = {"way": spelt(way), "settings": dict(way), "tried": tried}
        (context.scratch / _RECORD).write_text(json.dumps(record), encoding="utf-8")
        try:
            return {**run(artifact, out_dir, settled(options, context), context), "tuned": record}
        except budget.Unheld as error:
            unheld = unheld or error
    assert unheld is not None
    raise unheld


def _open_ways(options: T, ways: Sequence[Way]) -> Iterator[tuple[Way, T]]:
    """The ways that change no option which is not at its default, each with its options; tuning and budget left out.

    The last is the options as they are: what was given may rule out all others. The options come from JSON that has all
    of them: which of the defaults somebody wrote down is not told.
    """
    given = options.model_dump(by_alias=True, exclude_defaults=True)
    seen: list[Options] = []
    for way in (*ways, {}):
        if any(key in given and given[key] != value for key, value in way.items()):
            continue
        try:
            candidate = type(options).model_validate({**given, **way, "budget": [], "tune": False})
        except ValidationError:
            continue  # it does not go together with what was given
        if candidate not in seen:
            seen.append(candidate)
            yield way, candidate


def settled(options: T, context: Context) -> T:
    """The options with the settings that `within` took in this step; as they are where it took none."""
    path: Path = context.scratch / _RECORD
    if not path.is_file():
        return options
    record = json.loads(path.read_text(encoding="utf-8"))
    given = options.model_dump(by_alias=True, exclude_defaults=True)
    return type(options).model_validate({**given, **record["settings"], "tune": False})


def spelt(way: Way) -> str:
    """A way for people: "smooth_quant: 0.5, rounding: gptq"."""
    words = (f"{key}: {str(value).lower() if isinstance(value, bool) else value}" for key, value in way.items())
    return ", ".join(words) or "as given"


__all__ = ["ALONE", "DESCRIPTION", "Way", "settled", "spelt", "within"]
