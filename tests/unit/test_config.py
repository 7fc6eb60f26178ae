"""Definitions and settings: the texts that admins write beside what they are told."""

from __future__ import annotations

import ast
import itertools
import re
import string
import tomllib
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mirror_agent import config
from mirror_agent.config import parse_definition, parse_settings
from mirror_agent.config.definition import DefinitionTable
from mirror_agent.config.settings import SettingsTable
from mirror_agent.config.toml import keys
from mirror_agent.model import Candidate, Definition, NetworkSettings, Policy, Settings

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/config"
FOLDER = "/etc/mirror-agent.d"
SETTINGS = Settings(
    domain="mirror.lan",
    network=NetworkSettings(
        parent="eth1",
        subnet=IPv4Network("10.0.0.0/24"),
        gateway=IPv4Address("10.0.0.1"),
        first=IPv4Address("10.0.0.4"),
        last=IPv4Address("10.0.0.60"),
    ),
)
SMALLEST = """domain = "mirror.lan"
[network]
parent = "eth1"
subnet = "10.0.0.0/24"
gateway = "10.0.0.1"
range = "10.0.0.4-10.0.0.60"
"""


def candidate(content: str | bytes, name: str = "quay.toml", /, **facts: object) -> Candidate:
    data = content.encode() if isinstance(content, str) else content
    return Candidate(f"{FOLDER}/{name}", **{"kind": "regular", "size": len(data), "content": data} | facts)  # type: ignore[arg-type]


def read(content: str | bytes, name: str = "quay.toml") -> Definition:
    definition, problems = parse_definition(candidate(content, name), SETTINGS)
    assert not problems
    assert definition
    return definition


def told(content: str | bytes, name: str = "quay.toml", /, **facts: object) -> list[str]:
    """What an admin reads about a file that is refused, without the file's name."""
    definition, problems = parse_definition(candidate(content, name, **facts), SETTINGS)
    assert definition is None
    assert all(problem.file == f"{FOLDER}/{name}" for problem in problems)
    return [str(replace(problem, file="-"))[3:] for problem in problems]


def told_of_settings(content: str) -> list[str]:
    settings, problems = parse_settings("agent.toml", content.encode())
    assert settings is None
    return [str(problem).removeprefix("agent.toml: ") for problem in problems]


# --- good definitions ------------------------------------------------------------------------------------------


def test_the_smallest_definition_is_one_line() -> None:
    assert read('source = "quay.io"') == Definition(
        name="quay",
        file=f"{FOLDER}/quay.toml",
        sources=("quay.io",),
        remote="https://quay.io",
        probe="podman/hello:latest",
    )


def test_every_key_has_its_effect() -> None:
    text = """
        source  = ["registry.lan:5000/team", "old.lan"]
        remote  = "http://registry.lan:5000/"
        host    = "team"
        address = "10.0.0.60"
        policy  = "AllowContactingSource"
        allow   = ["team/*", "other/app"]
        probe   = "team/tiny:1.0"
        [upstream]
        credentials = "/etc/mirror-agent/team.credentials"
        insecure    = true
        ca          = "/etc/mirror-agent/tls/company.crt"
        proxy       = "https://proxy.lan:3129/"
        bandwidth   = "500 kB/s"
        pull_limit  = false
        [cache]
        budget = "1 TiB"
        fresh  = "5m"
        keep   = "90d"
    """
    assert read(text, "team.toml") == Definition(
        name="team",
        file=f"{FOLDER}/team.toml",
        sources=("registry.lan:5000/team", "old.lan"),
        remote="http://registry.lan:5000",
        host="team.mirror.lan",
        address=IPv4Address("10.0.0.60"),
        policy=Policy.ALLOW,
        insecure=True,
        credentials=Path("/etc/mirror-agent/team.credentials"),
        ca=Path("/etc/mirror-agent/tls/company.crt"),
        proxy="https://proxy.lan:3129",
        bandwidth=500_000,
        budget=2**40,
        fresh=300,
        probe="team/tiny:1.0",
        keep=90 * 86400,
        allow=("team/*", "other/app"),
    )


