from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from json_schema import valid

from optkit.errors import RecipeError
from optkit.parity.bounds import METRICS
from optkit.planning import make_plan
from optkit.recipe import recipe_from
from optkit.registry import passes
from optkit.spec.reading import TOP_KEYS
from optkit.spec.schema import DRAFT, bound_pattern, recipe_schema

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


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
