"""The JSON Schema of a recipe, made from the models that read it and from the passes this environment knows."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.json_schema import models_json_schema

from optkit.artifact import DTYPES
from optkit.data.preprocess import Preprocess
from optkit.parity.bounds import METRICS
from optkit.plugin import Options, Pass
from optkit.recipe import MODEL_KINDS, BaselineSpec, BenchmarkSpec, DimSpec, InputSpec, StepSpec
from optkit.registry import formats, passes
from optkit.spec.dataspec import KINDS
from optkit.spec.gates import pattern as gate_pattern
from optkit.spec.metricspec import KINDS as METRIC_KINDS
from optkit.spec.metricspec import NAME

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_NAME = r"^[A-Za-z0-9._\-]+$"

_NUMERIC = ("type", "minimum", "exclusiveMaximum")

Schema = dict[str, Any]


def recipe_schema() -> Schema:
    """JSON Schema (draft 2020-12) of a recipe, plug-ins' passes included; a recipe that loads is valid under it.

    What a schema cannot say (files that exist, steps that fit together) is left to `optkit plan`.
    """
    known = passes()
    models: list[type[BaseModel]] = [
        *MODEL_KINDS.values(),
        *KINDS.values(),
        InputSpec,
        DimSpec,
        StepSpec,
        BaselineSpec,
        BenchmarkSpec,
        *{p.options for p in known.values()},
        *(kind.options for kind in METRIC_KINDS.values()),
    ]
    refs, combined = models_json_schema(
        [(m, "validation") for m in models], by_alias=True, ref_template="#/$defs/{model}"
    )
    defs: dict[str, Schema] = combined["$defs"]

    def ref(model: type[BaseModel]) -> Schema:
        return {"$ref": refs[model, "validation"]["$ref"]}

    def target(model: type[BaseModel]) -> Schema:
        return defs[ref(model)["$ref"].rpartition("/")[2]]

    target(InputSpec)["properties"]["dtype"]["enum"] = list(DTYPES)
    if name := next((n for n, d in defs.items() if d.get("title") == Preprocess.__name__), None):
        scale = defs[name]["properties"]["scale"]  # its validator reads "1/255" as well
        scale["anyOf"] = [{"type": scale.pop("type")}, {"type": "string", "pattern": r"^[^/]+(/[^/]+)?$"}]
    for share in ("size", "metric", "speed", "latency"):  # their validator reads "2%" as well
        field = target(BaselineSpec)["properties"][share]
        forms = field.pop("anyOf", None) or [{key: field.pop(key) for key in list(field) if key in _NUMERIC}]
        field["anyOf"] = [*forms, {"type": "string", "pattern": r"^\s*\d+(\.\d*)?\s*%\s*$"}]
    _complete_step(target(StepSpec), known, ref)
    for section in defs.values():
        section.pop("title", None)
        for value in section.get("properties", {}).values():
            value.pop("title", None)
    strict = {"pattern": bound_pattern()}
    names = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    return {
        "$schema": DRAFT,
        "title": "optkit recipe",
        "type": "object",
        "required": ["version", "model", "steps"],
        "additionalProperties": False,
        "properties": {
            "version": {"const": 1, "description": "version of the recipe's language"},
            "name": {"type": "string", "pattern": _NAME, "description": "default: the file's name"},
            "model": {"oneOf": [ref(m) for m in MODEL_KINDS.values()], "description": "the trained model"},
            "inputs": _mapping(ref(InputSpec), "the model's inputs, in its order; a model file may know its own"),
            "outputs": {**names, "description": "names for the model's outputs, in its order"},
            "dims": _mapping(ref(DimSpec), "the sizes each named dynamic dim may take"),
            "data": _mapping({"oneOf": [ref(m) for m in KINDS.values()]}, "datasets by name"),
            "check_on": {"type": "string", "description": "the dataset every check runs on"},
            "metric": _metrics(ref, target),
            "steps": {"type": "array", "minItems": 1, "items": ref(StepSpec), "description": "what to do"},
            "deliver": {**names, "description": "the steps to deliver; default: every step nothing follows"},
            "seed": {"type": "integer", "minimum": 0, "default": 0},
            "device": {"type": "string", "default": "cpu"},
            "threads": {"type": ["integer", "null"], "minimum": 1, "description": "threads per running model"},
            "gate": {**names, "items": {"type": "string", "pattern": gate_pattern([NAME])},
                     "description": 'what every delivery may take or must gain, such as "size <= 10 MB"'},
            "benchmark": {"anyOf": [ref(BenchmarkSpec), {"type": "null"}],
                          "description": "what deliveries are measured at, beside the source, once they are made"},
            "baseline": {"anyOf": [{"type": "string"}, ref(BaselineSpec), {"type": "null"}],
                         "description": "what an earlier run reached: a file of optkit baseline save, and tolerances"},
            "speed": {"type": "boolean", "default": True,
                      "description": "race lossy deliveries against the step they come from"},
            "blame": {"type": "boolean", "default": True,
                      "description": "where a check fails, look for the layer that made it fail"},
        },
        "if": {"required": ["metric"]},
        "else": {"properties": {"steps": {"items": {"properties": {"check": {"items": strict}}}}}},
        "$defs": defs,
    }  # fmt: skip


def _metrics(ref: Any, target: Any) -> Schema:
    """What `metric:` takes: a name, a mapping with one kind of metric, or a list of such."""
    kinds: dict[str, Schema] = {}
    for name, kind in METRIC_KINDS.items():
        forms = [ref(kind.options), target(kind.options)["properties"][kind.main]]
        if not any(info.is_required() for info in kind.options.model_fields.values()):
            forms.append({"type": "null"})
        kinds[name] = {"anyOf": forms, "description": f"its options, or its {kind.main} alone"}
    alone = [name for name, kind in METRIC_KINDS.items()
             if not any(info.is_required() for info in kind.options.model_fields.values())]  # fmt: skip
    named = {"type": "string", "pattern": f"^{NAME}$", "description": "its name in bounds and reports"}
    entry: Schema = {
        "anyOf": [
            {"enum": alone},
            {
                "type": "object",
                "additionalProperties": False,
                "properties": {"name": named, **kinds},
                "oneOf": [{"required": [name]} for name in kinds],
            },
        ]
    }
    several = {"type": "array", "minItems": 1, "items": entry}
    return {"anyOf": [*entry["anyOf"], several], "description": "task metrics, measured of every artifact on check_on"}


def _mapping(item: Schema, description: str) -> Schema:
    return {"type": "object", "additionalProperties": item, "description": description}


def _complete_step(step: Schema, known: dict[str, Pass], ref: Any) -> None:
    """Add to a step's schema what depends on the passes there are: names, options, needed data and checks."""
    properties = step["properties"]
    properties["use"] = {**_texts(properties["use"]), "enum": [*known, None]}
    properties["to"] = {**_texts(properties["to"]), "enum": [*formats(), None]}
    properties["check"]["items"] = {"type": "string", "pattern": bound_pattern(declared=True)}
    properties["gate"]["items"] = {"type": "string", "pattern": gate_pattern([NAME])}
    step["oneOf"] = [{"required": ["to"]}, {"required": ["use"]}]
    step["not"] = {"required": ["waive", "check"]}
    step["allOf"] = []
    for name, item in known.items():
        then: Schema = {
            "properties": {"with": ref(item.options)}
            if item.options is not Options
            else {"with": {"type": "object", "maxProperties": 0}}
        }
        needs: list[Schema] = []
        if item.needs_data is True:
            needs.append({"required": ["data"]})
        elif callable(item.needs_data) and wants_data_by_default(item):
            needs.append({"anyOf": [{"required": ["data"]}, {"required": ["with"]}]})
        if item.fidelity == "lossy":
            needs.append({"anyOf": [{"required": ["check"]}, {"required": ["waive"]}]})
        if needs:
            then["allOf"] = needs
        step["allOf"].append({"if": {"properties": {"use": {"const": name}}, "required": ["use"]}, "then": then})


def wants_data_by_default(item: Pass) -> bool:
    """Whether a pass must be given data when none of its options is set."""
    try:
        return item.wants_data(item.options())
    except ValidationError:  # an option without a default: there is no such case
        return False


def _texts(field: Schema) -> Schema:
    return {key: field[key] for key in ("description", "default") if key in field}


def bound_pattern(declared: bool = False) -> str:
    """A regular expression (ECMA 262) for bounds such as "logits.cosine >= 0.99", each metric in its own direction.

    declared: the recipe declares metrics of its own, which may be called anything and run either way.
    """

    def words(better: str) -> str:
        return "|".join(re.escape(m.name) for m in METRICS.values() if m.better == better)

    own = "|".join(re.escape(name) for name in METRICS)
    others = rf"|(?!({own})\b){NAME}\s*(>=|<=)" if declared else ""
    number = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*%?"
    return rf"^\s*(.+\.)?(({words('higher')})\s*>=|({words('lower')})\s*<={others})\s*{number}\s*$"
