"""Search for the secret that the host adds to a session's requests: the code uses it, and must find it nowhere."""

import contextlib
import json
import logging
import os
import pickle
import secrets
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from aca_sessions import Network, Policy, Session, Settings, open_pool, open_server
from aca_sessions.client.pool import SessionPool
from aca_sessions.errors import ACASessionsError
from aca_sessions.network.secrets import Secret

from ..network.upstream import Upstream, upstream

pytestmark = pytest.mark.slow
HIDDEN = "ghp_" + secrets.token_hex(16)
VARIABLE = "TOKEN_OF_THE_TESTS"
SITE = "api.site.test"
CLIENTS = {
    "requests": "import requests; requests.get('{url}/requests').status_code",
    "httpx": "import httpx; httpx.get('{url}/httpx').status_code",
    "httpx over HTTP/2": "import httpx; httpx.Client(http2=True).get('{url}/h2').http_version",
    "aiohttp": (
        "import aiohttp\nasync with aiohttp.ClientSession(trust_env=True) as client:\n    print((await client.get('{url}/aiohttp')).status)"
    ),
    "urllib": "import urllib.request; urllib.request.urlopen('{url}/urllib').read()",
    "curl": "import subprocess; subprocess.run(['curl', '-sSf', '{url}/curl'], check=True)",
    "pip": (
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, '-m', 'pip', 'download', '--no-deps', '--retries=0', '-i', '{url}/simple/', 'tiny'])"
    ),
    "git": "import subprocess; subprocess.run(['git', 'ls-remote', '{url}/tiny.git'])",
}
# What is searched, and the needle, have 1 added to each byte: a search finds neither its needle nor what an earlier search has left.
SEARCH = """
import gc, glob, os, sys, traceback
def turn(data): return bytes(data).translate(bytes((byte + 1) % 256 for byte in range(256)))
def found(data): return turn(data).find(NEEDLE) >= 0
def memory(pid='self'):
    hits = 0
    with open(f'/proc/{pid}/maps') as maps, open(f'/proc/{pid}/mem', 'rb', 0) as mem:
        for line in maps:
            place, rights = line.split()[:2]
            start, end = (int(part, 16) for part in place.split('-'))
            for begin in range(start, end, 1 << 20) if 'r' in rights and '[v' not in line else ():
                try:
                    mem.seek(begin)
                    hits += found(mem.read(min(end - begin, (1 << 20) + 64)))
                except (OSError, ValueError):
                    pass
    return hits
def readable(pattern):
    for path in glob.glob(pattern, recursive=True):
        try:
            with open(path, 'rb') as file: yield path, file.read(1 << 24)
        except OSError: pass
def in_files(pattern):
    return any(found(data) for _, data in readable(pattern))
def output(*command, **environment):
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True)
    return found(done.stdout) or found(done.stderr)
"""
# What a session can look at. Each is an expression that is true if it finds the needle.
INSIDE = {
    "the environment": "found(repr(dict(os.environ)).encode())",
    "the environment of children": "output('env')",
    "/proc/*/environ": "in_files('/proc/[0-9]*/environ')",
    "/proc/*/cmdline": "in_files('/proc/[0-9]*/cmdline')",
    "/proc/net": "in_files('/proc/net/*')",
    "open files": "any(found(os.readlink(path).encode()) for path in glob.glob('/proc/self/fd/*') if os.path.lexists(path))",
    "the workspace": "in_files('/mnt/data/**')",
    "/tmp": "in_files('/tmp/**') or in_files('/tmp/.*/**')",
    "/dev/shm": "in_files('/dev/shm/*')",
    "/etc": "in_files('/etc/**')",
    "/run": "in_files('/run/**')",
    "the code of the guest": "in_files('/.guest/**')",
    "the bundle of certificates": "in_files(os.environ['SSL_CERT_FILE'])",
    "all text of the interpreter": "any(found(one.encode('utf-8', 'replace')) for one in gc.get_objects() if isinstance(one, str))",
    "the attributes of all objects": "found(repr([vars(one) for one in gc.get_objects() if 'requests' in type(one).__module__]).encode())",
    "the memory of the interpreter": "memory()",
    "In and Out": "found(repr((In, Out)).encode())",
    "a response of requests": "found(repr((r.headers, r.request.headers, r.text, r.raw.headers, r.history)).encode())",
    "an echo by requests": "found(requests.get(URL + '/echo').content) or found(repr(requests.get(URL + '/echo').headers).encode())",
    "an echo of a body": "found(requests.post(URL + '/echo', data=b'x').content)",
    "an echo by HTTP/2": "found(httpx.Client(http2=True).get(URL + '/echo').content)",
    "an echo in parts": "found(b''.join(requests.get(URL + '/echo', stream=True).iter_content(1)))",
    "an echo that is compressed": "found(requests.get(URL + '/echo', headers={'Accept-Encoding': 'gzip'}).content)",
    "an echo of a header that code sets": "found(requests.get(URL + '/echo', headers={'Authorization': 'mine', 'X-A': 'b'}).content)",
    "a redirect to another host": "found(requests.get(URL + '/redirect?to=' + OTHER + '/echo').content)",
    "a redirect to the same host": "found(requests.get(URL + '/redirect?to=/echo').content)",
    "TRACE": "found(requests.request('TRACE', URL + '/').content)",
    "curl -v": "output('curl', '-sv', URL + '/echo')",
    "curl --trace": "output('curl', '-s', '--trace-ascii', '-', URL + '/echo')",
    "curl -i": "output('curl', '-si', URL + '/echo')",
    "curl --proxy-header": "output('curl', '-sv', '--proxy-header', 'X: y', URL + '/echo')",
    "curl by plain http": "output('curl', '-si', 'http://' + SITE + '/echo')",
    "git with traces": "output('git', 'ls-remote', URL + '/x.git', GIT_CURL_VERBOSE='1', GIT_TRACE='1')",
    "pip -vvv": "output(sys.executable, '-m', 'pip', '-vvv', 'download', '--retries=0', '-i', URL + '/simple/', 'tiny')",
    "openssl's key log": "output('curl', '-s', URL + '/echo', SSLKEYLOGFILE='/tmp/keys') or in_files('/tmp/keys')",
    "a traceback": "found(trouble.encode())",
    "a traceback of a refusal": "found(refusal.encode())",
    "the proxy's own page": "found(ask('GET / HTTP/1.1', 'Host: x'))",
    "the proxy, asked by another name": "found(ask('GET http://127.0.0.1:3128/ HTTP/1.1'))",
    "the proxy, asked with TRACE": "found(ask('TRACE http://' + SITE + '/ HTTP/1.1'))",
    "the proxy, asked in plain text in a tunnel": "found(ask(f'CONNECT {TARGET} HTTP/1.1', '', 'GET /echo HTTP/1.1', f'Host: {TARGET}'))",
    "names": "found(repr(socket.getaddrinfo(SITE, 443)).encode())",
    "the frames of all threads": "found(repr([frame.f_locals for frame in sys._current_frames().values()]).encode())",
}
PREPARE = """
import subprocess, socket, requests, httpx
def ask(*lines):
    with socket.create_connection(('127.0.0.1', 3128)) as s:
        s.settimeout(5)
        data = b''
        try:
            s.sendall('\\r\\n'.join([*lines, '', '']).encode())
            while part := s.recv(1 << 16): data += part
        except OSError: pass
    return data
r = requests.get(URL + '/echo')
try:
    requests.get('https://unknown.test/')
except Exception:
    trouble = traceback.format_exc()
refusal = requests.delete(URL + '/x').text
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    with pytest.MonkeyPatch.context() as patch, upstream(tmp_path_factory.mktemp("site"), patch) as server:
        patch.setenv(VARIABLE, HIDDEN)
        yield server


def rules(site: Upstream) -> Network:
    key = {"Authorization": "Bearer ${secret:key}"}
    return Network.rules(
        [
            {"Host": f"{SITE}:{site.port}", "Methods": ["GET", "POST"], "Headers": key, "Addresses": ["127.0.0.1/32"]},
            {"Host": f"other.site.test:{site.port}", "Addresses": ["127.0.0.1/32"], "Methods": ["GET"]},
        ],
        secrets={"key": Secret.environment(VARIABLE)},
    )


@contextlib.asynccontextmanager
async def opened(site: Upstream, folder: Path) -> AsyncIterator[SessionPool]:
    settings = Settings(Audit={"File": str(folder / "audit.jsonl"), "Code": True}, Durable={"Store": f"file://{folder}/store"})
    async with open_pool(settings, policy=Policy(network=rules(site), preload=(), spares=0)) as pool:
        yield pool


@pytest.fixture
async def session(site: Upstream, tmp_path: Path) -> AsyncIterator[Session]:
    async with opened(site, tmp_path) as pool, pool.session("alice") as session:
        yield session


@pytest.mark.parametrize("client", CLIENTS)
async def test_every_client_sends_the_header_without_having_it(session: Session, site: Upstream, client: str) -> None:
    """Requests, httpx, aiohttp, urllib, curl, pip and git send a header that the host adds, and no result has its value."""
    site.requests.clear()
    result = await session.run(CLIENTS[client].format(url=f"https://{SITE}:{site.port}"), timeout=100)
    assert site.requests, str(result)
    assert site.requests[-1].header("authorization") == [f"Bearer {HIDDEN}"], str(result)
    assert HIDDEN not in repr(result) + str(result)
    assert result.success or client in ("pip", "git"), str(result)  # for these, the server has nothing of use
    if client == "httpx over HTTP/2":
        assert result.value == "HTTP/2"


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_a_secret_that_the_host_adds_is_found_nowhere(site: Upstream, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A secret that the host adds to requests is found nowhere in a session, nor in what the host writes and shows about it."""
    caplog.set_level(logging.DEBUG)
    searched: dict[str, bool] = {}
    async with opened(site, tmp_path) as pool, pool.session("alice") as session:
        for client, code in CLIENTS.items():
            result = await session.run(code.format(url=f"https://{SITE}:{site.port}"), timeout=100)
            searched[f"the result of {client}"] = HIDDEN in repr(result)
        await session.checkpoint("before")
        [branch] = await session.branch()
        await branch.run("1")
        await session.rollback("before")
        searched |= search_processes("sessions, branches and checkpoints")
        await prepare(session, site)
        searched |= await search_inside(session, "the session")
        checkpoint = await session.checkpoint("before")
        searched["the checkpoint"] = HIDDEN in repr(checkpoint)
        [branch] = await session.branch()
        searched |= await search_inside(branch, "a branch")
        await session.rollback("before")
        searched |= await search_inside(session, "the session after a rollback")
        searched["the save"] = HIDDEN in repr(await session.save())
        searched["the exported file"] = HIDDEN in repr(await session.export(tmp_path / "exported"))
        searched["the notebook"] = HIDDEN in json.dumps(session.to_notebook())
        searched["the history"] = HIDDEN in repr(vars(session.history))
        searched["the health"] = HIDDEN in repr(await session.health())
        searched["the variables"] = HIDDEN in repr(await session.variables())
        searched["the pool"] = HIDDEN in repr((pool, pool.access, session, vars(session)))
    searched |= search_files(tmp_path)
    searched["the log"] = HIDDEN in caplog.text
    searched |= search_settings(site)
    searched |= await search_server(site)
    assert len(searched) >= 100
    assert [name for name, was_found in searched.items() if was_found] == []


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_the_searches_find_what_is_there(site: Upstream, tmp_path: Path) -> None:
    """The searches for a secret find one that a session was given on purpose: what they do not find is not there."""
    async with opened(site, tmp_path) as pool, pool.session() as session:
        await prepare(session, site)
        planted = [byte - 1 for byte in HIDDEN.encode()]
        await session.run(f"plant = turn(bytes({planted})).decode(); os.environ['PLANT'] = plant; open('plant', 'w').write(plant)")
        await session.run("trouble = plant; Out[1] = plant")
        hits = {name for name, was_found in (await search_inside(session, "")).items() if was_found}
        for name in (
            "the environment",
            "the environment of children",
            "the workspace",
            "a traceback",
            "In and Out",
            "the memory of the interpreter",
        ):
            assert f"{name} in " in hits
        if os.geteuid() == 0:
            assert any(search_processes("").values())


