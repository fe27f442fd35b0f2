"""Attack other clients of the same MCP server."""

import httpx
import pytest

from aca_sessions import SessionPool, Settings
from aca_sessions.errors import InvalidArgumentError
from aca_sessions.mcp.clients import Client, Options, SharedState
from aca_sessions.mcp.handles import identity_of

from ..mcp.clients import http_client_session, http_server, run, text_of
from ..mcp.test_http import ACCEPT, INITIALIZE

pytestmark = pytest.mark.slow

NAMES = ("work", "default", "../work", "work/../work", "mcp-", "*", "", "WORK", "work\x00")


async def test_a_client_reaches_no_session_of_another(pool: SessionPool) -> None:
    """A client of the MCP server reaches no session, file, resource or name of another client, unless a session was made to be shared."""
    with http_server("--tools", "all") as server:
        async with http_client_session(server) as owner, http_client_session(server) as stranger:
            await owner.call_tool("create_session", {"session_id": "work"})
            for name in ("work", "default"):
                await run(owner, "secret = 'mine'; open('secret.txt', 'w').write('mine')", session_id=name)
            for name in NAMES:
                answers = [
                    await run(stranger, "print(globals().get('secret'))", session_id=name),
                    await stranger.call_tool("read_file", {"path": "secret.txt", "session_id": name}),
                    await stranger.call_tool("list_variables", {"session_id": name}),
                    await stranger.call_tool("delete_session", {"session_id": name}),
                ]
                assert not any("mine" in text_of(answer) for answer in answers)
            assert "work" not in text_of(await stranger.call_tool("list_sessions"))
            assert not any("secret" in str(one.uri) for one in (await stranger.list_resources()).resources)
            assert text_of(await run(owner, "secret", session_id="work")) == "'mine'"

    state = SharedState(pool, Options.of(Settings().Mcp))  # clients without a connection
    alice, bob = (Client(state, identity_of(key)) for key in ("the key of alice", "the key of bob"))
    handle = (await alice.create("work")).name
    handles = (handle, handle[:-1], f"{handle}=", f"work.{handle}", (await bob.create("work")).name[:20] + handle[20:])
    for name in {*handles, *NAMES} - {"default"}:
        await bob.admit(name)
        with pytest.raises(InvalidArgumentError, match="that create_session returned to you"):
            bob.find(name)
    assert bob.find("default").id != alice.find("default").id
    assert handle not in bob.sessions()
    await alice.admit(handle)
    assert alice.find(handle).id != bob.find(None).id


async def test_unauthorized_clients_get_no_answer() -> None:
    """The MCP server over HTTP answers no caller without its key, no page of another origin and no request to a foreign host name."""
    with http_server() as server:
        good = {"Authorization": f"Bearer {server.key}"} | ACCEPT
        strange = [
            ACCEPT,
            good | {"Authorization": f"Bearer {server.key}x"},
            good | {"Authorization": f"Bearer {server.key[:-1]}"},
            good | {"Origin": "https://evil.example"},
            good | {"Origin": "null"},
            good | {"Host": "evil.example"},
        ]
        async with httpx.AsyncClient(timeout=120) as http:
            refused = [(await http.post(server.address, json=INITIALIZE, headers=headers)).status_code for headers in strange]
            assert refused == [401, 401, 401, 403, 403, 403]
            assert (await http.post(server.address, json=INITIALIZE, headers=good)).status_code == 200
