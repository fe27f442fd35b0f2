"""Run several `aca-sessions serve` on loopback behind a real nginx with deploy/nginx.conf. Only addresses in it are replaced."""

import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest

from aca_sessions import CodeInterpreter, Settings, open_interpreter
from aca_sessions.connect import Opening

from ..conftest import COMMAND, ROOT

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
CONFIGURATION = ROOT / "deploy" / "nginx.conf"
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is missing: sudo apt install nginx")
KEY = "key-of-all-servers"
_LIGHT = {"ACASessions__Sandbox__Preload": "[]", "ACASessions__Sandbox__Spares": "0"}
_NOBODY = 65534


class Member:
    """One server, which may be killed and restarted at the same port."""

    def __init__(self, *flags: str) -> None:
        self.port, self._wanted = free_port(), 0  # until the first start: then the server takes a free one, which it keeps
        self._flags = flags
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [*COMMAND, "serve", "--port", str(self._wanted), "--api-key", KEY, "--max-sessions", "1000", *self._flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | _LIGHT)

    def wait_until_ready(self) -> None:
        line = self.process.stdout.readline()
        assert line.startswith("Endpoint: ")
        self.port = self._wanted = int(line.rpartition(":")[2])

    def signal_process(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, number: int = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(120)
            self.process.stdout.close()
            self.process = None

    def direct(self) -> Opening[CodeInterpreter]:
        return open_interpreter(Settings(Endpoint=f"http://127.0.0.1:{self.port}", ApiKey=KEY))

    async def names(self) -> set[str]:
        """Return the sessions that the server has."""
        async with self.direct() as interpreter:
            return {info.session_id for info in await interpreter.list_sessions()}


class Cluster:
    """Servers, and nginx in front of them as a user without rights."""

    def __init__(self, servers: int, *flags: str) -> None:
        self.members = [Member(*flags) for _ in range(servers)]
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.folder = Path(tempfile.mkdtemp(prefix="aca-sessions-proxy-"))
        self._nginx: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Cluster":
        for member in self.members:
            member.start()
        for member in self.members:
            member.wait_until_ready()
        self.configure(self.members)
        self.start_nginx()
        return self

    def start_nginx(self) -> None:
        """Start nginx and wait until it listens."""
        user = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        if user:
            os.chown(self.folder, _NOBODY, _NOBODY)
        command = [str(NGINX), "-e", "stderr", "-p", str(self.folder), "-c", str(self.folder / "nginx.conf"), "-g", "daemon off;"]
        with (self.folder / "stderr").open("wb") as stderr:
            self._nginx = subprocess.Popen(command, stderr=stderr, **user)
        self.wait_until_listening()

    def stop_nginx(self, number: int = signal.SIGTERM) -> None:
        """End nginx: at once with SIGTERM, or with SIGQUIT when its requests have ended."""
        self._nginx.send_signal(number)
        self._nginx.wait(120)

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.end()
        self.stop_nginx()
        shutil.rmtree(self.folder)

    def configure(self, members: Iterable[Member], **directives: str) -> None:
        """Write the configuration for some members, with other values for the given directives."""
        text = CONFIGURATION.read_text().replace("127.0.0.1:8080", f"127.0.0.1:{self.port}")
        for kind in ("max_fails=0", "max_fails=1 fail_timeout=1s"):
            lines = "\n".join(f"server 127.0.0.1:{member.port} {kind};" for member in members)
            text = re.sub(rf"(\s+server 127\.0\.0\.1:808\d {kind};)+", "\n" + lines, text)
        for name, value in directives.items():
            text, count = re.subn(rf"\b{name} [^;]+;", f"{name} {value};", text)
            assert count, name
        (self.folder / "nginx.conf").write_text(text)

    def reload(self) -> None:
        """Reload nginx. When the new workers answer, those of the old configuration no longer listen."""
        before = self._workers()
        self._nginx.send_signal(signal.SIGHUP)
        while self._workers() & before:
            time.sleep(0.02)

    def _workers(self) -> set[str]:
        children = Path(f"/proc/{self._nginx.pid}/task/{self._nginx.pid}/children")
        return set(children.read_text().split())

    def wait_until_listening(self) -> None:
        while not answers(self.port):
            assert self._nginx.poll() is None, (self.folder / "stderr").read_text()
            time.sleep(0.02)

    def settings(self, **options: object) -> Settings:
        return Settings(SessionsHttpClient={"Endpoint": self.endpoint, "ApiKey": KEY, **options})

    def ports_of(self, identifiers: Iterable[str]) -> list[int]:
        """Return the ports of the servers that receive requests for these identifiers, spelled as in a query."""
        names = [*identifiers]
        log = self.folder / "access.log"
        before = len(log.read_text().splitlines())
        with httpx.Client(base_url=self.endpoint) as client:
            for name in names:
                client.get(f"/session?api-version=2025-10-02-preview&identifier={name}")
        while len(lines := log.read_text().splitlines()[before:]) < len(names):
            time.sleep(0.02)  # the line is logged after the answer
        return [int(re.search(r" 127\.0\.0\.1:(\d+) ", line)[1]) for line in lines]

    def of(self, member: Member, count: int, prefix: str = "mine") -> list[str]:
        """Return `count` identifiers that are routed to a member. The routing depends on the ports, which differ each time."""
        found: list[str] = []
        for first in range(0, 1000, 8):
            names = [urlencode({"": f"{prefix}-{number}"})[1:] for number in range(first, first + 8)]
            found += [name for name, port in zip(names, self.ports_of(names), strict=True) if port == member.port]
            if len(found) >= count:
                return found[:count]
        raise AssertionError(f"of 1000 identifiers, {len(found)} belong to port {member.port}: {count} expected")

    def logs(self) -> str:
        return "".join(file.read_text() for file in (self.folder / "access.log", self.folder / "stderr"))


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
