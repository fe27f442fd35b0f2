"""Test what holds where clients give networks to their sessions."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from aca_sessions import Network, Policy, Settings, open_pool
from aca_sessions.contract import extensions
from aca_sessions.contract.records import ProblemError
from aca_sessions.errors import ServiceError
from aca_sessions.hosting import Hosting

from ..conftest import mostly_long
from ..network.upstream import Upstream
from ..server.test_session_networks import Service, expire, fetch, reached, restart, rules_for, serving, target

pytestmark = pytest.mark.slow
__all__ = ["target"]  # a fixture
Change = Callable[[Service], Awaitable[None]]


async def _evict_for_another(service: Service) -> None:
    sessions = service.sessions()
    sessions.most = 1
    for number in itertools.count():  # those that were used before it go first
        if "alice" not in sessions._sessions:
            break
        with contextlib.suppress(ProblemError):  # all are in use, for a moment
            sessions.get(f"another {number}")
        await asyncio.sleep(0.01)
    sessions.most = 100


async def _terminate_elsewhere(service: Service) -> None:
    async with service.client() as other:
        await other.terminate("alice")


async def _kill_fork_server(service: Service) -> None:
    fork_server = service.sessions()._sandboxes._generations[-1].fork_server
    os.kill(fork_server.process.pid, signal.SIGKILL)
    await asyncio.to_thread(fork_server.process.wait)


async def _kill_interpreter(service: Service) -> None:
    sandbox = await service.sessions()._sessions["alice"].sandbox()
    os.kill(sandbox.running.runtime._counted_init, signal.SIGKILL)
    while sandbox.running.alive:
        await asyncio.sleep(0.01)


async def _give_another_network(service: Service) -> None:
    async with service.client() as other:
        await other.get_or_create("alice", network=service.policy.network)
        other._leases._sessions.clear()  # its session goes on


EVENTS: dict[str, Change] = {
    "it expired": expire,
    "it was evicted": _evict_for_another,
    "it was terminated": _terminate_elsewhere,
    "the server was restarted": restart,
    "the fork server died": _kill_fork_server,
    "the interpreter died": _kill_interpreter,
    "another client gave it another network": _give_another_network,
}


@pytest.mark.parametrize("event", mostly_long([*EVENTS], every=4))
async def test_no_cell_runs_without_the_network_that_its_client_gave(event: str, target: Upstream) -> None:
    """No cell of a client that has given its session a network runs with another one, whatever ends or changes that session."""
    async with serving(rules_for(target)) as service, service.client() as pool:
        async with pool.session("bob") as wide:
            assert await reached(wide, target)
        given = Network.allow("other.test") if EVENTS[event] is _give_another_network else Network.none()
        async with pool.session("alice", network=given) as session:
            assert not await reached(session, target)
            target.requests.clear()
            for use in (
                lambda: session.run(fetch(target)),
                lambda: session.execute_command(["python3", "-c", fetch(target)]),
                lambda: session.upload_file("a.txt", b"1"),
                lambda: session.variables(),
                lambda: session.list_files(),
            ):
                await EVENTS[event](service)
                await use()
                assert not await reached(session, target)
        assert target.requests == []


@pytest.mark.parametrize(
    "rule",
    [
        {"host": "files.test", "headers": {"Authorization": "Bearer ${secret:operator}"}},
        {"host": "files.test", "identity": "https://storage.azure.com/.default"},
        {"host": "files.test", "addresses": ["127.0.0.0/8"]},
        {"host": "169.254.169.254"},
        {"host": "[::1]:8080"},
        {"host": "localhost"},
    ],
    ids=str,
)
async def test_rules_of_a_client_use_nothing_of_the_server(rule: dict[str, object]) -> None:
    """Rules that a client gives use no secret or Azure identity of its server, and lead to public addresses only."""
    operator = Network.rules([{"Host": "b.test", "Headers": {"X": "${secret:operator}"}}], secrets={"operator": "of the operator"})
    async with serving(operator, Hosting(session_rules=True)) as service, service.client() as pool:
        body = {"version": "0" * 32, "kind": "rules", "rules": [rule], "secrets": {}, "limits": {}}
        http = pool._interpreter._http
        with pytest.raises(ServiceError, match=r"answered 40[03] (SessionRequestValidationFailed|NetworkNotAllowed)"):
            await http.request("PUT", extensions.NETWORK_PATH, identifier="alice", json=body)
        assert len(service.sessions()) == 0


async def test_a_decision_of_a_client_leads_to_no_service_of_the_server() -> None:
    """What a client allows when its rules refuse it leads to public addresses only, and not to the server's own loopback."""
    service_of_host = socket.create_server(("127.0.0.1", 0))
    service_of_host.settimeout(0.1)
    connect = f"""
import socket
with socket.create_connection(("127.0.0.1", 3128)) as link:
    link.sendall(b"CONNECT localhost:{service_of_host.getsockname()[1]} HTTP/1.1\\r\\n\\r\\n")
    status = link.recv(100)
status
"""
    with service_of_host:
        async with (
            serving(Network.none(), Hosting(session_rules=True)) as service,
            service.client() as pool,
            pool.session("alice", network=Network.allow("a.test"), on_denied=lambda _: "always") as session,
        ):
            assert " 403 " in str((await session.run(connect)).value)
        with pytest.raises(TimeoutError):
            service_of_host.accept()


async def test_a_flood_of_requests_fills_no_audit_log(tmp_path: Path) -> None:
    """A session that floods the network with allowed or refused requests writes a bounded number of lines to the audit log."""
    audit = tmp_path / "audit.jsonl"
    flood = """
import socket
for number in range(2000):
    with socket.create_connection(("127.0.0.1", 3128)) as link:
        link.sendall(b"CONNECT %d.test:443 HTTP/1.1\\r\\n\\r\\n" % number)
        link.recv(100)
"""
    async with (
        open_pool(Settings(Audit={"File": str(audit)}), policy=Policy(preload=(), spares=0)) as pool,
        pool.session(network=Network.allow("a.test")) as session,
    ):
        assert (await session.run(flood)).error is None
    lines = [line for line in map(json.loads, audit.read_text().splitlines()) if line["event"] == "network"]
    assert 60 <= len(lines) < 200
    assert sum(line.get("unsaid_before", 0) for line in lines) + len([line for line in lines if "host" in line]) == 2000
