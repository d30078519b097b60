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

from optkit.errors import OptkitError, StepCrashed, StepError, StepTimeout


@dataclass(frozen=True)
class Message:
    """From a worker: a sentence of progress, or a task's result."""

    kind: Literal["progress", "result"]
    task: str
    data: dict[str, Any]


@dataclass
class _Worker:
    python: str
    process: subprocess.Popen[str]
    log: Path
    loaded: set[str] = field(default_factory=set)
    task: str | None = None
    deadline: float = 0.0
    limit: float = 0.0
    log_start: int = 0
    stopped: bool = False
    reader: threading.Thread = field(default_factory=threading.Thread)


class Pool:
    """At most `jobs` busy child processes; each lives on and is reused, so its imports are paid once.

    A worker that dies or outlives a task's limit fails that task alone and is replaced at the next.
    """

    def __init__(self, jobs: int, folder: Path) -> None:
        self.jobs = jobs
        self._folder = folder
        self._workers: list[_Worker] = []  # those that can take a task
        self._all: list[_Worker] = []  # those as well that died or were stopped
        self._messages: queue.Queue[Message] = queue.Queue()
        self._started = 0

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._all:
            self._kill(worker)
        for worker in self._all:
            worker.process.wait()
            worker.reader.join(timeout=5)
            for pipe in (worker.process.stdin, worker.process.stdout):
                with contextlib.suppress(OSError):  # what was still to be written to a dead worker
                    if pipe is not None:
                        pipe.close()

    @property
    def free(self) -> int:
        """How many more tasks can start now."""
        return self.jobs - sum(1 for w in list(self._workers) if w.task)

    def start(self, python: str | None = None) -> None:
        """Start an idle worker ahead of its first task, unless as many as may be busy are there."""
        if len(self._workers) < self.jobs:
            self._spawn(python or sys.executable)

    def cold(self, modules: Iterable[str]) -> str | None:
        """The first of `modules` that some idle worker of this interpreter has not loaded, or None."""
        idle = [w for w in list(self._workers) if w.task is None and w.python == sys.executable]
        return next((m for m in modules if any(m not in w.loaded for w in idle)), None)

    def warm(self, task: str, module: str, folder: Path) -> None:
        """Have an idle worker import a module, the one that has loaded most others."""
        idle = [
            w for w in list(self._workers) if w.task is None and w.python == sys.executable and module not in w.loaded
        ]
        self._give(
            max(idle, key=lambda w: len(w.loaded)), task, {"task": "warm", "modules": [module]}, folder, 600.0, {module}
        )

    def submit(
        self,
        task: str,
        step: dict[str, Any],
        folder: Path,
        limit: float,
        python: str | None = None,
        loads: Iterable[str] = (),
    ) -> None:
        """Hand over a task: write `folder`/step.json and give it to the idle worker that has loaded most of `loads`."""
        wanted, interpreter = set(loads), python or sys.executable
        idle = [w for w in list(self._workers) if w.task is None and w.python == interpreter]
        # Among equals the emptiest: a task that needs nothing should not occupy the worker that has torch loaded.
        best = max(idle, key=lambda w: (len(w.loaded & wanted), -len(w.loaded)), default=None)
        self._give(best or self._spawn(interpreter), task, step, folder, limit, wanted)

    def _give(
        self, worker: _Worker, task: str, step: dict[str, Any], folder: Path, limit: float, loads: set[str]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "step.json"
        path.write_text(json.dumps(step, indent=1, allow_nan=False), encoding="utf-8")
        worker.task, worker.limit, worker.deadline = task, limit, time.monotonic() + limit
        worker.loaded |= loads
        worker.log_start = worker.log.stat().st_size if worker.log.exists() else 0
        with contextlib.suppress(BrokenPipeError):  # a worker that died idle: its end is noticed as this task's
            assert worker.process.stdin is not None
            worker.process.stdin.write(f"{path}\n")
            worker.process.stdin.flush()

    def wait(self, seconds: float) -> Message | None:
        """The next message, or None after `seconds`. Also where a task past its limit is stopped."""
        try:
            return self._messages.get(timeout=seconds)
        except queue.Empty:
            pass
        now = time.monotonic()
        for worker in list(self._workers):
            if worker.task and now > worker.deadline:
                task, worker.task = worker.task, None
                self._kill(worker)
                self._workers.remove(worker)
                error = StepTimeout(
                    f"ran past its limit of {worker.limit:g} s and was stopped",
                    hint="raise `timeout:` on the step, or make its work smaller",
                    details=self._tail(worker),
                )
                return Message("result", task, {"ok": False, "error": error.to_json(), "seconds": worker.limit})
        return None

    def _spawn(self, python: str) -> _Worker:
        # A worker of another interpreter may have to make room.
        if len(self._workers) >= self.jobs:
            for other in [w for w in list(self._workers) if w.task is None and w.python != python]:
                self._kill(other)
                self._workers.remove(other)
        self._started += 1
        self._folder.mkdir(parents=True, exist_ok=True)
        log = self._folder / f"worker-{self._started}.log"
        env = dict(
            os.environ,
            PYTHONUNBUFFERED="1",
            OPENVINO_TELEMETRY_OPT_OUT="1",
            HF_HUB_OFFLINE="1",
            HF_HUB_DISABLE_TELEMETRY="1",
            DO_NOT_TRACK="1",
        )
        env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [env.get("PYTHONPATH")])])
        with log.open("w", encoding="utf-8") as stderr:
            try:
                process = subprocess.Popen(
                    [python, "-m", "optkit.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    text=True,
                    encoding="utf-8",
                    env=env,
                    start_new_session=True,
                )
            except OSError as error:
                raise StepError(
                    f"the interpreter {python} cannot be started: {error.strerror}", hint="check `python:` on the step"
                ) from error
        worker = _Worker(python, process, log)
        worker.reader = threading.Thread(target=self._listen, args=(worker,), daemon=True)
        self._workers.append(worker)
        self._all.append(worker)
        worker.reader.start()
        return worker

    def _listen(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None
        for line in worker.process.stdout:
            data = json.loads(line)
            task = worker.task
            if task is None:
                continue
            if "progress" in data:
                self._messages.put(Message("progress", task, data))
                continue
            result = (
                {"ok": False, "error": data["failed"]}
                if "failed" in data
                else json.loads(Path(data["done"]).read_text(encoding="utf-8"))
            )
            if not result["ok"] and not result["error"].get("details"):
                result["error"]["details"] = self._tail(worker)
            worker.task = None
            self._messages.put(Message("result", task, result))
        code = worker.process.wait()
        task, worker.task = worker.task, None
        if not worker.stopped:
            with contextlib.suppress(ValueError):
                self._workers.remove(worker)
        if task and not worker.stopped:
            error = StepCrashed(
                _how(code),
                hint="optkit replay repeats it alone; a native crash is a bug in the backend",
                details=self._tail(worker),
            )
            self._messages.put(Message("result", task, {"ok": False, "error": error.to_json(), "seconds": 0.0}))

    def _tail(self, worker: _Worker, lines: int = 20) -> str:
        with contextlib.suppress(OSError), worker.log.open("rb") as handle:
            size = handle.seek(0, os.SEEK_END)
            handle.seek(max(worker.log_start, size - 16384))
            return "\n".join(handle.read().decode("utf-8", "replace").splitlines()[-lines:])
        return ""

    def _kill(self, worker: _Worker) -> None:
        worker.stopped = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker.process.pid, signal.SIGKILL)


def _how(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else f"signal {-code}"
        why = {
            "SIGKILL": ", most likely for want of memory",
            "SIGSEGV": " (segmentation fault)",
            "SIGABRT": " (the backend aborted)",
            "SIGILL": " (illegal instruction)",
        }.get(name, "")
        return f"its process was ended by {name}{why}"
    return f"its process ended with exit code {code} before it answered"


def run_alone(
    step: dict[str, Any], log_folder: Path | None = None, limit: float = 3600.0, loads: Iterable[str] = ()
) -> dict[str, Any]:
    """The result of one task in a child process of its own."""
    with contextlib.ExitStack() as stack:
        folder = log_folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="optkit-")))
        folder.mkdir(parents=True, exist_ok=True)
        pool = stack.enter_context(Pool(1, folder))
        try:
            pool.submit("task", step, folder, limit, loads=loads)
        except OptkitError as error:
            return {"ok": False, "error": error.to_json(), "seconds": 0.0}
        while True:
            message = pool.wait(0.2)
            if message is not None and message.kind == "result":
                return message.data
