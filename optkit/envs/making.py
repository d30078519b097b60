"""How an environment of its own is made, listed and removed (see `optkit.envs.environments`).

What the running environment has at the very version that is pinned is hard-linked from there, copied where it lies on
another disk; the rest is installed with pip, each package alone (`--no-deps`), as the pins are complete.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from optkit.disk import disk_error
from optkit.envs import environments
from optkit.envs.environments import MARKER, VARIABLE, Environment
from optkit.errors import OptkitError, UnavailableError

Tell = Callable[[str], None]

# Settings of a user's pip that send packages elsewhere.
_PIP_ELSEWHERE = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_REQUIRE_VIRTUALENV", "PIP_CONSTRAINT",
                  "PIP_REQUIREMENT", "PIP_PYTHON", "PYTHONPATH", "PYTHONHOME")  # fmt: skip


def create(name: str, tell: Tell = lambda text: None, *, again: bool = False) -> dict[str, Any]:
    """Make an environment, unless it is there. Returns its path, and how many packages were linked and installed.

    again: make it anew even where it is usable. Two processes may do this at once: one makes it, the other waits.
    Raises UserError for an unknown name, UnavailableError where it cannot be made; nothing half-made is left then.
    """
    environment = environments.find(name)
    try:
        with _alone(environment, tell):
            if not again and not environment.problem:
                return _result(environment, made=False)
            _delete(environment.folder)
            try:
                return _make(environment, tell)
            except BaseException:
                _delete(environment.folder)
                raise
    except OSError as error:
        raise disk_error(error, [_place(environment)]) or UnavailableError(
            f"the environment {name} cannot be made in {environment.folder.parent}: {error.strerror or error}",
            hint=f"name another folder with {VARIABLE}",
        ) from error


def remove(name: str) -> list[Path]:
    """Remove an environment, with those of its name that other versions made. Returns the folders that are gone."""
    environment = environments.find(name)
    gone = []
    try:
        with _alone(environment, lambda text: None):
            for folder in sorted(environment.folder.parent.glob(f"{name}-*")):
                if folder.is_dir() and re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{12}}", folder.name):
                    _delete(folder)
                    gone.append(folder)
    except OSError as error:
        raise UnavailableError(f"{environment.folder.parent} cannot be changed: {error.strerror or error}",
                               hint="check who owns it") from error  # fmt: skip
    return gone


def listing() -> list[dict[str, Any]]:
    """Every environment optkit knows: name, summary, path, what is wrong with it and what wants it."""
    from optkit.registry import passes

    rows = []
    for name in environments.known():
        found = environments.find(name)
        wanted = sorted(p.name for p in passes().values() if p.environment == name)
        rows.append({"name": name, "summary": found.summary, "path": str(found.folder), "wanted_by": wanted,
                     "status": "ok" if not found.problem else found.problem, "create": found.remedy})  # fmt: skip
    return rows


def _result(environment: Environment, made: bool, linked: int = 0, installed: int = 0) -> dict[str, Any]:
    return {"name": environment.name, "path": str(environment.folder), "python": str(environment.python), "made": made,
            "linked": linked, "installed": installed}  # fmt: skip


def _make(environment: Environment, tell: Tell) -> dict[str, Any]:
    tell("making a virtual environment")
    _venv(environment)
    missing = []
    for name, version in environment.pins.items():
        if not _borrow(name, version, environment.packages):
            missing.append(f"{name}=={version}")
    linked = len(environment.pins) - len(missing)
    if linked:
        tell(f"{linked} packages taken over from {sys.prefix}")
    if missing:
        tell(f"installing {len(missing)} packages with pip")
        _install(environment, missing, tell)
    _prove(environment, tell)
    text = json.dumps({"name": environment.name, "python": sys.version.split()[0], "pins": dict(environment.pins)})
    half = environment.folder / f"{MARKER}.tmp"
    half.write_text(text, encoding="utf-8")
    half.replace(environment.folder / MARKER)
    return _result(environment, True, linked, len(missing))


def _venv(environment: Environment) -> None:
    environment.folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-P", "-m", "venv", "--without-pip", str(environment.folder)]
    done = _run(command)
    if done.returncode == 0:
        return
    said = done.stdout.strip()
    if "No module named" in said:
        raise UnavailableError(f"{sys.executable} has no module venv", details=said,
                               hint="install it: apt install python3-venv on Debian and Ubuntu")  # fmt: skip
    raise _failed(environment, f"python -m venv failed: {_last(said)}", said)


def _borrow(name: str, version: str, packages: Path) -> bool:
    """Link a distribution of the running environment into `packages`; False where it is not there as pip left it."""
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    files = found.files
    if found.version != version or not files or found.read_text("direct_url.json") or not found.read_text("RECORD"):
        return False
    pairs = []
    for file in files:
        if ".." in file.parts or file.is_absolute():
            continue  # a script: nobody calls it in there
        source = Path(str(found.locate_file(file)))
        try:
            size = source.stat().st_size
        except OSError:
            if file.suffix == ".pyc":
                continue
            return False
        if file.size is not None and file.size != size:
            return False  # somebody changed it
        pairs.append((source, packages / file))
    for folder in {target.parent for _, target in pairs}:
        folder.mkdir(parents=True, exist_ok=True)
    for source, target in pairs:
        try:
            os.link(source, target)
        except FileExistsError:
            continue  # of a namespace package
        except OSError:  # another disk, or one without links
            shutil.copy2(source, target)
    return True


def _install(environment: Environment, pins: list[str], tell: Tell) -> None:
    target = environment.python
    command = [sys.executable, "-P", "-m", "pip", "--python", str(target)]
    # Not importlib.util's search: setuptools hooks into it, and warns when it is asked for pip.
    if PathFinder.find_spec("pip") is None:
        done = _run([str(target), "-P", "-m", "ensurepip"])
        if done.returncode != 0:
            raise UnavailableError("there is no pip in this environment", details=done.stdout,
                                   hint=f"{sys.executable} -m ensurepip")  # fmt: skip
        command = [str(target), "-P", "-m", "pip"]
    # The backends' own pins conflict and some are for another Python: ours are complete, and tested together.
    command += ["install", "--no-deps", "--ignore-requires-python", "--no-input", "--disable-pip-version-check",
                "--progress-bar", "off", "--no-warn-script-location", *pins]  # fmt: skip
    said: list[str] = []
    env = {key: value for key, value in os.environ.items() if key not in _PIP_ELSEWHERE}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                          stdin=subprocess.DEVNULL, env=env) as pip:  # fmt: skip
        try:
            assert pip.stdout is not None
            for line in pip.stdout:
                said.append(line)
                if match := re.match(r"\s*(Collecting|Downloading|Using cached|Installing collected) (\S+)", line):
                    tell("installing" if match[1] == "Installing collected" else f"{match[1].lower()} {match[2]}")
        except BaseException:
            pip.kill()
            raise
    if pip.returncode != 0:
        raise pip_error(environment, "".join(said))


def pip_error(environment: Environment, said: str) -> OptkitError:
    """What pip's output means: no network, a full disk, a package that is not there for this Python."""
    # pip reports a dead network line by line and then concludes that there is no such package.
    network = re.search(
        r"NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|Read timed out|ProxyError|SSLError|"
        r"Connection (refused|reset|aborted|broken)|Temporary failure in name resolution|Network is unreachable", said,
    )  # fmt: skip
    if network:
        return UnavailableError(
            f"the package index cannot be reached, so the environment {environment.name} cannot be made",
            hint="connect to the network; or pip download --no-deps the pins elsewhere, then set PIP_NO_INDEX=1 and "
            "PIP_FIND_LINKS to that folder",
            details=said,
        )
    if re.search(r"No space left on device|Disk quota exceeded", said):
        return UnavailableError(
            f"no space left on the disk of {environment.folder.parent}, or of the temporary files",
            hint=f"free some space, or use another disk with {VARIABLE} or TMPDIR", details=said,
        )  # fmt: skip
    if match := re.search(r"No matching distribution found for (\S+)", said):
        return UnavailableError(
            f"the package index has no {match[1]} for Python {sys.version_info.major}.{sys.version_info.minor} on this "
            "machine",
            hint="check the network and pip's settings (pip config list), or use Python 3.11 on x86-64 or arm64",
            details=said,
        )
    return _failed(environment, f"pip failed: {_last(said)}", said)


