from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from optkit.errors import RecipeError
from optkit.parity.bounds import METRICS
from optkit.planning import make_plan
from optkit.reading import TOP_KEYS
from optkit.recipe import recipe_from
from optkit.registry import passes
from optkit.schema import DRAFT, bound_pattern, recipe_schema

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def valid(value: Any, schema: Any, root: dict[str, Any]) -> bool:
    """Whether a value meets a schema, by the keywords of draft 2020-12 that recipe_schema uses, and no others."""
    if isinstance(schema, bool):
        return schema
    checks = {
        key: rule for key, rule in schema.items() if key not in ("description", "default", "title", "$defs", "$schema")
    }
    unknown = set(checks) - set(_KEYWORDS) - {"then", "else"}
    assert not unknown, f"the test knows no {unknown}"
    return all(_KEYWORDS[key](value, rule, schema, root) for key, rule in checks.items() if key in _KEYWORDS)


def _is(value: Any, kind: str | list[str]) -> bool:
    if isinstance(kind, list):
        return any(_is(value, k) for k in kind)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"object": isinstance(value, dict), "array": isinstance(value, list), "string": isinstance(value, str),
            "null": value is None, "boolean": isinstance(value, bool), "number": number,
            "integer": number and float(value).is_integer()}[kind]  # fmt: skip


def _properties(value: Any, rule: Any, schema: Any, root: dict[str, Any]) -> bool:
    return not isinstance(value, dict) or all(valid(value[k], s, root) for k, s in rule.items() if k in value)


def _additional(value: Any, rule: Any, schema: Any, root: dict[str, Any]) -> bool:
    named = schema.get("properties", {})
    return not isinstance(value, dict) or all(valid(v, rule, root) for k, v in value.items() if k not in named)


def _if(value: Any, rule: Any, schema: Any, root: dict[str, Any]) -> bool:
    branch = schema.get("then" if valid(value, rule, root) else "else", True)
    return valid(value, branch, root)


def _equal(one: Any, other: Any) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


_KEYWORDS: dict[str, Any] = {
    "$ref": lambda v, r, s, root: valid(v, root["$defs"][r.removeprefix("#/$defs/")], root),
    "type": lambda v, r, s, root: _is(v, r),
    "const": lambda v, r, s, root: _equal(v, r),
    "enum": lambda v, r, s, root: any(_equal(v, item) for item in r),
    "pattern": lambda v, r, s, root: not isinstance(v, str) or re.search(r, v) is not None,
    "required": lambda v, r, s, root: not isinstance(v, dict) or set(r) <= set(v),
    "properties": _properties,
    "additionalProperties": _additional,
    "maxProperties": lambda v, r, s, root: not isinstance(v, dict) or len(v) <= r,
    "items": lambda v, r, s, root: not isinstance(v, list) or all(
        valid(item, r, root) for item in v[len(s.get("prefixItems", [])):]),
    "prefixItems": lambda v, r, s, root: not isinstance(v, list) or all(valid(i, x, root) for i, x in zip(v, r)),  # noqa: B905
    "minItems": lambda v, r, s, root: not isinstance(v, list) or len(v) >= r,
    "maxItems": lambda v, r, s, root: not isinstance(v, list) or len(v) <= r,
    "uniqueItems": lambda v, r, s, root: not r or not isinstance(v, list) or len({str(i) for i in v}) == len(v),
    "minLength": lambda v, r, s, root: not isinstance(v, str) or len(v) >= r,
    "minimum": lambda v, r, s, root: not _is(v, "number") or v >= r,
    "maximum": lambda v, r, s, root: not _is(v, "number") or v <= r,
    "exclusiveMinimum": lambda v, r, s, root: not _is(v, "number") or v > r,
    "exclusiveMaximum": lambda v, r, s, root: not _is(v, "number") or v < r,
    "allOf": lambda v, r, s, root: all(valid(v, x, root) for x in r),
    "anyOf": lambda v, r, s, root: any(valid(v, x, root) for x in r),
    "oneOf": lambda v, r, s, root: sum(valid(v, x, root) for x in r) == 1,
    "not": lambda v, r, s, root: not valid(v, r, root),
    "if": _if,
}  # fmt: skip

