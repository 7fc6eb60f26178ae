"""systemd over D-Bus: what units are doing, jobs and how they ended, hints about changes.

The connection is private: the shared one of GLib kills the process when the bus goes away.  One thread owns the
GLib loop and only takes signals; calls are made by whoever needs them, always with a time limit (the default of
D-Bus is none).  A lost connection is not mended: `lost` is set, every call raises `BusLost`, the daemon is to exit
non-zero and let systemd start it again, since what was missed meanwhile is found by reconciling from scratch.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

import pydbus
from gi.repository import Gio, GLib

from mirror_agent.model import Trouble, UnitState

SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"
CALL_S = 25.0  # every call but Reload: they only read, or queue a job
RELOAD_S = 90.0  # 0.2 s with five quadlets, 3.6 s with a thousand; generators of others may be slow

_SYSTEMD = "org.freedesktop.systemd1"
_UNIT = "org.freedesktop.systemd1.Unit"
_ROOT = "/org/freedesktop/systemd1"
_UNKNOWN = (_SYSTEMD + ".NoSuchUnit", _SYSTEMD + ".LoadFailed")


class BusLost(Trouble):
    """The connection to D-Bus is gone for good: exit, and start again from scratch."""

    def __init__(self) -> None:
        super().__init__("D-Bus", "the connection to the system bus was lost", "systemd restarts the agent")


class Refused(Trouble):
    """systemd said no to a call; `name` is the D-Bus name of the error."""

    def __init__(self, call: str, name: str, reason: str) -> None:
        super().__init__(f"systemd: {call}", reason)
        self.name = name


def unit_name(path: str) -> str:
    """The unit behind an object path: every byte but letters and digits is written `_xx` (sd_bus_path_encode(3))."""
    escaped = path.removeprefix(_ROOT + "/unit/")
    return re.sub(r"_([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), escaped)


class Systemd:
    """A private connection to PID 1.  Thread-safe.  Raises Trouble when the bus cannot be reached."""

    def __init__(self, address: str = SYSTEM_BUS, prefix: str = "mirror-") -> None:
        self.lost = threading.Event()
        self._address = address
        self._prefix = prefix  # of the units whose changes are told
        self._listeners: list[Callable[[str], None]] = []
        self._news = threading.Condition()  # guards the next two
        self._results: dict[str, str] = {}  # by job path; kept only while somebody waits for jobs
        self._waiting = 0
        self._reloading = threading.Lock()
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._serve, args=(started,), name="d-bus", daemon=True)
        self._thread.start()
        try:
            started.result(timeout=2 * CALL_S)
        except GLib.Error as error:
            raise Trouble("D-Bus", f"no connection to systemd: {error.message}", "is dbus running?") from error

    # --- the thread of the loop ---

    def _serve(self, started: Future[None]) -> None:
        self._context = GLib.MainContext.new()
        self._context.push_thread_default()  # signals of a connection arrive where it was made
        self._loop = GLib.MainLoop.new(self._context, False)
        try:
            self._connect()
        except Exception as error:  # whatever it is, __init__ waits for it
            started.set_exception(error)
            return
        else:
            started.set_result(None)
            self._loop.run()
        finally:
            self._context.pop_thread_default()

    def _connect(self) -> None:
        self._bus = pydbus.connect(self._address)
        self._bus.con.connect("closed", self._closed)
        self._manager = self._bus.get(_SYSTEMD, _ROOT, timeout=CALL_S)[_SYSTEMD + ".Manager"]
        self._manager.JobRemoved.connect(self._job_removed)
        # UnitNew and UnitRemoved are left alone: one Reload emits hundreds of them
        self._bus.subscribe(
            sender=_SYSTEMD,
            iface="org.freedesktop.DBus.Properties",
            signal="PropertiesChanged",
            arg0=_UNIT,
            signal_fired=self._changed,
        )
        self._manager.Subscribe(timeout=CALL_S)

    def _closed(self, *_: object) -> None:
        self.lost.set()
        with self._news:
            self._news.notify_all()
        for listener in tuple(self._listeners):
            listener("")  # so that a sleeping daemon wakes up and sees `lost`

    def _job_removed(self, _number: int, path: str, _unit: str, result: str) -> None:
        with self._news:
            if self._waiting:
                self._results[path] = result
                self._news.notify_all()

    def _changed(self, _sender: str, path: str, *_: object) -> None:
        name = unit_name(path)
        if name.startswith(self._prefix):
            for listener in tuple(self._listeners):
                listener(name)

    # --- calls ---

    def _call(self, method: str, *arguments: object, timeout_s: float = CALL_S) -> Any:
        if self.lost.is_set():
            raise BusLost
        try:
            return getattr(self._manager, method)(*arguments, timeout=timeout_s)
        except GLib.Error as error:
            raise self._explained(method, arguments, error) from error

    def _explained(self, method: str, arguments: tuple[object, ...], error: Any) -> Trouble:
        call = f"{method}({', '.join(str(argument) for argument in arguments)})"
        if self.lost.is_set() or error.matches(Gio.io_error_quark(), Gio.IOErrorEnum.CLOSED):
            return BusLost()
        if error.matches(Gio.io_error_quark(), Gio.IOErrorEnum.TIMED_OUT):
            return Trouble(f"systemd: {call}", "no answer within the time limit", "is systemd busy or frozen?")
        name = Gio.DBusError.get_remote_error(error) or ""
        return Refused(call, name, str(error.message).removeprefix(f"GDBus.Error:{name}: "))

    def _get(self, path: str, interface: str, name: str) -> Any:
        """One property, without the introspection that a proxy object costs (60 kB of XML for a unit)."""
        if self.lost.is_set():
            raise BusLost
        try:
            answer = self._bus.con.call_sync(
                _SYSTEMD,
                path,
                "org.freedesktop.DBus.Properties",
                "Get",
                GLib.Variant("(ss)", (interface, name)),
                GLib.VariantType.new("(v)"),
                Gio.DBusCallFlags.NONE,
                int(CALL_S * 1000),
                None,
            )
        except GLib.Error as error:
            raise self._explained("Get", (path, name), error) from error
        return answer.unpack()[0]

    def version(self) -> int:
        """The major version of systemd, e.g. 257."""
        found = re.match(r"\d+", self._get(_ROOT, _SYSTEMD + ".Manager", "Version"))
        return int(found[0]) if found else 0

    def units(self, names: Iterable[str]) -> dict[str, UnitState]:
        """What each of these units is doing; one that systemd does not know has `load` "not-found"."""
        states = {}
        for name, _description, load, active, sub, _following, path, *_job in self._call(
            "ListUnitsByNames", list(names)
        ):
            need = load == "loaded" and self._get(path, _UNIT, "NeedDaemonReload")
            source = self._get(path, _UNIT, "SourcePath") if load != "not-found" else ""
            states[name] = UnitState(load, active, sub, bool(need), source)
        return states

    def reload(self) -> None:
        """Let systemd run its generators and read all units again.  One at a time (podman#29004)."""
        with self._reloading:
            self._call("Reload", timeout_s=RELOAD_S)

    def reset_failed(self, name: str) -> None:
        """Forget that a unit failed.  A unit that is not loaded has nothing to forget."""
        try:
            self._call("ResetFailedUnit", name)
        except Refused as refused:
            if refused.name not in _UNKNOWN:
                raise

    # --- jobs ---

    def start(self, names: Iterable[str], timeout_s: float) -> dict[str, str]:
        """Start units side by side and wait for all: the result of each, "done" or systemd's word for why not.

        The words are those of JobRemoved in org.freedesktop.systemd1(5): done, failed, dependency, timeout,
        canceled, skipped.  "timeout" is also a job that was not over within `timeout_s` seconds; it goes on.  A unit
        for which no job could be made has systemd's message as its result.
        """
        return self._jobs("StartUnit", names, timeout_s)

    def restart(self, names: Iterable[str], timeout_s: float) -> dict[str, str]:
        """Like start(), of units that run or not."""
        return self._jobs("RestartUnit", names, timeout_s)

    def stop(self, names: Iterable[str], timeout_s: float) -> dict[str, str]:
        """Like start().  A unit that systemd does not know is stopped: "done"."""
        return self._jobs("StopUnit", names, timeout_s)

    def reload_units(self, names: Iterable[str], timeout_s: float) -> dict[str, str]:
        """Like start(): run ExecReload= of units that run."""
        return self._jobs("ReloadUnit", names, timeout_s)

    def _jobs(self, method: str, names: Iterable[str], timeout_s: float) -> dict[str, str]:
        deadline = time.monotonic() + timeout_s
        results: dict[str, str] = {}
        jobs: dict[str, str] = {}
        with self._recording():
            for name in names:
                try:
                    jobs[name] = self._call(method, name, "replace")
                except Refused as refused:
                    stopped = method == "StopUnit" and refused.name in _UNKNOWN
                    results[name] = "done" if stopped else refused.reason
            for name, path in jobs.items():
                results[name] = self._result(path, deadline)
        return results

    @contextmanager
    def _recording(self) -> Iterator[None]:
        """Keep the results of all jobs meanwhile: one may come before the call that made the job returns (1 in 7)."""
        with self._news:
            self._waiting += 1
        try:
            yield
        finally:
            with self._news:
                self._waiting -= 1
                if not self._waiting:
                    self._results.clear()

    def _result(self, path: str, deadline: float) -> str:
        with self._news:
            while path not in self._results:
                if self.lost.is_set():
                    raise BusLost
                left = deadline - time.monotonic()
                if left <= 0:
                    return "timeout"
                self._news.wait(left)
            return self._results[path]

    # --- changes ---

    def on_change(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Tell the names of our units that changed, "" when the bus is lost, until the returned function is called.

        The callback runs in the loop's thread: it must be quick and must not call systemd.
        """
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    def close(self) -> None:
        """End the connection and its thread."""
        quitting = GLib.idle_source_new()  # quit() before run() would be lost: let the loop itself do it
        quitting.set_callback(lambda *_: self._loop.quit())
        quitting.attach(self._context)
        self._thread.join(CALL_S)
        self.lost.set()
        with suppress(GLib.Error):
            self._bus.con.close_sync(None)
