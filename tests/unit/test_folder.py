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
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import pytest

from mirror_agent.model import Document, PublishSettings
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
            assert folder.publish(tmp_path, ALL) == ("ca-bundle.pem", "hosts", "registries.conf.d/50-mirror-agent.conf")
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
        folder.publish(tmp_path, ALL)
        before = identities(tmp_path)
        assert folder.publish(tmp_path, ALL) == ()
        assert identities(tmp_path) == before

    def test_only_what_changed_is_written_and_named(self, tmp_path: Path) -> None:
        folder.publish(tmp_path, ALL)
        untouched = (tmp_path / CA.name).stat().st_ino
        assert folder.publish(tmp_path, (CA, Document("hosts", b"new\n"), CONF)) == ("hosts",)
        assert (tmp_path / "hosts").read_bytes() == b"new\n"
        assert (tmp_path / CA.name).stat().st_ino == untouched

    def test_a_reader_that_has_the_old_file_open_keeps_it_whole(self, tmp_path: Path) -> None:
        folder.publish(tmp_path, ALL)
        with (tmp_path / "hosts").open("rb") as reader:
            folder.publish(tmp_path, (CA, Document("hosts", b"new\n"), CONF))
            assert reader.read() == HOSTS.content

    def test_stale_files_of_ours_go_and_nothing_else(self, tmp_path: Path) -> None:
        folder.publish(tmp_path, ALL)
        (tmp_path / "README").write_text("the admin's")
        (tmp_path / "registries.conf.d/10-admin.conf").write_text("the admin's")
        assert folder.publish(tmp_path, (CA,)) == ("hosts", "registries.conf.d/50-mirror-agent.conf")
        assert set(files(tmp_path)) == {CA.name, "README", "registries.conf.d/10-admin.conf"}

    def test_what_was_edited_or_removed_by_hand_is_put_right(self, tmp_path: Path) -> None:
        folder.publish(tmp_path, ALL)
        (tmp_path / "hosts").write_text("edited")
        (tmp_path / CA.name).unlink()
        assert folder.publish(tmp_path, ALL) == ("ca-bundle.pem", "hosts")
        assert files(tmp_path) == {d.name: d.content for d in ALL}

    def test_the_manifest_lets_a_copy_be_checked(self, tmp_path: Path) -> None:
        folder.publish(tmp_path, ALL)
        manifest = json.loads((tmp_path / MANIFEST).read_bytes())
        assert manifest == {"version": 1, "files": {d.name: sha256(d.content).hexdigest() for d in ALL}}

    def test_a_stray_temporary_file_does_no_harm(self, tmp_path: Path) -> None:
        (tmp_path / folder.TEMPORARY).write_text("half")
        folder.publish(tmp_path, ALL)
        assert not (tmp_path / folder.TEMPORARY).exists()

    @pytest.mark.parametrize("name", ["../hosts", "/etc/hosts", ".hidden", "a/b/c", "a//b", "", "a\nb", "a/.."])
    def test_a_name_that_leads_elsewhere_is_a_mistake_of_the_caller(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ValueError, match="not a plain document name"):
            folder.publish(tmp_path, (Document(name, b""),))


class TestRead:
    def test_gives_back_what_was_published(self, tmp_path: Path) -> None:
        folder.publish(tmp_path, ALL)
        assert folder.read(tmp_path) == {d.name: d.content for d in ALL}

    def test_of_an_empty_folder_is_empty(self, tmp_path: Path) -> None:
        (tmp_path / "README").write_text("the admin's")
        assert folder.read(tmp_path) == {}

    def test_leaves_out_what_is_gone_or_no_file_any_more(self, tmp_path: Path) -> None:
        folder.publish(tmp_path, ALL)
        (tmp_path / "hosts").unlink()
        (tmp_path / CA.name).unlink()
        (tmp_path / CA.name).symlink_to("/etc/passwd")
        assert folder.read(tmp_path) == {CONF.name: CONF.content}

    def test_does_not_swallow_a_huge_file(self, tmp_path: Path) -> None:
        folder.publish(tmp_path, ALL)
        with (tmp_path / "hosts").open("wb") as file:
            file.truncate(2**33)
        assert folder.read(tmp_path)["hosts"] == b""
        assert folder.publish(tmp_path, ALL) == ("hosts",)


class TestInTheWay:
    """Each refusal names the file and says what to do; what others put there stays as it is."""

    @staticmethod
    def refused(root: Path, where: Path, reason: str, documents: tuple[Document, ...] = ALL) -> None:
        with pytest.raises(TargetError, match=reason) as caught:
            folder.publish(root, documents)
        assert caught.value.where == str(where)
        assert caught.value.hint

    def test_no_folder(self, tmp_path: Path) -> None:
        self.refused(tmp_path / "share", tmp_path / "share", "no such file or directory")
        with pytest.raises(TargetError, match="mount the share"):
            folder.read(tmp_path / "share")

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
        folder.publish(share, ALL)
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
        folder.publish(share, ALL)
        (tmp_path / "victim").mkdir()
        (tmp_path / "victim/50-mirror-agent.conf").write_text("precious")
        (share / CONF.name).unlink()
        (share / "registries.conf.d").rmdir()
        (share / "registries.conf.d").symlink_to(tmp_path / "victim")
        self.refused(share, share / CONF.name, "not a directory")
        assert folder.publish(share, (CA,)) == ("hosts",)
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
        assert folder.publish(tmp_path, ALL) == (CA.name, CONF.name)
        assert folder.publish(tmp_path, (CA,)) == ("hosts", CONF.name)

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
        assert folder.read(share) == {}
        folder.publish(share, ALL)
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
            folder.publish(Path("/proc/self"), ALL)  # a link, as it happens: /proc/PID is the folder
        assert caught.value.where == "/proc/self"
        with pytest.raises(TargetError, match=r"^/proc/\d+/"):
            folder.publish(Path(f"/proc/{os.getpid()}"), ALL)


FULL_DISK = """
import sys
from pathlib import Path
from mirror_agent.model import Document
from mirror_agent.targets import TargetError, folder

disk = Path(sys.argv[1])
folder.publish(disk, (Document("hosts", b"old"),))
try:
    folder.publish(disk, (Document("hosts", b"new" * 10**6),))
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
                folder.publish(share, documents)
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
        folder.publish(tmp_path, new)
        assert folder.read(tmp_path) == {d.name: d.content for d in new}
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
                folder.publish(share, (CA, Document(CONF.name, str(turn).encode())))
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


class TestTable:
    def test_no_folder_in_the_settings_no_target(self) -> None:
        assert targets(PublishSettings()) == ()

    def test_the_row_reads_and_publishes(self, tmp_path: Path) -> None:
        (target,) = targets(PublishSettings(folder=tmp_path))
        assert set(TARGETS) == {"folder"}
        assert target.place == str(tmp_path)
        assert target.publish(ALL) == tuple(d.name for d in ALL)
        assert target.read() == {d.name: d.content for d in ALL}
