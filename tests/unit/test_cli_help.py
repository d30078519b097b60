from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import optkit
from optkit.cli import _COMMANDS, cli

HEAVY = ("pydantic", "numpy", "yaml", "rich", "torch", "onnx", "onnxruntime", "openvino", "nncf", "transformers")


def loaded(*arguments: str) -> set[str]:
    """The modules a fresh process has loaded at the end of an optkit command line."""
    code = (
        "import json, sys\n"
        "from optkit.cli import main\n"
        f"sys.argv[1:] = {list(arguments)!r}\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print('\\nLOADED ' + json.dumps(sorted(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.rpartition("LOADED ")[2]))


def test_help_loads_nothing_but_click() -> None:
    assert not loaded("--help") & set(HEAVY)


@pytest.mark.parametrize("arguments", [["convert", "--help"], ["passes", "--help"], ["--version"]])
def test_no_help_loads_a_backend(arguments: list[str]) -> None:
    assert not loaded(*arguments) & set(HEAVY)


def test_plan_needs_no_backend(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "version: 1\nmodel: {onnx: m.onnx}\ndata: {judge: {random: 2}}\ncheck_on: judge\n"
        "steps: [{id: ov, to: openvino}]\n"
    )
    assert not loaded("plan", str(recipe), "--cache", str(tmp_path / "none")) & {
        "numpy", "torch", "onnx", "onnxruntime", "openvino", "nncf", "transformers"}  # fmt: skip
    assert not (tmp_path / "none").exists()


def test_every_command_is_there_with_its_help() -> None:
    folder = Path(optkit.__file__).parent / "cli"
    files = {p.stem for p in folder.glob("*.py") if "\ndef command(" in p.read_text(encoding="utf-8")}
    assert files == set(_COMMANDS)
    said = CliRunner().invoke(cli, ["--help"]).stdout
    for name, text in _COMMANDS.items():
        assert f"  {name} " in said
        assert text in said
        result = CliRunner().invoke(cli, [name, "--help"])
        assert result.exit_code == 0
        assert result.stdout.startswith(f"Usage: optkit {name}")


def test_version() -> None:
    assert CliRunner().invoke(cli, ["--version"]).stdout == f"optkit {optkit.__version__}\n"


def test_without_a_command_the_help_is_shown_and_nothing_was_done() -> None:
    result = CliRunner().invoke(cli, [])
    assert result.exit_code == 2
    assert "Commands:" in result.stderr


@pytest.mark.parametrize(
    ("shell", "mark"), [("zsh", "#compdef optkit"), ("fish", "complete --no-files --command optkit")]
)
def test_completion_scripts(shell: str, mark: str) -> None:
    result = CliRunner().invoke(cli, ["completion", shell])
    assert result.exit_code == 0
    assert mark in result.stdout


def test_a_shell_can_complete_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "optkit"], capture_output=True, text=True, timeout=60, check=False,
        env={"_OPTKIT_COMPLETE": "zsh_complete", "COMP_WORDS": "optkit pl", "COMP_CWORD": "1", "PATH": "/usr/bin",
             "PYTHONPATH": str(Path(optkit.__file__).parents[1])},
    )  # fmt: skip
    assert "plan" in done.stdout.split()


@pytest.mark.parametrize("name", ["", *_COMMANDS])
def test_help_fits_a_terminal_and_keeps_its_paragraphs(name: str) -> None:
    said = CliRunner().invoke(cli, [*filter(None, [name]), "--help"], terminal_width=80).stdout
    assert "\\b" not in said
    assert "\b" not in said
    assert max(map(len, said.splitlines())) <= 80


def test_the_help_says_how_to_start_and_what_the_exit_codes_mean() -> None:
    lines = [line.strip() for line in CliRunner().invoke(cli, ["--help"]).stdout.splitlines()]
    start = lines.index("Start:       optkit init MODEL")
    assert lines[start + 1 : start + 3] == ["optkit plan recipe.yaml", "optkit convert recipe.yaml"]
    assert lines[start + 3].startswith("Exit codes:  0 all held, 1 a check did not hold")


def test_every_command_that_tells_something_tells_it_in_json_too() -> None:
    bare = set()

    def walk(name: str, command: click.Command) -> None:
        if isinstance(command, click.Group):
            with click.Context(command) as context:
                for inner in command.list_commands(context):
                    found = command.get_command(context, inner)
                    assert found is not None
                    walk(f"{name} {inner}", found)
        elif not any("--json" in parameter.opts for parameter in command.params):
            bare.add(name)

    walk("optkit", cli)
    assert bare == {"optkit completion", "optkit schema"}, "a shell script, and what is JSON already"
