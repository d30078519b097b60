"""Errors as the user sees them: what happened, where, one thing to try; never a traceback."""

from __future__ import annotations

import sys

import click

from optkit.cli.text import clean, has_colour, paint, silence, tell
from optkit.errors import OptkitError, Problem, RecipeError, UnavailableError
from optkit.report import INTERRUPTED

BUG_CODE, COMMAND_LINE_CODE = "OPK-700", "OPK-201"
BUG_EXIT_CODE = 70  # EX_SOFTWARE of sysexits.h


def show(error: BaseException, arguments: list[str]) -> int:
    """Print an error that ended a command on stderr; returns the exit code it deserves."""
    from optkit import cli

    if isinstance(error, OptkitError):
        tell(describe(error))
        return error.exit_code
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        tell(error.ctx.get_help() if error.ctx else "")
        return error.exit_code
    if isinstance(error, click.UsageError):
        hint = f"{error.ctx.command_path} --help" if error.ctx else "optkit --help"
        tell(lines("error", error.format_message(), "", hint, code=COMMAND_LINE_CODE))
        return error.exit_code
    if isinstance(error, click.ClickException):
        tell(lines("error", error.format_message(), "", "", code=COMMAND_LINE_CODE))
        return 2
    if isinstance(error, KeyboardInterrupt | click.Abort) or (cli.interrupted and isinstance(error, Exception)):
        tell("interrupted")
        return INTERRUPTED
    if known := _of_the_system(error):
        silence(sys.stdout)
        tell(describe(known))
        return known.exit_code
    if not isinstance(error, Exception):
        raise error
    return _bug(error, arguments)


def _of_the_system(error: BaseException) -> OptkitError | None:
    """What the machine, not optkit, is to blame for; None for anything else."""
    import errno

    if isinstance(error, UnicodeEncodeError) and sys.getfilesystemencoding().lower() != "utf-8":
        what = f"a path has characters that this locale's encoding, {sys.getfilesystemencoding()}, does not have"
        return UnavailableError(what, hint="PYTHONUTF8=1 optkit ..., or a UTF-8 locale", code="OPK-407")
    faults = ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "EMFILE", "ENFILE", "EBADF", "ENOMEM")
    if isinstance(error, OSError) and error.errno in {getattr(errno, name, None) for name in faults}:
        place = error.filename2 or error.filename
        what = (error.strerror or str(error)) + (f": {place}" if place else " (writing the output)")
        return UnavailableError(
            what[:1].lower() + what[1:], hint="free some space, or check the permissions there", code="OPK-405"
        )
    return None


def describe(error: OptkitError) -> str:
    """An error as lines: `error: what`, then where, then one thing to try. Last comes its code.

    A RecipeError gives all its problems.
    """
    if not isinstance(error, RecipeError):
        return lines("error", error.what, str(error.where or ""), error.hint, code=error.code)
    if len(error.problems) == 1:
        (problem,) = error.problems
        return lines("error", problem.what, str(problem.where or ""), problem.hint, code=problem.code)
    head = paint("error:", "bad", has_colour(sys.stderr))
    codes = dict.fromkeys(p.code for p in error.problems)
    told = (_problem(p) for p in error.problems)
    return "\n".join([f"{head} {len(error.problems)} problems", *told, f"  {why(*codes)}"])


def why(*codes: str) -> str:
    """The command that explains errors of these codes, as the last line about them."""
    return f"why: optkit explain {' '.join(codes)}"


def lines(word: str, what: str, where: str, hint: str, *, code: str = "") -> str:
    """The lines of one error. Control characters in them are shown as escapes."""
    style = {"error": "bad", "warning": "warn"}.get(word, "bold")
    first, *rest = clean(what, lines=True).strip().splitlines() or [""]
    out = [f"{paint(f'{word}:', style, has_colour(sys.stderr))} {first}", *(f"  {x}" for x in rest)]
    if where:
        out.append(f"  at {clean(where)}")
    return "\n".join([*out, *(f"  {x}" for x in remedy(hint)), *([f"  {why(code)}"] if code else [])])


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
    tell(lines("error", f"this is a bug in optkit: {type(error).__name__}: {error}", place, hint, code=BUG_CODE))
    return BUG_EXIT_CODE
