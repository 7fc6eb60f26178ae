"""Floor 3: the same as `status`, as metrics for node_exporter's textfile collector.  Pure.

Names follow the Prometheus project's conventions: base units, `_total` for what only grows, one labelled mirror a
line.  docs/metrics.md tells each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mirror_agent import __version__
from mirror_agent.report import MirrorStatus, PullLimitStatus, State, Status, seconds

_LABELS = ("mirror", "upstream")

type _Value = Callable[[MirrorStatus], float | None]


def _of_limit(number: Callable[[PullLimitStatus], float | None]) -> _Value:
    """Of an upstream that is asked."""
    return lambda mirror: number(mirror.pull_limit) if mirror.pull_limit and mirror.pull_limit.asked else None


_GAUGES: dict[str, tuple[str, _Value]] = {
    "mirror_agent_mirror_published": (
        "Whether readers are told of the mirror.", lambda mirror: mirror.published
    ),
    "mirror_agent_mirror_failed": (
        "Whether a step of the mirror's failed last and waits for its next attempt.", lambda mirror: bool(mirror.reason)
    ),
    "mirror_agent_certificate_expiration_timestamp_seconds": (
        "When the certificate that the mirror serves ends.", lambda mirror: seconds(mirror.not_after)
    ),
    "mirror_agent_certificate_renewal_timestamp_seconds": (
        "When the next certificate is due.", lambda mirror: seconds(mirror.certificate.renewal)
    ),
    "mirror_agent_certificate_failed": (
        "Whether the last try to renew the certificate failed.", lambda mirror: bool(mirror.certificate.error)
    ),
    "mirror_agent_cache_size_bytes": ("What the mirror's cached images take.", lambda mirror: mirror.cache.size),
    "mirror_agent_cache_budget_bytes": ("What they may take.", lambda mirror: mirror.cache.budget),
    "mirror_agent_cache_images": ("Images in the cache.", lambda mirror: mirror.cache.images),
    "mirror_agent_upstream_away": (
        "Whether the upstream could not be reached when that was last tried.", lambda mirror: bool(mirror.reach.since)
    ),
    "mirror_agent_upstream_pull_limit": (
        "Pulls that the upstream allows in a window of time.", _of_limit(lambda said: said.limit)
    ),
    "mirror_agent_upstream_pull_limit_remaining": (
        "Pulls that are left of it.", _of_limit(lambda said: said.remaining)
    ),
    "mirror_agent_upstream_pull_limit_window_seconds": (
        "The window of time that the limit is for.", _of_limit(lambda said: said.window)
    ),
    "mirror_agent_upstream_pull_limit_failed": (
        "Whether the upstream could not be asked when it last was to be.", _of_limit(lambda said: bool(said.error))
    ),
}  # fmt: skip
_COUNTERS: dict[str, tuple[str, _Value]] = {
    "mirror_agent_requests_total": ("Requests of clients.", lambda mirror: mirror.cache.requests),
    "mirror_agent_request_errors_total": (
        "Requests of clients that were answered with 5xx.", lambda mirror: mirror.cache.errors
    ),
    "mirror_agent_sent_bytes_total": ("Bytes sent to clients.", lambda mirror: mirror.cache.sent),
    "mirror_agent_fetched_bytes_total": ("Bytes fetched from the upstream.", lambda mirror: mirror.cache.fetched),
}  # fmt: skip
_RESULTS: dict[str, _Value] = {
    "hit": lambda mirror: mirror.cache.hits,
    "miss": lambda mirror: mirror.cache.misses,
    "stale": lambda mirror: mirror.cache.stale,
}


def render(status: Status) -> bytes:
    """The text format 0.0.4 of all metrics."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(status))
    return generate_latest(registry)


class _Collector(Collector):
    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Every family, also those without a mirror, so that dashboards find them."""
        status = self._status
        info = GaugeMetricFamily("mirror_agent_build_info", "The agent that wrote this.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        name = "mirror_agent_last_look_timestamp_seconds"
        looked = GaugeMetricFamily(name, "When the agent last looked at the host.")
        if (at := seconds(status.at)) is not None:
            looked.add_metric([], at)
        yield looked
        yield GaugeMetricFamily("mirror_agent_problems", "Mistakes in settings and definitions.", len(status.problems))
        yield GaugeMetricFamily("mirror_agent_failures", "Steps that wait for another attempt.", len(status.failures))
        yield GaugeMetricFamily("mirror_agent_disk_free_bytes", "Free space of the caches' file system.", status.free)
        yield GaugeMetricFamily("mirror_agent_disk_floor_bytes", "What is always left free of it.", status.floor)
        yield self._states()
        yield from self._certificates()
        for name, (what, value) in _GAUGES.items():
            gauge = GaugeMetricFamily(name, what, labels=_LABELS)
            self._fill(gauge, value)
            yield gauge
        for name, (what, value) in _COUNTERS.items():
            counter = CounterMetricFamily(name, what, labels=_LABELS)
            self._fill(counter, value)
            yield counter
        content = CounterMetricFamily(
            "mirror_agent_content_requests_total",
            "Manifests and blobs given, by whether they were cached, fetched, or older than their freshness.",
            labels=(*_LABELS, "result"),
        )
        for result, value in _RESULTS.items():
            self._fill(content, value, result)
        yield content

    def _states(self) -> Metric:
        states = GaugeMetricFamily(
            "mirror_agent_mirror_state", "1 for the state that the mirror is in.", labels=(*_LABELS, "state")
        )
        for mirror in self._status.mirrors:
            for state in State:
                states.add_metric([mirror.name, mirror.upstream, state.value], float(mirror.state == state))
        return states

    def _certificates(self) -> Iterator[Metric]:
        info = GaugeMetricFamily(
            "mirror_agent_certificate_info", "The certificate of the mirror.", labels=(*_LABELS, "issuer", "serial")
        )
        for mirror in self._status.mirrors:
            if (found := mirror.certificate).serial:
                info.add_metric([mirror.name, mirror.upstream, found.issuer, found.serial], 1)
        yield info
        authority = self._status.authority
        ca = GaugeMetricFamily("mirror_agent_ca_expiration_timestamp_seconds", "When the CA ends.", labels=["ca"])
        if (end := seconds(authority.not_after)) is not None:
            ca.add_metric([authority.name], end)
        yield ca

    def _fill(self, family: GaugeMetricFamily | CounterMetricFamily, value: _Value, *labels: str) -> None:
        for mirror in self._status.mirrors:
            if (number := value(mirror)) is not None:
                family.add_metric([mirror.name, mirror.upstream, *labels], float(number))