HUB = "https://registry-1.docker.io"


def test_docker_hub_is_asked_what_is_left_and_others_are_when_it_is_written() -> None:
    free, asked = "ratelimitpreview/test:latest", "[upstream]\npull_limit = true\n"
    assert read('source = "docker.io"').pull_limit == free
    assert read('source = "docker.io"\nprobe = "a/b:1"\n' + asked).pull_limit == free
    assert read('source = "docker.io"\n[upstream]\npull_limit = false\n').pull_limit is None
    assert read('source = "quay.io"').pull_limit is None
    assert read('source = "quay.io"\n' + asked).pull_limit == "podman/hello:latest"
    assert read('source = "lab.example"\nprobe = "a/b:1"\n' + asked).pull_limit == "a/b:1"


@pytest.mark.parametrize(
    ("source", "sources", "remote"),
    [
        ('"docker.io"', ("docker.io", "registry-1.docker.io"), HUB),
        ('["docker.io"]', ("docker.io",), HUB),
        ('["docker.io", "registry-1.docker.io"]', ("docker.io", "registry-1.docker.io"), HUB),
        ('"registry-1.docker.io"', ("registry-1.docker.io",), HUB),
        ('"docker.io/library"', ("docker.io/library",), HUB),
        ('["quay.io/okd", "quay.io/a_b/c"]', ("quay.io/okd", "quay.io/a_b/c"), "https://quay.io"),
        ('"10.9.9.9:5000"', ("10.9.9.9:5000",), "https://10.9.9.9:5000"),
        ('"nexus:8443"', ("nexus:8443",), "https://nexus:8443"),
    ],
)
def test_the_remote_follows_from_the_source(source: str, sources: tuple[str, ...], remote: str) -> None:
    definition = read(f"source = {source}", "any.toml")
    assert (definition.sources, definition.remote) == (sources, remote)


def test_two_names_of_one_registry_need_a_remote() -> None:
    text = 'source = ["registry.k8s.io", "k8s.gcr.io"]\nremote = "https://registry.k8s.io"'
    assert read(text).probe == "pause:3.10"


# --- bad definitions -------------------------------------------------------------------------------------------


def blocks(name: str) -> list[Any]:
    """The cases of a golden file: lines with > are input, the others what is told."""
    lines = [line for line in (GOLDEN / name).read_text().splitlines() if not line.startswith("#")]
    cases = (list(group) for full, group in itertools.groupby(lines, bool) if full)
    return [
        pytest.param(
            "\n".join(line[2:] for line in case if line.startswith(">")),
            [line for line in case if not line.startswith(">")],
            id=" ".join(line[2:] for line in case if line.startswith(">")),
        )
        for case in cases
    ]


@pytest.mark.parametrize(("text", "expected"), blocks("definitions.txt"))
def test_bad_definitions(text: str, expected: list[str]) -> None:
    assert told(text) == expected


@pytest.mark.parametrize("key", ["source", "remote", "host", "address", "policy", "probe"])
@pytest.mark.parametrize("character", ["\n", "\0", "\x1b", "\u202e", '"', "'", "`", "%", "$", "\\"], ids=repr)
def test_characters_that_are_allowed_in_no_value(key: str, character: str) -> None:
    source = "" if key == "source" else 'source = "quay.io"\n'
    (problem,) = told(f'{source}{key} = "a\\U{ord(character):08X}b"')
    shown = f"character {character}" if character.isprintable() else f"control character U+{ord(character):04X}"
    assert problem.startswith(f"{key}: holds the {shown}")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\xef\xbb\xbfsource = 1", "begins with a byte order mark (save it as UTF-8 without BOM)"),
        (b"a = 1\n# \xff", "is not UTF-8 in line 2 (save it as UTF-8)"),
        (b"\x7fELF\x02\x01\x00", 'is not TOML: line 1, column 1: Invalid statement (a line is: key = "value")'),
        ("x" * 1001, "line 1 is longer than 1000 characters (break the list into lines)"),
        ("a = " + "[\n" * 5_000, "is not TOML: a number or a nesting without end (man mirror-agent.d has examples)"),
        (b"#" * (64 * 2**10 + 1), "is larger than 64 KiB (a definition has a dozen lines)"),
    ],
)  # fmt: skip
def test_what_is_no_text(content: str | bytes, expected: str) -> None:
    assert told(content) == [expected]


