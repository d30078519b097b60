"""The parent's side of the workers: start them, hand them tasks, notice when they die or hang."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from optkit.envs.environments import remedy_for
from optkit.errors import OptkitError, StepCrashed, StepError, StepTimeout

_QUIET = {"PYTHONUNBUFFERED": "1", "OPENVINO_TELEMETRY_OPT_OUT": "1", "HF_HUB_OFFLINE": "1",
          "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}  # fmt: skip

# Workers share the cores: a thread that spins while it waits takes its core from another worker's task.
_SHARED = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}


@dataclass(frozen=True)
class Message:
    """From a worker: a sentence of progress, or a task's result.

    A result holds `ok`, `seconds`, `peak_bytes`, and either what the task returned or `error`.
    """

    kind: Literal["progress", "result"]
    task: str
    data: dict[str, Any]


@dataclass
class _Task:
    """What a worker is busy with. `log_start` is where its part of the worker's log begins."""

    name: str
    limit: float
    deadline: float
    log_start: int
    warms: tuple[str, ...] = ()


@dataclass
class _Worker:
    python: str
    process: subprocess.Popen[str]
    log: Path
    loaded: set[str] = field(default_factory=set)
    task: _Task | None = None


class Pool:
    """At most `jobs` busy child processes; each lives on and is reused, so its imports are paid once.

    A worker that dies or outlives a task's limit fails that task alone and is replaced at the next. Each leads a
    process group of its own, which ends with it.
    """

    def __init__(self, jobs: int, folder: Path) -> None:
        self.jobs = jobs
        self._folder = folder.absolute()
        self._lock = threading.RLock()  # who takes a task from its worker, under it, is the one who reports on it
        self._workers: list[_Worker] = []
        self._reapers: list[threading.Thread] = []
        self._messages: queue.Queue[Message] = queue.Queue()
        self._started = 0
        self._bad_modules: set[str] = set()
        self._shim: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            for worker in list(self._workers):
                self._kill(worker)
        for reaper in self._reapers:
            reaper.join(timeout=10.0)
        if self._shim is not None:
            self._shim.cleanup()

    @property
    def free(self) -> int:
        """How many more tasks can start now."""
        with self._lock:
            return self.jobs - sum(1 for w in self._workers if w.task)

    def start(self, python: str | None = None) -> None:
        """Start an idle worker ahead of its first task, unless as many as may be busy are there."""
        with self._lock, contextlib.suppress(OptkitError):  # told again, and then heard, by the task that needs it
            if len(self._workers) < self.jobs:
                self._spawn(python or sys.executable)

    def _idle(self, python: str) -> list[_Worker]:
        return [w for w in self._workers if w.task is None and w.python == python]

    def cold(self, modules: Iterable[str]) -> str | None:
        """The first of `modules` that some idle worker of this interpreter has not loaded, or None."""
        with self._lock:
            idle = self._idle(sys.executable)
            usable = (m for m in modules if m not in self._bad_modules)
            return next((m for m in usable if any(m not in w.loaded for w in idle)), None)

    def warm(self, task: str, module: str, folder: Path) -> None:
        """Have an idle worker import a module, the one that has loaded most others."""
        with self._lock:
            idle = [w for w in self._idle(sys.executable) if module not in w.loaded]
            best = max(idle, key=lambda w: len(w.loaded), default=None)
            if best is None:  # it ended meanwhile
                self._messages.put(Message("result", task, _result({"ok": True})))
            else:
                self._give(best, task, {"task": "warm", "modules": [module]}, folder, 600.0, {module})

    def submit(self, task: str, step: dict[str, Any], folder: Path, limit: float, python: str | None = None,
               loads: Iterable[str] = ()) -> None:  # fmt: skip
        """Hand over a task: write `folder`/step.json and give it to the idle worker that has loaded most of `loads`.

        Whatever goes wrong with the worker is in the task's result. Raises OSError when the file cannot be written.
        """
        wanted, interpreter = set(loads), python or sys.executable
        with self._lock:
            # Among equals the emptiest: a task that needs nothing should not occupy the worker that has torch loaded.
            best = max(self._idle(interpreter), key=lambda w: (len(w.loaded & wanted), -len(w.loaded)), default=None)
            try:
                self._give(best or self._spawn(interpreter), task, {**step, "python": python}, folder, limit, wanted)
            except OptkitError as error:
                self._messages.put(Message("result", task, _result({"ok": False, "error": error.to_json()})))

    def _give(self, worker: _Worker, task: str, step: dict[str, Any], folder: Path, limit: float,
              loads: set[str]) -> None:  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        path = folder.absolute() / "step.json"
        path.write_text(json.dumps({**step, "limit_seconds": limit}, indent=1, allow_nan=False), encoding="utf-8")
        warms = tuple(loads) if step["task"] == "warm" else ()
        size = worker.log.stat().st_size if worker.log.exists() else 0
        worker.task = _Task(task, limit, time.monotonic() + limit, size, warms)
        worker.loaded |= loads
        with contextlib.suppress(OSError, ValueError):  # a worker that died idle: its end is noticed as this task's
            assert worker.process.stdin is not None
            worker.process.stdin.write(json.dumps(str(path)) + "\n")
            worker.process.stdin.flush()

    def wait(self, seconds: float) -> Message | None:
        """The next message, or None after `seconds`. Also where a task past its limit is stopped."""
        now = time.monotonic()
        with self._lock:
            for worker in [w for w in self._workers if w.task and now > w.task.deadline]:
                assert worker.task is not None
                what = f"ran past its limit of {worker.task.limit:g} s and was stopped"
                error = StepTimeout(what, hint="raise `timeout:` on the step, or make its work smaller")
                self._fail(worker, error)
                self._kill(worker)
        try:
            return self._messages.get(timeout=seconds)
        except queue.Empty:
            return None

    def _fail(self, worker: _Worker, error: OptkitError) -> None:
        """Report a worker's task, if it still has one, as failed."""
        task = worker.task
        seconds = time.monotonic() - (task.deadline - task.limit) if task else 0.0
        self._finish(worker, {"ok": False, "error": error.to_json(), "seconds": seconds})

    def _finish(self, worker: _Worker, result: dict[str, Any]) -> None:
        with self._lock:
            task, worker.task = worker.task, None
        if task is None:
            return
        if not result["ok"]:
            log = _tail(worker.log, task.log_start)
            parts = [result["error"].get("details") or "", f"--- its log ends with\n{log}" if log else ""]
            result["error"]["details"] = "\n".join(filter(None, parts))
            self._bad_modules.update(task.warms)
        self._messages.put(Message("result", task.name, _result(result)))

    def _spawn(self, python: str) -> _Worker:
        if len(self._workers) >= self.jobs:  # a worker of another interpreter may have to make room: the emptiest
            others = sorted((w for w in self._workers if w.task is None and w.python != python),
                            key=lambda w: len(w.loaded))  # fmt: skip
            for other in others[: len(self._workers) - self.jobs + 1]:
                self._kill(other)
        self._started += 1
        self._folder.mkdir(parents=True, exist_ok=True)
        log = self._folder / f"worker-{self._started}.log"
        with log.open("w", encoding="utf-8") as stderr:
            try:
                process = subprocess.Popen(
                    [python, "-m", "optkit.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
                    text=True, encoding="utf-8", env=self._environment(python), start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                raise StepError(
                    f"the interpreter {python} cannot be started: {error.strerror}", hint=remedy_for(python)
                ) from error
        worker = _Worker(python, process, log)
        self._workers.append(worker)
        listener = threading.Thread(target=self._listen, args=(worker,), daemon=True)
        reaper = threading.Thread(target=self._reap, args=(worker, listener), daemon=True)
        self._reapers.append(reaper)
        listener.start()
        reaper.start()
        return worker

    def _environment(self, python: str) -> dict[str, str]:
        """A worker's environment: it finds what this process finds, or in another interpreter optkit and no more."""
        env = {**_SHARED, **os.environ, **_QUIET, "PYTHONSAFEPATH": "1"}
        for name in ("PYTHONPATH", "PYTHONSAFEPATH"):  # the worker puts these back, for the programs passes start
            if name in os.environ:
                env[f"OPTKIT_{name}"] = os.environ[name]
        if python == sys.executable:
            env["PYTHONPATH"] = os.pathsep.join(str(Path(p).absolute()) for p in dict.fromkeys(sys.path))
            return env
        if self._shim is None:
            self._shim = tempfile.TemporaryDirectory(prefix="optkit-path-")
            (Path(self._shim.name) / "optkit").symlink_to(Path(__file__).parents[1], target_is_directory=True)
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [self._shim.name, os.environ.get("PYTHONPATH")]))
        return env

    def _listen(self, worker: _Worker) -> None:
        """Turn a worker's answers into messages until its output closes."""
        assert worker.process.stdout is not None
        for line in worker.process.stdout:
            task = worker.task
            if task is None:
                continue
            try:
                data = json.loads(line)
                if "progress" in data:
                    self._messages.put(Message("progress", task.name, data))
                elif "failed" in data:
                    self._finish(worker, {"ok": False, "error": data["failed"]})
                else:
                    self._finish(worker, json.loads(Path(data["done"]).read_text(encoding="utf-8")))
            except (OSError, ValueError, KeyError, TypeError) as error:
                what = f"its result cannot be read: {type(error).__name__}: {error}"
                self._fail(worker, StepError(what, hint="leave the output folder alone while optkit runs"))

    def _reap(self, worker: _Worker, listener: threading.Thread) -> None:
        """Wait for a worker's end, end what it left behind, and report its task if it did not answer."""
        process = worker.process
        if hasattr(os, "waitid"):
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        else:
            process.wait()
        with self._lock:
            self._kill(worker)  # children it forked, which also hold its output open
        listener.join(timeout=5.0)
        code = process.wait()
        hint = "optkit replay repeats it alone; a native crash is a bug in the backend"
        if code == -signal.SIGKILL:
            hint = "free memory, or give --jobs 1, and run the same command again: finished steps are kept"
        self._fail(worker, StepCrashed(_how(code), hint=hint))
        for stream in (process.stdin, process.stdout):
            if stream is not None and not (stream is process.stdout and listener.is_alive()):
                with contextlib.suppress(OSError):  # a request it never read
                    stream.close()

    def _kill(self, worker: _Worker) -> None:
        """End a worker's process group, and count on it no more. Call it with the lock held.

        Only once, before its process is waited for: after that the number may be another's.
        """
        if worker in self._workers:
            self._workers.remove(worker)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(worker.process.pid, signal.SIGKILL)


