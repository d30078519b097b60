from __future__ import annotations

import errno
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from optkit.cli import Commands
from optkit.errors import (
    CheckError,
    Location,
    OptkitError,
    Problem,
    RecipeError,
    StepTimeout,
    UnavailableError,
    UserError,
)


def run(error: BaseException) -> tuple[int, str]:
    """Exit code and standard error of a command that raises."""

    @click.group(cls=Commands)
    def group() -> None:
        raise error

    result = CliRunner().invoke(group, ["plan"])
    assert result.stdout == ""
    return result.exit_code, result.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("x"), 2),
        (CheckError("x"), 1),
        (StepTimeout("x"), 3),
        (UnavailableError("x"), 4),
        (OptkitError("x"), 3),
    ],
)
def test_every_deliberate_error_has_its_exit_code_and_no_traceback(error: OptkitError, code: int) -> None:
    assert run(error) == (code, f"error: x\n  why: optkit explain {error.code}\n")


def test_an_error_says_what_where_and_one_thing_to_try() -> None:
    error = UserError("there is no dataset 'fti'", hint="did you mean 'fit'?", where=Location(Path("r.yaml"), 3, 5))
    why = "  why: optkit explain OPK-200\n"
    assert run(error)[1] == f"error: there is no dataset 'fti'\n  at r.yaml:3:5\n  did you mean 'fit'?\n{why}"
    assert run(UserError("no", hint="this\nor that"))[1] == f"error: no\n  try: this\n  or that\n{why}"


def test_a_recipe_error_lists_all_its_problems_with_a_count() -> None:
    first = Problem("no step 'a'", Location(Path("r.yaml"), 3), "did you mean 'b'?")
    second = Problem("no data", Location(Path("r.yaml"), 9), code="OPK-213")
    assert run(RecipeError([first, second])) == (
        2,
        "error: 2 problems\n  r.yaml:3: no step 'a'\n    did you mean 'b'?\n  r.yaml:9: no data\n"
        "  why: optkit explain OPK-210 OPK-213\n",
    )
    assert run(RecipeError([second]))[1] == "error: no data\n  at r.yaml:9\n  why: optkit explain OPK-213\n"


def test_names_in_errors_cannot_steer_the_terminal() -> None:
    _, said = run(UserError("no \x1b[2Jfile", hint="\x07", where=Location(Path("a\x1bb.yaml"))))
    assert said == "error: no \\x1b[2Jfile\n  at a\\x1bb.yaml\n  try: \\x07\n  why: optkit explain OPK-200\n"


def test_a_bug_is_called_one_and_its_traceback_goes_to_a_file() -> None:
    code, said = run(ZeroDivisionError("division by zero"))
    assert code == 70
    assert said.startswith("error: this is a bug in optkit: ZeroDivisionError: division by zero\n  at ")
    assert "Traceback" not in said
    found = re.search(r"report it with (\S+),", said)
    assert found
    text = Path(found[1]).read_text(encoding="utf-8")
    assert "Traceback" in text
    assert "arguments: ['plan']" in text
    Path(found[1]).unlink()


def test_an_interrupt_is_one_line() -> None:
    code, said = run(KeyboardInterrupt())
    assert code == 130
    assert said.strip() == "interrupted"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pln"], "error: there is no command 'pln'\n  did you mean 'plan'?\n  why: optkit explain OPK-201\n"),
        (["plan"], "error: Missing argument 'RECIPE...'.\n  try: optkit plan --help\n"),
        (["completion", "ksh"], "error: Invalid value for '{bash|zsh|fish}': 'ksh' is not one of"),
    ],
)
def test_a_wrong_command_line_exits_2(arguments: list[str], said: str) -> None:
    from optkit.cli import cli

    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(said)


def test_a_reader_that_stops_reading_is_no_error() -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m optkit schema | head -c 10"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == '{\n  "$schem'[:10]
    assert done.stderr == ""


def test_a_full_disk_is_no_bug_of_ours() -> None:
    assert run(OSError(errno.ENOSPC, "No space left on device")) == (
        4,
        "error: no space left on device (writing the output)\n  try: free some space, or check the permissions there\n"
        "  why: optkit explain OPK-405\n",
    )
    assert run(PermissionError(errno.EACCES, "Permission denied", "/a/b"))[1].startswith(
        "error: permission denied: /a/b\n"
    )
