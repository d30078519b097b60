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
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from optkit.errors import OptkitError, StepCrashed, from_json
from optkit.speed.cores import cores_for
from optkit.speed.ratio import Ratio, quiet_ratio, ratio

BURST_SECONDS = 0.06
"""How long one runs before the next has its turn. Shorter turns were tried on a busy machine: below 20 ms the same file
raced against itself came out up to 1.5 times as fast, as the scheduler favours one process for longer than a turn."""

LEAST_ROUNDS, MOST_ROUNDS = 10, 60
FEWEST_HEATS, FEWEST_ROUNDS = 2, 4
"""Processes of each that are raced where more than one may be, one more where there is doubt, and rounds of each."""

WARM_ROUNDS = (2, 8)
"""Fewest and most rounds that are thrown away until the times stand still."""

STEADY = 0.05
"""Two warm-up rounds this near to each other count as standing still."""

PRECISE = 0.02
"""The race ends when every interval's half width is below this share of its value, or leaves no doubt (`CLEAR`)."""

CLEAR = 1.15
"""An interval wholly above this, or below its inverse, needs no more rounds to tell which is faster. Where another
ratio than 1 is in doubt, both are multiplied with it."""

LONE = 0.1
"""How far processor time may be from wall time, as a share, in inferences that were not interrupted, for one thread."""

LEAST_FREE = 5
"""Of fewer inferences that were not interrupted it is not told whether one thread made them."""

Burst = list[tuple[float, float, int, int]]
"""Of each inference of one turn: wall seconds, processor seconds, waits, and forced interruptions."""


@dataclass
class Entrant:
    """One artifact in a race, run in one process or several after one another.

    starts: of each of its processes, what opening and the first inference took. heats: the turns of each process.
    bare_bytes: what the process had taken before that; peak_bytes: the most it had resident, at any time.
    """

    name: str
    threads: int
    provider: str = ""
    bare_bytes: int | None = None
    peak_bytes: int | None = None
    starts: list[tuple[float, float]] = field(default_factory=list)
    heats: list[list[Burst]] = field(default_factory=list)

    def opened(self, told: Mapping[str, Any]) -> None:
        """Take what one more process of it said once it was open."""
        self.provider, self.bare_bytes = told["provider"], told["bare_bytes"]
        self.holds(told["peak_bytes"])
        self.starts.append((told["open_seconds"], told["first_seconds"]))

    def holds(self, peak_bytes: int | None) -> None:
        """Take what one of its processes had resident at most."""
        self.peak_bytes = max(filter(None, (self.peak_bytes, peak_bytes)), default=None)

    @property
    def open_seconds(self) -> float:
        """To import its runtime and open it, in a fresh process."""
        return statistics.median(seconds for seconds, _ in self.starts)

    @property
    def first_seconds(self) -> float:
        """Its first inference after that."""
        return statistics.median(seconds for _, seconds in self.starts)

    @property
    def bursts(self) -> list[Burst]:
        """Those of all its processes."""
        return [burst for heat in self.heats for burst in heat]

    @property
    def walls(self) -> list[list[float]]:
        """The wall seconds of each inference, by turn."""
        return [[wall for wall, *_ in burst] for burst in self.bursts]

    @property
    def every(self) -> list[float]:
        """The wall seconds of every inference."""
        return [wall for walls in self.walls for wall in walls]

    @property
    def spent(self) -> list[float]:
        """The processor's seconds for the median inference of each turn."""
        return [statistics.median(used for _, used, *_ in burst) for burst in self.bursts]

    @property
    def is_lone_thread(self) -> bool:
        """Whether its inferences keep one thread busy and no other: the processor's time is then the wall's, but for
        what other programs take.
        """
        every = [(used / wall, waits, stops) for burst in self.bursts for wall, used, waits, stops in burst if wall > 0]
        ahead = [share for share, waits, _ in every if not waits]
        if self.threads == 1 and 2 * len(ahead) >= len(every) and statistics.median(ahead) <= 1 + LONE:
            return True  # it never waited: whatever wall time is not its own, another program took
        free = [share for share, _, stops in every if not stops]
        return len(free) >= LEAST_FREE and abs(statistics.median(free) - 1) <= LONE

    @property
    def taken(self) -> float:
        """The share of its wall time that the processor did not spend on it; of one busy thread, what others took."""
        used, wall = (sum(inference[place] for burst in self.bursts for inference in burst) for place in (1, 0))
        return max(0.0, 1 - used / wall) if wall > 0 else 0.0

    def latency_ms(self) -> dict[str, float]:
        """Milliseconds for one inference, as quantiles of all of them."""
        import numpy as np

        p50, p90, p99 = np.quantile(self.every, [0.5, 0.9, 0.99])
        return {"p50": float(p50) * 1e3, "p90": float(p90) * 1e3, "p99": float(p99) * 1e3}

    @property
    def wobble(self) -> float:
        """How far its rounds lie apart: half the range between their quartiles, as a share of their median."""
        import numpy as np

        low, middle, high = np.quantile([_typical(burst) for burst in self.bursts], [0.25, 0.5, 0.75])
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

    def run(self) -> Burst:
        self._say(BURST_SECONDS)
        heard = self.hear()
        self.peak_bytes = heard["peak_bytes"]
        return [(wall, used, waits, stops) for wall, used, waits, stops in heard["times"]]

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
    rough: bool = False,
) -> dict[str, tuple[Entrant, Ratio | None]]:
    """Each entrant's times, and how many times as fast it is as the first (None for the first itself).

    orders: what each is to open: artifact, feeds (a tape's folder), device, threads. seconds: after so long no further
    round is begun, once there are `LEAST_ROUNDS`. starts: in how many fresh processes each is opened and raced at
    most, each time for its share of the seconds; in fewer where opening takes long or the ratios are clear before.
    rough: one process of each is enough where that leaves no doubt which is faster. What opening took is the median.
    about: the ratio that is in doubt, where that is not whether one is faster at all.
    Raises an entrant's own error, and StepCrashed when one ends.
    """
    entrants = [Entrant(name, what["threads"]) for name, what in orders.items()]
    asked = {(what["device"], what["threads"]) for what in orders.values()}
    cores = cores_for(max(threads for _, threads in asked)) if {device for device, _ in asked} == {"cpu"} else None
    order = random.Random(seed)
    heats = 0
    while heats < starts:
        began = time.monotonic()
        with ExitStack() as stack:
            children = []
            for place, (entrant, what) in enumerate(zip(entrants, orders.values(), strict=True)):
                say("measuring speed", None)
                log = folder / f"{place}.log"
                children.append(stack.enter_context(_Child(entrant.name, {**what, "cores": cores}, log)))
                entrant.opened(children[-1].hear())
            if not heats:  # opening takes twice as long as racing at most
                starts = max(1, min(starts, int(2 * seconds / (time.monotonic() - began))))
            _heat(children, entrants, order, seconds / starts, LEAST_ROUNDS if starts == 1 else FEWEST_ROUNDS, say,
                  about)  # fmt: skip
        heats += 1
        if heats >= (1 if rough else FEWEST_HEATS) and _settled(
            entrants, about, PRECISE if heats > FEWEST_HEATS else 0.0
        ):
            break
    ratios = [None, *compared(entrants, seed)]
    return {entrant.name: (entrant, ratio) for entrant, ratio in zip(entrants, ratios, strict=True)}


