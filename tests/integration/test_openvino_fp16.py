"""openvino.fp16: half the bytes, the same inputs and outputs, and no file that only says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from openvino_models import (
    IMAGE,
    TOKENS,
    artifact,
    cnn,
    context,
    converted,
    encoder,
    finished,
    infer,
    ops,
    ov,
    relu,
    written,
)

from optkit.artifact import Artifact, TensorSpec
from optkit.errors import StepError
from optkit.formats.openvino import model as openvino_model
from optkit.passes.openvino_fp16 import PASS


def test_stores_weights_in_half_the_bytes(tmp_path: Path) -> None:
    source = written(cnn(), tmp_path / "in", IMAGE)
    made, notes = converted(PASS, source, tmp_path / "out", context(tmp_path, IMAGE, outputs=("logits",)))
    before, after = (openvino_model.inspect(item.path) for item in (source, made))
    assert after["weight_bytes"] == {"float16": before["weight_bytes"]["float32"] // 2, "int64": 16}
    assert after["compressed"] == {"float16": 5} == {"float16": notes["compressed"]}
    assert after["operators"] == before["operators"] | {"Convert": 5}
    assert notes["clipped"] == {}
    assert notes["size_ratio"] < 1  # the XML weighs more than such small weights
    assert made.signature == source.signature


@pytest.mark.parametrize("kind", ["cnn", "encoder"])
def test_computes_what_float32_does_up_to_the_weights_rounding(tmp_path: Path, kind: str) -> None:
    model, spec, name = (cnn(), IMAGE, "logits") if kind == "cnn" else (encoder(), TOKENS, "scores")
    source = written(model, tmp_path / "in", spec)
    made, _ = converted(PASS, source, tmp_path / "out", context(tmp_path, spec, outputs=(name,)))
    shape = (2, 3, 16, 16) if kind == "cnn" else (2, 5, 32)
    feed = {spec.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    wanted, found = infer(source, feed)[name], infer(made, feed)[name]
    # float16 keeps 11 bits: 2**-11 of each weight, averaged over a layer's sum and a handful of layers
    assert 0 < np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 2**-10


def test_counts_the_values_that_float16_cannot_hold(tmp_path: Path) -> None:
    x = ops.parameter([-1, 256], ov.Type.f32, name="x")
    shift = ops.constant(np.where(np.arange(256) < 3, -3.4e38, 0.5).astype(np.float32), name="mask")
    spec = TensorSpec("x", "float32", ("batch", 256))
    source = written(finished([ops.add(x, shift)], [x], ["x"], ["out"]), tmp_path / "in", spec)
    made, notes = converted(PASS, source, tmp_path / "out", context(tmp_path, spec, outputs=("out",)))
    assert list(notes["clipped"].values()) == [3]
    assert infer(made, {"x": np.zeros((1, 256), np.float32)})["out"].min() == -65504


def failing(tmp_path: Path, source: Artifact) -> StepError:
    (tmp_path / "out").mkdir()
    with pytest.raises(StepError) as caught:
        PASS.run(source, tmp_path / "out", PASS.options(), context(tmp_path, IMAGE, outputs=("logits",)))
    assert caught.value.hint == "leave this step out"
    return caught.value


def test_a_model_without_float32_weights(tmp_path: Path) -> None:
    assert "no float32 weights" in failing(tmp_path, written(relu(), tmp_path / "in", IMAGE)).what


def test_a_model_whose_only_floats_are_int8_ranges(tmp_path: Path) -> None:
    image = ops.parameter([-1, 3, 16, 16], ov.Type.f32, name="image")
    low, high = (np.float32(value) for value in (-1, 1))
    rounded = ops.fake_quantize(image, low, high, low, high, 255)
    source = written(finished([rounded], [image], ["image"], ["logits"]), tmp_path / "in", IMAGE)
    assert "stored no weight as float16" in failing(tmp_path, source).what


def test_confirm_sees_a_doctored_file(tmp_path: Path) -> None:
    ctx = context(tmp_path, IMAGE, outputs=("logits",))
    source = written(cnn(), tmp_path / "in", IMAGE)
    assert PASS.confirm is not None
    (complaint,) = PASS.confirm(source, source, PASS.options(), ctx)
    assert complaint.startswith("0 of 1552 float values")
    steps = ov.preprocess.PrePostProcessor(cnn())
    steps.input().tensor().set_element_type(ov.Type.f16)
    (tmp_path / "out").mkdir()
    ov.save_model(steps.build(), tmp_path / "out" / "model.xml", compress_to_fp16=True)
    (complaint,) = PASS.confirm(source, artifact(tmp_path / "out"), PASS.options(), ctx)
    assert complaint.startswith("tensor 'image' became float16")
