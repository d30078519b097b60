"""onnx.compress_weights: every form, width and algorithm on onnxruntime, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_models import (
    FLOAT,
    INT64,
    cnn,
    context,
    edited,
    encoder,
    feed_of,
    images,
    infer,
    made,
    model,
    node,
    operators,
    refusal,
    saved,
    sqnr_db,
    texts,
    value,
    weight,
)
from pydantic import ValidationError

from optkit.artifact import Artifact
from optkit.errors import DataError, StepError
from optkit.formats.onnx import blocks as onnx_blocks
from optkit.formats.onnx import model as onnx_model
from optkit.formats.onnx.blocks import Scheme
from optkit.passes.onnx_compress_weights import PASS
from optkit.passes.onnx_fp16 import PASS as FP16
from optkit.passes.onnx_quantize import PASS as QUANTIZE
from optkit.passes.onnx_to_openvino import PASS as TO_OPENVINO
from optkit.testing import ListSamples


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return saved(encoder(), tmp_path_factory.mktemp("encoder") / "source")


def language_model(opset: int = 21) -> onnx.ModelProto:
    """Embeddings, three gated MLPs with residuals and normalisation, a head: ids `(batch, length)` to 512 logits."""
    nodes = [node("Gather", "table ids", "x0")]
    constants: dict[str, Any] = {"table": weight(512, 64) * 8, "one": np.ones(64, np.float32)}
    for i in range(3):
        constants |= {f"{name}{i}": weight(*shape, seed=i) for name, shape in (
            ("gate", (64, 192)), ("up", (64, 192)), ("down", (192, 64)))}  # fmt: skip
        nodes += [
            node("LayerNormalization", f"x{i} one", f"n{i}", axis=-1),
            node("MatMul", f"n{i} gate{i}", f"g{i}"), node("Sigmoid", f"g{i}", f"s{i}"),
            node("Mul", f"g{i} s{i}", f"a{i}"), node("MatMul", f"n{i} up{i}", f"u{i}"),
            node("Mul", f"a{i} u{i}", f"m{i}"), node("MatMul", f"m{i} down{i}", f"d{i}"),
            node("Add", f"x{i} d{i}", f"x{i + 1}"),
        ]  # fmt: skip
    constants["head"] = weight(64, 512)
    nodes.append(node("MatMul", "x3 head", "logits"))
    return model(nodes, [value("ids", INT64, ["batch", "length"])], [value("logits", FLOAT, None)], constants, opset)


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return saved(language_model(), tmp_path_factory.mktemp("language") / "source")


def ids(count: int, seed: int = 0) -> ListSamples:
    """Token ids, the common ones more often than the rare."""
    rng = np.random.default_rng(seed)
    return ListSamples([{"ids": rng.zipf(1.5, 24) % 512} for _ in range(count)])


def compressed(source: Artifact, folder: Path, data: Any = None, **options: Any) -> tuple[Artifact, Any]:
    result, notes, complaints = made(PASS, source, folder, data, **options)
    assert complaints == []
    onnx.checker.check_model(str(result.path))
    assert [t.name for t in result.signature.outputs] == [t.name for t in source.signature.outputs]
    return result, notes


def worst(source: Artifact, result: Artifact, samples: Any) -> float:
    """dB of the worst sample."""
    return min(sqnr_db(infer(source, feed_of(s))[0], infer(result, feed_of(s))[0]) for s in samples)


# what is written


@pytest.mark.parametrize(
    ("options", "share", "least_db"),
    [
        # 4 bits, and per group of 128 a float32 scale and 4 bits of zero point: 4.28 of 32 bits; a third of the rows
        # are of 192, which fill one group and a half. The standard form is run with activations in int8
        ({}, 0.155, 14),
        ({"symmetric": True}, 0.151, 13),
        ({"group_size": 32}, 0.165, 15),
        ({"bits": 8, "group_size": 64}, 0.270, 38),
        ({"bits": 8, "symmetric": True}, 0.290, 37),
        ({"algorithm": "hqq"}, 0.165, 14),
        ({"compute": "int8"}, 0.155, 14),
        ({"form": "standard", "group_size": 64}, 0.150, 14),
        ({"form": "standard", "group_size": 64, "symmetric": True}, 0.145, 13),
        ({"form": "standard", "bits": 8, "group_size": 16}, 0.345, 34),
        ({"form": "standard", "bits": 8, "symmetric": True}, 0.270, 34),
    ],
)
def test_a_language_model_shrinks_and_stays_itself(
    language: Artifact, tmp_path: Path, options: dict[str, Any], share: float, least_db: float
) -> None:
    result, notes = compressed(language, tmp_path, **options)
    assert notes["compressed"] == {"MatMul": 10}
    assert notes["weight_bytes"]["before"] == 4 * (9 * 64 * 192 + 64 * 512)
    assert notes["weight_bytes"]["after"] <= share * notes["weight_bytes"]["before"]
    grown = result.path.stat().st_size - 4 * 512 * 64 - notes["weight_bytes"]["after"]
    assert 0 < grown < 10_000  # the table, which stays float, and the graph
    assert worst(language, result, ids(4, seed=9).items) > least_db
    counts = operators(result)
    if options.get("form") == "standard":
        assert counts["DequantizeLinear"] == counts["MatMul"] == 10
    else:
        assert (counts["com.microsoft.MatMulNBits"], counts["MatMul"]) == (10, 0)
        assert onnx_model.inspect(result.path)["quantised"] == {"com.microsoft.MatMulNBits": 10}


@pytest.mark.parametrize("form", ["onnxruntime", "standard"])
@pytest.mark.parametrize(
    ("bits", "symmetric", "least_db"), [(4, False, 14), (4, True, 13), (8, False, 34), (8, True, 34)]
)
def test_tables(language: Artifact, tmp_path: Path, form: str, bits: int, symmetric: bool, least_db: float) -> None:
    options = {"form": form, "bits": bits, "symmetric": symmetric, "group_size": 32, "op_types": ["Gather", "MatMul"]}
    result, notes = compressed(language, tmp_path, **options)
    assert notes["compressed"] == {"Gather": 1, "MatMul": 10}
    assert result.path.stat().st_size < (0.21 if bits == 4 else 0.34) * language.path.stat().st_size
    assert worst(language, result, ids(4, seed=9).items) > least_db


def test_onnxruntime_fuses_the_standard_form(language: Artifact, tmp_path: Path) -> None:
    import onnxruntime

    result, _ = compressed(language, tmp_path, form="standard")
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(result.path), options, providers=["CPUExecutionProvider"])
    fused = [n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert fused.count("MatMulNBits") == 10


def test_openvino_reads_the_standard_form(language: Artifact, tmp_path: Path) -> None:
    import openvino

    result, _ = compressed(language, tmp_path, form="standard", symmetric=True)
    out = tmp_path / "ir"
    out.mkdir()
    TO_OPENVINO.run(result, out, TO_OPENVINO.options(), context(tmp_path))
    compiled = openvino.Core().compile_model(out / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    feed = feed_of(ids(1, seed=9).items[0])
    assert sqnr_db(infer(result, feed)[0], compiled(feed)["logits"]) > 30
    assert (out / "model.bin").stat().st_size < 0.4 * language.path.stat().st_size


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("form", ["onnxruntime", "standard"])
def test_gemm_and_shared_weights(tmp_path: Path, transposed: int, form: str) -> None:
    nodes = [node("Gemm", "x w b", "h", transB=transposed, alpha=0.5), node("Gemm", "h v", "i", transB=transposed),
             node("MatMul", "i u", "j"), node("MatMul", "j u", "k"), node("Gemm", "k u", "odd", transA=1),
             node("MatMul", "odd odd", "y")]  # fmt: skip
    constants = {"w": weight(48, 32) if transposed else weight(32, 48), "b": weight(48), "v": weight(48, 48),
                 "u": weight(48, 48, seed=3)}  # fmt: skip
    proto = model(nodes, [value("x", FLOAT, [48, 32])], [value("y", FLOAT, [48, 48])], constants, 21)
    source = saved(proto, tmp_path / "source")
    result, notes = compressed(source, tmp_path, bits=8, group_size=16, form=form)
    assert notes["compressed"] == {"Gemm": 2, "MatMul": 2}
    assert notes["left_float"] == {"Gemm with transA or beta": 1, "MatMul without a constant weight": 1}
    names = [t.name for t in onnx.load(result.path).graph.initializer]
    assert sum(name.startswith("u_8bit") for name in names) == 1
    assert "u" in names  # the product that stays float reads it
    assert (
        sqnr_db(infer(source, {"x": weight(48, 32, seed=5)})[0], infer(result, {"x": weight(48, 32, seed=5)})[0]) > 30
    )


@pytest.mark.parametrize("inputs", [5, 24, 100])
def test_rows_that_no_group_divides(tmp_path: Path, inputs: int) -> None:
    """onnxruntime's operator fills the last group up; the group is no longer than a row needs."""
    proto = model([node("MatMul", "x w", "y")], [value("x", FLOAT, ["batch", inputs])],
                  [value("y", FLOAT, ["batch", 33])], {"w": weight(inputs, 33)}, 21)  # fmt: skip
    source = saved(proto, tmp_path / "source")
    feed = {"x": weight(4, inputs)}
    for algorithm in ("rtn", "hqq"):
        result, _ = compressed(source, tmp_path, algorithm=algorithm)
        assert sqnr_db(infer(source, feed)[0], infer(result, feed)[0]) > 12
    (held,) = [n for n in onnx.load(result.path).graph.node if n.op_type == "MatMulNBits"]
    assert {a.name: a.i for a in held.attribute}["block_size"] == {5: 16, 24: 32, 100: 128}[inputs]
    data = ListSamples([{"x": weight(inputs, seed=s)} for s in range(20)])
    result, _ = compressed(source, tmp_path, data, algorithm="gptq")
    assert sqnr_db(infer(source, feed)[0], infer(result, feed)[0]) > 12
    error = refusal(PASS, source, tmp_path, form="standard")
    assert error.what == ("nothing was compressed: the model has no Gemm or MatMul whose weight fits; "
                          "1 MatMul whose rows no group of 16 divides")  # fmt: skip


