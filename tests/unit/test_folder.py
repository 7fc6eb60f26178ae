"""The folder target on real folders: atomic, ours only, never through a link, whatever stands in the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from mirror_agent import page
from mirror_agent.model import Document, FolderSettings, PublishSettings
from mirror_agent.targets import TARGETS, TargetError, folder, targets

CA = Document("ca-bundle.pem", b"ca\n")
HOSTS = Document("hosts", b"10.0.0.4  quay.mirror.lan\n")
CONF = Document("registries.conf.d/50-mirror-agent.conf", b"[[registry]]\n")
ALL = (CA, HOSTS, CONF)
MANIFEST = ".mirror-agent.json"
SOURCE = Path(folder.__file__).parents[2]


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != MANIFEST}


def identities(root: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in [root, *root.rglob("*")]}


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files to another user")


class TestPublish:
    def test_writes_every_document_for_everybody_to_read(self, tmp_path: Path) -> None:
        before = os.umask(0o077)
        try:
            assert folder.publish(FolderSettings(tmp_path), ALL) == (
                "ca-bundle.pem",
                "hosts",
                "registries.conf.d/50-mirror-agent.conf",
            )
        finally:
            os.umask(before)
        assert files(tmp_path) == {d.name: d.content for d in ALL}
        modes = {str(p.relative_to(tmp_path)): stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")}
        assert modes == {
            MANIFEST: 0o644,
            CA.name: 0o644,
            HOSTS.name: 0o644,
            "registries.conf.d": 0o755,
            CONF.name: 0o644,
        }

    def test_a_second_time_nothing_is_written(self, tmp_path: Path) -> None:
        folder.publish(FolderSettings(tmp_path), ALL)
        before = identities(tmp_path)
        assert folder.publish(FolderSettings(tmp_path), ALL) == ()
        assert identities(tmp_path) == before

    def test_only_what_changed_is_written_and_named(self, tmp_path: Path) -> None:
        folder.publish(FolderSettings(tmp_path), ALL)
        untouched = (tmp_path / CA.name).stat().st_ino
        assert folder.publish(FolderSettings(tmp_path), (CA, Document("hosts", b"new\n"), CONF)) == ("hosts",)
        assert (tmp_path / "hosts").read_bytes() == b"new\n"
        assert (tmp_path / CA.name).stat().st_ino == untouched

    def test_a_reader_that_has_the_old_file_open_keeps_it_whole(self, tmp_path: Path) -> None:
        folder.publish(FolderSettings(tmp_path), ALL)
        with (tmp_path / "hosts").open("rb") as reader:
            folder.publish(FolderSettings(tmp_path), (CA, Document("hosts", b"new\n"), CONF))
            assert reader.read() == HOSTS.content

    def test_stale_files_of_ours_go_and_nothing_else(self, tmp_path: Path) -> None:
        folder.publish(FolderSettings(tmp_path), ALL)
        (tmp_path / "README").write_text("the admin's")
        (tmp_path / "registries.conf.d/10-admin.conf").write_text("the admin's")
        assert folder.publish(FolderSettings(tmp_path), (CA,)) == ("hosts", "registries.conf.d/50-mirror-agent.conf")
        assert set(files(tmp_path)) == {CA.name, "README", "registries.conf.d/10-admin.conf"}

    def test_what_was_edited_or_removed_by_hand_is_put_right(self, tmp_path: Path) -> None:
        folder.publish(FolderSettings(tmp_path), ALL)
        (tmp_path / "hosts").write_text("edited")
        (tmp_path / CA.name).unlink()
        assert folder.publish(FolderSettings(tmp_path), ALL) == ("ca-bundle.pem", "hosts")
        assert files(tmp_path) == {d.name: d.content for d in ALL}

    def test_the_manifest_lets_a_copy_be_checked(self, tmp_path: Path) -> None:
        folder.publish(FolderSettings(tmp_path), ALL)
        manifest = json.loads((tmp_path / MANIFEST).read_bytes())
        assert manifest == {"version": 1, "files": {d.name: sha256(d.content).hexdigest() for d in ALL}}

    def test_a_stray_temporary_file_does_no_harm(self, tmp_path: Path) -> None:
        (tmp_path / folder.TEMPORARY).write_text("half")
        folder.publish(FolderSettings(tmp_path), ALL)
        assert not (tmp_path / folder.TEMPORARY).exists()

    @pytest.mark.parametrize("name", ["../hosts", "/etc/hosts", ".hidden", "a/b/c", "a//b", "", "a\nb", "a/.."])
    def test_a_name_that_leads_elsewhere_is_a_mistake_of_the_caller(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ValueError, match="not a plain document name"):
            folder.publish(FolderSettings(tmp_path), (Document(name, b""),))


class TestRead:
    def test_gives_back_what_was_published(self, tmp_path: Path) -> None:
        folder.publish(FolderSettings(tmp_path), ALL)
        assert folder.read(FolderSettings(tmp_path)) == {d.name: d.content for d in ALL}

    def test_of_an_empty_folder_is_empty(self, tmp_path: Path) -> None:
        (tmp_path / "README").write_text("the admin's")
        assert folder.read(FolderSettings(tmp_path)) == {}

    def test_leaves_out_what_is_gone_or_no_file_any_more(self, tmp_path: Path) -> None:
        folder.publish(FolderSettings(tmp_path), ALL)
        (tmp_path / "hosts").unlink()
        (tmp_path / CA.name).unlink()
        (tmp_path / CA.name).symlink_to("/etc/passwd")
        assert folder.read(FolderSettings(tmp_path)) == {CONF.name: CONF.content}

    def test_does_not_swallow_a_huge_file(self, tmp_path: Path) -> None:
        folder.publish(FolderSettings(tmp_path), ALL)
        with (tmp_path / "hosts").open("wb") as file:
            file.truncate(2**33)
        assert folder.read(FolderSettings(tmp_path))["hosts"] == b""
        assert folder.publish(FolderSettings(tmp_path), ALL) == ("hosts",)


class TestInTheWay:
    """Each refusal names the file and says what to do; what others put there stays as it is."""

    @staticmethod
    def refused(root: Path, where: Path, reason: str, documents: tuple[Document, ...] = ALL) -> None:
        with pytest.raises(TargetError, match=reason) as caught:
            folder.publish(FolderSettings(root), documents)
        assert caught.value.where == str(where)
        assert caught.value.hint

    def test_no_folder(self, tmp_path: Path) -> None:
        self.refused(tmp_path / "share", tmp_path / "share", "no such file or directory")
        with pytest.raises(TargetError, match="mount the share"):
            folder.read(FolderSettings(tmp_path / "share"))

    def test_a_file_in_place_of_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "share").write_text("")
        self.refused(tmp_path / "share", tmp_path / "share", "not a directory")

    def test_a_link_in_place_of_the_folder_or_above_it(self, tmp_path: Path) -> None:
        (tmp_path / "real/share").mkdir(parents=True)
        (tmp_path / "link").symlink_to("real")
        (tmp_path / "real/link").symlink_to("share")
        self.refused(tmp_path / "link/share", tmp_path / "link/share", "not a directory")
        self.refused(tmp_path / "real/link", tmp_path / "real/link", "not a directory")
        assert files(tmp_path) == {}

    def test_a_link_in_place_of_a_file(self, tmp_path: Path) -> None:
        victim = tmp_path / "victim"
        victim.write_text("precious")
        (share := tmp_path / "share").mkdir()
        for target in (victim, tmp_path / "nowhere"):
            (share / "hosts").symlink_to(target)
            self.refused(share, share / "hosts", "this is a link")
            (share / "hosts").unlink()
        assert files(tmp_path) == {"victim": b"precious"}

    def test_a_link_in_place_of_the_manifest_or_the_temporary_file(self, tmp_path: Path) -> None:
        victim = tmp_path / "victim"
        victim.write_text("precious")
        (share := tmp_path / "share").mkdir()
        (share / folder.TEMPORARY).symlink_to(victim)
        folder.publish(FolderSettings(share), ALL)
        (share / MANIFEST).unlink()
        (share / MANIFEST).symlink_to(victim)
        self.refused(share, share / MANIFEST, "this is a link")
        assert victim.read_text() == "precious"

    def test_a_link_in_place_of_a_sub_folder(self, tmp_path: Path) -> None:
        (victim := tmp_path / "victim").mkdir()
        (share := tmp_path / "share").mkdir()
        (share / "registries.conf.d").symlink_to(victim)
        self.refused(share, share / CONF.name, "not a directory")
        assert list(victim.iterdir()) == []

    def test_a_link_that_appears_later_is_neither_followed_nor_cleaned_through(self, tmp_path: Path) -> None:
        (share := tmp_path / "share").mkdir()
        folder.publish(FolderSettings(share), ALL)
        (tmp_path / "victim").mkdir()
        (tmp_path / "victim/50-mirror-agent.conf").write_text("precious")
        (share / CONF.name).unlink()
        (share / "registries.conf.d").rmdir()
        (share / "registries.conf.d").symlink_to(tmp_path / "victim")
        self.refused(share, share / CONF.name, "not a directory")
        assert folder.publish(FolderSettings(share), (CA,)) == ("hosts",)
        assert (tmp_path / "victim/50-mirror-agent.conf").read_text() == "precious"

    def test_a_pipe_in_place_of_a_file_does_not_block(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "hosts")
        self.refused(tmp_path, tmp_path / "hosts", "not a regular file")

    def test_a_folder_in_place_of_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "hosts").mkdir()
        self.refused(tmp_path, tmp_path / "hosts", "not a regular file")

    def test_a_file_that_is_not_ours(self, tmp_path: Path) -> None:
        (tmp_path / "hosts").write_text("127.0.0.1 localhost\n")  # as in /etc
        self.refused(tmp_path, tmp_path / "hosts", "did not write")
        assert files(tmp_path) == {"hosts": b"127.0.0.1 localhost\n"}

    def test_a_file_that_is_not_ours_but_says_the_same_is_taken_over(self, tmp_path: Path) -> None:
        (tmp_path / "hosts").write_bytes(HOSTS.content)
        assert folder.publish(FolderSettings(tmp_path), ALL) == (CA.name, CONF.name)
        assert folder.publish(FolderSettings(tmp_path), (CA,)) == ("hosts", CONF.name)

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", '{"version": 2, "files": {}}', '{"version": 1, "files": {"a": 1}}']
    )
    def test_a_manifest_that_is_none(self, tmp_path: Path, text: str) -> None:
        (tmp_path / MANIFEST).write_text(text)
        self.refused(tmp_path, tmp_path / MANIFEST, "this is not|no[t] a table")

    def test_a_manifest_with_names_that_lead_elsewhere(self, tmp_path: Path) -> None:
        (share := tmp_path / "share").mkdir()
        (tmp_path / "victim").write_text("precious")
        names = ["../victim", str(tmp_path / "victim"), ".", "..", ""]
        (share / MANIFEST).write_text(json.dumps({"version": 1, "files": dict.fromkeys(names, "0")}))
        assert folder.read(FolderSettings(share)) == {}
        folder.publish(FolderSettings(share), ALL)
        assert (tmp_path / "victim").read_text() == "precious"

    @needs_root
    def test_a_manifest_of_somebody_else_where_everybody_may_write(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o1777)
        (tmp_path / "precious").write_text("root's")
        (tmp_path / MANIFEST).write_text(json.dumps({"version": 1, "files": {"precious": "0", "hosts": "0"}}))
        os.chown(tmp_path / MANIFEST, 12345, 12345)
        self.refused(tmp_path, tmp_path / MANIFEST, "belongs to user 12345")
        assert files(tmp_path) == {"precious": b"root's"}

    def test_a_file_system_that_takes_no_files(self) -> None:
        with pytest.raises(TargetError) as caught:
            folder.publish(FolderSettings(Path("/proc/self")), ALL)  # a link, as it happens: /proc/PID is the folder
        assert caught.value.where == "/proc/self"
        with pytest.raises(TargetError, match=r"^/proc/\d+/"):
            folder.publish(FolderSettings(Path(f"/proc/{os.getpid()}")), ALL)


FULL_DISK = """
import sys
from pathlib import Path
from mirror_agent.model import Document, FolderSettings
from mirror_agent.targets import TargetError, folder

