"""Budgets on real runtimes, over a model in which one layer's input has an outlier that 8 bits do not hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx_models import FLOAT, INT64, context, model, node, saved, value, weight

import optkit
from optkit.artifact import Artifact
from optkit.errors import DataError, StepError, UserError
from optkit.formats import budget
from optkit.formats.openvino import trial as openvino_trial
from optkit.parity.tape import Tape
from optkit.passes import onnx_fp16, onnx_quantize, onnx_to_openvino, openvino_quantize
from optkit.plugin import Context, Pass
from optkit.runners.onnx_runner import RUNNER as ONNX
from optkit.runners.openvino_runner import RUNNER as OPENVINO
from optkit.spec.metricspec import metric_of
from optkit.testing import ListSamples

BAD = "second"
MINMAX = {"budget": ["sqnr_db >= 20"], "range_estimator": "minmax"}  # the default, means of extremes, cuts more off


def outlier(size: float) -> Any:
    """Three layers; before the second one feature is `size` times as large as the rest, and then hardly matters."""
    scale, narrow = np.ones(16, np.float32), weight(16, 16, seed=1)
    scale[3] = size
    narrow[3] = weight(16) / size
    nodes = [
        node("MatMul", "x w0", "h0", "first"), node("Relu", "h0", "r0"), node("Mul", "r0 scale", "r1", "enlarge"),
        node("MatMul", "r1 w1", "h1", BAD), node("Relu", "h1", "r2"), node("MatMul", "r2 w2", "y", "third"),
    ]  # fmt: skip
    constants = {"w0": weight(8, 16), "w1": narrow, "w2": weight(16, 6), "scale": scale}
    return model(nodes, [value("x", FLOAT, ["batch", 8])], [value("y", FLOAT, ["batch", 6])], constants)


def samples(count: int = 40) -> ListSamples:
    return ListSamples([{"x": np.random.default_rng(i).standard_normal(8).astype(np.float32)} for i in range(count)])


def lowered(
    use: Pass, source: Artifact, folder: Path, options: Mapping[str, Any], target: Any = ONNX
) -> tuple[Artifact, dict[str, Any], Context]:
    """The pass's confirmed output, its notes and its context."""
    folder.mkdir()
    out = folder / "out"
    out.mkdir()
    ctx, asked = context(folder, samples()), use.options(**options)
    notes = dict(use.run(source, out, asked, ctx))
    made = Artifact(target.format, out / target.main, "", target.describe(out / target.main, {}),
                    tuple(p.name for p in out.iterdir()))  # fmt: skip
    assert use.confirm is not None
    assert list(use.confirm(source, made, asked, ctx)) == []
    return made, notes, ctx


def error_db(source: Artifact, made: Artifact, target: Any = ONNX) -> float:
    """The SQNR on samples that were not fitted on."""
    x = np.random.default_rng(99).standard_normal((12, 8)).astype(np.float32)
    with ONNX.open(source) as before, target.open(made) as after:
        want, got = before.infer({"x": x})["y"], after.infer({"x": x})["y"]
    return float(-20 * np.log10(np.linalg.norm(got - want) / np.linalg.norm(want)))


@pytest.mark.parametrize("method", ["static", "dynamic"])
def test_onnx_keeps_the_one_layer_that_8_bits_do_not_hold(method: str, tmp_path: Path) -> None:
    source = saved(outlier(300), tmp_path / "in")
    plain, _, _ = lowered(onnx_quantize.PASS, source, tmp_path / "plain", {"method": method})
    made, notes, _ = lowered(
        onnx_quantize.PASS, source, tmp_path / "kept", {"method": method, "budget": ["sqnr_db >= 20"]}
    )
    assert error_db(source, plain) < 15
    assert error_db(source, made) > 20
    assert BAD in notes["budget"]["kept"]
    assert notes["budget"]["ranking"][0]["group"] == BAD
    assert not {"first", "third"} & set(notes["budget"]["kept"]), "no more is kept than has to be"
    assert [row["kept"] for row in notes["budget"]["ranking"]] == [True, False, False]


