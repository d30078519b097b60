"""Settings of runtimes: each takes effect, or is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper, save

import optkit
from optkit.artifact import Artifact
from optkit.cli import cli
from optkit.errors import RecipeError, UnavailableError, UserError
from optkit.planning import make_plan
from optkit.recipe import load_recipe
from optkit.registry import get_runner
from optkit.spec.runtimes import checked, parse_settings
from optkit.speed.benching import bench

X = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)


NET = """\
import torch

class Net(torch.nn.Linear):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(64, 64)

    def forward(self, x):
        return super().forward(x).relu()

def build():
    return Net().eval()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net in ONNX and OpenVINO, and samples."""
    base = tmp_path_factory.mktemp("made")
    rng = np.random.default_rng(1)
    weights = [numpy_helper.from_array((rng.standard_normal((64, 64)) / 8).astype(np.float32), n) for n in ("v", "w")]
    nodes = [helper.make_node("MatMul", ["x", "v"], ["h"]), helper.make_node("Relu", ["h"], ["r"]),
             helper.make_node("MatMul", ["r", "w"], ["y"])]  # fmt: skip
    put, got = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 64]) for n in "xy")
    graph = helper.make_graph(nodes, "net", [put], [got], weights)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), base / "net.onnx")
    np.savez(base / "x.npz", x=X)
    optkit.convert(base / "net.onnx", to="openvino", data=str(base / "x.npz"), dims={"batch": (1, 4, 8)},
                   out=base / "out", cache=base / "kept")  # fmt: skip
    return base


def answers(path: Path, format_: str, threads: int = 1, **runtime: Any) -> tuple[np.ndarray, str]:
    runner = get_runner(format_)
    artifact = Artifact(format_, path, "", runner.describe(path, {}), (), {"runtime": runtime})
    with runner.open(artifact, threads=threads) as session:
        return next(iter(session.infer({"x": X}).values())), session.provider


def bfloat16_here() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def test_the_precision_of_openvino(made: Path) -> None:
    ir = made / "out/openvino/model.xml"
    plain, provider = answers(ir, "openvino")
    assert provider == "CPU f32"
    for hint in ("f32", "default", "bf16"):
        if hint == "bf16" and not bfloat16_here():
            with pytest.raises(UnavailableError, match="computes in f32 when asked for bf16"):
                answers(ir, "openvino", INFERENCE_PRECISION_HINT=hint)
            continue
        got, provider = answers(ir, "openvino", INFERENCE_PRECISION_HINT=hint)
        coarse = provider == "CPU bf16"
        assert coarse == (hint == "bf16" or (hint == "default" and bfloat16_here()))
        assert np.array_equal(got, plain) == (not coarse)
        np.testing.assert_allclose(got, plain, atol=0.1)


@pytest.mark.parametrize(
    ("format_", "runtime"),
    [
        ("openvino", {"PERFORMANCE_HINT": "LATENCY"}),
        ("openvino", {"PERFORMANCE_HINT": "THROUGHPUT", "ENABLE_CPU_PINNING": True}),
        ("openvino", {"NUM_STREAMS": 1, "EXECUTION_MODE_HINT": "ACCURACY"}),
        ("onnx", {"graph_optimization_level": "disable"}),
        ("onnx", {"graph_optimization_level": "extended", "enable_mem_pattern": False}),
        ("onnx", {"execution_mode": "parallel", "inter_op_num_threads": 2, "intra_op_num_threads": 2}),
        ("onnx", {"allow_spinning": True, "enable_cpu_mem_arena": False}),
    ],
)
def test_settings_that_leave_the_arithmetic_alone(made: Path, format_: str, runtime: dict[str, Any]) -> None:
    path = made / ("out/openvino/model.xml" if format_ == "openvino" else "net.onnx")
    np.testing.assert_allclose(answers(path, format_, **runtime)[0], answers(path, format_)[0], rtol=1e-4, atol=1e-5)
    assert get_runner(format_).settings.model_validate(runtime).arithmetic() == "file"


def test_what_a_runtime_does_not_take_is_told(made: Path) -> None:
    with pytest.raises(UnavailableError, match="OpenVINO has NUM_STREAMS at 1 when asked for 64"):
        answers(made / "out/openvino/model.xml", "openvino", NUM_STREAMS=64)
    with pytest.raises(UnavailableError, match="onnxruntime has execution_mode at ORT_SEQUENTIAL when asked for"):
        answers(made / "net.onnx", "onnx", execution_mode="parallel")
    assert answers(made / "net.onnx", "onnx", threads=2, execution_mode="parallel")[1] == "CPUExecutionProvider"


def test_onnxruntime_takes_its_options(made: Path) -> None:
    runner = get_runner("onnx")
    artifact = Artifact("onnx", made / "net.onnx", "", None, (), {"runtime": {
        "graph_optimization_level": "disable", "execution_mode": "parallel", "inter_op_num_threads": 2,
    }})  # fmt: skip
    with runner.open(artifact, threads=1) as session:
        options = session._session.get_session_options()  # type: ignore[attr-defined]
        assert options.graph_optimization_level.name == "ORT_DISABLE_ALL"
        assert options.execution_mode.name == "ORT_PARALLEL"
        assert options.inter_op_num_threads == 2


def test_kernels_of_litert(made: Path) -> None:
    (made / "net.py").write_text(NET)
    optkit.convert(f"{made / 'net.py'}:build", to="tflite", inputs={"x": {"shape": [4, 64]}}, data=str(made / "x.npz"),
                   out=made / "lite", cache=made / "kept")  # fmt: skip
    path = made / "lite/tflite/model.tflite"
    plain, provider = answers(path, "tflite")
    assert "XNNPACK" in provider
    assert "XNNPACK" in answers(path, "tflite", kernels="xnnpack", xnnpack_latest_features=True)[1]
    for kernels in ("builtin", "reference"):
        got, provider = answers(path, "tflite", kernels=kernels)
        assert "XNNPACK" not in provider
        np.testing.assert_allclose(got, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("openvino.INFERENCE_PRECISION_HNT=bf16", "did you mean 'INFERENCE_PRECISION_HINT'?"),
        ("openvino.INFERENCE_PRECISION_HINT=bf17", "bf16"),
        ("openvin.NUM_STREAMS=2", "did you mean 'openvino'?"),
        ("onnx.intra_op_num_threads=0", "intra_op_num_threads"),
        ("tflite.kernels=xnpack", "xnnpack"),
        ("keras.jit=true", "the runner of keras has no settings"),
        ("NUM_STREAMS=2", "this is no setting of a runtime"),
        ("openvino.NUM_STREAMS", "this is no setting of a runtime"),
    ],
)
def test_what_no_runner_knows_is_refused(text: str, said: str) -> None:
    with pytest.raises(UserError) as told:
        parse_settings([text])
    assert said in str(told.value)
    assert told.value.code == "OPK-215"


def test_a_runtime_goes_by_its_format_or_its_package() -> None:
    assert parse_settings(["onnxruntime.execution_mode=parallel"]) == {"onnx": {"execution_mode": "parallel"}}
    assert parse_settings(["openvino.NUM_STREAMS=2", "openvino.ENABLE_CPU_PINNING=no"]) == {
        "openvino": {"NUM_STREAMS": 2, "ENABLE_CPU_PINNING": False}
    }
    with pytest.raises(UserError, match="set twice"):
        parse_settings(["onnx.execution_mode=parallel", "onnxruntime.execution_mode=sequential"])
    with pytest.raises(UserError, match="where XNNPACK runs nothing"):
        checked({"tflite": {"kernels": "reference", "xnnpack_latest_features": True}})


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["bench", *arguments, "--seconds", "0.1"])


def test_bench_measures_with_the_settings_and_without(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    settings = {"openvino": {"INFERENCE_PRECISION_HINT": "default"}, "onnx": {"graph_optimization_level": "disable"}}
    found = bench(["net.onnx", "out/openvino"], data="x.npz", batch=[4], threads=[1], settings=settings,
                  seconds=0.1, starts=1)  # fmt: skip
    rows = {row["artifact"]: row for row in found["rows"]}
    tuned = "out/openvino [INFERENCE_PRECISION_HINT=default]"
    assert list(rows) == ["net.onnx", "out/openvino", "net.onnx [graph_optimization_level=disable]", tuned]
    assert rows["net.onnx"]["parity"] is None
    assert rows[tuned]["settings"] == {"INFERENCE_PRECISION_HINT": "default"}
    parity = rows[tuned]["parity"]
    assert parity["against"] == "out/openvino"
    assert parity["equal"] == (rows[tuned]["provider"] == "CPU f32")
    if bfloat16_here():
        assert 25 < parity["sqnr_db"] < 70
    result = invoke("out/openvino", "--data", "x.npz", "--set", "openvino.INFERENCE_PRECISION_HINT=default")
    assert result.exit_code == 0, result.stderr
    assert ("gives other answers: cosine" in result.stderr) == bfloat16_here()
    wrong = invoke("net.onnx", "--set", "openvino.NUM_STREAMS=2")
    assert (wrong.exit_code, "none of the artifacts is openvino" in wrong.stderr) == (2, True)
    assert json.loads(invoke("net.onnx", "--json").stdout)["rows"][0]["settings"] == {}


def test_torch_compiled_beside_eager(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    Path("net.py").write_text(NET)
    found = bench(["net.py:build"], inputs={"x": {"shape": ["batch", 64]}}, settings={"torch": {"compile": True}},
                  seconds=0.1, starts=1, threads=[1])  # fmt: skip
    eager, compiled = found["rows"]
    assert (eager["provider"], compiled["provider"]) == ("torch cpu float32", "torch cpu float32 compiled")
    assert compiled["parity"]["sqnr_db"] > 100
    assert compiled["first_seconds"] > eager["first_seconds"]


RECIPE = """\
version: 1
name: net
model: {onnx: net.onnx}
dims: {batch: {min: 1, opt: 4, max: 8}}
data: {judge: {npz: x.npz}}
check_on: judge
deliver: [plain, tuned, half]
steps:
  - {id: plain, to: openvino}
  - {id: tuned, to: openvino, runtime: {INFERENCE_PRECISION_HINT: HINT}}
  - {id: half, from: tuned, use: openvino.fp16}
