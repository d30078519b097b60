from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from optkit.artifact import digest_of
from optkit.cli import cli
from optkit.comparing.lock import Lock, lock_of, lock_path
from optkit.planning import make_plan
from optkit.recipe import load_recipe

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
  - {id: int8, from: ov, use: openvino.quantize, data: fit, check: ["cosine >= 0.99"]}
  - {id: lite, from: slim, to: tflite}
deliver: [int8, lite]
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))
    Path("net.onnx").touch()
    Path("net.yaml").write_text(RECIPE)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def locked() -> dict[str, Any]:
    result = invoke("lock", "net.yaml")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    data: dict[str, Any] = json.loads(Path("net.lock.json").read_text())
    return data


def made_elsewhere(change: Callable[[Lock], Lock]) -> None:
    """A lock of the same recipe from another machine."""
    Path("net.lock.json").write_text(change(lock_of(make_plan(load_recipe("net.yaml")))).to_text())


def test_a_lock_has_the_version_of_every_tool_of_every_step_and_environment() -> None:
    data = locked()
    for tool in ("onnx", "onnxsim", "onnxruntime", "openvino", "nncf", "numpy", "ai-edge-litert"):
        assert data["tools"][tool] == version(tool)
    assert data["environments"]["onnx2tf"]["onnx2tf"]
    assert "onnx2tf" not in data["tools"]
    assert data["optkit"]
    assert data["python"] == f"CPython {sys.version_info.major}.{sys.version_info.minor}"
    assert {"model", "data.fit", "steps.int8"} <= set(data["recipe"]["parts"])


def test_the_same_recipe_gives_the_same_bytes_whatever_its_comments_and_order() -> None:
    locked()
    first = Path("net.lock.json").read_bytes()
    head, tail = RECIPE.split("data:\n", 1)
    Path("net.yaml").write_text(f"# a comment\n{head}data:\n{tail}".replace("name: net\n", "") + "name: net\n")
    locked()
    assert Path("net.lock.json").read_bytes() == first


def test_a_frozen_plan_holds_in_the_environment_that_locked_it() -> None:
    locked()
    assert invoke("plan", "net.yaml", "--frozen").exit_code == 0
    assert invoke("plan", "net.yaml", "--frozen", "--only", "int8").exit_code == 0


def test_a_lock_elsewhere_is_named() -> None:
    assert invoke("lock", "net.yaml", "--to", "locks/linux.json", "--quiet").stderr == ""
    assert invoke("plan", "net.yaml", "--frozen", "--lock", "locks/linux.json").exit_code == 0
    assert "there is no lock net.lock.json" in invoke("plan", "net.yaml", "--frozen").stderr
    result = invoke("plan", "net.yaml", "--lock", "locks/linux.json")
    assert (result.exit_code, "--frozen is not there" in result.stderr) == (2, True)


@pytest.mark.parametrize("command", ["plan", "convert"])
def test_other_versions_are_refused_each_named_with_the_line_that_mends_it(command: str) -> None:
    made_elsewhere(lambda lock: replace(
        lock,
        optkit="9.9", tools={**lock.tools, "onnx": "1.19.0", "nncf": "2.0"},
        environments={"onnx2tf": {**lock.environments["onnx2tf"], "onnx2tf": "1.0"}},
    ))  # fmt: skip
    result = invoke(command, "net.yaml", "--frozen")
    assert result.exit_code == 4
    assert f"onnx is {version('onnx')}, locked is 1.19.0" in result.stderr
    assert f"nncf is {version('nncf')}, locked is 2.0" in result.stderr
    assert "onnx2tf in the environment onnx2tf is" in result.stderr
    assert "pip install nncf==2.0 onnx==1.19.0 optkit==9.9" in result.stderr
    assert "optkit env create --again onnx2tf" in result.stderr
    assert not Path("build").exists()


def test_only_what_a_cut_plan_needs_is_held_to() -> None:
    made_elsewhere(lambda lock: replace(lock, tools={**lock.tools, "nncf": "2.0"}))
    assert invoke("plan", "net.yaml", "--frozen", "--only", "ov").exit_code == 0
    assert invoke("plan", "net.yaml", "--frozen", "--only", "int8").exit_code == 4


