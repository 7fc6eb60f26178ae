"""Certificates that are not by the agent's own CA: an admin's CA, an admin's leaf, an ACME server."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from appliance import AGENT_TOML, STATE, Appliance, in_order

ETC = "/etc/mirror-agent"

# A company's root, a CA below it, and a certificate for quay; the agent's code has no part in it.
_COMPANY = r"""
set -e
mkdir -p /root/company && cd /root/company
ca='[req]\ndistinguished_name=d\nx509_extensions=e\n[d]\n[e]\nbasicConstraints=critical,CA:TRUE\n'
ca="$ca"'keyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n'
make() { name=$1; shift; printf "$ca" | openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 400 \
    -keyout $name.key -out $name.crt -subj "/CN=Company $name" -config /dev/stdin "$@"; }
make root
make issuing -CA root.crt -CAkey root.key
leaf() { printf '[req]\ndistinguished_name=d\nx509_extensions=e\n[d]\n[e]\nbasicConstraints=critical,CA:FALSE\n'
    printf 'keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth\nsubjectAltName=DNS:quay.mirror.lan\n'
    printf 'subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n'; }
leaf | openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days $1 -keyout leaf.key -out leaf.crt \
    -subj "/CN=quay.mirror.lan" -config /dev/stdin -CA issuing.crt -CAkey issuing.key
cat leaf.crt issuing.crt > chain.crt
cat issuing.crt root.crt > ca.crt
"""

# Everything of the internet's: an ACME server (pebble), and the name server that has the mirrors' domain (BIND).
_ACME = r"""
set -e
mkdir -p /run/acme && cd /run/acme
tsig-keygen -a hmac-sha256 mirrors > update.key
printf '$TTL 60\n@ SOA ns. root. 1 60 60 60 60\n@ NS ns.mirror.lan.\nns A 198.51.100.20\n' > mirror.lan.zone
cat > named.conf <<END
include "/run/acme/update.key";
options { directory "/run/acme"; listen-on { 198.51.100.20; }; listen-on-v6 { none; }; recursion no; pid-file none;
    session-keyfile none; dnssec-validation no; };
controls { };
zone "mirror.lan" { type primary; file "mirror.lan.zone"; update-policy { grant mirrors zonesub TXT; }; };
END
cat > pebble.json <<END
{"pebble": {"listenAddress": "198.51.100.20:14000", "managementListenAddress": "198.51.100.20:15000",
  "certificate": "/etc/box/pki/auth.docker.io.crt", "privateKey": "/etc/box/pki/auth.docker.io.key",
  "httpPort": 5002, "tlsPort": 5001, "ocspResponderURL": "", "externalAccountBindingRequired": false}}
END
systemd-run --quiet --unit=test-named -p NetworkNamespacePath=/run/netns/inet named -f -c /run/acme/named.conf -u root
systemd-run --quiet --unit=test-pebble -p NetworkNamespacePath=/run/netns/inet -E PEBBLE_VA_NOSLEEP=1 \
    pebble -config /run/acme/pebble.json -dnsserver 198.51.100.20:53
