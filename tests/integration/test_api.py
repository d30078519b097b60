"""optkit from a training script: live models and data, reports, artifacts opened, compared and proven again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_zoo
from api_kit import DIMS, IMAGE, SAMPLES, net

import optkit
from optkit.cache import Cache
from optkit.errors import SourceError, UserError
from optkit.events import RunFinished, RunStarted, StepFinished
from optkit.live.capture import capture
from optkit.worker import replay


class Loader:
    """What optkit knows a DataLoader by: it can be iterated over, again and again, and gives batches."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, 10, self.size):
            rows = torch.from_numpy(SAMPLES[start : min(10, start + self.size)])
            yield {"image": rows, "label": torch.arange(start, start + len(rows)) % 3}


# ------------------------------------------------------------------------------------------------ a whole run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, optkit.Report, list[Any]]:
    """A module converted with data from a loader and an int8 step fitted on samples; its folder, and what was heard."""
    base = tmp_path_factory.mktemp("run")
    model, heard = net().train(), []
    report = optkit.convert(
        model, to=["onnx", "openvino"], example_inputs={"image": IMAGE}, dims=DIMS, data=Loader(4),
        steps=[{"id": "int8", "from": "onnx", "use": "onnx.quantize", "data": "fit", "check": ["cosine >= 0.9"]}],
        fit=[{"image": torch.from_numpy(sample)} for sample in SAMPLES[10:]], out=base / "out", cache=base / "cache",
        jobs=2, listen=heard.append,
    )  # fmt: skip
    assert model.training
    return base, model.eval(), report, heard


def test_the_report_of_a_live_conversion(run: tuple[Path, Any, optkit.Report, list[Any]]) -> None:
    base, _, report, heard = run
    assert report.ok
    assert {step["id"]: step["status"] for step in report.steps} == {
        "onnx": "passed", "openvino": "passed", "int8": "passed",
    }  # fmt: skip
    assert [report.path(step) for step in ("onnx", "openvino", "int8")] == [
        base / "out" / name for name in ("onnx", "openvino", "int8")
    ]
    assert (base / "out/report.md").read_text().startswith("#")
    assert json.loads((base / "out/report.json").read_text()) == report.data
    assert report.data["data"]["judge"]["samples"] == 10
    assert not report.data["data"]["judge"]["synthetic"]
    case = next(c for c in report.step("int8")["check"]["cases"] if c["kind"] == "samples")
    assert "labels (4,) fit 2 outputs" in str(case["source"]["notes"])  # the loader's
    assert isinstance(heard[0], RunStarted)
    assert isinstance(heard[-1], RunFinished)
    assert {e.step for e in heard if isinstance(e, StepFinished)} == {"onnx", "openvino", "int8"}


def test_a_second_run_from_a_thread_does_nothing(run: tuple[Path, Any, optkit.Report, list[Any]]) -> None:
    base = run[0]
    reports: list[optkit.Report] = []

    def work() -> None:
        reports.append(
            optkit.convert(net(), to="onnx", example_inputs={"image": IMAGE}, dims=DIMS, data=Loader(10),
                           out=base / "again", cache=Cache(base / "cache"), jobs=1)
        )  # fmt: skip

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert reports[0].step("onnx")["cached"] == {"run": True, "check": True}


