"""Baselines: what a run reached, kept in a file that one commits, for later runs to be held against."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optkit.artifact import digest_of
from optkit.comparing.figures import conditions, contract, figures_of, has_figure, noise_of, stands
from optkit.comparing.regression import compare
from optkit.errors import UserError
from optkit.report import INTERRUPTED, BaselineResult, Report, write_atomically

if TYPE_CHECKING:
    from optkit.recipe import Recipe

KIND = "optkit baseline"
SCHEMA = 1
NAME = "baseline.json"

Data = Mapping[str, Any]


def read_run(place: Path) -> Report:
    """The report of a run: of its folder, or in its report.json. Raises UserError."""
    return Report.read(place / "report.json" if place.is_dir() else place)


def make_baseline(report: Data) -> dict[str, Any]:
    """The baseline of a run: its deliveries' figures and what decided them, as JSON data with its own digest.

    Raises UserError for a run whose deliveries do not all hold. One that was worse than an earlier baseline may be the
    next: that is how a regression is accepted.
    """
    steps = {s["id"]: s for s in report["steps"]}
    ids = [d["step"] for d in report["deliver"]]
    wrong = [f"{i} ({steps[i]['status']})" for i in ids if not stands(steps[i])]
    why = f"not proven: {', '.join(wrong)}" if wrong else "" if ids else "it delivered nothing"
    if report["exit_code"] == INTERRUPTED:  # what it did not get to would be missing in the baseline
        why = "it was interrupted"
    if why:
        raise UserError(
            f"this run is no baseline: {why}",
            hint="take one from a run whose deliveries all hold",
            code="OPK-251",
        )
    record = {
        "kind": KIND, "schema": SCHEMA, "name": report["name"], "made": report["started"], "contract": contract(report),
        "conditions": conditions(report), "noise": noise_of(report), "deliveries": figures_of(report, ids),
    }  # fmt: skip
    return {**record, "sha256": digest_of(record)}


def write_baseline(record: Data, path: Path) -> None:
    """Write a baseline, whole or not at all: of two writers, the later one's stays. Raises UserError."""
    try:
        write_atomically(path, json.dumps(record, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}", hint="name another file") from error


def read_baseline(path: Path) -> dict[str, Any]:
    """The baseline in a file. Raises UserError when there is none, it is damaged, or of another schema."""
    again = f"save it anew: optkit baseline save RUN --to {path}"
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind, schema = record["kind"], record["schema"]
    except FileNotFoundError as error:
        hint = f"optkit baseline save RUN --to {path}; a first run goes without: --set baseline=null"
        raise UserError(f"there is no baseline at {path}", hint=hint, code="OPK-250") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}", hint="check the path") from error
    except (ValueError, KeyError, TypeError) as error:
        what = f"{path} is no baseline, or damaged: {type(error).__name__}: {error}"
        raise UserError(what, hint=f"restore it, or {again}", code="OPK-252") from error
    if kind != KIND:
        raise UserError(
            f"{path} is no baseline: it is a {kind!r}", hint="optkit baseline save makes one", code="OPK-252"
        )
    if schema != SCHEMA:
        raise UserError(f"{path} has baseline schema {schema}; this optkit reads {SCHEMA}", hint=again, code="OPK-253")
    rest = {key: value for key, value in record.items() if key != "sha256"}
    if record.get("sha256") != digest_of(rest):
        what = f"{path} was changed or is damaged: its sha256 is not that of what it holds"
        raise UserError(what, hint=f"restore it, or {again}", code="OPK-252")
    return record


def check_baseline(recipe: Recipe, deliver: Sequence[str], note: Callable[..., None]) -> None:
    """Note at the recipe's `baseline:` what planning can see: no such file, or a tolerance on what it does not hold."""
    spec = recipe.baseline
    if spec is None:
        return
    try:
        before = read_baseline(recipe.path(spec.file))
    except UserError as error:
        note(("baseline",), f"baseline: {error.what}", error.hint, code=error.code)
        return
    for step_id in before["deliveries"]:
        if step_id not in deliver:
            what = f"baseline: {spec.file} has a delivery {step_id!r}, which this recipe does not make"
            note(("baseline",), what, f"deliver it, or save a new baseline: {spec.file}", ("deliver",), ("steps",),
                 code="OPK-254")  # fmt: skip
    for name, what, hint in _unmeasured(before, spec.stated, spec.file):
        note(("baseline", name), f"baseline.{what}", hint, code="OPK-255")


def require_measured(baseline: Data, stated: Iterable[str], name: str) -> None:
    """Raise UserError for the first of the stated tolerances that is on nothing in the baseline, called `name`."""
    for _, what, hint in _unmeasured(baseline, stated, name):
        raise UserError(what, hint=hint, code="OPK-255")


def _unmeasured(baseline: Data, stated: Iterable[str], file: str) -> Iterator[tuple[str, str, str]]:
    for name in sorted(stated):
        if not has_figure(baseline, name):
            yield (name, f"{name}: {file} holds nothing that it is a tolerance on",
                   f"leave it out, or save a baseline with {_MEASURED_BY[name]}")  # fmt: skip


_MEASURED_BY = {
    "size": "files", "sqnr_db": "checked float outputs", "metric": "metric:, or labels",
    "speed": "a race: a lossy step with speed: true, or a gate on speedup",
    "latency": "a race: a lossy step with speed: true, or a gate on latency",
}  # fmt: skip


def held_against(recipe: Recipe, report: Data, chosen: Sequence[str]) -> BaselineResult:
    """A finished run held against the baseline that its recipe names. chosen: the steps it was cut to, if it was.

    Where the two cannot be compared, `problem` says why: the run is done, and its report tells.
    """
    assert recipe.baseline is not None
    path = recipe.path(recipe.baseline.file)
    try:
        before = read_baseline(path)
        return {**compare(before, report, recipe.baseline.tolerance, chosen or None), "file": str(path)}
    except UserError as error:
        return {"file": str(path), "held": False, "problem": error.what, "hint": error.hint, "code": error.code,
                "rows": [], "changes": [], "tolerance": recipe.baseline.tolerance.model_dump()}  # fmt: skip
