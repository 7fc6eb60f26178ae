"""What is published for dnsmasq, asked from dnsmasq itself: names to addresses and back."""

from __future__ import annotations

import random
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import dns.exception
import dns.resolver
import dns.reversename
import pytest

FILE = Path(__file__).parent / "recipe/publication/dnsmasq.conf"
RECORDS = [
    line.removeprefix("host-record=").split(",")
    for line in FILE.read_text().splitlines()
    if line.startswith("host-record=")
]


@pytest.fixture(scope="module")
def resolver() -> Iterator[dns.resolver.Resolver]:
    with socket.socket(type=socket.SOCK_DGRAM) as taken:
        # below those that the kernel gives to others (Linux: from 32768 on), who might be quicker than dnsmasq
        while taken.getsockname()[1] == 0:
            with suppress(OSError):
                taken.bind(("127.0.0.1", random.randrange(10_000, 32_000)))
        port = taken.getsockname()[1]
    command = ["dnsmasq", "--keep-in-foreground", "--no-resolv", "--no-hosts", "--bind-interfaces", "--pid-file="]
    command += ["--listen-address=127.0.0.1", f"--port={port}", f"--conf-file={FILE}", "--user=root"]
    process = subprocess.Popen(command)
    asking = dns.resolver.Resolver(configure=False)
    asking.nameservers, asking.port, asking.lifetime = ["127.0.0.1"], port, 0.5
    deadline = time.monotonic() + 60
    try:
        while True:
            try:
                asking.resolve(RECORDS[0][0], "A")
                break
            except (dns.exception.Timeout, dns.resolver.NoNameservers):
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        asking.lifetime = 60
        yield asking
    finally:
        process.kill()
        process.wait()


def test_there_are_records() -> None:
    assert len(RECORDS) == 5


@pytest.mark.parametrize(("host", "address"), RECORDS)
def test_names_and_addresses(resolver: dns.resolver.Resolver, host: str, address: str) -> None:
    assert [str(answer) for answer in resolver.resolve(host, "A")] == [address]
    back = resolver.resolve(dns.reversename.from_address(address), "PTR")
    assert [str(answer).rstrip(".") for answer in back] == [host]
