"""The Python API: convert, plan, compare, verify, and one way to run any artifact."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optkit.artifact import Dim
from optkit.cache import Cache, open_cache
from optkit.caching.keys import dims_json
from optkit.delivery.proving import compare, verify
from optkit.drafting.shorthand import LABELS, is_recipe, model_name, model_section, of_delivery, safe_name
from optkit.drafting.targets import delivered_steps
from optkit.errors import CheckError, OptkitError, UserError
from optkit.events import Listener, ignore
from optkit.execute import execute
from optkit.live.capture import capture
from optkit.live.livedata import Data, array_of, dataset_entry
from optkit.live.liverecipe import recipe_with
from optkit.models.opened import Model, Ranges, described, open_artifact, ranges_of, specs_of
from optkit.planning import Plan, make_plan
from optkit.recipe import Recipe, load_recipe, recipe_of
from optkit.report import Report
from optkit.reports.files import write_reports
from optkit.reports.rows import against_baseline, broken
from optkit.spec.yamlread import plain_document, set_value

__all__ = ["Model", "compare", "convert", "failure", "open_artifact", "plan", "verify"]

AnyModel = Any
"""A recipe, a path, or a live object of a backend that need not be installed."""


def plan(recipe: str | Path | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> Plan:
    """What a recipe would do: its steps in order and the check on each. Opens no model.

    recipe: a .yaml file, the same as plain data, or a Recipe. overrides: as in
        "steps.int8.with.per_channel=false".
    Raises RecipeError with every mistake found.
    """
    if isinstance(recipe, Recipe):
        if overrides:
            raise UserError("a Recipe that was loaded takes no overrides", hint="give them to load_recipe")
        return make_plan(recipe)
    return make_plan(_recipe(recipe, overrides) if isinstance(recipe, Mapping) else load_recipe(recipe, overrides))


def _recipe(data: Mapping[str, Any], overrides: Sequence[str]) -> Recipe:
    document = plain_document(data)
    for assignment in overrides:
        set_value(document, assignment)
        document.assigned.append(assignment)
    return recipe_of(document, Path())


def convert(
    model: AnyModel,
    *,
    recipe: str | Path | Mapping[str, Any] | None = None,
    to: str | Sequence[str] = (),
    steps: Sequence[Mapping[str, Any]] = (),
    int8: str | Sequence[str] = (),
    gate: Sequence[str] = (),
    weights: str | Path | None = None,
    example_inputs: Any = None,
    inputs: Mapping[str, Mapping[str, Any]] | None = None,
    outputs: Sequence[str] = (),
    dims: Ranges | None = None,
    data: Data | None = None,
    fit: Data | None = None,
    metric: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None = None,
    name: str | None = None,
    out: str | Path | None = None,
    cache: str | Path | Cache | None = None,
    jobs: int | None = None,
    overrides: Sequence[str] = (),
    listen: Listener = ignore,
    raise_on_failure: bool = True,
) -> Report:
    """Convert a model and prove each result; the report says what was made, where it lies and how far it is off.

    model: a recipe (.yaml file, plain data, Recipe), a model file, "FILE.py:NAME" (with its `weights`), a Hugging Face
        folder, or a live object: torch nn.Module, ExportedProgram or ScriptModule, onnx.ModelProto, openvino.Model. A
        recipe says everything itself, so that only out, cache, jobs, overrides and listen may stand beside it.
    recipe: beside a live object: a recipe (.yaml file or plain data) that says the rest; the object takes the place of
        its `model:`. Where that names a factory, it stays, with the live weights, so that torch.prune can work on it;
        what it builds is held against the live module. Only example_inputs may stand beside a recipe as well.
    to: target formats, each a step of that name, and delivered. steps: more steps, as a recipe writes them (`{"id":
        "int8", "from": "onnx", "use": "onnx.quantize", "data": "fit", "check": [...]}`); delivered are those that no
        other step takes. gate: what every delivery may take at most, or must gain, as a recipe's `gate:`.
    int8: bounds, such as "cosine >= 0.99": an int8 of each target as well, delivered as TARGET-int8, fitted on `fit`,
        its settings looked for, and no more left in floating point than the bounds need.
    example_inputs: for a torch model: arrays or tensors by input name, or a tuple in forward()'s order, with the batch
        axis; default: the first samples of `data`, where that is arrays by name. inputs: instead, or beside it, as a
        recipe's `inputs:`. outputs: names for the outputs, in order.
    dims: name -> (min, opt, max); where `inputs` names no dim, each input's axis 0 becomes the dim "batch" if `dims`
        has one.
    data: what results are judged on; fit: what lossy steps are fitted on: a file, a recipe's dataset entry, arrays by
        name (axis 0 counts samples), or an iterable of samples or batches, such as a Dataset or DataLoader of torch.
        Without `data`, faithful conversions are checked on random inputs, and the report says so.
    metric: task metrics to measure on `data`, as a recipe's `metric:`, such as "accuracy" or {"top_k": 5}.
    out: folder of the deliveries and the reports, default build/NAME. cache: a folder, or a URL of a cache that is
        shared, as the command line's --cache. raise_on_failure: raise CheckError (with its
        `.report`) unless all held, KeyboardInterrupt when interrupted.

    Raises RecipeError, SourceError, DataError, UnavailableError for what concerns the whole run.
    """
    store = cache if isinstance(cache, Cache) else open_cache(cache)
    made = planned(model, store, overrides, {
        "recipe": recipe, "to": to, "steps": steps, "int8": int8, "gate": gate, "weights": weights,
        "example_inputs": example_inputs, "inputs": inputs, "outputs": outputs, "dims": dims, "data": data, "fit": fit,
        "metric": metric, "name": name,
    })  # fmt: skip
    folder = Path(out) if out else Path("build") / made.recipe.name
    try:
        report = execute(made, out=folder, cache=store, jobs=jobs, listen=listen)
    except OptkitError as error:
        if error.where is None and error.subject:
            error.where = made.recipe.place_of(error.subject)
        raise
    write_reports(report, folder)
    if raise_on_failure and not report.ok:
        if report.interrupted:
            raise KeyboardInterrupt
        raise failure(report)
    return report


def planned(model: AnyModel, store: Cache, overrides: Sequence[str], asked: Mapping[str, Any]) -> Plan:
    """The plan of what `convert` is asked for, by its parameters' names; a live model and live data are put at rest."""
    asked = {key: value for key, value in asked.items() if value is not None and not _empty(value)}
    if isinstance(model, Recipe | Mapping) or (isinstance(model, str | Path) and is_recipe(str(model))):
        _alone(asked, ())
        return plan(model, overrides)
    if "recipe" in asked:
        if isinstance(model, str | Path):
            raise UserError(
                f"recipe= goes with a live model, and {str(model)!r} is a path",
                hint="name the model in the recipe's model:, and convert the recipe",
            )
        _alone(asked, ("recipe", "example_inputs"))
        return make_plan(recipe_with(model, asked["recipe"], overrides, store, asked.get("example_inputs")))
    targets = asked.get("to", ())
    targets = list(dict.fromkeys([targets] if isinstance(targets, str) else targets))
    example = asked.get("example_inputs")
    if example is None and "inputs" not in asked and not isinstance(model, str | Path):
        example = first_of(model, asked.get("data"), asked.get("dims", {}))
    document = _source(
        model, store, asked.get("weights"), example, asked.get("inputs"), asked.get("outputs", ()),
        ranges_of(asked.get("dims")),
    )  # fmt: skip
    bounds = asked.get("int8", ())
    bounds = [bounds] if isinstance(bounds, str) else list(bounds)
    _check_int8(bounds, asked)
    document["data"] = _datasets({"judge": asked.get("data"), "fit": asked.get("fit")}, store, document)
    steps = _steps(document["model"], targets, asked.get("steps", ()), bounds)
    document |= {"version": 1, "check_on": "judge", **steps}
    document |= {key: asked[key] for key in ("metric",) if key in asked}
    if "gate" in asked:
        document["gate"] = list(asked["gate"])
    document["name"] = asked.get("name") or safe_name(
        model_name(str(model)) if isinstance(model, str | Path) else "model"
    )
    return make_plan(_recipe(document, overrides))