def _heat(
    children: Sequence[_Child], entrants: Sequence[Entrant], order: random.Random, seconds: float, least: int,
    say: Callable[[str, float | None], None], about: float,
) -> None:  # fmt: skip
    """Rounds of one process of each entrant, in each of which every one has its turn; added to the entrants' own.

    Each order of a round is followed by its reverse: the first of a round has whatever this process did before it.
    """
    for child in children:
        _warm_up(child)
    heat = [Entrant(entrant.name, entrant.threads, heats=[[]]) for entrant in entrants]
    deadline, places = time.monotonic() + seconds, list(range(len(children)))
    for done in range(MOST_ROUNDS):
        if done >= least and (time.monotonic() > deadline or (done % least == 0 and _settled(heat, about))):
            break
        places = order.sample(places, len(places)) if done % 2 == 0 else places[::-1]
        for place in places:
            heat[place].heats[0].append(children[place].run())
        say("measuring speed", None)
    for child, entrant, own in zip(children, entrants, heat, strict=True):
        entrant.heats += own.heats
        entrant.holds(child.peak_bytes)


def compared(entrants: Sequence[Entrant], seed: int) -> list[Ratio]:
    """How many times as fast each but the first is as the first.

    Where both keep one thread busy, by what the processor spent on the median inference of each round; else by the
    wall's time in the quicker moments, for a second thread that waits does not show in the processor's.
    """
    first, *others = entrants
    return [_pair(first, other, seed) for other in others]


def _pair(first: Entrant, other: Entrant, seed: int) -> Ratio:
    heats = [len(heat) for heat in first.heats]
    if first.is_lone_thread and other.is_lone_thread:
        found = ratio(first.spent, other.spent, seed, heats, "processor")
        return replace(found, taken=max(first.taken, other.taken))
    return quiet_ratio(first.walls, other.walls, seed, heats)


def _warm_up(child: _Child) -> None:
    """Let it run until its times stand still or `WARM_ROUNDS` are over."""
    times: list[float] = []
    for turn in range(WARM_ROUNDS[1]):
        times.append(_typical(child.run()))
        if turn >= WARM_ROUNDS[0] and abs(times[-1] - times[-2]) <= STEADY * times[-2]:
            break


def _typical(burst: Burst) -> float:
    """The lower quartile of a burst's wall seconds: whatever else the machine does only adds time."""
    return sorted(wall for wall, *_ in burst)[(len(burst) - 1) // 4]


def _settled(entrants: Sequence[Entrant], about: float, precise: float = PRECISE) -> bool:
    """Whether every ratio is known well enough, or leaves no doubt on which side of `about` it lies."""
    return all(r.spread <= precise or r.low > about * CLEAR or r.high < about / CLEAR for r in compared(entrants, 0))