RECIPE: dict[str, Any] = {
    "version": 1,
    "name": "net",
    "model": {"torch": "net.py:build", "weights": "net.safetensors"},
    "inputs": {"image": {"shape": ["batch", 3, 32, 32], "dtype": "float32", "layout": "NCHW", "range": [0, 1]}},
    "dims": {"batch": {"min": 1, "opt": 8, "max": 64}},
    "data": {
        "fit": {"npz": "fit.npz", "label": "label"},
        "judge": {"images": "faces", "preprocess": {"scale": "1/255"}},
    },
    "check_on": "judge",
    "steps": [
        {"id": "onnx", "to": "onnx", "timeout": 60},
        {"id": "int8", "from": "onnx", "use": "onnx.quantize", "data": "fit", "check": ["cosine >= 0.99"]},
        {"id": "ov", "from": "onnx", "to": "openvino", "on_target": True},
    ],
    "deliver": ["int8", "ov"],
    "threads": 2,
}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return recipe_schema()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with the files that RECIPE names."""
    for name in ("net.py", "net.safetensors", "fit.npz"):
        (tmp_path / name).touch()
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "a.png").touch()
    return tmp_path


def changed(path: str, value: Any) -> dict[str, Any]:
    """RECIPE with the value at a dotted path replaced, or added."""
    recipe = copy.deepcopy(RECIPE)
    *outer, last = path.split(".")
    holder: Any = recipe
    for word in outer:
        holder = holder[int(word) if word.isdigit() else word]
    holder[int(last) if isinstance(holder, list) else last] = value
    return recipe


def test_it_says_which_draft_it_is_and_refers_to_nothing_that_is_not_there(schema: dict[str, Any]) -> None:
    assert schema["$schema"] == DRAFT == "https://json-schema.org/draft/2020-12/schema"
    text = str(schema)
    for name in re.findall(r"#/\$defs/([^'\"]+)", text):
        assert name in schema["$defs"]


def test_it_has_the_recipes_own_keys(schema: dict[str, Any]) -> None:
    assert set(schema["properties"]) == set(TOP_KEYS)


def test_a_full_recipe_is_valid_and_loads(schema: dict[str, Any]) -> None:
    assert valid(RECIPE, schema, schema)
    assert recipe_from(RECIPE).name == "net"


@pytest.mark.parametrize(
    "metric",
    [
        "accuracy", {"top_k": 5}, {"f1": {"average": "micro", "output": "y"}}, {"iou": {"class": 3}},
        ["accuracy", {"name": "wer", "python": "net.py:wer"}, {"name": "d", "map": "dets"}, {"perplexity": None}],
    ],
)  # fmt: skip
def test_the_forms_of_a_metric_are_valid_and_so_are_bounds_on_them(schema: dict[str, Any], metric: Any) -> None:
    recipe = changed("metric", metric)
    recipe["data"]["fit"]["label"] = ["boxes", "labels"]
    recipe["steps"][1]["check"] = ["wer_rise_upper <= 2%", "accuracy_lower >= 0.9"]
    assert valid(recipe, schema, schema)
    recipe["steps"][1]["check"] = ["cosine <= 0.9"]
    assert not valid(recipe, schema, schema)


@pytest.mark.parametrize("file", RECIPES, ids=[p.stem for p in RECIPES])
def test_every_recipe_in_the_repository_is_valid(schema: dict[str, Any], file: Path) -> None:
    assert valid(yaml.safe_load(file.read_text(encoding="utf-8")), schema, schema)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("version", 2),
        ("stpes", []),
        ("name", "a/b"),
        ("model", {"torch": "a:b", "onnx": "c"}),
        ("model", {"torhc": "a:b"}),
        ("model.kwarg", {}),
        ("inputs.image.dtype", "float31"),
        ("inputs.image.shape", 3),
        ("dims.batch.max", 0),
        ("dims.batch", {"min": 1}),
        ("data.fit", {"npz": "a", "random": 3}),
        ("data.judge.preprocess.resample", "cubic"),
        ("data.judge.preprocess.scale", [1]),
        ("steps", []),
        ("steps.0.to", "onyx"),
        ("steps.0.use", "onnx.simplify"),
        ("steps.1.use", "onnx.quantise"),
        ("steps.1.with", {"no_such_option": 1}),
        ("steps.1.check", ["cosin >= 0.99"]),
        ("steps.1.check", ["cosine <= 0.99"]),
        ("steps.1.check", ["cosine >= high"]),
        ("steps.1.waive", "both a bound and a reason"),
        ("steps.2.id", "a b"),
        ("steps.2.timeout", 0),
        ("deliver", ["ov", "ov"]),
        ("outputs", "logits"),
        ("seed", -1),
        ("seed", 1.5),
        ("threads", 0),
        ("device", 1),
        ("metric", "acuracy"),
        ("metric", "top_k"),
        ("metric", []),
        ("metric", {"accuracy": {}, "f1": {}}),
        ("metric", {"f1": {"averag": "macro"}}),
        ("metric", {"name": "a b", "f1": {}}),
        ("metric", [{"top_k": 0}]),
        ("data.fit.label", 5),
    ],
)
def test_the_schema_and_the_recipe_refuse_the_same_mistakes(
    schema: dict[str, Any], files: Path, path: str, value: Any
) -> None:
    recipe = changed(path, value)
    assert not valid(recipe, schema, schema)
    with pytest.raises(RecipeError):
        make_plan(recipe_from(recipe, files))


@pytest.mark.parametrize("drop", ["data", "check"])
def test_what_a_pass_needs_is_required(schema: dict[str, Any], drop: str) -> None:
    recipe = copy.deepcopy(RECIPE)
    del recipe["steps"][1][drop]
    assert not valid(recipe, schema, schema)
    if drop == "check":
        recipe["steps"][1]["waive"] = "measured by hand"
        assert valid(recipe, schema, schema)


def test_every_pass_has_its_options(schema: dict[str, Any]) -> None:
    rules = schema["$defs"]["StepSpec"]["allOf"]
    by_name = {rule["if"]["properties"]["use"]["const"]: rule["then"] for rule in rules}
    assert set(by_name) == set(passes())
    for name, use in passes().items():
        options = by_name[name]["properties"]["with"]
        known = schema["$defs"][options["$ref"].rpartition("/")[2]]["properties"] if "$ref" in options else {}
        assert set(known) == {info.alias or field for field, info in use.options.model_fields.items()}


def test_the_bound_pattern_takes_what_the_parser_takes() -> None:
    pattern = re.compile(bound_pattern())
    for metric in METRICS.values():
        right, wrong = (">=", "<=") if metric.better == "higher" else ("<=", ">=")
        assert pattern.search(f"{metric.name} {right} 0.5")
        assert not pattern.search(f"{metric.name} {wrong} 0.5")
    for good in ("logits.cosine>=.9", "a/b.c:0.cosine >= 9.9e-1", "top1_agreement >= 99.5%", " rel_l2 <= 1e-3 "):
        assert pattern.search(good)
    for bad in ("cosine", "cosine >=", "cosine > 0.9", ">= 0.9", "cosine >= 0.9 dB"):
        assert not pattern.search(bad)


def test_what_the_schema_takes_also_plans(files: Path) -> None:
    assert [s.id for s in make_plan(recipe_from(RECIPE, files)).steps] == ["onnx", "int8", "ov"]
