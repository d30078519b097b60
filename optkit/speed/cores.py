"""Which cores the artifacts of a race run on: the same for all, so that no core's own noise is taken for a speed."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

LOOK_SECONDS = 0.1
"""How long it is watched which cores are busy."""

_CPUS = Path("/sys/devices/system/cpu")


def cores_for(threads: int) -> list[int] | None:
    """As many cores as threads, each a physical one, of one package: the quickest, and of those the least busy.

    None where it cannot be told, or where there are no more physical cores than threads: then all are used.
    """
    try:
        allowed = sorted(os.sched_getaffinity(0))
        physical = {_text(cpu, "topology/core_cpus_list"): cpu for cpu in reversed(allowed)}
        if threads >= len(physical):
            return None
        busy = _busy()
        places = {cpu: _text(cpu, "topology/physical_package_id") for cpu in physical.values()}
    except (OSError, AttributeError, ValueError):  # no Linux, or a sandbox that hides it
        return None
    order = sorted(physical.values(), key=lambda cpu: (-_quick(cpu), busy.get(cpu, 0), cpu))
    packages: dict[str, list[int]] = {}
    for cpu in order:
        packages.setdefault(places[cpu], []).append(cpu)
    chosen = [cores[:threads] for cores in packages.values() if len(cores) >= threads] or [order[:threads]]
    return sorted(min(chosen, key=lambda cores: sum(busy.get(cpu, 0) for cpu in cores)))


def stay_on(cores: Sequence[int] | None) -> None:
    """Let this process run on these cores alone: the threads that it has, and those that they will start."""
    for thread in Path("/proc/self/task").iterdir() if cores else ():
        with contextlib.suppress(OSError):  # one that has just ended
            os.sched_setaffinity(int(thread.name), cores or ())


def _text(cpu: int, name: str) -> str:
    return (_CPUS / f"cpu{cpu}" / name).read_text(encoding="ascii").strip()


def _quick(cpu: int) -> int:
    """A core's highest frequency or capacity, 0 where all that is said is nothing."""
    for name in ("cpufreq/cpuinfo_max_freq", "cpu_capacity"):
        with contextlib.suppress(OSError, ValueError):
            return int(_text(cpu, name))
    return 0


def _busy() -> dict[int, int]:
    """Ticks that each core was busy during `LOOK_SECONDS`."""
    before = _ticks()
    time.sleep(LOOK_SECONDS)
    return {cpu: ticks - before.get(cpu, 0) for cpu, ticks in _ticks().items()}


def _ticks() -> dict[int, int]:
    found = {}
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        name, *numbers = line.split()
        if name[:3] == "cpu" and name[3:].isdecimal():
            user, nice, system, _, _, irq, soft, steal = map(int, numbers[:8])
            found[int(name[3:])] = user + nice + system + irq + soft + steal
    return found
