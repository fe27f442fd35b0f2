"""Test that clients give networks to their sessions, and that no cell of such a client runs with another network."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from aca_sessions import (
    CodeInterpreter,
    InteractiveSession,
    Network,
    NetworkLimits,
    Policy,
    Session,
    SessionPool,
    Settings,
    open_pool,
    open_server,
)
from aca_sessions.client.http import SessionsHttpClient
from aca_sessions.contract import extensions
from aca_sessions.contract.records import ProblemError
from aca_sessions.errors import InvalidArgumentError, NotSupportedError, SecretError, ServiceError
from aca_sessions.hints import Remedies, hint
from aca_sessions.hosting import Hosting
from aca_sessions.network.given import GivenNetwork
from aca_sessions.network.secrets import Secret, SecretStore

from ..network.upstream import Upstream, upstream

pytestmark = pytest.mark.slow
SECRET = "s3cr3t-of-alice"
OPEN = Hosting(session_rules=True, session_addresses=True)


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Upstream]:
    with upstream(tmp_path, monkeypatch, tls=False) as server:
        yield server


def rules_for(target: Upstream, **more: Any) -> Network:
    return Network.rules([{"Host": f"files.test:{target.port}", "Addresses": ["127.0.0.0/8"]}], **more)


def fetch(target: Upstream) -> str:
    """Return a cell whose value is the response, or the name of the error."""
    reach = f"urllib.request.urlopen('http://files.test:{target.port}/x', timeout=60).read().decode()"
    return f"import urllib.request\ntry: found = {reach}\nexcept OSError as error: found = type(error).__name__\nfound"


async def reached(session: Session, target: Upstream) -> bool:
    result = await session.run(fetch(target))
    assert result.value in ("GET /x", "HTTPError", "URLError"), result
    return result.value == "GET /x"


@dataclass
class Service:
    """A server behind an address that stays the same when another one takes its place."""

    policy: Policy
    hosting: Hosting = OPEN
    store: Path | None = None
    app: Any = None
    opening: Any = None

    async def __call__(self, *arguments: Any) -> None:
        await self.app(*arguments)

    async def start(self) -> None:
        settings = Settings(Durable={"Store": f"file://{self.store}"} if self.store else {})
        self.opening = open_server(settings, policy=self.policy, hosting=self.hosting)
        self.app = await self.opening.__aenter__()

    async def stop(self) -> None:
        await self.opening.__aexit__(None, None, None)

    def sessions(self) -> Any:
        return self.app._sessions

    @asynccontextmanager
    async def client(self) -> AsyncIterator[SessionPool]:
        http = SessionsHttpClient(httpx.AsyncClient(transport=httpx.ASGITransport(self), base_url="http://service"))
        async with CodeInterpreter(http) as interpreter, SessionPool(interpreter) as pool:
            yield pool


@asynccontextmanager
async def serving(network: Network, hosting: Hosting = OPEN, store: Path | None = None) -> AsyncIterator[Service]:
    service = Service(Policy(network=network, preload=(), spares=0), hosting, store)
    await service.start()
    try:
        yield service
    finally:
        await service.stop()


async def expire(service: Service) -> None:
    sessions = service.sessions()
    for session in [*sessions._sessions.values()]:
        sessions._expire(session, "expired")
        await asyncio.sleep(0)


async def restart(service: Service) -> None:
    await service.stop()
    await service.start()


async def test_a_request_for_a_session_without_the_network_begins_nothing(target: Upstream) -> None:
    query = {"api-version": "2025-10-02-preview", "identifier": "alice"}
    cell = {"json": {"code": "open('/mnt/data/ran', 'w').close()"}}
    async with serving(rules_for(target)) as service:
        transport = httpx.ASGITransport(service)
        headers = {extensions.NETWORK_HEADER: "0123456789abcdef"}
        async with httpx.AsyncClient(transport=transport, base_url="http://service", params=query, headers=headers) as http:
            for method, path, options in (
                ("POST", "/executions", cell),
                ("POST", "/files", {"files": {"file": ("a", b"x")}}),
                ("GET", "/files", {}),
                ("POST", "/session/packages", {"json": {"requirements": ["x"], "timeout": 10}}),
                ("POST", "/session/checkpoints", {}),
                ("POST", "/session/rollback", {}),
                ("POST", "/session/branches", {"json": {"identifiers": ["b"], "reseed": True}}),
                ("POST", "/session/reset", {}),
                ("POST", "/session/export", {}),
            ):
                answer = await http.request(method, path, **options)
                assert (answer.status_code, answer.json()["error"]["code"]) == (428, "NetworkMissing"), path
            assert len(service.sessions()) == 0
            service.sessions().get("alice")  # one of another client, with the policy's network
            assert (await http.post("/executions", **cell)).status_code == 428
            del http.headers[extensions.NETWORK_HEADER]
            assert (await http.get("/files")).json() == {"value": []}


@pytest.mark.parametrize("policy", ["none", "allow", "host"])
async def test_a_session_has_the_network_that_was_given_and_others_that_of_the_policy(policy: str, target: Upstream) -> None:
    network = {"none": Network.none(), "allow": Network.allow("other.test"), "host": Network.host()}[policy]
    async with serving(network) as service, service.client() as pool:
        async with pool.session("alice", network=rules_for(target)) as session, pool.session("bob") as other:
            assert await reached(session, target)
            assert not await reached(other, target)  # the host knows no such name
            await session.reset()
            assert await reached(session, target)
            await session.checkpoint()
            await session.rollback()
            assert await reached(session, target)
            await session.set_network(Network.none())
            assert not await reached(session, target)
            await session.set_network(rules_for(target))
            assert await reached(session, target)
        async with pool.session("alice") as again:
            assert await reached(again, target)
        await pool.terminate("alice")
        async with pool.session("alice") as new:
            assert not await reached(new, target)


async def test_a_session_that_was_not_used_yet_may_be_given_any_network(target: Upstream, nothing_left: None) -> None:
    async with serving(Network.none()) as service, service.client() as pool:
        session = await pool.get_or_create("alice")
        assert await session.list_files() == []  # it has begun
        await session.set_network(rules_for(target))
        assert await reached(session, target)


async def test_a_session_with_state_and_without_a_proxy_keeps_its_network(target: Upstream) -> None:
    async with serving(Network.none()) as service, service.client() as pool, pool.session("alice") as session:
        await session.run("x = 1")
        with pytest.raises(ServiceError, match="it runs without a proxy, and it has variables") as refused:
            await session.set_network(rules_for(target))
        assert (refused.value.status_code, refused.value.code) == (409, "NetworkFixed")
        await session.set_network(Network.none())
        assert (await session.run("x")).value == 1
        with pytest.raises(ServiceError, match="it runs without a proxy"):
            await session.set_network(rules_for(target))
        assert (await session.run("x")).value == 1  # in the network that it has


async def test_a_session_that_trusts_no_authority_is_given_no_rules_that_need_one(target: Upstream) -> None:
    inspected = Network.rules([{"Host": "files.test", "Methods": ["GET"]}])
    async with serving(Network.none()) as service, service.client() as pool:
        async with pool.session("alice", network=rules_for(target)) as session:
            await session.run("x = 1")
            with pytest.raises(ServiceError, match="does not trust the certificates"):
                await session.set_network(inspected)
            assert await reached(session, target)
            await session.reset()
            await session.set_network(inspected)  # its next interpreter will
            assert (await session.run("import os; 'SSL_CERT_FILE' in os.environ")).value is True
        async with pool.session("bob", network=inspected) as session:
            await session.run("x = 1")
            await session.set_network(rules_for(target))
            assert await reached(session, target)


async def test_branches_share_the_network_of_their_session(target: Upstream) -> None:
    async with (
        serving(Network.none()) as service,
        service.client() as pool,
        pool.session("alice", network=rules_for(target)) as session,
    ):
        await session.run("x = 1")
        (branch,) = await session.branch()
        assert await reached(branch, target)
        await branch.set_network(Network.none())
        assert [await reached(one, target) for one in (session, branch)] == [False, False]
        await session.set_network(rules_for(target))
        assert [await reached(one, target) for one in (session, branch)] == [True, True]
        await service.sessions().delete(branch.session_id)
        await session.set_network(Network.none())
        assert not await reached(branch, target)  # it begins again
        await branch.close()


async def test_all_leases_of_a_session_share_its_network(target: Upstream) -> None:
    async with serving(rules_for(target)) as service, service.client() as pool:
        narrow = Network.allow("other.test")
        one, two = await pool.get_or_create("alice", network=narrow), await pool.get_or_create("alice")
        assert [await reached(session, target) for session in (one, two)] == [False, False]
        await two.set_network(rules_for(target))
        assert await reached(one, target)
        await asyncio.gather(*(pool.get_or_create("alice", network=narrow) for _ in range(5)))
        await expire(service)
        assert await asyncio.gather(*(reached(session, target) for session in (one, two))) == [False, False]


async def test_an_object_whose_session_was_terminated_keeps_the_network(target: Upstream) -> None:
    async with serving(rules_for(target)) as service, service.client() as pool:
        session = await pool.get_or_create("alice", network=Network.none())
        await pool.terminate("alice")
        assert not await reached(session, target)
        async with pool.session("alice") as other:  # the session that this object has begun
            assert not await reached(other, target)
        await pool.terminate("alice")
        async with pool.session("alice") as new:
            assert await reached(new, target)
        target.requests.clear()
        for turns in range(0, 40, 2):  # it is ended in the middle of a call
            running = asyncio.create_task(session.run(fetch(target)))
            for _ in range(turns):
                await asyncio.sleep(0)
            await pool.terminate("alice")
            await running
        assert target.requests == []


async def test_clients_with_different_networks_have_each_its_own_in_turn(target: Upstream) -> None:
    async with (
        serving(Network.none()) as service,
        service.client() as one,
        service.client() as two,
        one.session("alice", network=rules_for(target)) as wide,
        two.session("alice", network=Network.none()) as narrow,
    ):
        assert [await reached(session, target) for session in (wide, narrow, wide, narrow)] == [True, False, True, False]
        two._leases._sessions.clear()  # the other one ends it


async def test_limits_of_a_session_go_on_when_rules_are_replaced_or_it_is_rolled_back(target: Upstream, tmp_path: Path) -> None:
    limits = NetworkLimits(requests=3)
    async with (
        serving(Network.none(), store=tmp_path / "store") as service,
        service.client() as pool,
        pool.session("alice", network=rules_for(target, limits=limits)) as session,
    ):
        checkpoint = await session.checkpoint(durable=True)
        assert await reached(session, target)
        await session.set_network(rules_for(target, limits=limits))
        assert await reached(session, target)
        (await service.sessions()._sessions["alice"].sandbox())._checkpoints._checkpoints = []  # it is in the store only
        await session.rollback(checkpoint)
        assert [await reached(session, target) for _ in range(2)] == [True, False]


async def test_a_restored_session_has_the_network(target: Upstream, tmp_path: Path) -> None:
    async with (
        serving(rules_for(target), store=tmp_path / "store") as service,
        service.client() as pool,
        pool.session("alice", network=Network.none()) as session,
    ):
        await session.run("x = 1")
        await session.save()
        await restart(service)
        assert not await reached(session, target)
        assert (await session.run("x")).value == 1
        for file in (tmp_path / "store").rglob("*"):
            assert not file.is_file() or b"none" not in file.name.encode()


async def test_a_server_refuses_networks_of_clients_unless_it_was_told(target: Upstream) -> None:
    async with serving(Network.none(), Hosting()) as service, service.client() as pool:
        with pytest.raises(ServiceError, match="start it with --session-rules") as refused:
            async with pool.session("alice", network=Network.allow("example.org")):
                pass
        assert (refused.value.status_code, refused.value.code) == (403, "NetworkNotAllowed")
        assert pool.active() == [] or not pool.active()[0].is_active
        async with pool.session("alice", network=Network.none()) as session:
            assert (await session.run("6 * 7")).value == 42
    async with (
        serving(Network.host(), Hosting()) as service,
        service.client() as pool,
        pool.session("alice", network=Network.allow("example.org")) as session,  # narrower
    ):
        assert not await reached(session, target)


@pytest.mark.parametrize(
    "rule",
    [
        {"Host": "files.test", "Addresses": ["127.0.0.0/8"]},
        {"Host": "169.254.169.254"},
        {"Host": "10.0.0.1:8080"},
        {"Host": "::1"},
        {"Host": "localhost"},
    ],
    ids=lambda rule: rule["Host"],
)
async def test_a_server_accepts_from_clients_only_rules_for_public_addresses(rule: dict[str, Any]) -> None:
    async with serving(Network.none(), Hosting(session_rules=True)) as service, service.client() as pool:
        with pytest.raises(ServiceError, match="rules of clients must be for public addresses, got one for"):
            await pool.get_or_create("alice", network=Network.rules([rule]))
        await pool.get_or_create("alice", network=Network.allow("example.org", "93.184.215.14"))


async def test_other_endpoints_say_that_they_cannot() -> None:
    async with serving(Network.none(), Hosting(plain=True)) as service, service.client() as pool:
        for network in (Network.none(), Network.allow("example.org")):
            with pytest.raises(NotSupportedError, match="sessionNetworkConfiguration with the status EgressEnabled"):
                await pool.get_or_create("alice", network=network)
        async with pool.session() as session:
            assert (await session.run("1")).success


@pytest.mark.parametrize("network", [Network.host(), "example.org", {"Rules": []}])
async def test_what_no_session_can_be_given_is_refused(network: Any) -> None:
    async with open_pool(policy=Policy(preload=(), spares=0)) as pool, pool.session() as session:
        with pytest.raises(InvalidArgumentError, match="etwork"):
            await session.set_network(network)


def test_a_blocking_session_takes_a_network(target: Upstream) -> None:
    with InteractiveSession(policy=Policy(preload=(), spares=0), network=rules_for(target)) as session:
        assert session.run(fetch(target)).value == "GET /x"
        session.set_network(Network.none())
        assert session.run(fetch(target)).value == "HTTPError"


async def test_a_call_that_is_cancelled_at_any_step_leaves_the_session_usable(target: Upstream) -> None:
    async with serving(rules_for(target)) as service, service.client() as pool:
        async with pool.session("alice", network=Network.none()) as session:
            for turns in range(0, 60, 3):
                await expire(service)
                running = asyncio.create_task(session.run(fetch(target)))
                for _ in range(turns):
                    await asyncio.sleep(0)
                running.cancel()
                await asyncio.wait({running})
            assert not await reached(session, target)
        assert target.requests == []


async def test_secrets_reach_no_message_log_or_audit_line(target: Upstream, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    audit = tmp_path / "audit.jsonl"
    caplog.set_level("DEBUG")
    rule = {"Host": "files.test", "Headers": {"Authorization": "Bearer ${secret:token}"}}
    given = Network.rules([rule], secrets={"token": SECRET})
    async with (
        serving(Network.none(), Hosting(session_rules=True, audit=str(audit))) as service,
        service.client() as pool,
        pool.session("alice", network=given) as session,
    ):
        await session.run("1")
        shown = [repr(one) for one in (given, session._network, service.sessions()._sessions["alice"].network.given)]
        with pytest.raises(ServiceError) as refused:
            await session.set_network(Network.rules([{**rule, "Host": "10.0.0.1"}], secrets={"token": SECRET}))
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [(line["kind"], line["rules"]) for line in lines if line["event"] == "network_given"] == [("rules", 1)]
    assert SECRET not in "".join([*shown, str(refused.value), audit.read_text(), caplog.text])


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "host"},
        {"kind": None},
        {"version": "short"},
        {"rules": {}},
        {"rules": [{}]},
        {"rules": ["a.test"]},
        {"rules": [{"host": "a.test"}] * 201},
        {"rules": []},
        {"rules": [{"host": "a.test", "identity": "https://vault.azure.net/.default"}]},
        {"rules": [{"host": "a.test", "methods": "GET"}]},
        {"rules": [{"host": "a.test", "methods": [1]}]},
        {"rules": [{"host": "a.test", "paths": ["/../x"]}]},
        {"rules": [{"host": "a.test", "requests": True}]},
        {"rules": [{"host": "a.test", "headers": {"Authorization": "${secret:unknown}" + SECRET}}]},
        {"rules": [{"host": "a.test", "headers": {"X": f"{SECRET}\n"}}]},
        {"rules": [{"host": "a.test", "headers": {"X": [SECRET]}}]},
        {"secrets": {"token": f"{SECRET}\r\nX: 1"}},
        {"secrets": {"token": [SECRET]}},
        {"secrets": {"a name": SECRET}},
        {"secrets": {str(number): SECRET for number in range(101)}},
        {"limits": {"bandwidth": 1}},
        {"limits": {"requests": 0}},
        {"limits": {"requests": "1"}},
        {"more": 1},
    ],
    ids=str,
)
def test_a_malformed_network_is_refused_without_its_secrets(change: dict[str, Any]) -> None:
    good = {"version": "0" * 32, "kind": "rules", "rules": [{"host": "a.test"}], "secrets": {"token": SECRET}, "limits": {"requests": 1}}
    version, network = extensions.decode_network(good)
    assert (version, network.domains, [*network.secrets], network.limits.requests) == ("0" * 32, ("a.test",), ["token"], 1)
    with pytest.raises(ProblemError) as refused:
        extensions.decode_network(good | change)
    assert refused.value.status == 400
    assert SECRET not in str(refused.value)
    assert refused.value.__context__ is None


async def test_values_of_secrets_are_read_again_once_a_minute_and_sent_if_they_have_changed() -> None:
    now, values, tokens = [0.0], ["first"], ["one", "two"]
    rules = [
        {"Host": "a.test", "Headers": {"Authorization": "Bearer ${secret:token}"}},
        {"Host": "b.test", "Identity": "https://storage.azure.com/.default", "Headers": {"X": "1"}},
    ]
    given = GivenNetwork(Network.rules(rules, secrets={"token": lambda: values[-1], "unused": "x"}), clock=lambda: now[0])

    async def token(_scope: str) -> str:
        return tokens[0]

    given._store.token = token  # type: ignore[method-assign]
    given._store._clock = lambda: now[0]
    unset = given.version
    network, secrets = await given.resolve()
    first = given.version
    assert first != unset
    assert secrets == {"token": "first", "identity-1": "one"}
    assert [(rule.identity, dict(rule.headers)) for rule in network.hosts] == [
        (None, {"Authorization": "Bearer ${secret:token}"}),
        (None, {"X": "1", "Authorization": "Bearer ${secret:identity-1}"}),
    ]
    values.append("second")
    now[0] = 59.0
    assert given.is_fresh
    assert (await given.resolve(), given.version) == ((network, secrets), first)
    now[0] = 61.0
    assert not given.is_fresh
    assert (await given.resolve())[1]["token"] == "second"
    second = given.version
    assert second != first
    now[0] = 122.0
    await given.resolve()
    assert (given.version, given.is_fresh) == (second, True)
    tokens.pop(0)
    now[0] = 183.0
    assert (await given.resolve())[1]["identity-1"] == "two"
    assert given.version not in (first, second)
    version, sent = extensions.decode_network(extensions.encode_network(given.version, *await given.resolve()))
    assert (version, sent.hosts) == (given.version, network.hosts)
    assert [await SecretStore(sent.secrets).get(name) for name in ("token", "identity-1")] == ["second", "two"]


async def test_a_cell_is_not_run_if_a_secret_cannot_be_read(target: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    rule = {"Host": "files.test", "Headers": {"Authorization": "Bearer ${secret:token}"}}
    given = Network.rules([rule], secrets={"token": Secret.environment("TOKEN")})
    async with serving(Network.none()) as service, service.client() as pool:
        async with pool.session("alice", network=given) as session:
            await session.run("x = 1")
            assert session._network is not None
            session._network._clock = lambda: 1e12  # over a minute later
            monkeypatch.delenv("TOKEN")
            with pytest.raises(SecretError, match="TOKEN is not set"):
                await session.run("x = 2")
            monkeypatch.setenv("TOKEN", "another")
            assert (await session.run("x")).value == 1
            sent = service.sessions()._sessions["alice"].network.given.network.secrets
            assert await SecretStore(sent).get("token") == "another"
        monkeypatch.delenv("TOKEN")
        with pytest.raises(SecretError, match="TOKEN is not set"):
            await pool.get_or_create("bob", network=given)
        assert "bob" not in [info.session_id for info in pool.active() if info.is_active]


async def test_a_token_of_a_client_is_sent_and_masked_also_after_it_was_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    with upstream(tmp_path, monkeypatch) as site:
        rule = {"Host": f"api.site.test:{site.port}", "Addresses": ["127.0.0.0/8"], "Headers": {"Authorization": "Bearer ${secret:token}"}}
        given = Network.rules([rule], secrets={"token": Secret.environment("TOKEN")})
        echo = "urllib.request.urlopen(urllib.request.Request('https://api.site.test:{}/echo', data={!r}.encode())).read().decode()"
        async with serving(Network.none()) as service, service.client() as pool, pool.session("alice", network=given) as session:
            first = await session.run(f"import urllib.request; {echo.format(site.port, 'nothing')}")
            assert site.requests[-1].header("authorization") == [f"Bearer {SECRET}"]
            assert session._network is not None
            session._network._clock = lambda: 1e12  # over a minute later
            monkeypatch.setenv("TOKEN", "renewed-token-of-alice")
            second = await session.run(echo.format(site.port, f"{SECRET[:5]}-{SECRET}"))
            assert site.requests[-1].header("authorization") == ["Bearer renewed-token-of-alice"]
            assert site.requests[-1].body.decode() == f"{SECRET[:5]}-{SECRET}"
            masked = f"{SECRET[:5]}-{'*' * len(SECRET)}"  # the site has kept the earlier one
            assert (SECRET in str(first.value), "renewed-token" in str(second.value)) == (False, False)
            assert masked in str(second.value)
            await session.reset()
            await service.sessions().delete("alice")
            assert "renewed-token" not in str((await session.run(f"import urllib.request; {echo.format(site.port, 'x')}")).value)
            assert site.requests[-1].header("authorization") == ["Bearer renewed-token-of-alice"]


async def test_hints_are_about_the_network_of_the_session() -> None:
    async with open_pool(policy=Policy(preload=(), spares=0)) as pool:
        async with pool.session("alice", network=Network.rules([{"Host": "a.test", "Methods": ["GET"]}])) as session:
            result = await session.run("import urllib.request; urllib.request.urlopen('https://b.test')")
            told = hint(result, pool._access_of("alice"), Remedies(""))
            assert told == "this session reaches only these domains, by HTTP and HTTPS: a.test (GET)"
        assert hint(result, pool._access_of("bob"), Remedies("")).startswith("this session has no network")
