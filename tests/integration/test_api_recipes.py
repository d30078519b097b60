"""The Python API with recipes and files: what convert, compare and open_artifact say to right and wrong ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_kit
from api_kit import SAMPLES

import optkit
from optkit.errors import CheckError, RecipeError, SourceError, UserError
from optkit.recipe import load_recipe


@pytest.fixture
def toy(toy_plugin: Path, tmp_path: Path) -> Path:
    return toy_kit.folder(tmp_path / "toy")


STEPS: list[dict[str, Any]] = [
    {"id": "r", "use": "toy.round", "data": "fit", "check": ["cosine >= 0.99"]},
    {"id": "w", "use": "toy.copy", "waive": "there is nothing to compare"},
]


def convert(folder: Path, **given: Any) -> optkit.Report:
    rest = {"out": folder / "out", "cache": folder / "cache", "jobs": 1, **given}
    return optkit.convert(folder / "m.toy", data=folder / "judge.npz", **rest)


def test_steps_and_targets_are_delivered(toy: Path) -> None:
    steps = [*STEPS, {"id": "deep", "from": "w", "use": "toy.copy", "waive": "there is nothing to compare"}]
    report = convert(toy, to="toybin", steps=steps, fit=toy / "fit.npz", dims={"batch": (1, 3, 9)})
    assert sorted(d["step"] for d in report.data["deliver"]) == ["deep", "r", "toybin"]
    assert report.data["source"]["dims"] == {"batch": {"min": 1, "opt": 3, "max": 9}}
    with pytest.raises(KeyError):
        report.path("w")


def test_a_failure_is_raised_with_its_report(toy: Path) -> None:
    steps = [{"id": "r", "use": "toy.round", "with": {"digits": 0}, "data": "fit", "check": ["cosine >= 0.9999999"]},
             {"id": "next", "from": "r", "to": "toybin"}]  # fmt: skip
    with pytest.raises(CheckError, match=r"r: samples: y: cosine .* next: blocked by r") as caught:
        convert(toy, steps=steps, fit=toy / "fit.npz")
    assert [s["status"] for s in caught.value.report.steps] == ["failed", "blocked"]
    assert (toy / "out/report.md").is_file()
    report = convert(toy, steps=steps, fit=toy / "fit.npz", raise_on_failure=False)
    assert (report.ok, report.exit_code) == (False, 1)
    with pytest.raises(CheckError, match="c: the toy was asked to fail") as caught:
        convert(toy, steps=[{"id": "c", "use": "toy.copy", "with": {"fail": True}}])
    assert caught.value.report.exit_code == 3


def test_recipes_say_everything_themselves(toy: Path) -> None:
    path = toy_kit.recipe(toy, "  - {id: bin, to: toybin}\n")
    given: dict[str, Any] = {"out": toy / "out", "cache": toy / "cache", "jobs": 1}
    assert optkit.convert(path, **given).ok
    assert optkit.convert(load_recipe(path), **given).step("bin")["cached"]["run"]
    data = {**load_recipe(path).document.data, "model": {"file": str(toy / "m.toy")},
            "data": {"judge": {"npz": str(toy / "judge.npz")}}}  # fmt: skip
    report = optkit.convert(data, overrides=["dims.batch.max=5"], **given)
    assert report.data["source"]["dims"]["batch"]["max"] == 5
    assert optkit.plan(data, ["dims.batch.max=5"]).recipe.dims["batch"].max == 5
    assert optkit.plan(str(path), ["dims.batch.max=5"]).recipe.dims["batch"].max == 5
    with pytest.raises(UserError, match="to, data has no place beside a recipe"):
        optkit.convert(path, to="toybin", data={"x": SAMPLES})
    with pytest.raises(UserError, match="takes no overrides"):
        optkit.plan(load_recipe(path), ["dims.batch.max=5"])


@pytest.mark.parametrize(
    ("given", "kind", "what", "hint"),
    [
        ({}, UserError, "nothing says what to make of the model", "'toybin'"),
        ({"to": "toybim"}, RecipeError, "toybim", "toybin"),
        ({"to": "toybin", "dims": {"bach": (1, 2, 3)}}, SourceError, "no dynamic dim of this name", "'batch'"),
        ({"to": "toybin", "dims": {"batch": (3, 2, 1)}}, UserError, r"\(3, 2, 1\), which is no range", "(1, 8, 64)"),
        ({"to": "toybin", "dims": {"batch": "all"}}, UserError, "'all', which is no range", "(1, 8, 64)"),
        ({"to": "toybin", "dims": {"batch": {"mni": 1}}}, UserError, "which is no range", "(1, 8, 64)"),
        ({"to": "toybin", "inputs": {"z": {"shape": [2, 3]}}}, SourceError, "no input 'z'; it has x", "x"),
        ({"to": "toybin", "inputs": {"x": {"shape": [2, 4]}}}, SourceError, "fixed at 3, the recipe says 4", "3"),
        ({"to": "toybin", "inputs": {"x": {"shape": ["n", 3]}}}, RecipeError, "the dim 'n' has no range", "dims"),
        ({"to": "toybin", "outputs": ["z"]}, SourceError, "outputs are y, the recipe says z", "in its order"),
        ({"to": "toybin", "weights": "w.pt"}, UserError, "weights of its own", "leave"),
        ({"to": "toybin", "name": "a/b"}, RecipeError, "cannot be a folder's name", "letters"),
        ({"to": "toybin", "example_inputs": SAMPLES}, UserError, "go by name", "{"),
        ({"steps": [{"id": "r", "use": "toy.rond"}]}, RecipeError, "toy.rond", "toy.round"),
        ({"steps": [{"id": "r", "use": "toy.round", "data": "fit"}]}, RecipeError, "fit", "judge"),
        ({"steps": [{"use": "toy.copy"}]}, RecipeError, "id", ""),
    ],
)
def test_what_a_script_can_get_wrong(
    toy: Path, given: dict[str, Any], kind: type[Exception], what: str, hint: str
) -> None:
    with pytest.raises(kind, match=what) as caught:
        convert(toy, **given)
    assert hint in str(caught.value)
    assert not list((toy / "out").glob("*/optkit.json"))
    assert not (toy / "out/report.json").exists()


def test_a_model_that_is_not_there(toy: Path, tmp_path: Path) -> None:
    for call in (
        lambda: optkit.convert(toy / "m.tyo", to="toybin", cache=tmp_path),
        lambda: optkit.open_artifact(toy / "m.tyo"),
        lambda: optkit.compare(toy / "m.toy", toy / "m.tyo"),
    ):
        with pytest.raises(UserError, match=r"there is no .*m\.tyo") as caught:
            call()
        assert "'m.toy'" in caught.value.hint
    with pytest.raises(UserError, match=r"no kind optkit reads"):
        optkit.open_artifact(toy / "judge.npz")
    with pytest.raises(UserError, match="holds no model optkit knows"):
        optkit.open_artifact(toy)


def test_a_moved_checkout_runs_nothing_again(toy: Path, tmp_path: Path) -> None:
    recipe = toy_kit.recipe(toy, "  - {id: bin, to: toybin}\n")
    given: dict[str, Any] = {"cache": tmp_path / "cache", "jobs": 1}
    optkit.convert(recipe, out=toy / "out", **given)
    moved = Path(shutil.copytree(toy, tmp_path / "elsewhere", ignore=shutil.ignore_patterns("out")))
    shutil.rmtree(toy)
    report = optkit.convert(moved / "recipe.yaml", out=moved / "out", **given)
    assert report.step("bin")["cached"] == {"run": True, "check": True}
    toy_kit.model(moved, weights=[[1, 0, 0], [0, 1, 0]])
    report = optkit.convert(moved / "recipe.yaml", out=moved / "out", **given)
    assert report.step("bin")["cached"] == {"run": False, "check": False}


def test_comparisons(toy: Path) -> None:
    data = {"x": np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)}

    def other(name: str, **changes: Any) -> Path:
        (folder := toy / name).mkdir()
        return toy_kit.model(folder, **changes)

    weights = np.array(json.loads((toy / "m.toy").read_text())["weights"])
    near = other("near", weights=(weights + 1e-3).tolist())
    same = optkit.compare(toy / "m.toy", other("same"), data=data)
    assert same["held"]
    assert [c["name"] for c in same["cases"]] == ["samples", "batch=1", "batch=2", "batch=4", "batch=3", "zeros"]
    assert not optkit.compare(toy / "m.toy", near, data=data)["held"]
    assert optkit.compare(toy / "m.toy", near, data=data, bounds=["cosine >= 0.999"])["held"]
    assert not optkit.compare(toy / "m.toy", near, data=data, bounds=["cosine >= 0.999", "max_abs <= 1e-9"])["held"]
    swapped = optkit.compare(toy / "m.toy", other("swapped", weights=weights[::-1].tolist()), data=data)
    assert not swapped["held"]
    named = other("named", output={"name": "z", "dtype": "float32", "shape": ["batch", 4]})
    told = optkit.compare(toy / "m.toy", named, data=data, bounds=["cosine >= 0.5"])
    assert not told["held"]
    assert "no output 'y'" in str(told["cases"][0]["source"]["problems"])
    short = optkit.compare(toy / "m.toy", other("short", weights=weights[:2].tolist()), data=data)
    assert not short["held"]
    fixed = other("fixed", input={"name": "x", "dtype": "float32", "shape": [2, 3]},
                  output={"name": "y", "dtype": "float32", "shape": [2, 4]})  # fmt: skip
    told = optkit.compare(toy / "m.toy", fixed, data=data)
    assert told["held"]
    assert told["notes"] == ["compared at batch=2 alone: one of the models is fixed there"]
    with pytest.raises(UserError, match="take different inputs: x and q"):
        optkit.compare(toy / "m.toy", other("q", input={"name": "q", "dtype": "float32", "shape": ["batch", 3]}))
    with pytest.raises(UserError, match="unknown metric 'cosin'"):
        optkit.compare(toy / "m.toy", near, bounds=["cosin >= 0.9"])
    with pytest.raises(UserError, match="expected shape"):
        optkit.compare(toy / "m.toy", near, data={"x": SAMPLES[:, 0, 0]})
    with pytest.raises(UserError, match="neither model has a dynamic dim 'bach'"):
        optkit.compare(toy / "m.toy", near, dims={"bach": (1, 2)})


def edited(folder: Path, **changes: Any) -> None:
    path = folder / "optkit.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_deliveries_that_are_not_what_they_were(toy: Path, tmp_path: Path) -> None:
    report = convert(toy, to="toybin", steps=STEPS, fit=toy / "fit.npz")
    assert optkit.verify(report.path("r"))["held"]
    told = optkit.verify(report.path("w"))
    assert not told["held"]  # nobody has checked it, here or there
    assert told["problems"] == [
        "it was delivered without test vectors, for its check was waived: there is nothing to compare"
    ]
    number = 0

    def damaged(edit: Any) -> Mapping[str, Any]:
        nonlocal number
        number += 1
        folder = Path(shutil.copytree(report.path("r"), tmp_path / str(number)))
        edit(folder)
        told: Mapping[str, Any] = optkit.verify(folder)
        assert not told["held"]
        return told

    record = "optkit.json is not the record that was delivered: its sha256 differs"
    assert damaged(lambda f: (f / "model.toy").write_text("{}"))["problems"][0].startswith("model.toy is not the file")
    assert damaged(lambda f: (f / "test-vectors.npz").unlink())["problems"] == ["test-vectors.npz is missing"]
    assert damaged(lambda f: (f / "test-vectors.npz").write_bytes(b""))["problems"][0].startswith("test-vectors.npz is")
    assert damaged(lambda f: edited(f, status="passed again"))["problems"] == [record]
    assert damaged(lambda f: edited(f, vectors=None))["problems"] == [record]
    assert damaged(lambda f: edited(f, format="toybin"))["problems"] == [record]
    for edit, what in (
        (lambda f: (f / "optkit.json").unlink(), r"has no optkit\.json"),
        (lambda f: (f / "optkit.json").write_text("{"), r"optkit\.json is damaged"),
        (lambda f: (f / "optkit.json").write_text('{"schema": 1}'), "is damaged: it lacks 'main'"),
        (lambda f: edited(f, schema=99), "has schema 99; this optkit reads 1"),
        (shutil.rmtree, "there is no folder"),
    ):
        with pytest.raises(UserError, match=what):
            damaged(edit)


def test_a_delivery_goes_on_with_what_its_record_knows(toy: Path) -> None:
    inputs = {"x": {"shape": ["batch", 3], "range": [-5, 5]}}
    first = convert(toy, to="toybin", inputs=inputs, dims={"batch": (2, 3, 5)})
    report = optkit.convert(
        first.path("toybin"), to="toypack", data=toy / "judge.npz", out=toy / "next", cache=toy / "cache", jobs=1
    )
    assert report.data["source"]["dims"] == {"batch": {"min": 2, "opt": 3, "max": 5}}
    assert report.data["source"]["signature"]["inputs"][0]["range"] == [-5, 5]
    told = optkit.compare(first.path("toybin"), report.path("toypack"))
    assert told["held"]
    assert told["dims"] == {"batch": {"min": 2, "opt": 3, "max": 5}}
