from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest

from optkit.cli import console as module
from optkit.cli.console import Console, seconds_before
from optkit.events import Event, RunFinished, RunStarted, StepFinished, StepProgress, StepStarted

VERDICT = {"held": False, "output": "y", "bound": "cosine >= 0.99", "text": "y: cosine 0.5"}
CASE = {"name": "samples", "kind": "samples", "held": False, "source": {"problems": []}, "verdicts": [VERDICT]}
CHECKED: dict[str, Any] = {"check": {"cases": [CASE]}}

EVENTS: list[Event] = [
    RunStarted("digits", ("onnx", "int8", "half")),
    StepStarted("source", "source"),
    StepStarted("source", "record"),
    StepStarted("onnx", "run"),
    StepProgress("onnx", "exporting", 0.5),
    StepStarted("onnx", "check"),
    StepFinished("onnx", "passed", 3.21, False),
    StepStarted("int8", "run"),
    StepFinished("int8", "failed", 4.0, True, "", CHECKED),
    StepFinished("half", "blocked", 0.0, False, "int8"),
    RunFinished(1, 9.0),
]


def drawn(events: list[Event], **options: Any) -> list[str]:
    """What a console without a terminal writes, elapsed times left out."""
    stream = io.StringIO()
    with Console(stream, **options) as console:
        for event in events:
            console(event)
    lines = stream.getvalue().splitlines()
    assert all(re.match(r"\[ *\d+\.\ds\] ", line) for line in lines)
    return [line.partition("] ")[2] for line in lines]


def test_without_a_terminal_there_is_one_plain_line_per_event() -> None:
    assert drawn(EVENTS, passes={"onnx": "torch.to_onnx"}) == [
        "digits: 3 steps",
        "source  reading the model ...",
        "source  running the source model ...",
        "onnx    running torch.to_onnx ...",
        "onnx    checking ...",
        "onnx    passed, 3.21 s",
        "int8    running ...",
        "int8    failed, cached: samples: y: cosine 0.5",
        "half    blocked: int8 did not succeed",
    ]


def test_progress_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    console = Console(stream)
    console(StepStarted("onnx", "run"))
    for second in range(13):
        clock[0] = float(second)
        console(StepProgress("onnx", "exporting", second / 12))
    lines = [line.partition("] ")[2] for line in stream.getvalue().splitlines()]
    assert lines == ["onnx    running ...", "onnx    exporting 42%", "onnx    exporting 83%"]


def test_quiet_draws_nothing() -> None:
    assert drawn(EVENTS, quiet=True) == []
    assert drawn(EVENTS, quiet=True, terminal=True) == []


def test_names_and_sentences_are_made_harmless() -> None:
    events: list[Event] = [RunStarted("[red]x\x1b[2J", ("[/]",)), StepStarted("[/]", "run"),
                           StepFinished("[/]", "error", 1.0, False, "bad\x07 [link=x]\nsecond line")]  # fmt: skip
    assert drawn(events) == [
        r"[red]x\x1b[2J: 1 step",
        "[/]     running ...",
        r"[/]     error, 1.00 s: bad\x07 [link=x]",
    ]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_what_runs_and_keeps_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    with Console(stream, passes={"onnx": "torch.to_onnx"}, expected={"onnx": 12.3}) as console:
        for event in EVENTS[:4]:
            console(event)
        frame = console.frame().plain
        assert re.search(r"\d\.\ds  onnx    running torch.to_onnx, took 12.3 s last time\n0 of 3 steps, ", frame)
        assert frame.endswith("; to come: int8, half")
        console(StepProgress("onnx", "[bold]exporting\x1b[2J", 0.5))
        assert r"onnx    [bold]exporting\x1b[2J 50%" in console.frame().plain
        console(EVENTS[5])
        assert "source" not in console.frame().plain
        for event in EVENTS[6:]:
            console(event)
    shown = stream.getvalue()
    assert "onnx    passed, 3.21 s" in shown
    assert "half    blocked: int8 did not succeed" in shown
    assert "\x1b[32m" not in shown  # no colour was asked for; moving the cursor is all that is left
    assert shown.rstrip().endswith("\x1b[2K") or "\x1b[?25h" in shown  # the cursor is back


def test_the_last_run_says_how_long_a_step_takes(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    assert seconds_before(path) == {}
    rows = [{"id": "a", "made_seconds": 2.0, "seconds": {"check": 0.5}},
            {"id": "b", "made_seconds": None, "seconds": {"check": 0.0}}]  # fmt: skip
    path.write_text(json.dumps({"steps": rows}), encoding="utf-8")
    assert seconds_before(path) == {"a": 2.5}
    for text in ("", "[]", '{"steps": [1]}'):
        path.write_text(text, encoding="utf-8")
        assert seconds_before(path) == {}


def test_the_terminal_is_put_back_when_a_run_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()

    def run() -> None:
        with Console(stream) as console:
            console(EVENTS[3])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert "\x1b[?25h" in stream.getvalue()  # shows the cursor


def test_a_steps_time_counts_on_from_its_pass_to_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    console = Console(io.StringIO(), terminal=False)
    console(RunStarted("net", ("onnx",)))
    console(StepStarted("onnx", "run"))
    clock[0] = 107.0
    console(StepStarted("onnx", "check"))
    clock[0] = 109.0
    assert "    9.0s  onnx    checking" in console.frame().plain


def test_a_log_is_never_silent_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ALIVE_SECONDS", 0.2)
    stream = io.StringIO()
    with Console(stream) as console:
        console(StepStarted("onnx", "run"))
        deadline = time.monotonic() + 10
        while ", for " not in stream.getvalue() and time.monotonic() < deadline:
            time.sleep(0.02)
    assert re.search(r"\] onnx    running, for 0\.\d+ s\n", stream.getvalue())


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


@pytest.mark.parametrize("stream", [Gone(), None])
def test_a_run_goes_on_when_nobody_reads_about_it(stream: io.StringIO | None) -> None:
    with Console(stream) as console:
        for event in EVENTS:
            console(event)
        assert console.quiet


def test_waiting_is_shown_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for stream, quiet, shown in ((Terminal(), False, True), (Terminal(), True, False), (io.StringIO(), False, False)):
        monkeypatch.setattr(module.sys, "stderr", stream)
        with module.waiting("comparing a\x1b with b", quiet):
            deadline = time.monotonic() + 10
            while shown and "comparing" not in stream.getvalue() and time.monotonic() < deadline:
                time.sleep(0.02)
        assert (r"comparing a\x1b with b" in stream.getvalue()) == shown
        assert stream.getvalue() == "" or "\x1b[?25h" in stream.getvalue()
