"""Errors as the user sees them: what happened, where, one thing to try; never a traceback."""

from __future__ import annotations

import sys

import click

from optkit.cli.text import clean, has_colour, paint
from optkit.errors import OptkitError, Problem, RecipeError

BUG_EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h
INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT


def show(error: BaseException, arguments: list[str]) -> int:
    """Print an error that ended a command on stderr; returns the exit code it deserves."""
    if isinstance(error, OptkitError):
        click.echo(describe(error), err=True)
        return error.exit_code
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.ctx.get_help() if error.ctx else "", err=True)
        return error.exit_code
    if isinstance(error, click.UsageError):
        hint = f"{error.ctx.command_path} --help" if error.ctx else "optkit --help"
        click.echo(lines("error", error.format_message(), "", hint), err=True)
        return error.exit_code
    if isinstance(error, click.ClickException):
        click.echo(lines("error", error.format_message(), "", ""), err=True)
        return 2
    if isinstance(error, KeyboardInterrupt | click.Abort):
        click.echo("interrupted", err=True)
        return INTERRUPTED_EXIT_CODE
    if isinstance(error, BrokenPipeError):
        _silence_stdout()
        return 1
    if not isinstance(error, Exception):
        raise error
    return _bug(error, arguments)


def describe(error: OptkitError) -> str:
    """An error as lines: `error: what`, then where, then one thing to try. A RecipeError gives all its problems."""
    if not isinstance(error, RecipeError):
        return lines("error", error.what, str(error.where or ""), error.hint)
    if len(error.problems) == 1:
        (problem,) = error.problems
        return lines("error", problem.what, str(problem.where or ""), problem.hint)
    head = paint("error:", "bad", has_colour(sys.stderr))
    return "\n".join([f"{head} {len(error.problems)} problems", *(_problem(p) for p in error.problems)])


def lines(word: str, what: str, where: str, hint: str, indent: str = "") -> str:
    """The lines of one error. Control characters in them are shown as escapes."""
    style = {"error": "bad", "warning": "warn"}.get(word, "bold")
    first, *rest = clean(what, lines=True).strip().splitlines() or [""]
    out = [f"{indent}{paint(f'{word}:', style, has_colour(sys.stderr))} {first}", *(f"{indent}  {x}" for x in rest)]
    if where:
        out.append(f"{indent}  at {clean(where)}")
    return "\n".join([*out, *(f"{indent}  {x}" for x in remedy(hint))])


def remedy(hint: str) -> list[str]:
    """A hint as lines: "try: ...", or as it is where it is a question."""
    first, *rest = clean(hint, lines=True).strip().splitlines() or [""]
    if not first:
        return []
    return [first if first.startswith("did you mean") else f"try: {first}", *rest]


def _problem(problem: Problem) -> str:
    where = f"{clean(problem.where)}: " if problem.where else ""
    first, *rest = clean(problem.what, lines=True).strip().splitlines() or [""]
    return "\n".join([f"  {where}{first}", *(f"    {x}" for x in (*rest, *remedy(problem.hint)))])


def _bug(error: Exception, arguments: list[str]) -> int:
    import os
    import platform
    import tempfile
    import traceback
    from pathlib import Path

    import optkit

    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if f"{os.sep}optkit{os.sep}" in f.filename] or frames
    text = "\n".join(
        [
            f"optkit {optkit.__version__}, Python {platform.python_version()}, {platform.platform()}",
            f"arguments: {arguments!r}",
            "",
            "".join(traceback.format_exception(error)),
        ]
    )
    try:
        handle, name = tempfile.mkstemp(prefix="optkit-bug-", suffix=".txt", text=True)
        os.close(handle)
        Path(name).write_text(text, encoding="utf-8", errors="backslashreplace")
        hint = f"report it with {name}, which has the traceback"
    except OSError as problem:
        hint = f"free some space: the traceback could not be saved ({problem})"
    place = f"{ours[-1].filename}:{ours[-1].lineno}" if ours else ""
    click.echo(lines("error", f"this is a bug in optkit: {type(error).__name__}: {error}", place, hint), err=True)
    return BUG_EXIT_CODE


def _silence_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not complain as well."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
