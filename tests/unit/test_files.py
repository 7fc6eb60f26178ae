"""host/files.py on a real file system."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import threading
import traceback
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

from mirror_agent.host import files
from mirror_agent.model import Candidate, File, Folder, Trouble

ME = os.geteuid()
needs_root = pytest.mark.skipif(ME != 0, reason="only root can give files away or become somebody else")


@pytest.fixture
def place(tmp_path: Path) -> PurePosixPath:
    return PurePosixPath(tmp_path)


def identity(path: PurePosixPath) -> tuple[int, int]:
    facts = os.stat(path, follow_symlinks=False)
    return facts.st_ino, facts.st_mtime_ns


def in_child(before: Callable[[], object], work: Callable[[], object]) -> int:
    """The exit code of work done in a child of its own kind: 0 when it went well, 3 for a Trouble."""
    child = os.fork()
    if child == 0:
        try:
            before()
            work()
        except Trouble:
            os._exit(3)
        except BaseException:
            traceback.print_exc()
            os._exit(4)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def become_nobody() -> None:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


# --- write and remove ----------------------------------------------------------------------------------------


def test_a_file_is_written_once(place: PurePosixPath) -> None:
    file = File(place / "unit", b"[Pod]\n", 0o640, ME)
    assert files.write(file)
    before = identity(file.path)
    assert not files.write(file)
    assert identity(file.path) == before
    assert files.tree(place) == {file.path: file}
    assert os.listdir(place) == ["unit"]


@pytest.mark.parametrize("change", [{"content": b"other!\n"}, {"content": b"longer than it was\n"}, {"mode": 0o600}])
def test_a_difference_is_written(place: PurePosixPath, change: dict[str, object]) -> None:
    files.write(File(place / "unit", b"[Pod]\n", 0o640, ME))
    values = {"content": b"[Pod]\n", "mode": 0o640} | change
    file = File(place / "unit", owner=ME, **values)  # type: ignore[arg-type]
    assert files.write(file)
    assert files.tree(place) == {file.path: file}


def test_the_mode_does_not_depend_on_the_umask(place: PurePosixPath) -> None:
    before = os.umask(0o077)
    try:
        files.write(File(place / "open", b"", 0o666, ME))
        files.ensure_folder(Folder(place / "folder", 0o777, ME))
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(place / "open").st_mode) == 0o666
    assert stat.S_IMODE(os.stat(place / "folder").st_mode) == 0o777


@needs_root
def test_owner_is_user_and_group(place: PurePosixPath) -> None:
    file = File(place / "key", b"secret", 0o600, 101)
    assert files.write(file)
    assert not files.write(file)
    facts = os.stat(file.path)
    assert (facts.st_uid, facts.st_gid) == (101, 101)
    os.chown(file.path, 101, 0)
    assert files.tree(place)[file.path].owner == files.ANYONE
    assert files.write(file)


@needs_root
def test_only_root_can_give_a_file_away(place: PurePosixPath) -> None:
    os.chmod(place, 0o777)
    for parent in Path(place).parents[:2]:
        os.chmod(parent, 0o755)
    assert in_child(become_nobody, lambda: files.write(File(place / "mine", b"", 0o600, 65534))) == 0
    assert in_child(become_nobody, lambda: files.write(File(place / "edge's", b"", 0o600, 101))) == 3
    assert os.listdir(place) == ["mine"]


def test_a_link_is_replaced_and_not_followed(place: PurePosixPath) -> None:
    other = place / "other"
    Path(other).write_bytes(b"precious")
    os.symlink(other, place / "unit")
    assert files.write(File(place / "unit", b"precious", 0o644, ME))
    assert stat.S_ISREG(os.stat(place / "unit", follow_symlinks=False).st_mode)
    files.write(File(place / "unit", b"new", 0o644, ME))
    assert Path(other).read_bytes() == b"precious"


def test_a_fifo_in_the_way_does_not_hang(place: PurePosixPath) -> None:
    os.mkfifo(place / "unit")
    assert files.write(File(place / "unit", b"new", 0o644, ME))
    assert Path(place / "unit").read_bytes() == b"new"


def test_what_cannot_be_written_is_told_with_its_name(place: PurePosixPath) -> None:
    os.mkdir(place / "folder")
    with pytest.raises(Trouble, match=r"folder: cannot be written: is a directory \(a folder has this name"):
        files.write(File(place / "folder", b"", 0o644, ME))
    with pytest.raises(Trouble, match=r"none/unit: cannot be written: no such file .*its folder does not exist"):
        files.write(File(place / "none" / "unit", b"", 0o644, ME))
    assert os.listdir(place) == ["folder"]


@needs_root
def test_a_full_file_system_leaves_the_old_file(place: PurePosixPath) -> None:
    """A real one, of 64 KiB, in a mount namespace of its own."""

    def mount() -> None:
        os.unshare(os.CLONE_NEWNS)
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "full", str(place)], check=True)

    def work() -> None:
        old = File(place / "unit", b"old", 0o644, ME)
        files.write(old)
        with pytest.raises(Trouble, match=r"unit: cannot be written: no space left.*make room"):
            files.write(File(place / "unit", b"x" * 100_000, 0o644, ME))
        assert files.tree(place) == {old.path: old}

    assert in_child(mount, work) == 0


def test_remove(place: PurePosixPath) -> None:
    files.write(File(place / "unit", b"", 0o644, ME))
    assert files.remove(place / "unit")
    assert not files.remove(place / "unit")
    os.mkdir(place / "folder")
    with pytest.raises(Trouble, match="cannot be removed"):
        files.remove(place / "folder")


def test_removing_a_link_leaves_its_target(place: PurePosixPath) -> None:
    Path(place / "target").write_bytes(b"")
    os.symlink("target", place / "link")
    assert files.remove(place / "link")
    assert os.listdir(place) == ["target"]


# --- folders -------------------------------------------------------------------------------------------------


def test_a_folder_is_made_once(place: PurePosixPath) -> None:
    folder = Folder(place / "mirrors" / "quay" / "tls", 0o700, ME)
    assert files.folder(folder.path) is None
    assert files.ensure_folder(folder)
    assert files.folder(folder.path) == folder
    assert files.folder(folder.path.parent) == Folder(folder.path.parent, 0o755, ME)
    before = identity(folder.path)
    assert not files.ensure_folder(folder)
    assert identity(folder.path) == before


def test_a_folder_s_mode_is_mended_and_its_content_stays(place: PurePosixPath) -> None:
    os.mkdir(place / "tls", 0o755)
    Path(place / "tls" / "key").write_bytes(b"")
    assert files.ensure_folder(Folder(place / "tls", 0o700, ME))
    assert files.folder(place / "tls") == Folder(place / "tls", 0o700, ME)
    assert os.listdir(place / "tls") == ["key"]


@needs_root
def test_a_folder_s_owner_is_mended(place: PurePosixPath) -> None:
    assert files.ensure_folder(Folder(place / "tls", 0o700, 101))
    os.chown(place / "tls", 0, 0)
    assert files.folder(place / "tls") == Folder(place / "tls", 0o700, 0)
    assert files.ensure_folder(Folder(place / "tls", 0o700, 101))
    assert files.folder(place / "tls") == Folder(place / "tls", 0o700, 101)


def test_a_link_or_a_file_is_no_folder(place: PurePosixPath) -> None:
    os.mkdir(place / "elsewhere", 0o700)
    os.symlink("elsewhere", place / "link")
    Path(place / "file").write_bytes(b"")
    for name in ("link", "file"):
        assert files.folder(place / name) is None
        with pytest.raises(Trouble, match="a folder is needed there"):
            files.ensure_folder(Folder(place / name, 0o755, ME))
    assert stat.S_IMODE(os.stat(place / "elsewhere").st_mode) == 0o700


# --- links and leftovers -------------------------------------------------------------------------------------


def test_a_link_is_swapped_in_one_step(place: PurePosixPath) -> None:
    """A reader that looks all the time always finds it."""
    os.mkdir(place / "a")
    os.mkdir(place / "b")
    with files.opened(place) as folder:
        assert files.swap_link(folder, "current", "a")
        assert not files.swap_link(folder, "current", "a")
        stop, gone = threading.Event(), []

        def look() -> None:
            while not stop.is_set():
                if not os.path.isdir(place / "current"):
                    gone.append(1)

        reader = threading.Thread(target=look)
        reader.start()
        for turn in range(200):
            assert files.swap_link(folder, "current", "ba"[turn % 2])
        stop.set()
        reader.join()
    assert gone == []
    assert sorted(os.listdir(place)) == ["a", "b", "current"]


def test_a_folder_in_the_place_of_a_link_is_left_alone(place: PurePosixPath) -> None:
    os.mkdir(place / "current")
    with files.opened(place) as folder, pytest.raises(IsADirectoryError):
        files.swap_link(folder, "current", "a")
    assert os.listdir(place) == ["current"]


def test_leftovers_are_swept_and_nothing_else(place: PurePosixPath) -> None:
    for name in (files.temporary_name(), ".mirror-agent-0123.tmp", ".hidden", "unit"):
        Path(place / name).write_bytes(b"")
    os.symlink("unit", place / files.temporary_name())
    folder = Path(place / files.temporary_name())
    folder.mkdir()
    (folder / "tls.key").write_bytes(b"")
    (folder / "link").symlink_to(place)
    assert files.sweep(place) == 3
    assert sorted(os.listdir(place)) == [".hidden", ".mirror-agent-0123.tmp", "unit"]
    assert files.sweep(place) == files.sweep(place / "none") == 0


# --- reading -------------------------------------------------------------------------------------------------


def test_read(place: PurePosixPath) -> None:
    path = place / "file"
    assert files.read(path, 10) is None
    Path(path).write_bytes(b"0123456789")
    assert files.read(path, 10) == b"0123456789"
    with pytest.raises(Trouble, match="is larger than 9 bytes"):
        files.read(path, 9)
    os.symlink("file", place / "link")
    with pytest.raises(Trouble, match="it is a link"):
        files.read(place / "link", 10)
    os.mkfifo(place / "fifo")
    for name in ("fifo", "."):
        with pytest.raises(Trouble, match="not a regular file"):
            files.read(place / name, 10)


def test_a_tree_has_regular_files_only(place: PurePosixPath) -> None:
    os.makedirs(place / "deep" / "er")
    wanted = [File(place / "a", b"1", 0o644, ME), File(place / "deep" / "er" / "b", b"2", 0o600, ME)]
    for file in wanted:
        files.write(file)
    os.symlink(place, place / "loop")
    os.symlink("a", place / "link")
    os.mkfifo(place / "fifo")
    assert files.tree(place) == {file.path: file for file in wanted}
    assert files.tree(place / "none") == {}


def test_a_huge_file_in_a_tree_is_not_read_whole(place: PurePosixPath) -> None:
    with open(place / "huge", "wb") as huge:
        huge.truncate(2**33)
    assert len(files.tree(place)[place / "huge"].content) == files.TREE_LIMIT


# --- drop-ins ------------------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    made = (tmp_path / "etc", tmp_path / "run", tmp_path / "usr")
    for folder in made:
        folder.mkdir()
    return made


def scan(*folders: Path) -> dict[str, Candidate]:
    found = files.scan([PurePosixPath(folder) for folder in folders])
    assert [Path(each.path).name for each in found] == sorted(Path(each.path).name for each in found)
    return {Path(each.path).name: each for each in found}


def test_the_first_folder_that_has_a_name_wins(folders: tuple[Path, Path, Path]) -> None:
    etc, run, usr = folders
    for folder, names in ((etc, "a"), (run, "ab"), (usr, "abc")):
        for name in names:
            (folder / f"{name}.toml").write_text(folder.name)
    found = scan(*folders)
    assert {name: each.content for name, each in found.items()} == {
        "a.toml": b"etc",
        "b.toml": b"run",
        "c.toml": b"usr",
    }
    facts = os.stat(etc / "a.toml")
    assert found["a.toml"] == Candidate(
        str(etc / "a.toml"), "regular", facts.st_uid, stat.S_IMODE(facts.st_mode), 3, b"etc"
    )


def test_links_mask_or_are_named_and_are_never_followed(folders: tuple[Path, Path, Path]) -> None:
    etc, _, usr = folders
    secret = etc.parent / "secret"
    secret.write_bytes(b"password")
    (etc / "masked.toml").symlink_to("/dev/null")
    (etc / "link.toml").symlink_to(secret)
    (etc / "dangling.toml").symlink_to("nowhere")
    (usr / "masked.toml").write_bytes(b"source = 'quay.io'")
    found = scan(*folders)
    assert {name: each.kind for name, each in found.items()} == {
        "masked.toml": "masked",
        "link.toml": "link",
        "dangling.toml": "link",
    }
    assert all(each.content == b"" for each in found.values())


def test_what_is_no_file_neither_hangs_nor_is_read(folders: tuple[Path, Path, Path]) -> None:
    etc = folders[0]
    os.mkfifo(etc / "fifo.toml")
    (etc / "folder.toml").mkdir()
    with socket.socket(socket.AF_UNIX) as listener, files.opened(PurePosixPath(etc)) as fd:
        listener.bind(f"/proc/self/fd/{fd}/socket.toml")  # the whole path may be too long for a socket
    if ME == 0:
        os.mknod(etc / "device.toml", 0o644 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero: has no end
    found = scan(*folders)
    assert len(found) >= 3
    assert {(each.kind, each.content) for each in found.values()} == {("other", b"")}


@pytest.mark.parametrize(("size", "kept"), [(0, 0), (65536, 65536), (65537, 0), (10 * 2**20, 0)])
def test_a_large_file_is_named_with_its_size(folders: tuple[Path, Path, Path], size: int, kept: int) -> None:
    (folders[0] / "large.toml").write_bytes(b"#" * size)
    found = scan(*folders)["large.toml"]
    assert (found.kind, found.size, len(found.content)) == ("regular", size, kept)


def test_missing_folders_are_empty(tmp_path: Path) -> None:
    assert scan(tmp_path / "none", tmp_path / "neither") == {}


def test_a_file_for_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Trouble, match=r"file: cannot be read: not a directory"):
        scan(tmp_path / "file")


@needs_root
def test_what_may_not_be_read_is_told_and_never_looks_removed(folders: tuple[Path, Path, Path]) -> None:
    etc = folders[0]
    for parent in etc.parents[:3]:
        os.chmod(parent, 0o755)
    (etc / "secret.toml").write_bytes(b"source = 'quay.io'")
    os.chmod(etc / "secret.toml", 0o600)
    os.chmod(etc, 0o755)

    def look() -> None:
        assert scan(*folders)["secret.toml"].kind == "unreadable"

    assert in_child(become_nobody, look) == 0
    os.chmod(etc, 0o700)
    assert in_child(become_nobody, look) == 3


def test_owner_and_mode_are_told(folders: tuple[Path, Path, Path]) -> None:
    path = folders[0] / "shared.toml"
    path.write_bytes(b"x")
    os.chmod(path, 0o666)
    if ME == 0:
        os.chown(path, 1000, 1000)
    found = scan(*folders)["shared.toml"]
    assert (found.owner, found.mode) == (1000 if ME == 0 else ME, 0o666)


def test_a_thousand_files_are_read_in_one_go(folders: tuple[Path, Path, Path]) -> None:
    for number in range(1000):
        (folders[0] / f"m{number}.toml").write_text(f"source = 'r{number}.example'")
    assert len(scan(*folders)) == 1000
