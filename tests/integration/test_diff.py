"""`optkit diff`: two runs, or two artifacts, beside one another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from test_bench import linear
from toy_kit import convert, folder, model

import optkit
from optkit.cli import cli
from optkit.comparing.diffing import diff
from optkit.errors import UserError

STEPS = (
    '  - {id: r, use: toy.round, data: fit, check: ["cosine >= 0.9"], with: {digits: 2}}\n'
    "  - {id: bin, from: r, to: toybin}\n"
)


@pytest.fixture
def base(tmp_path: Path, toy_plugin: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return folder(tmp_path / "base")


def run(base: Path, to: str, *sets: str) -> str:
    convert(base, STEPS, sets=["deliver=[r, bin]", *sets])
    shutil.copytree(base / "out", to)
    return to


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["diff", *arguments])


def rows(found: Any, step: str) -> dict[str, tuple[str, str]]:
    return {f"{r['part']}: {r['item']}": (r["old"], r["new"]) for r in found["rows"] if r["step"] == step}


def test_two_runs(base: Path) -> None:
    one = run(base, "one")
    same = diff(one, run(base, "again"))
    assert (same["kind"], same["same"], same["rows"], same["notes"]) == ("runs", True, [], [])
    found = diff(one, run(base, "two", "steps.r.with.digits=1", "steps.r.check=[cosine >= 0.8]"))
    assert rows(found, "") == {"conditions: the recipe changed": ("", "")}
    told = rows(found, "r")
    assert told["step: with.digits"] == ("2", "1")
    assert told["size: size"][1].endswith("%)")
    before, after = (float(text.removesuffix(" dB")) for text in told["parity: sqnr_db"])
    assert before > after + 10
    assert "parity: sqnr_db" in rows(found, "bin")
    assert "size: size" not in rows(found, "bin"), "the weights are kept as bytes there"


def test_steps_that_came_and_went_and_failed_and_other_data(base: Path) -> None:
    one = run(base, "one")
    run(base, "three", "steps.r.check=[cosine >= 0.9999999999]")
    (failed,) = (r for r in diff(one, "three")["rows"] if (r["step"], r["item"]) == ("r", "status"))
    assert (failed["old"], failed["new"]) == ("passed", "failed")
    convert(base, STEPS.splitlines()[0] + "\n")
    assert rows(diff(one, "base/out"), "bin") == {"step: is there": ("yes", "no")}
    np.savez(base / "judge.npz", x=np.ones((5, 3), np.float32) * np.arange(5, dtype=np.float32)[:, None])
    found = diff(one, run(base, "four"))
    assert "conditions: the data judge changed" in rows(found, "")
    assert not any("parity" in item for item in rows(found, "r"))
    assert found["notes"] == ["parity and metrics are not compared: the runs were judged on other data"]


def test_files_that_are_gone_are_told(base: Path) -> None:
    one, two = run(base, "one"), run(base, "two")
    shutil.rmtree("two/r")
    (note,) = diff(one, two)["notes"]
    assert note.startswith("r: operators and precision are not compared")


def test_two_onnx_files(base: Path) -> None:
    linear(base / "a.onnx")
    linear(base / "b.onnx", 2)
    found = diff(base / "a.onnx", base / "b.onnx")
    told = rows(found, "")
    assert found["kind"] == "artifacts"
    assert told["signature: input x"] == ("float32[batch, 3]", "float32[2, 3]")
    assert "files: bytes" in told
    assert diff(base / "a.onnx", base / "a.onnx")["same"]
    data = {"x": np.random.default_rng(3).standard_normal((6, 3)).astype(np.float32)}
    steps = [{"id": "half", "use": "onnx.fp16", "check": ["cosine >= 0.9"]}, {"id": "ov", "to": "openvino"}]
    optkit.convert(base / "a.onnx", steps=steps, data=data, dims={"batch": (1, 4, 8)}, out="made", cache="kept")
    told = rows(diff(base / "a.onnx", "made/half"), "")
    assert told["operators: Cast"][0] == "0"
    assert any(item.startswith("precision: weights.float16") for item in told)
    told = rows(diff("made/half", "made/ov"), "")
    assert told["files: format"] == ("onnx", "openvino")
    assert "parity: sqnr_db" in told
    assert not any(item.startswith("operators") for item in told), "other formats have other operators"


def test_the_command_and_its_exit_codes(base: Path) -> None:
    run(base, "one")
    run(base, "two", "steps.r.with.digits=1", "steps.r.check=[cosine >= 0.8]")
    same = invoke("one", "one/report.json")
    assert (same.exit_code, same.stdout, same.stderr) == (0, "", "nothing differs\n")
    differs = invoke("one", "two")
    assert differs.exit_code == 1
    head, first, *_ = differs.stdout.splitlines()
    assert head.split() == ["step", "part", "old", "new"]
    assert "the recipe changed" in first
    assert json.loads(invoke("one", "two", "--json").stdout)["same"] is False
    assert invoke("one/r", "two/r").exit_code == 1
    model(base)
    Path("broken").mkdir()
    Path("broken/report.json").write_text("{}")
    for arguments, said in (
        (["one", "one/r"], "OPK-256"), (["one", "gone"], "there is no gone"), (["one", "broken"], "no optkit report"),
        (["base/m.toy", "base/judge.npz"], "of no format optkit can look into"),
    ):  # fmt: skip
        wrong = invoke(*arguments)
        assert (wrong.exit_code, said in wrong.stderr, "Traceback" in wrong.stderr) == (2, True, False), wrong.stderr
    with pytest.raises(UserError, match="one is a run and one/r is an artifact"):
        diff("one", "one/r")
