"""The RPM: the same bytes each time, what packaging/install lays down and nothing else, and rpmlint's judgement."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from tree import REPO, Built, build, copy_of_tree

import mirror_agent

SPEC = (REPO / "packaging/mirror-agent.spec").read_text()
LIBRARY = "usr/lib/mirror-agent"

# What pyproject.toml calls it → what Fedora and EPEL do; these two are bundled.
BUNDLED = ("pydbus", "structlog")
FEDORA = {
    "prometheus-client": "python3-prometheus_client",
    "pyyaml": "python3-pyyaml",
    "systemd-python": "python3-systemd",
}

# What Fedora's macros of these names do, in short; pyproject-rpm-macros itself is no package of Debian's.
MACROS = {
    "_pyproject_wheeldir": "%{_builddir}/pyproject-wheeldir",
    "pyproject_buildrequires(R)": "%{!-R:false}\ntest -f pyproject.toml && echo 'python3dist(setuptools) >= 68'",
    "pyproject_wheel()": "python3 -m pip wheel --wheel-dir %{_pyproject_wheeldir} "
    "--no-deps --use-pep517 --no-build-isolation --no-index .",
}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the package brings itself, as their hashes in bundled.txt want them."""
    folder = tmp_path_factory.mktemp("wheels")
    pinned = ["--no-deps", "--require-hashes", "-r", str(REPO / "packaging/bundled.txt")]
    subprocess.run(["pip", "download", "--quiet", "-d", folder, *pinned], check=True)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Built:
    return build(REPO, tmp_path_factory.mktemp("rpm"), wheels)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Man pages and completions."""
    folder = tmp_path_factory.mktemp("made")
    subprocess.run([REPO / "packaging/build", folder], check=True)
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, made: Path) -> Path:
    """What packaging/install lays down, in an empty folder."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([REPO / "packaging/install", folder, made], check=True)
    return folder


