"""`optkit bench`: figures of several artifacts beside one another. Toy models sleep as long as they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper
from toy_kit import folder, model

import optkit
from optkit.cli import cli
from optkit.errors import SourceError, UserError
from optkit.speed.benching import bench


@pytest.fixture
def base(tmp_path: Path, toy_plugin: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = folder(tmp_path / "base")
    model(base, milliseconds=4)
    (base / "quick.toy").write_text((base / "m.toy").read_text().replace(": 4}", ": 2}"), encoding="utf-8")
    monkeypatch.chdir(base)
    return base


def linear(path: Path, batch: int | str = "batch") -> Path:
    """An ONNX file with the toy's inputs and outputs."""
    weights = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4])
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "linear", [x], [y], [numpy_helper.from_array(weights, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["bench", *arguments, "--seconds", "0.2"])


def test_every_figure_of_every_artifact_batch_and_number_of_threads(base: Path) -> None:
    linear(base / "net.onnx")
    names = ("m.toy", "quick.toy", "net.onnx")
    found = bench(names, data="judge.npz", batch=[1, 8], threads=[1], seconds=0.1, starts=1)
    assert (found["against"], found["synthetic"], found["hardware"]["cores"] >= 1) == ("m.toy", False, True)
    rows = found["rows"]
    assert [(r["artifact"], r["batch"], r["threads"]) for r in rows] == [
        (name, size, 1) for size in (1, 8) for name in names
    ]
    for row in rows:
        times = row["latency_ms"]
        assert 0 < times["p50"] <= times["p90"] <= times["p99"]
        assert row["samples_per_second"] == pytest.approx(row["batch"] / times["mean"] * 1e3)
        assert row["open_seconds"] > 0 < row["first_seconds"]
        assert 10e6 < row["bare_bytes"] <= row["peak_bytes"] < 10e9
        assert row["size_bytes"] == (base / row["artifact"]).stat().st_size
        assert row["inferences"] >= 7
    first, quick, net = rows[:3]
    assert (first["ratio"], first["verdict"]) == (None, None)
    assert (quick["verdict"], net["verdict"], net["provider"]) == ("faster", "faster", "CPUExecutionProvider")
    assert 1.4 < quick["ratio"]["low"] <= quick["ratio"]["value"] <= quick["ratio"]["high"] < 2.6
    assert ("inferences" in first["unsteady"]) == (first["inferences"] < 100)


def test_the_same_artifact_twice_against_another(base: Path) -> None:
    found = bench(["quick.toy", "quick.toy"], against="m.toy", seconds=0.1, starts=1)
    assert [r["artifact"] for r in found["rows"]] == ["m.toy", "quick.toy", "quick.toy (2)"]
    assert found["synthetic"]
    assert [r["artifact"] for r in bench(["quick.toy", "m.toy"], against="m.toy", seconds=0.1, starts=1)["rows"]] == [
        "m.toy", "quick.toy"
    ]  # fmt: skip


def test_a_fixed_batch_is_what_all_are_measured_at(base: Path) -> None:
    linear(base / "fixed.onnx", 2)
    found = bench(["m.toy", "fixed.onnx"], seconds=0.1, starts=1)
    assert {r["batch"] for r in found["rows"]} == {2}
    assert found["notes"] == ["at batch=2 alone: one of the models is fixed there"]
    with pytest.raises(UserError, match="batch: 8 does not fit, for one of the models is fixed at 2") as error:
        bench(["m.toy", "fixed.onnx"], batch=[2, 8])
    assert "--batch 2" in error.value.hint


def test_a_delivery_stays_within_its_range_and_a_torch_source_has_the_bytes_of_its_weights(base: Path) -> None:
    linear(base / "net.onnx")
    optkit.convert("net.onnx", to="openvino", data="judge.npz", dims={"batch": (1, 4, 8)}, out="made", cache="kept")
    code = (
        "import torch\n\nclass Net(torch.nn.Linear):\n    def __init__(self):\n        super().__init__(3, 4)\n"
        "    def forward(self, x):\n        return super().forward(x)\n\ndef build():\n    return Net()\n"
    )
    (base / "net.py").write_text(code)
    # What goes into the callable the delivery says.
    found = bench(["made/openvino", "net.py:build"], data="judge.npz", seconds=0.1, starts=1)
    assert [(r["format"], r["batch"]) for r in found["rows"]] == [("openvino", 1), ("torch", 1)]
    assert found["rows"][0]["size_bytes"] > 48
    assert found["rows"][1]["size_bytes"] is None, "it has no weights on disk"
    compared = CliRunner().invoke(cli, ["check", "net.py:build", "made/openvino", "--data", "judge.npz"])
    assert compared.exit_code == 1, compared.stderr  # other weights: compared, and found to differ
    with pytest.raises(UserError, match="batch: 16 is not within 1 to 8"):
        bench(["made/openvino"], batch=[16])


def test_the_table_and_the_json(base: Path) -> None:
    linear(base / "net.onnx")
    result = invoke("m.toy", "quick.toy", "--data", "judge.npz", "--batch", "4", "--threads", "1")
    assert result.exit_code == 0, result.stderr
    title, head, *_ = result.stdout.splitlines()
    assert title == "batch 4, 1 thread"
    assert head.startswith("artifact   p50 ms")
    assert "x (" in result.stdout
    assert result.stderr == ""
    as_json = invoke("net.onnx", "--json")
    assert [r["artifact"] for r in json.loads(as_json.stdout)["rows"]] == ["net.onnx"]
    assert as_json.stderr.startswith("note: measured on random data")


def test_what_cannot_be_measured_says_why(base: Path) -> None:
    for arguments, code, said in (
        (["gone.toy"], 2, "there is no gone.toy"),
        (["m.toy", "--batch", "1,x"], 2, "--batch 1,x: 'x' is no whole number from 1"),
        (["m.toy", "--threads", "100000"], 2, "threads: 100000 threads, and this process may use"),
        (["m.toy", "--data", "gone.npz"], 2, "gone.npz"),
        (["net.py:build"], 2, "does not say what goes into it\n  try: add --input 'x:float32"),
    ):
        (base / "net.py").write_text("class N:\n    def forward(self, x): ...\n\ndef build():\n    return N()\n")
        result = invoke(*arguments)
        assert (result.exit_code, said in result.stderr) == (code, True), result.stderr
        assert "Traceback" not in result.stderr
    (base / "broken.toy").write_text("{}")
    assert "is no toy model" in invoke("m.toy", "broken.toy").stderr
    model(base, milliseconds=4, breaks_in_a_race=True)
    broken = invoke("quick.toy", "m.toy")
    assert (broken.exit_code, "m.toy stopped while its speed was measured" in broken.stderr) == (3, True), broken.stderr
    for arguments in ({"seconds": 0}, {"batch": [0]}):
        with pytest.raises(UserError):
            bench(["m.toy"], **arguments)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="nothing to measure"):
        bench([])
    linear(base / "net.onnx")
    other = json.loads((base / "quick.toy").read_text())
    other["input"]["name"] = "z"
    (base / "other.toy").write_text(json.dumps(other))
    with pytest.raises(SourceError, match="different inputs"):
        bench(["net.onnx", "other.toy"])