def test_a_script_without_a_file_of_its_own(tmp_path: Path) -> None:
    code = (
        "import onnx, optkit\n"
        "x, y = (onnx.helper.make_tensor_value_info(n, 1, ['batch', 3]) for n in 'xy')\n"
        "graph = onnx.helper.make_graph([onnx.helper.make_node('Exp', ['x'], ['y'])], 'g', [x], [y])\n"
        "model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 20)], ir_version=10)\n"
        "report = optkit.convert(model, to='openvino', out='out', cache='cache', jobs=1)\n"
        "print(report.ok, '__file__' in globals())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr) == ("True False\n", "")
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["data"]["judge"]["synthetic"]


def test_a_step_of_a_live_model_can_be_repeated(
    run: tuple[Path, Any, optkit.Report, list[Any]], tmp_path: Path
) -> None:
    base = run[0]
    result = replay(base / "out/logs/check-int8/step.json", tmp_path / "again")
    assert result["ok"], result
    assert (tmp_path / "again/vectors.npz").is_file()
    (kept,) = {json.loads(p.read_text())["artifact"]["path"] for p in (base / "out/logs/run-onnx").glob("step.json")}
    assert Path(kept).is_relative_to(base / "cache")


@pytest.mark.parametrize("step", ["onnx", "openvino", "int8"])
def test_a_delivery_is_opened_and_called(
    run: tuple[Path, Any, optkit.Report, list[Any]], tmp_path: Path, step: str
) -> None:
    _, model, report, _ = run
    folder = shutil.copytree(report.path(step), tmp_path / "deployed")
    with torch.no_grad():
        wanted = model(image=IMAGE)["logits"].numpy()
    with optkit.open_artifact(folder, threads=1) as opened:
        assert [str(t) for t in opened.signature.inputs] == ["image: float32[batch, 3, 8, 8]"]
        assert [t.name for t in opened.signature.outputs] == ["logits", "hidden"]
        assert "CPU" in opened.provider
        by_dict, by_name = opened({"image": IMAGE.numpy()}), opened(image=IMAGE)
        for _ in range(3):
            assert np.array_equal(opened(image=IMAGE)["logits"], by_name["logits"])
        assert np.array_equal(by_dict["logits"], by_name["logits"])
        np.testing.assert_allclose(by_name["logits"], wanted, atol=0.2 if step == "int8" else 1e-5)
        for wrong, what in (
            ({"imgae": IMAGE}, "no input 'imgae'"),
            ({}, "image"),
            ({"image": IMAGE.double()}, "float64"),
            ({"image": IMAGE[0]}, "axes"),
            ({"image": IMAGE.permute(0, 2, 3, 1)}, "NHWC|channels last|shape"),
        ):
            with pytest.raises(UserError, match=what):
                opened(wrong)
        assert opened(image=IMAGE)["logits"].shape == (3, 3)  # a mistake leaves it usable
    opened.close()
    with pytest.raises(UserError, match="the model is closed"):
        opened(image=IMAGE)


def test_threads_are_the_callers(run: tuple[Path, Any, optkit.Report, list[Any]]) -> None:
    path = run[2].path("onnx")
    with optkit.open_artifact(path / "model.onnx", threads=1) as opened:
        session: Any = opened._session
        assert session._session.get_session_options().intra_op_num_threads == 1
    before = torch.get_num_threads()
    with pytest.raises(UserError, match="threads is 0"):
        optkit.open_artifact(path, threads=0)
    assert torch.get_num_threads() == before


def test_a_verified_delivery_that_was_moved_and_tampered_with(
    run: tuple[Path, Any, optkit.Report, list[Any]], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(run[2].path("int8"), tmp_path / "moved"))
    told = optkit.verify(folder)
    assert told["held"]
    assert [case["name"] for case in told["cases"]] == [
        "against its own recorded answers", "against the source model's answers",
    ]  # fmt: skip
    model = folder / "model.onnx"
    model.write_bytes(model.read_bytes() + b"\0")
    told = optkit.verify(folder)
    assert not told["held"]
    assert told["problems"] == ["model.onnx is not the file that was delivered: its sha256 differs"]
    assert told["cases"] == []


def test_a_torch_model_is_compared_with_what_became_of_it(
    run: tuple[Path, Any, optkit.Report, list[Any]], tmp_path: Path
) -> None:
    report = run[2]
    shutil.copy(Path(__file__), tmp_path / "models.py")
    inputs = {"image": {"shape": ["n", 3, 8, 8]}}
    told = optkit.compare(
        f"{tmp_path / 'models.py'}:net", report.path("openvino"), inputs=inputs, dims={"n": (1, 2, 3)}, data=Loader(5)
    )
    assert told["held"], told
    assert (told["synthetic"], told["dims"]) == (False, {"n": {"min": 1, "opt": 2, "max": 3}})
    told = optkit.compare(report.path("onnx"), report.path("openvino") / "model.xml")
    assert told["held"]
    assert told["synthetic"]
    assert told["dims"] == {"batch": {"min": 1, "opt": 4, "max": 8}}  # the delivery's own
    told = optkit.compare(f"{tmp_path / 'models.py'}:net", report.path("onnx"))
    assert told["held"]
    assert told["dims"] == {"batch": {"min": 1, "opt": 4, "max": 8}}, "the delivery beside it says what goes in"
    with pytest.raises(UserError, match="does not say what goes into it") as caught:
        optkit.compare(f"{tmp_path / 'models.py'}:net", f"{tmp_path / 'models.py'}:net")
    assert "inputs={" in caught.value.hint
    with pytest.raises(UserError, match="does not say what goes into it"):
        optkit.open_artifact(f"{tmp_path / 'models.py'}:net")
    told = optkit.compare(f"{tmp_path / 'models.py'}:net", report.path("onnx"), inputs=inputs, data=Loader(5))
    assert told["held"]
    assert told["dims"] == {"n": {"min": 1, "opt": 4, "max": 8}}  # nobody said otherwise, but for the delivery
    with optkit.open_artifact(f"{tmp_path / 'models.py'}:net", inputs=inputs) as opened:
        assert set(opened(image=IMAGE)) == {"logits", "hidden"}


def test_live_models_of_other_libraries(run: tuple[Path, Any, optkit.Report, list[Any]], tmp_path: Path) -> None:
    import onnx
    import openvino

    report = run[2]
    model = onnx.load(report.path("onnx") / "model.onnx")
    before = model.SerializeToString()
    given: dict[str, Any] = {"cache": tmp_path / "cache", "jobs": 1, "data": {"image": SAMPLES[:6]}}
    made = optkit.convert(model, to=["openvino"], dims=DIMS, out=tmp_path / "a", **given)
    assert made.data["source"]["dims"] == {"batch": {"min": 1, "opt": 4, "max": 8}}
    assert model.SerializeToString() == before
    ir = openvino.Core().read_model(made.path("openvino") / "model.xml")
    half = {"id": "half", "use": "openvino.fp16"}
    made = optkit.convert(ir, steps=[half], name="half", out=tmp_path / "b", **given)
    assert made.step("half")["status"] == "passed"
    for live in (model, ir):
        with pytest.raises(UserError, match="knows what goes into it"):
            optkit.convert(live, to="openvino", example_inputs=IMAGE, **given)
    apart = onnx.load(report.path("onnx") / "model.onnx")
    onnx.external_data_helper.convert_model_to_external_data(apart, location="w.data", size_threshold=0)
    for tensor in apart.graph.initializer:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
    with pytest.raises(SourceError, match=r"keeps weights in 'w\.data' and does not say in which folder"):
        optkit.convert(apart, to="openvino", **given)


def test_a_large_onnx_model_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    from optkit.formats.onnx import model as onnx_model

    monkeypatch.setattr(onnx_model, "EXTERNAL_FROM", 4096)
    weight = onnx.numpy_helper.from_array(np.ones((3, 2000), np.float32), "w")
    x, y = (onnx.helper.make_tensor_value_info(n, 1, ["batch", size]) for n, size in (("x", 3), ("y", 2000)))
    graph = onnx.helper.make_graph([onnx.helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    before = model.SerializeToString()
    captured = capture(model, Cache(tmp_path))
    assert model.SerializeToString() == before
    path = Path(captured.section["onnx"])
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    with optkit.open_artifact(path) as opened:
        assert (opened(x=np.ones((2, 3), np.float32))["y"] == 3).all()


# ------------------------------------------------------------------------------------------------ the toy format


def test_a_source_without_float64_is_judged_by_the_bound_for_unmeasured_noise(tmp_path: Path) -> None:
    inputs = {"x": {"shape": ["batch", 8]}}
    model, out = f"{torch_zoo.__file__}:SingleOnly", tmp_path / "out"
    report = optkit.convert(model, to="onnx", inputs=inputs, dims=DIMS, out=out, cache=tmp_path / "cache", jobs=1)
    assert report.ok
    assert report.data["source"]["noise"] is None
    verdicts = [v for case in report.step("onnx")["check"]["cases"] for v in case["verdicts"]]
    assert {v["bound"] for v in verdicts} == {"output.rel_l2 <= 0.0001"}
    assert all("not measured" in v["reason"] for v in verdicts)
