"""Environments of their own: made whole or not at all, by one process at a time, and found without starting any."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from optkit.caching import keys
from optkit.cli import cli
from optkit.envs import environments
from optkit.envs import making as environment_making
from optkit.errors import UnavailableError, UserError
from optkit.planning import make_plan
from optkit.recipe import load_recipe

SIX = f"PyYAML=={importlib.metadata.version('PyYAML')}"
TYPES = f"typing_extensions=={importlib.metadata.version('typing_extensions')}"

RECIPE = """
version: 1
model: {onnx: model.onnx}
inputs: {x: {shape: [2, 3], range: [0, 1]}}
data: {judge: {random: 2}}
check_on: judge
steps: [{id: lite, to: tflite}]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for environments, and one of pins: two packages that are here, so that nothing is downloaded."""
    monkeypatch.setenv(environments.VARIABLE, str(tmp_path / "made"))
    monkeypatch.setattr(environments, "_PINS", tmp_path / "pins")
    (tmp_path / "pins").mkdir()
    pins(tmp_path, "small", SIX, TYPES)
    yield tmp_path
    forget()


def pins(folder: Path, name: str, *lines: str, imports: str = "yaml, typing_extensions") -> None:
    text = f"# summary: a small one\n# imports: {imports}\n" + "\n".join(lines) + "\n"
    (folder / "pins" / f"{name}.txt").write_text(text, encoding="utf-8")
    forget()


def forget() -> None:
    environments.known.cache_clear()
    environments._read.cache_clear()


def test_one_is_made_of_what_is_here(folder: Path) -> None:
    said: list[str] = []
    made = environment_making.create("small", said.append)
    assert (made["made"], made["linked"], made["installed"]) == (True, 2, 0)
    found = environments.require("small")
    assert Path(made["python"]) == found.python
    code = "import sys, yaml, typing_extensions; print(yaml.__file__, sys.prefix)"
    done = subprocess.run([found.python, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(found.packages / "yaml/__init__.py"), str(found.folder)]
    assert environments.versions(found, ["pyyaml", "typing-extensions", "torch"]) == {
        "pyyaml": SIX.split("==")[1], "typing-extensions": TYPES.split("==")[1], "torch": None}  # fmt: skip
    assert keys.versions(["PyYAML"], str(found.python)) == {"PyYAML": SIX.split("==")[1]}
    assert environment_making.create("small")["made"] is False
    assert said[-1] == "trying it"


def test_other_pins_make_another(folder: Path) -> None:
    first = environment_making.create("small")["path"]
    pins(folder, "small", SIX, imports="yaml")
    assert environments.find("small").problem == "is not there"
    second = environment_making.create("small")["path"]
    assert first != second
    assert [p.name for p in environment_making.remove("small")] == sorted([Path(first).name, Path(second).name])
    assert environment_making.remove("small") == []


def test_an_unknown_name(folder: Path) -> None:
    for do in (environments.find, environments.require, environment_making.create, environment_making.remove):
        with pytest.raises(UserError) as caught:
            do("smal")
        assert caught.value.hint == "did you mean 'small'?"


def test_what_is_wrong_with_one_is_told(folder: Path) -> None:
    found = environments.find("small")
    with pytest.raises(UnavailableError, match="the environment small is not there") as caught:
        environments.require("small")
    assert caught.value.hint == "optkit env create small"
    found.folder.mkdir(parents=True)
    assert found.problem == "is half made"
    environment_making.create("small")
    assert found.problem == ""
    found.python.rename(found.python.with_name("gone"))
    assert found.problem.startswith("is broken: its interpreter")
    environment_making.create("small")
    assert found.problem == ""
    next(found.packages.glob("*YAML*.dist-info"), next(found.packages.glob("*yaml*.dist-info"), found.packages)).rename(
        folder / "away")  # fmt: skip
    assert found.problem == f"is broken: PyYAML {SIX.split('==')[1]} is not in it any more"


def failing(folder: Path, *lines: str, **how: str) -> UnavailableError:
    pins(folder, "odd", *lines, **how)
    with pytest.raises(UnavailableError) as caught:
        environment_making.create("odd")
    assert not environments.find("odd").folder.exists()
    assert caught.value.hint
    return caught.value


def test_a_package_that_the_index_does_not_have(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    error = failing(folder, SIX, "optkit-has-no-such-package==9.9")
    assert "the package index has no optkit-has-no-such-package==9.9 for Python" in error.what


def test_no_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"INDEX_URL": "http://127.0.0.1:9/simple", "EXTRA_INDEX_URL": "http://127.0.0.1:9/more",
                        "RETRIES": "1", "FIND_LINKS": str(folder)}.items():  # fmt: skip
        monkeypatch.setenv(f"PIP_{name}", value)
    error = failing(folder, "optkit-has-no-such-package==9.9")
    assert "the package index cannot be reached" in error.what
    assert "PIP_FIND_LINKS" in error.hint


def test_what_does_not_import_is_not_kept(folder: Path) -> None:
    error = failing(folder, SIX, imports="yaml, no_such_module")
    assert "it does not work: ModuleNotFoundError: No module named 'no_such_module'" in error.what


def test_pip_says_that_the_disk_is_full(folder: Path) -> None:
    said = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device"
    error = environment_making.pip_error(environments.find("small"), said)
    assert "no space left on the disk" in error.what
    assert environments.VARIABLE in error.hint


def test_a_place_that_cannot_be_written_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "file").write_text("")
    monkeypatch.setenv(environments.VARIABLE, str(folder / "file/inside"))
    with pytest.raises(UnavailableError, match="cannot be made in") as caught:
        environment_making.create("small")
    assert environments.VARIABLE in caught.value.hint


CHILD = """
import sys, pathlib
from optkit.envs import environments
from optkit.envs import making as environment_making
environments._PINS = pathlib.Path(sys.argv[1])
if len(sys.argv) > 2:
    environment_making._prove = lambda *_: (print("now", flush=True), __import__("time").sleep(60))
