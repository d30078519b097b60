from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from optkit.cli import cli
from optkit.cli.plan import check_text
from optkit.planning import make_plan
from optkit.recipe import recipe_from_text

RECIPE = """\
version: 1
name: net
model: {onnx: net.onnx}
inputs: {x: {shape: [batch, 16]}}
dims: {batch: {min: 1, max: 8}}
data:
  fit: {random: 30}
  judge: {random: 20}
check_on: judge
steps:
  - {id: slim, use: onnx.simplify}
  - {id: ov, from: slim, to: openvino}
  - {id: int8, from: ov, use: openvino.quantize, data: fit, check: ["cosine >= 0.99", "y.sqnr_db >= 30"]}
  - {id: int8-half, from: int8, use: openvino.fp16}
  - {id: w8, from: ov, use: openvino.compress_weights, waive: "measured by hand on the board"}
deliver: [ov, int8, int8-half, w8]
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))
    Path("net.onnx").touch()
    Path("net.yaml").write_text(RECIPE)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["plan", *arguments])


def test_the_plan_is_a_tree_with_the_source_at_its_root() -> None:
    result = invoke("net.yaml")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["step", "source"]
    assert lines[2].startswith("└─ slim  ")
    assert lines[3].startswith("   └─ ov  ")
    assert lines[4].startswith("      ├─ int8  ")
    assert lines[5].startswith("      │  └─ int8-half  ")
    assert lines[6].startswith("      └─ w8  ")
    assert "deliver" in lines[3]
    assert "deliver" not in lines[2]
    assert lines[4].endswith("cosine >= 0.99, y.sqnr_db >= 30")
    assert lines[5].endswith("cosine >= 0.99 (from int8), y.sqnr_db >= 30 (from int8)")
    assert lines[6].endswith("waived: measured by hand on the board")
    assert lines[3].endswith("default for float32")
    assert "lossy" in lines[4]
    assert " fit " in lines[4]
    assert lines[-1] == "net: 5 steps, 5 to run, 4 to deliver; checks run on judge"
    assert len({line.index("onnx") for line in lines[1:4]}) == 1  # the passes stand in one column


def test_planning_leaves_no_trace() -> None:
    invoke("net.yaml")
    assert sorted(p.name for p in Path.cwd().iterdir()) == ["net.onnx", "net.yaml"]


def test_the_plan_as_json() -> None:
    data = json.loads(invoke("net.yaml", "--json", "--only", "int8").stdout)
    assert data["deliver"] == ["int8"]
    assert [s["id"] for s in data["steps"]] == ["slim", "ov", "int8"]
    step = data["steps"][2]
    assert step["pass"] == "openvino.quantize"
    assert step["check"]["bounds"] == ["cosine >= 0.99", "y.sqnr_db >= 30"]
    assert step["where"] == "net.yaml:13:5"
    assert step["cached"] is False
    assert data["source"]["inputs"][0]["shape"] == ["batch", 16]


def test_all_mistakes_are_told_at_once_each_with_its_line() -> None:
    Path("bad.yaml").write_text(RECIPE.replace("from: ov, use: openvino.quantize", "from: vo, use: openvino.quantize")
                                .replace("use: onnx.simplify", "use: onnx.simplfy"))  # fmt: skip
    result = invoke("bad.yaml")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: 2 problems\n")
    assert "  bad.yaml:11:" in result.stderr
    assert "did you mean 'onnx.simplify'?" in result.stderr
    assert "  bad.yaml:13:" in result.stderr


def test_an_override_is_planned() -> None:
    result = invoke("net.yaml", "--set", "steps.int8.check=[cosine >= 0.5]")
    assert "cosine >= 0.5 (from int8)" in result.stdout
    wrong = invoke("net.yaml", "--set", "steps.int9.check=[]")
    assert wrong.exit_code == 2
    assert "did you mean 'int8'?" in wrong.stderr
    assert invoke("net.yaml", "--only", "int9").exit_code == 2


def test_a_stream_without_box_characters_gets_plain_ones() -> None:
    result = CliRunner(charset="ascii").invoke(cli, ["plan", "net.yaml"])
    assert result.exit_code == 0
    assert "\n`- slim " in result.stdout
    assert "      |  `- int8-half " in result.stdout


def test_names_cannot_steer_the_terminal() -> None:
    Path("odd.yaml").write_text(RECIPE.replace("measured by hand on the board", "measured \\x1b[2J by hand"))
    result = invoke("odd.yaml")
    assert "\x1b" not in result.stdout
    assert r"measured \x1b[2J by hand" in result.stdout


def test_a_conversion_after_a_pruning_is_shown_with_what_it_is_held_to(tmp_path: Path) -> None:
    text = """\
version: 1
model: {torch: net.py:build}
inputs: {x: {shape: [batch, 8]}}
dims: {batch: {min: 1, opt: 2, max: 4}}
data: {judge: {random: 4}}
check_on: judge
steps:
  - {id: small, use: torch.prune, with: {remove_macs: 20%}, check: ["cosine >= 0.5"]}
  - {id: onnx, from: small, to: onnx}
  - {id: bare, use: torch.prune, with: {remove_macs: 20%}, waive: it is looked at by hand}
  - {id: bare-onnx, from: bare, to: onnx}
"""
    (tmp_path / "net.py").write_text("def build(): ...\n", encoding="utf-8")
    plan = make_plan(recipe_from_text(text, tmp_path))
    assert check_text(plan.step("onnx")) == "cosine >= 0.5 (from small), as small but for float32 rounding"
    assert check_text(plan.step("bare-onnx")) == "as bare but for float32 rounding"
