"""The requests to an API server, and what its answers mean to people.

Plain paths and JSON: discovery of kinds would cost a dozen requests more.  The `kubernetes` package is imported only
when there is a cluster: hosts without one need not have it.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mirror_agent.cluster import NAMESPACE, place, trust_name
from mirror_agent.model import Change, ClusterSettings, ClusterState, Pool
from mirror_agent.targets import kubeconfig
from mirror_agent.targets.target import TargetError

REQUEST_SECONDS = (5.0, 10.0)  # to connect; for each answer
SILENT_SECONDS = 90.0  # without a word of a watch: the server has one to say each minute (bookmarks)

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


class Api:
    """One cluster, as one kubeconfig says at one time."""

    def __init__(self, settings: ClusterSettings) -> None:
        """Raises TargetError where the kubeconfig cannot be used."""
        self._place = place(settings)
        self.config = kubeconfig.load(settings.kubeconfig)
        try:
            from kubernetes import client, config  # noqa: PLC0415
        except ImportError as error:
            hint = "install python3-kubernetes"
            raise TargetError(self._place, "the kubernetes client is not installed", hint) from error
        configuration = client.Configuration()
        configuration.retries = False  # the agent has its own patience
        try:
            config.load_kube_config_from_dict(
                self.config.content, client_configuration=configuration, persist_config=False
            )
        except (config.ConfigException, OSError, ValueError, TypeError, AttributeError) as error:
            raise kubeconfig.unusable(settings.kubeconfig, error) from error
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
        return ClusterState(tuple(objects), trust, tuple(map(_pool, pools.get("items") or ())), this_host())

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
        except AnswerError as error:
            if optional and error.status == 404:
                return None
            raise

    def watch(self, path: str, query: Mapping[str, Any], opened: Callable[[int], None]) -> Generator[Json]:
        """The events of a watch until the server ends it, or says nothing for SILENT_SECONDS.  Raises TargetError.

        `opened` is called once with the descriptor of the connection: shutting that down ends a read in another thread.
        """
        response = self._send("GET", path, query, None, path.rpartition("/")[2], SILENT_SECONDS)
        try:
            opened(response.fileno())
            with self._told():
                for line in _lines(response):
                    yield json.loads(line)
        except ValueError as error:
            raise TargetError(self._place, "what it tells of changes is not JSON", "it is asked again") from error
        finally:
            response.close()

    def _call(self, verb: str, path: str, query: Mapping[str, Any], body: object, what: str) -> Json:
        answer: Json = self._send(verb, path, query, body, what, None)
        return answer

    def _send(
        self, verb: str, path: str, query: Mapping[str, Any], body: object, what: str, silent: float | None
    ) -> Any:
        """The answer's JSON; with `silent`, the answer itself, to be read on, with this time for each read."""
        from kubernetes.client.exceptions import ApiException  # noqa: PLC0415

        headers = {"Accept": "application/json", "Content-Type": "application/apply-patch+yaml"}
        options = [(name, str(value).lower() if isinstance(value, bool) else value) for name, value in query.items()]
        with self._told():
            try:
                return self._client.call_api(
                    path, verb, query_params=options, header_params=headers, body=body, auth_settings=["BearerToken"],
                    response_type="object", _return_http_data_only=True, _preload_content=silent is None,
                    _request_timeout=REQUEST_SECONDS if silent is None else (REQUEST_SECONDS[0], silent),
                )  # fmt: skip
            except ApiException as error:
                if not error.status:  # TLS: there is no answer
                    raise self._unreachable(" ".join(str(error.reason).split())) from error
                raise AnswerError(self._place, what, error.status, _said(error.body), error.reason) from error

    @contextmanager
    def _told(self) -> Iterator[None]:
        """A connection that fails, as TargetError."""
        from urllib3.exceptions import HTTPError  # noqa: PLC0415

        try:
            yield
        except (HTTPError, OSError) as error:
            raise self._unreachable(_plain(error)) from error

    def _unreachable(self, why: str) -> TargetError:
        return TargetError(self._place, f"it cannot be reached: {why}", "it is tried again")


class AnswerError(TargetError):
    """An answer that is none of success."""

    def __init__(self, where: str, what: str, status: int, said: str, reason: str) -> None:
        meaning, hint = ANSWERS.get(status, (f"{status} {reason}".strip(), ""))
        super().__init__(where, f"{what}: {meaning}" + (f": {said}" if said else ""), hint)
        self.status = status

    @classmethod
    def of(cls, where: str, what: str, status: Json) -> AnswerError:
        """One that came as an object: kind Status."""
        return cls(where, what, int(status.get("code") or 0), _said(status), str(status.get("reason")))


def _lines(response: Any) -> Iterator[bytes]:
    """Whole lines, as they come."""
    from urllib3.exceptions import ReadTimeoutError  # noqa: PLC0415

    rest = b""
    try:
        for chunk in response.stream(amt=None, decode_content=False):
            *lines, rest = (rest + chunk).split(b"\n")
            yield from filter(None, lines)
    except ReadTimeoutError:  # also what happens when the other side is gone without a word
        return


def _said(body: Any) -> str:
    """What the API server says, in one line."""
    try:
        status = json.loads(body) if isinstance(body, str | bytes) else body
        return " ".join(str(status["message"]).split())[:500]
    except (ValueError, KeyError, TypeError):
        return ""


def _plain(error: BaseException) -> str:
    """The innermost reason: the outer ones are the library's own objects."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return str(getattr(error, "strerror", "") or error)


def this_host() -> str:
    """What tells this host from all others, and gives its machine-id away to nobody (machine-id(5))."""
    try:
        machine = Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
    return hmac.new(machine.encode(), b"mirror-agent", "sha256").hexdigest()[:32] if machine else ""


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
