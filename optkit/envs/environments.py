"""Environments of their own for backends whose pins conflict with the rest: where they are, and what is in them.

Each is a file `optkit/envs/NAME.txt` of exact pins, all of them (nothing is resolved), and a folder `NAME-DIGEST` made
from it by `optkit env create NAME` (see `optkit.envs.making`). The digest is of the pins, the Python version and
the machine, so another optkit or Python makes another folder. A folder is whole when `environment.json` is in it, which
is written last.

They lie in $OPTKIT_ENVIRONMENTS; else in `optkit-environments` of the virtual environment that optkit runs in, where
that folder is there; else in `optkit-environments` beside the default cache.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from optkit.artifact import digest_of
from optkit.errors import UnavailableError, UserError, did_you_mean

FOLDER = "optkit-environments"
VARIABLE = "OPTKIT_ENVIRONMENTS"
MARKER = "environment.json"

_PINS = Path(__file__).parent


@dataclass(frozen=True)
class Environment:
    """An environment as this optkit and this Python would have it, whether it is there or not.

    pins: distribution to version. imports: modules that must import in it. folder: where it is, or would be.
    """

    name: str
    summary: str
    pins: Mapping[str, str]
    imports: tuple[str, ...]
    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def packages(self) -> Path:
        """Its site-packages."""
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self.folder / ("Lib/site-packages" if os.name == "nt" else f"lib/{version}/site-packages")

    @property
    def problem(self) -> str:
        """Why it cannot be used ("is not there", "is half made", "is broken: ..."), or ""."""
        if not self.folder.is_dir():
            return "is not there"
        try:
            json.loads((self.folder / MARKER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return "is half made"
        if not os.access(self.python, os.X_OK):
            return f"is broken: its interpreter {self.python} is gone"
        found = installed(self)
        wrong = [name for name, version in self.pins.items() if found.get(canonical(name)) != version]
        return f"is broken: {wrong[0]} {self.pins[wrong[0]]} is not in it any more" if wrong else ""

    @property
    def remedy(self) -> str:
        """The command that makes it usable."""
        return f"optkit env create {self.name}"


@functools.cache
def known() -> tuple[str, ...]:
    """The names of all environments that this optkit can make."""
    return tuple(sorted(path.stem for path in _PINS.glob("*.txt")))


def find(name: str) -> Environment:
    """The environment of that name. Raises UserError with the nearest name."""
    if name not in known():
        raise UserError(f"there is no environment {name!r}", hint=did_you_mean(name, known()))
    summary, pins, imports = _read(name)
    made_for = [sorted(pins.items()), sys.version_info[:2], sys.platform, platform.machine()]
    return Environment(name, summary, pins, imports, root() / f"{name}-{digest_of(made_for)[:12]}")


def require(name: str) -> Environment:
    """The environment of that name, usable. Raises UserError for an unknown one, UnavailableError with the remedy."""
    environment = find(name)
    if problem := environment.problem:
        raise UnavailableError(f"the environment {name} {problem}", hint=environment.remedy, code="OPK-403")
    return environment


@functools.cache
def _read(name: str) -> tuple[str, dict[str, str], tuple[str, ...]]:
    text = (_PINS / f"{name}.txt").read_text(encoding="utf-8")
    said = dict(re.findall(r"^# (summary|imports): (.+)$", text, re.MULTILINE))
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE))
    return said.get("summary", ""), pins, tuple(said.get("imports", "").split(", "))


def root() -> Path:
    """The folder that environments lie in. Raises UnavailableError without a home."""
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser().absolute()
    own = Path(sys.prefix) / FOLDER
    if own.is_dir():
        return own
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / FOLDER
    except RuntimeError as error:
        hint = f"name one with {VARIABLE}"
        raise UnavailableError(f"there is no place for environments: {error}", hint=hint) from error


def of(python: str | Path) -> Environment | None:
    """The environment whose interpreter this is, or None."""
    try:
        made = (find(name) for name in known())
        return next((e for e in made if e.python == Path(python)), None)
    except UnavailableError:
        return None


def installed(environment: Environment) -> dict[str, str]:
    """Version by canonical name of every distribution in an environment, read without starting its interpreter."""
    found = {}
    with contextlib.suppress(OSError):
        for entry in os.scandir(environment.packages):
            if match := re.fullmatch(r"(.+)-([^-]+)\.dist-info", entry.name):
                found[canonical(match[1])] = match[2]
    return found


def versions(environment: Environment, tools: Iterable[str]) -> dict[str, str | None]:
    """The version of each distribution in an environment, None for what it lacks."""
    found = installed(environment)
    return {tool: found.get(canonical(tool)) for tool in tools}


def running() -> str | None:
    """The name of the environment that this process runs in, None in optkit's own."""
    try:
        found: str = json.loads((Path(sys.prefix) / MARKER).read_text(encoding="utf-8"))["name"]
    except (OSError, ValueError, KeyError):
        return None
    return found


def canonical(name: str) -> str:
    """A distribution's name as all its spellings have it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def remedy_for(python: str) -> str:
    """What to do about an interpreter that cannot be used."""
    environment = of(python)
    return environment.remedy if environment else "check `python:` on the step"