def test_what_is_too_long() -> None:
    long = ".".join(["a" * 60] * 4)
    assert told(f'source = "{long}/bbbbbbbbbb"') == [
        "source: is longer than 253 characters (a shorter prefix: host[:port][/path])"
    ]
    assert told_of_settings(SMALLEST.replace("mirror.lan", long)) == [
        "domain: is longer than 220 characters (a mirror's name must fit in front of it)"
    ]


def test_all_mistakes_of_a_file_at_once() -> None:
    text = 'source = "https://quay.io"\naddress = "10.0.0.1"\nremote = "http://quay.io"\nhots = 1\n[cache]\nfresh = 1'
    assert [line.partition(": ")[0] for line in told(text)] == ["address", "cache.fresh", "hots", "remote", "source"]


def test_a_wrong_file_of_thousands_of_keys_is_told_in_twenty_lines() -> None:
    problems = told("\n".join(f"k{number} = 1" for number in range(6_000)))
    assert len(problems) == 21
    assert "has 5981 more mistakes" in problems[0]


def test_no_password_is_ever_told() -> None:
    for text in (
        'remote = "https://joe:hunter2@quay.io"', '[upstream]\ncredentials = "hunter2"', 'password = "hunter2"',
        "password = hunter2", '[upstream]\npassword = "hunter2',
    ):  # fmt: skip
        assert "hunter2" not in "".join(told(text))


# --- the file itself -------------------------------------------------------------------------------------------


GOOD = 'source = "quay.io"'
MASK = "only a link to /dev/null has a meaning: no mirror"


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"kind": "link"}, [f"is a link, and links are not followed ({MASK})"]),
        ({"kind": "other"}, ["is not a regular file"]),
        ({"size": 10 * 2**20, "content": b""}, ["is larger than 64 KiB (a definition has a dozen lines)"]),
        ({"owner": 1000}, [f"is owned by uid 1000, not by root (chown root: {FOLDER}/quay.toml)"]),
        ({"mode": 0o664}, [f"can be written by its group (chmod go-w {FOLDER}/quay.toml)"]),
        ({"mode": 0o646}, [f"can be written by others (chmod go-w {FOLDER}/quay.toml)"]),
        ({"mode": 0o666}, [f"can be written by group and others (chmod go-w {FOLDER}/quay.toml)"]),
    ],
)  # fmt: skip
def test_files_that_are_not_trusted(facts: dict[str, object], expected: list[str]) -> None:
    assert told(GOOD, **facts) == expected


def test_check_in_a_checkout_looks_at_no_owner_and_mode() -> None:
    untrusted = candidate(GOOD, owner=1000, mode=0o666)
    assert parse_definition(untrusted, SETTINGS, owner=None)[0] is not None
    assert parse_definition(candidate(GOOD, owner=1000), SETTINGS, owner=1000)[0] is not None
    assert parse_definition(candidate(GOOD, owner=0), SETTINGS, owner=1000)[0] is not None


@pytest.mark.parametrize(
    "name", ["Quay.toml", "quay_io.toml", "-quay.toml", "quay-.toml", "quay.io.toml", ".toml", "a" * 33 + ".toml"]
)
def test_names_that_are_no_mirrors(name: str) -> None:
    hint = "NAME.toml, with a NAME of up to 32 lower-case letters, digits and hyphens"
    assert told(GOOD, f"{name}.toml") == [f"its name is no mirror's name ({hint})"]


