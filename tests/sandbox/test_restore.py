"""Test files that are restored from a checkpoint: all of them or none, each in the inode that it had."""

import contextlib
import os
import resource
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aca_sessions import Policy
from aca_sessions.errors import PartlyRestoredError, SnapshotError
from aca_sessions.sandbox.forkserver import ForkServer
from aca_sessions.sandbox.policy import KB, MB, Limits
from aca_sessions.sandbox.sandboxes import Sandboxes
from aca_sessions.sandbox.session import copies
from aca_sessions.sandbox.session.copies import restore
from aca_sessions.sandbox.session.files import Files

from ..conftest import uncharged

SMALL = Limits(disk=MB, files=40)
MakePlace = Callable[[Limits], "Place"]


class Place(NamedTuple):
    """A tree, as its guest sees it."""

    files: Files
    path: Path

    @contextlib.contextmanager
    def entered(self) -> Iterator[Path]:
        with self.files.as_guest():
            yield self.path

    def kept_in(self, other: "Place") -> None:
        copies.copy(self.files, other.files, most=64 * MB, allocate=uncharged)

    def seen(self) -> dict[str, tuple[Any, ...]]:
        """Return what must be the same after a rollback: kinds, modes, times, contents, and which names share an inode."""
        with self.entered() as top:
            found = {name: (status, content) for name, status, content in _all(top)}
        names: dict[int, list[str]] = {}
        for name, (status, _) in sorted(found.items()):
            names.setdefault(status.st_ino, []).append(name)
        return {
            name: (oct(status.st_mode), None if stat.S_ISLNK(status.st_mode) else status.st_mtime_ns, content, names[status.st_ino])
            for name, (status, content) in found.items()
        }

    def inodes(self) -> dict[str, tuple[int, int]]:
        """Return the inode of each file, and how much space it has."""
        with self.entered() as top:
            return {name: (status.st_ino, status.st_blocks) for name, status, _ in _all(top)}


def _all(path: Path, name: str = "") -> Iterator[tuple[str, os.stat_result, Any]]:
    status = path.lstat() if name else path.stat()
    if stat.S_ISLNK(status.st_mode):
        yield name, status, os.readlink(path)
        return
    path.chmod(stat.S_IMODE(status.st_mode) | 0o700)
    if stat.S_ISDIR(status.st_mode):
        yield name, status, None
        for entry in os.listdir(path):
            yield from _all(path / entry, f"{name}/{entry}")
    else:
        yield name, status, path.read_bytes() if stat.S_ISREG(status.st_mode) else None
    path.chmod(stat.S_IMODE(status.st_mode))


@contextlib.contextmanager
def places(fork_server: ForkServer) -> Iterator[MakePlace]:
    """Make trees of one user, as a session and its checkpoints have them."""
    trees = []

    def make(limits: Limits = SMALL) -> Place:
        trees.append(fork_server.make_workspace(limits, user=trees[0].user if trees else None))
        return Place(Files(trees[-1]), Path(f"/proc/self/fd/{trees[-1].directory}"))

    yield make
    for workspace in trees:
        fork_server.drop_workspace(workspace)


@pytest.fixture
def make_place(fork_server: ForkServer) -> Iterator[MakePlace]:
    with places(fork_server) as make:
        yield make


@pytest.fixture
def live(make_place: MakePlace) -> Place:
    return make_place(SMALL)


@pytest.fixture
def checkpoint(make_place: MakePlace) -> Place:
    return make_place(SMALL)


def fill(place: Place, **files: bytes) -> None:
    with place.entered() as top:
        for name, content in files.items():
            (top / name).write_bytes(content)


def check_restore(checkpoint: Place, live: Place) -> None:
    wanted = checkpoint.seen()
    restore(checkpoint.files, live.files, uncharged)
    assert live.seen() == wanted


def test_files_keep_their_inodes(live: Place, checkpoint: Place) -> None:
    fill(live, grows=b"long" * 5000, shrinks=b"short", same=b"same", empty=b"")
    before = live.inodes()
    live.kept_in(checkpoint)
    fill(live, grows=b"l", shrinks=b"s" * 50_000, empty=b"not any more", new=b"new")
    check_restore(checkpoint, live)
    assert live.inodes() == before