def test_a_budget_that_holds_anyway_keeps_nothing(tmp_path: Path) -> None:
    source = saved(outlier(1), tmp_path / "in")
    plain, _, _ = lowered(onnx_quantize.PASS, source, tmp_path / "plain", {})
    made, notes, _ = lowered(onnx_quantize.PASS, source, tmp_path / "kept", {"budget": ["sqnr_db >= 15"]})
    assert (notes["budget"]["kept"], notes["budget"]["trials"]) == ([], 1)
    assert made.path.read_bytes() == plain.path.read_bytes()


def test_fp16_keeps_what_overflows(tmp_path: Path) -> None:
    source = saved(outlier(1e5), tmp_path / "in")
    made, notes, _ = lowered(onnx_fp16.PASS, source, tmp_path / "kept", {"budget": ["sqnr_db >= 50"]})
    assert error_db(source, made) > 50
    assert notes["budget"]["kept"]
    assert "third" not in notes["budget"]["kept"]


def test_openvino_keeps_the_layer(tmp_path: Path) -> None:
    onnx = saved(outlier(300), tmp_path / "in")
    (tmp_path / "ir").mkdir()
    (tmp_path / "ir/out").mkdir()
    onnx_to_openvino.PASS.run(onnx, tmp_path / "ir/out", onnx_to_openvino.PASS.options(), context(tmp_path / "ir"))
    path = tmp_path / "ir/out/model.xml"
    source = Artifact("openvino", path, "", OPENVINO.describe(path, {}), ("model.xml", "model.bin"))
    made, notes, _ = lowered(openvino_quantize.PASS, source, tmp_path / "kept", MINMAX, OPENVINO)
    assert error_db(onnx, made, OPENVINO) > 20
    assert notes["budget"]["ranking"][0]["kept"]
    assert BAD in notes["budget"]["kept"]
    assert not {"first", "third"} & set(notes["budget"]["kept"])
    with openvino_trial.opened(made.path, 1) as session:
        assert set(session.infer({"x": np.zeros((1, 8), np.float32)})) == {"y"}


def test_what_cannot_be_held_fails_with_the_best_there_was(tmp_path: Path) -> None:
    source = saved(outlier(300), tmp_path / "in")
    with pytest.raises(StepError) as error:
        lowered(onnx_quantize.PASS, source, tmp_path / "kept", {"budget": ["sqnr_db >= 200"]})
    assert "the budget cannot be held: sqnr_db >= 200" in error.value.what
    assert "best reached, with 2 of 3 groups kept, on 40 samples: y sqnr_db 30" in error.value.what
    assert BAD in error.value.hint
    assert not list((tmp_path / "kept/out").iterdir()), "nothing half-written is left"


def test_a_budget_needs_samples(tmp_path: Path) -> None:
    source = saved(outlier(300), tmp_path / "in")
    options = onnx_quantize.PASS.options(method="dynamic", budget=["sqnr_db >= 20"])
    assert onnx_quantize.PASS.wants_data(options)
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="a budget is kept by looking at data"):
        onnx_quantize.PASS.run(source, tmp_path / "out", options, context(tmp_path))


def labelled(count: int = 40) -> ListSamples:
    """Samples with the class that the float model answers."""
    made = samples(count)
    session = onnxruntime.InferenceSession(outlier(300).SerializeToString(), providers=["CPUExecutionProvider"])
    return ListSamples(made.items, [int(session.run(None, {"x": s["x"][None]})[0].argmax()) for s in made.items])


@pytest.mark.parametrize("declared", [True, False])
def test_a_budget_on_a_task_metric(declared: bool, tmp_path: Path) -> None:
    source = saved(outlier(300), tmp_path / "in")
    metrics = [metric_of({"accuracy": {}}), metric_of({"f1": {}})] if declared else []
    ctx = context(tmp_path, labelled(), metrics=metrics)
    (tmp_path / "out").mkdir()
    asked = onnx_quantize.PASS.options(budget=["accuracy_drop <= 0", *(["f1 >= 0.999"] if declared else [])])
    notes = onnx_quantize.PASS.run(source, tmp_path / "out", asked, ctx)
    assert notes["budget"]["samples"] == 40
    assert notes["budget"]["kept"] == [BAD]
    assert "accuracy_drop 0.00%" in notes["budget"]["reached"]
    assert ("f1 100.00%" in notes["budget"]["reached"]) == declared