def test_another_python_or_platform_is_refused() -> None:
    made_elsewhere(lambda lock: replace(lock, python="CPython 3.99", platform="Plan9 mips"))
    result = invoke("plan", "net.yaml", "--frozen")
    assert result.exit_code == 4
    assert "locked is CPython 3.99" in result.stderr
    assert "locked is Plan9 mips" in result.stderr
    assert "try: run it where the lock was made" in result.stderr


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("cosine >= 0.99", "cosine >= 0.9", "steps.int8 changed"),
        ("random: 20", "random: 21", "data.judge changed"),
        ("  - {id: lite, from: slim, to: tflite}\n", "", "steps.lite is gone"),
        ("name: net", "name: net\nseed: 3", "seed is new"),
    ],
)
def test_a_changed_recipe_makes_the_lock_stale_and_the_change_is_named(old: str, new: str, said: str) -> None:
    locked()
    Path("net.yaml").write_text(
        RECIPE.replace(old, new).replace("[int8, lite]", "[int8]" if not new else "[int8, lite]")
    )
    result = invoke("plan", "net.yaml", "--frozen")
    assert result.exit_code == 2
    assert said in result.stderr
    assert "optkit lock net.yaml" in result.stderr


def test_an_override_makes_another_recipe_of_it() -> None:
    locked()
    result = invoke("convert", "net.yaml", "--frozen", "--set", "steps.int8.check=[cosine >= 0.5]")
    assert (result.exit_code, "steps.int8 changed" in result.stderr) == (2, True)
    assert invoke("lock", "net.yaml", "--set", "seed=4").exit_code == 0
    assert invoke("plan", "net.yaml", "--frozen", "--set", "seed=4").exit_code == 0


def edited(text: str) -> str:
    """A lock with one version changed by hand."""
    data = json.loads(text)
    data["tools"]["onnx"] = "1.0"
    return json.dumps(data)


def of_another_schema(text: str) -> str:
    data = json.loads(text)
    del data["digest"]
    data["schema"] = 7
    return json.dumps({**data, "digest": digest_of(data)})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[:40], "is damaged"),
        (lambda text: "[]", "is damaged"),
        (lambda text: "{}", "is damaged: 'schema' is missing"),
        (edited, "is damaged: its content is not what optkit wrote"),
        (of_another_schema, "has schema 7"),
        (lambda text: "\udcff", "cannot be read"),
    ],
)
def test_a_damaged_lock_is_refused(damage: Callable[[str], str], said: str) -> None:
    locked()
    text = damage(Path("net.lock.json").read_text())
    Path("net.lock.json").write_bytes(text.encode(errors="surrogateescape"))
    result = invoke("convert", "net.yaml", "--frozen")
    assert result.exit_code == 2
    assert said in result.stderr
    assert "try: optkit lock net.yaml" in result.stderr


def test_a_model_without_a_recipe_has_nothing_to_lock() -> None:
    result = invoke("convert", "net.onnx", "--to", "openvino", "--frozen")
    assert result.exit_code == 2
    assert "--frozen holds a recipe to its lock" in result.stderr


def test_a_step_in_another_interpreter_is_held_to_what_that_has() -> None:
    Path("py").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    Path("py").chmod(0o755)
    Path("net.yaml").write_text(RECIPE.replace("use: onnx.simplify", "use: onnx.simplify, python: ./py"))
    assert locked()["interpreters"]["./py"]["onnxsim"] == version("onnxsim")
    made_elsewhere(lambda lock: replace(lock, interpreters={"./py": {**lock.interpreters["./py"], "onnxsim": "0.1"}}))
    result = invoke("plan", "net.yaml", "--frozen")
    assert result.exit_code == 4
    assert "onnxsim in ./py is" in result.stderr
    assert "/py -m pip install onnxsim==0.1" in result.stderr


def test_what_is_not_installed_cannot_be_locked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPTKIT_ENVIRONMENTS", str(tmp_path / "none"))
    result = invoke("lock", "net.yaml")
    assert result.exit_code == 4
    assert "optkit env create onnx2tf" in result.stderr
    assert not lock_path("net.yaml").exists()
