"""A terminal for tests: runs a program on a pseudo-terminal and keeps what a person would have seen."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_CODES = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n])")


@dataclass
class Screen:
    """What stands on a terminal that scrolls without end. `wrapped` counts lines that were broken at its right edge."""

    columns: int
    lines: list[list[str]] = field(default_factory=lambda: [[]])
    row: int = 0
    column: int = 0
    cursor_shown: bool = True
    wrapped: int = 0

    def feed(self, text: str) -> None:
        """Draw; a control sequence that no program of ours should use raises ValueError."""
        for number, final, back, down, char in _CODES.findall(text):
            if back:
                self.column = 0
            elif down:
                self._to(self.row + 1)
            elif char:
                if self.column >= self.columns:
                    self._to(self.row + 1)
                    self.column, self.wrapped = 0, self.wrapped + 1
                line = self.lines[self.row]
                line.extend(" " * (self.column - len(line)))
                line[self.column : self.column + 1] = [char]
                self.column += 1
            elif final == "A":
                self.row = max(0, self.row - int(number or 1))
            elif final == "K":
                self.lines[self.row] = [] if number == "2" else self.lines[self.row][: self.column]
            elif final in "hl" and number == "?25":
                self.cursor_shown = final == "h"
            elif final != "m":
                raise ValueError(f"CSI {number}{final}")

    def _to(self, row: int) -> None:
        self.row = row
        self.lines.extend([] for _ in range(row + 1 - len(self.lines)))

    @property
    def text(self) -> str:
        """The lines, without the blanks at their ends."""
        return "\n".join("".join(line).rstrip() for line in self.lines)


@dataclass(frozen=True)
class Seen:
    """A program's run: its exit code, what stood on the screen after each piece of output, and at the end."""

    code: int
    screen: Screen
    frames: tuple[str, ...]
    raw: str
    seconds_after_key: float


def watch(
    arguments: Sequence[str], cwd: Path, columns: int = 80, env: Mapping[str, str] | None = None,
    interrupt_at: str | None = None, limit: float = 60.0,
) -> Seen:  # fmt: skip
    """Run a program on a terminal. interrupt_at: press Ctrl-C once this stands on the screen."""
    pid, terminal = pty.fork()
    if pid == 0:  # the child
        os.chdir(cwd)
        os.execvpe(arguments[0], list(arguments), {**os.environ, "TERM": "xterm-256color", **(env or {})})
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    screen, frames, raw, pressed = Screen(columns), [], "", 0.0
    decoder = _decoder()
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if not select.select([terminal], [], [], 0.05)[0]:
            continue
        try:
            data = os.read(terminal, 65536)
        except OSError:  # Linux's way to say that the other side is closed
            break
        if not data:
            break
        text = decoder.decode(data)
        raw += text
        screen.feed(text)
        frames.append(screen.text)
        if interrupt_at is not None and not pressed and interrupt_at in screen.text:
            os.write(terminal, b"\x03")
            pressed = time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        if time.monotonic() >= end:
            os.kill(pid, 9)
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    return Seen(os.waitstatus_to_exitcode(status), screen, tuple(frames), raw, time.monotonic() - pressed)


def _decoder():  # type: ignore[no-untyped-def]
    import codecs

    return codecs.getincrementaldecoder("utf-8")()