def test_a_name_with_control_characters_is_told_safely() -> None:
    _, (problem,) = parse_definition(Candidate("/x/a\x1b\n\udcff.toml", "regular", content=b""), SETTINGS)
    assert problem.file == r"/x/a\x1b\n\udcff.toml"


# --- settings --------------------------------------------------------------------------------------------------


def test_the_smallest_settings() -> None:
    assert parse_settings("agent.toml", SMALLEST.encode()) == (SETTINGS, ())


def test_empty_settings() -> None:
    assert told_of_settings("domian = 1") == [
        'domain: is missing (for example: domain = "mirror.lan")',
        'domian: unknown key (did you mean "domain"?)',
        "network: is missing (a line [network], and below it: gateway, parent, range, subnet)",
    ]


@pytest.mark.parametrize(("text", "expected"), blocks("settings.txt"))
def test_bad_settings(text: str, expected: list[str]) -> None:
    key = text.partition(" ")[0]
    good, found = re.subn(rf"(?m)^{re.escape(key)} = .*$", text, SMALLEST)
    assert told_of_settings(good if found else SMALLEST + text) == expected


# --- what is shipped and documented ----------------------------------------------------------------------------


def uncommented(path: Path) -> bytes:
    """A shipped file with all its keys: '#key' is a key, '# text' is text."""
    return re.sub(r"(?m)^#(?=[^ \n])", "", path.read_text()).encode()


EXAMPLES = sorted((ROOT / "etc/mirror-agent.d").glob("*.toml"))


def test_the_five_upstreams_of_the_recipe_are_shipped() -> None:
    found = {read(path.read_text(), path.name).remote: read(uncommented(path), path.name).address for path in EXAMPLES}
    assert found == {
        "https://quay.io": IPv4Address("10.0.0.4"),
        "https://registry-1.docker.io": IPv4Address("10.0.0.5"),
        "https://registry.k8s.io": IPv4Address("10.0.0.6"),
        "https://gcr.io": IPv4Address("10.0.0.7"),
        "https://ghcr.io": IPv4Address("10.0.0.8"),
    }


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_shipped_definition_shows_every_key_with_its_default(path: Path) -> None:
    plain, full = read(path.read_bytes(), path.name), read(uncommented(path), path.name)
    assert dotted(tomllib.loads(uncommented(path).decode())) == {key for key, _ in keys(DefinitionTable)}
    examples = replace(full, host=None, address=None, budget=None, keep=None, allow=(), tls=None)
    assert replace(examples, credentials=None, ca=None, proxy=None, bandwidth=None) == plain


def test_the_shipped_settings_show_every_key_with_its_default() -> None:
    path = ROOT / "etc/mirror-agent/agent.toml"
    assert dotted(tomllib.loads(uncommented(path).decode())) == {key for key, _ in keys(SettingsTable)}
    settings, problems = parse_settings(path.name, uncommented(path))
    assert problems == ()
    assert settings
    lives = replace(settings.certificates, ca=None, acme=None)
    example = replace(settings, publish=SETTINGS.publish, network=replace(settings.network, dns=()), certificates=lives)
    assert example == SETTINGS
    # As shipped they claim nothing on anybody's LAN.
    assert parse_settings(path.name, path.read_bytes())[0] is None


