"""tflite.quantize with smooth_quant, and that an operator is one in all signatures of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from tflite_kit import DIMS, IDS, IMAGE, IMAGES, MASK, TEXTS, converted, described, infer

from optkit.artifact import Artifact, TensorSpec
from optkit.errors import DataError, StepError
from optkit.formats.tflite import groups as tflite_groups
from optkit.formats.tflite import look as tflite_look
from optkit.formats.tflite import model as tflite_model
from optkit.formats.tflite import smooth as tflite_smooth
from optkit.passes.tflite_quantize import PASS, TfliteQuantize
from optkit.plugin import Context
from optkit.testing import ListSamples

Made = tuple[Artifact, Context]
SIZES = {"batch": [1, 4]}


def vectors(count: int, seed: int) -> list[dict[str, Any]]:
    drawn = np.random.default_rng(seed).standard_normal((count, 8)).astype(np.float32)
    return [{"x": row} for row in drawn]


FIT = ListSamples(vectors(400, 3))


@pytest.fixture(scope="module")
def outlier(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two signatures of a network of three products, the input of whose second has an outlier."""
    spec = TensorSpec("x", "float32", ("batch", 8), None, (-4, 4))
    _, made, given, _ = converted(tmp_path_factory.mktemp("outlier"), "Outlier", spec, sizes=SIZES)
    return made, replace(given, data=FIT)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Made:
    sizes = {"batch": [1, 4], "sequence": [6, 12]}
    folder = tmp_path_factory.mktemp("text")
    _, made, given, _ = converted(folder, "Masked", IDS, MASK, sizes=sizes, pad=["sequence"], int64="int32")
    return made, replace(given, data=TEXTS)


def quantised(source: Made, folder: Path, **options: Any) -> tuple[Artifact, Mapping[str, Any]]:
    """The artifact, confirmed, and notes."""
    for name in ("out", "scratch"):
        (folder / name).mkdir(parents=True)
    asked, context = TfliteQuantize(**options), replace(source[1], scratch=folder / "scratch")
    notes = PASS.run(source[0], folder / "out", asked, context)
    made = described(folder / "out" / "model.tflite")
    assert PASS.confirm is not None
    assert list(PASS.confirm(source[0], made, asked, context)) == []
    assert made.signature == source[0].signature
    return made, notes


def close(source: Artifact, made: Artifact, batch: int) -> float:
    """dB over 40 samples that were not calibrated on, run by the signature of `batch`."""
    x = np.stack([sample["x"] for sample in vectors(40, 9)])
    parts = [x[i : i + batch] for i in range(0, len(x), batch)]
    want, got = (np.concatenate([infer(a, {"x": p})["output"] for p in parts]) for a in (source, made))
    return float(10 * np.log10((want**2).sum() / ((want - got) ** 2).sum()))


@pytest.mark.parametrize("mode", ["dynamic", "selective"])
def test_outliers_go_into_the_weights_of_every_signature(outlier: Made, tmp_path: Path, mode: str) -> None:
    plain, _ = quantised(outlier, tmp_path / "plain", mode=mode)
    smooth, notes = quantised(outlier, tmp_path / "smooth", mode=mode, smooth_quant=0.5)
    for batch in (1, 4):
        assert close(outlier[0], plain, batch) < 25 < 30 < close(outlier[0], smooth, batch)
    assert (notes["smoothed"], notes["samples"]) == (3, 400)
    model = tflite_model.read(smooth.path)
    assert tflite_smooth.count(model) == 3 * len(model.subgraphs) == 6
    assert "FULLY_CONNECTED" not in notes["left_float"]


def test_the_smoothed_graph_is_the_same_function(outlier: Made, text: Made, tmp_path: Path) -> None:
    for number, (source, context) in enumerate((outlier, text)):
        folder = tmp_path / str(number)
        quantised((source, context), folder, mode="dynamic", smooth_quant=0.8)
        smoothed = described(folder / "scratch" / "smoothed.tflite")
        assert context.data is not None
        for feed in context.data.feeds(4):
            want, got = infer(source, feed), infer(smoothed, feed)
            assert want.keys() == got.keys()
            for name, value in want.items():
                np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-4 * float(np.abs(value).max()))


