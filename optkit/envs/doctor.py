"""What of optkit's environment is installed, what is broken, and what it can run on.

Every package is imported in a child process of its own: a broken one may crash, hang or print.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import optkit
from optkit.cli.machine import machine
from optkit.cli.requirements import Wanted, meets, requirements, wanted

IMPORT_TIMEOUT_SECONDS = 120.0  # tensorflow's first import on a cold disk takes the better part of a minute

# What a package can say about the machine's devices: an expression over the imported module `m`.
_DEVICES = {
    "openvino": "{d: m.Core().get_property(d, 'FULL_DEVICE_NAME') for d in m.Core().available_devices}",
    "onnxruntime": "m.get_available_providers()",
    "torch": "[m.cuda.get_device_name(i) for i in range(m.cuda.device_count())] if m.cuda.is_available() else []",
}


# Importing Keras writes its settings into the home folder, and TensorFlow tells of GPUs that it did not find.
_QUIET = {"KERAS_HOME": os.devnull, "TF_CPP_MIN_LOG_LEVEL": "3"}


@dataclass(frozen=True)
class Found:
    """A distribution as it was found.

    status: "ok", "other version" (works, but optkit was tested with another), "broken" or "not installed".
    devices: what the package says it can run on. install: the line that puts it right, "" where nothing is wrong.
    """

    name: str
    extras: tuple[str, ...]
    base: bool
    expected: str
    version: str | None
    status: str
    error: str = ""
    install: str = ""
    devices: Any = None


def look_at(want: Wanted, python: str = sys.executable, timeout: float = IMPORT_TIMEOUT_SECONDS) -> Found:
    """Import one distribution in a child process and say how that went."""
    devices = _DEVICES.get(want.name, "None")
    code = (
        f"import importlib.metadata as i, json\n"
        f"try: v = i.version({want.name!r})\n"
        f"except i.PackageNotFoundError: v = None\n"
        f"print('OPTKIT ' + json.dumps(v), flush=True)\n"
        f"if v is not None:\n"
        f"    import {want.module} as m\n"
        f"    print('OPTKIT ' + json.dumps({devices}), flush=True)\n"
    )
    try:
        # -P: a file of the same name in the working directory is not what is meant.
        child = subprocess.run(
            [python, "-P", "-c", code],
            capture_output=True,
            text=True,
            timeout=timeout,
            errors="replace",
            stdin=subprocess.DEVNULL,
            env={**os.environ, **_QUIET},
            check=False,
        )
        out, problem = child.stdout, _problem(child.returncode, child.stderr)
    except subprocess.TimeoutExpired as late:
        out = (late.stdout or b"").decode(errors="replace") if isinstance(late.stdout, bytes) else late.stdout or ""
        problem = f"import {want.module} did not end within {timeout:g} s"
    answers = [json.loads(line.removeprefix("OPTKIT ")) for line in out.splitlines() if line.startswith("OPTKIT ")]
    version: str | None = answers[0] if answers else None
    if problem:
        status = "broken"
    elif version is None:
        status = "not installed"
    else:
        status = "ok" if meets(version, want.spec) else "other version"
    return Found(
        want.name,
        want.extras,
        want.base,
        want.spec,
        version,
        status,
        problem,
        _remedy(want, status),
        answers[1] if len(answers) > 1 else None,
    )


def _problem(code: int, stderr: str) -> str:
    if code == 0:
        return ""
    last = next((line.strip() for line in reversed(stderr.splitlines()) if line.strip()), "")
    if code < 0:
        import signal

        return f"its import died of {signal.Signals(-code).name}" + (f": {last}" if last else "")
    return last or f"its import ended with exit code {code}"


def _remedy(want: Wanted, status: str) -> str:
    if status == "ok":
        return ""
    if status == "broken":
        exact = want.spec if want.spec.startswith("==") else ""
        return f"pip install --force-reinstall {want.name}{exact}"
    if not want.extras:
        return f'pip install "{want.name}{want.spec}"' if want.spec else f"pip install {want.name}"
    return f'pip install "optkit[{want.name if want.name in want.extras else want.extras[0]}]"'


def examine(tell: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """The whole state as JSON data: {optkit, python, machine, cache, packages, environments, problems, ok}.

    `ok` is false, and `problems` says why, where something optkit itself needs is missing, broken or too old; a backend
    is needed only by who uses it. `tell` is given the name of each package as it is looked at, from two threads.
    """
    from concurrent.futures import ThreadPoolExecutor

    from optkit.caching.place import place_of, shown
    from optkit.envs.making import listing

    lines, python_spec = requirements()
    wants = wanted(lines)

    def look(want: Wanted) -> Found:
        tell(want.name)
        return look_at(want)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(look, wants))
    problems = [
        f"{f.name} is {f.status}, optkit needs {f.expected}: {f.install}" for f in found if f.base and f.status != "ok"
    ]
    if python_spec and not meets(platform.python_version(), python_spec):
        problems.append(f"Python {platform.python_version()} is outside {python_spec}")
    if not lines:
        problems.append("optkit's own metadata cannot be read: install it with pip")
    broken = plugin_problems()
    problems += broken
    environments = [] if broken else listing()
    place = place_of()
    root = place.root
    held = next(p for p in (root, *root.absolute().parents) if p.exists())
    return {
        "optkit": optkit.__version__,
        "python": {"version": platform.python_version(), "executable": sys.executable, "expected": python_spec},
        "machine": machine(),
        "cache": {
            "path": str(root),
            "free_bytes": shutil.disk_usage(held).free,
            "remote": shown(place.remote) if place.remote else None,
        },
        "packages": [asdict(f) for f in found],
        "environments": environments,
        "problems": problems,
        "ok": not problems,
    }


def unmet(report: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """What is missing or broken of the distributions, or else the extras, in `names`, each with its remedy.

    Raises UserError for a name optkit does not know.
    """
    from optkit.errors import UserError, did_you_mean

    missing = []
    for name in names:
        wanted_name = name.lower().replace("_", "-")
        chosen = [p for p in report["packages"] if p["name"] == wanted_name] or [
            p for p in report["packages"] if wanted_name in p["extras"]
        ]
        if not chosen:
            known = {word for p in report["packages"] for word in (p["name"], *p["extras"])}
            raise UserError(f"--require: optkit knows no package {name!r}", hint=did_you_mean(name, known))
        missing += [
            f"{p['name']} is {p['status']}" + (f" ({p['error']})" if p["error"] else "") + f": {p['install']}"
            for p in chosen
            if p["status"] in ("broken", "not installed")
        ]
    return missing


def plugin_problems() -> list[str]:
    """What is wrong with installed plug-ins; empty when every pass and runner loads."""
    from optkit.errors import OptkitError
    from optkit.registry import passes, runners

    found = []
    for load in (passes, runners):
        try:
            load()
        except OptkitError as error:
            found.append(f"{error.what}: {error.hint}")
    return found
