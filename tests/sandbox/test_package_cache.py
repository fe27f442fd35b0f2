"""Test sets of unpacked wheels in a folder of the host."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aca_sessions.sandbox.packages.cache import LockedPackageSet, PackageCache
from aca_sessions.sandbox.packages.requirements import PackageError, Wheel


@pytest.fixture
def cache(tmp_path: Path) -> PackageCache:
    return PackageCache(str(tmp_path / "cache"), 1000)


def keep(cache: PackageCache, name: str, size: int, *, age: float = 0) -> None:
    with cache.work_folder() as place:
        (place / "unpacked").mkdir()
        (place / "unpacked" / "module.py").write_bytes(b"#" * size)
        cache.add_set(name, [Wheel(name, "1.0")], place / "unpacked")
    label = Path(cache.sets_folder).parent / "labels" / name
    os.utime(label, (label.stat().st_atime, label.stat().st_mtime - age))


def is_there(cache: PackageCache, name: str) -> bool:
    held = cache.lock_set(name)
    if held is not None:
        held.release()
    return held is not None


def test_the_longest_unused_sets_are_removed_first_and_those_in_use_never(cache: PackageCache) -> None:
    keep(cache, "used", 400, age=300)
    held = cache.lock_set("used")
    os.utime(Path(cache.sets_folder).parent / "labels" / "used", (0, 0))
    keep(cache, "old", 400, age=200)
    keep(cache, "new", 400, age=100)
    assert [is_there(cache, name) for name in ("used", "old", "new")] == [True, False, True]
    assert held is not None
    held.release()


def test_a_set_larger_than_the_cache_is_kept_for_the_caller_that_added_it(cache: PackageCache) -> None:
    keep(cache, "large", 5000)
    assert is_there(cache, "large")
    keep(cache, "small", 10)
    assert not is_there(cache, "large")


def test_a_set_that_another_process_uses_is_kept(cache: PackageCache, tmp_path: Path) -> None:
    keep(cache, "used", 900)
    folder = str(tmp_path / "cache")
    use = f"held = PackageCache({folder!r}, 1000).lock_set('used'); print(held.name, flush=True); input()"
    code = f"from aca_sessions.sandbox.packages.cache import PackageCache; {use}"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "used\n"
        keep(cache, "more", 900)
        assert is_there(cache, "used")
        other.communicate("\n")
    keep(cache, "most", 900)
    assert not is_there(cache, "used")


def test_the_second_caller_with_the_same_set_uses_the_first(cache: PackageCache) -> None:
    keep(cache, "same", 10)
    first = cache.lock_set("same")
    keep(cache, "same", 10)
    assert (Path(cache.sets_folder) / "same" / "module.py").stat().st_size == 10
    assert first is not None
    assert os.fstat(first.lock).st_nlink == 1
    first.release()


def test_a_set_has_a_label_even_if_another_process_makes_room_while_it_is_kept(tmp_path: Path) -> None:
    class Crowded(PackageCache):
        """A cache in which another process keeps something large as soon as the label of a set is there."""

        crowding = True

        def _create(self, path: Path, text: str) -> None:
            super()._create(path, text)
            if path.name == "set" and self.crowding:
                self.crowding = False
                keep(PackageCache(str(tmp_path), 1000), "large", 5000)

    cache = Crowded(str(tmp_path), 1000)
    keep(cache, "set", 10)
    assert is_there(cache, "set")
    keep(cache, "more", 1000)
    assert not (Path(cache.sets_folder) / "set").exists()


def test_a_remembered_answer_is_used_while_it_is_recent_and_its_set_exists(cache: PackageCache) -> None:
    keep(cache, "answer", 10)
    cache.record_resolved("key", "answer")
    held = cache.find_resolved("key", within=60)
    assert held is not None
    held.release()
    assert cache.find_resolved("key", within=-1) is None
    assert cache.find_resolved("other", within=60) is None
    cache.record_resolved("key", "gone")
    assert cache.find_resolved("key", within=60) is None


def test_a_set_without_a_package_has_neither_its_files_nor_its_folders(cache: PackageCache, tmp_path: Path) -> None:
    held = set_of(cache, {"a/__init__.py": "a", "b.py": "b"})
    with cache.work_folder() as place:
        rest = cache.copy_without(held, {"a"}, place)
        assert sorted(str(file.relative_to(rest)) for file in rest.rglob("*")) == ["b-1.0.dist-info", "b-1.0.dist-info/RECORD", "b.py"]
        assert cache.list_modules(held, "a") == ["a"]
    assert (Path(cache.sets_folder) / "set" / "a").is_dir()
    held.release()


def test_a_record_that_names_files_outside_of_its_wheel_hides_nothing(cache: PackageCache, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    held = set_of(cache, {f"../../{tmp_path}/precious": "a", "../../../precious": "a", "b.py": "b"})
    with cache.work_folder() as place:
        assert (cache.copy_without(held, {"a"}, place) / "b.py").exists()
    assert (tmp_path / "precious").read_text() == "kept"
    held.release()


def set_of(cache: PackageCache, owners: dict[str, str]) -> LockedPackageSet:
    with cache.work_folder() as place:
        unpacked = place / "unpacked"
        for path, owner in owners.items():
            about = unpacked / f"{owner}-1.0.dist-info"
            about.mkdir(parents=True, exist_ok=True)
            with (about / "RECORD").open("a") as record:
                record.write(f"{path},,\n")
            if ".." not in path:
                (unpacked / path).parent.mkdir(exist_ok=True)
                (unpacked / path).write_text("")
        cache.add_set("set", [Wheel(owner, "1.0") for owner in sorted(set(owners.values()))], unpacked)
    held = cache.lock_set("set")
    assert held is not None
    return held


def test_names_of_sets_cannot_be_computed_without_the_secret_of_the_cache(tmp_path: Path) -> None:
    one, other = (PackageCache(str(tmp_path / name), 1000) for name in ("one", "other"))
    assert one.derive_name("set", "alpha==1.0") == PackageCache(str(tmp_path / "one"), 1000).derive_name("set", "alpha==1.0")
    assert one.derive_name("set", "alpha==1.0") != other.derive_name("set", "alpha==1.0")
    modes = {name: (tmp_path / "one" / name).stat().st_mode & 0o777 for name in (".", "sets", "labels", "answers", "notes", "key")}
    assert modes == {".": 0o711, "sets": 0o311, "labels": 0o700, "answers": 0o700, "notes": 0o700, "key": 0o600}


def test_a_cache_that_cannot_be_written_is_reported_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PackageError, match="CacheFolder"):
        PackageCache(str(tmp_path / "file" / "below"), 1000)


def test_abandoned_work_is_removed(cache: PackageCache) -> None:
    left = Path(cache.sets_folder).parent / "work" / "left"
    left.mkdir()
    os.utime(left, (0, 0))
    keep(cache, "set", 10)
    assert not left.exists()


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    with pytest.raises(PackageError, match="other users may write there"):
        PackageCache(str(tmp_path / "shared"), 1000)


def test_a_remembered_answer_is_removed_with_its_set(cache: PackageCache) -> None:
    keep(cache, "old", 900, age=100)
    cache.record_resolved("key", "old")
    keep(cache, "new", 900)
    assert list((Path(cache.sets_folder).parent / "answers").iterdir()) == []


def test_an_answer_that_another_process_removes_meanwhile_is_no_failure(cache: PackageCache) -> None:
    (Path(cache.sets_folder).parent / "answers" / "key").symlink_to("gone")  # it is listed, and not found when it is read
    keep(cache, "set", 10)
    assert is_there(cache, "set")
