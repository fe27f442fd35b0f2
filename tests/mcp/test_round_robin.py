"""Test several servers at one endpoint behind nginx, which sends each request to the next of them."""

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from aca_sessions.mcp.sdk import HAS_STATELESS

from ..conftest import COMMAND
from ..scaling.cluster import NGINX, answers, free_port, needs_nginx
from .clients import answer_of, http_server, text_of

if not HAS_STATELESS:
    pytest.skip("needs version 2 of the SDK: tests/mcp/test_version_2.py runs these tests", allow_module_level=True)

from .stateless import create, http_client, text_from

pytestmark = [pytest.mark.slow, pytest.mark.long, needs_nginx]

ALICE, BOB = "the-key-of-alice", "the-key-of-bob"
CALLS, SESSIONS = 1000, 10
REFUSED = "session_id must be one that create_session returned to you, of a session that has not ended"
_NOBODY = 65534
_CONFIGURATION = """
pid nginx.pid;
events {{}}
http {{
  log_format main '$upstream_addr'; access_log access.log main;
  client_body_temp_path a; proxy_temp_path b; fastcgi_temp_path c; uwsgi_temp_path d; scgi_temp_path e;
  upstream servers {{ {servers} }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://servers; proxy_set_header Host localhost; proxy_buffering off; proxy_http_version 1.1; }}
  }}
}}
"""