def test_a_renamed_file_gets_its_name_back(live: Place, checkpoint: Place) -> None:
    """A handle of a log still writes to the log, even if the log was rotated since."""
    fill(live, log=b"new", **{"log.1": b"old"})
    before = live.inodes()
    live.kept_in(checkpoint)
    with live.entered() as top:
        (top / "log").rename(top / "log.1")
        (top / "log").write_bytes(b"newest")
    check_restore(checkpoint, live)
    assert live.inodes()["/log"] == before["/log"]


def test_a_file_is_found_in_a_folder_that_is_removed(live: Place, checkpoint: Place) -> None:
    fill(live, log=b"log")
    before = live.inodes()
    live.kept_in(checkpoint)
    with live.entered() as top:
        (top / "old").mkdir()
        (top / "log").rename(top / "old" / "log")
        (top / "old").chmod(0o500)
    check_restore(checkpoint, live)
    assert live.inodes() == before


def test_a_replaced_folder_is_restored(live: Place, checkpoint: Place) -> None:
    with live.entered() as top:
        (top / "folder").mkdir()
        (top / "folder" / "log").write_text("log")
    before = live.inodes()
    live.kept_in(checkpoint)
    with live.entered() as top:
        (top / "folder").rename(top / "other")
        (top / "folder").mkdir()
        (top / "other" / "log").rename(top / "folder" / "log")
    check_restore(checkpoint, live)
    assert live.inodes()["/folder/log"] == before["/folder/log"]


def test_a_file_too_deep_to_be_named_is_created_again(live: Place, checkpoint: Place) -> None:
    fill(live, a=b"a")
    live.kept_in(checkpoint)
    with live.entered() as top:
        folder = os.open(top, os.O_RDONLY)
        for _ in range(16):
            os.mkdir("f" * 250, dir_fd=folder)
            folder, above = os.open("f" * 250, os.O_RDONLY, dir_fd=folder), folder
            os.close(above)
        os.rename(top / "a", "a" * 250, dst_dir_fd=folder)
        os.close(folder)
    check_restore(checkpoint, live)


def test_hard_links_are_restored_and_removed(live: Place, checkpoint: Place) -> None:
    with live.entered() as top:
        for name in "abc":
            (top / name).write_text(name)
        (top / "d").hardlink_to(top / "c")
        (top / "link").symlink_to("a")
        os.link(top / "link", top / "same link", follow_symlinks=False)
    before = live.inodes()
    live.kept_in(checkpoint)
    with live.entered() as top:
        (top / "b").unlink()
        (top / "b").hardlink_to(top / "a")  # two that were apart
        (top / "d").unlink()
        (top / "d").write_text("apart")  # two that were one
    check_restore(checkpoint, live)
    assert [live.inodes()[name] for name in ("/a", "/c", "/d")] == [before[name] for name in ("/a", "/c", "/c")]


def test_files_and_folders_that_changed_places_are_restored(live: Place, checkpoint: Place) -> None:
    with live.entered() as top:
        (top / "folder" / "in").mkdir(parents=True)
        (top / "folder" / "in" / "file").write_text("deep")
        (top / "file").write_text("file")
        (top / "link").symlink_to("file")
    live.kept_in(checkpoint)
    with live.entered() as top:
        shutil.rmtree(top / "folder")
        for name in ("file", "link"):
            (top / name).unlink()
            (top / name / "sub").mkdir(parents=True)
        (top / "folder").symlink_to("/etc")
        os.mkfifo(top / "pipe")
    check_restore(checkpoint, live)


def test_names_need_not_be_text(live: Place, checkpoint: Place) -> None:
    with live.entered() as top:
        os.mkdir(top / os.fsdecode(b"\xff"))
        (top / os.fsdecode(b"\xff") / os.fsdecode(b"\n\x80")).write_bytes(b"x")
    live.kept_in(checkpoint)
    with live.entered() as top:
        shutil.rmtree(top / os.fsdecode(b"\xff"))
        (top / os.fsdecode(b"\xfe")).write_bytes(b"x")
    check_restore(checkpoint, live)


def test_files_without_permissions_are_restored_with_them(live: Place, checkpoint: Place) -> None:
    with live.entered() as top:
        (top / "folder").mkdir()
        for name in ("read-only", "folder/file"):
            (top / name).write_text("old")
            (top / name).chmod(0o400)
        (top / "folder").chmod(0o500)
        top.chmod(0o500)
    live.kept_in(checkpoint)
    with live.entered() as top:
        (top / "folder").chmod(0o700)
        top.chmod(0o700)
        (top / "new" / "deep").mkdir(parents=True)
        for name in ("read-only", "folder/file", "new/file", "new/deep/file"):
            with contextlib.suppress(FileNotFoundError):
                (top / name).chmod(0o600)
            (top / name).write_text("newer")
            (top / name).chmod(0)
        for name in ("new/deep", "new", "folder", ""):
            (top / name).chmod(0)
    check_restore(checkpoint, live)


