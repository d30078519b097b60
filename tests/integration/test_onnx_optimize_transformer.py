"""onnx.optimize_transformer: onnxruntime's fusions."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import pytest
from onnx_models import (
    FLOAT,
    INT64,
    artifact,
    cnn,
    context,
    edited,
    feed_of,
    infer,
    made,
    model,
    node,
    operators,
    saved,
    texts,
    value,
    weight,
)
from pydantic import ValidationError

from optkit.artifact import Artifact
from optkit.errors import StepError
from optkit.formats.onnx import model as onnx_model
from optkit.passes import onnx_optimize_transformer
from optkit.passes.onnx_optimize_transformer import PASS

HIDDEN, HEADS = 16, 4


def bert() -> onnx.ModelProto:
    """One BERT layer as the TorchScript exporter writes it, on embedded tokens: `(batch, length, 16)`."""
    width = HIDDEN // HEADS
    nodes = [node("Gather", "table ids", "e"), node("LayerNormalization", "e g0 n0", "x", epsilon=1e-5),
             node("Unsqueeze", "mask axis1", "m0"), node("Unsqueeze", "m0 axis2", "m1"),
             node("Cast", "m1", "m2", to=FLOAT), node("Sub", "unit m2", "m4"), node("Mul", "m4 low", "m3")]  # fmt: skip
    constants: dict[str, Any] = {"table": weight(100, HIDDEN) * 5, "axis1": np.array([1]), "axis2": np.array([2]),
                                 "unit": 1.0, "low": -1e4,
                                 "root": float(width**0.5), "zero": np.array(0), "one": np.array(1),
                                 "axis": np.array([0]), "heads": np.array([HEADS]), "width": np.array([width]),
                                 "hidden": np.array([HIDDEN])}  # fmt: skip
    for name in "qkv":
        constants |= {f"w{name}": weight(HIDDEN, HIDDEN, seed=ord(name)), f"b{name}": weight(HIDDEN, seed=ord(name))}
        nodes += [node("MatMul", f"x w{name}", f"{name}0"), node("Add", f"b{name} {name}0", f"{name}1"),
                  *reshape(f"{name}1", f"{name}2", "heads width"),
                  node("Transpose", f"{name}2", name, perm=[0, 2, 3, 1] if name == "k" else [0, 2, 1, 3])]  # fmt: skip
    nodes += [
        node("MatMul", "q k", "s0"), node("Div", "s0 root", "s1"), node("Add", "s1 m3", "s2"),
        node("Softmax", "s2", "s3", axis=-1), node("MatMul", "s3 v", "a0"),
        node("Transpose", "a0", "a1", perm=[0, 2, 1, 3]), *reshape("a1", "a2", "hidden"),
        node("MatMul", "a2 wo", "o0"), node("Add", "bo o0", "o1"), node("Add", "o1 x", "o2"),
        node("LayerNormalization", "o2 g1 n1", "h", epsilon=1e-5),
        node("MatMul", "h up", "u0"), node("Add", "bu u0", "u1"), node("Gelu", "u1", "u2"),
        node("MatMul", "u2 down", "d0"), node("Add", "bd d0", "d1"), node("Add", "d1 h", "d2"),
        node("LayerNormalization", "d2 g2 n2", "y", epsilon=1e-5),
    ]  # fmt: skip
    constants |= {"wo": weight(HIDDEN, HIDDEN), "bo": weight(HIDDEN), "up": weight(HIDDEN, 32), "bu": weight(32),
                  "down": weight(32, HIDDEN), "bd": weight(HIDDEN, seed=4)}  # fmt: skip
    for i in range(3):
        constants |= {f"g{i}": weight(HIDDEN, seed=i) + 1, f"n{i}": weight(HIDDEN, seed=9 + i)}
    inputs = [value("ids", INT64, ["batch", "length"]), value("mask", INT64, ["batch", "length"])]
    return model(nodes, inputs, [value("y", FLOAT, ["batch", "length", HIDDEN])], constants)


def reshape(source: str, target: str, tail: str) -> list[Any]:
    """Reshape to (batch, length, *tail) with sizes that are computed."""
    nodes = []
    for index, which in enumerate(("zero", "one")):
        part = f"{target}_{index}"
        nodes += [node("Shape", source, f"{part}s"), node("Gather", f"{part}s {which}", f"{part}g"),
                  node("Unsqueeze", f"{part}g axis", part)]  # fmt: skip
    joined = f"{target}_shape"
    return [*nodes, node("Concat", f"{target}_0 {target}_1 {tail}", joined, axis=0),
            node("Reshape", f"{source} {joined}", target)]  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return saved(bert(), tmp_path_factory.mktemp("bert") / "source")


def test_attention_and_normalisation_are_fused(source: Artifact, tmp_path: Path) -> None:
    path, handlers = list(sys.path), logging.getLogger().handlers[:]
    result, notes, complaints = made(PASS, source, tmp_path, num_heads=HEADS, hidden_size=HIDDEN)
    assert complaints == []
    assert (sys.path, logging.getLogger().handlers) == (path, handlers)
    assert notes["fused"]["com.microsoft.Attention"] == 1
    assert notes["fused"]["com.microsoft.SkipLayerNormalization"] == 2
    assert notes["portable"] is False
    assert notes["nodes"]["after"] == sum(operators(result).values()) < notes["nodes"]["before"]
    domains = {o.domain for o in onnx.load(result.path).opset_import}
    assert domains == {"", "com.microsoft"}
    assert result.signature is not None
    assert result.signature.dynamic == ("batch", "length")
    for sample in texts(3):
        np.testing.assert_allclose(infer(result, feed_of(sample))[0], infer(source, feed_of(sample))[0], atol=2e-3)


def test_onnxruntimes_own_optimiser_alone(source: Artifact, tmp_path: Path) -> None:
    result, notes, complaints = made(PASS, source, tmp_path, only_onnxruntime=True, opt_level=2)
    assert complaints == []
    assert notes["fused"]["com.microsoft.SkipLayerNormalization"] == 2
    feed = feed_of(texts(1)[0])
    np.testing.assert_allclose(infer(result, feed)[0], infer(source, feed)[0], atol=2e-3)


@pytest.mark.parametrize("level", [0, 2])
def test_levels(source: Artifact, tmp_path: Path, level: int) -> None:
    result, notes, _ = made(PASS, source, tmp_path, opt_level=level, num_heads=HEADS, hidden_size=HIDDEN)
    assert notes["fused"]
    feed = feed_of(texts(1)[0])
    np.testing.assert_allclose(infer(result, feed)[0], infer(source, feed)[0], atol=2e-3)


def test_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "source").mkdir()
    path = tmp_path / "source" / "model.onnx"
    onnx.save(bert(), path, save_as_external_data=True, location="all.bin", size_threshold=64)
    outside = artifact(path.parent)
    whole, _, _ = made(PASS, outside, tmp_path, num_heads=HEADS, hidden_size=HIDDEN)
    assert whole.files == ("model.onnx",)
    monkeypatch.setattr(onnx_model, "EXTERNAL_FROM", 4096)
    monkeypatch.setattr(onnx_optimize_transformer, "_LARGE", 4096)
    here = Path.cwd()
    for level in (0, 1):
        options = {"num_heads": HEADS, "hidden_size": HIDDEN, "opt_level": level}
        result, notes, complaints = made(PASS, outside, tmp_path, **options)
        assert result.files == ("model.onnx", "model.onnx.data")
        assert (notes["fused"]["com.microsoft.Attention"], complaints) == (1, [])
        feed = feed_of(texts(1)[0])
        np.testing.assert_allclose(infer(result, feed)[0], infer(whole, feed)[0], atol=1e-5)
    assert Path.cwd() == here


def test_nothing_fused_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    convolutional = saved(cnn(), tmp_path / "source")
    (tmp_path / "out").mkdir()
    with pytest.raises(StepError, match="no fusion applied: nothing in the graph looks like vit") as caught:
        PASS.run(convolutional, tmp_path / "out", PASS.options(model_type="vit"), context(tmp_path))
    assert "another with.model_type" in caught.value.hint
    assert capfd.readouterr() == ("", "")


def test_contradictions_are_found_without_a_model() -> None:
    with pytest.raises(ValidationError, match="only_onnxruntime fuses nothing below opt_level 2"):
        PASS.options(only_onnxruntime=True)
    with pytest.raises(ValidationError, match="hidden_size 10 is no multiple of num_heads 4"):
        PASS.options(num_heads=4, hidden_size=10)
    with pytest.raises(ValidationError, match="Input should be 'bart'"):
        PASS.options(model_type="bret")


def test_model_types_are_those_of_onnxruntime() -> None:
    with onnx_optimize_transformer._captured():
        from onnxruntime.transformers.optimizer import MODEL_TYPES
    assert sorted(MODEL_TYPES) == sorted(get_args(onnx_optimize_transformer.ModelType))


def test_confirm_can_fail(source: Artifact, tmp_path: Path) -> None:
    assert PASS.confirm is not None
    options = PASS.options(num_heads=HEADS, hidden_size=HIDDEN)
    assert list(PASS.confirm(source, source, options, context(tmp_path))) == ["no fused operator is in the graph"]
    result, _, _ = made(PASS, source, tmp_path, num_heads=HEADS, hidden_size=HIDDEN)

    def halve(proto: onnx.ModelProto) -> None:
        for n in proto.graph.node:
            for a in n.attribute:
                if a.name == "num_heads":
                    a.i = 2

    wrong = edited(result, tmp_path / "wrong", halve)
    assert "has 2 heads, not 4" in "; ".join(PASS.confirm(source, wrong, options, context(tmp_path)))
