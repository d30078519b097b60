"""The OpenVINO runner and the IR at rest: what runs, what is refused, and how names and dims are found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from openvino_models import DIMS, IMAGE, TOKENS, artifact, cnn, encoder, finished, infer, ops, ov, relu, weight, written

from optkit.artifact import Artifact, Dim, TensorSpec
from optkit.errors import DataError, SourceError, StepError, UnavailableError
from optkit.formats.openvino import model as openvino_model
from optkit.runners.openvino_runner import RUNNER

PAIR = (TensorSpec("left", "float32", ("batch", 4)), TensorSpec("right", "int64", ("batch", 4)))


def pair() -> ov.Model:
    """`sum` = relu(left) @ w + right and `left` doubled."""
    left = ops.parameter([-1, 4], ov.Type.f32, name="left")
    right = ops.parameter([-1, 4], ov.Type.i64, name="right")
    total = ops.add(ops.matmul(ops.relu(left), weight(4, 4), False, False), ops.convert(right, "f32"))
    return finished([total, ops.add(left, left)], [left, right], ["left", "right"], ["sum", "twice"])


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((2, 3, 16, 16)).astype(np.float32)


def test_runs_the_arithmetic_of_the_file_in_float32(tmp_path: Path) -> None:
    model = written(pair(), tmp_path, *PAIR)
    left = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    right = np.arange(12).reshape(3, 4)
    with RUNNER.open(model) as session:
        assert session.provider == "CPU f32"
        found = session.infer({"right": right, "left": left})
        again = session.infer({"left": left * 0, "right": right})
    assert list(found) == ["sum", "twice"]
    # one 4-term dot product and an add in float32: a few units in the last place
    np.testing.assert_allclose(found["sum"], np.maximum(left, 0) @ weight(4, 4) + right, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found["twice"], 2 * left)
    np.testing.assert_array_equal(again["twice"], 0 * left)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.xml"]


def test_another_precision_is_asserted_not_assumed(tmp_path: Path, image: np.ndarray) -> None:
    model = written(cnn(), tmp_path, IMAGE)
    exact = infer(model, {"image": image})["logits"]
    for precision, hint, capability in (("bfloat16", "bf16", "BF16"), ("float16", "f16", "FP16")):
        if capability in openvino_model.core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            with RUNNER.open(model, precision=precision) as session:
                assert session.provider == f"CPU {hint}"
                assert 0 < np.abs(session.infer({"image": image})["logits"] - exact).max() < 0.05
        else:
            with (
                pytest.raises(UnavailableError, match=f"when asked for {hint}"),
                RUNNER.open(model, precision=precision),
            ):
                pass


def test_devices_and_precisions_that_are_not_here(tmp_path: Path) -> None:
    model = written(cnn(), tmp_path, IMAGE)
    with pytest.raises(UnavailableError, match=r"no device 'gpu\.7'") as caught, RUNNER.open(model, device="gpu.7"):
        pass
    assert "cpu" in caught.value.hint
    with pytest.raises(UnavailableError, match="no precision 'float61'"), RUNNER.open(model, precision="float61"):
        pass


@pytest.mark.parametrize(
    ("feed", "what", "hint"),
    [
        ({}, "input 'image' is missing", "none"),
        ({"imge": np.zeros((1, 3, 16, 16), np.float32)}, "no input 'imge'", "did you mean 'image'"),
        ({"image": np.zeros((1, 3, 16, 16))}, "is float64, the model takes float32", "astype"),
        ({"image": np.zeros((3, 16, 16), np.float32)}, "has 3 axes .* takes 4", "batch axis"),
        ({"image": np.zeros((1, 16, 16, 3), np.float32)}, "the model takes .batch, 3, 16, 16.", "looks like NHWC"),
        ({"image": np.zeros((1, 3, 16, 8), np.float32)}, "has shape .1, 3, 16, 8.", "resize"),
    ],
)
def test_inputs_that_do_not_fit(tmp_path: Path, feed: dict[str, np.ndarray], what: str, hint: str) -> None:
    with RUNNER.open(written(cnn(), tmp_path, IMAGE)) as session, pytest.raises(DataError, match=what) as caught:
        session.infer(feed)
    assert hint in caught.value.hint
    assert caught.value.subject.startswith("inputs.")


def test_nchw_fed_to_nhwc_is_recognised(tmp_path: Path) -> None:
    image = ops.parameter([-1, 16, 16, 3], ov.Type.f32, name="image")
    model = finished([ops.relu(image)], [image], ["image"], ["out"])
    spec = TensorSpec("image", "float32", ("batch", 16, 16, 3))
    with RUNNER.open(written(model, tmp_path, spec)) as session, pytest.raises(DataError) as caught:
        session.infer({"image": np.zeros((1, 3, 16, 16), np.float32)})
    assert "it looks like NCHW: give value.transpose(0, 2, 3, 1)" in caught.value.hint


def test_a_tensor_with_several_names_answers_to_each_but_not_to_two(tmp_path: Path) -> None:
    model = cnn()
    model.inputs[0].get_tensor().set_names({"image", "input.1"})
    ov.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    path = tmp_path / "model.xml"
    assert RUNNER.describe(path, {}).inputs[0].name == "image"  # the operator's own name
    assert RUNNER.describe(path, {"inputs": ["input.1"]}).inputs[0].name == "input.1"
    value = np.ones((1, 3, 16, 16), np.float32)
    with RUNNER.open(artifact(tmp_path)) as session:
        one = session.infer({"input.1": value})
        np.testing.assert_array_equal(one["logits"], session.infer({"image": value})["logits"])
        with pytest.raises(DataError, match="given twice"):
            session.infer({"image": value, "input.1": value})


def test_outputs_without_names_and_an_output_that_is_an_input(tmp_path: Path) -> None:
    x = ops.parameter([-1, 4], ov.Type.f32, name="x")
    model = ov.Model([ops.result(ops.relu(x, name="act")), ops.result(x)], [x], "tiny")
    for port in model.outputs:
        port.get_tensor().set_names(set())
    openvino_model.rename(model, ["x"], ["act", "same"])
    made = written(model, tmp_path, TensorSpec("x", "float32", ("batch", 4)))
    assert made.signature is not None
    assert [spec.name for spec in made.signature.inputs] == ["x"]
    value = np.array([[-1, 0, 1, 2]], np.float32)
    found = infer(made, {"x": value})
    np.testing.assert_array_equal(found["act"], np.maximum(value, 0))
    np.testing.assert_array_equal(found["same"], value)
    with pytest.raises(StepError, match="has 2 outputs"):
        openvino_model.rename(model, ["x"], ["one"])


def test_a_stateful_model_starts_afresh_each_time(tmp_path: Path) -> None:
    x = ops.parameter([1, 4], ov.Type.f32, name="x")
    kept = ops.read_value(np.zeros((1, 4), np.float32), "memory")
    total = ops.add(kept, x)
    model = ov.Model([ops.result(total)], [ops.assign(total, "memory")], [x], "counter")
    openvino_model.rename(model, ["x"], ["total"])
    with RUNNER.open(written(model, tmp_path, TensorSpec("x", "float32", (1, 4)))) as session:
        value = np.ones((1, 4), np.float32)
        for _ in range(2):
            np.testing.assert_array_equal(session.infer({"x": value})["total"], value)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_failure_at_run_time_is_raised_and_leaves_no_stale_outputs(tmp_path: Path, threads: int) -> None:
    specs = [TensorSpec(name, "float32", (f"{name}_rows", f"{name}_size")) for name in ("a", "b")]
    a, b = (ops.parameter([-1, -1], ov.Type.f32, name=spec.name) for spec in specs)
    made = written(finished([ops.matmul(a, b, False, False)], [a, b], ["a", "b"], ["out"]), tmp_path, *specs)
    ones = np.ones((2, 3), np.float32)
    with RUNNER.open(made, threads=threads) as session:
        for value in (1, 3, 5):
            found = session.infer({"a": value * ones, "b": ones.T.copy()})
            np.testing.assert_array_equal(found["out"], np.full((2, 2), 3 * value))
            with pytest.raises(StepError, match="failed while running the model"):
                session.infer({"a": ones, "b": np.ones((4, 2), np.float32)})


def test_float16_weights_run_in_float32(tmp_path: Path) -> None:
    openvino_model.save(pair(), tmp_path, PAIR, DIMS, compress_to_fp16=True)
    left = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    with RUNNER.open(artifact(tmp_path)) as session:
        assert session.provider == "CPU f32"
        found = session.infer({"left": left, "right": np.zeros((3, 4), np.int64)})["sum"]
    rounded = weight(4, 4).astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(found, np.maximum(left, 0) @ rounded, rtol=1e-6, atol=1e-6)


def test_describe_finds_names_that_save_recorded(tmp_path: Path) -> None:
    signature = written(encoder(), tmp_path, TOKENS).signature
    assert signature is not None
    assert str(signature.inputs[0]) == "tokens: float32[batch, length, 32]"
    assert str(signature.outputs[0]) == "scores: float32[batch, length, 8]"


def test_describe_makes_names_up_for_a_file_of_somebody_else(tmp_path: Path) -> None:
    ov.save_model(encoder(), tmp_path / "model.xml", compress_to_fp16=False)
    signature = RUNNER.describe(tmp_path / "model.xml", {})
    assert signature.inputs[0].shape == ("tokens_0", "tokens_1", 32)
    assert signature.outputs[0].shape == ("scores_0", "scores_1", 8)


@pytest.mark.parametrize("record", ["not json", '"text"', json.dumps({"inputs": [{"name": "tokens", "shape": ["b"]}]})])
def test_a_record_that_does_not_fit_is_not_believed(tmp_path: Path, record: str) -> None:
    model = encoder()
    model.set_rt_info(record, openvino_model.RECORD)
    ov.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    assert RUNNER.describe(tmp_path / "model.xml", {}).inputs[0].shape == ("tokens_0", "tokens_1", 32)


def test_outputs_dims_that_no_symbol_reaches_come_from_the_parent(tmp_path: Path) -> None:
    x = ops.parameter([-1, 4], ov.Type.f32, name="x")
    chosen = ops.non_zero(x, "i64")
    model = finished([chosen], [x], ["x"], ["indices"])
    spec, known = TensorSpec("x", "float32", ("batch", 4)), TensorSpec("indices", "int64", (2, "found"))
    openvino_model.save(model, tmp_path, [spec], DIMS, outputs=[known])
    assert RUNNER.describe(tmp_path / "model.xml", {}).outputs[0].shape == (2, "found")


def test_save_refuses_an_input_that_is_not_there_or_not_dynamic(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="no input 'imge'") as caught:
        openvino_model.save(cnn(), tmp_path, [TensorSpec("imge", "float32", ("batch", 3, 16, 16))], DIMS)
    assert "did you mean 'image'" in caught.value.hint
    model = cnn()
    model.reshape([2, 3, 16, 16])
    with pytest.raises(StepError, match="axis 0 of input 'image' is fixed at 2"):
        openvino_model.save(model, tmp_path, [IMAGE], DIMS)
    openvino_model.save(model, tmp_path, [IMAGE], {"batch": Dim(2, 2, 2)})  # a range of one size is that size


def test_equal_models_give_equal_files(tmp_path: Path) -> None:
    first, second = (written(encoder(), tmp_path / name, TOKENS) for name in ("a", "b"))
    for left, right in zip(first.files, second.files, strict=True):
        assert (first.path.parent / left).read_bytes() == (second.path.parent / right).read_bytes()


def test_inspect_reads_the_file_alone(tmp_path: Path) -> None:
    found = RUNNER.inspect(written(cnn(), tmp_path, IMAGE).path)
    assert found["operators"] == {"Add": 2, "Convolution": 2, "MatMul": 1, "ReLU": 2, "ReduceMean": 1}
    weights = 8 * 3 * 9 + 8 + 16 * 8 * 9 + 16 + 10 * 16
    assert found["parameters"] == weights
    assert found["weight_bytes"] == {"float32": 4 * weights, "int64": 16}
    assert (found["fake_quantize"], found["compressed"], found["ir_version"]) == (0, {}, 11)
    assert found["size_bytes"] == sum(path.stat().st_size for path in tmp_path.iterdir())


def damaged(model: Artifact, kind: str) -> None:
    weights, text = model.path.with_suffix(".bin"), model.path.read_text()
    if kind == "no weights":
        weights.unlink()
    elif kind == "short weights":
        weights.write_bytes(weights.read_bytes()[:100])
    elif kind == "cut xml":
        model.path.write_text(text[:1500])
    elif kind == "other xml":
        model.path.write_text("<html></html>")
    else:
        model.path.unlink()


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("no weights", r"model\.bin is missing"),
        ("short weights", r"model\.bin (does not hold all|has 100 bytes)"),
        ("cut xml", r"model\.xml cannot be read"),
        ("other xml", "is not an OpenVINO IR"),
        ("no xml", r"model\.xml cannot be read"),
    ],
)
def test_damaged_files(tmp_path: Path, kind: str, what: str) -> None:
    model = written(cnn(), tmp_path, IMAGE)
    damaged(model, kind)
    with pytest.raises(SourceError, match=what):
        RUNNER.describe(model.path, {})
    with pytest.raises(SourceError, match=what):
        RUNNER.inspect(model.path)
    with pytest.raises(SourceError, match=what), RUNNER.open(model):
        pass


def test_files(tmp_path: Path) -> None:
    assert written(relu(), tmp_path, IMAGE).files == ("model.xml", "model.bin")
    (tmp_path / "model.bin").unlink()
    assert openvino_model.files(tmp_path / "model.xml") == ("model.xml",)
    assert RUNNER.describe(tmp_path / "model.xml", {}).inputs == (TensorSpec("image", "float32", IMAGE.shape),)