def test_holes_stay_holes(live: Place, checkpoint: Place) -> None:
    with live.entered() as top, open(top / "sparse", "wb") as file:
        file.seek(16 * MB - 1)
        file.write(b"x")
    live.kept_in(checkpoint)
    before = live.inodes()
    fill(live, sparse=b"y" * 900 * KB)
    check_restore(checkpoint, live)
    assert checkpoint.inodes()["/sparse"][1] == live.inodes()["/sparse"][1] == before["/sparse"][1] == 8


def test_the_same_checkpoint_can_be_restored_again_and_again(live: Place, checkpoint: Place) -> None:
    fill(live, a=b"a", b=b"b")
    live.kept_in(checkpoint)
    for name in ("a", "b", "c"):
        with live.entered() as top:
            (top / name).unlink(missing_ok=True)
            (top / "d").mkdir()
        check_restore(checkpoint, live)


# Failures during the preparation


def too_much_in_one_file(top: Path) -> None:
    (top / "a").write_bytes(b"x" * 2 * MB)


def too_much_behind_a_hole(top: Path) -> None:
    with open(top / "a", "wb") as file:
        file.write(b"x" * 400 * KB)
        file.seek(500 * KB)
        file.write(b"x" * 2 * MB)


def too_much_in_new_files(top: Path) -> None:
    for number in range(4):
        (top / f"new{number}").write_bytes(b"x" * 400 * KB)


def too_many_files(top: Path) -> None:
    for number in range(60):
        (top / f"new{number}").write_bytes(b"")


def too_many_folders(top: Path) -> None:
    for number in range(60):
        (top / f"new{number}").mkdir()


def too_many_names(top: Path) -> None:
    for number in range(60):
        (top / f"new{number}").hardlink_to(top / "a")


def too_many_links(top: Path) -> None:
    for number in range(60):
        (top / f"new{number}").symlink_to("a")


def an_unreadable_file(top: Path) -> None:
    (top / "folder" / "b").chmod(0)


def an_unreadable_folder(top: Path) -> None:
    (top / "folder").chmod(0)


def an_unreadable_top(top: Path) -> None:
    top.chmod(0)


def a_pipe(top: Path) -> None:
    os.mkfifo(top / "pipe")


LIMITS = [
    too_much_in_one_file,
    too_much_behind_a_hole,
    too_much_in_new_files,
    too_many_files,
    too_many_folders,
    too_many_names,
    too_many_links,
]
DAMAGES = [an_unreadable_file, an_unreadable_folder, an_unreadable_top, a_pipe]


@pytest.mark.parametrize("damage", [*LIMITS, *DAMAGES])
def test_a_restore_that_fails_in_its_preparation_changes_nothing(
    make_place: MakePlace, live: Place, damage: Callable[[Path], None]
) -> None:
    checkpoint = make_place(Limits(disk=8 * MB, files=200))
    with live.entered() as top:
        (top / "folder").mkdir()
        (top / "folder" / "b").write_text("b")
        (top / "a").write_bytes(b"before")
        (top / "moved").write_text("m")
        with open(top / "sparse", "wb") as file:
            file.truncate(300 * KB)
    live.kept_in(checkpoint)
    with checkpoint.entered() as top:
        (top / "sparse").write_bytes(b"x" * 300 * KB)  # space that is reserved, and must be released again
        damage(top)
    with live.entered() as top:
        (top / "a").chmod(0)
        (top / "moved").rename(top / "elsewhere")
        (top / "folder").chmod(0o100)
        (top / "own").mkdir(0)
        top.chmod(0o300)
    before, inodes, free = live.seen(), live.inodes(), os.statvfs(live.path)
    with pytest.raises(SnapshotError, match="unchanged") as raised:
        restore(checkpoint.files, live.files, uncharged)
    assert not isinstance(raised.value, PartlyRestoredError)
    assert ("limits" in str(raised.value)) == (damage in LIMITS)
    assert (live.seen(), live.inodes()) == (before, inodes)
    assert os.statvfs(live.path) == free


