"""A headless Chromium for tests, spoken to over a pipe in its DevTools protocol; no other package is needed."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

__all__ = ["CONTRAST", "Browser", "open_browser"]

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--remote-debugging-pipe",
)  # fmt: skip
_PATIENCE_S = 40.0

# Letters that stand out from their ground by less than 4.5 : 1.
CONTRAST = """
(() => {
  const colour = (text) => { const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number); return [r, g, b, a]; };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (it) => {
    for (let at = it; at; at = at.parentElement) {
      const found = colour(getComputedStyle(at).backgroundColor);
      if (found[3] > 0.5) return found;
    }
    return [255, 255, 255, 1];
  };
  const poor = [];
  for (const it of document.querySelectorAll("main *")) {
    const own = [...it.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !it.getClientRects().length) continue;
    const style = getComputedStyle(it);
    const front = light(colour(it.closest("svg") ? style.fill : style.color));
    const back = light(behind(it));
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    if (ratio < 4.5) poor.push([it.tagName, it.textContent.trim().slice(0, 30), ratio]);
  }
  return poor;
})()
"""


class Browser:
    """One page of a running Chromium.

    Attributes:
        complaints: Errors and warnings of the console, and exceptions of scripts.
        requests: Addresses that the page asked for, its own among them.
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._rest = b""
        self._number = 0
        self._session = ""
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, path: Path, *, width_px: int = 1200, height_px: int = 900, dark: bool = False) -> None:
        """Load a file and wait until it is there."""
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width_px, height=height_px, deviceScaleFactor=1, mobile=False
        )
        self.media(dark=dark)
        self._call("Page.navigate", url=path.as_uri())
        for _ in range(200):
            if self.ask("document.readyState") == "complete" and self.ask("location.protocol") == "file:":
                return
            time.sleep(0.02)
        raise AssertionError(f"{path} did not load")

    def media(self, *, dark: bool = False, kind: str = "") -> None:
        """Ask for the dark or the light look, on a screen or on paper."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", media=kind, features=scheme)

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def point(self, x: float, y: float, *, click: bool = False) -> None:
        """Move the pointer there, and press it where asked."""
        for kind in ("mouseMoved", *(("mousePressed", "mouseReleased") if click else ())):
            button = "none" if kind == "mouseMoved" else "left"
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1)

    def press(self, key: str) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key)

    def _call(self, method: str, **parameters: object) -> dict[str, Any]:
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _next(self) -> dict[str, Any]:
        end_s = time.monotonic() + _PATIENCE_S
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(end_s - time.monotonic(), 0))
            part = os.read(self._from, 1 << 20) if ready else b""
            assert part, "the browser does not answer"
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        return json.loads(text)

    def _note(self, event: dict[str, Any]) -> None:
        method, found = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(found["exceptionDetails"]["text"])
        elif method == "Runtime.consoleAPICalled" and found["type"] in ("error", "warning"):
            self.complaints.append(str(found["args"]))
        elif method == "Log.entryAdded" and found["entry"]["level"] in ("error", "warning"):
            self.complaints.append(found["entry"]["text"])


@contextlib.contextmanager
def open_browser(folder: Path) -> Generator[Browser, None, None]:
    """Start a browser with a profile of its own in a folder; the test is skipped where there is none."""
    program = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no chromium on this machine")
    there, to_browser = os.pipe()
    from_browser, back = os.pipe()
    # The browser reads its descriptor 3 and writes to 4. High numbers first, so that neither is overwritten.
    words = [program, *_FLAGS, f"--user-data-dir={folder}", "about:blank"]
    give = (
        "import os, sys; there, back = (os.dup2(int(at), high) for at, high in zip(sys.argv[1:3], (50, 51)));"
        "os.dup2(there, 3); os.dup2(back, 4); os.execvp(sys.argv[3], sys.argv[3:])"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", give, str(there), str(back), *words], pass_fds=(there, back),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(there)
    os.close(back)
    try:
        yield Browser(to_browser, from_browser)
    finally:
        running.terminate()
        try:
            running.wait(timeout=10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
        os.close(to_browser)
        os.close(from_browser)
