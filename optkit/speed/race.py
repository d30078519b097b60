"""Artifacts run in turns, each in a process of its own, so that whatever else the machine does slows all of them."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from optkit.errors import OptkitError, StepCrashed, from_json
from optkit.speed.ratio import Ratio, ratio

BURST_SECONDS = 0.06
"""How long one runs before the next has its turn. Shorter turns were tried on a busy machine: below 20 ms the same file
raced against itself came out up to 1.5 times as fast, as the scheduler favours one process for longer than a turn."""

LEAST_ROUNDS, MOST_ROUNDS = 7, 60
WARM_ROUNDS = (2, 8)
"""Fewest and most rounds that are thrown away until the times stand still."""

STEADY = 0.05
"""Two warm-up rounds this near to each other count as standing still."""

PRECISE = 0.02
"""The race ends when every interval's half width is below this share of its value, or leaves no doubt (`CLEAR`)."""

CLEAR = 1.15
"""An interval wholly above this, or below its inverse, needs no more rounds to tell which is faster. Where another
ratio than 1 is in doubt, both are multiplied with it."""


@dataclass
class Entrant:
    """One artifact in a race. `rounds` holds seconds for one inference, the lower quartile of each round's burst.

    Whatever else the machine does only adds time, so the quicker inferences of a burst say most about the model.
    open_seconds: to import its runtime and open it, in a fresh process; first_seconds: its first inference after that.
    bare_bytes: what the process had taken before that; peak_bytes: the most it had resident, at any time.
    """

    name: str
    provider: str
    open_seconds: float
    first_seconds: float
    bare_bytes: int | None = None
    peak_bytes: int | None = None
    rounds: list[float] = field(default_factory=list)
    every: list[float] = field(default_factory=list)

    def latency_ms(self) -> dict[str, float]:
        """Milliseconds for one inference, as quantiles of all of them."""
        import numpy as np

        p50, p90, p99 = np.quantile(self.every, [0.5, 0.9, 0.99])
        return {"p50": float(p50) * 1e3, "p90": float(p90) * 1e3, "p99": float(p99) * 1e3}

    @property
    def wobble(self) -> float:
        """How far its rounds lie apart: half the range between their quartiles, as a share of their median."""
        import numpy as np

        low, middle, high = np.quantile(self.rounds, [0.25, 0.5, 0.75])
        return float((high - low) / 2 / middle)


class _Child:
    """The process of one entrant."""

    def __init__(self, name: str, order: Mapping[str, Any], log: Path) -> None:
        self.name = name
        self.peak_bytes: int | None = None
        self.log = log
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(p).absolute()) for p in sys.path),
               "PYTHONSAFEPATH": "1"}  # fmt: skip
        with log.open("w", encoding="utf-8") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "optkit.speed.contender"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=stderr, text=True, encoding="utf-8", env=env,
            )  # fmt: skip
        self._say(order)

    def __enter__(self) -> _Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()

    def _say(self, data: Any) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(data) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._died()
        data: dict[str, Any] = json.loads(line)
        if "error" in data:
            error = from_json(data["error"])
            error.what = f"{self.name}: {error.what}"
            raise error
        return data

    def run(self, times: int) -> list[float]:
        self._say(times)
        heard = self.hear()
        self.peak_bytes = heard["peak_bytes"]
        return list(heard["seconds"])

    def _died(self) -> OptkitError:
        code = self.process.wait()
        last = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
        return StepCrashed(f"{self.name} stopped while its speed was measured (exit code {code})",
                           hint="run it alone: optkit bench, or optkit verify where it was delivered",
                           details="\n".join(last))  # fmt: skip


def race(
    orders: Mapping[str, Mapping[str, Any]],
    folder: Path,
    seconds: float,
    seed: int = 0,
    say: Callable[[str, float | None], None] = lambda text, fraction: None,
    starts: int = 1,
    about: float = 1.0,
) -> dict[str, tuple[Entrant, Ratio | None]]:
    """Each entrant's times, and how many times as fast it is as the first (None for the first itself).

    orders: what each is to open: artifact, feeds (a tape's folder), device, threads. seconds: after so long no further
    round is begun, once there are `LEAST_ROUNDS`. starts: how many processes each is opened in, one after the other and
    nothing beside; the medians of what that took are told, and the last one runs. about: the ratio that is in doubt,
    where that is not whether one is faster at all. Raises an entrant's own error, and StepCrashed when one ends.
    """
    order = random.Random(seed)
    with ExitStack() as stack:
        children: list[_Child] = []
        entrants: list[Entrant] = []
        for number, (name, what) in enumerate(orders.items()):
            say("measuring speed", None)
            log, heard = folder / f"{number}.log", []
            for _ in range(starts - 1):
                with _Child(name, what, log) as trial:
                    heard.append(trial.hear())
            children.append(stack.enter_context(_Child(name, what, log)))
            heard.append(children[-1].hear())
            typical = {key: statistics.median(h[key] for h in heard) for key in ("open_seconds", "first_seconds")}
            entrants.append(Entrant(name, **{**heard[-1], **typical}))
        bursts = _warm_up(children)
        deadline = time.monotonic() + seconds
        while len(entrants[0].rounds) < MOST_ROUNDS:
            for place in order.sample(range(len(children)), len(children)):
                times = children[place].run(bursts[place])
                entrants[place].rounds.append(_typical(times))
                entrants[place].every += times
            done = len(entrants[0].rounds)
            say("measuring speed", None)
            if done >= LEAST_ROUNDS and (time.monotonic() > deadline or _settled(entrants, seed, about)):
                break
        for child, entrant in zip(children, entrants, strict=True):
            entrant.peak_bytes = child.peak_bytes
    first, others = entrants[0], entrants[1:]
    return {first.name: (first, None), **{e.name: (e, ratio(first.rounds, e.rounds, seed)) for e in others}}


def _warm_up(children: Sequence[_Child]) -> list[int]:
    """Inferences in a burst of each, once its times stand still or `WARM_ROUNDS` are over."""
    bursts = []
    for child in children:
        times: list[float] = []
        burst = 1
        for turn in range(WARM_ROUNDS[1]):
            times.append(_typical(child.run(burst)))
            burst = max(1, min(1000, round(BURST_SECONDS / max(times[-1], 1e-6))))
            if turn >= WARM_ROUNDS[0] and abs(times[-1] - times[-2]) <= STEADY * times[-2]:
                break
        bursts.append(burst)
    return bursts


def _typical(seconds: Sequence[float]) -> float:
    return sorted(seconds)[(len(seconds) - 1) // 4]


def _settled(entrants: Sequence[Entrant], seed: int, about: float) -> bool:
    found = [ratio(entrants[0].rounds, e.rounds, seed) for e in entrants[1:]]
    return all(r.spread <= PRECISE or r.low > about * CLEAR or r.high < about / CLEAR for r in found)
