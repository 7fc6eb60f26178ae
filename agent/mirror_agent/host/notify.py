"""What we tell systemd about ourselves: sd_notify(3) for Type=notify-reload and WatchdogSec=.

Outside of systemd (no NOTIFY_SOCKET) all of these do nothing.
"""

from __future__ import annotations

import time

from systemd import daemon


def ready() -> None:
    """Start-up, or the reload begun by reloading(), is over."""
    daemon.notify("READY=1")


def reloading() -> None:
    """A reload asked for by SIGHUP begins.  systemd believes it only with the time, in µs, at which it began."""
    daemon.notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def stopping() -> None:
    """We are about to exit."""
    daemon.notify("STOPPING=1")


def status(text: str) -> None:
    """The line that `systemctl status` shows.  Only its first line is taken: more would be other assignments."""
    daemon.notify("STATUS=" + (text.splitlines() or [""])[0])


def watchdog() -> None:
    """Still alive."""
    daemon.notify("WATCHDOG=1")
