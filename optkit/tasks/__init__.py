"""What a worker can be asked to do. Each task takes its step.json as data and returns JSON data.

Common keys: `artifact` (what it works on), `inputs`, `outputs`, `dims`, `datasets` and `base` (specs, and the folder
their paths start from), `seed`, `threads`, `device`, `out` (an empty folder for files).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from optkit.tasks.checking import blame, check, verify
from optkit.tasks.common import Data, Say
from optkit.tasks.groundwork import data, record, source
from optkit.tasks.making import run
from optkit.tasks.timing import race


def warm(step: Data, say: Say) -> Data:
    """Import modules ahead of the tasks that need them. A module that fails to import is left to its own task."""
    for name in step["modules"]:
        try:
            importlib.import_module(name)
        except Exception:  # reported, with a remedy, by the step that needs it
            continue
    return {}


def lint(step: Data, say: Say) -> Data:
    """What a target refuses of an ONNX file."""
    from optkit.lints.linting import look

    return look(Path(step["path"]), step["target"])


TASKS: dict[str, Callable[[Data, Say], Data]] = {
    "warm": warm, "source": source, "data": data, "record": record, "run": run, "check": check, "verify": verify,
    "race": race, "lint": lint, "blame": blame,
}  # fmt: skip