def _empty(value: Any) -> bool:
    return isinstance(value, tuple) and not value


def _alone(asked: Mapping[str, Any], but: Sequence[str]) -> None:
    """Raise UserError for what a recipe says itself."""
    if given := [key for key in asked if key not in but]:
        raise UserError(
            f"{', '.join(given)} has no place beside a recipe, which says it itself",
            hint="change the recipe, or override a value: overrides=['steps.int8.with.per_channel=false']",
        )


def first_of(model: AnyModel, data: Data | None, dims: Ranges) -> Any:
    """The first samples of arrays by name, as example inputs of a torch module; None where there are none."""
    torch = sys.modules.get("torch")
    if torch is None or not isinstance(model, torch.nn.Module) or not isinstance(data, Mapping):
        return None
    arrays = {name: value for name, value in data.items() if name not in LABELS and hasattr(value, "dtype")}
    return {name: value[: 8 if "batch" in dims else 1] for name, value in arrays.items()} or None


def _source(
    model: AnyModel,
    store: Cache,
    weights: str | Path | None,
    example_inputs: Any,
    inputs: Mapping[str, Mapping[str, Any]] | None,
    outputs: Sequence[str],
    dims: Mapping[str, Dim],
) -> dict[str, Any]:
    """The part of a recipe that is about the source model."""
    specs = {name: dict(spec) for name, spec in (inputs or {}).items()}
    if isinstance(model, str | Path):
        section = model_section(str(model), str(weights) if weights else None)
        if example_inputs is not None:
            specs = _from_example(example_inputs, specs, "batch" in dims)
        names: Sequence[str] = tuple(outputs)
        if not specs:
            specs, known = of_delivery(str(model))
            dims = {**ranges_of(known), **dims}
        if next(iter(section)) in ("torch", "torchscript", "huggingface") and not specs:
            raise UserError(
                f"a {next(iter(section))} model does not say what goes into it",
                hint='give example_inputs={"image": array}, or inputs={"image": {"shape": ["batch", 3, 224, 224]}}',
                subject="inputs",
            )
    else:
        if weights is not None:
            raise UserError("a live model has its weights", hint="leave weights out")
        captured = capture(model, store, example_inputs=example_inputs, inputs=inputs, outputs=outputs, dims=dims)
        section, specs, names = captured.section, captured.inputs, captured.outputs
    return {
        "model": section,
        **({"inputs": specs} if specs else {}),
        **({"outputs": list(names)} if names else {}),
        **({"dims": dims_json(dims)} if dims else {}),
    }


