"""A page in headless Chromium, spoken to by the DevTools protocol over a pair of pipes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe"]
WAIT_SECONDS = 120.0


class Browser:
    """An open page."""

    def __init__(self, reading: Any, writing: Any, folder: Path) -> None:
        self._reading, self._writing, self._folder = reading, writing, folder
        self._number = 0
        self._session: str | None = None

    def open(self, page: Path) -> None:
        """Show a page, and keep its downloads in the folder."""
        self._send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self._folder))
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._send("Page.enable")
        self._send("Page.navigate", url=page.as_uri())
        self._wait_for("Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """The value of JavaScript in the page.

        Raises:
            AssertionError: it threw.
        """
        answer = self._send("Runtime.evaluate", expression=expression, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def downloaded(self, name: str) -> str:
        """The content of a download, once it is complete."""
        path, deadline = self._folder / name, time.monotonic() + WAIT_SECONDS
        while not (path.exists() and path.stat().st_size):
            assert time.monotonic() < deadline, f"no download {name} in {list(self._folder.iterdir())}"
            time.sleep(0.05)
        return path.read_text()

    def _send(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._writing.write(json.dumps(message).encode() + b"\0")
        self._writing.flush()
        while (answer := self._receive()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _wait_for(self, event: str) -> None:
        while self._receive().get("method") != event:
            pass

    def _receive(self) -> Any:
        message = b""
        while not message.endswith(b"\0"):
            byte = self._reading.read(1)
            assert byte, "the browser has ended"
            message += byte
        return json.loads(message[:-1])


@contextmanager
def open_page(page: Path, folder: Path) -> Iterator[Browser]:
    """A page in a browser of its own, which keeps downloads in ``folder``."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.fail("no chromium or google-chrome on the path; on Debian: apt-get install chromium")
    to_browser, from_browser = os.pipe(), os.pipe()
    # The browser reads from descriptor 3 and writes to 4.
    shell = f'exec "$0" "$@" 3<&{to_browser[0]} 4>&{from_browser[1]} 2>/dev/null'
    command = ["bash", "-c", shell, program, *OPTIONS, f"--user-data-dir={folder / 'profile'}"]
    process = subprocess.Popen(command, pass_fds=(to_browser[0], from_browser[1]), stdout=subprocess.DEVNULL)
    os.close(to_browser[0])
    os.close(from_browser[1])
    try:
        with os.fdopen(from_browser[0], "rb") as reading, os.fdopen(to_browser[1], "wb") as writing:
            browser = Browser(reading, writing, folder)
            browser.open(page)
            yield browser
    finally:
        process.terminate()
        process.wait(30)
