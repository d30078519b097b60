from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import yaml
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from optkit.cli import cli
from optkit.cli.yamltext import flow, relocated, scalar
from optkit.drafting.init import dim_name, write
from optkit.planning import make_plan
from optkit.recipe import Recipe, load_recipe

NETS = """
import torch
from torch import nn

class Ids(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 4)
    def forward(self, input_ids, attention_mask):
        return self.table(input_ids) * attention_mask[..., None]

class Pair(nn.Module):
    def forward(self, left, right):
        return left @ right.transpose(1, 2) + torch.eye(5)

def cnn():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 2))

def ids():
    return Ids()

def pair():
    return Pair()

def line():
    return nn.Linear(7, 2)
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def save_onnx(path: str, shape: list[int | str | None], kind: int = TensorProto.FLOAT, name: str = "x") -> None:
    """A model with one input and one Identity in it."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph([helper.make_node("Identity", [name], ["y"])], "g", [value(name, kind, shape)],
                              [value("y", kind, shape)])  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["init", *arguments])


def loaded(path: str = "recipe.yaml") -> Recipe:
    """The recipe in a file, which must also plan without a mistake."""
    recipe = load_recipe(path)
    make_plan(recipe)
    return recipe


def test_an_onnx_file() -> None:
    save_onnx("my net.onnx", ["batch", 3, None])
    result = invoke("my net.onnx")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == "wrote recipe.yaml; look at 1 guessed value in it\nnext: optkit plan recipe.yaml\n"
    recipe = loaded()
    assert recipe.name == "my-net"
    assert str(recipe.inputs[0]) == "x: float32[batch, 3, x_2]"
    assert set(recipe.dims) == {"batch", "x_2"}
    assert [s.to for s in recipe.steps] == ["openvino", "savedmodel", "tflite"]
    text = Path("recipe.yaml").read_text()
    assert "# the file has no names for its dynamic dims" in text
    assert "#   judge: {npz: judge.npz}   # an array named x" in text
    assert "  # - id: openvino-quantize\n  #   from: openvino\n  #   use: openvino.quantize\n" in text


def test_a_place_that_no_recipe_can_go_to() -> None:
    save_onnx("net.onnx", ["batch", 3])
    for place, what in ((".", ". is a folder"), ("no/where/r.yaml", "there is no folder no/where")):
        result = invoke("net.onnx", "--output", place)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: {what}\n  try: ")


def test_a_dim_that_inputs_share_stays_one(tmp_path: Path) -> None:
    import torch

    class Pair(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, query, doc):  # type: ignore[no-untyped-def]
            return query * doc

    pair, batch = (torch.randn(2, 3), torch.randn(2, 3)), torch.export.Dim("batch", min=1, max=64)
    torch.export.save(torch.export.export(Pair(), pair, dynamic_shapes=({0: batch}, {0: batch})), "pair.pt2")
    assert invoke("pair.pt2").exit_code == 0
    recipe = loaded()
    assert list(map(str, recipe.inputs)) == ["query: float32[batch, 3]", "doc: float32[batch, 3]"]
    assert set(recipe.dims) == {"batch"}


@pytest.mark.filterwarnings("ignore:`torch.jit.:DeprecationWarning")
def test_torchscript_has_its_shapes_tried_and_the_exporter_that_reads_it() -> None:
    import torch

    net = torch.nn.Sequential(torch.nn.Linear(7, 4), torch.nn.ReLU())
    torch.jit.save(torch.jit.trace(net.eval(), torch.randn(2, 7)), "net.pt")
    assert invoke("net.pt").exit_code == 0
    recipe = loaded()
    assert [t.shape for t in recipe.inputs] == [("batch", 7)]
    assert recipe.steps[0].with_ == {"exporter": "torchscript"}


def test_a_model_that_is_called_model_is_named_by_its_folder() -> None:
    Path("resnet").mkdir()
    save_onnx("resnet/model.onnx", ["batch", 3])
    assert invoke("resnet/model.onnx").exit_code == 0
    assert loaded().name == "resnet"


