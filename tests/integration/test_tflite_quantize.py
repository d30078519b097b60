"""tflite.quantize: each mode gives the integers it says, in a file that LiteRT and other readers take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydantic import ValidationError
from tflite_kit import IDS, IMAGE, IMAGES, MASK, TEXTS, converted, described, images, infer, rewritten, texts

from optkit.artifact import Artifact, TensorSpec
from optkit.errors import DataError, StepError
from optkit.formats.tflite import look as tflite_look
from optkit.formats.tflite import model as tflite_model
from optkit.passes.tflite_quantize import PASS, TfliteQuantize
from optkit.plugin import Context
from optkit.testing import ListSamples

if TYPE_CHECKING:
    from optkit.plugin import Tensors

Made = tuple[Artifact, Context]


@pytest.fixture(scope="module")
def conv(tmp_path_factory: pytest.TempPathFactory) -> Made:
    _, made, given, _ = converted(tmp_path_factory.mktemp("conv"), "Conv", IMAGE)
    return made, given


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Made:
    _, made, given, _ = converted(
        tmp_path_factory.mktemp("text"), "Masked", IDS, MASK, sizes={"batch": [1, 4], "sequence": [6, 12]},
        pad=["sequence"], int64="int32",
    )  # fmt: skip
    return made, given


def quantised(source: Made, folder: Path, data: Any = None, **options: Any) -> tuple[Artifact, Any]:
    parent, given = source
    asked, context = TfliteQuantize(**options), replace(given, data=data)
    out = folder / "out"
    out.mkdir()
    notes = PASS.run(parent, out, asked, context)
    assert sorted(p.name for p in out.iterdir()) == ["model.tflite"]
    assert not list(given.scratch.iterdir())
    made = described(out / "model.tflite")
    assert PASS.confirm is not None
    assert PASS.confirm(parent, made, asked, context) == []
    assert made.signature == parent.signature
    return made, notes


def worst(source: Made, made: Artifact, samples: Any, output: str = "output") -> float:
    """dB of the worst of ten samples that were not calibrated on."""
    found = []
    for sample in samples(10, seed=7):
        feed = {name: value[None] for name, value in sample.items()}
        wanted, got = infer(source[0], feed)[output], infer(made, feed)[output]
        found.append(10 * np.log10((wanted**2).sum() / ((wanted - got) ** 2).sum()))
    return float(min(found))


@pytest.mark.parametrize(
    ("options", "least", "operators"),
    [
        ({"mode": "fp16"}, 60, {"DEQUANTIZE": 3}),
        ({"mode": "dynamic"}, 30, {}),
        ({"mode": "weight_only"}, 35, {"DEQUANTIZE": 3}),
        ({"mode": "static"}, 25, {"QUANTIZE": 1, "DEQUANTIZE": 1}),
        ({"mode": "static", "io": "int8"}, 25, {}),
        ({"mode": "selective"}, 25, {"QUANTIZE": 2, "DEQUANTIZE": 2}),
        ({"mode": "static", "calibration": "moving_average", "max_samples": 12}, 20, {}),
        ({"mode": "int16x8"}, 35, {"QUANTIZE": 1, "DEQUANTIZE": 1}),
    ],
)
def test_modes(conv: Made, tmp_path: Path, options: Any, least: float, operators: Any) -> None:
    needs = PASS.wants_data(TfliteQuantize(**options))
    made, notes = quantised(conv, tmp_path, IMAGES if needs else None, **options)
    counts = Counter(name for name, _, _ in tflite_look.operations(tflite_model.read(made.path)))
    assert {name: counts[name] for name in operators} == operators
    assert worst(conv, made, images) > least
    assert notes["samples"] == (12 if "max_samples" in options else 24 if needs else 0)
    assert notes["quantised"]["weights"] == 3
    assert notes["size_ratio"] < 0.9
    assert infer(made, {"image": np.zeros((5, 3, 12, 10), np.float32)})["output"].shape == (5, 4)


def test_int8_io_is_int8_in_the_file(conv: Made, tmp_path: Path) -> None:
    made, notes = quantised(conv, tmp_path, IMAGES, mode="static", io="int8")
    held = notes["file"]["serving_default"]
    assert held["inputs"]["image"]["dtype"] == held["outputs"]["output"]["dtype"] == "int8"
    assert held["inputs"]["image"]["scale"] == pytest.approx(2 / 255, rel=0.02)
    from optkit.runners.tflite_runner import RUNNER

    with RUNNER.open(made) as session:
        assert session.provider == "CPU XNNPACK; image float32 as int8; output float32 as int8"


@pytest.mark.parametrize("mode", ["selective", "dynamic", "fp16"])
def test_a_transformer_of_several_signatures(text: Made, tmp_path: Path, mode: str) -> None:
    made, notes = quantised(text, tmp_path, TEXTS if mode == "selective" else None, mode=mode)
    assert worst(text, made, texts, "pooled") > (18 if mode != "fp16" else 50)
    assert sorted(notes["file"]) == [f"batch_{b}_sequence_{s}" for b in (1, 4) for s in (12, 6)]
    model = tflite_model.read(made.path)
    kinds = {tflite_model.kind_of(t) for t in tflite_look.constants(model).values() if len(t.shape) == 2}
    assert ("float16" if mode == "fp16" else "int8") in kinds
    tables = [tflite_look.weight(model, op, g) for n, op, g in tflite_look.operations(model) if n == "EMBEDDING_LOOKUP"]
    assert {tflite_model.kind_of(t) for t in tables} == {"float16" if mode == "fp16" else "int8"}
    assert len({t.buffer for t in tables}) == 1  # the signatures share it
    feed = {"input_ids": np.ones((7, 9), np.int64), "attention_mask": np.ones((7, 9), np.int64)}
    assert infer(made, feed)["hidden"].shape == (7, 9, 16)


def test_op_types_and_exclude(conv: Made, tmp_path: Path) -> None:
    _, notes = quantised(conv, tmp_path, IMAGES, mode="static", op_types=["FULLY_CONNECTED"])
    assert notes["left_float"] == {"CONV_2D": 2}
    (tmp_path / "b").mkdir()
    _, notes = quantised(conv, tmp_path / "b", IMAGES, mode="selective", exclude=["^first"])
    assert notes["left_float"] == {"CONV_2D": 1}
    (tmp_path / "c").mkdir()
    made, notes = quantised(conv, tmp_path / "c", IMAGES, mode="selective", exclude=["^first"], excluded="weight_only")
    assert notes["left_float"] == {}
    assert notes["quantised"]["weights"] == 3
    assert worst(conv, made, images) > 25


def test_what_a_budget_keeps_may_have_int8_weights(conv: Made, tmp_path: Path) -> None:
    parent, given = conv
    for name in ("scratch", "out", "all", "light"):
        (tmp_path / name).mkdir()
    context = replace(given, data=IMAGES, scratch=tmp_path / "scratch")
    whole = worst(conv, quantised(conv, tmp_path / "all", IMAGES)[0], images)
    light = worst(conv, quantised(conv, tmp_path / "light", mode="weight_only")[0], images)
    assert light > whole + 1
    options = TfliteQuantize(budget=(f"sqnr_db >= {(whole + light) / 2:.1f}",), excluded="weight_only")
    notes = PASS.run(parent, tmp_path / "out", options, context)
    assert notes["budget"]["kept"]
    assert notes["left_float"] == {}
    assert worst(conv, described(tmp_path / "out" / "model.tflite"), images) > whole


def test_samples_are_streamed(conv: Made, tmp_path: Path) -> None:
    alive = [0, 0]

    class Streamed:
        def __len__(self) -> int:
            return 40

        def __iter__(self) -> Iterator[Tensors]:
            return iter(images(40))

        def feeds(self, batch: int) -> Iterator[Tensors]:
            for sample in images(40):
                alive[0] += 1
                yield {name: value[None] for name, value in sample.items()}
                alive[1] = max(alive[1], alive[0])
                alive[0] -= 1

    _, notes = quantised(conv, tmp_path, Streamed(), mode="static")
    assert (notes["samples"], alive[1]) == (40, 1)


def test_what_is_refused(conv: Made, text: Made, tmp_path: Path) -> None:
    given = conv[1]
    out = tmp_path / "o"
    out.mkdir()

    def refused(data: Any, source: Made = conv, **options: Any) -> Any:
        with pytest.raises((StepError, DataError)) as caught:
            PASS.run(source[0], out, TfliteQuantize(**options), replace(source[1], data=data))
        assert caught.value.hint
        return caught.value

    assert refused(None).subject == "data"
    assert "has no 'image'" in refused(ListSamples([{"picture": np.zeros((3, 12, 10), np.float32)}])).what
    assert "no samples" in refused(ListSamples([])).what
    bad = images(1)
    bad[0]["image"][:] = np.nan
    assert "NaN or infinite" in refused(ListSamples(bad)).what
    assert "FULLY_CONNECTED" in refused(IMAGES, op_types=["FULY_CONNECTED"]).hint
    assert "the model has no GELU" in refused(IMAGES, op_types=["GELU"]).what
    assert refused(IMAGES, exclude=["nothing like it"]).subject == "with.exclude"
    nothing: Any = {"mode": "weight_only", "op_types": ["CONV_2D"], "exclude": ["first", "second", "model"]}
    assert "nothing was quantised" in refused(None, **nothing).what
    done, _ = quantised(conv, tmp_path, mode="dynamic")
    assert "quantised already" in refused(None, (done, given), mode="fp16").what


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "selective", "io": "int8"},
        {"mode": "fp16", "calibration": "minmax"},
        {"mode": "dynamic", "max_samples": 3},
        {"exclude": ["("]},
        {"mode": "static", "io": "int8", "op_types": ["CONV_2D"]},
        {"excluded": "weight_only"},
        {"mode": "fp16", "exclude": ["a"], "excluded": "weight_only"},
        {"mode": "int4"},
    ],
)
def test_options_that_cannot_go_together(options: Any) -> None:
    with pytest.raises(ValidationError):
        TfliteQuantize(**options)


def test_confirm_reads_the_file(conv: Made, tmp_path: Path) -> None:
    parent, given = conv
    static, _ = quantised(conv, tmp_path, IMAGES, mode="static")

    def complaints(made: Artifact, **options: Any) -> str:
        assert PASS.confirm is not None
        return "\n".join(PASS.confirm(parent, made, TfliteQuantize(**options), given))

    assert "the weight of CONV_2D" in complaints(parent, mode="static")
    assert "is float32, not float16" in complaints(parent, mode="fp16")
    assert "is int8, not int16" in complaints(static, mode="int16x8")
    assert "'image' is float32 in the file, not int8" in complaints(static, mode="static", io="int8")
    assert "is int8, not float32: it is excluded" in complaints(static, mode="static", exclude=["second"])

    def renamed(model: Any, agreed: Any) -> Any:
        model.signatureDefs[0].outputs[0].name = b"scores"
        return replace(agreed, padded=("batch",))

    told = complaints(rewritten(static, tmp_path / "other.tflite", renamed), mode="static")
    assert "the outputs of serving_default are scores, not output" in told
    assert "does not hold its parent's contract" in told


def test_openvino_reads_what_was_written(conv: Made, tmp_path: Path) -> None:
    """Its reader takes an operator's old code field at its word, and wants weights inside the flatbuffer."""
    import openvino as ov

    made, _ = quantised(conv, tmp_path, mode="fp16")
    model = ov.Core().compile_model(str(made.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    feed = np.stack([sample["image"] for sample in images(3)])
    got = model({model.inputs[0]: feed})[model.outputs[0]]
    np.testing.assert_allclose(got, infer(made, {"image": feed})["output"], atol=1e-3)


def test_a_file_of_another_tool_gets_the_recipes_names(conv: Made, tmp_path: Path) -> None:
    from ai_edge_litert.tools import flatbuffer_utils

    parent, given = conv
    model = tflite_model.read(parent.path)
    model.metadata = []
    path = tmp_path / "other.tflite"
    path.write_bytes(flatbuffer_utils.convert_object_to_bytearray(model))
    other = Artifact("tflite", path, "", parent.signature, (path.name,))
    made, _ = quantised((other, given), tmp_path, mode="dynamic")
    assert str(made.signature.inputs[0]) == "image: float32[batch, 3, 12, 10]"  # type: ignore[union-attr]


def test_a_budget_keeps_the_one_layer_that_8_bits_do_not_hold(tmp_path: Path) -> None:
    spec = TensorSpec("x", "float32", ("batch", 8), None, (-4, 4))
    random = np.random.default_rng(3)
    data = ListSamples([{"x": random.standard_normal(8).astype(np.float32)} for _ in range(40)])
    _, source, given, _ = converted(tmp_path / "lite", "Outlier", spec)
    context = replace(given, data=data)
    x = random.standard_normal((9, 8)).astype(np.float32)
    want = next(iter(infer(source, {"x": x}).values()))
    errors = {}
    for name, options in (("plain", TfliteQuantize()), ("kept", TfliteQuantize(budget=("sqnr_db >= 25",)))):
        out = tmp_path / name
        out.mkdir()
        notes = PASS.run(source, out, options, context)
        made = described(out / "model.tflite")
        assert PASS.confirm is not None
        assert list(PASS.confirm(source, made, options, context)) == []
        got = next(iter(infer(made, {"x": x}).values()))
        errors[name] = float(-20 * np.log10(np.linalg.norm(got - want) / np.linalg.norm(want)))
    assert errors["plain"] < 20 < 25 < errors["kept"]
    assert [row["kept"] for row in notes["budget"]["ranking"]] == [True, False, False]