class Servers:
    """An endpoint, two MCP servers that use it, and nginx."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        folder = Path(tempfile.mkdtemp(prefix="aca-sessions-proxy-"))
        stack.callback(shutil.rmtree, folder)
        keys = folder / "keys.txt"
        keys.write_text(f"{ALICE}\n{BOB}\n")
        keys.chmod(0o600)
        light = {"ACASessions__Sandbox__Preload": "[]", "ACASessions__Sandbox__Spares": "0"}
        serve = [*COMMAND, "serve", "--port", "0", "--api-key", "key"]
        endpoint = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True, env=os.environ | light)
        stack.callback(_end, endpoint)
        self.settings = {"ACASessions__Endpoint": endpoint.stdout.readline().partition(": ")[2].strip(), "ACASessions__ApiKey": "key"}
        running = [stack.enter_context(http_server("--tools", "all", "--api-key-file", str(keys), **self.settings)) for _ in range(2)]
        self.direct = [one.address for one in running]
        port = free_port()
        servers = " ".join(f"server {address.split('/')[2]};" for address in self.direct)
        (folder / "nginx.conf").write_text(_CONFIGURATION.format(servers=servers, port=port))
        user = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        if user:
            os.chown(folder, _NOBODY, _NOBODY)
        nginx = subprocess.Popen([NGINX, "-e", "stderr", "-p", folder, "-c", folder / "nginx.conf", "-g", "daemon off;"], **user)
        stack.callback(_end, nginx)
        while not answers(port):
            assert nginx.poll() is None
            time.sleep(0.02)
        self.address, self.log = f"http://127.0.0.1:{port}/mcp", folder / "access.log"


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.wait(120)
    if process.stdout is not None:
        process.stdout.close()


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack)


async def test_a_thousand_calls_through_two_servers_lose_nothing(servers: Servers) -> None:
    async with http_client(servers.address, ALICE) as client:
        handles = [await create(client, session_id=f"work{number}") for number in range(SESSIONS)]

        async def count(handle: str) -> list[str]:
            await text_from(client, "n = 0", session_id=handle)
            results = [
                await client.call_tool("run_python_code", {"code": "n += 1; n", "session_id": handle}) for _ in range(CALLS // SESSIONS)
            ]
            assert {answer_of(one)["state"] for one in results} == {"kept"}
            return [text_of(one) for one in results]

        counted = await asyncio.gather(*map(count, handles))
    assert counted == [[str(number + 1) for number in range(CALLS // SESSIONS)]] * SESSIONS
    used = Counter(line for line in servers.log.read_text().splitlines() if line.startswith("127.0.0.1:"))
    assert len(used) == 2
    assert min(used.values()) >= CALLS // 2


async def test_a_foreign_handle_is_refused_by_every_server(servers: Servers) -> None:
    async with http_client(servers.address, ALICE) as client:
        handle = await create(client)
        await text_from(client, "x = 1", session_id=handle)
    for address in servers.direct:
        async with http_client(address, BOB) as bob:
            assert (await text_from(bob, "x", session_id=handle)).startswith(REFUSED)
            assert text_of(await bob.call_tool("delete_session", {"session_id": handle})).startswith(REFUSED)
        async with http_client(address, ALICE) as alice:
            assert await text_from(alice, "x", session_id=handle) == "1"


async def test_what_one_server_does_the_other_knows(servers: Servers) -> None:
    first, second = servers.direct
    async with http_client(first, ALICE) as one, http_client(second, ALICE) as other:
        handle = await create(one, session_id="work")
        await text_from(other, "x = 1", session_id=handle)
        branch = (await other.call_tool("branch", {"session_id": handle})).structuredContent["session_id"]
        assert await text_from(one, "x", session_id=branch) == "1"
        await text_from(one, "kept = 1")
        assert await text_from(other, "kept") == "1"  # the session `default` of the key

        await text_from(one, "open('outputs/a.txt', 'w').write('first')", session_id=handle)
        await text_from(other, "open('outputs/a.txt', 'w').write('second')", session_id=handle)
        another = await create(one)
        assert await text_from(one, "import os; os.listdir('outputs')", session_id=another) == "[]"
        described = {tool.name: tool.description for tool in (await one.list_tools()).tools}
        assert "your other sessions" not in described["run_python_code"]
        assert "in your sessions" not in described["save_script"]
        assert await text_from(one, "open('outputs/a.txt').read()", session_id=handle) == "'second'"

        running = asyncio.create_task(text_from(one, "import time; time.sleep(600)", session_id=handle))
        async with asyncio.timeout(120):
            while "interrupted" not in text_of(await other.call_tool("interrupt", {"session_id": handle})):
                await asyncio.sleep(0.1)
            while not running.done():
                await other.call_tool("interrupt", {"session_id": handle})
                await asyncio.sleep(0.1)
        assert "KeyboardInterrupt" in running.result()

        await one.call_tool("delete_session", {"session_id": handle})
        for client in (one, other):
            assert handle not in str((await client.list_resources()).resources)
            assert (await text_from(client, "x", session_id=handle)).startswith(REFUSED)


async def test_each_display_is_read_from_the_server_that_has_it(servers: Servers) -> None:
    first, second = servers.direct
    plot = "from IPython.display import HTML; HTML('<b>{}</b>')"
    async with http_client(first, ALICE) as one, http_client(second, ALICE) as other:
        handle = await create(one)
        uris = {}
        for client, text in ((one, "first"), (other, "second")):
            code = {"code": plot.format(text), "session_id": handle}
            uris[text] = answer_of(await client.call_tool("run_python_code", code))["outputs"][0]
        assert uris["first"] != uris["second"]
        assert (await one.read_resource(uris["first"])).contents[0].text == "<b>first</b>"
        with pytest.raises(Exception, match="display"):
            await one.read_resource(uris["second"])


async def test_a_server_that_ends_leaves_the_sessions_to_the_others(servers: Servers) -> None:
    async with http_client(servers.direct[0], ALICE) as client:
        handle = await create(client)
        await text_from(client, "x = 1", session_id=handle)
        await text_from(client, "y = 1")
    with http_server("--tools", "all", "--api-key", ALICE, **servers.settings) as third:
        async with http_client(third.address, ALICE) as client:
            branch = (await client.call_tool("branch", {"session_id": handle})).structuredContent["session_id"]
            assert await text_from(client, "x", session_id=handle) == "1"
            assert await text_from(client, "y") == "1"
    async with http_client(servers.direct[1], ALICE) as client:
        assert [await text_from(client, "x", session_id=one) for one in (handle, branch)] == ["1", "1"]
        assert await text_from(client, "y") == "1"
