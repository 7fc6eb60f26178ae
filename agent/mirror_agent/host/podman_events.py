"""podman's stream of events as hints: which container of ours started or ended.

Outages are bridged by asking again with `since`, and what is told twice that way is told once.  The client is one of
its own: a client's time limit is the stream's read limit as well, and events have none.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

from podman.api.client import APIClient
from podman.errors import APIError

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0
_ACTIONS = ("start", "died", "remove")  # what changes the answer to "does it run"; the rest is noise
_OURS = "mirror-"


def hint(event: Mapping[str, Any]) -> str:
    """What to look at, as "UNIT ACTION", for an event of a container that a unit of ours runs, else ""."""
    unit = (event.get("Actor") or {}).get("Attributes", {}).get("PODMAN_SYSTEMD_UNIT", "")
    action = event.get("Action", "")
    return f"{unit} {action}" if unit.startswith(_OURS) and action in _ACTIONS else ""


class Events:
    """A thread that reads events and calls back, until stop()."""

    def __init__(self, uri: str, callback: Callable[[str], None]) -> None:
        self._uri = uri
        self._callback = callback
        self._stopped = threading.Event()
        self._wire: socket.socket | None = None
        self._lock = threading.Lock()  # between stop() and a stream that is being opened
        self._wait = FIRST_WAIT_S  # until the next attempt
        self._since = int(time.time())
        self._seen: deque[tuple[int, str, str]] = deque(maxlen=512)
        self._thread = threading.Thread(target=self._run, name="podman-events", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, also out of a read that nothing would ever end."""
        self._stopped.set()
        with self._lock:
            if self._wire is not None:
                with contextlib.suppress(OSError):
                    self._wire.shutdown(socket.SHUT_RDWR)
        self._thread.join(LONGEST_WAIT_S)

    def _run(self) -> None:
        while not self._stopped.is_set():
            # podman restarts, or is not up yet: the daemon learns of a dead podman from its own calls
            with contextlib.suppress(APIError, OSError, ValueError):
                self._read()
            self._stopped.wait(self._wait)
            self._wait = min(2 * self._wait, LONGEST_WAIT_S)

    def _read(self) -> None:
        asked = {"filters": '{"type":["container"]}', "since": str(self._since), "stream": "true"}
        with contextlib.closing(APIClient(base_url=self._uri)) as client:
            response = client.get(f"/events?{urlencode(asked)}", stream=True)
            with contextlib.closing(response):
                response.raise_for_status()
                self._wait = FIRST_WAIT_S
                self._open(response.raw.fileno())
                try:
                    for line in response.iter_lines(chunk_size=None):
                        self._take(json.loads(line))
                finally:
                    self._shut()

    def _open(self, descriptor: int) -> None:
        """Keep a second handle of the connection: shutting it down ends a read in the other thread."""
        with self._lock:
            self._wire = socket.socket(fileno=os.dup(descriptor))
            if self._stopped.is_set():
                self._wire.shutdown(socket.SHUT_RDWR)

    def _shut(self) -> None:
        with self._lock:
            if self._wire is not None:
                self._wire.close()
                self._wire = None

    def _take(self, event: Mapping[str, Any]) -> None:
        key = (int(event.get("timeNano", 0)), (event.get("Actor") or {}).get("ID", ""), event.get("Action", ""))
        if key in self._seen:
            return
        self._seen.append(key)
        self._since = int(event.get("time", self._since))
        if text := hint(event):
            self._callback(text)
