"""Records for ACME's dns-01 challenges: by an update of a name server (RFC 2136), or by an admin's command."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from mirror_agent.host import files
from mirror_agent.model import AcmeSettings, Trouble

ANSWER_S = 10.0  # of the name server
HOOK_S = 60.0  # of the command
TTL = 60
_LIMIT = 16 * 1024  # bytes of a key file
_KEY = re.compile(r'key\s+"?([A-Za-z0-9._-]+)"?\s*\{([^}]*)\}')
_ALGORITHM = re.compile(r'algorithm\s+"?([a-z0-9-]+)"?\s*;')
_SECRET = re.compile(r'secret\s+"?([A-Za-z0-9+/=]+)"?\s*;')
_HINT = "may the key of certificates.acme.key update TXT records there?"


class _Tsig(NamedTuple):
    name: str
    algorithm: str
    secret: str

    def __repr__(self) -> str:
        return f"_Tsig({self.name!r}, …)"  # the secret must not end up in a log or a traceback


def add(settings: AcmeSettings, name: str, value: str) -> None:
    """Make a TXT record be there.  Raises Trouble."""
    _change(settings, "add", name, value)


def remove(settings: AcmeSettings, name: str, value: str) -> None:
    """Make it be gone.  Raises Trouble."""
    _change(settings, "remove", name, value)


def _change(settings: AcmeSettings, what: str, name: str, value: str) -> None:
    if settings.hook:
        _call(settings.hook, what, name, value)
    elif settings.server and settings.key:
        _update(str(settings.server), read_key(settings.key), what, name, value)


def _call(hook: Path, what: str, name: str, value: str) -> None:
    """Run the admin's command: as root, so nobody else may be able to write it."""
    with files.told(hook, "looked at"):
        facts = os.stat(hook, follow_symlinks=False)
    if not stat.S_ISREG(facts.st_mode) or facts.st_uid != 0 or facts.st_mode & 0o022:
        raise Trouble(str(hook), "is not run: it must be a file of root's that nobody else can write", f"ls -l {hook}")
    try:
        done = subprocess.run(
            [hook, what, name, value], capture_output=True, text=True, errors="replace", timeout=HOOK_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Trouble(str(hook), f"was not through within {HOOK_S:.0f} s", "does it hang when run by hand?") from error
    except OSError as error:
        raise Trouble(str(hook), f"cannot be run: {error.strerror}", "is it executable?") from error
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise Trouble(str(hook), f"{what} {name} ended with exit code {done.returncode}", said[-1] if said else "")


def _update(server: str, key: _Tsig, what: str, name: str, value: str) -> None:
    try:
        import dns.exception  # noqa: PLC0415 - only hosts with ACME need it
        import dns.name  # noqa: PLC0415
        import dns.query  # noqa: PLC0415
        import dns.rcode  # noqa: PLC0415
        import dns.resolver  # noqa: PLC0415
        import dns.tsig  # noqa: PLC0415
        import dns.update  # noqa: PLC0415
    except ImportError as error:
        raise Trouble("DNS", "the library is not there", "install python3-dnspython") from error
    record, text = dns.name.from_text(name), f'"{value}"'
    try:
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers, resolver.lifetime = [server], ANSWER_S
        signer = dns.tsig.Key(key.name, key.secret, key.algorithm)  # type: ignore[no-untyped-call]
        zone = dns.resolver.zone_for_name(record, tcp=True, resolver=resolver)
        update = dns.update.UpdateMessage(zone, keyring=signer)
        if what == "add":
            update.add(record, TTL, "TXT", text)
        else:
            update.delete(record, "TXT", text)
        answer = dns.query.tcp(update, server, timeout=ANSWER_S)
    except (dns.exception.DNSException, OSError) as error:
        said = str(error) or type(error).__name__
        raise Trouble(f"name server {server}", f"{what} {name}: {said}", _HINT) from error
    if answer.rcode() != dns.rcode.NOERROR:
        raise Trouble(f"name server {server}", f"{what} {name}: {dns.rcode.to_text(answer.rcode())}", _HINT)


def read_key(path: Path) -> _Tsig:
    """Name, algorithm and secret of a key file as BIND writes it.  Raises Trouble."""
    content = files.read(PurePosixPath(path), _LIMIT)
    if content is None:
        raise Trouble(str(path), "there is no such file", "tsig-keygen makes one")
    found = _KEY.search(content.decode("ascii", "replace"))
    algorithm, secret = (each.search(found[2]) if found else None for each in (_ALGORITHM, _SECRET))
    if not found or not algorithm or not secret:
        form = 'as tsig-keygen writes it: key "NAME" { algorithm …; secret "…"; };'
        raise Trouble(str(path), "holds no TSIG key", form)
    return _Tsig(found[1], algorithm[1], secret[1])
