"""A user's training function in several processes of this machine, which torch.distributed.run starts and watches.

The launcher sets what accelerate, Lightning Fabric and torch.distributed itself read; the function sets them up. The
first process's module counts. All processes end with the one that started them, however that ends.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optkit.errors import OptkitError, StepError, from_json
from optkit.formats.torch_training.user_training import Call
from optkit.plugin import need

JOB, PROGRESS, RETURNED = "job.pickle", "progress.jsonl", "returned.pt"
LAST_LINES = 60
"""Of a process's output: what an error holds."""

Say = Callable[[str, "float | None"], None]


def trained_in(count: int, call: Call, folder: Path, threads: int, device: str, say: Say) -> dict[str, Any]:
    """What the first of `count` processes returned: "state", the module's, and "answers" to the first held-out batch.

    Raises StepError that names the process that failed first, with its output, and where the processes return modules
    with unlike parameters.
    """
    torch = need("torch")
    need("torch.distributed.run", "torch")
    if device != "cpu" and torch.cuda.device_count() < count:
        raise StepError(f"{count} processes were asked for, and there are {torch.cuda.device_count()} GPUs",
                        subject="with.processes", hint="as many as there are GPUs, or device: cpu")  # fmt: skip
    folder.mkdir()
    (folder / JOB).write_bytes(pickle.dumps({"call": call, "threads": max(1, threads // count), "device": device}))
    (folder / PROGRESS).touch()
    with _launched(count, folder, threads, device) as launcher, (folder / PROGRESS).open(encoding="utf-8") as told:
        while launcher.poll() is None:
            _repeat(told, say)
            time.sleep(0.1)
        _repeat(told, say)
    if launcher.returncode:
        raise _failure(count, call, folder, launcher.returncode)
    digests = {rank: (folder / f"{rank}.digest").read_text() for rank in range(count)}
    if unlike := [rank for rank, digest in digests.items() if digest != digests[0]]:
        raise StepError(
            f"process {unlike[0] + 1} of {count} returned other parameters than the first: each has trained a model of "
            "its own", subject="with.call", hint="let your engine have the module: module, optimizer = "
            "accelerator.prepare(module, optimizer), and return accelerator.unwrap_model(module)",
        )  # fmt: skip
    found: dict[str, Any] = torch.load(folder / RETURNED, map_location="cpu", weights_only=True)
    return found


@contextmanager
def _launched(count: int, folder: Path, threads: int, device: str) -> Iterator[subprocess.Popen[bytes]]:
    """The launcher, running; it is gone afterwards, and so are the processes: they end when its standard input does."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(p).absolute()) for p in sys.path),
           "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": str(max(1, threads // count)),
           **({"ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})}  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}",
               "-m", "optkit.formats.torch_training.rank", str(folder)]  # fmt: skip
    with (folder / "launcher.log").open("wb") as log:
        launcher = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=env)
    try:
        yield launcher
    finally:
        assert launcher.stdin is not None
        launcher.stdin.close()
        launcher.kill()
        launcher.wait()


def _repeat(told: Any, say: Say) -> None:
    """Tell what the first process has told since."""
    while line := told.readline():
        if not line.endswith("\n"):  # half written
            told.seek(told.tell() - len(line.encode()))
            return
        say(*json.loads(line))


def _failure(count: int, call: Call, folder: Path, code: int) -> OptkitError:
    """The error of the process that failed first: the others fail for want of it, or are ended by the launcher."""
    log = (folder / "launcher.log").read_text(encoding="utf-8", errors="replace")
    ended = {int(rank): int(code) for rank, code in
             re.findall(r"rank\s*: (\d+) \(local_rank: \d+\)\s+exitcode\s*: (-?\d+)", log)}  # fmt: skip
    raised = sorted((json.loads(file.read_text()) for file in folder.glob("*.error.json")), key=lambda e: e["at"])
    told = {error["rank"] for error in raised}
    silent = [rank for rank, code in ended.items() if rank not in told and code != -15]
    if silent or not raised:
        rank = silent[0] if silent else None
        who = f"process {rank + 1} of {count}" if rank is not None else f"the launcher of {count} processes"
        status = ended[rank] if rank is not None else code
        how = f"was killed by signal {-status}" if status < 0 else f"ended with exit code {status}"
        return StepError(f"{who} of {call.named} {how}", subject="with.call", details=_last(folder, rank, log),
                         hint="read its output below; run the function by hand under torchrun")  # fmt: skip
    first = raised[0]
    error = from_json(first["error"])
    error.what = f"process {first['rank'] + 1} of {count}: {error.what}"
    error.details = "\n".join(filter(None, (error.details, _last(folder, first["rank"], log))))
    return error


def _last(folder: Path, rank: int | None, log: str) -> str:
    """The end of a process's output, of the launcher's where there is none."""
    file = folder / f"{rank}.log"
    text = file.read_text(encoding="utf-8", errors="replace") if rank is not None and file.exists() else ""
    return "\n".join((text.strip() or log).splitlines()[-LAST_LINES:])


__all__ = ["JOB", "PROGRESS", "RETURNED", "trained_in"]