@pytest.mark.parametrize(
    ("bounds", "labels", "what", "hint"),
    [
        (["mismatch <= 1%"], True, "no output has mismatch", "bound one of: rel_l2"),
        (["accuracy_drop <= 1%"], False, "needs labels, and the data has none", "label: NAME"),
        (["cosin >= 1"], True, "unknown metric 'cosin'", "cosine"),
    ],
)
def test_a_budget_on_what_is_not_measured(
    bounds: list[str], labels: bool, what: str, hint: str, tmp_path: Path
) -> None:
    source = saved(outlier(300), tmp_path / "in")
    ctx = context(tmp_path, labelled() if labels else samples())
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError) as error:
        onnx_quantize.PASS.run(source, tmp_path / "out", onnx_quantize.PASS.options(budget=bounds), ctx)
    assert what in error.value.what
    assert hint in error.value.hint


@pytest.mark.parametrize(
    ("declared", "labels", "what"),
    [(True, ["a"] * 40, "metric accuracy: sample 0: its label is no number"), (False, ["a"] * 40, "labels are <U1"),
     (False, [9] * 40, "the label 9 is none of its 6 classes")],
)  # fmt: skip
def test_labels_that_no_budget_can_be_kept_by(declared: bool, labels: list[Any], what: str, tmp_path: Path) -> None:
    source = saved(outlier(300), tmp_path / "in")
    metrics = [metric_of({"accuracy": {}})] if declared else []
    surroundings = context(tmp_path, ListSamples(samples().items, labels), metrics=metrics)
    options = onnx_quantize.PASS.options(budget=["accuracy_drop <= 1%"])
    with pytest.raises(UserError, match="cannot be judged on the fitting data") as error:
        onnx_quantize.PASS.run(source, tmp_path, options, surroundings)
    assert what in error.value.what
    assert error.value.subject == "with.budget"


def test_each_output_has_to_be_in_a_bound(tmp_path: Path) -> None:
    made = outlier(300)
    made.graph.node.append(node("ArgMax", "y", "best", axis=-1, keepdims=0))
    made.graph.output.append(value("best", INT64, ["batch"]))
    source = saved(made, tmp_path / "in")
    (tmp_path / "out").mkdir()
    options = onnx_quantize.PASS.options(budget=["cosine >= 0.9"])
    with pytest.raises(UserError, match="output 'best': no bound covers it") as error:
        onnx_quantize.PASS.run(source, tmp_path / "out", options, context(tmp_path, samples()))
    assert error.value.hint == "bound it too: best.mismatch <= 1%"


def test_too_few_samples_for_a_bound_are_told(tmp_path: Path) -> None:
    source = saved(outlier(300), tmp_path / "in")
    wrong = ListSamples(labelled().items, [0] * 40)
    (tmp_path / "out").mkdir()
    options = onnx_quantize.PASS.options(budget=["sqnr_db >= 200", "accuracy_drop <= 0.5%"])
    with pytest.raises(StepError) as error:
        onnx_quantize.PASS.run(source, tmp_path / "out", options, context(tmp_path, wrong))
    assert "accuracy_drop" in error.value.what
    assert error.value.hint.startswith("more samples (of 40, one is 2.50%, beyond 0.50%), a looser budget")