print(environment_making.create("small")["made"])
"""


def child(folder: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(folder / "pins"), *more], stdout=subprocess.PIPE,
                            text=True, env={**os.environ})  # fmt: skip


def test_a_kill_leaves_nothing_that_looks_finished(folder: Path) -> None:
    with child(folder, "stop") as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "now\n"
        killed.send_signal(signal.SIGKILL)
    assert environments.find("small").problem == "is half made"
    assert environment_making.create("small")["made"] is True


def test_two_at_once(folder: Path) -> None:
    with child(folder) as one, child(folder) as other:
        said = sorted(process.communicate(timeout=120)[0].strip() for process in (one, other))
    assert said == ["False", "True"]


def test_where_they_lie(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert environments.root() == folder / "made"
    monkeypatch.delenv(environments.VARIABLE)
    monkeypatch.setattr(sys, "prefix", str(folder / "venv"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "home"))
    assert environments.root() == folder / "home/optkit-environments"
    (folder / "venv/optkit-environments").mkdir(parents=True)
    assert environments.root() == folder / "venv/optkit-environments"


# --- the command


def optkit(*arguments: str) -> Any:
    return CliRunner().invoke(cli, ["env", *arguments], prog_name="optkit")


def test_the_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert optkit("path", "small").exit_code == 4
    done = optkit("create", "small", "--json")
    assert (done.exit_code, json.loads(done.stdout)["linked"]) == (0, 2)
    assert "making a virtual environment" in done.stderr
    assert optkit("path", "small").stdout.strip() == str(environments.find("small").python)
    again = optkit("create", "small")
    assert "small: is there already" in again.stderr
    assert "small" in optkit("list").stdout
    row = json.loads(optkit("list", "--json").stdout)[0]
    assert (row["name"], row["status"], row["wanted_by"]) == ("small", "ok", [])
    assert "removed" in optkit("remove", "small").stderr
    assert "small is not there" in optkit("remove", "small").stderr


# --- what a plan does with one


@pytest.fixture
def real(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The pins that optkit has, of environments that are not there."""
    monkeypatch.setattr(environments, "_PINS", Path(environments.__file__).parent)
    forget()
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "model.onnx").touch()
    return folder


def test_a_step_gets_the_interpreter_of_the_environment_its_pass_wants(real: Path) -> None:
    recipe = load_recipe(real / "recipe.yaml")
    step = make_plan(recipe).step("lite")
    assert (step.use.name, step.environment) == ("onnx.to_tflite", "onnx2tf")
    assert step.python == str(environments.find("onnx2tf").python)
    mine = load_recipe(real / "recipe.yaml", [f"steps.lite.python={sys.executable}"])
    step = make_plan(mine).step("lite")
    assert (step.python, step.environment) == (sys.executable, None)


@pytest.mark.parametrize("command", ["plan", "convert"])
def test_a_missing_environment_is_told_before_any_work(real: Path, command: str, monkeypatch: pytest.MonkeyPatch,
                                                       capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    monkeypatch.chdir(real)
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "recipe.yaml", "--cache", str(real / "cache")])
    assert ended.value.code == 4
    said = capsys.readouterr()
    assert "the environment onnx2tf is not there, and lite needs it" in said.err
    assert "try: optkit env create onnx2tf" in said.err
    assert ("onnx.to_tflite" in said.out) == (command == "plan")  # which draws what it can all the same
    assert not (real / "build").exists()


def test_every_file_of_pins_is_whole() -> None:
    for file in Path(environments.__file__).parent.glob("*.txt"):
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
        assert all("==" in line for line in lines), file
        names = {environments.canonical(line.split("==")[0]) for line in lines}
        assert {"numpy", "pydantic", "pydantic-core", "pyyaml"} <= names, f"{file}: a worker needs them"
