"""What onnx.quantize refuses, and why: data, names, models and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from onnx_models import (
    FLOAT,
    cnn,
    encoder,
    model,
    node,
    refusal,
    saved,
    value,
    weight,
)
from onnx_quantize_kit import IMAGES, quantised
from pydantic import ValidationError

from optkit.artifact import Artifact
from optkit.errors import DataError, StepError
from optkit.passes.onnx_quantize import PASS
from optkit.testing import ListSamples


@pytest.fixture(scope="module")
def conv(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return saved(cnn(), tmp_path_factory.mktemp("cnn") / "source")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return saved(encoder(), tmp_path_factory.mktemp("encoder") / "source")


def failure(source: Artifact, folder: Path, data: Any = None, **options: Any) -> Any:
    error = refusal(PASS, source, folder, data, **options)
    assert isinstance(error, DataError | StepError)
    assert not list(folder.glob("refused-*/out/*"))
    return error


def test_data_that_is_not_there(conv: Artifact, tmp_path: Path) -> None:
    for index, (data, what) in enumerate((
        (None, "static quantisation needs data"),
        (ListSamples([]), "the calibration data has no samples"),
        (ListSamples([{"picture": np.zeros((3, 16, 16), np.float32)}]), "the calibration data has no 'image'"),
    )):  # fmt: skip
        (tmp_path / str(index)).mkdir()
        error = failure(conv, tmp_path / str(index), data)
        assert isinstance(error, DataError)
        assert (what in error.what, error.subject) == (True, "data")


@pytest.mark.parametrize("calibration", ["minmax", "percentile"])
def test_data_that_breaks_the_model(conv: Artifact, tmp_path: Path, calibration: str) -> None:
    bad = ListSamples([{"image": np.full((3, 16, 16), np.inf, np.float32)}])
    error = failure(conv, tmp_path, bad, calibration=calibration)
    assert "becomes NaN or infinite on the calibration data" in error.what
    assert error.subject == "data"


def test_names_that_match_nothing(conv: Artifact, tmp_path: Path) -> None:
    error = failure(conv, tmp_path, IMAGES, exclude=["haed"])
    assert (error.what, error.hint, error.subject) == (
        "no node is called 'haed'",
        "did you mean 'head'?",
        "with.exclude",
    )
    (tmp_path / "b").mkdir()
    error = failure(conv, tmp_path / "b", IMAGES, op_types=["Convolution"])
    assert (error.what, error.subject) == ("there is no operator 'Convolution'", "with.op_types")


def test_nothing_to_quantise(conv: Artifact, text: Artifact, tmp_path: Path) -> None:
    error = failure(conv, tmp_path, IMAGES, op_types=["MatMul"])
    assert error.what == "nothing was quantised: no MatMul fits"
    assert "2 Conv" in error.hint
    (tmp_path / "b").mkdir()
    error = failure(text, tmp_path / "b", method="dynamic", exclude=["*"])
    assert error.what.endswith("outside of with.exclude")


def test_what_is_quantised_already(conv: Artifact, tmp_path: Path) -> None:
    result, _ = quantised(conv, tmp_path, IMAGES)
    assert "quantised already" in failure(result, tmp_path, IMAGES).what


def test_an_old_opset(tmp_path: Path) -> None:
    source = saved(cnn(opset=12), tmp_path / "source")
    assert failure(source, tmp_path, IMAGES).what == "the model has opset 12; its quantisation needs 13"


def test_unknown_types_and_broken_weights(tmp_path: Path) -> None:
    nodes = [helper.make_node("Mystery", ["x"], ["h"], domain="own"), node("MatMul", "h w", "y", "product")]
    proto = model(nodes, [value("x", FLOAT, ["batch", 8])], [value("y", FLOAT, None)], {"w": weight(8, 8)}, own=1)
    data = ListSamples([{"x": weight(8)}])
    assert (
        "the type of 'h', at MatMul 'product', is unknown" in failure(saved(proto, tmp_path / "a"), tmp_path, data).what
    )
    table = weight(8, 8)
    table[0, 0] = np.nan
    nodes = [node("MatMul", "x w", "y")]
    proto = model(nodes, [value("x", FLOAT, ["batch", 8])], [value("y", FLOAT, ["batch", 8])], {"w": table})
    (tmp_path / "b").mkdir()
    assert failure(saved(proto, tmp_path / "c"), tmp_path / "b", method="dynamic").what == (
        "weight 'w' holds NaN or infinity")  # fmt: skip


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"percentile": 99.9}, "percentile goes with calibration: percentile"),
        ({"method": "dynamic", "calibration": "minmax"}, "dynamic quantisation does not calibrate"),
        ({"method": "dynamic", "symmetric": True}, "asymmetric activations"),
        ({"method": "dynamic", "activation_type": "int8"}, "dynamic activations are uint8"),
        ({"method": "dynamic", "op_types": ["Conv"]}, "convolutions become slower"),
        ({"for": "tensorrt", "method": "dynamic"}, "tensorrt takes static"),
        ({"for": "tensorrt", "activation_type": "uint8"}, "tensorrt takes int8 alone"),
        ({"for": "tensorrt", "weight_type": "uint8"}, "tensorrt takes int8 alone"),
        ({"for": "tensorrt", "symmetric": False}, "tensorrt takes symmetric ranges"),
        ({"for": "tensorrt", "reduce_range": True}, "not tensorrt"),
        ({"for": "tensort"}, "Input should be 'onnxruntime' or 'tensorrt'"),
    ],
)
def test_contradictions_are_found_without_a_model(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        PASS.options(**options)


def test_only_static_needs_data() -> None:
    assert PASS.wants_data(PASS.options()) is True
    assert PASS.wants_data(PASS.options(method="dynamic")) is False
