"""An ACME server as issuer (RFC 8555): the mirror's name is proved by a record in the DNS (dns-01).

The account's key is kept for root only.  The libraries are loaded when they are needed: a host without ACME needs none.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from mirror_agent import __version__
from mirror_agent.certificates import Pair, making
from mirror_agent.host import authorities, files
from mirror_agent.host.issuers import dns
from mirror_agent.host.issuers.order import Order
from mirror_agent.model import AcmeSettings, Certificate, File, Folder, LeafKey, Paths, Suggestion, Trouble

CALL_S = 30  # of one request
PATIENCE = timedelta(seconds=100)  # until it has looked at the record, and again until it has signed
_LIMIT = 16 * 1024  # bytes of the account's key
_BY_DATE = "it is asked again; meanwhile two thirds of a certificate's life count"


def issue(order: Order) -> Pair:
    """A fresh key with a certificate of the server for the mirror's host.  Raises Trouble."""
    settings, host = order.settings.acme, order.mirror.host
    if settings is None:
        raise Trouble("certificates.acme", "is not set", "man agent.toml tells its keys")
    try:
        from acme import errors  # noqa: PLC0415 - see above
    except ImportError as error:
        raise Trouble("ACME", "the library is not there", "install python3-acme") from error
    try:
        return _issue(settings, order.settings.leaf_key, host, order.paths)
    except (errors.Error, OSError, ValueError) as error:  # those of requests are OSErrors
        raise Trouble(settings.directory, _words(error), f"no certificate for {host} yet; it is tried again") from error


def suggest(settings: AcmeSettings, paths: Paths, certificate: Certificate) -> Suggestion:
    """When the server would have a certificate renewed: a moment of the window that it gives (RFC 9773, 4.2).

    Raises Trouble.
    """
    return Suggestion(certificate.serial, datetime.now(UTC), _suggested(settings, paths, certificate))


def _suggested(settings: AcmeSettings, paths: Paths, certificate: Certificate) -> datetime | None:
    try:
        from acme import errors  # noqa: PLC0415
    except ImportError as error:
        raise Trouble("ACME", "the library is not there", "install python3-acme") from error
    try:
        network = _network(paths)
        directory = network.get(settings.directory).json()
        if "renewalInfo" not in directory:
            return None
        answer = network.get(f"{directory['renewalInfo']}/{_identity(certificate)}").json()
        start, end = (datetime.fromisoformat(answer["suggestedWindow"][key]) for key in ("start", "end"))
    except (errors.Error, OSError, ValueError, KeyError, TypeError) as error:
        raise Trouble(settings.directory, f"does not say when to renew: {_words(error)}", _BY_DATE) from error
    share = certificate.serial % 1000 / 1000  # the same moment at every look, another one for each certificate
    return start + (end - start) * share


def _identity(certificate: Certificate) -> str:
    """A certificate's name there: key identifier of its CA and serial number, as in DER (RFC 9773, 4.1)."""
    serial = certificate.serial.to_bytes(certificate.serial.bit_length() // 8 + 1)
    parts = (bytes.fromhex(certificate.issuer_key), serial)
    return ".".join(urlsafe_b64encode(part).decode("ascii").rstrip("=") for part in parts)


def _issue(settings: AcmeSettings, kind: LeafKey, host: str, paths: Paths) -> Pair:
    acme = _client(settings, paths)
    key = making.make_key(kind)
    order = acme.new_order(_request(key, host))
    with _answered(acme, order, settings):
        order = _patiently(lambda until: acme.poll_authorizations(order, until))
    order = acme.begin_finalization(order)
    order = _patiently(lambda until: acme.poll_finalization(order, until))
    return Pair(making.key_pem(key), order.fullchain_pem.encode("ascii"))


def _client(settings: AcmeSettings, paths: Paths) -> Any:
    """A client that is known to the server; its key is made at the first time."""
    from acme import client, errors, messages  # noqa: PLC0415

    network = _network(paths)
    acme = client.ClientV2(client.ClientV2.get_directory(settings.directory, network), network)
    wish = messages.NewRegistration.from_data(email=settings.email or None, terms_of_service_agreed=True)
    try:
        acme.new_account(wish)
    except errors.ConflictError as known:  # the server knows this key
        network.account = messages.RegistrationResource(uri=known.location, body=messages.Registration())
    return acme


def _network(paths: Paths) -> Any:
    from acme import client  # noqa: PLC0415
    from josepy import jwa, jwk  # noqa: PLC0415

    key = jwk.JWKEC(key=_account_key(paths))
    return client.ClientNetwork(key, alg=jwa.ES256, user_agent=f"mirror-agent/{__version__}", timeout=CALL_S)


def _account_key(paths: Paths) -> Any:
    place = paths.acme
    files.ensure_folder(Folder(place, 0o700))
    with authorities.locked(paths.authority):  # several mirrors may need it first
        if (stored := files.read(place / "account.key", _LIMIT)) is None:
            made = ec.generate_private_key(ec.SECP256R1())
            stored = making.key_pem(made)
            files.write(File(place / "account.key", stored, 0o600))
    return load_pem_private_key(stored, password=None)


def _request(key: making.SigningKey, host: str) -> bytes:
    names = x509.SubjectAlternativeName([x509.DNSName(host)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=True)
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


@contextmanager
def _answered(acme: Any, order: Any, settings: AcmeSettings) -> Iterator[None]:
    """The records are there meanwhile, and the server was told to look."""
    from acme import challenges, messages  # noqa: PLC0415

    records: list[tuple[str, str]] = []
    try:
        for authorization in order.authorizations:
            if authorization.body.status == messages.STATUS_VALID:
                continue  # of an order before
            found = [each for each in authorization.body.challenges if isinstance(each.chall, challenges.DNS01)]
            if not found:
                raise Trouble(settings.directory, "offers no dns-01 challenge", "another server, or another issuer")
            response, value = found[0].chall.response_and_validation(acme.net.key)
            records.append((found[0].chall.validation_domain_name(authorization.body.identifier.value), value))
            dns.add(settings, *records[-1])
            acme.answer_challenge(found[0], response)
        yield
    finally:
        for record in records:
            dns.remove(settings, *record)


def _patiently(poll: Callable[[datetime], Any]) -> Any:
    """Poll until it is done.  The library wants local times without a zone."""
    from acme import errors  # noqa: PLC0415

    try:
        return poll(datetime.now() + PATIENCE)
    except errors.TimeoutError:
        reason = f"the server was not through within {PATIENCE.seconds} s"
        raise Trouble("ACME", reason, "it is asked again; does it find the challenge?") from None


def _words(error: Exception) -> str:
    """What a server says is in the failed challenges, not in the error's own text."""
    failed = getattr(error, "failed_authzrs", ())
    said = [str(each.error) for authorization in failed for each in authorization.body.challenges if each.error]
    return "; ".join(said) or str(error) or type(error).__name__
