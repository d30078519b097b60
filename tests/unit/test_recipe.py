"""Recipes as typed data: defaults, sections, paths, overrides; what planning adds is in test_planning.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optkit.artifact import Dim, TensorSpec
from optkit.errors import RecipeError, UserError
from optkit.planning import make_plan
from optkit.recipe import (
    FileSource,
    HuggingFaceSource,
    OnnxSource,
    Recipe,
    TorchSource,
    load_recipe,
    recipe_from,
    recipe_from_text,
)
from optkit.spec.dataspec import NpzData

WHOLE = """\
version: 1
name: digits
model:
  torch: net.py:build
  weights: net.safetensors
  kwargs: {width: 4}
inputs:
  image: {shape: [batch, 1, 32, 32], layout: NCHW, range: [0, 1]}
  ids: {shape: [batch, seq], dtype: int64}
outputs: [logits]
dims:
  batch: {max: 64}
  seq: {min: 4, opt: 8, max: 16}
data:
  fit: {npz: fit.npz}
  judge: {npz: judge.npz, label: label}
check_on: judge
steps:
  - {id: onnx, to: onnx}
  - {id: int8, from: onnx, use: onnx.quantize, data: fit, check: ["cosine >= 0.99"], timeout: 5}
deliver: [int8]
seed: 3
device: cuda
threads: 2
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text("def build(): ...\n", encoding="utf-8")
    for name in ("net.safetensors", "fit.npz", "judge.npz", "m.onnx"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "recipe.yaml").write_text(WHOLE, encoding="utf-8")
    return tmp_path


def test_a_whole_recipe(folder: Path) -> None:
    recipe = load_recipe(folder / "recipe.yaml")
    assert recipe.name == "digits"
    assert recipe.model == TorchSource(torch="net.py:build", weights="net.safetensors", kwargs={"width": 4})
    assert recipe.source_format == "torch"
    assert recipe.inputs == (
        TensorSpec("image", "float32", ("batch", 1, 32, 32), "NCHW", (0.0, 1.0)),
        TensorSpec("ids", "int64", ("batch", "seq")),
    )
    assert recipe.outputs == ("logits",)
    assert recipe.dims == {"batch": Dim(1, 2, 64), "seq": Dim(4, 8, 16)}
    assert recipe.data == {"fit": NpzData(npz="fit.npz"), "judge": NpzData(npz="judge.npz", label="label")}
    assert (recipe.check_on, recipe.deliver) == ("judge", ("int8",))
    assert (recipe.seed, recipe.device, recipe.threads) == (3, "cuda", 2)
    assert [s.id for s in recipe.steps] == ["onnx", "int8"]
    assert (recipe.steps[1].from_, recipe.steps[1].timeout) == ("onnx", 5)
    assert recipe.base == folder
    assert recipe.faults == frozenset()


def test_the_smallest_recipe(folder: Path) -> None:
    recipe = small(folder)
    assert (recipe.name, recipe.seed, recipe.device, recipe.threads) == ("model", 0, "cpu", None)
    assert recipe.model == OnnxSource(onnx="m.onnx")
    assert recipe.source_format == "onnx"
    assert recipe.steps[0].from_ == "source"
    assert make_plan(recipe).deliver == ("ov",)


def small(base: Path, **more: Any) -> Recipe:
    data = {"version": 1, "model": {"onnx": "m.onnx"}, "steps": [{"id": "ov", "to": "openvino"}],
            "data": {"judge": {"random": 4}}, "check_on": "judge", **more}  # fmt: skip
    return recipe_from(data, base)


def test_the_name_of_a_recipe_without_one_is_its_files(folder: Path) -> None:
    for stem, name in [("bert", "bert"), ("bert base (1)", "bert-base-1"), ("...", "model"), ("-x-", "x")]:
        path = folder / f"{stem}.yaml"
        path.write_text(WHOLE.replace("name: digits\n", ""), encoding="utf-8")
        assert load_recipe(path).name == name


def test_opt_is_chosen_where_it_is_not_given(folder: Path) -> None:
    text = WHOLE.replace("batch: {max: 64}", "batch: {min: %s, max: %s}")
    for low, high, opt in [(1, 64, 2), (1, 1, 1), (4, 64, 4), (2, 2, 2)]:
        assert recipe_from_text(text % (low, high), folder).dims["batch"] == Dim(low, opt, high)


def test_where_a_subject_stands(folder: Path) -> None:
    recipe = load_recipe(folder / "recipe.yaml")
    for subject, line in [
        ("model.weights", 5),
        ("model.kwargs.width", 6),
        ("inputs.image", 8),
        ("data.fit", 15),
        ("data.fit.npz", 15),
        ("steps.int8.with.method", 20),
        ("steps.int8", 20),
        ("steps.nothing", 18),
        ("steps", 18),
        ("stepsister", 1),
        ("unheard.of", 1),
    ]:
        place = recipe.place_of(subject)
        assert place is not None
        assert place.line == line, subject


