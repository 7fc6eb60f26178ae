"""Doing something inside a container's network namespace, and what the edge says about itself there.

A host does not reach its own macvlan children, so what is served is looked at from inside: 3 ms for a thread that
changes into the namespace and is thrown away (`podman exec`: 320 ms).
"""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import Future

from cryptography import x509

from mirror_agent.model import EdgeState, Trouble

LOOPBACK = "127.0.0.1"  # not the mirror's address: a pod that is to move still has another, and would cost a time-out
STATUS_PORT, TLS_PORT = 8081, 443  # of the edge: quadlets/nginx.conf
EDGE_S = 2.0
_LONGEST_HASH = 128  # bytes of /healthz


def in_namespace[Result](path: str, function: Callable[[], Result], timeout_s: float) -> Result:
    """Call `function` inside the network namespace at `path`; other threads stay where they are.

    Raises what `function` raises, and Trouble when the namespace is gone or `function` is not through within
    `timeout_s` seconds.  It should keep a time limit of its own: it is left behind, not ended.
    """
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.setns(descriptor, os.CLONE_NEWNET)
            finally:
                os.close(descriptor)
        except OSError as error:
            outcome.set_exception(Trouble(path, f"network namespace not entered: {error.strerror}", _why(error)))
            return
        try:
            outcome.set_result(function())
        except BaseException as error:  # raised again by result()
            outcome.set_exception(error)

    thread = threading.Thread(target=run, name="in-namespace", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        reason = f"not done within {timeout_s:.0f} s inside the network namespace"
        raise Trouble(path, reason, "is the host overloaded, or does its upstream hang?")
    return outcome.result()


def _why(error: OSError) -> str:
    return "the agent needs CAP_SYS_ADMIN" if isinstance(error, PermissionError) else "has the pod just stopped?"


def edge_state(namespace: str, host: str) -> EdgeState | None:
    """The configuration that a pod's edge runs with and the serial it serves, None when it serves neither.

    The certificate is not verified, so that the serial of an expired one is seen too: pull() verifies.  At most
    two seconds for each of the two.  Raises Trouble when the namespace is gone.
    """

    def ask() -> EdgeState | None:
        config, serial = _config(), _serial(host)
        return EdgeState(config, serial) if config or serial else None

    return in_namespace(namespace, ask, 4 * EDGE_S)


def _config() -> str:
    connection = http.client.HTTPConnection(LOOPBACK, STATUS_PORT, timeout=EDGE_S)
    try:
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        body = response.read(_LONGEST_HASH)
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()
    return body.decode("ascii", "replace").strip() if response.status == http.HTTPStatus.OK else ""


def _serial(host: str) -> int:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((LOOPBACK, TLS_PORT), EDGE_S) as wire,
            context.wrap_socket(wire, server_hostname=host) as tls,
        ):
            certificate = tls.getpeercert(binary_form=True)
    except OSError:
        return 0
    return x509.load_der_x509_certificate(certificate).serial_number if certificate else 0
