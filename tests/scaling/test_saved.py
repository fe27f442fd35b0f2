"""Test that sessions go on at other servers with the same store when theirs is killed, and that each result says what it has."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from redis import Redis

from aca_sessions import CodeExecutionResult, CodeInterpreter, Session, open_interpreter

from ..agent.conftest import RedisServer, redis_server  # noqa: F401 - the second is a fixture
from .cluster import Cluster, needs_nginx

pytestmark = [pytest.mark.slow, pytest.mark.long, needs_nginx]
SESSIONS, AT_ONCE = 45, 8


class Owner:
    """The owner of a session that counts its cells. The owner knows the count, and how high it was at the latest save."""

    def __init__(self, interpreter: CodeInterpreter, name: str) -> None:
        self.name, self.session = name, Session(interpreter, name)
        self._counted, self._saved = 0, 0
        self._is_unsure = False

    async def run(self) -> CodeExecutionResult:
        result = await self.session.run("count = globals().get('count', 0) + 1; count")
        match result.state.kind:
            case "kept":
                assert result.value in ({self._counted + 1, self._counted + 2} if self._is_unsure else {self._counted + 1})
            case "restored":
                assert result.value == self._saved + 1 > 1, "the session is not as it was saved"
                assert result.state.saved is not None
            case "lost":
                assert (result.value, self._saved) == (1, 0), "a session that was saved is lost"
            case kind:
                assert (kind, result.success) == ("unknown", False)
                self._is_unsure = True
                return result
        self._is_unsure, self._counted = False, result.value
        return result

    async def save(self) -> None:
        assert (await self.session.save()).variables == 1
        self._saved = self._counted


async def in_turns(owners: list[Owner], work: Callable[[Owner], Awaitable[object]]) -> dict[str, object]:
    """Do something for each owner, some at the same time. Return the results by the names of the sessions."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(owner: Owner) -> object:
        async with gate:
            return await work(owner)

    results = await asyncio.gather(*map(one, owners))
    return {owner.name: result for owner, result in zip(owners, results, strict=True)}


@pytest.fixture(params=["folder", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return f"file://{tmp_path}/store"
    server: RedisServer = request.getfixturevalue("redis_server")
    with Redis.from_url(server.url) as client:
        client.flushall()
    return server.url


async def test_sessions_of_a_killed_server_go_on_at_the_others_and_each_result_is_true(store: str) -> None:
    with Cluster(3, "--store", store) as cluster:
        async with open_interpreter(cluster.settings(PatienceSeconds=120)) as interpreter:
            owners = [Owner(interpreter, f"owner-{number}") for number in range(SESSIONS)]
            saved = owners[SESSIONS // 5 :]
            await in_turns(owners, Owner.run)
            await in_turns(saved, Owner.save)
            await in_turns(owners, Owner.run)  # after the save: a restored session does not have it
            victim, *others = cluster.members
            mine = await victim.names()
            done = 0

            async def run_and_kill(owner: Owner) -> CodeExecutionResult:
                nonlocal done
                result = await owner.run()
                done += 1
                if done == SESSIONS // 3:
                    victim.end(signal.SIGKILL)
                return result

            during = await in_turns(owners, run_and_kill)
            after = await in_turns(owners, Owner.run)
            kinds = {name: {during[name].state.kind, after[name].state.kind} - {"unknown"} for name in during}
            assert all(kinds[name] == {"kept"} for name in {*kinds} - mine)
            assert all("restored" in kinds[owner.name] for owner in saved if owner.name in mine)
            assert all("lost" in kinds[owner.name] for owner in owners if owner not in saved and owner.name in mine)
            elsewhere = [await other.names() for other in others]
            assert mine <= elsewhere[0] | elsewhere[1]

            victim.start()
            victim.wait_until_ready()
            back = await in_turns(owners, Owner.run)  # the servers that have the sessions keep them
            assert {result.state.kind for result in back.values()} == {"kept"}
            assert await victim.names() == set()