async def prepare(session: Session, site: Upstream) -> None:
    needle = [byte + 1 for byte in HIDDEN.encode()]
    where = f"SITE = {SITE!r}; TARGET = '{SITE}:{site.port}'; URL = 'https://' + TARGET; OTHER = 'https://other.site.test:{site.port}'"
    for code in (f"NEEDLE = bytes({needle})\n{where}", SEARCH, PREPARE):
        assert (result := await session.run(code, timeout=100)).success, str(result)


async def search_inside(session: Session, where: str) -> dict[str, bool]:
    found = {}
    for name, code in INSIDE.items():
        result = await session.run(f"bool({code})", timeout=200)
        if result.error is not None:
            assert HIDDEN not in repr(result), name
        found[f"{name} in {where}"] = result.value is True or HIDDEN in repr(result)
    return found


def search_processes(where: str) -> dict[str, bool]:
    """Search the memory, environment and command line of all processes below this one, as root: the fork server and all sessions."""
    if os.geteuid() != 0:
        return {}
    found, pids = {}, [*_descendants(os.getpid())]
    for number, pid in enumerate(pids):
        with contextlib.suppress(OSError):
            for part in ("environ", "cmdline"):
                found[f"{part} of process {number} of {where}"] = HIDDEN.encode() in Path(f"/proc/{pid}/{part}").read_bytes()
            found[f"the memory of process {number} of {where}"] = _in_memory(pid)
    return found


