"""Draws what is happening on standard error: a live display on a terminal, one plain line per event elsewhere."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from optkit.cli.text import clean, count, has_colour, is_terminal, paint, silence, width
from optkit.events import Event, Notice, RunFinished, RunStarted, StepFinished, StepProgress, StepStarted
from optkit.reports.spelling import duration

if TYPE_CHECKING:
    from rich.text import Text

REFRESH_PER_SECOND = 8
QUIET_SECONDS = 5.0  # without a terminal, a step tells of its progress no more often: a log stays readable
ALIVE_SECONDS = 60.0  # without a terminal, a silence is no longer: CI services stop what says nothing

STYLES = {"passed": "good", "failed": "bad", "error": "bad", "blocked": "warn", "waived": "warn", "deferred": "warn",
          "interrupted": "warn", "skipped": "dim"}  # fmt: skip
_PHASES = {"source": "reading the model", "data": "reading the data", "record": "running the source model",
           "run": "running", "check": "checking", "race": "measuring speed",
           "blame": "looking for the layer"}  # fmt: skip


@dataclass
class _Running:
    since: float
    text: str
    fraction: float | None = None


@dataclass
class Console:
    """A listener for one run; use it as a context manager. Events may come from any thread.

    passes: step id to the name of its pass, shown as it starts.
    quiet: draw nothing at all. terminal: None looks at the stream. expected: seconds that a step took last time.
    """

    stream: IO[str] | None = field(default_factory=lambda: sys.stderr)
    quiet: bool = False
    terminal: bool | None = None
    passes: dict[str, str] = field(default_factory=dict)
    expected: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.quiet = self.quiet or self.stream is None  # closed by who started optkit
        self._terminal = is_terminal(self.stream) if self.terminal is None else self.terminal
        self._colour = has_colour(self.stream)
        self._lock = threading.RLock()
        self._start = time.monotonic()
        self._running: dict[str, _Running] = {}
        self._told: dict[str, float] = {}
        self._column = 6
        self._total = 0
        self._steps: tuple[str, ...] = ()
        self._done: set[str] = set()
        self._live: Any = None
        self._last = self._start
        self._ended = threading.Event()

    def __enter__(self) -> Console:
        if self.quiet:
            return self
        if self._terminal:
            self._live = _live(self)
            self._live.start()
        else:
            threading.Thread(target=self._stay_alive, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ended.set()
        with self._lock:
            self._running.clear()
        if self._live is not None:
            with contextlib.suppress(OSError, ValueError):  # the terminal has gone
                self._live.stop()
            self._live = None

    def _stay_alive(self) -> None:
        """Say what still runs after every `ALIVE_SECONDS` of silence."""
        while not self._ended.wait(min(1.0, ALIVE_SECONDS / 4)):
            with self._lock:
                now = time.monotonic()
                if now - self._last < ALIVE_SECONDS:
                    continue
                for step, running in self._running.items():
                    self._line(step, f"{running.text}{percent(running.fraction)}, for {duration(now - running.since)}")
                self._last = now

    def __call__(self, event: Event) -> None:
        """Draw one event."""
        if self.quiet:
            return
        with self._lock:
            if isinstance(event, RunStarted):
                self._total, self._steps = len(event.steps), event.steps
                self._column = min(24, max([6, *(width(clean(s)) for s in event.steps)]))
                self._line("", f"{clean(event.name)}: {count(self._total, 'step')}")
            elif isinstance(event, StepStarted):
                self._started(event)
            elif isinstance(event, StepProgress):
                self._progress(event)
            elif isinstance(event, StepFinished):
                self._finished(event)
            elif isinstance(event, Notice):
                self._line(event.about, clean(event.text))
            elif isinstance(event, RunFinished):
                self._running.clear()

    def _started(self, event: StepStarted) -> None:
        text = _PHASES.get(event.phase, event.phase)
        if event.phase == "run" and event.step in self.passes:
            text = f"running {self.passes[event.step]}"
        if event.phase == "check":
            self._running.pop("source", None)  # checks start when the source model's answers are there
        now = time.monotonic()
        # A step's time counts on from its pass to its check; the source's phases overlap the steps and each other.
        before = self._running.get(event.step) if event.phase in ("check", "blame") else None
        self._running[event.step] = _Running(before.since if before else now, clean(text))
        self._told[event.step] = now
        if self._live is None:
            self._line(event.step, f"{clean(text)} ...")

    def _progress(self, event: StepProgress) -> None:
        running = self._running.setdefault(event.step, _Running(time.monotonic(), ""))
        running.text, running.fraction = clean(event.text), event.fraction
        if self._live is not None:
            return
        now = time.monotonic()
        if now - self._told.get(event.step, 0.0) >= QUIET_SECONDS:
            self._told[event.step] = now
            self._line(event.step, running.text + percent(event.fraction))

    def _finished(self, event: StepFinished) -> None:
        self._running.pop(event.step, None)
        self._done.add(event.step)
        how = ", cached" if event.cached else f", {duration(event.seconds)}"
        if event.status in ("blocked", "interrupted", "skipped"):
            how = ""
        text = f": {clean(why(event))}" if why(event) else ""
        self._line(event.step, f"{paint(event.status, STYLES.get(event.status, ''), self._colour)}{how}{text}")

    def _line(self, step: str, text: str) -> None:
        name = clean(step)
        body = f"{name}{' ' * (self._column - width(name))}  {text}" if name else text
        elapsed = time.monotonic() - self._start
        line = f"[{elapsed:6.1f}s] {body}"
        self._last = time.monotonic()
        try:
            if self._live is not None:
                from rich.text import Text

                self._live.console.print(Text.from_ansi(line), soft_wrap=True)
            elif self.stream is not None:
                self.stream.write(line + "\n")
                self.stream.flush()
        except (OSError, ValueError):  # nobody reads on: no reason to stop the run
            self.quiet = True
            silence(self.stream)

    def frame(self) -> Text:
        """The live display's present content: each running step with the time it has taken so far."""
        from rich.text import Text

        now = time.monotonic()
        out = Text(no_wrap=True, overflow="ellipsis")
        with self._lock:
            for step, running in self._running.items():
                name = clean(step)
                out.append(f"{now - running.since:7.1f}s  ", "dim")
                if name:
                    out.append(f"{name}{' ' * (self._column - width(name))}  ", "cyan")
                out.append(running.text + percent(running.fraction))
                if about := self.expected.get(step):
                    out.append(f", took {duration(about)} last time", "dim")
                out.append("\n" if self._total else "")
            if not self._total:
                return out
            out.append(f"{len(self._done)} of {count(self._total, 'step')}, {duration(now - self._start)}", "dim")
            if waiting := [clean(s) for s in self._steps if s not in self._done and s not in self._running]:
                out.append(f"; to come: {', '.join(waiting)}", "dim")
        return out


