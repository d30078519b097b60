from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper

import optkit
from optkit.cli import cli

RECIPE = """\
version: 1
name: net
model: {onnx: net.onnx}
inputs: {x: {shape: [batch, 16]}}
dims: {batch: {min: 1, max: 3}}
data: {judge: {npz: judge.npz}}
check_on: judge
steps:
  - {id: ov, to: openvino}
  - {id: half, from: ov, use: openvino.fp16, check: ["sqnr_db >= 200"]}
  - {id: half-again, from: half, use: openvino.fp16}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of one layer, samples, and a recipe; its cache is shared by this file's tests."""
    folder = tmp_path_factory.mktemp("convert")
    rng = np.random.default_rng(0)
    weights = numpy_helper.from_array(rng.standard_normal((16, 8)).astype(np.float32), "W")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])], [weights],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "net.onnx")
    np.savez(folder / "judge.npz", x=rng.standard_normal((12, 16)).astype(np.float32))
    (folder / "net.yaml").write_text(RECIPE)
    return folder


@pytest.fixture(autouse=True)
def _here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OPTKIT_CACHE", str(folder / "cache"))


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def test_a_model_and_flags_are_enough() -> None:
    result = invoke("convert", "net.onnx", "--to", "openvino", "--data", "judge.npz", "--out", "made")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert "net: the delivery holds (" in result.stderr
    assert "openvino  passed, " in result.stderr
    assert "report: made/report.html\n" in result.stderr
    assert "random data" not in result.stderr
    assert Path("made/openvino/model.xml").is_file()
    assert Path("made/report.md").read_text().startswith("# net: the delivery holds\n")
    assert json.loads(Path("made/report.json").read_text())["exit_code"] == 0


def test_random_samples_are_called_so_and_json_goes_to_standard_output() -> None:
    result = invoke("convert", "net.onnx", "--to", "openvino", "--out", "random", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["deliver"][0]["path"] == "random/openvino"
    assert "note: judged on random data" in result.stderr
    assert invoke("convert", "net.onnx", "--to", "openvino", "--out", "random", "--quiet").stderr == ""


def test_a_bound_that_does_not_hold_exits_1_with_the_reason_and_the_blame() -> None:
    result = invoke("convert", "net.yaml")
    assert result.exit_code == 1
    assert "half failed its check\n  at net.yaml:10:5\n  samples: y: sqnr_db " in result.stderr
    assert "needs >= 200; also at batch=1, " in result.stderr
    assert "this step lost all of it: its parent ov equals the source to the last bit" in result.stderr
    assert "blocked: half-again, because half did not succeed" in result.stderr
    assert not Path("build/net/half-again").exists()
    assert "### half: failed" in Path("build/net/report.md").read_text()
    quiet = invoke("convert", "net.yaml", "--quiet")
    assert quiet.stderr.startswith("half failed its check\n")
    assert "passed" not in quiet.stderr


def test_part_of_a_recipe_with_a_value_overridden() -> None:
    result = invoke(
        "convert", "net.yaml", "--only", "half", "--set", "steps.half.check=[sqnr_db >= 30]", "--out", "part"
    )
    assert result.exit_code == 0, result.stderr
    assert sorted(p.name for p in Path("part").iterdir() if (p / "optkit.json").is_file()) == ["half"]
    planned = invoke("plan", "net.yaml")
    assert planned.stdout.count(" cached ") == 2
    assert planned.stdout.endswith("3 steps, 1 to run, 1 to deliver; checks run on judge\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["net.yaml", "--to", "onnx", "--dim", "batch=1:2"], "--to, --dim has no place beside a recipe"),
        (["net.onnx", "--to", "openvin"], "there is no format 'openvin'"),
        (["net.onnx"], "nothing says what to make of the model"),
        (["gone.yaml"], "there is no recipe at gone.yaml"),
        (["net.onnx", "--to", "openvino", "--data", "gone.npz"], "gone.npz"),
        (["net.onnx", "--to", "openvino", "--input", "z:float32[batch,16]", "--dim", "batch=1:3"], "no input 'z'"),
    ],
)
def test_wrong_arguments_exit_2_and_say_what_to_do(arguments: list[str], said: str) -> None:
    result = invoke("convert", *arguments)
    assert result.exit_code == 2
    assert result.stderr.rpartition("error: ")[2].partition("\n")[0].count(said) == 1
    assert result.stderr.count("\n  ") >= 1  # a remedy