def test_scales_come_from_the_samples_alone_not_from_padding(text: Made, tmp_path: Path) -> None:
    """All six-token samples are run by the signature of six, so the longer one adds nothing to what is measured."""
    source, _ = text
    model = tflite_model.read(source.path)
    groups = tflite_smooth.groups(model, lambda op, graph: True)
    assert groups
    assert all(len({graph for graph, _ in group.inputs}) == len(model.subgraphs) for group in groups)
    found = tflite_smooth.peaks(source.path, groups, tflite_model.contract(model), TEXTS.feeds(1), tmp_path, 1)
    again = tflite_smooth.peaks(source.path, groups, tflite_model.contract(model), TEXTS.feeds(4), tmp_path, 1)
    for one, other in zip(found, again, strict=True):
        assert len(one) == 16
        np.testing.assert_allclose(one, other, rtol=1e-5)
    assert not list(tmp_path.iterdir())


def test_fewer_samples_and_excluded_products(outlier: Made, tmp_path: Path) -> None:
    _, notes = quantised(outlier, tmp_path / "a", mode="dynamic", smooth_quant=0.5, max_samples=7, exclude=["output"])
    assert (notes["samples"], notes["smoothed"]) == (7, 2)
    assert notes["left_float"]["FULLY_CONNECTED"] == 2  # the third, in both signatures


def test_exclude_holds_for_the_same_operator_of_every_signature(outlier: Made, tmp_path: Path) -> None:
    model = tflite_model.read(outlier[0].path)
    scopes = [tflite_look.scope(op, graph) for name, op, graph in tflite_look.operations(model) if "FULLY" in name]
    assert len(set(scopes)) == 6  # a name of its own in each
    second = f"^{scopes[1]}$"
    assert tflite_groups.siblings(model, lambda scope: scope == scopes[1]) == (scopes[4],)
    for mode in ("dynamic", "selective"):
        _, notes = quantised(outlier, tmp_path / mode, mode=mode, exclude=[second])
        assert notes["left_float"]["FULLY_CONNECTED"] == 2


@pytest.mark.parametrize("smooth", [None, 0.5])
def test_a_budget_holds_in_every_signature(outlier: Made, tmp_path: Path, smooth: float | None) -> None:
    bound = 25 if smooth is None else 32
    made, notes = quantised(outlier, tmp_path / "kept", budget=[f"sqnr_db >= {bound}"], smooth_quant=smooth)
    kept = [row["kept"] for row in notes["budget"]["ranking"]]
    assert len(kept) == 3
    assert 0 < sum(kept) < 3
    assert notes["left_float"]["FULLY_CONNECTED"] == 2 * sum(kept)
    for batch in (1, 4):
        assert close(outlier[0], made, batch) > bound - 5  # other samples than those it was kept on


def test_what_is_refused(outlier: Made, tmp_path: Path) -> None:
    source, context = outlier

    def refused(given: Context, **options: Any) -> Any:
        with pytest.raises((StepError, DataError)) as caught:
            PASS.run(source, tmp_path, TfliteQuantize(mode="dynamic", smooth_quant=0.5, **options), given)
        assert caught.value.hint
        assert not list(tmp_path.glob("*.tflite"))
        return caught.value

    context = replace(context, scratch=tmp_path)
    assert refused(replace(context, data=None)).subject == "data"
    assert "no samples" in refused(replace(context, data=ListSamples([]))).what
    assert "has no 'x'" in refused(replace(context, data=ListSamples([{"y": np.zeros(8, np.float32)}]))).what
    infinite = ListSamples([{"x": np.full(8, np.inf, np.float32)}])
    assert "not finite" in refused(replace(context, data=infinite)).what
    assert refused(context, exclude=["first", "second", "output"]).subject == "with.smooth_quant"
    for mode in ("static", "int16x8", "fp16", "weight_only"):
        with pytest.raises(ValidationError, match="smooth_quant goes with"):
            TfliteQuantize(mode=mode, smooth_quant=0.5)
    assert PASS.confirm is not None
    plain, _ = quantised(outlier, tmp_path / "plain", mode="dynamic")
    told = PASS.confirm(source, plain, TfliteQuantize(mode="dynamic", smooth_quant=0.5), context)
    assert any("SmoothQuant" in text for text in told)


def test_a_model_of_convolutions_has_nothing_to_smooth(tmp_path: Path) -> None:
    _, made, given, _ = converted(tmp_path / "lite", "Maps", IMAGE, dims=DIMS)
    with pytest.raises(StepError, match="nothing to smooth"):
        quantised((made, replace(given, data=IMAGES)), tmp_path / "q", mode="dynamic", smooth_quant=0.5)
