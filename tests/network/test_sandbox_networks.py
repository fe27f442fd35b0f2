"""Test that sandboxes of one policy can have networks of their own."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from aca_sessions import Network, Policy
from aca_sessions.models import CodeExecutionResult, Event
from aca_sessions.sandbox.forkserver import ForkServer
from aca_sessions.sandbox.sandbox import Sandbox
from aca_sessions.sandbox.sandboxes import Sandboxes

from .upstream import Upstream, upstream

pytestmark = pytest.mark.slow
GET = "import urllib.request as u; u.urlopen('{}', timeout=60).read().decode()"
PROXY = "import os; 'HTTP_PROXY' in os.environ"
INSPECTED = Network.rules([{"Host": "a.test", "Methods": ["GET"]}])


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Upstream]:
    with upstream(tmp_path, monkeypatch, tls=False) as server:
        yield server


def reaching(target: Upstream) -> tuple[str, Network]:
    """Return a URL of the target, and a network that allows it."""
    host = f"files.test:{target.port}"
    return f"http://{host}/x", Network.rules([{"Host": host, "Addresses": ["127.0.0.0/8"]}])


async def run(sandbox: Sandbox, code: str) -> CodeExecutionResult:
    return await (await sandbox.interpreter()).run("e", code, 60.0)


async def test_policies_without_the_hosts_network_share_a_fork_server() -> None:
    servers = [ForkServer.shared(Policy(network=network, preload=())) for network in (Network.none(), Network.allow("a.test"), INSPECTED)]
    for server in servers:
        server.release()
    assert len({id(server) for server in servers}) == 1


@pytest.mark.parametrize("policy", [Network.none(), Network.allow("a.test")], ids=["none", "allow"])
async def test_a_sandbox_has_the_network_that_is_asked_for(policy: Network, target: Upstream, nothing_left: None) -> None:
    url, given = reaching(target)
    async with Sandboxes(Policy(network=policy, preload=(), spares=0)) as sandboxes:
        opened = [await sandboxes.open(given), await sandboxes.open(), await sandboxes.open(Network.none())]
        results = [await run(sandbox, GET.format(url)) for sandbox in opened]
        assert [result.value for result in results] == ["GET /x", None, None]
        assert [(await run(sandbox, PROXY)).value for sandbox in opened] == [True, policy.is_proxied, False]
        assert [sandbox.fits(given) for sandbox in opened] == [True, policy.is_proxied, False]
        for sandbox in opened:
            await sandbox.close()


async def test_a_policy_with_the_hosts_network_has_sandboxes_without_it(target: Upstream, nothing_left: None) -> None:
    look = f"import socket; socket.create_connection(('127.0.0.1', {target.port})).close(); 'connected'"
    async with Sandboxes(Policy(network=Network.host(), preload=(), spares=0)) as sandboxes:
        opened = [await sandboxes.open(), await sandboxes.open(Network.none()), await sandboxes.open(Network.allow("a.test"))]
        assert [(await run(sandbox, look)).value for sandbox in opened] == ["connected", None, None]
        assert [sandbox.fits(Network.none()) for sandbox in opened] == [False, True, True]
        assert [sandbox.fits(Network.host()) for sandbox in opened] == [True, False, False]
        for sandbox in opened:
            await sandbox.close()


async def test_a_spare_is_used_if_it_fits() -> None:
    async with Sandboxes(Policy(network=Network.allow("a.test"), preload=(), spares=1)) as sandboxes:
        await sandboxes.start()
        await sandboxes._add_spare()
        (spare,) = sandboxes._spares
        inspected, other = await sandboxes.open(INSPECTED), await sandboxes.open(Network.allow("b.test"))
        assert inspected is not spare  # it trusts no authority
        assert other is spare
        assert other.network.network.domains == ("b.test",)
        for sandbox in (inspected, other):
            await sandbox.close()


async def test_rules_that_need_an_authority_fit_only_a_session_that_trusts_one() -> None:
    async with Sandboxes(Policy(preload=(), spares=0)) as sandboxes:
        plain, inspected = await sandboxes.open(Network.allow("a.test")), await sandboxes.open(INSPECTED)
        assert plain.fits(INSPECTED)  # its interpreter will be started with the authority
        for sandbox in (plain, inspected):
            await run(sandbox, "1")
        assert (plain.fits(INSPECTED), inspected.fits(INSPECTED)) == (False, True)
        plain.network.replace(INSPECTED)
        await plain.reset()
        await run(plain, "1")
        assert plain.fits(INSPECTED)
        for sandbox in (plain, inspected):
            await sandbox.close()


async def test_branches_share_the_rules_and_what_is_used_of_them(target: Upstream) -> None:
    url, given = reaching(target)
    async with Sandboxes(Policy(preload=(), spares=0)) as sandboxes:
        sandbox = await sandboxes.open(given)
        assert (await run(sandbox, GET.format(url))).value == "GET /x"
        branch = await sandbox.branch()
        assert branch.network is sandbox.network
        sandbox.network.replace(Network.none())
        for one in (sandbox, branch):
            assert (await run(one, GET.format(url))).error.name == "HTTPError"
        for one in (branch, sandbox):
            await one.close()


async def test_a_sandbox_goes_on_with_the_rules_of_another_one() -> None:
    async with Sandboxes(Policy(network=Network.allow("a.test"), preload=(), spares=0)) as sandboxes:
        first, second = await sandboxes.open(), await sandboxes.open()
        await run(first, "1")
        await run(second, "1")
        rules = first.network
        await first.close()
        second.use_network(rules)
        asked = []

        def tell(event: Event) -> None:
            if event.kind == "network":
                asked.append(json.loads(event.text)["host"])
                second.running.answer("e", event.number, None)

        await second.running.run("e", GET.format("http://b.test/"), 60.0, tell=tell, question_kinds=("network",))
        assert (second.network is rules, asked) == (True, ["b.test"])
        await second.close()