def test_external_data(language: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(language_model(), tmp_path / "source", external=True)
    whole, _ = compressed(source, tmp_path)
    monkeypatch.setattr(onnx_model, "EXTERNAL_FROM", 2048)
    split, _ = compressed(source, tmp_path)
    assert split.files == ("model.onnx", "model.onnx.data")
    feed = feed_of(ids(1).items[0])
    np.testing.assert_array_equal(infer(whole, feed)[0], infer(split, feed)[0])


# how close it is


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_nearest_is_as_close_as_onnxruntimes_own(bits: int, symmetric: bool) -> None:
    from onnxruntime.capi import _pybind_state as own

    matrix = np.random.default_rng(0).standard_normal((256, 64)).astype(np.float32)
    raw = np.zeros((64, 8, 32 * bits // 8), np.uint8)
    scale = np.zeros((64, 8), np.float32)
    zero = np.zeros((64, 8 * bits // 8), np.uint8)
    quantise = own.quantize_matmul_4bits if bits == 4 else own.quantize_matmul_8bits
    quantise(raw, matrix, scale, zero, 32, 64, 256, symmetric)
    theirs = onnx_blocks.unpacked(raw.reshape(64, -1), bits, 256).astype(np.float32)
    zeros = np.full((64, 8), 2 ** (bits - 1)) if symmetric else onnx_blocks.unpacked(zero, bits, 8)
    found = (theirs - np.repeat(zeros, 32, axis=1)) * np.repeat(scale, 32, axis=1)
    ours = onnx_blocks.quantised(matrix.T, Scheme(bits, 32, symmetric, "rtn")).values()
    errors = [np.linalg.norm(values - matrix.T) for values in (ours, found)]
    assert errors[0] < 1.1 * errors[1]


def test_hqq_is_closer_where_weights_have_outliers() -> None:
    matrix = np.random.default_rng(0).standard_t(3, (64, 256)).astype(np.float32)
    near, searched = (onnx_blocks.quantised(matrix, Scheme(4, 64, False, name)) for name in ("rtn", "hqq"))
    errors = [np.mean(np.abs(blocks.values() - matrix) ** 0.7) for blocks in (near, searched)]
    assert errors[1] < 0.97 * errors[0]
    assert searched.zero.dtype == np.float32
    assert np.any(searched.zero % 1)


def correlated(count: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Inputs of 64 features that lie near a space of 6 dimensions, as hidden states do."""
    rng = np.random.default_rng(seed)
    spread = np.random.default_rng(1).standard_normal((6, 64))
    return [{"x": (rng.standard_normal(6) @ spread + 0.05 * rng.standard_normal(64)).astype(np.float32)}
            for _ in range(count)]  # fmt: skip


@pytest.mark.parametrize("form", ["onnxruntime", "standard"])
def test_gptq_keeps_outputs_where_inputs_are_correlated(tmp_path: Path, form: str) -> None:
    proto = model([node("MatMul", "x w", "y")], [value("x", FLOAT, ["batch", 64])],
                  [value("y", FLOAT, ["batch", 48])], {"w": weight(64, 48)}, 21)  # fmt: skip
    source = saved(proto, tmp_path / "source")
    options = {"group_size": 32, "form": form}
    near, _ = compressed(source, tmp_path, **options)
    fitted, notes = compressed(source, tmp_path, ListSamples(correlated(200, 0)), algorithm="gptq", **options)
    assert notes["samples"] == 200
    judge = correlated(20, 1)
    gain = np.mean([sqnr_db(infer(source, feed_of(s))[0], infer(fitted, feed_of(s))[0])
                    - sqnr_db(infer(source, feed_of(s))[0], infer(near, feed_of(s))[0]) for s in judge])  # fmt: skip
    assert gain > 6


def test_gptq_on_a_language_model(language: Artifact, tmp_path: Path) -> None:
    near, _ = compressed(language, tmp_path)
    fitted, notes = compressed(language, tmp_path, ids(16), algorithm="gptq")
    again, _ = compressed(language, tmp_path, ids(16), algorithm="gptq")
    assert notes["samples"] == 16
    assert fitted.path.read_bytes() == again.path.read_bytes()
    judge = ids(6, seed=9).items
    assert worst(language, fitted, judge) > worst(language, near, judge) + 1


def test_hessians_take_as_many_passes_as_memory_asks(
    language: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optkit.formats.onnx import hessian as onnx_hessian

    whole, _ = compressed(language, tmp_path, ids(8), algorithm="gptq")
    monkeypatch.setattr(onnx_hessian, "AT_ONCE", 8 * 200**2)
    parts, notes = compressed(language, tmp_path, ids(8), algorithm="gptq")
    assert notes["samples"] == 8
    assert whole.path.read_bytes() == parts.path.read_bytes()


# what is refused


def test_nothing_to_compress(text: Artifact, tmp_path: Path) -> None:
    nodes = [node("MatMul", "x x", "y")]
    proto = model(nodes, [value("x", FLOAT, [8, 8])], [value("y", FLOAT, [8, 8])], {})
    error = refusal(PASS, saved(proto, tmp_path / "source"), tmp_path)
    assert isinstance(error, StepError)
    assert error.what == ("nothing was compressed: the model has no Gemm or MatMul whose weight fits; "
                          "1 MatMul without a constant weight")  # fmt: skip
    assert error.hint == "the model has 1 MatMul"
    error = refusal(PASS, text, tmp_path, exclude=["*"])
    assert error.what.endswith("outside of with.exclude")
    error = refusal(PASS, saved(cnn(), tmp_path / "cnn"), tmp_path, exclude=["head"])
    assert "2 Conv" in error.hint


def test_data_where_it_is_needed_and_only_there(text: Artifact, tmp_path: Path) -> None:
    assert PASS.wants_data(PASS.options(algorithm="gptq"))
    assert not PASS.wants_data(PASS.options())
    error = refusal(PASS, text, tmp_path, algorithm="gptq")
    assert isinstance(error, DataError)
    assert (error.subject, error.hint) == ("data", "give the step `data:`, or set algorithm: hqq")
    error = refusal(PASS, text, tmp_path, ListSamples(texts(2)))
    assert error.what == "the step was given data, and rtn uses none"
    assert refusal(PASS, text, tmp_path, ListSamples([]), algorithm="gptq").what == "the data has no samples"
    error = refusal(PASS, text, tmp_path, ListSamples(images(2)), algorithm="gptq")
    assert error.what == "the calibration data has no 'ids'"


def test_other_refusals(text: Artifact, language: Artifact, tmp_path: Path) -> None:
    error = refusal(PASS, text, tmp_path, form="standard")
    assert error.what == "the model has opset 20; groups in DequantizeLinear need 21"
    assert refusal(PASS, text, tmp_path, exclude=["up_prj"]).hint == "did you mean 'up_proj'?"
    for form in ("onnxruntime", "standard"):
        result, _ = compressed(language, tmp_path, form=form)
        assert refusal(PASS, result, tmp_path).what == "the model's weights are compressed already"
    integers, _, _ = made(QUANTIZE, text, tmp_path, method="dynamic")
    assert refusal(PASS, integers, tmp_path).what == "the model is quantised already"
    halved = refusal(PASS, made(FP16, text, tmp_path)[0], tmp_path)
    assert halved.hint == "compress the float32 model, then onnx.fp16"

    def broken(proto: onnx.ModelProto) -> None:
        array = weight(64, 512)
        array[3, 3] = np.nan
        next(t for t in proto.graph.initializer if t.name == "head").CopyFrom(numpy_helper.from_array(array, "head"))

    error = refusal(PASS, edited(language, tmp_path / "broken", broken), tmp_path)
    assert error.what == "weight 'head' holds NaN or infinity"


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"bits": 3}, "Input should be 4 or 8"),
        ({"group_size": 48}, "Input should be 16, 32, 64, 128 or 256"),
        ({"algorithm": "hqq", "bits": 8}, "hqq is for 4 bits"),
        ({"algorithm": "hqq", "symmetric": True}, "symmetric has none"),
        ({"algorithm": "hqq", "form": "standard"}, "which DequantizeLinear cannot hold"),
        ({"form": "standard", "compute": "int8"}, "compute goes with form: onnxruntime"),
        ({"op_types": ["Matmul"]}, "Matmul cannot be compressed; did you mean 'MatMul'"),
        ({"op_types": []}, "op_types is empty"),
        ({"op_types": ["Gather"], "algorithm": "gptq"}, "gptq is for products"),
    ],
)
def test_contradictions_are_found_without_a_model(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        PASS.options(**options)


def test_confirm_can_fail(language: Artifact, tmp_path: Path) -> None:
    def complaints(wrong: Artifact, **options: Any) -> str:
        assert PASS.confirm is not None
        return "; ".join(PASS.confirm(language, wrong, PASS.options(**options), context(tmp_path)))

    assert "the weight of MatMul g0 is not compressed" in complaints(language)
    four, _ = compressed(language, tmp_path)
    assert complaints(four, exclude=["logits"]) == "logits was excluded and is compressed"
    assert "has 4 bits, not 8" in complaints(four, bits=8)
    assert "has groups of 64, not 32" in complaints(four, group_size=32)
    assert "has a zero point" in complaints(four, symmetric=True)
    assert "is computed with in float32" in complaints(four, compute="int8")
    assert "is read by MatMulNBits, and the form is standard" in complaints(four, form="standard")

    def exchanged(proto: onnx.ModelProto) -> None:
        tensor = next(t for t in proto.graph.initializer if t.name == "head_4bit")
        raw = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(raw >> 4 | raw << 4, tensor.name))

    text = complaints(edited(four, tmp_path / "exchanged", exchanged))
    assert text.startswith("the weight of MatMul logits is 1")
    assert text.endswith("4 bits explain at most 55%")