def test_as_many_samples_are_kept_as_the_disk_may_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(outlier(1), tmp_path / "in")
    (tmp_path / "out").mkdir()
    options = onnx_quantize.PASS.options(budget=["sqnr_db >= 15"])
    monkeypatch.setattr(budget, "Tape", lambda folder: Tape(folder, limit_bytes=10 * 4 * (8 + 6)))
    notes = onnx_quantize.PASS.run(source, tmp_path / "out", options, context(tmp_path, samples()))
    assert notes["budget"]["samples"] == 10
    monkeypatch.setattr(budget, "Tape", lambda folder: Tape(folder, limit_bytes=10))
    (tmp_path / "small").mkdir()
    with pytest.raises(StepError, match="one sample and the model's answer take over"):
        onnx_quantize.PASS.run(source, tmp_path / "out", options, context(tmp_path / "small", samples()))


RECIPE = """version: 1
name: net
model: {onnx: in/model.onnx}
dims: {batch: {min: 1, opt: 4, max: 8}}
data: {fit: {npz: fit.npz, label: label}, judge: {npz: judge.npz, label: label}}
check_on: judge
metric: {name: hits, python: 'mine.py:hits'}
steps:
  - {id: low, use: onnx.quantize, data: fit, with: {budget: ["hits_drop <= 0"]}, check: ["hits_drop <= 20%"]}
"""
MINE = """def hits(predictions, targets):
    return sum(int(p.argmax() == t) for p, t in zip(predictions, targets)) / len(targets)
"""


def test_a_run_keeps_a_budget_on_a_metric_of_its_own(tmp_path: Path) -> None:
    """The metric's file is found from the recipe, and is part of the key: an edited one means another search."""
    saved(outlier(300), tmp_path / "in")
    for number, name in enumerate(("fit", "judge")):
        made = labelled(60)
        part = slice(number * 30, number * 30 + 30)
        xs = np.stack([sample["x"] for sample in made.items[part]])
        np.savez(tmp_path / f"{name}.npz", x=xs, label=np.array(made.labels or [])[part])
    (tmp_path / "net.yaml").write_text(RECIPE, encoding="utf-8")
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")

    def run() -> tuple[Any, bool]:
        report = optkit.convert(tmp_path / "net.yaml", out=tmp_path / "out", cache=tmp_path / "cache")
        return report.step("low")["notes"]["budget"], report.step("low")["cached"]["run"]

    found, cached = run()
    assert not cached
    assert found["kept"] == [BAD]
    assert found["reached"].startswith("hits_drop 0;")
    assert run() == (found, True)
    (tmp_path / "mine.py").write_text(f"{MINE}# other\n", encoding="utf-8")
    assert run() == (found, False)


FIXED = """version: 1
name: net
model: {torch: net.py:build}
inputs: {x: {shape: [7, 8], dtype: float32}}
data: {fit: {npz: fit.npz, label: label}, judge: {npz: judge.npz, label: label}}
check_on: judge
metric: accuracy
speed: false
steps:
  - {id: onnx, to: onnx}
  - {id: low, from: onnx, use: onnx.quantize, data: fit, with: {budget: ["accuracy_drop <= 50%", "sqnr_db >= 1"]},
     check: ["cosine >= 0.1"]}
  - {id: ov, from: onnx, to: openvino}
  - {id: ov8, from: ov, use: openvino.quantize, data: fit, with: {budget: ["sqnr_db >= 35"]}, check: ["cosine >= 0.1"]}
"""
NET = """import torch

def build():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)]
    return torch.nn.Sequential(*layers).eval()
"""


def test_a_fixed_batch_that_does_not_divide_the_samples(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, count in (("fit", 10), ("judge", 25)):
        xs = rng.standard_normal((count, 8)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", x=xs, label=rng.integers(0, 4, count))
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    (tmp_path / "net.yaml").write_text(FIXED, encoding="utf-8")
    report = optkit.convert(
        tmp_path / "net.yaml", out=tmp_path / "out", cache=tmp_path / "cache", raise_on_failure=False
    )
    assert {s["id"]: s["status"] for s in report.data["steps"]} == dict.fromkeys(("onnx", "low", "ov", "ov8"), "passed")
    assert report.step("low")["notes"]["budget"]["samples"] == 14, "two feeds, the second filled up"
    assert report.step("ov8")["notes"]["budget"]["ranking"], "made on one feed of seven"