def test_integers_get_a_range_without_which_no_sample_could_be_made_up() -> None:
    save_onnx("ids.onnx", ["batch", "seq_len"], TensorProto.INT64)
    invoke("ids.onnx")
    recipe = loaded()
    assert recipe.inputs[0].range == (0, 1)
    assert recipe.dims["seq_len"].max == 128


def test_what_is_there_is_not_overwritten() -> None:
    save_onnx("a.onnx", [2])
    Path("recipe.yaml").write_text("mine")
    result = invoke("a.onnx")
    assert result.exit_code == 2
    assert "--force" in result.stderr
    assert Path("recipe.yaml").read_text() == "mine"
    assert invoke("a.onnx", "--force", "--quiet").stderr == ""
    assert loaded().name == "a"


def test_paths_start_from_the_recipes_folder() -> None:
    save_onnx("a.onnx", [2])
    Path("recipes").mkdir()
    assert invoke("a.onnx", "--output", "recipes/a.yaml", "--to", "openvino").exit_code == 0
    recipe = loaded("recipes/a.yaml")
    assert "onnx: ../a.onnx" in Path("recipes/a.yaml").read_text()
    assert recipe.dims == {}


def test_standard_output() -> None:
    save_onnx("a.onnx", [2])
    result = invoke("a.onnx", "-o", "-")
    assert yaml.safe_load(result.stdout)["model"] == {"onnx": "a.onnx"}
    assert not Path("-").exists()


def test_an_ir_is_given_a_pass_that_keeps_its_format() -> None:
    import openvino as ov
    from openvino import opset13 as ops

    x = ops.parameter([-1, 4], ov.Type.f32, name="x")
    ov.save_model(ov.Model([ops.relu(x)], [x], "m"), "m.xml", compress_to_fp16=False)
    assert invoke("m.xml").exit_code == 0
    recipe = loaded()
    assert [s.use for s in recipe.steps] == ["openvino.fp16"]
    assert recipe.inputs[0].shape == ("batch", 4)


@pytest.mark.parametrize(
    ("name", "inputs", "guessed"),
    [
        ("cnn", ["input: float32[batch, 3, 32, 32]"], True),
        ("ids", ["input_ids: int64[batch, sequence]", "attention_mask: int64[batch, sequence]"], False),
        ("line", ["input: float32[batch, 7]"], False),
        ("pair", ["left: float32[batch, 16]", "right: float32[batch, 16]"], True),
    ],
)
def test_a_torch_model_is_built_and_tried(name: str, inputs: list[str], guessed: bool) -> None:
    Path("nets.py").write_text(NETS)
    result = invoke(f"nets.py:{name}")
    assert result.exit_code == 0, result.stderr
    recipe = loaded()
    assert [str(i) for i in recipe.inputs] == inputs
    lines = Path("recipe.yaml").read_text().partition("inputs:")[2].partition("dims:")[0]
    assert ("check this:" in lines) is guessed
    if name == "pair":
        assert "no shape that was tried runs" in lines
    if name == "ids":
        assert recipe.inputs[0].range == (0, 49)


def test_a_file_may_show_its_own_example_inputs() -> None:
    Path("nets.py").write_text(NETS + "\ndef example_inputs():\n    return torch.ones(2, 9, 5), torch.ones(2, 8, 5)\n")
    assert invoke("nets.py:pair").exit_code == 0
    assert [str(i) for i in loaded().inputs] == ["left: float32[batch, 9, 5]", "right: float32[batch, 8, 5]"]
    Path("nets.py").write_text(NETS + "\ndef example_inputs():\n    return 1 / 0\n")
    result = invoke("nets.py:pair", "--force")
    assert result.exit_code == 2
    assert "example_inputs() in nets.py raised ZeroDivisionError" in result.stderr