def test_a_session_that_was_ended_is_not_restored(live: Place, checkpoint: Place) -> None:
    checkpoint.files.close()
    with pytest.raises(SnapshotError, match="ended"):
        restore(checkpoint.files, live.files, uncharged)


# No space beside the files that will be removed


def no_bytes_left(top: Path) -> None:
    with contextlib.suppress(OSError), open(top / "junk", "wb") as file:
        while True:
            file.write(b"j" * PAGE)
            file.flush()


def no_inodes_left(top: Path) -> None:
    with contextlib.suppress(OSError):
        for number in range(100):
            (top / f"junk{number}").mkdir()


PAGE = 4 * KB
FULL = [no_bytes_left, no_inodes_left, lambda top: (no_inodes_left(top), no_bytes_left(top))]


@pytest.mark.parametrize("use_up", FULL, ids=["bytes", "inodes", "both"])
def test_a_cell_that_used_up_its_limits_can_be_undone(live: Place, checkpoint: Place, use_up: Callable[[Path], None]) -> None:
    with live.entered() as top:
        (top / "folder").mkdir()
        (top / "folder" / "big").write_bytes(b"b" * 400 * KB)
        (top / "folder" / "same").hardlink_to(top / "folder" / "big")
        (top / "lost").write_bytes(b"l" * 300 * KB)
        (top / "changed").write_bytes(b"c" * 100 * KB)
        (top / "renamed").write_bytes(b"r" * 100 * KB)
    before = live.inodes()
    live.kept_in(checkpoint)
    with live.entered() as top:
        for name in ("lost", "folder/same"):
            (top / name).unlink()
        with open(top / "changed", "r+b") as file:
            file.truncate(0)
            file.seek(500 * KB)
            file.write(b"x")
        (top / "renamed").rename(top / "folder" / "elsewhere")
        use_up(top)
    check_restore(checkpoint, live)
    for name in ("/folder", "/folder/big", "/changed", "/renamed"):
        assert live.inodes()[name][0] == before[name][0]


def test_the_excess_of_one_file_makes_room_for_another(live: Place, checkpoint: Place) -> None:
    fill(live, grown=b"g" * 100 * KB, lost=b"l" * 600 * KB)
    live.kept_in(checkpoint)
    with live.entered() as top:
        (top / "lost").unlink()
    fill(live, grown=b"g" * 900 * KB)
    check_restore(checkpoint, live)


def test_a_removed_file_that_is_still_open_takes_no_space_from_restored_files(live: Place, checkpoint: Place) -> None:
    fill(live, old=b"o" * 900 * KB)
    live.kept_in(checkpoint)
    with live.entered() as top:
        (top / "old").unlink()
    fill(live, junk=b"j" * 900 * KB)
    with open(live.path / "junk", "rb"):
        check_restore(checkpoint, live)


# Failures after the commit


