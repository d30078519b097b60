"""tflite.to_openvino: the IR answers as the TFLite file does, under the same names; or an error says why not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch_kit
from tflite_kit import IDS, IMAGE, IMAGES, MASK, converted, described, infer

from optkit.artifact import Artifact
from optkit.errors import StepError
from optkit.passes.tflite_quantize import PASS as QUANTIZE
from optkit.passes.tflite_quantize import TfliteQuantize
from optkit.passes.tflite_to_openvino import PASS, TfliteToOpenVino
from optkit.runners.openvino_runner import RUNNER


def test_a_cnn_keeps_names_and_dims(tmp_path: Path) -> None:
    _, made, given, _ = converted(tmp_path, "Maps", IMAGE, outputs=["map", "best"])
    out = tmp_path / "ir"
    out.mkdir()
    given = replace(given, outputs=("map", "best"))
    notes = PASS.run(made, out, TfliteToOpenVino(), given)
    assert sorted(p.name for p in out.iterdir()) == ["model.bin", "model.xml"]
    assert notes["bounded_dims"] == ["batch"]
    ir = Artifact("openvino", out / "model.xml", "", RUNNER.describe(out / "model.xml", {}))
    assert PASS.confirm is not None
    assert PASS.confirm(made, ir, TfliteToOpenVino(), given) == []
    assert ir.signature is not None
    assert ir.signature.inputs[0].shape == ("batch", 3, 12, 10)
    feed = {"image": np.linspace(-1, 1, 3 * 360, dtype=np.float32).reshape(3, 3, 12, 10)}
    wanted = infer(made, feed)
    with RUNNER.open(ir) as session:
        got = session.infer(feed)
    np.testing.assert_allclose(got["map"], wanted["map"], atol=1e-5)
    np.testing.assert_array_equal(got["best"], wanted["best"])

    model = ov.Core().read_model(ir.path)
    model.outputs[0].get_tensor().set_names({"scores"})
    ov.save_model(model, tmp_path / "other.xml", compress_to_fp16=True)
    complaints = "\n".join(
        PASS.confirm(made, Artifact("openvino", tmp_path / "other.xml", ""), TfliteToOpenVino(), given)
    )
    assert "the outputs are scores, best, not map, best" in complaints
    assert "stored in float16" in complaints


def test_what_is_refused(tmp_path: Path) -> None:
    _, cnn, given, _ = converted(tmp_path / "a", "Conv", IMAGE, layout="NHWC")
    _, text, others, _ = converted(tmp_path / "b", "Masked", IDS, MASK, sizes={"sequence": [6, 12], "batch": [1]},
                                   pad=["sequence"])  # fmt: skip
    _, plain, same, _ = converted(tmp_path / "c", "Conv", IMAGE)
    for name, io in (("int8", "int8"), ("float", "float")):
        (tmp_path / name).mkdir()
        asked = TfliteQuantize.model_validate({"mode": "static", "io": io})
        QUANTIZE.run(plain, tmp_path / name, asked, replace(same, data=IMAGES))
    out = torch_kit.out_dir(tmp_path)
    for artifact, context, why in (
        (cnn, given, "channels last"),
        (text, others, "holds batch, sequence at some sizes"),
        (described(tmp_path / "int8" / "model.tflite"), same, "'image' is int8 in the file"),
        (described(tmp_path / "float" / "model.tflite"), same, "it is quantised"),
    ):
        with pytest.raises(StepError, match=why) as caught:
            PASS.run(artifact, out, TfliteToOpenVino(), context)
        assert caught.value.hint


def test_other_names_are_refused(tmp_path: Path) -> None:
    _, plain, given, _ = converted(tmp_path, "Conv", IMAGE)
    with pytest.raises(StepError, match="finds the outputs output in the file, not scores"):
        PASS.run(plain, tmp_path / "out", TfliteToOpenVino(), replace(given, outputs=("scores",)))