def test_weights_beside_the_code_are_taken_where_they_fit() -> None:
    from safetensors.torch import save_file
    from torch import nn

    Path("nets.py").write_text(NETS)
    save_file(nn.Linear(7, 2).state_dict(), "nets.safetensors")
    invoke("nets.py:line")
    assert loaded().model.weights == "nets.safetensors"  # type: ignore[union-attr]
    invoke("nets.py:cnn", "--force")
    assert loaded().model.weights is None  # type: ignore[union-attr]
    assert "nets.safetensors lies beside it, but does not fit" in Path("recipe.yaml").read_text()


@pytest.mark.parametrize(
    ("config", "tokenizer", "inputs"),
    [
        ({"vocab_size": 100, "type_vocab_size": 2}, None, ["input_ids", "attention_mask", "token_type_ids"]),
        ({"vocab_size": 100, "type_vocab_size": 2}, ["input_ids", "attention_mask"], ["input_ids", "attention_mask"]),
        ({"vocab_size": 100}, None, ["input_ids", "attention_mask"]),
        ({"image_size": 96, "num_channels": 1}, None, ["pixel_values"]),
        ({}, None, ["pixel_values"]),
    ],
)
def test_a_hugging_face_folder(config: dict[str, int], tokenizer: list[str] | None, inputs: list[str]) -> None:
    Path("hf").mkdir()
    Path("hf/config.json").write_text(json.dumps(config))
    if tokenizer:
        Path("hf/tokenizer_config.json").write_text(json.dumps({"model_input_names": tokenizer}))
    assert invoke("hf").exit_code == 0
    recipe = loaded()
    assert [i.name for i in recipe.inputs] == inputs
    text = Path("recipe.yaml").read_text()
    if "vocab_size" in config:
        assert recipe.inputs[0].range == (0, 99)
        assert "jsonl: judge.jsonl, tokenizer: hf" in text
    else:
        assert "#   judge: {images: FOLDER" in text
        assert ("check this:" in text.partition("inputs:")[2].partition("dims:")[0]) is (not config)


def test_the_digits_recipe_can_be_written_anew() -> None:
    folder = Path(__file__).parents[2] / "recipes"
    text = write(str(folder / "models" / "digits.py") + ":build", folder)
    data = yaml.safe_load(text)
    assert list(data["inputs"]) == ["image"]
    assert data["inputs"]["image"]["shape"][:2] == ["batch", 1]
    assert data["model"]["weights"].endswith("digits.safetensors")


def test_what_is_no_model() -> None:
    Path("nets.py").write_text(NETS + "\ndef broken():\n    raise RuntimeError('no')\n")
    Path("a.onnx").write_bytes(b"not a model")
    for model, code in (("none.onnx", 2), ("nets.py:nothing", 2), ("nets.py:broken", 2), ("a.onnx", 2)):
        result = invoke(model)
        assert result.exit_code == code, result.stderr
        assert result.stderr.startswith("error: ")
        assert not Path("recipe.yaml").exists()


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]))


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | texts,
        lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
        max_leaves=6,
    )
)
def test_yaml_reads_back_what_was_written(value: object) -> None:
    assert yaml.safe_load(flow(value)) == value


def test_pieces() -> None:
    assert scalar("no") == '"no"'
    assert scalar("1e3") != "1e3" or yaml.safe_load("1e3") == "1e3"
    assert scalar("a/b.py:build") == "a/b.py:build"
    dims = (("seq", 0), ("unk__12", 0), ("s77", 1), ("x_1", 1), ("in/0_0", 0), ("in/0_2", 2), ("-1", 2))
    assert [dim_name(name, axis, "in/0") for name, axis in dims] == [
        "seq", "batch", "in_0_1", "x_1", "batch", "in_0_2", "in_0_2"]  # fmt: skip
    assert relocated("package.module:build", Path("recipes")) == "package.module:build"


def test_what_needs_a_device_of_its_own_is_offered_only_when_asked_for() -> None:
    save_onnx("a.onnx", ["batch", 3])
    assert invoke("a.onnx", "--to", "openvino", "--to", "tensorrt").exit_code == 0
    assert [(s.to, s.on_target) for s in loaded().steps] == [("openvino", False), ("tensorrt", True)]