def _descendants(pid: int) -> Iterator[int]:
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield int(child)
            yield from _descendants(int(child))
        for task in os.listdir(f"/proc/{pid}/task"):
            if int(task) != pid:
                for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                    yield int(child)
                    yield from _descendants(int(child))


def _in_memory(pid: int) -> bool:
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            place, rights = line.split()[:2]
            start, end = (int(part, 16) for part in place.split("-"))
            for begin in range(start, end, 1 << 22) if "r" in rights and "[v" not in line else ():
                with contextlib.suppress(OSError, ValueError, OverflowError):
                    memory.seek(begin)
                    if HIDDEN.encode() in memory.read(min(end - begin, (1 << 22) + 64)):
                        return True
    return False


def search_files(folder: Path) -> dict[str, bool]:
    """Search the audit log, the store of saves and exported files, also in what is compressed in them."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            found[f"the file {path.relative_to(folder).parts[0]}"] = found.get(path.name, False) or _in_file(path.read_bytes())
    assert {"the file audit.jsonl", "the file store", "the file exported"} <= found.keys()
    return found


def _in_file(data: bytes) -> bool:
    starts = [place for place in range(len(data)) if data[place : place + 2] in (b"x\x9c", b"x\x01", b"x\xda")]
    plain = [data]
    for start in starts[:1000]:
        with contextlib.suppress(zlib.error):
            plain.append(zlib.decompressobj().decompress(data[start:], 1 << 24))
    return any(HIDDEN.encode() in one for one in plain)


def search_settings(site: Upstream) -> dict[str, bool]:
    network, literal = rules(site), Network.rules([{"Host": SITE, "Headers": {"Authorization": f"Bearer {HIDDEN}"}}])
    rule = {"Host": SITE, "Headers": {"Authorization": f"Bearer {HIDDEN}"}}
    settings = Settings(Sandbox={"Network": {"Rules": [rule]}})
    shown = {
        "the network": repr((network, str(network), network.described)),
        "a network with the secret in it": repr((literal, literal.hosts, str(literal.hosts[0]), literal.described)),
        "the policy": repr(Policy(network=literal)),
        "the settings": repr(settings),
        "the settings as text": str(settings),
        "the settings as JSON": settings.model_dump_json(),
        "the settings as a dict": repr(settings.model_dump()),
        "secrets": repr(dict(network.secrets)),
        "secrets as text": str(Secret.environment(VARIABLE)),
    }
    with contextlib.suppress(Exception):  # that it cannot be pickled is as good
        shown["pickled secrets"] = pickle.dumps(dict(network.secrets)).decode("latin-1")
    for name, wrong in (("an error about a header", {"Headers": {"A": HIDDEN + "\n"}}), ("an error about a rule", {"Headers": HIDDEN})):
        try:
            Settings(Sandbox={"Network": {"Rules": [{"Host": SITE} | wrong]}})
        except ACASessionsError as error:
            shown[name] = f"{error!r} {error.__cause__!r} {error.__context__!r}"
    return {name: HIDDEN in text for name, text in shown.items()}


async def search_server(site: Upstream) -> dict[str, bool]:
    found = {}
    policy = Policy(network=rules(site), preload=(), spares=0)
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(open_server(policy=policy))
        client = await stack.enter_async_context(httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test"))
        code = f"import requests; requests.get('https://{SITE}:{site.port}/echo').text"
        body = {"properties": {"codeInputType": "inline", "executionType": "synchronous", "code": code}}
        ran = await client.post("/code/execute", params={"api-version": "2024-02-02-preview", "identifier": "bob"}, json=body)
        assert site.requests[-1].header("authorization") == [f"Bearer {HIDDEN}"], ran.text
        found["the body of Azure's API"] = HIDDEN in ran.text
        for path in ("/", "/metrics", "/health", "/openapi.yaml", "/session", "/executions", "/isolation"):
            reply = await client.get(path, params={"api-version": "2024-02-02-preview", "identifier": "bob"})
            found[f"{path} of the server"] = HIDDEN in reply.text + repr(reply.headers)
    return found
