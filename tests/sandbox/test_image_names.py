"""Test the values of ACASessions:ContainerImage."""

import os
from pathlib import Path

import pytest

from aca_sessions import Policy, Settings, open_pool
from aca_sessions.errors import ConfigurationError
from aca_sessions.sandbox.images import images
from aca_sessions.sandbox.images.images import root_of


def test_a_folder_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert root_of(str(tmp_path / "link")) == str(tmp_path.resolve())


@pytest.mark.parametrize("image", ["/no/such/folder", "./none", "~/none", "a b", "-rf", "a\nb", "x" * 300])
def test_a_name_that_is_no_folder_file_or_image_is_refused(image: str) -> None:
    with pytest.raises(ConfigurationError, match="ACASessions:ContainerImage: expected the path of a root folder"):
        root_of(image)


def test_the_hosts_own_root_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="this host's own root"):
        root_of("/")


def test_an_image_name_without_an_engine_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"needs podman or docker, and this host has neither: install one, name a root folder"):
        root_of("python:3.12-slim")


def test_an_image_that_the_engine_lacks_is_pulled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tmp_path / "docker"
    engine.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\necho "Error: no such host" >&2\nexit 1\n')
    engine.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"cannot pull it \(Error: no such host\)\. Run `docker pull python:3.12-slim`"):
        root_of("python:3.12-slim")
    assert (tmp_path / "asked").read_text() == "image inspect python:3.12-slim\npull --quiet python:3.12-slim\n"


def test_a_file_that_is_not_a_tar_is_refused_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "image.tar").write_text("no tar")
    with pytest.raises(ConfigurationError, match="cannot unpack the image: cannot read it as a tar"):
        root_of(str(tmp_path / "image.tar"))
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_dir() and path.name not in ("aca-sessions", "images")] == []


@pytest.mark.parametrize(("hangs", "why"), [("", "its export took longer than 0.1 s"), (" >&-", "cannot read it as a tar")])
def test_an_export_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: str, why: str) -> None:
    engine = tmp_path / "docker"
    answers = {"image": f"""echo '[{{"Id": "{"a" * 64}"}}]'""", "create": f"echo {'b' * 64}", "export": f"exec /bin/sleep 1000{hangs}"}
    engine.write_text(f'#!/bin/sh\ncase "$1" in\n{"".join(f"{verb}) {answer};;" for verb, answer in answers.items())} esac\n')
    engine.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(images, "_EXPORT_SECONDS", 0.1 if not hangs else 1000)
    with pytest.raises(ConfigurationError, match=why):
        root_of("python:3.12-slim")


def test_folders_of_processes_that_were_killed_while_they_unpacked_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = Path(images.cached_folder("first", lambda _: None)).parent
    seen = []

    def fill(_: str) -> None:
        for key in ("killed-one", "inner"):
            (cache / f".unpacking-{key}-x0_").mkdir()
        images.cached_folder("inner", lambda _: seen.extend(sorted(path.name.rpartition("-")[0] for path in cache.glob(".unpacking-*"))))

    images.cached_folder("outer", fill)
    assert seen == [".unpacking-inner", ".unpacking-outer"]


@pytest.mark.long
def test_images_without_ipython_get_only_its_packages_and_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (folder,) = images.ipython_mount("/srv/root").values()
    names = {entry.name.partition("-")[0].removesuffix(".py") for entry in Path(folder).iterdir()}
    assert {"IPython", "ipython", "traitlets", "matplotlib_inline"} <= names
    assert not {"numpy", "pandas", "httpx", "aca_sessions", "bin"} & names
    assert [path for path in Path(folder).rglob("*") if path.is_symlink() or (path.is_file() and os.access(path, os.X_OK))] == []
    assert images.ipython_mount("/srv/root") == {images.SUPPLY: folder}
    assert images.ipython_mount(None) == {}


def test_sessions_without_namespaces_cannot_have_an_image() -> None:
    with pytest.raises(ConfigurationError, match=r"ContainerImage.*Isolation. full"):
        Policy(image="/srv/root", isolation="no-namespaces")


async def test_an_image_and_an_environment_contradict_each_other() -> None:
    with pytest.raises(ConfigurationError, match="ContainerImage and ACASessions:Sandbox:Environment contradict"):
        async with open_pool(Settings(ContainerImage="/srv/root", Sandbox={"Environment": "data"})):
            pass
