"""A recipe's lock: the versions that its plan is made with, so that another machine can refuse to make it with others.

`recipe.lock.json` beside the recipe holds the version of every distribution that decides a result or runs a check, here
and in the environments of steps that run elsewhere, this optkit's, the Python, the platform, and digests of what the
recipe means. Comments, order of keys and formatting are no part of that; nor are the files that a recipe names: their
digests are in the report. The same plan in the same environment gives the same bytes.
"""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optkit
from optkit.artifact import digest_of
from optkit.caching import keys
from optkit.errors import UnavailableError, UserError
from optkit.planning import Plan, Step
from optkit.registry import get_runner
from optkit.report import write_atomically
from optkit.spec.dataspec import tools as data_tools

SCHEMA = 1

Versions = Mapping[str, str | None]


@dataclass(frozen=True)
class Lock:
    """What a lock file holds.

    python: implementation and minor version ("CPython 3.11"); patch releases give the same results. platform: system
    and machine ("Linux x86_64"). parts: digest by part of the recipe ("model", "data.fit", "steps.int8").
    tools: distribution to version in optkit's own environment. environments: the same by the name of an environment
    that optkit makes. interpreters: the same by a step's `python:` as the recipe writes it.
    """

    optkit: str
    python: str
    platform: str
    parts: Mapping[str, str]
    tools: Versions
    environments: Mapping[str, Versions]
    interpreters: Mapping[str, Versions]

    @property
    def digest(self) -> str:
        """The digest of the recipe's meaning."""
        return digest_of(self.parts)

    def to_text(self) -> str:
        """The file's text; its last key is a digest over all others, so that an edit by hand or a merge shows."""
        data = {
            "schema": SCHEMA, "optkit": self.optkit, "python": self.python, "platform": self.platform,
            "recipe": {"digest": self.digest, "parts": dict(sorted(self.parts.items()))},
            "tools": dict(sorted(self.tools.items())),
            "environments": {name: dict(sorted(found.items())) for name, found in sorted(self.environments.items())},
            "interpreters": {name: dict(sorted(found.items())) for name, found in sorted(self.interpreters.items())},
        }  # fmt: skip
        return json.dumps({**data, "digest": digest_of(data)}, indent=1, ensure_ascii=False) + "\n"


def lock_path(recipe: str | Path) -> Path:
    """Where a recipe's lock lies unless it is told otherwise: digits.yaml has digits.lock.json beside it."""
    return Path(recipe).with_suffix(".lock.json")


def lock_of(plan: Plan) -> Lock:
    """The lock of a plan in this environment; distributions that are not here are None."""
    recipe, names = plan.recipe, {"numpy", *keys.source_tools(plan.recipe)}
    for spec in recipe.data.values():
        names |= set(data_tools(spec))
    elsewhere: dict[str, tuple[str, set[str]]] = {}
    environments: dict[str, tuple[str, set[str]]] = {}
    written = {step.id: step.python for step in recipe.steps if step.python}
    for step in plan.steps:
        names |= set(get_runner(step.use.target).tools)
        if step.python is None:
            names |= {*step.use.tools, *keys.tried_tools(step)}
        else:
            group = elsewhere if step.environment is None else environments
            name = step.environment or written.get(step.id, step.python)
            group.setdefault(name, (step.python, set()))[1].update(step.use.tools)
    return Lock(
        optkit.__version__,
        f"{platform.python_implementation()} {sys.version_info.major}.{sys.version_info.minor}",
        f"{platform.system()} {platform.machine()}",
        dict(_parts(plan)),
        keys.versions(names),
        {name: keys.versions(tools, python) for name, (python, tools) in environments.items()},
        {name: keys.versions(tools, python) for name, (python, tools) in elsewhere.items()},
    )


def _parts(plan: Plan) -> Iterator[tuple[str, str]]:
    """What a recipe means, part by part; steps as planning resolved them, the implied ones too."""
    for key, value in plan.recipe.document.data.items():
        if key == "data" and isinstance(value, Mapping):
            yield from ((f"data.{name}", _seal(entry)) for name, entry in value.items())
        elif key != "steps":
            yield key, _seal(value)
    for step in plan.steps:
        yield f"steps.{step.id}", digest_of(_meaning(plan, step))


def _seal(value: Any) -> str:
    """The digest of what YAML may hold: dates and infinities too."""
    return digest_of(json.dumps(value, sort_keys=True, default=str))


def _meaning(plan: Plan, step: Step) -> list[Any]:
    written = {spec.id: spec.python for spec in plan.recipe.steps}
    check = step.check
    return [
        step.use.name, step.use.version, step.options_json(), step.parent, step.data, step.on_target, list(step.must),
        step.timeout_seconds, step.environment, written.get(step.id),
        [[str(b) for b in check.bounds], check.precision, check.waived],
    ]  # fmt: skip