def _from_example(example: Any, specs: dict[str, dict[str, Any]], batch: bool) -> dict[str, dict[str, Any]]:
    if not isinstance(example, Mapping):
        raise UserError(
            "example inputs for a model in a file go by name", hint='example_inputs={"image": array}', subject="inputs"
        )
    made = {}
    for name, value in example.items():
        array = array_of(value, "example_inputs", str(name))
        first = ["batch"] if batch and array.ndim else []
        shape = [*first, *array.shape[len(first) :]]
        made[str(name)] = {"shape": shape, "dtype": array.dtype.name, **specs.get(str(name), {})}
    return made


def _datasets(given: Mapping[str, Data | None], store: Cache, document: Mapping[str, Any]) -> dict[str, Any]:
    section, specs = document["model"], specs_of(document.get("inputs"))
    return {
        name: dataset_entry(data, name, store, section, lambda: specs or described(section).inputs)
        for name, data in given.items()
        if data is not None or name == "judge"
    }


def _check_int8(bounds: Sequence[str], asked: Mapping[str, Any]) -> None:
    """Raise UserError for int8 without targets, or without samples to fit it on and others to judge it by."""
    if bounds and "to" not in asked:
        raise UserError("int8 of what is not said", hint='name targets: to=["onnx", "openvino"]', subject="int8")
    for name, what in (("fit", "finds ranges and settings on data"), ("data", "is judged on data")):
        if bounds and name not in asked:
            raise UserError(f"int8 {what}, and none was given", hint=f"give {name}=, real samples, with none in both",
                            subject="int8")  # fmt: skip


def _steps(
    section: Mapping[str, Any], targets: Sequence[str], steps: Sequence[Mapping[str, Any]], int8: Sequence[str]
) -> dict[str, Any]:
    """A recipe's `steps:` and `deliver:`."""
    if not targets and not steps:
        from optkit.registry import formats

        known = ", ".join(repr(f) for f in formats() if f != "torch")
        raise UserError("nothing says what to make of the model", hint=f"to=[...], with any of {known}; or steps=[...]")
    taken = {step.get("from") for step in steps}
    ends = [step["id"] for step in steps if "id" in step and step["id"] not in taken]
    made = delivered_steps(section, targets, int8)
    return {
        "steps": [*made["steps"], *map(dict, steps)],
        "deliver": list(dict.fromkeys([*made["deliver"], *ends])),
    }


def failure(report: Report) -> CheckError:
    """The error that says which steps of a report did not hold, and why."""
    lines = []
    for step in report.steps:
        if step["status"] == "error":
            lines.append(f"{step['id']}: {step['error']['what']}")
        elif step["status"] == "failed":
            lines.append(f"{step['id']}: {next(iter(broken(step)), 'its check did not hold')}")
        elif step["status"] == "blocked":
            lines.append(f"{step['id']}: blocked by {step['blocked_by']}")
        elif step["status"] == "deferred" and not step["on_target"]:
            lines.append(f"{step['id']}: deferred, {step['error']['what']}")
    if not (report.data.get("baseline") or {"held": True})["held"]:
        lines.append(against_baseline(report.data))
    error = CheckError(
        "; ".join(lines) or "the run was interrupted", hint="the whole story is in error.report and in report.json"
    )
    error.report = report
    return error
