"""torch.to_openvino: the IR has the recipe's names and dims and answers as the model does, or an error says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openvino as ov
import pytest
import torch_zoo as zoo
from torch_kit import DIMS, IDS, IMAGE, MASK, X, Y, artifact, assert_same, context, descriptor, out_dir, scripted

from optkit.artifact import Artifact, Dim, TensorSpec
from optkit.errors import StepError
from optkit.passes.torch_to_openvino import PASS, TorchToOpenVino
from optkit.plugin import Context
from optkit.runners.openvino_runner import RUNNER

ENCODER = (IDS, MASK)


def convert(
    tmp_path: Path, path: Path, options: TorchToOpenVino | None = None, dims: Any = DIMS
) -> tuple[Artifact, Artifact, Context, Any]:
    """Source, result, context and notes; the result is confirmed and answers as the source."""
    options = options or TorchToOpenVino()
    source = artifact(path, dims)
    given, out = context(source, tmp_path, dims), out_dir(tmp_path)
    notes = PASS.run(source, out, options, given)
    assert sorted(p.name for p in out.iterdir()) == ["model.bin", "model.xml"]
    made = Artifact("openvino", out / "model.xml", "", RUNNER.describe(out / "model.xml", {}))
    assert PASS.confirm is not None
    assert PASS.confirm(source, made, options, given) == []
    assert_same(source, RUNNER, made.path, dims)
    return source, made, given, notes


def refused(tmp_path: Path, path: Path, dims: Any = DIMS) -> StepError:
    source = artifact(path, dims)
    with pytest.raises(StepError) as caught:
        PASS.run(source, out_dir(tmp_path), TorchToOpenVino(), context(source, tmp_path, dims))
    assert caught.value.hint
    return caught.value


def operators(path: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in ov.Core().read_model(path).get_ops():
        counts[node.get_type_name()] = counts.get(node.get_type_name(), 0) + 1
    return counts


def test_a_cnn(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, made, _, notes = convert(tmp_path, descriptor(tmp_path, (IMAGE,), "cnn"))
    counts = operators(made.path)
    assert {kind: counts[kind] for kind in ("Convolution", "MatMul", "Relu", "ReduceMean")} == {
        "Convolution": 1, "MatMul": 1, "Relu": 2, "ReduceMean": 1}  # fmt: skip
    assert made.signature == source.signature
    assert notes["bounded_dims"] == ["batch"]
    shape = ov.Core().read_model(made.path).inputs[0].get_partial_shape()
    assert str(shape) == "[1..64,3,12,10]"
    assert capfd.readouterr() == ("", "")


def test_a_window_larger_than_the_image(tmp_path: Path) -> None:
    _, made, _, _ = convert(tmp_path, descriptor(tmp_path, (IMAGE,), "OneWindow"))
    assert operators(made.path)["ReduceMean"] == 1


def test_shared_dims_dict_outputs_and_int64(tmp_path: Path) -> None:
    source, made, _, notes = convert(tmp_path, descriptor(tmp_path, ENCODER, "Encoder"))
    assert made.signature is not None
    assert source.signature is not None
    assert [str(spec) for spec in made.signature.inputs] == [
        "input_ids: int64[batch, sequence]", "attention_mask: int64[batch, sequence]"]  # fmt: skip
    assert made.signature.outputs == source.signature.outputs
    assert notes["bounded_dims"] == ["batch", "sequence"]


def test_tuple_outputs_and_the_recipes_order(tmp_path: Path) -> None:
    _, made, _, _ = convert(tmp_path, descriptor(tmp_path, (Y, X), "Pair", ["sum", "total", "flat"]))
    assert made.signature is not None
    assert [spec.name for spec in made.signature.inputs] == ["y", "x"]
    assert [str(spec) for spec in made.signature.outputs] == [
        "sum: float32[batch, 8]", "total: float32[batch]", "flat: float32[flat_0]"]  # fmt: skip


def test_dims_can_stay_open_or_be_static(tmp_path: Path) -> None:
    _, made, _, notes = convert(tmp_path, descriptor(tmp_path, (IMAGE,), "cnn"), TorchToOpenVino(bound_dims=False))
    assert notes["bounded_dims"] == []
    assert str(ov.Core().read_model(made.path).inputs[0].get_partial_shape()) == "[?,3,12,10]"
    (tmp_path / "static").mkdir()
    path = descriptor(tmp_path, (X, Y), "Pair")
    _, made, _, _ = convert(tmp_path / "static", path, dims={"batch": Dim(4, 4, 4)})
    assert str(ov.Core().read_model(made.path).inputs[0].get_partial_shape()) == "[4,8]"


def test_weights_stay_float32(tmp_path: Path) -> None:
    _, made, _, _ = convert(tmp_path, descriptor(tmp_path, (IMAGE,), "cnn"))
    assert 'element_type="f16"' not in made.path.read_text()


@pytest.mark.parametrize(("factory", "subject"), [("Branch", "dims.batch"), ("One", "dims.batch"), ("Values", "model")])
def test_control_flow_is_refused_not_converted_wrongly(tmp_path: Path, factory: str, subject: str) -> None:
    error = refused(tmp_path, descriptor(tmp_path, (X,), factory))
    assert error.subject == subject
    assert "torch_zoo.py:" in error.what


def test_an_unsupported_operator_is_named_with_its_place(tmp_path: Path) -> None:
    error = refused(tmp_path, descriptor(tmp_path, (TensorSpec("x", "float32", ("batch", 8, 8)),), "Singular"))
    assert "OpenVINO has no conversion for aten._linalg_svd.default, used in layers.0 at" in error.what
    assert "torch_zoo.py" in error.what


def test_two_outputs_that_are_one_tensor(tmp_path: Path) -> None:
    error = refused(tmp_path, descriptor(tmp_path, (X,), "Pass"))
    assert error.subject == "outputs"
    assert "'once' and 'twice' are one tensor" in error.what
    (tmp_path / "other").mkdir()
    _, made, _, _ = convert(tmp_path / "other", descriptor(tmp_path, (X,), "Pass", ["bias", "once", "same"]))
    assert made.signature is not None
    assert [spec.name for spec in made.signature.outputs] == ["bias", "once", "same"]


def test_torchscript_with_a_dict_of_outputs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = scripted(zoo.ScriptedDict(), tmp_path / "s.pt")
    source = descriptor(tmp_path, (Y, X), outputs=["b", "a"], kind="torchscript", path=str(path))
    _, made, _, _ = convert(tmp_path, source)
    assert made.signature is not None
    assert [spec.name for spec in made.signature.inputs] == ["y", "x"]
    assert [str(spec) for spec in made.signature.outputs] == ["b: float32[batch, 8]", "a: float32[batch, 8]"]
    assert capfd.readouterr() == ("", "")


def test_torchscript_that_openvino_cannot_follow_points_to_onnx(tmp_path: Path) -> None:
    path = scripted(zoo.Scripted(), tmp_path / "s.pt")
    error = refused(tmp_path, descriptor(tmp_path, (X, Y), kind="torchscript", path=str(path)))
    assert "exporter: torchscript" in error.hint


def test_confirm_reads_the_file(tmp_path: Path) -> None:
    source, made, given, _ = convert(tmp_path, descriptor(tmp_path, (IMAGE,), "cnn"))
    model = ov.Core().read_model(made.path)
    model.reshape({0: [2, 3, 12, 10]})
    model.outputs[0].get_tensor().set_names({"scores"})
    other = tmp_path / "model.xml"
    ov.save_model(model, other, compress_to_fp16=True)
    assert PASS.confirm is not None
    complaints = "\n".join(PASS.confirm(source, Artifact("openvino", other, ""), TorchToOpenVino(), given))
    assert "input 'image' is image: float32[2, 3, 12, 10], not float32[batch, 3, 12, 10]" in complaints
    assert "the outputs are scores, not output" in complaints
    assert "stored in float16" in complaints
