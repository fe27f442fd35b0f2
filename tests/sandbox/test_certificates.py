"""Test that programs in a session trust the authority of its proxy, and that sessions without one are as before."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aca_sessions import Policy
from aca_sessions.models import CodeExecutionResult
from aca_sessions.network.rules import Network
from aca_sessions.sandbox.forkserver import ForkServer
from aca_sessions.sandbox.policy import Limits
from aca_sessions.sandbox.proxy.authority import Authority
from aca_sessions.sandbox.proxy.proxy import Proxy, _Read
from aca_sessions.sandbox.proxy.session_network import SessionNetwork
from aca_sessions.sandbox.proxy.streams import TlsStream
from aca_sessions.sandbox.sandboxes import Sandboxes
from aca_sessions.sandbox.session.interpreter import Interpreter, start

from ..wheels import make_wheel
from .test_saved_state import restored, run, save

pytestmark = pytest.mark.slow
POLICY = Policy(network=Network.allow("*"), preload=(), spares=0)
LIMITS = Limits()


class TLSServer(Proxy):
    """A server in the place of the proxy, which ends TLS with certificates of an authority. It has a file at `/x`, and an index at `/i`."""

    def __init__(self, authority: Authority, wheel: Path | None = None) -> None:
        super().__init__(SessionNetwork(POLICY.network))
        self.authority = authority
        self.wheel = wheel
        self.seen: list[str] = []

    async def _answer(self, _decide: object, read: _Read, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = await read(reader)
        writer.write(target.reply)
        context = self.authority.context_for(target.host)
        context.set_alpn_protocols(["http/1.1"])
        stream = TlsStream((reader, writer), context, early=target.forwarded)
        with contextlib.suppress(ssl.SSLError):  # a client may not trust the certificate
            await stream.handshake()
            await self._respond(stream, target.host)

    async def _respond(self, stream: TlsStream, host: str) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await stream.read()
        agent = next((line for line in head.decode().splitlines() if line.lower().startswith("user-agent: ")), "user-agent: none")
        self.seen.append(f"{host} {agent[12:]}")
        path = head.split()[1].decode()
        await stream.send(self._response(path))

    def _response(self, path: str) -> bytes:
        kind, body, status = "text/plain", b"served", "200 OK"
        if path.startswith("/i/"):
            kind, body = "text/html", f'<a href="/wheels/{self.wheel.name}">{self.wheel.name}</a>'.encode()
        elif path.startswith("/wheels/"):
            body = self.wheel.read_bytes()
        elif path != "/x":
            status = "404 Not Found"
        return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@asynccontextmanager
async def session_of(server: ForkServer, proxy: Proxy, authority: str) -> AsyncIterator[Interpreter]:
    workspace, memory = server.make_session_resources(LIMITS)
    spawned = server.spawn(workspace, LIMITS, network="allow", authority=authority)
    options = {"workspace": workspace.number, "memory": memory, "proxy": proxy, "mount": server.mount_workspace}
    interpreter = await start(spawned, LIMITS, **options)
    try:
        yield interpreter
    finally:
        await interpreter.close()
        server.drop_session_resources((workspace, memory))


@pytest.fixture(scope="module")
def fork_server(kept_fork_server: ForkServer) -> Iterator[ForkServer]:
    server = ForkServer.shared(POLICY)
    yield server
    server.release()


async def run_in(interpreter: Interpreter, code: str) -> CodeExecutionResult:
    return await interpreter.run("e", code, 120.0)


SHELL = "import subprocess; done = subprocess.run({!r}, shell=True, capture_output=True, text=True); done.stdout + done.stderr"
NODE = (
    "const s = require('http').request({port: 3128, method: 'CONNECT', path: 'node.test:443'}); s.on('connect', (_, socket) => { "
    "const t = require('tls').connect({socket, servername: 'node.test'}, () => "
    "t.write('GET /x HTTP/1.1\\r\\nUser-Agent: node\\r\\n\\r\\n')); let all = ''; t.on('data', data => all += data); "
    "t.on('end', () => process.stdout.write(all.split('\\r\\n\\r\\n')[1])) }); s.end()"
)
CLIENTS = {
    "urllib": ("import urllib.request; urllib.request.urlopen('https://urllib.test/x').read().decode()", "served", "Python-urllib"),
    "requests": ("import requests; requests.get('https://requests.test/x').text", "served", "python-requests"),
    "httpx": ("import httpx; httpx.get('https://httpx.test/x').text", "served", "python-httpx"),
    "aiohttp": (
        "import aiohttp\nasync with aiohttp.ClientSession(trust_env=True) as client:\n"
        "    text = await (await client.get('https://aiohttp.test/x')).text()\ntext",
        "served",
        "Python/3",
    ),
    "curl": (SHELL.format("curl -sS https://curl.test/x"), "served", "curl"),
    "wget": (SHELL.format("wget -q -O - https://wget.test/x"), "served", "Wget"),
    "git": (SHELL.format("git ls-remote https://git.test/y"), "remote: served\nfatal: repository 'https://git.test/y/' not found\n", "git"),
    "pip": (SHELL.format("python -m pip download -q --index-url https://pip.test/i tiny && ls"), "tiny-1.0-py3-none-any.whl\n", "pip"),
    "node": (SHELL.format(f'node -e "{NODE}"'), "served", "node"),
}


@pytest.mark.parametrize("variables", [True, False], ids=["by variables", "by files"])
async def test_clients_in_a_session_trust_the_authority(fork_server: ForkServer, variables: bool, tmp_path: Path) -> None:
    authority = fork_server.authority
    assert fork_server.authority is authority
    proxy = TLSServer(authority, make_wheel(tmp_path, "tiny"))
    async with session_of(fork_server, proxy, authority.pem) as session:
        if not variables:
            names = "{'SSL_CERT_FILE', 'REQUESTS_CA_BUNDLE', 'CURL_CA_BUNDLE', 'GIT_SSL_CAINFO', 'PIP_CERT'}"
            assert (await run_in(session, f"import os; sum(os.environ.pop(name) > '' for name in {names})")).value == 5
        for name, (code, expected, agent) in CLIENTS.items():
            result = await run_in(session, code)
            assert result.value == expected, (name, result.error, result.value)
            assert any(seen.startswith(f"{name}.test {agent}") for seen in proxy.seen), (name, proxy.seen)


async def test_the_bundle_has_what_the_root_trusts_and_cannot_be_changed(fork_server: ForkServer) -> None:
    """A session cannot change what it trusts."""
    pem = fork_server.authority.pem
    async with session_of(fork_server, TLSServer(fork_server.authority), pem) as session:
        assert (await run_in(session, "import os, certifi; bundle = open(os.environ['SSL_CERT_FILE']).read(); bundle")).value.endswith(pem)
        count = int((await run_in(session, "bundle.count('BEGIN CERTIFICATE')")).value)
        assert count == Path("/etc/ssl/certs/ca-certificates.crt").read_text().count("BEGIN CERTIFICATE") + 1
        paths = "[os.environ['SSL_CERT_FILE'], certifi.where(), '/etc/ssl/certs/ca-certificates.crt']"
        assert (await run_in(session, f"all(open(path).read() == bundle for path in {paths})")).value is True
        attempts = (
            "open(path, 'a')",
            "os.chmod(path, 0o777)",
            "os.remove(path)",
            "os.rename(path, path + '2')",
            "open(os.path.join(os.path.dirname(path), 'new'), 'w')",
            "os.symlink('/tmp/x', path + '2')",
        )
        for attempt in attempts:
            code = f"refused = 0\nfor path in {paths}:\n  try: {attempt}\n  except OSError: refused += 1\nrefused"
            assert (await run_in(session, code)).value == 3, attempt


async def test_a_session_without_an_authority_has_nothing_of_it(fork_server: ForkServer) -> None:
    async with session_of(fork_server, TLSServer(fork_server.authority), "") as session:
        assert (
            await run_in(session, "import os; [name for name in os.environ if 'CERT' in name or 'CA' in name]")
        ).text == "['XDG_CACHE_HOME']"
        assert (
            await run_in(session, "os.listdir('/.certificates'), '/.certificates' in open('/proc/self/mountinfo').read()")
        ).text == "([], False)"
        result = await run_in(session, CLIENTS["urllib"][0])
        assert "CERTIFICATE_VERIFY_FAILED" in str(result.error)


async def test_checkpoints_and_branches_keep_the_authority(fork_server: ForkServer) -> None:
    policy = Policy(network=Network.rules([{"Host": "*", "Methods": ["GET"]}]), preload=(), spares=0)
    look = f"import os; open(os.environ['SSL_CERT_FILE']).read().endswith({fork_server.authority.pem!r})"
    async with Sandboxes(policy) as sandboxes:
        sandbox = await sandboxes.open()
        assert (await run(sandbox, look)).value is True
        await sandbox.checkpoint()
        await run(sandbox, "del os.environ['SSL_CERT_FILE']")
        await sandbox.roll_back()
        branch = await sandbox.branch()
        for one in (sandbox, branch):
            assert (await run(one, look)).value is True
        await sandbox.reset()
        assert (await run(sandbox, look)).value is True
        for one in (branch, sandbox):
            await one.close()


async def test_a_restored_session_trusts_its_own_authority_only() -> None:
    inspected = Policy(network=Network.rules([{"Host": "*", "Methods": ["GET"]}]), preload=(), spares=0)
    look = "print(*map(os.environ.get, ('REQUESTS_CA_BUNDLE', 'CURL_CA_BUNDLE', 'SSL_CERT_FILE', 'OTHER')))"
    async with Sandboxes(inspected) as sandboxes, Sandboxes(Policy(preload=(), spares=0)) as others:
        first = await sandboxes.open()
        await run(first, "import os; os.environ |= {'REQUESTS_CA_BUNDLE': '/own', 'OTHER': 'x'}; del os.environ['CURL_CA_BUNDLE']")
        state, _ = await save(first)
        again, _ = await restored(sandboxes, state)
        assert (await run(again, look)).stdout == "/.certificates/bundle.pem /.certificates/bundle.pem /.certificates/bundle.pem x\n"
        elsewhere, _ = await restored(others, state)
        assert (await run(elsewhere, look)).stdout == "/own None None x\n"
        for one in (first, again, elsewhere):
            await one.close()


async def test_one_session_of_a_fork_server_may_have_another_network(fork_server: ForkServer) -> None:
    workspace, memory = fork_server.make_session_resources(LIMITS)
    try:
        spawned = fork_server.spawn(workspace, LIMITS, network="none")
        session = await start(spawned, LIMITS, workspace=workspace.number, memory=memory, proxy=None, mount=fork_server.mount_workspace)
        result = await run_in(
            session, "import os, socket; print('HTTP_PROXY' in os.environ); socket.create_connection(('127.0.0.1', 3128))"
        )
        assert (result.stdout, result.error.name) == ("False\n", "ConnectionRefusedError")
        await session.close()
        with pytest.raises(ValueError, match="got host"):
            fork_server.spawn(workspace, LIMITS, network="host")
    finally:
        fork_server.drop_session_resources((workspace, memory))
