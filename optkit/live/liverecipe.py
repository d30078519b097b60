"""A recipe whose model is a live object: the object takes the place of the recipe's `model:`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optkit.artifact import TensorSpec
from optkit.cache import Cache
from optkit.live.capture import capture, capture_weights
from optkit.planning import make_plan
from optkit.recipe import Recipe, TorchSource, recipe_of
from optkit.spec.yamlread import Document, plain_document, read_yaml, set_value

_STAND_IN = {"pt2": __file__}
"""Stands for a live model while the rest of a recipe is read: planning wants a file that is there, and opens none."""


def recipe_with(
    model: Any, recipe: str | Path | Mapping[str, Any], overrides: Sequence[str], store: Cache, example_inputs: Any
) -> Recipe:
    """The recipe with a live model in the place of its own.

    A recipe whose model is a factory keeps it, with the live module's weights; any other gets the captured program, and
    its inputs and outputs where it names none. Raises RecipeError with every mistake of the recipe before the model is
    looked at, and what `capture` and `capture_weights` raise.
    """
    document, base = _document(recipe)
    for assignment in overrides:
        set_value(document, assignment)
        document.assigned.append(assignment)
    if not isinstance(document.data, dict):
        return recipe_of(document, base)  # which says what is wrong with it
    own = document.data.get("model")
    document.data["model"] = dict(_STAND_IN)
    if isinstance(own, dict) and "torch" in own:
        document.data["model"] = {key: value for key, value in own.items() if key != "weights"}
    draft = recipe_of(document, base)
    if draft.inputs:
        make_plan(draft)
    if isinstance(draft.model, TorchSource):
        captured = capture_weights(model, draft, store, example_inputs=example_inputs)
        document.data["model"] = {**document.data["model"], **captured.section}
        return recipe_of(document, base)
    inputs = {spec.name: _spec(spec) for spec in draft.inputs}
    captured = capture(
        model, store, example_inputs=example_inputs, inputs=inputs or None, outputs=draft.outputs, dims=draft.dims
    )
    document.data["model"] = captured.section
    if not draft.inputs and captured.inputs:
        document.data["inputs"] = captured.inputs
    if not draft.outputs and captured.outputs:
        document.data["outputs"] = list(captured.outputs)
    return recipe_of(document, base)


def _document(recipe: str | Path | Mapping[str, Any]) -> tuple[Document, Path]:
    """A recipe's document, and the folder its paths start from."""
    if isinstance(recipe, Mapping):
        return plain_document(recipe), Path()
    return read_yaml(Path(recipe)), Path(recipe).parent


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {key: value for key, value in spec.to_json().items() if key != "name"}
