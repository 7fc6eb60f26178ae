"""Chromium without a screen, driven by its own driver (WebDriver, over HTTP)."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SITE = "mirrors.lan"  # without HTTPS and not localhost: what browsers call an insecure context
CONTROL = "\ue009"  # WebDriver's key codes
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server",
    "--hide-scrollbars",
    f"--host-resolver-rules=MAP {SITE} 127.0.0.1, MAP * ~NOTFOUND",
)  # fmt: skip


class Browser:
    """One window.  `run` is JavaScript with `return`; `cdp` is a command of the DevTools protocol."""

    def __init__(self, driver: str, session: str) -> None:
        self._url = f"{driver}/session/{session}"

    def call(self, method: str, path: str, body: object = None) -> Any:
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"}, method=method)
        with _OPENER.open(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def open(self, url: str) -> None:
        self.call("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: object) -> Any:
        return self.call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def cdp(self, command: str, **parameters: object) -> Any:
        return self.call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        self.cdp(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )  # fmt: skip

    def colours(self, scheme: str) -> None:
        """Light or dark."""
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for something that the page does by itself."""
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, what
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """As a person does, with the mouse."""
        element = self.call("POST", "/element", {"using": "css selector", "value": selector})
        self.call("POST", f"/element/{next(iter(element.values()))}/click")

    def pasted(self) -> str:
        """What the clipboard holds, by pasting it into a field."""
        self.run("const f = document.createElement('textarea'); f.id = 'paste'; document.body.append(f); f.focus();")
        keys = [{"type": kind, "value": key} for kind, key in (("keyDown", CONTROL), ("keyDown", "v"), ("keyUp", "v"),
                                                               ("keyUp", CONTROL))]  # fmt: skip
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": keys}]})
        return str(self.run("const f = document.getElementById('paste'); const v = f.value; f.remove(); return v;"))

    def picture(self, file: Path) -> None:
        """What the window shows, as PNG."""
        shot = self.cdp("Page.captureScreenshot")
        file.write_bytes(base64.b64decode(shot["data"]))

    def said(self) -> list[str]:
        """What the console says since this was asked last: errors of scripts, of the policy, of the network."""
        return [entry["message"] for entry in self.call("POST", "/se/log", {"type": "browser"})]

    def asked(self) -> list[str]:
        """URLs that were asked for since this was asked last."""
        events = [
            json.loads(entry["message"])["message"] for entry in self.call("POST", "/se/log", {"type": "performance"})
        ]
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


@contextmanager
def browser() -> Iterator[Browser]:
    """Started for the block."""
    driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout
        port = next(found[1] for line in driver.stdout if (found := re.search(r"successfully on port (\d+)", line)))
        url = f"http://127.0.0.1:{port}"
        options = {"args": list(_OPTIONS), "binary": "/usr/bin/chromium"}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        body = json.dumps({"capabilities": {"alwaysMatch": wanted}}).encode()
        with _OPENER.open(urllib.request.Request(f"{url}/session", body), timeout=120) as answer:
            session = json.load(answer)["value"]["sessionId"]
        window = Browser(url, session)
        yield window
        window.call("DELETE", "")
    finally:
        driver.terminate()
        driver.wait(60)