disk = Path(sys.argv[1])
folder.publish(FolderSettings(disk), (Document("hosts", b"old"),))
try:
    folder.publish(FolderSettings(disk), (Document("hosts", b"new" * 10**6),))
except TargetError as error:
    print(error)
print(*sorted(path.name for path in disk.iterdir()), (disk / "hosts").read_text())
"""


@needs_root
def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    shell = 'mount -t tmpfs -o size=64k none "$1" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", shell, "sh", str(tmp_path), sys.executable, FULL_DISK],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == (
        f"{tmp_path}/hosts: no space left on device (make room; what was published before is still there)\n"
        ".mirror-agent.json hosts old\n"
    ), done.stderr


def forked_publisher(share: Path, *turns: tuple[Document, ...]) -> int:
    pid = os.fork()
    if pid == 0:
        while True:
            for documents in turns:
                folder.publish(FolderSettings(share), documents)
    return pid


def test_killed_at_any_point_the_next_run_goes_on(tmp_path: Path) -> None:
    old = tuple(Document(d.name, b"old" * 50_000) for d in ALL)
    new = (*(Document(d.name, b"new" * 50_000) for d in ALL[:2]), Document("more", b"new" * 50_000))
    for turn in range(15):
        pid = forked_publisher(tmp_path, old, new)
        time.sleep(0.02 + 0.003 * turn)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for name, content in files(tmp_path).items():
            assert name.endswith(folder.TEMPORARY) or content in (b"old" * 50_000, b"new" * 50_000)
        folder.publish(FolderSettings(tmp_path), new)
        assert folder.read(FolderSettings(tmp_path)) == {d.name: d.content for d in new}
        left = {name for name in files(tmp_path) if not name.endswith(folder.TEMPORARY)}
        assert left == {d.name for d in new}


def forked_hostile_writer(share: Path, victim: Path) -> int:
    pid = os.fork()
    if pid == 0:
        sub, aside = share / "registries.conf.d", share / "aside"
        steps: tuple[Callable[[], object], ...] = (
            lambda: sub.rename(aside),
            lambda: sub.symlink_to(victim),
            sub.unlink,
            lambda: aside.rename(sub),
            lambda: shutil.rmtree(aside),  # the agent made a new folder meanwhile
        )
        while True:
            for step in steps:
                with suppress(OSError):
                    step()
    return pid


def test_a_hostile_writer_who_swaps_folder_and_link_gains_nothing(tmp_path: Path) -> None:
    (share := tmp_path / "share").mkdir()
    (victim := tmp_path / "victim").mkdir()
    pid = forked_hostile_writer(share, victim)
    refused = turn = 0
    until = time.monotonic() + 1
    try:
        while time.monotonic() < until or not refused:
            turn += 1
            try:
                folder.publish(FolderSettings(share), (CA, Document(CONF.name, str(turn).encode())))
            except TargetError:
                refused += 1
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert list(victim.iterdir()) == []


def test_a_file_system_without_fsync_of_folders_is_good_enough() -> None:
    descriptor = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(OSError, match="Invalid argument"):
            os.fsync(descriptor)
        folder._sync(descriptor)
    finally:
        os.close(descriptor)


def modes(root: Path) -> dict[str, tuple[str, int]]:
    """Mode and group of all that is there."""
    found = {p: p.stat() for p in root.rglob("*")}
    return {str(p.relative_to(root)): (f"{stat.S_IMODE(s.st_mode):04o}", s.st_gid) for p, s in found.items()}


@needs_root
class TestWhoMayRead:
    """Mode and group are settings; a change of them is a change of the files that are there."""

    @staticmethod
    def expected(mode: str, folder_mode: str, gid: int) -> dict[str, tuple[str, int]]:
        names = (MANIFEST, *(d.name for d in ALL))
        return {**dict.fromkeys(names, (mode, gid)), "registries.conf.d": (folder_mode, gid)}

    def test_mode_and_group_are_those_of_the_settings(self, tmp_path: Path) -> None:
        settings = FolderSettings(tmp_path, 0o640, "33")
        folder.publish(settings, ALL)
        assert modes(tmp_path) == self.expected("0640", "0750", 33)
        before = identities(tmp_path)
        assert folder.read(settings) == {d.name: d.content for d in ALL}
        assert folder.publish(settings, ALL) == ()
        assert identities(tmp_path) == before

    def test_a_group_goes_by_its_name_too(self, tmp_path: Path) -> None:
        folder.publish(FolderSettings(tmp_path, 0o640, "www-data"), ALL)
        assert modes(tmp_path) == self.expected("0640", "0750", 33)

    def test_changed_settings_repair_what_is_there_and_back(self, tmp_path: Path) -> None:
        open_, closed = FolderSettings(tmp_path), FolderSettings(tmp_path, 0o600, "33")
        folder.publish(open_, ALL)
        (tmp_path / "README").write_text("the admin's")
        (tmp_path / "README").chmod(0o666)
        theirs = {"README": ("0666", 0)}
        assert folder.read(closed) == {}
        assert folder.publish(closed, ALL) == tuple(d.name for d in ALL)
        assert modes(tmp_path) == self.expected("0600", "0700", 33) | theirs
        assert folder.publish(open_, ALL) == tuple(d.name for d in ALL)
        assert modes(tmp_path) == self.expected("0644", "0755", 0) | {"registries.conf.d": ("0755", 33)} | theirs

    def test_what_others_have_made_readable_or_not_is_put_right(self, tmp_path: Path) -> None:
        settings = FolderSettings(tmp_path, 0o640, "33")
        folder.publish(settings, ALL)
        (tmp_path / "hosts").chmod(0o600)
        os.chown(tmp_path / CA.name, -1, 0)
        assert set(folder.read(settings)) == {CONF.name}
        assert folder.publish(settings, ALL) == (CA.name, "hosts")
        assert modes(tmp_path) == self.expected("0640", "0750", 33)

    def test_a_group_that_is_not_there_changes_nothing_and_is_told_at_its_key(self, tmp_path: Path) -> None:
        folder.publish(FolderSettings(tmp_path), ALL)
        before = identities(tmp_path)
        wrong = FolderSettings(tmp_path, 0o640, "no-such-group")
        for attempt in (lambda: folder.read(wrong), lambda: folder.publish(wrong, (CA,))):
            with pytest.raises(TargetError, match='no group "no-such-group"') as caught:
                attempt()
            assert caught.value.key == "publish.folder.group"
        assert identities(tmp_path) == before

    def test_killed_while_the_group_changes_the_next_run_goes_on(self, tmp_path: Path) -> None:
        settings = FolderSettings(tmp_path, 0o640, "33")
        folder.publish(FolderSettings(tmp_path), ALL)
        (tmp_path / "registries.conf.d").rename(tmp_path / "aside")
        (tmp_path / "registries.conf.d").write_text("in the way")
        with pytest.raises(TargetError):
            folder.publish(settings, ALL)
        (tmp_path / "registries.conf.d").unlink()
        (tmp_path / "aside").rename(tmp_path / "registries.conf.d")
        assert folder.read(settings) == {}
        folder.publish(settings, ALL)
        assert modes(tmp_path) == self.expected("0640", "0750", 33)


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Callable[..., Share]]:
    """A mounted file system like those of a network: a program of its own answers for it."""
    mounted: list[Share] = []

    def mount(*options: str) -> Share:
        mounted.append(Share(tmp_path, *options))
        return mounted[-1]

    yield mount
    for each in mounted:
        each.close()


class Share:
    def __init__(self, root: Path, *options: str) -> None:
        self.path, self.behind = root / "share", root / "behind"
        self.path.mkdir()
        self.behind.mkdir()
        self._server = subprocess.Popen(["bindfs", "-f", *options, self.behind, self.path])
        deadline = time.monotonic() + 60
        while not os.path.ismount(self.path):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def hang(self) -> None:
        self._server.send_signal(signal.SIGSTOP)

    def answer(self) -> None:
        self._server.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.answer()
        subprocess.run(["umount", "--lazy", self.path], check=True)
        self._server.wait(60)


@needs_root
class TestShares:
    def test_modes_and_groups_that_a_share_refuses_are_asked_for_once(self, share: Callable[..., Share]) -> None:
        there = share("--chmod-deny", "--chown-deny", "--chgrp-deny")
        settings = FolderSettings(there.path, 0o640, "33")
        folder.publish(settings, ALL)
        assert set(modes(there.path).values()) & {("0640", 33), ("0750", 33)} == set(), "it refuses nothing"
        before = identities(there.path)
        assert folder.read(settings) == {d.name: d.content for d in ALL}
        assert folder.publish(settings, ALL) == ()
        assert identities(there.path) == before

    def test_a_share_without_links_and_attributes_is_enough(self, share: Callable[..., Share]) -> None:
        there = share("--hide-hard-links", "--xattr-none")
        folder.publish(FolderSettings(there.path), ALL)
        assert folder.read(FolderSettings(there.path)) == {d.name: d.content for d in ALL}

    def test_nobody_waits_for_a_share_that_hangs_and_it_is_used_again_when_it_answers(
        self, share: Callable[..., Share], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(folder, "READ_SECONDS", 0.5)
        monkeypatch.setattr(folder, "WRITE_SECONDS", 0.5)
        there = share()
        (target,) = targets(PublishSettings(folder=FolderSettings(there.path)))
        target.publish(ALL[:1])
        there.hang()
        for attempt in (target.read, lambda: target.publish(ALL), target.read):
            begun = time.monotonic()
            with pytest.raises(TargetError, match="does not answer"):
                attempt()
            assert time.monotonic() - begun < 30  # half a second, and what a busy machine adds; not for ever
        there.answer()
        deadline = time.monotonic() + 60
        while True:
            try:
                target.publish(ALL)
                break
            except TargetError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert target.read() == {d.name: d.content for d in ALL}
        assert files(there.behind) == {d.name: d.content for d in ALL}


PAGE = page.MARK + b": it is here"


class TestPage:
    """index.html lies beside the documents and is none of them."""

    @staticmethod
    def shown(root: Path, content: bytes | None, **settings: Any) -> list[bytes | None]:
        seen: list[bytes | None] = []

        def drawn(before: bytes | None) -> bytes | None:
            seen.append(before)
            return content

        folder.show(FolderSettings(root, **settings), drawn)
        return seen

    def test_is_written_beside_the_documents_and_stays_with_them(self, tmp_path: Path) -> None:
        folder.publish(FolderSettings(tmp_path), ALL)
        manifest = (tmp_path / MANIFEST).read_bytes()
        assert self.shown(tmp_path, PAGE) == [None]
        assert self.shown(tmp_path, None) == [PAGE]
        assert folder.publish(FolderSettings(tmp_path), (CA,)) == ("hosts", CONF.name)
        assert folder.read(FolderSettings(tmp_path)) == {CA.name: CA.content}
        assert files(tmp_path) == {CA.name: CA.content, "index.html": PAGE}
        folder.publish(FolderSettings(tmp_path), ALL)
        assert (tmp_path / MANIFEST).read_bytes() == manifest

    def test_is_there_before_any_document(self, tmp_path: Path) -> None:
        self.shown(tmp_path, PAGE)
        assert files(tmp_path) == {"index.html": PAGE}

    def test_of_somebody_else_stays(self, tmp_path: Path) -> None:
        (tmp_path / "index.html").write_text("<h1>our intranet</h1>")
        with pytest.raises(TargetError, match="somebody else's"):
            self.shown(tmp_path, PAGE)
        assert files(tmp_path) == {"index.html": b"<h1>our intranet</h1>"}

    @needs_root
    def test_is_for_those_who_may_read_the_documents(self, tmp_path: Path) -> None:
        closed: dict[str, Any] = {"mode": 0o640, "group": "33"}
        folder.publish(FolderSettings(tmp_path), ALL)
        self.shown(tmp_path, PAGE)
        assert self.shown(tmp_path, PAGE, **closed) == [], "the documents first"
        folder.publish(FolderSettings(tmp_path, **closed), ALL)
        assert self.shown(tmp_path, PAGE, **closed) == [None]
        assert modes(tmp_path)["index.html"] == ("0640", 33)
        assert self.shown(tmp_path, None, **closed) == [PAGE]


class TestTable:
    def test_no_folder_in_the_settings_no_target(self) -> None:
        assert targets(PublishSettings()) == ()

    def test_the_row_reads_and_publishes(self, tmp_path: Path) -> None:
        (target,) = targets(PublishSettings(folder=FolderSettings(tmp_path)))
        assert set(TARGETS) == {"folder"}
        assert target.place == str(tmp_path)
        assert target.publish(ALL) == tuple(d.name for d in ALL)
        assert target.read() == {d.name: d.content for d in ALL}
