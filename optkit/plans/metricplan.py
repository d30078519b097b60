"""What planning says about the declared metrics: outputs, inputs, labels and files that are not there."""

from __future__ import annotations

from collections.abc import Callable

from optkit.errors import DataError, did_you_mean
from optkit.recipe import Recipe
from optkit.spec.dataspec import label_names
from optkit.spec.metricspec import Metric, PerplexityOptions, PythonOptions, WerOptions
from optkit.spec.yamlread import Key

Note = Callable[..., None]


def check_metrics(recipe: Recipe, note: Note) -> None:
    """Note each mistake in `metric:` that the rest of the recipe shows; opens nothing."""
    data = recipe.data.get(recipe.check_on)
    for metric in recipe.metrics:
        key: Key = metric.at
        title = f"metric {metric.name}:"
        for output in metric.outputs():
            if recipe.outputs and output not in recipe.outputs:
                note(
                    key,
                    f"{title} the model has no output {output!r}",
                    did_you_mean(output, recipe.outputs),
                    ("outputs",),
                )
        if data is not None:
            check_labels(metric, recipe.check_on, label_names(data), metric.at, note)
        if isinstance(metric.options, PerplexityOptions) and recipe.inputs:
            inputs = [spec.name for spec in recipe.inputs]
            fed = [metric.options.mask, None if metric.options.target else metric.options.tokens]
            for name in fed:
                if name is not None and name not in inputs:
                    note(key, f"{title} the model has no input {name!r}", did_you_mean(name, inputs), ("inputs",))
        if isinstance(metric.options, PythonOptions | WerOptions):
            try:
                metric.files(recipe.base)
            except DataError as error:
                note(key, error.what, error.hint)
            except OSError as error:
                note(key, f"{title} {error}", "correct the path")


def check_labels(metric: Metric, dataset: str, have: tuple[str, ...], key: Key, note: Note, title: str = "") -> None:
    """Note at `key` which of its labels a metric lacks in a dataset that has these."""
    about: Key = ("data", dataset)
    title, place = f"{title}metric {metric.name}:", f"data.{dataset}"
    for wanted in metric.targets():
        if not have:
            note(key, f"{title} it needs labels, and {place} has none", f"add `label: NAME` to {place}", about)
            return
        if wanted is None and len(have) > 1:
            note(key, f"{title} {place} has {len(have)} labels", f"add target: one of {', '.join(have)}", about)
        elif wanted is not None and wanted not in have:
            hint = did_you_mean(wanted, have)
            note(key, f"{title} {place} has no label {wanted!r}", hint, about)