def test_ids_with_dots_are_told_apart(folder: Path) -> None:
    text = WHOLE.replace("id: onnx,", "id: int8.x,").replace("from: onnx", "from: int8.x")
    recipe = recipe_from_text(text, folder)
    assert [recipe.place_of(s).line for s in ("steps.int8.x.to", "steps.int8.check")] == [19, 20]  # type: ignore[union-attr]


def test_paths_start_from_the_recipes_folder(folder: Path) -> None:
    recipe = load_recipe(folder / "recipe.yaml")
    assert recipe.path("net.py") == folder / "net.py"
    assert recipe.path("/etc/hosts") == Path("/etc/hosts")
    assert recipe.path("~/x") == Path.home() / "x"
    assert recipe.path("package:numpy/version.py") == Path(np.__file__).parent / "version.py"
    with pytest.raises(UserError, match="the package 'nosuchpackage' is not installed"):
        recipe.path("package:nosuchpackage/x")
    with pytest.raises(UserError, match="write the path in full"):
        recipe.path("~nosuchuser/x")


def test_paths_of_a_recipe_without_a_file_start_from_its_base(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert small(folder).base == folder
    monkeypatch.chdir(folder)
    assert recipe_from_text(WHOLE).base == folder
    assert load_recipe("recipe.yaml").base == folder


def test_overrides_are_applied_and_kept(folder: Path) -> None:
    sets = ["seed=4", "steps.int8.check=[kl <= 2]", "dims.batch.opt=32"]
    recipe = load_recipe(folder / "recipe.yaml", sets)
    assert recipe.seed == 4
    assert recipe.steps[1].check == ["kl <= 2"]
    assert recipe.dims["batch"] == Dim(1, 32, 64)
    assert recipe.document.assigned == sets


def test_bad_overrides_are_told_together_with_what_is_wrong_besides(folder: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(folder / "recipe.yaml", ["steps.int9.to=x", "seed", "seed=-1", "name=a/b", "deliver=[int9]"])
    assert sorted(p.what[:25] for p in caught.value.problems) == [
        "--set needs key=value, go",
        "--set steps.int9.to: noth",
        "deliver: there is no step",
        "seed: got -1",
        "the name 'a/b' cannot be ",
    ]
    assert all("--set" in str(p) for p in caught.value.problems)


def test_plain_data_may_hold_paths_and_tuples(folder: Path) -> None:
    recipe = small(folder, model={"onnx": folder / "m.onnx"}, inputs={"x": {"shape": ("batch", np.int64(3))}},
                   dims={"batch": {"max": 4}})  # fmt: skip
    assert recipe.inputs == (TensorSpec("x", "float32", ("batch", 3)),)
    assert recipe.model == OnnxSource(onnx=str(folder / "m.onnx"))


def test_kinds_of_source(folder: Path) -> None:
    (folder / "hf").mkdir()
    io = {"inputs": {"x": {"shape": [1, 3]}}, "steps": [{"id": "onnx", "to": "onnx"}]}
    recipe = small(folder, model={"huggingface": "hf", "class": "AutoModel", "pooling": "mean"}, **io)
    assert recipe.model == HuggingFaceSource.model_validate(
        {"huggingface": "hf", "class": "AutoModel", "pooling": "mean"}
    )
    for kind in ("pt2", "torchscript", "pickle"):
        trust = {"trust_pickle": True} if kind == "pickle" else {}
        assert small(folder, model={kind: "m.onnx", **trust}, **io).source_format == "torch"
    assert small(folder, model={"openvino": "m.onnx"}, steps=[{"id": "f", "use": "openvino.fp16"}]).source_format == (
        "openvino"
    )


def test_a_source_of_a_plugins_format(folder: Path, toy_plugin: Path) -> None:
    (folder / "m.toy").write_text("{}", encoding="utf-8")
    (folder / "m.more").write_text("{}", encoding="utf-8")
    steps = [{"id": "bin", "to": "toybin"}]
    recipe = small(folder, model={"file": "m.toy"}, steps=steps)
    assert recipe.model == FileSource(file="m.toy")
    assert recipe.source_format == "toy"
    assert make_plan(recipe).steps[0].use.name == "toy.to_toybin"
    recipe = small(folder, model={"file": "m.more", "format": "toy", "files": ["m.toy"]}, steps=steps)
    assert make_plan(recipe).steps[0].use.name == "toy.to_toybin"
