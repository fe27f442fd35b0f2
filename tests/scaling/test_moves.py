"""Test servers that are killed, restarted, added or drained: which sessions end, and what results report to their owners."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager

import pytest

from aca_sessions import CodeExecutionResult, CodeInterpreter, open_interpreter
from aca_sessions.contract.versions import VERSIONS

from .cluster import Cluster, Member, needs_nginx

pytestmark = [pytest.mark.slow, pytest.mark.long, needs_nginx]
SESSIONS = 200
AT_ONCE = 24
BEGUN = "import time; open('/mnt/data/begun', 'w').write('1'); "


class Owners:
    """The owners of many sessions, each of which counts its cells in its own variable. Each result is compared with that count."""

    def __init__(self, interpreter: CodeInterpreter, names: Iterable[str]) -> None:
        self._interpreter = interpreter
        self.names = [*names]
        self._counted = Counter[str]()
        self._unsure: set[str] = set()
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def run_cells(self, then: Callable[[int], Awaitable[None]] | None = None) -> dict[str, CodeExecutionResult]:
        """Run one more cell in each session and return the results. `then` is called with the number of results so far."""
        results: dict[str, CodeExecutionResult] = {}

        async def own(name: str) -> None:
            async with self._gate:
                results[name] = await self._cell(name)
            if then is not None:
                await then(len(results))

        await asyncio.gather(*map(own, self.names))
        return results

    async def _cell(self, name: str) -> CodeExecutionResult:
        result = await self._interpreter.execute(name, "count = globals().get('count', 0) + 1; count")
        match result.state.kind:
            case "kept":
                possible = {self._counted[name] + 1, self._counted[name] + 2} if name in self._unsure else {self._counted[name] + 1}
                assert result.value in possible, "a fresh interpreter was said to be the old one"
            case "lost":
                assert result.value == 1
            case kind:
                assert (kind, result.success) == ("unknown", False)
                self._unsure.add(name)
                return result
        self._unsure.discard(name)
        self._counted[name] = result.value
        return result


def kinds(results: dict[str, CodeExecutionResult], names: Iterable[str]) -> set[str]:
    return {results[name].state.kind for name in names}


@asynccontextmanager
async def owners_at(cluster: Cluster, names: Iterable[str], **options: object) -> AsyncIterator[Owners]:
    async with open_interpreter(cluster.settings(**options)) as interpreter:
        owners = Owners(interpreter, names)
        assert kinds(await owners.run_cells(), owners.names) == {"kept"}
        yield owners


async def shares(cluster: Cluster) -> list[set[str]]:
    return [await member.names() for member in cluster.members]


async def test_a_killed_server_loses_only_its_own_sessions_and_results_report_it() -> None:
    with Cluster(3) as cluster:
        async with owners_at(cluster, (f"owner {number}" for number in range(SESSIONS))) as owners:
            victim, *others = cluster.members
            mine, *theirs = await shares(cluster)
            assert len(mine) + sum(map(len, theirs)) == SESSIONS
            assert all(len(share) > SESSIONS / 6 for share in (mine, *theirs))
            assert kinds(await owners.run_cells(), owners.names) == {"kept"}

            async def kill_in_the_middle(done: int) -> None:
                if done == SESSIONS // 2:
                    victim.end(signal.SIGKILL)

            during = await owners.run_cells(kill_in_the_middle)
            after = await owners.run_cells()
            assert kinds(during, set().union(*theirs)) | kinds(after, set().union(*theirs)) == {"kept"}
            told = {name for name in mine if "lost" in (during[name].state.kind, after[name].state.kind)}
            assert told == mine
            assert kinds(await owners.run_cells(), owners.names) == {"kept"}
            assert mine <= (await others[0].names()) | (await others[1].names())

            victim.start()
            victim.wait_until_ready()
            back = await owners.run_cells()
            assert {name for name in owners.names if back[name].state.kind == "lost"} == mine
            assert kinds(await owners.run_cells(), owners.names) == {"kept"}


async def test_a_cell_that_ran_when_its_server_was_killed_is_not_sent_again() -> None:
    with Cluster(3) as cluster:
        victim, *others = cluster.members
        names = cluster.of(victim, 5)
        async with owners_at(cluster, names) as owners:
            running = [asyncio.create_task(owners._interpreter.execute(name, BEGUN + "time.sleep(20)")) for name in names]
            await until_begun(victim, names)
            victim.end(signal.SIGKILL)
            results = await asyncio.gather(*running)
            assert {str(result.state) for result in results} == {"unknown: no reply"}
            assert [await other.names() for other in others] == [set(), set()]
            assert kinds(await owners.run_cells(), names) == {"lost"}


async def until_begun(member: Member, names: list[str]) -> None:
    """Wait until a cell of each has begun. Each writes a file first."""
    async with member.direct() as interpreter:
        while not all([await interpreter.list_files(name) for name in names]):
            await asyncio.sleep(0.02)


async def test_an_added_server_moves_only_its_share_of_sessions() -> None:
    names = [f"name-{number}" for number in range(SESSIONS)]
    with Cluster(3) as cluster:
        *earlier, added = cluster.members
        cluster.configure(earlier)
        cluster.reload()
        before = cluster.ports_of(names)
        async with owners_at(cluster, names[:60]) as owners:
            cluster.configure(cluster.members)
            cluster.reload()
            after = cluster.ports_of(names)
            moved = [now for then, now in zip(before, after, strict=True) if then != now]
            assert set(moved) == {added.port}
            assert SESSIONS / 5 < len(moved) < SESSIONS / 2
            results = await owners.run_cells()
            told = {name for name in owners.names if results[name].state.kind == "lost"}
            assert told == {name for name, port in zip(owners.names, after, strict=False) if port == added.port}


async def test_a_server_drains_before_a_restart_and_every_result_is_true() -> None:
    with Cluster(3, "--drain-seconds", "300") as cluster:
        leaving, *others = cluster.members
        names = cluster.of(leaving, 12)
        old, new, elsewhere = names[:6], names[6:], [name for other in others for name in cluster.of(other, 2)]
        async with owners_at(cluster, [*old, *elsewhere]) as owners:
            running = asyncio.create_task(owners._interpreter.execute(old[0], BEGUN + "time.sleep(1.5); count"))
            await until_begun(leaving, old[:1])
            leaving.signal_process(signal.SIGTERM)
            assert (await running).value == 1
            assert kinds(await owners.run_cells(), owners.names) == {"kept"}
            async with owners_at(cluster, new) as newcomers:
                assert await leaving.names() == set(old)
                await newcomers._interpreter.upload_file(new[0], "folder/a b.txt", b"content" * 200_000)
                assert await newcomers._interpreter.download_file(new[0], "folder/a b.txt") == b"content" * 200_000
                for name in old:
                    await owners._interpreter.delete_session(name)
                assert leaving.process.wait(120) == 0
                assert kinds(await newcomers.run_cells(), new) == {"kept"}
                leaving.end()
                leaving.start()
                leaving.wait_until_ready()
                assert kinds(await newcomers.run_cells(), new) == {"lost"}
            owners.names = elsewhere
            assert kinds(await owners.run_cells(), elsewhere) == {"kept"}


@pytest.mark.parametrize("flags", [(), ("--plain",)], ids=["extended", "plain"])
async def test_every_api_version_reports_a_session_that_was_recreated(flags: tuple[str, ...]) -> None:
    with Cluster(2, *flags) as cluster:
        victim, _ = cluster.members
        names = iter(cluster.of(victim, 5))
        begun = []
        for version in VERSIONS:
            interpreter = await open_interpreter(cluster.settings(ApiVersion=version)).__aenter__()
            owners = Owners(interpreter, [next(names)])
            assert kinds(await owners.run_cells(), owners.names) == {"kept"}
            begun.append(owners)
        victim.end(signal.SIGKILL)
        told = [str(result.state) for owners in begun for result in (await owners.run_cells()).values()]
        again = [str(result.state) for owners in begun for result in (await owners.run_cells()).values()]
        for owners in begun:
            await owners._interpreter.close()
        assert (told, again) == (["lost: expired"] * 5, ["kept"] * 5)
