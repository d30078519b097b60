"""Run a Plan: from the source model over every step's pass and check to the report.

One loop does all that can be done by now (`groundwork` first, then each step's `making` and `checking`), and takes the
workers' results as they come (`dispatch`). What is timed comes after it (`timing`, `limits`), and last the report
(`report_making`).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optkit.cache import Cache, open_cache
from optkit.caching import keys
from optkit.delivery.deliver import output_folder
from optkit.disk import disk_error, temporary_files
from optkit.errors import OptkitError, UnavailableError
from optkit.events import Listener, Notice, RunFinished, RunStarted, ignore
from optkit.planning import Plan
from optkit.recipe import SOURCE
from optkit.registry import get_runner
from optkit.report import Report
from optkit.reports import junit
from optkit.running import checking, groundwork, making, timing
from optkit.running.dispatch import Dispatch
from optkit.running.limits import judge_limits
from optkit.running.pool import Pool
from optkit.running.report_making import finished_report, interrupted_report
from optkit.running.runstate import RunState, at_start
from optkit.running.stepstate import StepState


def execute(
    plan: Plan, *, out: Path, cache: Cache | None = None, jobs: int | None = None, listen: Listener = ignore
) -> Report:
    """Run a plan; deliver what was proven to `out`/STEP, and write `out`/report.json. Returns the report.

    jobs: workers at a time; default: one per core, at most 4. A step's failure is in the report. Raised are errors
    that concern the whole run, and are in `out`/report.junit.xml alone: UserError for a source or a dataset that is not
    as the recipe says or an unusable `out`, UnavailableError for what is not installed. An interrupt gives a report
    with exit code 130, in which the steps that were in work are "interrupted"; finished steps stay in the cache.
    """
    cache = cache or open_cache()
    keys.require_tools(plan)
    jobs = jobs or min(4, keys.cores())
    with (
        output_folder(out, plan.deliver),
        cache.scratch() as scratch,
        Pool(jobs, out / "logs") as pool,
    ):
        run = at_start(plan, out, cache, scratch, listen)
        try:
            return _perform(run, Dispatch(run, pool))
        except OSError as error:
            raise _disk_error(error, out, cache) from error
        except OptkitError as error:  # of the whole run: a CI system's test view has to show it too
            junit.write_aborted(plan.recipe.name, error, out)
            raise


def _perform(run: RunState, hands: Dispatch) -> Report:
    run.listen(RunStarted(run.recipe.name, tuple(run.steps)))
    try:
        groundwork.identify(run)
        # The step with the longest way still below it goes first, so that no worker idles at the end.
        urgent = sorted(run.steps.values(), key=lambda state: -run.plan.height(state.step.id))
        while True:
            _advance(run, hands, urgent)
            run.tell_of_cache()
            if all(s.phase == "done" for s in run.steps.values()) and not timing.race(run, hands):
                break  # whatever still warms up is not waited for
            hands.wait()
        judge_limits(run)
        timing.measure(run, hands)
        run.cache.settle()
        report = finished_report(run)
        report.write(run.out / "report.json")
    except KeyboardInterrupt:
        with _undisturbed():
            run.interrupt()
            report = interrupted_report(run)
            report.write(run.out / "report.json")
    finally:
        run.tell_of_cache()
        hands.close()
    if traffic := run.cache.traffic():
        run.listen(Notice("cache", traffic))
    run.listen(RunFinished(report.exit_code, report.data["seconds"]))
    return report


def _advance(run: RunState, hands: Dispatch, urgent: list[StepState]) -> None:
    """Settle all that the cache knows, then fill the free workers."""
    groundwork.advance(run, hands)
    moved = True
    while moved:
        moved = False
        for state in urgent:
            before = (state.phase, state.status)
            if state.phase == "waiting":
                making.start(run, hands, state)
            if state.phase == "made":
                checking.start(run, hands, state)
            if state.phase == "failing":
                checking.start_blame(run, hands, state)
            moved |= before != (state.phase, state.status)
    if not hands.is_idle:
        hands.warm(_coming(run))


def _coming(run: RunState) -> dict[str, None]:
    """The modules that steps still need, the soonest first."""
    coming: dict[str, None] = {}
    for state in run.steps.values():
        if state.phase == "waiting":
            coming |= dict.fromkeys(state.step.use.modules if state.step.python is None else ())
            if state.step.parent == SOURCE:
                coming |= dict.fromkeys(run.source_modules)
        if state.phase != "done":
            coming |= dict.fromkeys(get_runner(state.step.use.target).modules)
    return coming


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignores signals that ask for an end: it has begun, and whoever presses Ctrl-C twice wants a report too."""
    names = ("SIGINT", "SIGTERM", "SIGHUP") if threading.current_thread() is threading.main_thread() else ()
    found = [getattr(signal, name) for name in names if hasattr(signal, name)]  # Windows has no SIGHUP
    ours = [number for number in found if signal.getsignal(number) is not None]  # and not of a program around Python
    before = {number: signal.signal(number, signal.SIG_IGN) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _disk_error(error: OSError, out: Path, cache: Cache) -> OptkitError:
    places = [("the output folder", out, "--out DIR"), ("the cache", cache.root, "--cache DIR"), temporary_files()]
    return disk_error(error, places) or UnavailableError(
        f"{type(error).__name__}: {error}", hint="check the folder and its permissions"
    )