def write_lock(plan: Plan, path: Path) -> Lock:
    """Lock a plan to what is installed here. Raises UnavailableError for anything the plan needs that is not."""
    keys.require_tools(plan)
    lock = lock_of(plan)
    write_atomically(path, lock.to_text())
    return lock


def read_lock(path: Path, recipe: str | Path) -> Lock:
    """The lock in a file. Raises UserError when there is none, or it is damaged or of another schema."""
    again = f"optkit lock {shlex.quote(str(recipe))}"
    if path != lock_path(recipe):
        again += f" --to {shlex.quote(str(path))}"
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"there is no lock {path}", hint=again, code="OPK-241") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the lock {path} cannot be read: {error}", hint=again, code="OPK-242") from error
    try:
        data = json.loads(text)
        schema, seal = data["schema"], data.pop("digest")
        if schema == SCHEMA and digest_of(data) != seal:
            raise ValueError("its content is not what optkit wrote")
        if schema == SCHEMA:
            return Lock(
                data["optkit"], data["python"], data["platform"], data["recipe"]["parts"], data["tools"],
                data["environments"], data["interpreters"],
            )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(f"the lock {path} is damaged: {reason}", hint=again, code="OPK-242") from error
    raise UserError(f"the lock {path} has schema {schema}; this optkit reads {SCHEMA}", hint=again, code="OPK-242")


def require_lock(plan: Plan, recipe: str | Path, path: Path | None = None) -> None:
    """Return if a plan is what its lock says, in the environment that it says.

    recipe: the recipe's file. path: the lock's, where it is not beside it. A plan cut to some steps is held to the part
    of the lock that they need.
    Raises UserError when there is no lock, it is damaged, or the recipe has changed since; UnavailableError, with the
    commands that mend it, when versions differ.
    """
    path = path or lock_path(recipe)
    locked, now = read_lock(path, recipe), lock_of(plan)
    again = f"optkit lock {shlex.quote(str(recipe))}" + (
        "" if path == lock_path(recipe) else f" --to {shlex.quote(str(path))}"
    )
    if changes := _changes(locked, now, cut=bool(plan.chosen)):
        raise UserError(
            f"the recipe is not the one that {path} locked: {', '.join(changes)}",
            hint=f"look at that, then {again}",
            code="OPK-243",
        )
    if problems := list(_differences(locked, now, plan)):
        whats = "; ".join(what for what, _ in problems)
        remedies = list(dict.fromkeys(remedy for _, remedy in problems if remedy))
        hint = "\n".join(remedies) if remedies else f"run it where the lock was made, or lock it here: {again}"
        raise UnavailableError(f"this is not what {path} locked: {whats}", hint=hint, code="OPK-406")


def _changes(locked: Lock, now: Lock, *, cut: bool) -> list[str]:
    """What of the recipe is no longer as it was locked."""
    found = [f"{part} is new" for part in now.parts if part not in locked.parts]
    found += [f"{part} changed" for part, seal in now.parts.items() if locked.parts.get(part, seal) != seal]
    if not cut:
        found += [f"{part} is gone" for part in locked.parts if part not in now.parts]
    return found


def _differences(locked: Lock, now: Lock, plan: Plan) -> Iterator[tuple[str, str]]:
    """What differs in the environment, and the command that mends it; "" where no command does."""
    if now.python != locked.python:
        yield f"Python is {now.python}, locked is {locked.python}", ""
    if now.platform != locked.platform:
        yield f"the platform is {now.platform}, locked is {locked.platform}", ""
    mine = {"optkit": now.optkit, **now.tools}
    yield from _group("", "pip", {"optkit": locked.optkit, **locked.tools}, mine)
    for name, found in now.environments.items():
        told = locked.environments.get(name, {})
        yield from ((what, f"optkit env create --again {name}")
                    for what, _ in _group(f" in the environment {name}", "pip", told, found))  # fmt: skip
    paths = {spec.python: step.python for step in plan.steps for spec in plan.recipe.steps if spec.id == step.id}
    for name, found in now.interpreters.items():
        python = paths.get(name) or name
        yield from _group(f" in {name}", f"{shlex.quote(python)} -m pip", locked.interpreters.get(name, {}), found)


def _group(where: str, pip: str, locked: Versions, now: Versions) -> list[tuple[str, str]]:
    """The distributions of one environment whose versions differ, all with one line that installs them."""
    wrong = {tool: version for tool, version in now.items() if locked.get(tool) != version}
    pins = [f"{tool}=={locked[tool]}" for tool in sorted(wrong) if locked.get(tool)]
    remedy = f"{pip} install {' '.join(map(shlex.quote, pins))}" if pins else ""
    return [
        (f"{tool}{where} is {wrong[tool] or 'not installed'}, locked is {locked.get(tool) or 'none'}", remedy)
        for tool in sorted(wrong)
    ]
