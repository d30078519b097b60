"""Settings that a quantising pass looks for itself, on real runtimes and over a model that plain int8 wrecks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_models import context, saved
from test_budget_passes import OPENVINO, error_db, lowered, outlier, samples
from test_tflite_smooth import Made, close, quantised
from test_tflite_smooth import outlier as lite_outlier

import optkit
from optkit.artifact import Artifact
from optkit.errors import CheckError, StepError, UserError
from optkit.formats import tuning
from optkit.formats.budget import Unheld
from optkit.formats.onnx import session as onnx_session
from optkit.passes import onnx_quantize, onnx_to_openvino, openvino_quantize
from optkit.plugin import Context
from optkit.reports import html, markdown

__all__ = ["lite_outlier"]  # a fixture

BUDGET = {"budget": ["sqnr_db >= 20"]}


def ways(notes: Any) -> list[str]:
    return [row["way"] for row in notes["tuned"]["tried"]]


def test_the_first_way_that_holds_is_taken_and_nothing_has_to_be_kept(tmp_path: Path) -> None:
    source = saved(outlier(300), tmp_path / "in")
    _, plain, _ = lowered(onnx_quantize.PASS, source, tmp_path / "plain", BUDGET)
    made, notes, _ = lowered(onnx_quantize.PASS, source, tmp_path / "tuned", {**BUDGET, "tune": True})
    assert plain["budget"]["kept"]
    assert notes["budget"]["kept"] == []
    assert notes["tuned"]["settings"] == {"smooth_quant": 0.8}
    assert ways(notes) == ["as given", "calibration: mse", "smooth_quant: 0.5", "smooth_quant: 0.8"]
    assert [row["held"] for row in notes["tuned"]["tried"]] == [False, False, False, True]
    assert error_db(source, made) > 20
    by_hand, _, _ = lowered(onnx_quantize.PASS, source, tmp_path / "hand", {**BUDGET, "smooth_quant": 0.8})
    assert by_hand.path.read_bytes() == made.path.read_bytes()


def test_where_no_way_holds_the_nearest_keeps_what_it_must(tmp_path: Path) -> None:
    source = saved(outlier(300), tmp_path / "in")
    made, notes, _ = lowered(
        onnx_quantize.PASS, source, tmp_path / "tuned", {"budget": ["sqnr_db >= 34"], "tune": True}
    )
    tried = notes["tuned"]["tried"]
    assert not any(row["held"] for row in tried)
    assert notes["tuned"]["way"] == min((r for r in tried if r["error"]), key=lambda r: r["error"])["way"]
    assert notes["budget"]["kept"]
    assert error_db(source, made) > 30


def test_what_the_step_was_given_stays(tmp_path: Path) -> None:
    source = saved(outlier(300), tmp_path / "in")
    given = {**BUDGET, "tune": True, "calibration": "percentile"}
    _, notes, _ = lowered(onnx_quantize.PASS, source, tmp_path / "one", given)
    assert ways(notes) == ["as given", "smooth_quant: 0.5", "smooth_quant: 0.8"]
    _, notes, _ = lowered(onnx_quantize.PASS, source, tmp_path / "two", {**BUDGET, "tune": True, "method": "dynamic"})
    assert ways(notes) == ["as given", "smooth_quant: 0.5"], "ranges that data tells have no place there"


def test_a_way_that_does_not_apply_is_told_and_passed_over(tmp_path: Path) -> None:
    proto = outlier(300)
    for one in proto.graph.node:
        one.op_type = "Tanh" if one.op_type == "Relu" else one.op_type
    source = saved(onnx.shape_inference.infer_shapes(proto), tmp_path / "in")
    _, notes, _ = lowered(onnx_quantize.PASS, source, tmp_path / "out", {"budget": ["sqnr_db >= 35"], "tune": True})
    problems = {row["way"]: row["problem"] for row in notes["tuned"]["tried"] if row["problem"]}
    assert list(problems) == ["equalise: true, correct_bias: fast"]
    assert "there is nothing to equalise" in problems["equalise: true, correct_bias: fast"]


def test_a_budget_out_of_reach_fails_with_the_best_there_was(tmp_path: Path) -> None:
    source = saved(outlier(300), tmp_path / "in")
    with pytest.raises(StepError) as error:
        lowered(onnx_quantize.PASS, source, tmp_path / "out", {"budget": ["sqnr_db >= 200"], "tune": True})
    assert "the budget cannot be held: sqnr_db >= 200; best reached" in error.value.what
    assert not list((tmp_path / "out/out").iterdir()), "nothing half-written is left"


def test_openvino_finds_ranges_and_smoothing_together(tmp_path: Path) -> None:
    source = saved(outlier(300), tmp_path / "in")
    (tmp_path / "ir/out").mkdir(parents=True)
    onnx_to_openvino.PASS.run(source, tmp_path / "ir/out", onnx_to_openvino.PASS.options(), context(tmp_path / "ir"))
    path = tmp_path / "ir/out/model.xml"
    ir = Artifact("openvino", path, "", OPENVINO.describe(path, {}), ("model.xml", "model.bin"))
    with pytest.raises(StepError, match="the budget cannot be held"):
        lowered(openvino_quantize.PASS, ir, tmp_path / "plain", BUDGET, OPENVINO)
    made, notes, _ = lowered(openvino_quantize.PASS, ir, tmp_path / "tuned", {**BUDGET, "tune": True}, OPENVINO)
    assert error_db(source, made, OPENVINO) > 20
    assert notes["tuned"]["settings"]["range_estimator"] == "minmax"
    assert notes["tuned"]["settings"]["model_type"] == "transformer"
    assert notes["budget"]["kept"] == []


def test_tflite_finds_how_much_to_smooth(lite_outlier: Made, tmp_path: Path) -> None:
    asked = {"budget": ["sqnr_db >= 20"], "tune": True}
    made, notes = quantised(lite_outlier, tmp_path, **asked)
    assert notes["tuned"]["settings"]["smooth_quant"] == 0.5
    assert notes["budget"]["kept"] == []
    assert ways(notes)[:2] == ["mode: static", "mode: selective"]
    assert min(close(lite_outlier[0], made, batch) for batch in (1, 4)) > 25


def test_what_rules_out_every_way_is_itself_tried(lite_outlier: Made, tmp_path: Path) -> None:
    _, notes = quantised(lite_outlier, tmp_path, budget=["sqnr_db >= 20"], tune=True, mode="fp16")
    assert ways(notes) == ["as given"]
    assert notes["precision"].startswith("float16")


def test_int8_of_a_model_is_one_argument(tmp_path: Path) -> None:
    source = saved(outlier(300), tmp_path / "in")
    arrays = [
        {"x": np.stack([s["x"] for s in samples(40)])},
        {"x": np.random.default_rng(999).standard_normal((20, 8))},
    ]
    asked: dict[str, Any] = {
        "to": ["onnx", "openvino"], "int8": "sqnr_db >= 15", "fit": arrays[0],
        "data": {"x": arrays[1]["x"].astype(np.float32)}, "dims": {"batch": (1, 4, 8)}, "cache": tmp_path / "cache",
        "overrides": ["speed=false"],
    }  # fmt: skip
    report = optkit.convert(source.path, out=tmp_path / "out", **asked)
    assert [(d["step"], d["path"] is not None) for d in report.data["deliver"]] == [
        ("openvino", True), ("onnx-int8", True), ("openvino-int8", True)]  # fmt: skip
    for text in (markdown.render(report.data), html.render(report.data)):
        assert "to quantise tried on fit; taken: smooth_quant: 0.5 (the first that holds the budget)." in text
    record = json.loads((tmp_path / "out/onnx-int8/optkit.json").read_text(encoding="utf-8"))
    assert record["status"] == "passed"
    again = optkit.convert(source.path, out=tmp_path / "out", **asked)
    assert all(step["cached"]["run"] for step in again.steps)
    with pytest.raises(CheckError, match="onnx-int8: the budget cannot be held"):
        optkit.convert(source.path, out=tmp_path / "out", **{**asked, "to": "onnx", "int8": ["sqnr_db >= 90"]})


@pytest.mark.parametrize(
    ("change", "what", "hint"),
    [
        ({"fit": None}, "int8 finds ranges and settings on data", "give fit="),
        ({"data": None}, "int8 is judged on data", "give data="),
        ({"to": ()}, "int8 of what is not said", 'to=["onnx", "openvino"]'),
        ({"to": "savedmodel"}, "int8 of savedmodel is not made", "onnx, openvino, tflite and tensorrt"),
        ({"int8": "cosine >= 99"}, "no model meets this", "inside -1 to 1"),
        ({"int8": "cosin >= 0.99"}, "unknown metric 'cosin'", "did you mean cosine?"),
    ],
)
def test_int8_that_cannot_be_made(change: dict[str, Any], what: str, hint: str, tmp_path: Path) -> None:
    source = saved(outlier(300), tmp_path / "in")
    rows = np.ones((8, 8), np.float32)
    asked = {"to": "openvino", "int8": "cosine >= 0.99", "fit": {"x": rows}, "data": {"x": rows + 1}}
    with pytest.raises(UserError) as caught:
        optkit.convert(source.path, out=tmp_path / "out", cache=tmp_path / "cache", **{**asked, **change})
    assert what in str(caught.value)
    assert hint in f"{caught.value} {caught.value.hint}"


def test_where_the_nearest_cannot_hold_it_the_next_nearest_is_gone_on_with(tmp_path: Path) -> None:
    """A way that is nearer as a whole may be farther off once its worst groups are kept."""
    source, ctx = saved(outlier(300), tmp_path / "in"), context(tmp_path, samples())
    gone: list[Any] = []

    def run(artifact: Artifact, out_dir: Path, options: Any, given: Context) -> dict[str, Any]:
        if options.budget:
            gone.append(options.smooth_quant)
            if options.smooth_quant == 0.8:
                raise Unheld("the budget cannot be held")
        shutil.copy(artifact.path, out_dir / "model.onnx")
        noisy = {None: 0.5, 0.8: 0.2, 0.5: 0.3}[options.smooth_quant]
        proto = onnx.load(out_dir / "model.onnx")
        weights = next(t for t in proto.graph.initializer if t.name == "w2")
        weights.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights) * (1 + noisy), "w2"))
        onnx.save(proto, out_dir / "model.onnx")
        return {"smoothed": options.smooth_quant}

    options = onnx_quantize.PASS.options(budget=["sqnr_db >= 40"], tune=True)
    (tmp_path / "out").mkdir()
    notes = tuning.within(
        source, tmp_path / "out", options, [{}, {"smooth_quant": 0.8}, {"smooth_quant": 0.5}], run,
        onnx_session.opened(source.path, 1), lambda folder: onnx_session.opened(folder / "model.onnx", 1), ctx,
    )  # fmt: skip
    assert gone == [0.8, 0.5]
    assert notes["smoothed"] == notes["tuned"]["settings"]["smooth_quant"] == 0.5
    assert tuning.settled(options, ctx).smooth_quant == 0.5