def _prove(environment: Environment, tell: Tell) -> None:
    """Compare what is installed with the pins, and import it. Raises UnavailableError."""
    tell("trying it")
    found = environments.installed(environment)
    wrong = [n for n, version in environment.pins.items() if found.get(environments.canonical(n)) != version]
    if wrong:
        has = found.get(environments.canonical(wrong[0]), "nothing")
        raise _failed(environment, f"it has {has} of {wrong[0]}, not {environment.pins[wrong[0]]}")
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = _run([str(environment.python), "-P", "-c", f"import {', '.join(environment.imports)}"], env)
    if done.returncode != 0:
        raise _failed(environment, f"it does not work: {_last(done.stdout)}", done.stdout)


def _run(command: list[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                          stdin=subprocess.DEVNULL, check=False, env=env)  # fmt: skip


def _failed(environment: Environment, why: str, details: str = "") -> UnavailableError:
    if "Errno 28" in details or "Errno 122" in details:
        why = f"no space left on the disk of {environment.folder.parent}"
    return UnavailableError(f"the environment {environment.name} could not be made: {why}", details=details,
                            hint="the details hold what the tool said; then try again")  # fmt: skip


def _last(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines or ["it said nothing"])[-1][:300]


def _place(environment: Environment) -> tuple[str, Path, str]:
    return "the environments", environment.folder.parent, f"{VARIABLE}=DIR"


def _delete(folder: Path) -> None:
    """Remove a folder, its marker first: what is left by a kill in between is plainly not whole."""
    with contextlib.suppress(FileNotFoundError):
        (folder / MARKER).unlink()
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)


@contextlib.contextmanager
def _alone(environment: Environment, tell: Tell) -> Iterator[None]:
    """Hold the lock of an environment's folder; wait where another process does."""
    environment.folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows: two at once are the user's to avoid
        yield
        return
    with (environment.folder.parent / f".{environment.name}.lock").open("w", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("waiting for another process that makes or removes it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            tell("this file system has no locks: make environments one at a time")
        yield
