"""Fixtures for what outlives sessions: storage in a folder, and in a real Redis server that the tests start."""

import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from redis import Redis

from aca_sessions import FileStorage, RedisStorage
from aca_sessions.agent.library.storage import MemoryStorage, Storage


class RedisServer:
    """A Redis server of the test's own."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self._folder = folder
        self.start()

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), "--appendonly", "yes", "--save", ""]
        self._process = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise RuntimeError("redis-server did not start")

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not on PATH: apt install redis-server")
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(params=["files", "memory", "redis", "blocking client"])
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Storage]:
    if request.param == "redis":
        opened = RedisStorage(request.getfixturevalue("redis_server").url, prefix=tmp_path.name)
        yield opened
        await opened.close()
    elif request.param == "blocking client":
        with Redis.from_url(request.getfixturevalue("redis_server").url) as client:
            yield RedisStorage(redis=client, prefix=tmp_path.name)
    else:
        yield FileStorage(tmp_path / "kept") if request.param == "files" else MemoryStorage()
