"""What optkit's own metadata says it needs, without a backend or a parser of requirements."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# Where the import name is not the distribution's with "_" for "-".
_MODULES = {"pillow": "PIL", "pyyaml": "yaml", "scikit-learn": "sklearn", "tensorflow-cpu": "tensorflow"}

# Not among optkit's extras, but used where they are there.
_OTHERS = ("tensorflow", "tensorrt")


@dataclass(frozen=True)
class Wanted:
    """A distribution optkit knows. `spec`: the versions wanted, as in "==1.23.2".

    extras: those of optkit's extras that bring it; empty for what optkit only uses where it is there. base: optkit
    itself needs it.
    """

    name: str
    spec: str
    extras: tuple[str, ...] = ()
    base: bool = False

    @property
    def module(self) -> str:
        """The name to import."""
        return _MODULES.get(self.name, self.name.replace("-", "_"))


def _pyproject() -> dict[str, Any]:
    import tomllib

    file = Path(__file__).resolve().parents[2] / "pyproject.toml"
    try:
        project: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    except (OSError, KeyError, ValueError):
        return {}
    return project if project.get("name") == "optkit" else {}


def requirements() -> tuple[list[str], str]:
    """optkit's own requirements as PEP 508 lines, extras marked, and the Python versions it supports."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        data = metadata("optkit")
        return list(data.get_all("Requires-Dist") or []), str(data["Requires-Python"] or "")
    except PackageNotFoundError:
        project = _pyproject()
        lines = list(project.get("dependencies", []))
        for extra, items in project.get("optional-dependencies", {}).items():
            lines += [f'{item}; extra == "{extra}"' for item in items]
        return lines, str(project.get("requires-python", ""))


def wanted(lines: Iterable[str]) -> list[Wanted]:
    """The distributions in requirement lines, base ones first; those of the extras `dev` and `demo` are left out."""
    made: dict[str, Wanted] = {}
    leave_out = ("dev", "demo", "all")
    for line in lines:
        match = re.fullmatch(r"\s*([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*\(?([^;()]*)\)?\s*(?:;(.*))?", line)
        if match is None:
            continue
        name, spec, marker = match[1].lower().replace("_", "-"), match[2].strip(), match[3] or ""
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", marker)
        in_extra = extra[1] if extra else ""
        if name == "optkit" or in_extra in leave_out:
            continue
        if name in made:
            made[name] = replace(made[name], extras=(*made[name].extras, in_extra))
        else:
            made[name] = Wanted(name, spec, (in_extra,) if in_extra else (), base=not in_extra)
    return sorted(made.values(), key=lambda w: not w.base) + [Wanted(name, "") for name in _OTHERS]


def meets(version: str, spec: str) -> bool:
    """Whether a version is inside a specifier such as ">=2.10,<3"; a local part ("+cpu") does not count."""
    mine = _numbers(version.partition("+")[0])
    for part in filter(None, (p.strip() for p in spec.split(","))):
        op, text = re.fullmatch(r"(==|>=|<=|<|>|!=|~=)?\s*(.*)", part).groups()  # type: ignore[union-attr]
        other = _numbers(text)
        held = {
            "==": mine == other,
            ">=": mine >= other,
            "<=": mine <= other,
            "<": mine < other,
            ">": mine > other,
            "!=": mine != other,
            "~=": mine >= other and mine[: len(other) - 1] == other[:-1],
        }
        if not held[op or "=="]:
            return False
    return True


def _numbers(text: str) -> tuple[int, ...]:
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
