"""Test the rules in force for one session: decisions about denials, and limits."""

import asyncio

import pytest

from aca_sessions import Denial, Network, NetworkLimits, Rule
from aca_sessions.network.denials import Decision
from aca_sessions.sandbox.proxy.session_network import DeniedError, LimitReachedError, MalformedError, SessionNetwork, deciding

HOST = {"Host": "a.test", "Methods": ["GET"], "Paths": ["/open/**"]}


class Person:
    """Answers each denial with the next answer, when `ready` is set."""

    def __init__(self, *answers: Decision) -> None:
        self.answers, self.asked, self.ready = [*answers], list[Denial](), asyncio.Event()
        self.ready.set()

    async def __call__(self, denial: Denial) -> Decision:
        self.asked.append(denial)
        await self.ready.wait()
        return self.answers.pop(0)


def asking(person: Person | None, network: Network) -> SessionNetwork:
    """Return a network for which the person is asked, as for a connection of a cell."""
    deciding.set(person)
    return SessionNetwork(network)


async def ask(network: SessionNetwork, method: str = "POST", target: str = "/open/x", host: str = "a.test") -> Rule:
    return await network.rule_for(await network.rules_for(host, 443), host, 443, (method, target), set())


async def test_a_denial_without_a_person_to_ask_is_refused_with_what_is_allowed() -> None:
    network = asking(None, Network.rules([HOST]))
    assert (await ask(network, "GET")).host == "a.test"
    with pytest.raises(DeniedError, match=r"rules: POST a.test/open/x; allowed: GET /open/\*\*$"):
        await ask(network)
    with pytest.raises(DeniedError, match=r"rules: a connection to b.test; allowed: the hosts a.test$"):
        await ask(network, host="b.test")


async def test_once_allows_one_request_and_always_the_same_ones() -> None:
    person = Person("once", "always", "refuse", "refuse")
    network = asking(person, Network.rules([HOST]))
    await ask(network)
    await ask(network)
    await ask(network)  # allowed from now on
    assert len(person.asked) == 2
    for method, target in (("PUT", "/open/x"), ("POST", "/open/y")):
        with pytest.raises(DeniedError):
            await ask(network, method, target)
    assert [str(one) for one in person.asked[2:]] == ["PUT a.test/open/x", "POST a.test/open/y"]


async def test_requests_that_wait_for_a_decision_about_the_same_one_use_it() -> None:
    person = Person("always")
    person.ready.clear()
    network = asking(person, Network.rules([HOST]))
    tasks = [asyncio.create_task(ask(network)) for _ in range(10)]
    await asyncio.sleep(0)
    person.ready.set()
    assert {rule.host for rule in await asyncio.gather(*tasks)} == {"a.test"}
    assert len(person.asked) == 1


async def test_a_flood_of_denials_waits_in_a_bounded_queue() -> None:
    person = Person(*["once"] * 100)
    person.ready.clear()
    network = asking(person, Network.rules([HOST]))
    tasks = [asyncio.create_task(ask(network, target=f"/open/{number}")) for number in range(100)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert sum(task.done() for task in tasks) == 84
    person.ready.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(result, DeniedError) for result in results) == 84


async def test_a_request_that_is_cancelled_while_it_waits_leaves_the_others_their_turn() -> None:
    person = Person("once", "once")
    person.ready.clear()
    network = asking(person, Network.rules([HOST]))
    first, second = asyncio.create_task(ask(network)), asyncio.create_task(ask(network, target="/open/y"))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait({first})
    person.ready.set()
    assert (await second).host == "a.test"
    assert network._waiting == 0


async def test_a_rule_that_is_replaced_while_a_person_thinks_counts_as_it_is_then() -> None:
    person = Person("always", "refuse")
    person.ready.clear()
    network = asking(person, Network.rules([HOST]))
    task = asyncio.create_task(ask(network, host="b.test", method="GET"))
    await asyncio.sleep(0)
    network.replace(Network.rules([HOST, {"Host": "b.test", "Methods": ["PUT"], "Headers": {"X": "key"}}]))
    person.ready.set()
    with pytest.raises(DeniedError, match=r"GET b.test/open/x; allowed: PUT$"):
        await task
    assert person.asked[1].headers == ("x",)