named_answers() { python3 -c '
import dns.message, dns.query
answer = dns.query.tcp(dns.message.make_query("mirror.lan", "SOA"), "198.51.100.20", timeout=2)
raise SystemExit(not answer.answer)' 2>/dev/null; }
for i in $(seq 200); do
    curl -sf https://auth.docker.io:15000/roots/0 > root.crt && curl -sf https://auth.docker.io:14000/dir >/dev/null &&
        named_answers && exit 0
    sleep 0.3
done
journalctl -b -n 20 -u test-named -u test-pebble >&2; exit 1
"""
_TABLE = """
[certificates.acme]
directory = "https://auth.docker.io:14000/dir"
trust     = "/etc/mirror-agent/tls/acme-root.crt"
"""
_HOLE = """
table ip hole {
  chain forward { type filter hook forward priority -10; ip daddr 198.51.100.20 drop; }
}
"""
_HOOK = """#!/usr/bin/python3
import sys, dns.query, dns.tsigkeyring, dns.update
what, name, value = sys.argv[1:]
secret = open("/etc/mirror-agent/tls/update.key").read().split('secret "')[1].split('"')[0]
update = dns.update.UpdateMessage("mirror.lan", keyring=dns.tsigkeyring.from_text({"mirrors": ("hmac-sha256", secret)}))
getattr(update, {"add": "add", "remove": "delete"}[what])(name + ".", *((60,) if what == "add" else ()), "TXT", value)
sys.exit(dns.query.tcp(update, "198.51.100.20", timeout=5).rcode())
"""


def shown(appliance: Appliance) -> str:
    """Who has signed what a client on the LAN is shown."""
    row = appliance.mirror("quay")
    client = f"openssl s_client -connect {row['address']}:443 -servername {row['host']} </dev/null 2>/dev/null"
    return appliance.box.node("sh", "-c", f"{client} | openssl x509 -noout -issuer").stdout.strip()


def verified(appliance: Appliance) -> bool:
    """Does a reader that trusts what is published, and nothing else, get an answer?"""
    appliance.box.node("sh", "-c", f"cat > /tmp/trust.pem <<'END'\n{appliance.published('ca-bundle.pem')}END")
    row = appliance.mirror("quay")
    command = ["curl", "-sS", "-m", "20", "--fail", "--cacert", "/tmp/trust.pem", "--capath", "/nowhere"]
    target = ["--resolve", f"{row['host']}:443:{row['address']}", f"https://{row['host']}/v2/"]
    return appliance.box.node(*command, *target, check=False).returncode == 0


@pytest.fixture(scope="module")
def one(appliance: Appliance) -> Appliance:
    appliance.drop("quay")
    appliance.serving("quay")
    appliance.sh(f"mkdir -m 700 -p {ETC}/tls {ETC}/ca")
    appliance.box.exec("sh", "-c", _COMPANY, "company", "90")
    return appliance


@pytest.fixture
def own_leaf(one: Appliance) -> Iterator[None]:
    one.sh(f"cd /root/company; cp leaf.key {ETC}/tls/quay.key; cp chain.crt {ETC}/tls/quay.crt; cp root.crt {ETC}/tls/")
    tls = "".join(f'{key} = "{ETC}/tls/{name}"\n' for key, name in
                  (("certificate", "quay.crt"), ("key", "quay.key"), ("ca", "root.crt")))  # fmt: skip
    one.define("quay", f'source = "quay.io"\n[tls]\n{tls}')
    one.settle()
    yield
    one.drop("quay")
    one.settle()
    one.serving("quay")


def test_a_leaf_of_the_admin_s_own(one: Appliance, own_leaf: None) -> None:
    one.serving("quay")
    assert shown(one) == "issuer=CN=Company issuing"
    assert one.mirror("quay")["certificate"]["issuer"] == "Company issuing"
    assert "Company root" in one.sh("openssl x509 -noout -subject -in /srv/publish/ca-bundle.pem")
    assert one.published("ca-bundle.pem").count("BEGIN") == 1, "the host's own CA signs nothing now"
    assert verified(one)
    # new files are taken by their event, without a word to the agent
    serial, since = one.mirror("quay")["certificate"]["serial"], one.cursor()
    one.box.exec(
        "sh", "-c", _COMPANY.replace("make root\nmake issuing -CA root.crt -CAkey root.key\n", ""), "company", "1"
    )
    one.sh(f"cd /root/company; cp leaf.key {ETC}/tls/quay.key; cp chain.crt {ETC}/tls/quay.crt")
    one.wait(lambda: one.mirror("quay")["certificate"]["serial"] not in ("", serial), 20, "the new leaf")
    one.wait(lambda: one.mirror("quay")["certificate"]["served"], 20, "the new leaf to be shown")
    assert one.journal("ACTION=reload-edge", since=since)
    # what is not good is told, and what was good stays
    good = one.mirror("quay")["certificate"]["serial"]
    one.sh(f"cp /root/company/root.key {ETC}/tls/quay.key")
    one.wait(lambda: one.glance()["problems"], 20, "a problem")
    (problem,) = one.glance()["problems"]
    assert (problem["key"], problem["mirror"]) == ("tls.certificate", "quay")
    assert "does not belong to the certificate" in problem["reason"]
    assert one.mirror("quay")["certificate"]["serial"] == good
    one.sh(f"cp /root/company/leaf.key {ETC}/tls/quay.key")
    one.wait(lambda: not one.glance()["problems"], 20, "the problem to be gone")


def test_check_tells_of_them_what_the_agent_tells(one: Appliance, own_leaf: None) -> None:
    assert one.box.exec("mirror-agent", "check").stdout.endswith("1 mirror, 0 problems\n")
    one.sh(f"cp /root/company/root.key {ETC}/tls/quay.key")
    one.wait(lambda: one.glance()["problems"], 20, "a problem")
    (problem,) = one.glance()["problems"]
    found = one.box.exec("mirror-agent", "check", "--json", check=False)
    told = {key: problem[key] for key in ("file", "key", "reason", "hint")}
    assert (found.returncode, json.loads(found.stdout)["problems"]) == (1, [told])
    one.sh(f"cp /root/company/leaf.key {ETC}/tls/quay.key")
    one.wait(lambda: not one.glance()["problems"], 20, "the problem to be gone")
    # before the agent meets it: a CA that is for other hosts, and a host that the present one is not for
    one.sh("systemctl stop mirror-agent")
    one.sh(
        f"mkdir -m 700 {ETC}/other; openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 9 "
        f"-subj /CN=Other -addext keyUsage=critical,keyCertSign -addext 'nameConstraints=critical,permitted;DNS:x.lan' "
        f"-keyout {ETC}/other/ca.key -out {ETC}/other/ca.crt"
    )
    one.settings(AGENT_TOML + f'[certificates]\nca = "{ETC}/other"\n')
    one.define("gcr", 'source = "gcr.io"\nhost = "gcr.outside.example"\n')
    said = one.box.exec("mirror-agent", "check", check=False)
    one.remove("gcr")
    one.settings()
    one.sh("systemctl start mirror-agent")
    assert said.returncode == 1
    assert "gcr.toml: host: the CA may not vouch for host gcr.outside.example" in said.stderr
    assert "gcr.toml: host: the next CA may not vouch for host gcr.outside.example, only for names" in said.stderr
    assert f"certificates.ca: the CA in {ETC}/other ends at" in said.stderr
    assert said.stdout.endswith("2 mirrors, 3 problems\n")


@pytest.mark.package("only root reaches the container; its command says so (test_container.py)")
def test_what_the_user_of_check_may_not_read_is_no_mistake(one: Appliance, own_leaf: None) -> None:
    one.sh(f"mkdir -m 700 {ETC}/credentials; printf 'me\\nsecret\\n' > {ETC}/credentials/gcr")
    one.define("gcr", f'source = "gcr.io"\n[upstream]\ncredentials = "{ETC}/credentials/gcr"\n')
    blind = one.box.exec("setpriv", "--reuid=nobody", "--clear-groups", "mirror-agent", "check")
    one.remove("gcr")
    assert "quay.key: cannot be read: permission denied" in blind.stdout
    assert f"not checked: {STATE}/ca: the CA and the mirrors' certificates can be seen by root only" in blind.stdout
    assert f"{ETC}/credentials/gcr cannot be read: permission denied" in blind.stdout
    assert blind.stdout.endswith("2 mirrors, 0 problems\n")


def test_an_admin_s_own_ca_takes_over_like_any_other(one: Appliance) -> None:
    one.sh(f"cp /root/company/issuing.key {ETC}/ca/ca.key; cp /root/company/ca.crt {ETC}/ca/ca.crt")
    one.settings(AGENT_TOML + f'[certificates]\nca = "{ETC}/ca"\n')
    one.settle()
    one.settle()
    authority = one.glance()["authority"]
    assert (authority["stage"], authority["coming"]) == ("spreading", "Company issuing")
    assert one.published("ca-bundle.pem").count("BEGIN") == 3, "our CA, the issuing one, its root"
    assert shown(one).startswith("issuer=O=mirror-agent")
    refused = one.box.exec("mirror-agent", "ca", "roll", check=False)
    assert "the CA is one that was brought" in refused.stderr
    one.box.exec("mirror-agent", "ca", "roll", "--confirm")
    one.settle()
    one.box.exec("mirror-agent", "renew", "quay")
    one.settle()
    assert shown(one) == "issuer=CN=Company issuing"
    assert verified(one)
    key = one.sh(f"realpath {STATE}/ca/current/ca.key").strip()
    assert one.sh(f"stat -c '%a %u' {key}") == "600 0\n"


@pytest.fixture(scope="module")
def server(one: Appliance) -> Appliance:
    one.box.exec("sh", "-c", _ACME)
    one.sh(f"cp /run/acme/root.crt {ETC}/tls/acme-root.crt; cp /run/acme/update.key {ETC}/tls/; chmod 600 {ETC}/tls/*")
    return one


def ask(appliance: Appliance, way: str) -> str:
    """Let the ACME server issue; what the name server says that it has done."""
    before = appliance.mirror("quay")["certificate"]["serial"]
    appliance.settings(AGENT_TOML + _TABLE + way)
    appliance.settle()
    appliance.wait(lambda: "Pebble" in appliance.mirror("quay")["certificate"]["issuer"], 60, "a certificate by ACME")
    appliance.wait(lambda: appliance.mirror("quay")["certificate"]["served"], 20, "it to be shown")
    assert appliance.mirror("quay")["certificate"]["serial"] != before
    assert "Pebble" in shown(appliance)
    appliance.serving("quay")
    assert verified(appliance)
    return appliance.box.journal("-b", "-o", "cat", "-u", "test-named")


def test_acme_by_updates_of_a_name_server(server: Appliance) -> None:
    said = ask(server, f'server = "198.51.100.20"\nkey = "{ETC}/tls/update.key"\n')
    assert "adding an RR at '_acme-challenge.quay.mirror.lan' TXT" in said
    assert "deleting an RR at _acme-challenge.quay.mirror.lan TXT" in said
    account = f"{STATE}/acme/account.key"
    assert server.sh(f"stat -c '%a %u' {account} {STATE}/acme") == "600 0\n700 0\n"
    # again, with the account that is known there
    before, key = server.mirror("quay")["certificate"]["serial"], server.sh(f"sha256sum {account}")
    server.box.exec("mirror-agent", "renew", "quay")
    server.settle()
    assert server.mirror("quay")["certificate"]["serial"] != before
    assert server.mirror("quay")["certificate"]["served"]
    assert server.sh(f"sha256sum {account}") == key


# The company finds out that a key was stolen, and revokes at the server, as the account that the certificate is of.
_REVOKE = """
import sys
from acme import client, errors, messages
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from josepy import jwa, jwk
directory, key, leaf = sys.argv[1:]
network = client.ClientNetwork(jwk.JWKEC(key=load_pem_private_key(open(key, "rb").read(), None)), alg=jwa.ES256)
acme = client.ClientV2(client.ClientV2.get_directory(directory, network), network)
try:
    acme.new_account(messages.NewRegistration.from_data(terms_of_service_agreed=True))
    sys.exit("the account is not known")
except errors.ConflictError as known:
    network.account = messages.RegistrationResource(uri=known.location, body=messages.Registration())
acme.revoke(x509.load_pem_x509_certificates(open(leaf, "rb").read())[0], 1)
"""


def test_the_server_may_want_it_earlier(server: Appliance) -> None:
    """ARI (RFC 9773): it is asked, and what it says is followed."""
    known = f"{STATE}/acme/renewals.json"
    asked = json.loads(server.box.exec("cat", known).stdout)["mirrors"]["quay"]
    assert asked["serial"] == server.mirror("quay")["certificate"]["serial"]
    assert asked["at"] > asked["asked"], "not yet"
    leaf = f"{STATE}/mirrors/quay/tls/current/tls.crt"
    directory = "https://auth.docker.io:14000/dir"
    server.box.exec("python3", "-c", _REVOKE, directory, f"{STATE}/acme/account.key", leaf)
    server.settle()
    assert server.mirror("quay")["certificate"]["serial"] == asked["serial"], "it is asked every six hours only"
    since = server.cursor()
    server.sh(f'sed -i -E \'s/("asked": ")20../\\12020/\' {known}')
    server.settle()
    server.wait(lambda: server.mirror("quay")["certificate"]["serial"] != asked["serial"], 30, "a new certificate")
    assert "the ACME server asks for it" in server.journal("ACTION=issue-certificate", since=since)[0]["MESSAGE"]


def test_a_server_that_hangs_holds_up_nobody(server: Appliance) -> None:
    """Its packets vanish while it is asked: other mirrors come up, and so does this one when its edge was stopped."""
    box, edge = server.box, "mirror-quay-edge.service"
    tls = "".join(f'{key} = "{ETC}/tls/{name}"\n' for key, name in (("certificate", "ghcr.crt"), ("key", "ghcr.key")))
    leaf = _COMPANY.replace("make root\nmake issuing -CA root.crt -CAkey root.key\n", "").replace("quay.m", "ghcr.m")
    box.exec("sh", "-c", leaf, "company", "90")
    server.sh(f"cp /root/company/leaf.key {ETC}/tls/ghcr.key; cp /root/company/chain.crt {ETC}/tls/ghcr.crt")
    serial, since = server.mirror("quay")["certificate"]["serial"], server.cursor()
    box.gw("nft", "-f", "-", input=_HOLE)
    try:
        server.sh(f'systemctl stop mirror-agent; sed -i -E \'s/("at": ")20../\\12020/\' {STATE}/acme/renewals.json')
        server.sh("systemctl start mirror-agent")
        server.until_said("quay: issue certificate (the ACME server asks for it)", since)
        server.define("ghcr", f'source = "ghcr.io"\n[tls]\n{tls}ca = "{ETC}/tls/root.crt"\n')
        server.sh(f"systemctl stop {edge}")
        server.wait(lambda: server.mirror("ghcr").get("state") == "serving", 20, "the other mirror to serve")
        server.wait(lambda: edge in server.starts("quay"), 20, "the edge to be back")
        assert verified(server)
        assert server.mirror("quay")["certificate"]["serial"] == serial
        line = server.until_said("quay: could not issue certificate", since, 60)
        assert line["MESSAGE_ID"] == "5f2b0c6d1a7e4a0f9c3d8e41b7a60c21"
        issue = {"ACTION": "issue-certificate", "MIRROR": "quay"}
        claim = {"ACTION": "claim-address", "MIRROR": "ghcr"}
        start = {"ACTION": "start-units", "MIRROR": "quay"}
        for step in (claim, start):  # while the server is asked, not after it
            in_order(server.journal(since=since), issue, step, {**issue, "MESSAGE": "could not"})
    finally:
        box.gw("nft", "delete", "table", "ip", "hole")
    server.remove("ghcr")
    server.box.exec("systemctl", "restart", "mirror-agent")  # not to wait for the next try
    server.wait(lambda: server.mirror("quay")["certificate"]["serial"] != serial, 60, "the new certificate")
    server.wait(lambda: server.mirror("quay")["certificate"]["served"], 20, "it to be shown")
    server.serving("quay")


def test_acme_by_a_command(server: Appliance) -> None:
    """For another host: the server need not ask again for a name that it has just seen proved."""
    server.settings()  # the CA of the host again, so that there is something to do
    server.define("quay", 'source = "quay.io"\nhost = "other"\n')
    server.settle()
    server.wait(lambda: "Pebble" not in server.mirror("quay")["certificate"]["issuer"], 30, "a certificate by the CA")
    server.serving("quay")
    server.write(f"{ETC}/tls/hook", _HOOK)
    server.sh(f"chmod 755 {ETC}/tls/hook")
    said = ask(server, f'hook = "{ETC}/tls/hook"\n')
    assert "adding an RR at '_acme-challenge.other.mirror.lan' TXT" in said
    assert "deleting an RR at _acme-challenge.other.mirror.lan TXT" in said


def test_a_server_that_is_away_is_told_and_the_mirror_serves_on(server: Appliance) -> None:
    server.sh("systemctl stop test-pebble")
    serial = server.mirror("quay")["certificate"]["serial"]
    tried = server.box.exec("mirror-agent", "renew", "quay", check=False)
    assert tried.returncode == 1
    assert "https://auth.docker.io:14000/dir" in tried.stderr
    assert server.mirror("quay")["certificate"]["serial"] == serial
    assert verified(server)
    assert server.status()["line"] == "1 mirror: 1 serving"