def _result(data: dict[str, Any]) -> dict[str, Any]:
    return {"seconds": 0.0, "peak_bytes": None, **data}


def _tail(log: Path, start: int, lines: int = 40) -> str:
    """The last lines of a log after byte `start`."""
    with contextlib.suppress(OSError), log.open("rb") as handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(start, size - 16384))
        return "\n".join(handle.read().decode("utf-8", "replace").splitlines()[-lines:])
    return ""


def _how(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else f"signal {-code}"
        why = {"SIGKILL": ", most likely for want of memory", "SIGSEGV": " (segmentation fault)",
               "SIGABRT": " (the backend aborted)", "SIGILL": " (illegal instruction)"}.get(name, "")  # fmt: skip
        return f"its process was ended by {name}{why}"
    return f"its process ended with exit code {code} before it answered"


def run_alone(step: dict[str, Any], log_folder: Path | None = None, limit: float = 3600.0,
              loads: Iterable[str] = (), python: str | None = None) -> dict[str, Any]:  # fmt: skip
    """The result of one task in a child process of its own."""
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="optkit-")))
        folder = log_folder or scratch / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        pool = stack.enter_context(Pool(1, folder))
        pool.submit("task", {"scratch": str(scratch), **step}, folder, limit, python, loads)
        while True:
            message = pool.wait(0.2)
            if message is not None and message.kind == "result":
                return message.data