def dotted(table: dict[str, object], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for key, value in table.items():
        found |= {prefix + key} | (dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else set())
    return found


ACME = SMALLEST + '[certificates.acme]\ndirectory = "https://acme.example:14000/dir"\n'


@pytest.mark.parametrize(
    ("keys", "reasons"),
    [
        ('hook = "/etc/mirror-agent/tls/hook"', []),
        ('server = "10.0.0.53"\nkey = "/etc/mirror-agent/tls/key"', []),
        ("", ["certificates.acme.hook: is missing, and so is server"]),
        ('server = "10.0.0.53"', ["certificates.acme.key: is missing"]),
        ('key = "/etc/mirror-agent/tls/key"', ["certificates.acme.hook: is missing, and so is server"]),
        ('hook = "/etc/passwd"', ['certificates.acme.hook: "/etc/passwd" is no file below /etc/mirror-agent']),
        ('server = "x"', ['certificates.acme.server: "x" is no IPv4 address']),
    ],
)
def test_a_dns_challenge_is_answered_in_one_way(keys: str, reasons: list[str]) -> None:
    settings, problems = parse_settings("agent.toml", (ACME + keys).encode())
    assert (settings is None) == bool(reasons)
    assert [f"{problem.key}: {problem.reason}" for problem in problems] == reasons


@pytest.mark.parametrize(("title", "schema"), [("Settings", SettingsTable), ("Definitions", DefinitionTable)])
def test_the_reference_has_every_key_and_no_other(title: str, schema: type[SettingsTable | DefinitionTable]) -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    (section,) = re.findall(rf"(?ms)^## {title}:.*?(?=^##)", text)
    documented = re.findall(r"(?m)^\| `([^`]+)` \|", section)
    assert sorted(documented) == sorted(key for key, _ in keys(schema))


# --- nothing gets through --------------------------------------------------------------------------------------


SAFE = set(string.ascii_letters + string.digits + ".:/-_")
WORDS = r"""
    source remote host address policy probe upstream insecure cache budget fresh = " "quay.io" [ ] [[ { } , true 1e9
    10.0.0.4 https:// \u0000 %h $(x) ../ # . é 1979-05-27 0x '''
"""
FRAGMENTS = st.sampled_from([*WORDS.split(), " ", "\n", "\r\n", "\t", "\u202e"])


@given(
    st.one_of(st.binary(), st.text().map(str.encode), st.lists(FRAGMENTS).map(lambda parts: "".join(parts).encode()))
)
@example(b"\xed\xa0\x80")
def test_no_content_raises(content: bytes) -> None:
    definition, problems = parse_definition(candidate(content), SETTINGS)
    assert (definition is None) == bool(problems)
    assert all(str(problem).isprintable() for problem in problems)
    assert parse_settings("agent.toml", content)[0] is None


VALUES = st.one_of(
    st.text(max_size=20),
    st.from_regex(r"[a-z0-9.:/@*_-]{1,20}", fullmatch=True),
    st.builds(
        "{}{}{}".format,
        st.sampled_from(["https://", "http://", "", "/etc/mirror-agent/", "quay.io", "10.0.0."]),
        st.text(alphabet="ab9.:/-_%$\n\\\"'` é", max_size=6),
        st.sampled_from(["", ".io", ":latest", "GiB", "s"]),
    ),
)


@given(st.dictionaries(st.sampled_from(["source", "remote", "host", "probe", "credentials", "budget"]), VALUES))
def test_what_is_accepted_needs_no_quoting(values: dict[str, str]) -> None:
    def quoted(text: str) -> str:
        return '"' + "".join(f"\\U{ord(c):08x}" for c in text) + '"'

    top = {key: value for key, value in values.items() if key not in ("credentials", "budget")}
    text = "".join(f"{key} = {quoted(value)}\n" for key, value in ({"source": "quay.io"} | top).items())
    text += f"upstream.credentials = {quoted(values['credentials'])}\n" if "credentials" in values else ""
    text += f"cache.budget = {quoted(values['budget'])}\n" if "budget" in values else ""
    definition, _ = parse_definition(candidate(text), SETTINGS)
    if definition is None:
        return
    strings = [*definition.sources, definition.remote, definition.host or "", definition.probe or ""]
    assert set("".join(strings) + str(definition.credentials or "")) <= SAFE
    assert definition.remote.startswith("https://")


def test_every_mistake_says_what_to_do() -> None:
    """A hint, or an example of the key (`form`)."""
    silent = []
    for path in sorted((Path(config.__file__).parent).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Mistake":
                said = len(node.args) > 1 or any(keyword.arg in ("hint", "form") for keyword in node.keywords)
                silent += [] if said else [f"{path.name}:{node.lineno}"]
    assert silent == []
