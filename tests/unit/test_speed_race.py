"""What a race is judged by: whose time counts, on which cores, and in how many processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from optkit.speed.cores import cores_for
from optkit.speed.race import Burst, Entrant, compared
from optkit.speed.ratio import quiet_ratio, ratio


def entrant(*bursts: Burst, threads: int = 1) -> Entrant:
    return Entrant("e", threads, heats=[list(bursts)])


ALONE: Burst = [(2.0, 1.98, 0, 0)] * 9
ROBBED: Burst = [(9.0, 2.0, 0, 3)] * 9
HANDED_ON: Burst = [(2.0, 1.9, 2, 0)] * 9
ASLEEP: Burst = [(2.0, 0.01, 1, 0)] * 9
TWO_THREADS: Burst = [(2.0, 3.9, 4, 0)] * 9


@pytest.mark.parametrize(
    ("bursts", "threads", "lone"),
    [
        ([ALONE], 1, True), ([ROBBED], 1, True), ([HANDED_ON], 1, True), ([HANDED_ON], 2, True), ([ASLEEP], 1, False),
        ([TWO_THREADS], 2, False), ([TWO_THREADS], 1, False), ([ROBBED], 2, False), ([[(2.0, 2.0, 1, 0)]], 1, False),
    ],
)  # fmt: skip
def test_one_busy_thread_is_known_from_several_and_from_one_that_sleeps(
    bursts: list[Burst], threads: int, lone: bool
) -> None:
    assert entrant(*bursts, threads=threads).is_lone_thread == lone


def test_what_another_program_took_does_not_make_a_thread_slower() -> None:
    quiet, busy = entrant(*[ALONE] * 10), entrant(*[ROBBED] * 10)
    (found,) = compared([quiet, busy], 0)
    assert (found.clock, found.value) == ("processor", pytest.approx(0.99))
    assert found.taken == pytest.approx(7 / 9)
    (found,) = compared([entrant(*[ASLEEP] * 10), entrant(*[[(1.0, 0.01, 1, 0)] * 9] * 10)], 0)
    assert (found.clock, found.value) == ("wall", pytest.approx(2.0)), (
        "sleeping is time too, where it is the model's own"
    )


def test_an_entrant_with_more_threads_leaves_the_others_their_processor_time() -> None:
    found = compared([entrant(*[ALONE] * 10), entrant(*[TWO_THREADS] * 10, threads=2), entrant(*[ROBBED] * 10)], 0)
    assert [r.clock for r in found] == ["wall", "processor"]


def test_the_quicker_moments_decide_where_most_rounds_of_one_side_were_disturbed() -> None:
    base = [[1.0, 1.0, 1.0, 5.0]] * 12
    other = [[3.0, 4.0, 5.0, 6.0]] * 8 + [[1.0, 1.0, 1.0, 1.0]] * 4
    assert quiet_ratio(base, other).value == pytest.approx(1.0)
    assert quiet_ratio([[2.0]] * 9, [[1.0]] * 9).value == pytest.approx(2.0)
    with pytest.raises(ValueError, match="9 rounds against 8"):
        quiet_ratio([[2.0]] * 9, [[1.0]] * 8)


def test_processes_that_differ_widen_the_interval() -> None:
    logs = np.repeat([0.1, -0.1, 0.02], 12) + np.random.default_rng(0).normal(0, 0.002, 36)
    alike = ratio(np.ones(36), np.exp(np.random.default_rng(0).permutation(logs)))
    apart = ratio(np.ones(36), np.exp(logs), heats=[12, 12, 12])
    assert apart.spread > 1.5 * alike.spread
    assert ratio(np.ones(3), np.exp([0.1, 0.1, 0.1]), heats=[1, 2]).value == pytest.approx(np.exp(-0.1))


def test_a_race_stays_on_as_many_cores_as_threads() -> None:
    assert cores_for(4096) is None
    chosen = cores_for(1)
    if chosen is None:
        pytest.skip("one core, or its place is not told")
    assert len(chosen) == 1
    assert set(chosen) <= os.sched_getaffinity(0)
    code = (
        "import json, os, sys, threading; from optkit.speed.cores import stay_on\n"
        "ready, done = threading.Event(), threading.Event(); found = []\n"
        "def work(): ready.set(); done.wait(); found.append(sorted(os.sched_getaffinity(0)))\n"
        f"t = threading.Thread(target=work); t.start(); ready.wait(); stay_on({chosen}); done.set(); t.join()\n"
        "print(json.dumps([*found, sorted(os.sched_getaffinity(0))]))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(told) == [chosen, chosen]
