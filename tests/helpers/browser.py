"""Chromium without a window, controlled through a pipe by the Chrome DevTools Protocol.

Nothing leaves the machine: the browser resolves no host names.
"""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Browser", "find_browser"]

COMMANDS = ("chromium", "chromium-browser", "google-chrome")

TIMEOUT = 120
"""Seconds to wait for an answer."""

OPTIONS = [
    "--headless",
    "--no-sandbox",  # root cannot use the sandbox
    "--disable-gpu",
    "--disable-dev-shm-usage",  # in containers, /dev/shm may be too small
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-crash-reporter",
    "--no-first-run",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
]


def find_browser() -> str | None:
    """Return the path of Chromium or Chrome, or None if neither is installed."""
    return next(filter(None, map(shutil.which, COMMANDS)), None)


class Browser:
    """A Chromium process with one page.

    Use it in a ``with`` statement, which opens the page and ends the process.

    Parameters
    ----------
    directory : Path
        An empty directory for the browser's own files.
    """

    def __init__(self, directory: Path) -> None:
        command = find_browser()
        assert command is not None, "Chromium is not installed"
        self._log = directory / "browser.log"
        self._numbers = itertools.count(1)
        self._session = ""
        self._events: list[dict[str, Any]] = []
        self._received = b""
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        # The browser uses the descriptors 3 and 4, and DUP2 closes any files with these numbers.
        # So the ends of the pipes are first copied to numbers from 10 on.
        commands_copy, answers_copy = (
            fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (commands, answers)
        )
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            self._process = os.posix_spawn(
                command,
                [command, *OPTIONS, f"--user-data-dir={directory / 'profile'}", "about:blank"],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 1, str(self._log), flags, 0o600),
                    (os.POSIX_SPAWN_OPEN, 2, str(self._log), flags, 0o600),
                    (os.POSIX_SPAWN_DUP2, commands_copy, 3),
                    (os.POSIX_SPAWN_DUP2, answers_copy, 4),
                ],
                setpgroup=0,
            )
        finally:
            for fd in (commands, answers, commands_copy, answers_copy):
                os.close(fd)

    def __enter__(self) -> Browser:
        try:
            page = self.call("Target.createTarget", url="about:blank")["targetId"]
            attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
            self._session = attached["sessionId"]
            self.call("Page.enable")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the browser and its processes."""
        os.close(self._commands)
        os.close(self._answers)
        os.killpg(self._process, signal.SIGKILL)
        os.waitpid(self._process, 0)

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the protocol, and return its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != number:
            self._events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._received:
            if not select.select([self._answers], [], [], TIMEOUT)[0]:
                raise TimeoutError(f"no answer of the browser in {TIMEOUT} s: {self._errors()}")
            block = os.read(self._answers, 1 << 20)
            if not block:
                raise RuntimeError(f"the browser ended: {self._errors()}")
            self._received += block
        message, _, self._received = self._received.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def _errors(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]

    def open(self, path: Path, *, dark: bool = False, width: int = 1100, scale: float = 1) -> None:
        """Show a file, and wait until it is loaded.

        Parameters
        ----------
        path : Path
            An HTML file.
        dark : bool, default: False
            Whether the browser prefers dark colors.
        width : int, default: 1100
            Width of the page, in CSS pixels.
        scale : float, default: 1
            Screenshot pixels per CSS pixel.
        """
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=800, deviceScaleFactor=scale, mobile=False,
        )  # fmt: skip
        self._events.clear()
        self.call("Page.navigate", url=path.absolute().as_uri())
        while all(event.get("method") != "Page.loadEventFired" for event in self._events):
            self._events.append(self._receive())

    def evaluate(self, script: str) -> Any:
        """Run an expression of JavaScript, wait for its promise, and return the value."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"in the page: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def screenshot(self, x: float, y: float, width: float, height: float) -> bytes:
        """Return a part of the page as a PNG file; the parameters are in CSS pixels."""
        clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        answer = self.call(
            "Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True
        )
        return base64.b64decode(answer["data"])
