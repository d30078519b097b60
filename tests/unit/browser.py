"""A real browser for a test: Chromium over its DevTools pipe, which needs no package and no port."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
"""The browser on PATH, None where there is none."""

_WRONG = {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"}


class Tab:
    """One page. wrong: what it said to the console or threw. asked: every address it asked for."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = os.fdopen(send, "wb", buffering=0), os.fdopen(receive, "rb", buffering=0)
        self._number, self._session, self._rest = 0, "", b""
        self._events: list[dict[str, Any]] = []
        self.wrong: list[Any] = []
        self.asked: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        """Leave the pipes."""
        self._send.close()
        self._receive.close()

    def call(self, method: str, **parameters: Any) -> Any:
        """What a DevTools command returns. Raises RuntimeError where it fails."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        self._send.write(json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def wait_for(self, event: str) -> None:
        """Go on when the event has come."""
        while not any(found["method"] == event for found in self._events):
            self._note(self._read())
        self._events.clear()

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, path: Path) -> None:
        """Load a file and wait until it is there."""
        self._events.clear()
        self.call("Page.navigate", url=path.as_uri())
        self.wait_for("Page.loadEventFired")

    def click(self, selector: str) -> None:
        """Click the middle of an element as a mouse does."""
        x, y = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({behavior: 'instant', block: 'center', inline: 'center'});"
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            chunk = self._receive.read(1 << 16)
            assert chunk, "the browser has gone"
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found

    def _note(self, message: dict[str, Any]) -> None:
        self._events.append(message)
        if message["method"] in _WRONG:
            self.wrong.append(message["params"])
        if message["method"] == "Network.requestWillBeSent":
            self.asked.append(message["params"]["request"]["url"])


@contextlib.contextmanager
def browsing(folder: Path) -> Iterator[Tab]:
    """A page of a browser of its own, with its profile in `folder`, and offline."""
    down, up = os.pipe(), os.pipe()

    def pipes() -> None:  # where Chromium looks for them
        read, write = os.dup(down[0]), os.dup(up[1])  # 3 and 4 may be in use by one another
        os.dup2(read, 3)
        os.dup2(write, 4)

    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
               f"--user-data-dir={folder}", "--no-first-run", "--disable-background-networking"]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, preexec_fn=pipes, close_fds=False, stdout=log, stderr=log)
    os.close(down[0])
    os.close(up[1])
    tab = Tab(down[1], up[0])
    try:
        yield tab
    finally:
        tab.close()
        process.terminate()
        process.wait(timeout=30)
