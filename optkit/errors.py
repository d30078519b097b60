"""Every error optkit raises on purpose.

    OptkitError                 root: what happened, where, and one thing to try
    ├── UserError               the recipe, the command or the input is wrong          exit 2
    │   ├── RecipeError         planning found mistakes; carries all of them
    │   ├── SourceError         the source model cannot be used as the recipe says
    │   └── DataError           a dataset cannot be used as the recipe says
    ├── CheckError              a parity check or gate did not hold                     exit 1
    ├── StepError               a pass failed on valid input                            exit 3
    │   ├── StepCrashed         its process died (signal, out of memory)
    │   └── StepTimeout         it ran past its limit and was stopped
    └── UnavailableError        not installed, broken, or not on this machine           exit 4
        └── NotHereError        sound, but made for another machine than this one

Anything else that escapes is a bug in optkit, and the command line says so.

Every error has a code, that of its class unless it names a narrower one, which `optkit explain CODE` and
`explanations.toml` explain: its first digit is the exit code, its meaning never changes, and it is never used again.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True, order=True)
class Location:
    """A place in a file the user wrote; `line` and `column` count from 1."""

    file: Path
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        parts = [str(self.file)]
        if self.line is not None:
            parts.append(str(self.line))
            if self.column is not None:
                parts.append(str(self.column))
        return ":".join(parts)


@dataclass(frozen=True)
class Problem:
    """One mistake: what is wrong, where, and one thing to try."""

    what: str
    where: Location | None = None
    hint: str = ""
    code: str = "OPK-210"

    def __str__(self) -> str:
        prefix = f"{self.where}: " if self.where else ""
        return f"{prefix}{self.what}" + (f"\n  try: {self.hint}" if self.hint else "")


class OptkitError(Exception):
    """Root of all deliberate errors.

    `subject` is the recipe key the error is about ("data.fit", "model.weights", "inputs.image"), so that whoever
    holds the recipe can add file and line; `where` is the place itself once it is known.
    """

    exit_code: ClassVar[int] = 3
    code = "OPK-300"

    def __init__(
        self,
        what: str,
        *,
        hint: str = "",
        where: Location | None = None,
        subject: str = "",
        details: str = "",
        code: str = "",
    ) -> None:
        super().__init__(what)
        self.code = code or type(self).code
        self.what = what
        self.hint = hint
        self.where = where
        self.subject = subject
        self.details = details

    def __str__(self) -> str:
        return str(Problem(self.what, self.where, self.hint))

    def to_json(self) -> dict[str, Any]:
        """The error as JSON data, for the worker protocol and the report."""
        return {
            "class": type(self).__name__,
            "code": self.code,
            "what": self.what,
            "hint": self.hint,
            "subject": self.subject,
            "details": self.details,
            "where": str(self.where) if self.where else "",
        }


class UserError(OptkitError):
    """The recipe, the command or the input is wrong."""

    exit_code = 2
    code = "OPK-200"


class RecipeError(UserError):
    """Planning found mistakes; `problems` holds all of them, in file order."""

    code = "OPK-210"

    def __init__(self, problems: Sequence[Problem]) -> None:
        def place(problem: Problem) -> tuple[bool, str, int, int]:
            where = problem.where
            return (
                where is None,
                str(where.file) if where else "",
                *((where.line or 0, where.column or 0) if where else (0, 0)),
            )

        ordered = sorted(problems, key=place)
        self.problems: tuple[Problem, ...] = tuple(ordered)
        codes = {p.code for p in self.problems}
        super().__init__("\n".join(str(p) for p in self.problems), code=codes.pop() if len(codes) == 1 else "")

    def __str__(self) -> str:
        return self.what


class SourceError(UserError):
    """The source model cannot be loaded or does not have the inputs the recipe declares."""

    code = "OPK-220"


class DataError(UserError):
    """A dataset is missing, empty, or does not fit the model's inputs."""

    code = "OPK-230"


class CheckError(OptkitError):
    """A parity check did not hold. `report` is the whole `optkit.report.Report`."""

    exit_code = 1
    code = "OPK-100"
    report: Any = None


class StepError(OptkitError):
    """A pass failed on valid input."""

    exit_code = 3


class StepCrashed(StepError):
    """The process that ran the pass died; the message names the signal."""

    code = "OPK-301"


class StepTimeout(StepError):
    """The pass ran past its time limit and was stopped."""

    code = "OPK-302"


class UnavailableError(OptkitError):
    """Something is not installed, is broken, or is not available on this machine."""

    exit_code = 4
    code = "OPK-400"


class NotHereError(UnavailableError):
    """This machine cannot run it: no such device or driver, or another kind of them. Installing nothing mends that.

    A check that meets it while opening the artifact is `deferred`: the verdict is given on a machine that can.
    """

    code = "OPK-404"


_CLASSES: dict[str, type[OptkitError]] = {
    cls.__name__: cls
    for cls in (
        OptkitError,
        UserError,
        SourceError,
        DataError,
        CheckError,
        StepError,
        StepCrashed,
        StepTimeout,
        UnavailableError,
        NotHereError,
    )
}


def from_json(data: dict[str, Any]) -> OptkitError:
    """The error that `OptkitError.to_json` described; an unknown class becomes `StepError`."""
    cls = _CLASSES.get(data.get("class", ""), StepError)
    return cls(
        data["what"],
        hint=data.get("hint", ""),
        subject=data.get("subject", ""),
        details=data.get("details", ""),
        code=data.get("code", ""),
    )


def did_you_mean(word: str, known: Iterable[str], *, listing: bool = True) -> str:
    """A hint for a misspelt `word`: the nearest of `known`, or the list of them when none is near."""
    names = sorted(set(known))
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    if listing and names:
        shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        return f"one of: {shown}"
    return ""