@pytest.fixture(scope="module")
def by_macros(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Built:
    """The packages as a distribution with pyproject macros builds them: these do what Fedora's do."""
    [archive] = Path("/usr/share/python-wheels").glob("setuptools-*.whl")
    setuptools = tmp_path_factory.mktemp("setuptools")
    subprocess.run(["python3", "-m", "zipfile", "-e", archive, setuptools], check=True)
    tree, target = copy_of_tree(tmp_path_factory.mktemp("tree")), tmp_path_factory.mktemp("rpm")
    return build(tree, target, wheels, *defined(fedora="42"), PYTHONPATH=str(setuptools))


def defined(**distribution: str) -> list[str]:
    """Options of rpm: pyproject macros, and whose they are."""
    return [word for name, body in {**MACROS, **distribution}.items() for word in ("--define", f"{name} {body}")]


def query(package: Path, *arguments: str) -> list[str]:
    return subprocess.run(
        ["rpm", "-qp", *arguments, package], capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_two_builds_are_the_same_bytes(built: Built, wheels: Path, tmp_path: Path) -> None:
    """Another place, other times and modes of files, time zone, language, umask and name of the machine."""
    tree = copy_of_tree(tmp_path / "elsewhere")
    script = (
        f'umask 077; exec unshare --uts sh -c \'hostname elsewhere; exec "$0" "$@"\' {tree}/packaging/make-rpm "$@"'
    )
    target = tmp_path / "rpm"
    environment = {"TZ": "Pacific/Auckland", "LC_ALL": "C", "PATH": "/opt/box-tools/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
    subprocess.run(["sh", "-c", script, "sh", target, wheels], env=environment, check=True)
    [rpm], [source] = target.glob("*.noarch.rpm"), target.glob("*.src.rpm")
    assert rpm.read_bytes() == built.rpm.read_bytes()
    assert source.read_bytes() == built.source.read_bytes()


def test_another_tree_is_another_package(built: Built, wheels: Path, tmp_path: Path) -> None:
    """Otherwise the test above would prove nothing."""
    tree = copy_of_tree(tmp_path / "elsewhere")
    with (tree / "agent/mirror_agent/model.py").open("a") as file:
        file.write("# changed\n")
    assert build(tree, tmp_path / "rpm", wheels).rpm.read_bytes() != built.rpm.read_bytes()


def test_it_has_what_install_lays_down(built: Built, installed: Path) -> None:
    laid = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    laid = {name + ".gz" if name.startswith("usr/share/man/") else name for name in laid}
    packed = {
        line.rpartition(" ")[2][1:]
        for line in query(built.rpm, "--queryformat", "[%{FILEMODES:perms} %{FILENAMES}\n]")
        if not line.startswith("d")
    }
    ours = {name for name in packed if not name.startswith(tuple(f"{LIBRARY}/{bundled}" for bundled in BUNDLED))}
    assert {name for name in ours if not name.endswith(".pyc")} == laid
    sources = {name for name in packed if name.endswith(".py")}
    compiled = {re.sub(r"__pycache__/(.+)\.cpython-\d+\.pyc$", r"\1.py", n) for n in packed if n.endswith(".pyc")}
    assert compiled == sources


def test_with_pyproject_macros_the_package_is_the_same(built: Built, by_macros: Built) -> None:
    """File by file, with the same bytes and modes, and the same relations to other packages."""
    for facts in (
        "[%{FILEMODES:perms} %{FILEDIGESTS} %{FILENAMES}\n]",
        "[%{REQUIRENEVRS}\n]",
        "[%{PROVIDENEVRS}\n]",
    ):
        assert query(by_macros.rpm, "--queryformat", facts) == query(built.rpm, "--queryformat", facts)
    wanted = query(by_macros.source, "--requires")
    assert {"pyproject-rpm-macros", "python3-devel"} <= set(wanted)
    assert not [line for line in query(built.source, "--requires") if "pyproject" in line or "devel" in line]


@pytest.mark.parametrize("distribution", [{"fedora": "42"}, {"fedora": "43"}, {"rhel": "10"}])
def test_fedora_and_el_read_the_spec(distribution: dict[str, str]) -> None:
    """As far as it can be seen without them: their macros are asked for, and no macro is left unknown."""
    command: list[str | Path] = ["rpmspec", "--parse", *defined(**distribution), REPO / "packaging/mirror-agent.spec"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(r"^BuildRequires: +pyproject-rpm-macros$", text, re.MULTILINE)
    assert "pip wheel" in text
    assert "%{" not in text


def test_modes_and_owners(built: Built) -> None:
    """World-readable, nobody but root writes, and the only program is the command."""
    lines = query(built.rpm, "--queryformat", "[%{FILEMODES:perms} %{FILEUSERNAME}:%{FILEGROUPNAME} %{FILENAMES}\n]")
    assert {line.split()[1] for line in lines} == {"root:root"}
    assert {line.split()[0] for line in lines} == {"drwxr-xr-x", "-rw-r--r--", "-rwxr-xr-x"}
    assert [line.split()[2] for line in lines if line.startswith("-rwx")] == ["/usr/bin/mirror-agent"]


def test_settings_are_the_admin_s(built: Built) -> None:
    flags = query(built.rpm, "--queryformat", "[%{FILEFLAGS:fflags} %{FILENAMES}\n]")
    assert [line for line in flags if "c" in line.split(" ")[0]] == ["cn /etc/mirror-agent/agent.toml"]


def test_rpmlint_has_nothing_to_say(built: Built) -> None:
    config = REPO / "packaging/rpmlint.toml"
    lint: list[str | Path] = ["rpmlint", "-c", config, built.rpm, built.source, REPO / "packaging/mirror-agent.spec"]
    done = subprocess.run(lint, capture_output=True, text=True, check=False)
    assert (done.returncode, " 0 errors, 0 warnings," in done.stdout) == (0, True), done.stdout


def test_every_filter_of_rpmlint_is_needed_and_has_its_reason(built: Built, tmp_path: Path) -> None:
    text = (REPO / "packaging/rpmlint.toml").read_text()
    lines = text[text.index("Filters = [") :].splitlines()[1:-1]
    assert all(re.fullmatch(r' +(".*",) +# \S.*', line) for line in lines)
    bare = tmp_path / "bare.toml"
    bare.write_text(text[: text.index("Filters = [")])
    lint: list[str | Path] = ["rpmlint", "-c", bare, built.rpm, built.source, REPO / "packaging/mirror-agent.spec"]
    said = subprocess.run(lint, capture_output=True, text=True, check=False).stdout
    assert [each for each in tomllib.loads(text)["Filters"] if not re.search(each, said)] == []


def test_the_version_is_said_once(built: Built) -> None:
    assert query(built.rpm, "--queryformat", "%{VERSION}") == [mirror_agent.__version__]
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert project["version"] == mirror_agent.__version__


def test_it_requires_the_libraries_of_pyproject_with_their_versions(built: Built) -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    required = query(built.rpm, "--requires")
    for dependency in (*project["dependencies"], "python" + project["requires-python"]):
        name, floor = re.fullmatch(r"([\w-]+)(?:>=([\d.]+))?", dependency.replace(" ", "")).groups()  # type: ignore[union-attr]
        if name in BUNDLED:
            continue
        package = "python3" if name == "python" else FEDORA.get(name.lower(), f"python3-{name.lower()}")
        assert (f"{package} >= {floor}" if floor else package) in required


def test_the_bundled_versions_are_those_of_the_pinned_wheels(built: Built) -> None:
    pins = re.findall(r"^(\w+)==(\S+) --hash=sha256:[0-9a-f]{64}$", (REPO / "packaging/bundled.txt").read_text(), re.M)
    assert [name for name, _ in pins] == sorted(BUNDLED)
    provided = query(built.rpm, "--provides")
    for name, version in pins:
        assert f"bundled(python3dist({name})) = {version}" in provided
        assert f"%global {name} {version}\n" in SPEC
