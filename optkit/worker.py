"""The child process that does a run's heavy work: a step.json in, a result.json out.

It reads paths of step files from standard input, one JSON string per line, and answers on its original standard output
with JSON lines: {"progress": text, "fraction": f} while a task runs, {"done": path of result.json} after it. What
backends print goes to standard error, which the parent keeps as a log; what they read is empty. A step.json is the
whole input of a task, so `replay` repeats any of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from optkit.disk import Place, disk_error, temporary_files
from optkit.errors import OptkitError, StepError, UnavailableError, UserError, from_json

Say = Callable[[str, "float | None"], None]


def perform(step: dict[str, Any], say: Say) -> dict[str, Any]:
    """The result of one task as JSON data: {"ok": true, ...} or {"ok": false, "error": ...}. Never raises."""
    started = time.perf_counter()
    children = _children_peak()
    _reset_peak()
    try:
        result = {"ok": True, **_task(step["task"])(step, say)}
    except BaseException as error:  # the step boundary: whatever a backend throws fails this step and no other
        result = {"ok": False, "error": explained(error, step).to_json()}
    result["seconds"] = time.perf_counter() - started
    result["peak_bytes"] = _peak(children)
    return result


def _task(name: str) -> Callable[[dict[str, Any], Say], dict[str, Any]]:
    try:
        from optkit.tasks import TASKS
    except ImportError as error:
        what = f"the interpreter {sys.executable} lacks what optkit itself needs: {error}"
        raise UnavailableError(what, hint=f"{sys.executable} -m pip install numpy pydantic PyYAML") from error
    return TASKS[name]


def explained(error: BaseException, step: dict[str, Any]) -> OptkitError:
    """An exception, caught right now, as one of optkit's; the task's step.json says where it writes."""
    if isinstance(error, OptkitError):
        return error
    if isinstance(error, MemoryError):
        hint = "free memory, lower the batch (dims: opt) or use a smaller fit set"
        return StepError("ran out of memory", hint=hint, details=_trace())
    if isinstance(error, OSError):
        return _os_error(error, _written(step))
    if isinstance(error, ImportError):
        what = f"a backend is broken: {type(error).__name__}: {_first_line(error)}"
        return UnavailableError(what, hint="optkit doctor", details=_trace())
    if isinstance(error, SystemExit):
        what = f"it tried to end its process: sys.exit({error.code!r:.80})"
        return StepError(what, hint="the log tells what it printed before", details=_trace())
    what = f"{type(error).__name__}: {_first_line(error)}"
    return StepError(what, details=_trace(), hint="the details hold the backend's traceback")


def _first_line(error: BaseException) -> str:
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # somebody else's __str__
        lines = []
    return lines[0][:300] if lines else "no message"


def _trace() -> str:
    return traceback.format_exc(limit=-12)


def _written(step: dict[str, Any]) -> Place:
    """Where a task writes: a folder ROOT/staging/X/Y of the cache, or, where it is repeated, one of the user's."""
    out = Path(step.get("out") or ".").absolute()
    cached = len(out.parts) > 3 and out.parents[1].name == "staging"
    return ("the cache", out.parents[2], "--cache DIR") if cached else ("the output folder", out, "--out DIR")


def _os_error(error: OSError, *places: Place) -> OptkitError:
    if full := disk_error(error, [*places, temporary_files()]):
        return full
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
    faulthandler.enable()  # a crash leaves the Python stack in the log
    _restore_environment()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)  # a backend that asks a question gets no answer, and does not eat the next task
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    home = Path.cwd()
    for line in requests:
        path = Path(json.loads(line))
        step = json.loads(path.read_text(encoding="utf-8"))
        result = perform(step, _teller(answers))
        os.chdir(home)
        sys.stderr.flush()
        _answer(answers, _recorded(result, path.with_name("result.json")))


def _restore_environment() -> None:
    """Undo what the parent set for this process alone, so that it does not reach programs a pass starts."""
    for name in ("PYTHONPATH", "PYTHONSAFEPATH"):
        os.environ.pop(name, None)
        if (kept := os.environ.pop(f"OPTKIT_{name}", None)) is not None:
            os.environ[name] = kept


def _recorded(result: dict[str, Any], target: Path) -> dict[str, Any]:
    """The answer to the parent, after the result was written, whole, to `target`."""
    temporary = target.with_suffix(".tmp")
    try:
        temporary.write_text(json.dumps(result, allow_nan=False), encoding="utf-8")
        temporary.replace(target)
        return {"done": str(target)}
    except OSError as error:
        failure = _os_error(error, ("the output folder", target.parent, "--out DIR"))
    except (TypeError, ValueError, RecursionError) as error:
        what = f"it returned something that is no JSON data: {_first_line(error)}"
        failure = StepError(what, hint="notes may hold text, finite numbers, lists and mappings")
    return {"failed": failure.to_json()}


def _teller(answers: IO[str]) -> Say:
    """Passes progress on, at most ten times a second, so that a tight loop may report each turn."""
    last = 0.0
    lock = threading.Lock()

    def say(text: str, fraction: float | None) -> None:
        nonlocal last
        now = time.monotonic()
        with lock:
            if now - last < 0.1:
                return
            last = now
            part = None if fraction is None or not math.isfinite(fraction) else min(1.0, max(0.0, float(fraction)))
            _answer(answers, {"progress": str(text), "fraction": part})

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
    from optkit.running.pool import run_alone

    try:
        step = json.loads(step_json.read_text(encoding="utf-8"))
        task = step["task"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{step_json} is no recorded step: {error}", hint="a report's `replay` names them") from error
    out = out.absolute()
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise UserError(f"{out} is not empty", hint="name a new folder with --out")
    except OSError as error:
        raise UserError(f"{out} cannot be written to: {error.strerror}", hint="name another with --out") from error
    step |= {"out": str(out)} | ({"tape": None} if task == "check" else {})  # a tape is for the steps after it
    step.pop("scratch", None)  # that run's own folder is gone
    step.pop("shared", None)  # what it reads is the step's alone
    limit, python = float(step.get("limit_seconds", 3600.0)), step.get("python")
    return run_alone(step, out.with_name(out.name + ".log"), limit, python=python)


def raise_if_failed(result: dict[str, Any]) -> dict[str, Any]:
    """The result of a task that went well. Raises the error of one that did not."""
    if not result["ok"]:
        raise from_json(result["error"])
    return result


if __name__ == "__main__":
    main()
