"""A cluster as target: reads what it says about images, and applies changes to it.

The API server may hang, however its connections are limited in time; so it is spoken to in a thread of its own, and
whoever asks waits a moment for the answer and goes on without one.  The `kubernetes` package is imported there only:
hosts without a cluster need not have it.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from mirror_agent.cluster import NAMESPACE, place, trust_name
from mirror_agent.model import Change, ClusterSettings, ClusterState, Pool
from mirror_agent.targets.target import TargetError

ANSWER_SECONDS = 5.0  # that a look waits for the cluster
APPLY_SECONDS = 60.0  # that a round of changes may take in all
REQUEST_SECONDS = (5.0, 10.0)  # to connect; for each answer
FRESH_SECONDS = 10.0  # that what was read is good for
BACKOFF_SECONDS = (2, 5, 15, 30, 60, 120, 300)

CONFIG = "/apis/config.openshift.io/v1"
LISTS: Mapping[str, str] = {
    "ImageDigestMirrorSet": f"{CONFIG}/imagedigestmirrorsets",
    "ImageTagMirrorSet": f"{CONFIG}/imagetagmirrorsets",
    "ImageContentSourcePolicy": "/apis/operator.openshift.io/v1alpha1/imagecontentsourcepolicies",
}
IMAGE = f"{CONFIG}/images/cluster"
CONFIG_MAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
POOLS = "/apis/machineconfiguration.openshift.io/v1/machineconfigpools"

# HTTP status → (what it means, what to do about it); what the API server says itself comes in between.
ANSWERS: Mapping[int, tuple[str, str]] = {
    401: ("the credentials are not accepted", "write a valid token into the kubeconfig; it is read again by itself"),
    403: ("not allowed", "apply /usr/share/doc/mirror-agent/rbac.yaml to the cluster"),
    404: ("it has no such kind or object", "is this OpenShift or OKD, 4.13 or later?"),
    409: ("somebody else has or changes it", "it is looked at again"),
    422: ("it is refused", ""),
    429: ("the API server has too much to do", "it is tried again"),
}

type Json = dict[str, Any]


def read(settings: ClusterSettings) -> ClusterState:
    """What the cluster says about images, at most FRESH_SECONDS old.  Raises TargetError, within ANSWER_SECONDS."""
    return _session(settings).state()


def publish(settings: ClusterSettings, changes: Sequence[Change], alive: Callable[[], None]) -> None:
    """Apply the changes in their order, after a dry run of all.  Raises TargetError at the first that is refused."""
    _session(settings).apply(changes, alive)


@cache
def _session(settings: ClusterSettings) -> Session:
    return Session(settings)


class Session:
    """One cluster: at most one conversation at a time, and what it said last."""

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        self._work: _Work[Any] | None = None
        self._state: ClusterState | None = None
        self._error: TargetError | None = None
        self._failures = 0
        self._next = 0.0  # when to ask again (monotonic)
        self._stamp: object = None  # of the kubeconfig that was used last
        self._api: _Api | None = None

    def state(self) -> ClusterState:
        """See read()."""
        stamp = _stamp(self._settings.kubeconfig)
        if stamp != self._stamp:  # a new token: what failed with the old one says nothing
            self._stamp, self._api, self._next, self._failures = stamp, None, 0.0, 0
        patience = 0.0  # for an answer that was waited for before
        if self._work is None and time.monotonic() >= self._next:
            self._work, patience = _Work(self._look), ANSWER_SECONDS
        if self._work:
            self._collect(patience)
        if self._error:
            raise self._error
        if self._state is None:
            raise TargetError(place(self._settings), "it does not answer", "it is asked again")
        return self._state

    def _collect(self, seconds: float) -> None:
        assert self._work is not None  # noqa: S101 - both callers have looked
        if not self._work.wait(seconds):
            self._error = TargetError(place(self._settings), "it does not answer", "it is asked again")
            return
        work, self._work = self._work, None
        if isinstance(work.result, ClusterState):
            self._state, self._error, self._failures = work.result, None, 0
            self._next = time.monotonic() + FRESH_SECONDS
        elif work.error:
            self._error = work.error
            self._next = time.monotonic() + BACKOFF_SECONDS[min(self._failures, len(BACKOFF_SECONDS) - 1)]
            self._failures += 1

    def apply(self, changes: Sequence[Change], alive: Callable[[], None]) -> None:
        """See publish().  What was read before is out of date afterwards, however it ends."""
        if self._work and not self._work.wait(0):
            raise TargetError(place(self._settings), "it does not answer", "it is asked again")
        work = self._work = _Work(lambda: self._connected().apply(changes))
        self._next = 0.0
        deadline = time.monotonic() + APPLY_SECONDS
        while not work.wait(min(5.0, max(deadline - time.monotonic(), 0.0))):
            alive()
            if time.monotonic() >= deadline:
                raise TargetError(place(self._settings), f"no answer for {APPLY_SECONDS:.0f} s", "it is tried again")
        self._work = None
        if work.error:
            raise work.error

    # --- in the thread ---

    def _connected(self) -> _Api:
        if self._api is None:
            self._api = _Api(self._settings)
        return self._api

    def _look(self) -> ClusterState:
        try:
            return self._connected().look()
        except TargetError:
            self._api = None  # the next time with what the kubeconfig says then
            raise


class _Work[T]:
    """A function in a thread of its own that nobody has to wait for."""

    def __init__(self, function: Callable[[], T]) -> None:
        self.result: T | None = None
        self.error: TargetError | None = None
        self._function = function
        self._thread = threading.Thread(target=self._run, name="cluster", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._function()
        except TargetError as error:
            self.error = error
        except Exception as error:  # what a client library raises is told, not lost
            self.error = TargetError("the cluster", f"{type(error).__name__}: {' '.join(str(error).split())}")

    def wait(self, seconds: float) -> bool:
        """Is it done, at the latest after this time?"""
        self._thread.join(seconds)
        return not self._thread.is_alive()


class _Api:
    """The requests.  Plain paths and JSON: discovery of kinds would cost a dozen requests more."""

    def __init__(self, settings: ClusterSettings) -> None:
        self._place = place(settings)
        try:
            from kubernetes import client, config  # noqa: PLC0415
        except ImportError as error:
            hint = "install python3-kubernetes"
            raise TargetError(self._place, "the kubernetes client is not installed", hint) from error
        configuration = client.Configuration()
        configuration.retries = False  # the agent has its own patience
        try:
            config.load_kube_config(str(settings.kubeconfig), client_configuration=configuration, persist_config=False)
        except (config.ConfigException, yaml.YAMLError, OSError, ValueError, TypeError, AttributeError) as error:
            hint = "server, its CA, and a token or client certificate"
            raise TargetError(
                str(settings.kubeconfig), f"cannot be used: {' '.join(str(error).split())}", hint
            ) from error
        self._client = client.ApiClient(configuration)

    def look(self) -> ClusterState:
        """All that is to be known.  Raises TargetError."""
        objects: list[Json] = []
        for kind, path in LISTS.items():
            found = self._get(path, optional=kind == "ImageContentSourcePolicy")
            objects += ({**item, "kind": kind} for item in (found or {}).get("items") or ())
        if image := self._get(IMAGE, optional=True):
            objects.append({**image, "kind": "Image"})
        trust = self._get(f"{CONFIG_MAPS}/{trust_name(objects)}", optional=True)
        pools = self._get(POOLS, optional=True) or {}
        return ClusterState(tuple(objects), trust, tuple(map(_pool, pools.get("items") or ())))

    def apply(self, changes: Sequence[Change]) -> None:
        """A dry run of all, then all.  Raises TargetError."""
        for dry in (True, False):
            for change in changes:
                options = {"fieldManager": change.manager, "fieldValidation": "Strict", "force": change.force}
                if dry:
                    options["dryRun"] = "All"
                self._call("PATCH", _path(change), options, change.body, str(change))

    def _get(self, path: str, *, optional: bool) -> Json | None:
        try:
            return self._call("GET", path, {}, None, path.rpartition("/")[2])
        except _AnswerError as error:
            if optional and error.status == 404:
                return None
            raise

    def _call(self, verb: str, path: str, query: Mapping[str, Any], body: object, what: str) -> Json:
        from kubernetes.client.exceptions import ApiException  # noqa: PLC0415
        from urllib3.exceptions import HTTPError  # noqa: PLC0415

        headers = {"Accept": "application/json", "Content-Type": "application/apply-patch+yaml"}
        options = [(name, str(value).lower() if isinstance(value, bool) else value) for name, value in query.items()]
        try:
            answer: Json = self._client.call_api(
                path, verb, query_params=options, header_params=headers, body=body, auth_settings=["BearerToken"],
                response_type="object", _return_http_data_only=True, _request_timeout=REQUEST_SECONDS,
            )  # fmt: skip
        except ApiException as error:
            raise _AnswerError(self._place, what, error.status, _said(error.body), error.reason) from error
        except (HTTPError, OSError) as error:
            raise TargetError(self._place, f"it cannot be reached: {_plain(error)}", "it is tried again") from error
        return answer


class _AnswerError(TargetError):
    """An answer that is none of success."""

    def __init__(self, where: str, what: str, status: int, said: str, reason: str) -> None:
        meaning, hint = ANSWERS.get(status, (f"{status} {reason}".strip(), ""))
        super().__init__(where, f"{what}: {meaning}" + (f": {said}" if said else ""), hint)
        self.status = status


def _said(body: object) -> str:
    """What the API server says, in one line."""
    try:
        status = json.loads(body) if isinstance(body, str | bytes) else {}
        return " ".join(str(status["message"]).split())[:500]
    except (ValueError, KeyError, TypeError):
        return ""


def _plain(error: BaseException) -> str:
    """The innermost reason: the outer ones are the library's own objects."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return str(getattr(error, "strerror", "") or error)


def _path(change: Change) -> str:
    base = {"ConfigMap": CONFIG_MAPS, "Image": f"{CONFIG}/images"}.get(change.kind) or LISTS[change.kind]
    return f"{base}/{change.name}"


def _pool(item: Json) -> Pool:
    status = item.get("status") or {}
    conditions = {each.get("type"): each for each in status.get("conditions") or ()}

    def holds(name: str) -> bool:
        return bool(conditions.get(name, {}).get("status") == "True")

    bad = conditions.get("Degraded", {})
    why = str(bad.get("message") or bad.get("reason") or "degraded") if holds("Degraded") else ""
    return Pool(
        str(item["metadata"]["name"]),
        int(status.get("machineCount") or 0),
        int(status.get("updatedMachineCount") or 0),
        holds("Updating"),
        " ".join(why.split()),
    )


def _stamp(file: Path) -> object:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
