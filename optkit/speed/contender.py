"""The child process that runs one artifact in a race: it opens the model, then runs it when it is told to.

It reads JSON lines from standard input and answers each with one on its original standard output: first what to open,
answered when the model is open; then for how many seconds to run, answered with the seconds, the processor time, the
waits and the forced interruptions of each inference, and the peak memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    """Serve until standard input closes."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what a backend prints is no answer
    sys.stdout = sys.stderr

    def answer(data: dict[str, Any]) -> None:
        answers.write(json.dumps(data) + "\n")

    from optkit.worker import explained

    order = json.loads(sys.stdin.readline())
    try:
        _serve(order, answer)
    except BaseException as error:  # whatever the backend throws is the parent's to tell
        answer({"error": explained(error, order).to_json()})


def _serve(order: dict[str, Any], answer: Any) -> None:
    from optkit.artifact import Artifact
    from optkit.models.signatures import adapted
    from optkit.parity.tape import Tape
    from optkit.registry import get_runner
    from optkit.speed.cores import stay_on

    artifact = Artifact.from_json(order["artifact"])
    assert artifact.signature is not None
    tape = Tape(Path(order["feeds"]))
    bare = resident_peak()
    feeds: list[Any] = []
    while (tensors := tape.read(0, len(feeds))) is not None:
        feeds.append(adapted(tensors, artifact.signature))
    began = time.perf_counter()
    with get_runner(artifact.format).open(artifact, device=order["device"], threads=order["threads"]) as session:
        opened = time.perf_counter()
        session.infer(feeds[0])
        answer({"provider": session.provider, "open_seconds": opened - began,
                "first_seconds": time.perf_counter() - opened, "bare_bytes": bare,
                "peak_bytes": resident_peak()})  # fmt: skip
        if order.get("answers"):
            answers = Tape(Path(order["answers"]))
            for number, tensors in enumerate(feeds):
                answers.write(0, number, session.infer(tensors))
        stay_on(order.get("cores"))
        turn = 0
        for line in sys.stdin:
            times: list[list[float]] = []
            end = time.perf_counter() + float(json.loads(line))
            while not times or time.perf_counter() < end:
                tensors = feeds[turn % len(feeds)]
                turn += 1
                before, used, since = switches(), time.process_time(), time.perf_counter()
                session.infer(tensors)
                seconds = time.perf_counter() - since
                times.append(
                    [seconds, time.process_time() - used, *(b - a for a, b in zip(before, switches(), strict=True))]
                )
            answer({"times": times, "peak_bytes": resident_peak()})


def switches() -> tuple[int, int]:
    """How often threads of this process waited of their own accord, and how often another took their core."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_nvcsw, usage.ru_nivcsw


def resident_peak() -> int | None:
    """The most resident bytes that this process has had; None where that cannot be told."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


if __name__ == "__main__":
    main()