def test_an_interrupt_ends_in_a_report_and_exit_code_130(folder: Path) -> None:
    Path("slow.py").write_text(
        "import time, numpy as np\ndef samples():\n    time.sleep(60)\n    yield {'x': np.zeros(16, np.float32)}\n"
    )
    line = "convert net.onnx --to openvino --data slow.py:samples --out slow"
    child = subprocess.Popen(
        [sys.executable, "-m", "optkit", *line.split()],
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(Path(optkit.__file__).parents[1])},
    )  # fmt: skip
    assert child.stderr is not None
    for line in child.stderr:
        if "reading the data" in line:
            break
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    rest = child.stderr.read()
    child.stderr.close()
    assert child.wait(30) == 130
    assert "net: interrupted" in rest
    assert rest.rpartition("\n\n")[2].startswith("report: ")
    assert "\ninterrupted; finished steps are kept" in rest
    assert "Traceback" not in rest


def test_check() -> None:
    invoke("convert", "net.onnx", "--to", "openvino", "--data", "judge.npz", "--out", "made")
    result = invoke("check", "net.onnx", "made/openvino", "--data", "judge.npz")
    assert result.exit_code == 0, result.stderr
    assert "made/openvino holds against net.onnx" in result.stdout
    assert invoke("convert", "net.yaml", "--only", "half", "--set", "steps.half.check=[sqnr_db >= 30]").exit_code == 0
    stated = ["--bound", "sqnr_db >= 200", "--dim", "batch=1:2:3"]
    failed = invoke("check", "net.onnx", "build/net/half", "--data", "judge.npz", *stated)
    assert failed.exit_code == 1
    assert "error: build/net/half does not hold against net.onnx: samples: y: sqnr_db " in failed.stderr
    as_json = invoke("check", "net.onnx", "made/openvino", "--dim", "batch=2:3", "--json")
    assert {c["name"] for c in json.loads(as_json.stdout)["cases"]} >= {"samples", "batch=3"}
    assert "random data" in as_json.stderr
    wrong = invoke("check", "net.onnx", "made/openvino", "--bound", "cosin >= 1")
    assert wrong.exit_code == 2
    assert wrong.stderr.startswith("error: --bound: unknown metric 'cosin'\n  did you mean cosine?\n")


def test_verify() -> None:
    invoke("convert", "net.onnx", "--to", "openvino", "--data", "judge.npz", "--out", "sent")
    result = invoke("verify", "sent/openvino")
    assert result.exit_code == 0, result.stderr
    assert "4 test vectors answered as recorded" in result.stdout
    with Path("sent/openvino/model.bin").open("r+b") as handle:
        handle.write(b"\x01")
    damaged = invoke("verify", "sent/openvino", "nowhere")
    assert damaged.exit_code == 2
    assert "its sha256 differs" in damaged.stdout
    assert "error: there is no folder nowhere" in damaged.stderr
    everything = invoke("verify", "sent")  # all that a run delivered
    assert everything.exit_code == 1
    assert everything.stdout.splitlines()[1].startswith("sent/openvino ")
    assert invoke("verify", "sent/openvino", "--quiet").stderr.startswith(
        "error: sent/openvino does not hold: model.bin"
    )
    (only,) = json.loads(invoke("verify", "sent/openvino", "--json").stdout)
    assert not only["held"]


def test_inspect() -> None:
    invoke("convert", "net.onnx", "--to", "openvino", "--data", "judge.npz", "--out", "seen")
    plain = invoke("inspect", "net.onnx")
    assert plain.exit_code == 0
    assert "x: float32[batch, 16]" in plain.stdout
    assert "MatMul    1" in plain.stdout
    delivered = invoke("inspect", "seen/openvino")
    assert "delivered as  net, step openvino: passed" in delivered.stdout
    assert "made by       onnx.to_openvino" in delivered.stdout
    data = json.loads(invoke("inspect", "seen/openvino", "--json").stdout)
    assert data["format"] == "openvino"
    assert data["delivered"]["status"] == "passed"
    for wrong, said in (
        ("nte.onnx", "did you mean 'net.onnx'?"),
        ("seen", "holds no model"),
        ("net.yaml", "no format"),
    ):
        result = invoke("inspect", wrong)
        assert result.exit_code == 2
        assert said in result.stderr


def test_replay() -> None:
    assert invoke("convert", "net.yaml", "--only", "ov", "--out", "again", "--cache", "fresh").exit_code == 0
    step = "again/logs/run-ov/step.json"
    result = invoke("replay", step, "--out", "repeated")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.startswith("done in ")
    assert Path("repeated/model.xml").is_file()
    assert invoke("replay", step, "--out", "repeated").exit_code == 2  # not empty
    data = json.loads(Path(step).read_text())
    data["artifact"]["path"] = str(Path("gone.onnx").absolute())
    Path("broken.json").write_text(json.dumps(data))
    failed = invoke("replay", "broken.json", "--json")
    assert failed.exit_code in (2, 3)
    assert not json.loads(failed.stdout)["ok"]
    assert failed.stderr.startswith("error: ")
    assert invoke("replay", "net.yaml").exit_code == 2
