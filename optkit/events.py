"""What is happening, as data. The library emits these; only a console draws them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["passed", "failed", "error", "blocked", "waived", "deferred", "interrupted", "skipped"]


@dataclass(frozen=True)
class RunStarted:
    """The plan is about to run; `steps` lists ids in plan order."""

    name: str
    steps: tuple[str, ...]


@dataclass(frozen=True)
class StepStarted:
    """A step's pass, check or recording began; `phase` is "source", "run", "record", "check", "blame" or "race"."""

    step: str
    phase: str


@dataclass(frozen=True)
class StepProgress:
    """A sentence from a running pass; `fraction` is the part done, 0 to 1, where it is known."""

    step: str
    text: str
    fraction: float | None = None


@dataclass(frozen=True)
class StepFinished:
    """A step has its status. `seconds` counts pass and check; `cached` is true when neither ran."""

    step: str
    status: Status
    seconds: float
    cached: bool
    text: str = ""
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Notice:
    """Something about the run as a whole that one should know, such as what the remote cache gave or lacked."""

    about: str
    text: str


@dataclass(frozen=True)
class RunFinished:
    """The run is over."""

    exit_code: int
    seconds: float


Event = RunStarted | StepStarted | StepProgress | StepFinished | Notice | RunFinished
Listener = Callable[[Event], None]


def ignore(event: Event) -> None:
    """A listener that draws nothing: the default of the Python API."""