"""


def test_a_step_is_checked_and_delivered_with_its_settings(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    hint = "bf16" if bfloat16_here() else "f32"
    report = optkit.convert(_recipe(hint, made), out="tuned", cache="kept")
    plain, tuned, _ = report.steps
    coarse = "bfloat16" if hint == "bf16" else "float32"
    assert [s["check"]["precision"] for s in report.steps] == [
        "float32",
        coarse,
        "float16",
    ]  # files pass on, settings do not
    assert [s["check"]["provider"] for s in report.steps] == ["CPU f32", f"CPU {hint}", "CPU f32"]
    assert plain["artifact"]["digest"] == tuned["artifact"]["digest"]
    record = json.loads(Path("tuned/tuned/optkit.json").read_text())
    assert record["runtime"] == tuned["runtime"] == {"INFERENCE_PRECISION_HINT": hint}
    with optkit.open_artifact("tuned/tuned") as model:
        assert model.provider == f"CPU {hint}"
    result = CliRunner().invoke(cli, ["verify", "tuned/tuned"])
    assert result.exit_code == 0, result.stderr
    again = optkit.convert(_recipe(hint, made), out="tuned", cache="kept")
    assert all(s["cached"]["check"] for s in again.steps)


def _recipe(hint: str, base: Path) -> str:
    (base / "recipe.yaml").write_text(RECIPE.replace("HINT}", f"{hint}}}"))
    return str(base / "recipe.yaml")


@pytest.mark.parametrize(
    ("hint", "said", "code"),
    [
        ("bf17", "recipe.yaml:10:", "OPK-215"),
        ("default", "so it must state bounds", "OPK-213"),
        ("f32, NUM_STREAM: 2", "did you mean 'NUM_STREAMS'?", "OPK-215"),
    ],
)
def test_planning_refuses_settings(made: Path, hint: str, said: str, code: str) -> None:
    with pytest.raises(RecipeError) as told:
        make_plan(load_recipe(_recipe(hint, made)))
    assert said in str(told.value)
    assert told.value.code == code
