"""The child process that does a run's heavy work: a step.json in, a result.json out.

It reads paths of step files from standard input, one per line, and answers on its original standard output with JSON
lines: {"progress": text, "fraction": f} while a task runs, {"done": path of result.json} after it. Whatever backends
print goes to standard error, which the parent keeps as a log. A step.json is the whole input of a task, so
`replay` repeats any of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from optkit.errors import OptkitError, StepError, UnavailableError, from_json

Say = Callable[[str, "float | None"], None]


def perform(step: dict[str, Any], say: Say) -> dict[str, Any]:
    """The result of one task as JSON data: {"ok": true, ...} or {"ok": false, "error": ...}. Never raises."""
    from optkit import tasks

    started = time.perf_counter()
    children = _children_peak()
    _reset_peak()
    try:
        result = tasks.TASKS[step["task"]](step, say)
        result = {"ok": True, **result}
    except OptkitError as error:
        result = {"ok": False, "error": error.to_json()}
    except MemoryError:
        result = {"ok": False, "error": StepError(
            "ran out of memory", hint="free memory, lower the batch (dims: opt) or use a smaller fit set").to_json()}
    except OSError as error:
        result = {"ok": False, "error": _os_error(error).to_json()}
    except ImportError as error:
        result = {"ok": False, "error": UnavailableError(
            f"a backend is broken: {type(error).__name__}: {error}", hint="optkit doctor", details=_trace()).to_json()}
    except Exception as error:  # the step boundary: whatever a backend throws fails this step and no other
        result = {"ok": False, "error": StepError(
            f"{type(error).__name__}: {_first_line(error)}", details=_trace(),
            hint="the details hold the backend's traceback").to_json()}
    result["seconds"] = time.perf_counter() - started
    result["peak_bytes"] = _peak(children)
    return result


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else "no message"


def _trace() -> str:
    return traceback.format_exc(limit=-12)


def _os_error(error: OSError) -> OptkitError:
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" (writing {error.filename})" if error.filename else ""
        return UnavailableError(f"no space left on the disk{where}",
                                hint="free space, or put the cache elsewhere with --cache DIR")
    return StepError(f"{type(error).__name__}: {error}", details=_trace(), hint="check the path and its permissions")


def _reset_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak(children_before: int) -> int | None:
    """Most resident bytes of this process since `_reset_peak`, or of a child that outgrew all earlier ones."""
    children = _children_peak()
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return max(int(line.split()[1]) * 1024, children if children > children_before else 0)
    return None


def _children_peak() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def main() -> None:
    """Serve tasks until standard input closes."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for line in sys.stdin:
        path = Path(line.rstrip("\n"))
        step = json.loads(path.read_text(encoding="utf-8"))
        result = perform(step, _teller(answers))
        target = path.with_name("result.json")
        temporary = path.with_name("result.tmp")
        try:
            temporary.write_text(json.dumps(result, allow_nan=False), encoding="utf-8")
            temporary.replace(target)
        except OSError as error:
            _answer(answers, {"failed": _os_error(error).to_json()})
            continue
        except ValueError as error:
            _answer(answers, {"failed": StepError(f"the task's result is no JSON data: {error}",
                                                  hint="a pass may return only finite numbers in its notes").to_json()})
            continue
        sys.stderr.flush()
        _answer(answers, {"done": str(target)})


def _teller(answers: IO[str]) -> Say:
    """Passes progress on, at most ten times a second, so that a tight loop may report each turn."""
    last = 0.0

    def say(text: str, fraction: float | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 0.1:
            last = now
            _answer(answers, {"progress": text, "fraction": fraction})

    return say


def _answer(stream: IO[str], message: dict[str, Any]) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


def _die_with_parent() -> None:
    """Ask Linux to end this process when its parent ends, however that happens."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def replay(step_json: Path, out: Path) -> dict[str, Any]:
    """Repeat a recorded task in a child process, its files going to the folder `out`. The result as JSON data.

    Raises UserError for a file that is no recorded task; the task's own failure is in the result.
    """
    from optkit.errors import UserError
    from optkit.pool import run_alone

    try:
        step = json.loads(step_json.read_text(encoding="utf-8"))
        step["task"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{step_json} is no recorded step: {error}", hint="a report's `replay` names them") from error
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise UserError(f"{out} is not empty", hint="name a new folder with --out")
    step["out"] = str(out.absolute())
    return run_alone(step, out.absolute().with_name(out.name + ".log"))


def raise_if_failed(result: dict[str, Any]) -> dict[str, Any]:
    """The result of a task that went well. Raises the error of one that did not."""
    if not result["ok"]:
        raise from_json(result["error"])
    return result


if __name__ == "__main__":
    main()