def seconds_before(report: Path) -> dict[str, float]:
    """Seconds that each step's pass and check took in an earlier run's report.json; {} where there is none."""
    try:
        steps = json.loads(report.read_text(encoding="utf-8"))["steps"]
        made = [step for step in steps if step["made_seconds"]]
        return {step["id"]: step["made_seconds"] + (step["seconds"]["check"] or 0.0) for step in made}
    except (OSError, ValueError, KeyError, TypeError):  # it only helps to wait
        return {}


def why(event: StepFinished) -> str:
    """The reason of a status in one line: the error, the first bound that does not hold, or the step it waits for."""
    if event.status == "failed":
        from optkit.reports.rows import broken

        return next(iter(broken(event.data)), event.text)
    if event.status == "blocked" and event.text:
        return f"{event.text} did not succeed"
    return event.text.partition("\n")[0]


class _Frame:
    """What rich asks for a new picture, some times a second."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __rich__(self) -> Text:
        return self._console.frame()


@contextlib.contextmanager
def waiting(text: str, quiet: bool = False) -> Iterator[None]:
    """On a terminal, show what goes on and for how long; elsewhere, and if `quiet`, nothing."""
    if quiet or not is_terminal(sys.stderr):
        yield
        return
    console = Console()
    console._running[""] = _Running(time.monotonic(), clean(text))
    with console:
        yield


def _live(console: Console) -> Any:
    from rich.console import Console as RichConsole
    from rich.live import Live

    drawn_on = RichConsole(file=console.stream, force_terminal=True, highlight=False, markup=False, emoji=False)
    return Live(_Frame(console), console=drawn_on, refresh_per_second=REFRESH_PER_SECOND, transient=True,
                redirect_stdout=False, redirect_stderr=False)  # fmt: skip


def percent(fraction: float | None) -> str:
    """A fraction of 0.4 as " 40%", None as ""."""
    return "" if fraction is None else f" {min(max(fraction, 0.0), 1.0):.0%}"