@pytest.fixture
def few_descriptors() -> Iterator[Callable[[int], None]]:
    """Leave this process that many more descriptors."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def leave(count: int) -> None:
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + count, before[1]))

    yield leave
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_partial_restore_is_reported(live: Place, checkpoint: Place, few_descriptors: Callable[[int], None]) -> None:
    fill(live, a=b"old", b=b"old", c=b"old")
    live.kept_in(checkpoint)
    fill(live, a=b"new", b=b"new")
    with live.entered() as top:
        (top / "c").unlink()
        (top / Path(*"0123456789")).mkdir(parents=True)
        few_descriptors(6)  # enough for everything but this
        with pytest.raises(PartlyRestoredError, match=r"^only a part of the files was restored: Too many open files"):
            restore(checkpoint.files, live.files, uncharged)
    seen = {name: value for name, value in live.seen().items() if not name.startswith("/0")}
    wanted = checkpoint.seen()
    assert seen.keys() == wanted.keys()
    assert {name: value[2] for name, value in seen.items()} == {name: value[2] for name, value in wanted.items()}


async def test_a_session_that_could_not_be_restored_continues_with_its_processes() -> None:
    async with Sandboxes(Policy(preload=(), spares=0)) as sandboxes:
        sandbox = await sandboxes.open()
        moment = await sandbox.checkpoint()
        interpreter = await sandbox.interpreter()
        await interpreter.run("e", "import subprocess; cat = subprocess.Popen('cat', stdin=-1, stdout=-1, text=True, bufsize=1)", 20.0)
        moment.files.close()
        with pytest.raises(SnapshotError, match="unchanged"):
            await sandbox.roll_back()
        assert (await interpreter.run("e", "cat.stdin.write('x\\n'); cat.stdout.readline()", 20.0)).value == "x\n"
        assert sandbox.ledger.between(0, sandbox.ledger.position).kind == "kept"
        await sandbox.close()


async def test_after_a_partial_restore_the_state_of_the_files_is_unknown(few_descriptors: Callable[[int], None]) -> None:
    async with Sandboxes(Policy(preload=(), spares=0)) as sandboxes:
        sandbox = await sandboxes.open()
        await sandbox.checkpoint()
        await (await sandbox.interpreter()).run("e", f"import os; os.makedirs({'/'.join('d' * 40)!r})", 20.0)
        few_descriptors(16)  # enough for another interpreter
        with pytest.raises(PartlyRestoredError):
            await sandbox.roll_back()
        assert sandbox.ledger.between(0, sandbox.ledger.position).files == "unknown"
        await sandbox.close()


# Whatever a guest does

NAMES = st.sampled_from(["a", "b", "c", os.fsdecode(b"\xff")])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
CONTENTS = st.sampled_from([b"", b"x", b"y" * 5000, b"\0" * 9000, b"z" * 4096 + b"\0" * 8192 + b"z"])
ACTS = st.one_of(
    st.tuples(st.just("write"), PATHS, CONTENTS),
    st.tuples(st.just("replace"), PATHS, CONTENTS),
    st.tuples(st.just("cut"), PATHS, st.sampled_from([0, 1, 4097, 20_000])),
    st.tuples(st.just("folder"), PATHS, st.none()),
    st.tuples(st.just("link"), PATHS, PATHS),
    st.tuples(st.just("hard link"), PATHS, PATHS),
    st.tuples(st.just("rename"), PATHS, PATHS),
    st.tuples(st.just("remove"), PATHS, st.none()),
    st.tuples(st.just("mode"), PATHS, st.sampled_from([0, 0o111, 0o400, 0o500, 0o640, 0o755])),
)


def act(top: Path, kind: str, path: str, more: Any) -> None:
    at = top / path
    match kind:
        case "write":
            with open(at, "r+b" if at.exists() else "wb") as file:
                file.write(more)
        case "replace":
            (top / "temporary").write_bytes(more)
            os.replace(top / "temporary", at)
        case "cut":
            os.truncate(at, more)
        case "folder":
            at.mkdir(parents=True)
        case "link":
            at.symlink_to(more)
        case "hard link":
            os.link(at, top / more, follow_symlinks=False)
        case "rename":
            at.rename(top / more)
        case "remove":
            shutil.rmtree(at) if at.is_dir() and not at.is_symlink() else at.unlink()
        case "mode":
            at.chmod(more, follow_symlinks=at.is_symlink())


def do_all(place: Place, acts: list[tuple[str, str, Any]]) -> None:
    with place.entered() as top:
        for one in acts:
            with contextlib.suppress(OSError, NotImplementedError):
                act(top, *one)


def regular_files(place: Place) -> dict[str, int]:
    inodes = place.inodes()
    return {name: inodes[name][0] for name, value in place.seen().items() if value[0].startswith("0o100")}


@pytest.mark.slow
@settings(max_examples=75, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])  # all examples can use one
@given(earlier=st.lists(ACTS, max_size=15), later=st.lists(ACTS, max_size=15))
def test_any_files_are_restored_as_they_were(fork_server: ForkServer, earlier: list[Any], later: list[Any]) -> None:
    with places(fork_server) as make_place:
        live, checkpoint = make_place(), make_place()
        do_all(live, earlier)
        before, inodes = live.seen(), regular_files(live)
        try:
            live.kept_in(checkpoint)
        except SnapshotError:
            return  # what cannot be read cannot be kept
        assert checkpoint.seen() == before
        do_all(live, later)
        # What is in a folder that its owner may not open cannot be moved back: it is written anew.
        closed = tuple(
            f"{name}/" for name, value in live.seen().items() if value[0].startswith("0o4") and int(value[0], 8) & 0o700 != 0o700
        )
        still_there = {inode for name, inode in regular_files(live).items() if not name.startswith(closed)}
        restore(checkpoint.files, live.files, uncharged)
        assert live.seen() == before
        now = regular_files(live)
        assert [name for name, inode in inodes.items() if inode in still_there and now[name] != inode] == []
