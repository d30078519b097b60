from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from optkit.cli import cli
from optkit.cli.flags import example_flags
from optkit.drafting.shorthand import (
    data_section,
    is_recipe,
    model_name,
    model_section,
    of_delivery,
    parse_dim,
    parse_input,
    recipe_data,
    safe_name,
)
from optkit.drafting.targets import nearer
from optkit.errors import UserError

NET = """
from torch import nn
class Encoder(nn.Module):
    def forward(self, ids, mask, scale=1.0):
        return ids
class Other(nn.Module):
    def forward(self, x):
        return x
def build():
    return Encoder().eval()
def make(**kwargs):
    return unknown()
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "name", "spec"),
    [
        ("image:float32[batch,3,224,224]", "image", {"shape": ["batch", 3, 224, 224], "dtype": "float32"}),
        ("image[batch, 3]", "image", {"shape": ["batch", 3], "dtype": "float32"}),
        ("x:0:int64[2]", "x:0", {"shape": [2], "dtype": "int64"}),
        ("a/b.c:bool[]", "a/b.c", {"shape": [], "dtype": "bool"}),
        ("ids:int64[batch,seq]=0..30521", "ids", {"shape": ["batch", "seq"], "dtype": "int64", "range": [0, 30521]}),
        ("x[4] = -1.5 .. 2e3", "x", {"shape": [4], "dtype": "float32", "range": [-1.5, 2000]}),
    ],
)
def test_inputs(text: str, name: str, spec: dict[str, object]) -> None:
    assert parse_input(text) == (name, spec)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("image", "NAME:dtype"),
        ("image:float31[3]", "float32"),
        ("image[3,x-y]", "NAME:dtype"),
        ("x[1]=a..b", "NAME"),
        ("[3]", "NAME"),
    ],
)
def test_wrong_inputs(text: str, hint: str) -> None:
    with pytest.raises(UserError, match="--input") as caught:
        parse_input(text)
    assert hint in caught.value.hint


def test_dims() -> None:
    assert parse_dim("batch=1:8:64") == ("batch", {"min": 1, "opt": 8, "max": 64})
    assert parse_dim("batch=1:64") == ("batch", {"min": 1, "max": 64})
    assert parse_dim("batch=8") == ("batch", {"min": 8, "max": 8})
    for wrong in ("batch", "batch=", "batch=8:1", "batch=0:1", "batch=1:2:3:4", "1=2"):
        with pytest.raises(UserError, match="--dim"):
            parse_dim(wrong)


def test_models() -> None:
    for name in ("m.onnx", "m.xml", "m.pt2", "net.py"):
        Path(name).touch()
    assert model_section("m.onnx") == {"onnx": "m.onnx"}
    assert model_section("m.xml") == {"openvino": "m.xml"}
    assert model_section("m.pt2") == {"pt2": "m.pt2"}
    assert model_section("net.py:build", "w.pt") == {"torch": "net.py:build", "weights": "w.pt"}
    assert model_section("package.module:build") == {"torch": "package.module:build"}
    Path("hf").mkdir()
    Path("hf/config.json").touch()
    assert model_section("hf") == {"huggingface": "hf"}
    Path("made").mkdir()
    Path("made/model.xml").touch()
    assert model_section("made") == {"openvino": str(Path("made/model.xml"))}
    with zipfile.ZipFile("s.pt", "w") as archive:
        archive.writestr("s/code/__torch__.py", "")
    assert model_section("s.pt") == {"torchscript": "s.pt"}


@pytest.mark.parametrize(
    ("model", "weights", "what", "hint"),
    [
        ("m.onxx", None, "there is no m.onxx", "'m.onnx'"),
        ("net.py", None, "does not say which callable", "net.py:build"),
        ("w.safetensors", None, "holds weights", "--weights w.safetensors"),
        ("w.pt", None, "holds weights", "--weights w.pt"),
        ("m.pickle", None, "no kind optkit reads", ".onnx"),
        ("empty", None, "holds no model", "config.json"),
        ("m.onnx", "w.pt", "weights of its own", "leave"),
    ],
)
def test_wrong_models(model: str, weights: str | None, what: str, hint: str) -> None:
    for name in ("m.onnx", "net.py", "w.safetensors", "w.pt", "m.pickle"):
        Path(name).touch()
    Path("empty").mkdir()
    with pytest.raises(UserError, match=what) as caught:
        model_section(model, weights)
    assert hint in caught.value.hint


def test_a_format_that_a_plug_in_brings(toy_plugin: Path) -> None:
    Path("m.toy").touch()
    Path("made").mkdir()
    Path("made/model.toybin").touch()
    assert model_section("m.toy") == {"file": "m.toy"}
    assert model_section("made/") == {"file": "made/model.toybin"}
    assert recipe_data("m.toy", ["toybin"])["model"] == {"file": "m.toy"}
    Path("m.pt").touch()
    with pytest.raises(UserError, match="holds weights"):
        model_section("m.pt")


def test_a_delivery_says_what_goes_into_it() -> None:
    Path("made").mkdir()
    Path("made/model.onnx").touch()
    assert of_delivery("made") == ({}, {})
    assert "inputs" not in recipe_data("made", ["openvino"])
    spec = {"name": "x", "dtype": "float32", "shape": ["batch", 3], "range": [0, 1]}
    record = {
        "schema": 1, "format": "onnx", "main": "model.onnx", "digest": "", "files": {"model.onnx": {}}, "vectors": None,
        "signature": {"inputs": [spec], "outputs": []},
        "dims": {"batch": {"min": 2, "opt": 3, "max": 4}, "other": {"min": 1, "opt": 1, "max": 1}},
    }  # fmt: skip
    Path("made/optkit.json").write_text(json.dumps(record))
    data = recipe_data("made", ["openvino"])
    assert data["inputs"] == {"x": {"dtype": "float32", "shape": ["batch", 3], "range": [0, 1]}}
    assert data["dims"] == {"batch": {"min": 2, "opt": 3, "max": 4}}
    assert recipe_data("made", ["openvino"], dims=["batch=1:9"])["dims"] == {"batch": {"min": 1, "max": 9}}
    Path("made/optkit.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        recipe_data("made", ["openvino"])


def test_names_that_a_recipe_can_hold() -> None:
    assert safe_name("My net (2)") == "My-net-2"
    assert safe_name("_net") == "net"
    assert safe_name("???") == "model"


def test_data() -> None:
    Path("images").mkdir()
    assert data_section(None) == {"random": 32}
    assert data_section("random:7") == {"random": 7}
    assert data_section("a.npz") == {"npz": "a.npz"}
    np.savez("labelled.npz", x=np.zeros(3), label=np.zeros(3))
    assert data_section("labelled.npz") == {"npz": "labelled.npz", "label": "label"}
    assert data_section("labelled.npz", inputs=["x", "label"]) == {"npz": "labelled.npz"}
    assert data_section("images") == {"images": "images"}
    assert data_section("data.py:samples") == {"python": "data.py:samples"}
    assert data_section("t.jsonl", {"huggingface": "hf"})["tokenizer"] == "hf"
    for wrong in ("t.jsonl", "a.csv", "random:x y"):
        with pytest.raises(UserError, match="--data"):
            data_section(wrong)


def test_a_model_that_does_not_know_its_inputs_is_told_the_flags_with_its_own_names() -> None:
    Path("net.py").write_text(NET)
    result = CliRunner().invoke(cli, ["convert", "net.py:build", "--to", "onnx"])
    assert result.exit_code == 2
    assert "a torch model does not say what goes into it" in result.stderr
    assert (
        "--input 'ids:float32[batch,3,224,224]' --input 'mask:float32[batch,3,224,224]' --dim batch=1:8:64"
        in result.stderr
    )
    assert "scale" not in result.stderr
    assert "NAME:float32" in example_flags({"torch": "net.py:make"})  # what it returns cannot be read from the text
    assert "NAME:float32" in example_flags({"torch": "package.module:build"})
    Path("hf").mkdir()
    Path("hf/config.json").write_text('{"vocab_size": 100}')
    result = CliRunner().invoke(cli, ["convert", "hf", "--to", "onnx"])
    assert "--input 'input_ids:int64[batch,sequence]=0..99' --input 'attention_mask:" in result.stderr
    assert "--dim batch=1:8:64 --dim sequence=8:64:128" in result.stderr
    with pytest.raises(UserError, match="does not say what goes into it"):
        recipe_data("net.py:build", ["onnx"])
    assert "inputs" not in recipe_data("net.py:build", ["onnx"], inputs_given=True)


def test_a_dim_without_a_range_names_the_flag() -> None:
    with pytest.raises(UserError, match="which sizes batch, seq may take") as caught:
        recipe_data("net.py:build", ["onnx"], ["x[batch,seq]"])
    assert "--dim batch=1:8:64 --dim seq=1:8:64" in caught.value.hint


def test_nothing_to_make_is_an_error() -> None:
    with pytest.raises(UserError, match="nothing says what to make") as caught:
        recipe_data("net.py:build", [])
    assert "openvino" in caught.value.hint
    assert "torch" not in caught.value.hint.split("one of:")[1]


def test_the_recipe_that_flags_stand_for_is_one_that_loads() -> None:
    from optkit.recipe import recipe_from

    data = recipe_data("models/My net.py:build", ["onnx", "openvino", "onnx"], ["x[batch,3]"], ["batch=1:4"], "a.npz")
    recipe = recipe_from(data)
    assert recipe.name == "My-net"
    assert [s.id for s in recipe.steps] == ["onnx", "openvino"] == list(recipe.deliver)
    assert recipe.dims["batch"].max == 4
    assert recipe.check_on == "judge"


def test_names() -> None:
    Path("file.onnx").touch()
    assert model_name("file.onnx") == "file"
    assert model_name("a/net.py:build") == "net"
    assert model_name("package.module:build") == "module"
    assert model_name("package:some_models/inner/folder") == "some_models"
    assert is_recipe("A.YAML")
    assert not is_recipe("a.onnx")


INT8 = {"data": "judge.npz", "int8": ["cosine >= 0.99"], "fit": "fit.npz"}


def test_int8_of_each_target_within_what_may_be_lost() -> None:
    Path("m.onnx").touch()
    data = recipe_data("m.onnx", ["onnx", "openvino", "tensorrt"], **INT8)
    wish = {"budget": ["cosine >= 0.992"], "tune": True}
    fitted = {"data": "fit", "check": ["cosine >= 0.99"]}
    assert data["steps"] == [
        {"id": "openvino", "to": "openvino"},
        {"id": "tensorrt", "to": "tensorrt"},
        {"id": "onnx-int8", "use": "onnx.quantize", "with": wish, **fitted},
        {"id": "openvino-int8", "from": "openvino", "use": "openvino.quantize", "with": wish, **fitted},
        {"id": "onnx-qdq", "use": "onnx.quantize", "with": {**wish, "for": "tensorrt"}, **fitted},
        {"id": "tensorrt-int8", "from": "onnx-qdq", "to": "tensorrt"},
    ]
    assert data["deliver"] == ["openvino", "tensorrt", "onnx-int8", "openvino-int8", "tensorrt-int8"]
    assert data["data"] == {"judge": {"npz": "judge.npz"}, "fit": {"npz": "fit.npz"}}
    Path("m.keras").touch()
    steps = {s["id"]: s for s in recipe_data("m.keras", ["tensorrt"], **INT8)["steps"]}
    assert steps["onnx"] == {"id": "onnx", "to": "onnx"}
    assert steps["onnx-qdq"]["from"] == "onnx"


@pytest.mark.parametrize(
    ("bound", "tighter"),
    [
        ("cosine >= 0.99", "cosine >= 0.992"),
        ("logits.rel_l2 <= 10%", "logits.rel_l2 <= 0.08"),
        ("accuracy_drop <= 0.5%", "accuracy_drop <= 0.004"),
        ("sqnr_db >= 20", "sqnr_db >= 21.9382"),
        ("f1_drop <= 1%", "f1_drop <= 1%"),  # of a metric that only the recipe knows
    ],
)
def test_what_int8_is_fitted_to_leaves_room_for_new_samples(bound: str, tighter: str) -> None:
    assert nearer(bound) == tighter


@pytest.mark.parametrize(
    ("to", "change", "what", "hint"),
    [
        ("onnx", {"fit": None}, "--int8 finds ranges and settings on data", "--fit SPEC"),
        ("onnx", {"data": None}, "--int8 is judged on data", "--data SPEC"),
        ("onnx", {"int8": []}, "--fit: nothing is fitted", "--int8 'cosine >= 0.99'"),
        ("onnx", {"fit": "a.csv"}, "--fit a.csv: this is no data optkit reads", "FILE.npz"),
        ("savedmodel", {}, "int8 of savedmodel is not made", "onnx, openvino, tflite and tensorrt"),
    ],
)
def test_int8_that_cannot_be_asked_for(to: str, change: dict[str, Any], what: str, hint: str) -> None:
    Path("m.keras").touch()
    with pytest.raises(UserError, match=re.escape(what)) as caught:
        recipe_data("m.keras", [to], **{**INT8, **change})
    assert hint in caught.value.hint
