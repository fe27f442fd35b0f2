"""Stores of each kind: a folder, a real Redis server, and Azurite, which is Microsoft's emulator of Azure Storage."""

import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis import Redis

from aca_sessions.durable.store import Store, open_store

from ..agent.conftest import RedisServer, redis_server  # noqa: F401 - the second is a fixture

AZURITE = Path.home() / ".cache" / "aca-sessions-tests" / "azurite"
# The account and the key of the emulator are public: https://learn.microsoft.com/azure/storage/common/storage-connect-azurite
ACCOUNT = "devstoreaccount1"
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
KINDS = ["folder", "redis", pytest.param("azure", marks=pytest.mark.long)]


@pytest.fixture(scope="session")
def azurite() -> Iterator[str]:
    """Start Azurite. Yield its connection string."""
    script = install_azurite()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--inMemoryPersistence", "--skipApiVersionCheck", "--silent", "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    process = subprocess.Popen(["node", script, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until_open(port, process)
        endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
        yield f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={ACCOUNT_KEY};BlobEndpoint={endpoint};"
    finally:
        process.kill()
        process.wait()


def install_azurite() -> Path:
    """Install Azurite once for all users of this cache, whole or not at all, and return its script."""
    script = AZURITE / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node or npm is not on PATH: apt install nodejs npm")
    AZURITE.parent.mkdir(parents=True, exist_ok=True)
    with AZURITE.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other processes of the tests install it as well
        if not script.exists():
            with tempfile.TemporaryDirectory(dir=AZURITE.parent) as folder:
                command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", folder, "azurite"]
                installed = subprocess.run(command, capture_output=True, text=True, timeout=500)
                if installed.returncode:
                    pytest.skip(f"npm cannot install azurite: {installed.stderr[-200:]}")
                AZURITE.mkdir(exist_ok=True)
                os.rename(Path(folder, "node_modules"), AZURITE / "node_modules")
    return script


def wait_until_open(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("Azurite did not start")


@pytest.fixture(params=KINDS)
def store_url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty store."""
    if request.param == "folder":
        return f"file://{tmp_path}/store"
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
        with Redis.from_url(server.url) as client:
            client.flushall()
        return server.url
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", request.getfixturevalue("azurite"))
    return f"azure-blob://{ACCOUNT}/test-{uuid.uuid4().hex}/some/prefix"


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    async with open_store(store_url) as opened:
        yield opened


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Store]:
    """A store in a folder, for tests that need only one kind."""
    async with open_store(f"file://{tmp_path}/store") as opened:
        yield opened


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A folder in memory, where `fsync` costs nothing, for tests of many steps."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as path:
        yield Path(path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own that has 2 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"this host cannot mount a tmpfs: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)
