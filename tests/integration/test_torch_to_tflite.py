"""torch.to_tflite: the file has the recipe's names and dims and answers as the model does, or an error says why not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch_kit
from ai_edge_litert.interpreter import Interpreter
from pydantic import ValidationError
from tflite_kit import IDS, IMAGE, MASK, converted, described, infer, rewritten, source

from optkit.artifact import Dim, TensorSpec
from optkit.errors import StepError
from optkit.formats.tflite import model as tflite_model
from optkit.passes.torch_to_tflite import PASS, TorchToTflite

X = TensorSpec("x", "float32", ("batch", 8))
SIZES: dict[str, Any] = {"sizes": {"sequence": [6, 12]}, "pad": ["sequence"]}


def refused(folder: Path, factory: str, *inputs: TensorSpec, **options: Any) -> StepError:
    parent, given = source(folder, factory, *inputs)
    with pytest.raises(StepError) as caught:
        PASS.run(parent, torch_kit.out_dir(folder), TorchToTflite(**options), given)
    assert caught.value.hint
    assert caught.value.subject
    return caught.value


def test_a_cnn_resizes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    parent, made, _, notes = converted(tmp_path, "Conv", IMAGE)
    assert notes["dims"] == {"batch": "resize"}
    assert {name: notes["operators"][name] for name in ("CONV_2D", "FULLY_CONNECTED")} == {
        "CONV_2D": 2, "FULLY_CONNECTED": 1}  # fmt: skip
    assert made.signature == replace(parent.signature, inputs=made.signature.inputs)  # type: ignore[union-attr]
    assert notes["file"]["serving_default"]["inputs"]["image"] == {
        "dtype": "float32", "shape": ["image_0", 3, 12, 10]}  # fmt: skip
    assert capfd.readouterr() == ("", "")


def test_a_plain_interpreter_finds_the_names(tmp_path: Path) -> None:
    _, made, _, _ = converted(tmp_path, "Conv", IMAGE, outputs=["logits"])
    interpreter = Interpreter(str(made.path))
    assert interpreter.get_signature_list() == {"serving_default": {"inputs": ["image"], "outputs": ["logits"]}}
    feed = np.ones((3, 3, 12, 10), np.float32)
    got = interpreter.get_signature_runner()(image=feed)["logits"]
    np.testing.assert_array_equal(got, infer(made, {"image": feed})["logits"])


def test_weights_are_aligned_and_codes_are_complete(tmp_path: Path) -> None:
    _, made, _, _ = converted(tmp_path, "Conv", IMAGE)
    model = tflite_model.read(made.path)
    assert all(code.deprecatedBuiltinCode == min(code.builtinCode, 127) for code in model.operatorCodes)
    whole = np.frombuffer(made.path.read_bytes(), np.uint8)
    for buffer in model.buffers:
        if buffer.data is not None and len(buffer.data) > 64:
            start = made.path.read_bytes().index(bytes(buffer.data))
            assert start % 16 == 0
    assert whole.size < 20_000


def test_channels_last(tmp_path: Path) -> None:
    _, made, _, notes = converted(tmp_path, "Maps", IMAGE, outputs=["map", "best"], layout="NHWC",
                                  channels_last_outputs=["map"])  # fmt: skip
    held = notes["file"]["serving_default"]
    assert held["inputs"]["image"]["shape"][1:] == [12, 10, 3]
    assert held["outputs"]["map"]["shape"][1:] == [12, 10, 5]
    assert infer(made, {"image": np.zeros((2, 3, 12, 10), np.float32)})["map"].shape == (2, 5, 12, 10)


def test_int64_is_kept_or_made_int32_where_asked(tmp_path: Path) -> None:
    _, kept, _, notes = converted(tmp_path / "a", "Maps", IMAGE, outputs=["map", "best"])
    assert notes["file"]["serving_default"]["outputs"]["best"]["dtype"] == "int64"
    _, made, _, notes = converted(tmp_path / "b", "Maps", IMAGE, outputs=["map", "best"], int64="int32")
    assert notes["file"]["serving_default"]["outputs"]["best"]["dtype"] == "int32"
    assert made.signature == kept.signature  # the session converts, and says so
    with torch_kit_open(made) as session:
        assert session.provider == "CPU XNNPACK; best int64 as int32"


def torch_kit_open(artifact: Any) -> Any:
    from optkit.runners.tflite_runner import RUNNER

    return RUNNER.open(artifact)


def test_padded_sizes_of_a_masked_model(tmp_path: Path) -> None:
    parent, made, _, notes = converted(tmp_path, "Masked", IDS, MASK, **SIZES)
    assert notes["dims"] == {"batch": [1, 4], "sequence": [6, 12]}
    assert sorted(notes["file"]) == [
        "batch_1_sequence_12", "batch_1_sequence_6", "batch_4_sequence_12", "batch_4_sequence_6"]  # fmt: skip
    assert made.signature == parent.signature
    one = converted(tmp_path / "one", "Masked", IDS, MASK, sizes={"batch": [1], "sequence": [12]}, pad=["sequence"])[1]
    assert made.path.stat().st_size < 3 * one.path.stat().st_size  # signatures share their weights


def test_a_recurrent_model_is_put_together_from_batches(tmp_path: Path) -> None:
    _, _, _, notes = converted(tmp_path, "Recurrent", TensorSpec("x", "float32", ("batch", 3, 8)))
    assert notes["dims"] == {"batch": [1, 4]}


def test_static_dims(tmp_path: Path) -> None:
    dims = {"batch": Dim(2, 2, 2)}
    _, made, _, notes = converted(tmp_path, "Conv", IMAGE, dims=dims)
    assert notes["dims"] == {}
    assert made.signature is not None
    assert made.signature.inputs[0].shape == (2, 3, 12, 10)
    assert made.signature.outputs[0].shape == (2, 4)


def test_the_recipes_order_and_outputs_that_are_inputs(tmp_path: Path) -> None:
    converted(tmp_path, "Pass", TensorSpec("x", "float32", ("batch", 3)), outputs=["bias", "twice", "same", "once"])


def test_padding_that_shows_is_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, "Encoder", IDS, MASK, **SIZES)
    assert error.subject == "with.pad"
    assert "differs from the model's" in error.what
    assert "has no mask" in error.hint


def test_a_dim_that_cannot_vary_says_what_to_declare(tmp_path: Path) -> None:
    error = refused(tmp_path, "Masked", IDS, MASK)
    assert error.subject == "dims.sequence"
    assert "'sequence' cannot vary freely" in error.what
    assert "sizes: {sequence: [6, 12]}, pad: [sequence]" in error.hint
    error = refused(tmp_path / "b", "Masked", IDS, MASK, sizes={"sequence": [6, 8]}, pad=["sequence"])
    assert "the largest size of sequence is 8" in error.what
    error = refused(tmp_path / "c", "Masked", IDS, MASK, sizes={"sequence": [6, 12]})
    assert "would hold sequence at 6, 12 alone" in error.what
    error = refused(tmp_path / "d", "Recurrent", TensorSpec("x", "float32", ("batch", 3, 8)), dynamic="resize")
    assert "'batch' cannot be resized" in error.what


def test_an_output_without_the_batch_cannot_be_put_together(tmp_path: Path) -> None:
    error = refused(tmp_path, "Pair", X, TensorSpec("y", "float32", ("batch", 8)))
    assert "'output_2' does not begin with batch" in error.what


@pytest.mark.parametrize(("factory", "subject"), [("Branch", "dims.batch"), ("One", "dims.batch"), ("Values", "model")])
def test_control_flow_is_refused_with_its_line(tmp_path: Path, factory: str, subject: str) -> None:
    error = refused(tmp_path, factory, X)
    assert error.subject == subject
    assert "torch_zoo.py:" in error.what


def test_an_unsupported_operator_is_named_with_its_place(tmp_path: Path) -> None:
    error = refused(tmp_path, "Singular", TensorSpec("x", "float32", ("batch", 8, 8)))
    assert "TFLite has no operator for aten._linalg_svd.default (node _linalg_svd), used in layers.0 at" in error.what
    assert "torch_zoo.py" in error.what
    error = refused(tmp_path / "b", "Chooses", X)
    assert "TFLite has no control flow for cond" in error.what
    assert "tflite_kit.py" in error.what
    assert "torch.where" in error.hint
    error = refused(tmp_path / "c", "Wide", X)
    assert "TFLite cannot compute tfl.sum" in error.what
    assert "tflite_kit.py" in error.what


def test_a_layer_is_named_as_the_model_has_it(tmp_path: Path) -> None:
    error = refused(tmp_path, "Inside", TensorSpec("x", "float32", ("batch", 8, 8)))
    assert "used in inner at" in error.what


def test_complex_numbers_inside_the_file(tmp_path: Path) -> None:
    _, _, _, notes = converted(tmp_path, "Loudness", TensorSpec("x", "float32", (1, 8)))
    assert notes["operators"]["COMPLEX_ABS"] == 1


def test_what_the_converter_stumbles_over_is_named_with_its_line(tmp_path: Path) -> None:
    error = refused(tmp_path, "Expands", TensorSpec("x", "float32", (1, 8, 4, 16)))
    assert "litert-torch makes an invalid tfl.mul out of the model: operands don't have broadcast" in error.what
    assert "tflite_kit.py:" in error.what
    assert "without expand" in error.hint
    error = refused(tmp_path / "b", "Spectrum", TensorSpec("x", "float32", (1, 8)))
    assert "TFLite has no complex numbers" in error.what


def test_options_that_cannot_go_together(tmp_path: Path) -> None:
    for options in ({"pad": ["sequence"]}, {"sizes": {"batch": []}}, {"dynamic": "resize", "sizes": {"batch": [1]}}):
        with pytest.raises(ValidationError):
            TorchToTflite.model_validate(options)
    error = refused(tmp_path, "Conv", replace(IMAGE, layout=None), layout="NHWC")
    assert error.subject == "with.layout"
    error = refused(tmp_path / "b", "Conv", IMAGE, sizes={"bach": [1]})
    assert "batch" in error.hint
    error = refused(tmp_path / "c", "Conv", IMAGE, channels_last_outputs=["output"])
    assert error.subject == "with.channels_last_outputs"


def test_confirm_reads_the_file(tmp_path: Path) -> None:
    parent, made, given, _ = converted(tmp_path, "Conv", IMAGE)
    asked = TorchToTflite()
    assert PASS.confirm is not None

    def complaints(change: Any) -> str:
        return "\n".join(PASS.confirm(parent, rewritten(made, tmp_path / "other.tflite", change), asked, given))  # type: ignore[misc]

    def fixed(model: Any, agreed: Any) -> None:
        for tensor in model.subgraphs[0].tensors:
            tensor.shapeSignature = None

    def renamed(model: Any, agreed: Any) -> None:
        model.signatureDefs[0].inputs[0].name = b"picture"

    def retyped(model: Any, agreed: Any) -> Any:
        return replace(agreed, inputs=(replace(agreed.inputs[0], dtype="float64"),))

    def other_outputs(model: Any, agreed: Any) -> Any:
        return replace(agreed, outputs=(replace(agreed.outputs[0], name="scores"),))

    def other_sizes(model: Any, agreed: Any) -> Any:
        return replace(agreed, sizes={"batch": (1, 4)})

    def stuck(model: Any, agreed: Any) -> None:
        for tensor in model.subgraphs[0].tensors:
            data = model.buffers[tensor.buffer].data
            if data is not None and len(data) == 16 and tensor.type == 2:  # the permutation of a transpose
                model.buffers[tensor.buffer].data = np.array([0, 3, 1, 2], np.int32).view(np.uint8)

    assert "has shape (1, 3, 12, 10), not (batch, 3, 12, 10)" in complaints(fixed)
    assert "the inputs of serving_default are picture, not image" in complaints(renamed)
    assert "not float32[batch, 3, 12, 10]" in complaints(retyped)
    assert "the outputs are scores, not output" in complaints(other_outputs)
    assert "there is no signature 'batch_1'" in complaints(other_sizes)
    assert "LiteRT cannot prepare other.tflite" in complaints(stuck)
    nhwc = PASS.confirm(parent, made, TorchToTflite(layout="NHWC"), given)
    assert nhwc == ["input 'image' is not NHWC in the file"]
    plain = tflite_model.read(made.path)
    plain.metadata = []
    (tmp_path / "plain.tflite").write_bytes(_packed(plain))
    assert PASS.confirm(parent, described(tmp_path / "plain.tflite"), asked, given) == [
        "the file holds no contract: its dims have no names"]  # fmt: skip


def _packed(model: Any) -> bytes:
    from ai_edge_litert.tools import flatbuffer_utils

    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