async def test_an_allowed_request_gets_no_headers_of_rules_that_came_meanwhile() -> None:
    person = Person("always")
    person.ready.clear()
    network = asking(person, Network.rules([HOST]))
    task = asyncio.create_task(ask(network))
    await asyncio.sleep(0)
    network.replace(Network.rules([{**HOST, "Headers": {"X": "key"}}]))
    person.ready.set()
    with pytest.raises(DeniedError):
        await task
    assert network._allowed == []


async def test_a_request_that_was_allowed_from_now_on_is_asked_about_again_with_other_headers() -> None:
    person = Person("always", "refuse")
    network = asking(person, Network.rules([HOST]))
    await ask(network)
    network.replace(Network.rules([{**HOST, "Headers": {"X": "key"}}]))
    with pytest.raises(DeniedError):
        await ask(network)
    assert [denial.headers for denial in person.asked] == [(), ("x",)]


@pytest.mark.parametrize(
    ("host", "port"),
    [("10.0.0.1", 443), ("169.254.169.254", 443), ("::1", 443), ("localhost", 8443), ("intranet", 8443), ("b.test", 0), ("b.test", 70_000)],
)
async def test_a_person_is_not_asked_about_what_only_a_rule_may_name(host: str, port: int) -> None:
    person = Person("always")
    network = asking(person, Network.rules([HOST, {"Host": "*"}]))
    with pytest.raises(DeniedError):
        await network.rules_for(host, port)
    assert not person.asked
    assert not network._allowed


@pytest.mark.parametrize(
    ("method", "target", "header"),
    [
        ("TRACE", "/open/x", None),
        ("GET", "/open/../x", None),
        ("GET", "/open/%2e%2e/x", None),
        ("GET", "/open/x", b"x-http-method-override"),
        ("GET", "/open/x", b"x-original-url"),
        ("GET", "/open/x", b"x_http_method-override"),
        ("GET", "/open/x", b"x_original_url"),
    ],
)
async def test_a_person_is_not_asked_about_a_request_that_hides_what_it_is(method: str, target: str, header: bytes | None) -> None:
    person = Person("always")
    network = asking(person, Network.rules([HOST]))
    with pytest.raises(DeniedError) as refused:
        await network.rule_for(await network.rules_for("a.test", 443), "a.test", 443, (method, target), {header} if header else set())
    assert isinstance(refused.value, MalformedError) is (method == "GET")
    assert not person.asked


async def test_an_allowed_request_has_the_headers_of_its_host_if_all_rules_agree() -> None:
    keyed = {**HOST, "Headers": {"Authorization": "key"}}
    person = Person("once", "once")
    rule = await ask(asking(person, Network.rules([keyed, {**keyed, "Methods": ["PUT"]}])))
    assert rule.headers == {"Authorization": "key"}
    rule = await ask(asking(person, Network.rules([keyed, {**HOST, "Methods": ["PUT"]}])))
    assert rule.headers == {}
    assert [denial.headers for denial in person.asked] == [("authorization",), ()]


async def test_limits_of_requests_bytes_and_connections() -> None:
    rules = [{"Host": "a.test", "Requests": 2, "Megabytes": 1, "Connections": 1}, {"Host": "b.test"}]
    network = SessionNetwork(Network.rules(rules, limits=NetworkLimits(requests=4, megabytes=3)))
    (a,), (b,) = await network.rules_for("a.test", 443), await network.rules_for("b.test", 443)
    with network.open_connection(a), pytest.raises(LimitReachedError, match=r"1 connections to a.test"), network.open_connection(a):
        pass
    network.count_request(a)
    network.count_bytes(a, 1 << 20)
    with pytest.raises(LimitReachedError, match=r"1 MB to a.test"):
        network.count_bytes(a, 1)
    with pytest.raises(LimitReachedError, match=r"1 MB to a.test"):
        network.count_request(a)
    network.replace(Network.rules(rules, limits=NetworkLimits(requests=4, megabytes=3)))  # limits of rules begin again
    (a,), (b,) = await network.rules_for("a.test", 443), await network.rules_for("b.test", 443)
    network.count_request(a)
    network.count_request(a)
    with pytest.raises(LimitReachedError, match=r"2 requests to a.test"):
        network.count_request(a)
    network.count_request(b)
    with pytest.raises(LimitReachedError, match="allows 4 requests, and"):
        network.count_request(b)
    network.count_bytes(b, (2 << 20) - 1)
    with pytest.raises(LimitReachedError, match="allows 3 MB, and"):
        network.count_bytes(b, 1)
