"""Headless Chromium over its DevTools protocol: real keys and clicks, sizes of screens, errors of the console."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from tests.reporting.browser import CHROMIUM, FLAGS
from websockets.sync.client import ClientConnection, connect

KEYS = {"Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, ""), " ": (32, " ")}
KEYS |= {"ArrowDown": (40, ""), "ArrowUp": (38, "")}
SHIFT = 8
REFUSED = re.compile("status of (401|422|503) .*/(models|ready|recommend)$")  # shown by the page


class Tab:
    """One tab; ``complaints`` are uncaught errors and errors in the console, breaches of the policy too."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._number, self.complaints = socket, 0, []
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == self._number:
                assert "error" not in message, message["error"]
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(parameters["exceptionDetails"])[:500])
        elif message["method"] == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            if not REFUSED.search(text := f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}"):
                self.complaints.append(text)
        elif message["method"] == "Runtime.consoleAPICalled" and parameters["type"] == "error":
            self.complaints.append(json.dumps(parameters["args"])[:500])

    def screen(self, width: int, height: int, *, dark: bool = False) -> None:
        """Set the size of the screen and the colours that the user prefers, without motion."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        features = [("prefers-color-scheme", "dark" if dark else "light"), ("prefers-reduced-motion", "reduce")]
        self.call("Emulation.setEmulatedMedia", features=[{"name": name, "value": value} for name, value in features])

    def open(self, address: str) -> None:
        """Open a page and wait until it says that it is ready."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=address)
        self.until("document.documentElement?.dataset.ready === 'yes'")

    def run(self, script: str) -> Any:
        """Evaluate an expression of JavaScript."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, condition: str, seconds: float = 20) -> None:
        """Wait until an expression is true."""
        limit = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < limit, f"never true: {condition}; complaints: {self.complaints}"
            time.sleep(0.03)

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press a key, as a keyboard does."""
        code, text = KEYS[key] if key in KEYS else (ord(key.upper()), key)
        event = {"key": key, "windowsVirtualKeyCode": code, "modifiers": SHIFT if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def point(self, selector: str, *, click: bool = False) -> None:
        """Move the mouse over an element and click it if asked."""
        self.run(f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center'}})")
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = self.run(f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({box})")
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        if click:
            for kind in ("mousePressed", "mouseReleased"):
                self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def texts(self, selector: str) -> list[str]:
        return self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.textContent)")

    def focus(self) -> str:
        """Return what a screen reader would call the element with the focus: its label, or else its text or id."""
        return self.run("((e) => e.getAttribute('aria-label') || e.textContent.trim() || e.id)(document.activeElement)")

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser_tab(profile: Path) -> Iterator[Tab]:
    """Start the browser with an empty profile folder and open one tab."""
    port_file = profile / "DevToolsActivePort"
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--remote-debugging-port=0", "--hide-scrollbars"]
    process = subprocess.Popen([*command, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        limit = time.monotonic() + 60
        while not (port_file.is_file() and "\n" in port_file.read_text()):
            assert time.monotonic() < limit, "chromium did not start"
            time.sleep(0.05)
        port = port_file.read_text().split("\n", 1)[0]
        with urlopen(f"http://127.0.0.1:{port}/json") as answer:
            tabs = [tab for tab in json.load(answer) if tab["type"] == "page"]
        with connect(tabs[0]["webSocketDebuggerUrl"], max_size=None) as socket:
            yield Tab(socket)
    finally:
        process.terminate()
        process.wait(20)
