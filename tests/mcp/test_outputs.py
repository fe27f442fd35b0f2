"""Test the folder that the sessions of one client share, at any endpoint."""

from functools import partial
from typing import Any

import anyio
import pytest
from mcp import ClientSession

from aca_sessions import SessionPool
from aca_sessions.mcp.named_session import NamedSession
from aca_sessions.mcp.outputs import Outputs

from ..conftest import mostly_long
from .clients import run, stdio_client_session, text_of

pytestmark = pytest.mark.slow


@pytest.fixture(params=mostly_long(["embedded", "plain"], "embedded"))
def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    return request.getfixturevalue("plain_endpoint") if request.param == "plain" else {}


async def two(client: ClientSession) -> None:
    for name in ("one", "two"):
        await client.call_tool("create_session", {"session_id": name})


async def text_from(client: ClientSession, session: str, code: str, **more: Any) -> str:
    return text_of(await run(client, code, session_id=session, **more))


@pytest.mark.long
async def test_files_that_one_session_writes_can_be_read_and_changed_by_others(environment) -> None:
    async with stdio_client_session(environment=environment) as client:
        await two(client)
        told = await text_from(client, "one", "import os; os.makedirs('outputs/deep'); open('outputs/deep/a.txt', 'w').write('first')")
        assert "your other sessions get these before their next cells: outputs/deep/a.txt" in told
        assert await text_from(client, "two", "print(open('outputs/deep/a.txt').read())") == "first"
        await text_from(client, "two", "open('outputs/deep/a.txt', 'w').write('second')")
        assert await text_from(client, "one", "print(open('outputs/deep/a.txt').read())") == "second"
        await text_from(client, "one", "os.remove('outputs/deep/a.txt')")
        assert await text_from(client, "two", "import os; os.listdir('outputs/deep')") == "[]"
        assert await text_from(client, "default", "import os; os.listdir('outputs')") == "[]"


LATE = "import subprocess; subprocess.Popen(['sh', '-c', 'sleep 0.2; echo late > outputs/a.part; mv outputs/a.part outputs/a'])"


async def test_a_second_session_gets_files_that_a_process_of_the_first_wrote_after_its_cell(environment) -> None:
    async with stdio_client_session("--tools", "all", environment=environment) as client:
        await run(client, LATE)
        with anyio.fail_after(120):
            while (await client.call_tool("read_file", {"path": "outputs/a"})).isError:
                await anyio.sleep(0.1)
        await client.call_tool("create_session", {"session_id": "two"})
        assert await text_from(client, "two", "print(open('outputs/a').read())") == "late"


async def test_an_output_is_reported_though_no_other_session_needs_it_yet() -> None:
    async with stdio_client_session() as client:
        assert "your other sessions get these before their next cells: outputs/a" in text_of(
            await run(client, "open('outputs/a', 'w').close()")
        )


@pytest.mark.long
async def test_a_shared_file_outlives_its_session(environment) -> None:
    async with stdio_client_session(environment=environment) as client:
        await two(client)
        await text_from(client, "one", "open('outputs/a.txt', 'w').write('kept')")
        await client.call_tool("delete_session", {"session_id": "one"})
        assert await text_from(client, "two", "print(open('outputs/a.txt').read())") == "kept"


@pytest.mark.long
async def test_all_other_files_are_private_to_each_session() -> None:
    async with stdio_client_session() as client:
        await two(client)
        await text_from(client, "one", "open('a.txt', 'w').write('mine')")
        assert await text_from(client, "two", "import os; os.listdir('.')") == "['outputs']"


@pytest.mark.long
async def test_a_file_that_is_too_large_is_not_shared_and_reported() -> None:
    async with stdio_client_session(environment={"ACASessions__Mcp__OutputsMegabytes": "1"}) as client:
        await two(client)
        told = await text_from(client, "one", "open('outputs/large', 'wb').write(bytes(2 << 20)); open('outputs/small', 'w').write('x')")
        assert "not copied to your other sessions, because of the size or the name: outputs/large" in told
        assert await text_from(client, "two", "import os; os.listdir('outputs')") == "['small']"


@pytest.mark.long
async def test_nothing_is_shared_if_so_configured() -> None:
    async with stdio_client_session(environment={"ACASessions__Mcp__OutputsMegabytes": "0"}) as client:
        await two(client)
        await text_from(client, "one", "open('outputs/a', 'w').write('x')")
        assert await text_from(client, "two", "import os; os.listdir('outputs')") == "[]"


HOSTILE = """
import os
os.symlink('/etc/passwd', 'outputs/link')
os.symlink('/etc', 'outputs/folder')
os.mkfifo('outputs/pipe')
os.makedirs('outputs/' + '/'.join('d' * 20))
for number in range(3000):
    open(f'outputs/{number}', 'w').close()
open('outputs/quote"back\\\\slash', 'w').close()
open(b'outputs/\\xff', 'w').close()
"""


@pytest.mark.long
async def test_special_files_among_the_outputs_are_harmless() -> None:
    linked = "from pathlib import Path; any(path.is_symlink() for path in Path('outputs').rglob('*'))"
    async with stdio_client_session() as client:
        await two(client)
        assert not (await run(client, HOSTILE, session_id="one", timeout=60)).isError
        assert await text_from(client, "two", linked) == "False"
        assert await text_from(client, "one", "6 * 7") == "42"


@pytest.mark.long
async def test_a_link_in_the_place_of_outputs_is_harmless() -> None:
    async with stdio_client_session() as client:
        await two(client)
        await text_from(client, "one", "open('outputs/a', 'w').write('x')")
        await text_from(client, "two", "import os; os.rename('outputs', 'away'); os.symlink('/', 'outputs')")
        await text_from(client, "one", "open('outputs/a', 'w').write('y')")
        assert await text_from(client, "two", "6 * 7; print(open('away/a').read())") == "x"


@pytest.mark.long
async def test_sessions_that_write_in_parallel_lose_no_file_of_each_other() -> None:
    async with stdio_client_session() as client:
        await two(client)
        write = "import time; time.sleep(0.5); open('outputs/{name}', 'w').write('{name}')"
        async with anyio.create_task_group() as tasks:
            for name in ("one", "two"):
                tasks.start_soon(partial(run, client, write.format(name=name), session_id=name))
        for name in ("one", "two", "default"):
            assert await text_from(client, name, "import os; sorted(os.listdir('outputs'))") == "['one', 'two']"


@pytest.mark.long
async def test_files_written_by_a_tool_are_shared_too() -> None:
    async with stdio_client_session("--tools", "all") as client:
        await two(client)
        await client.call_tool("write_file", {"path": "outputs/a.txt", "content": "by a tool", "session_id": "one"})
        assert await text_from(client, "two", "open('outputs/a.txt').read()") == "'by a tool'"
        await client.call_tool("delete_file", {"path": "outputs/a.txt", "session_id": "one"})
        assert await text_from(client, "two", "import os; os.listdir('outputs')") == "[]"


@pytest.mark.long
async def test_a_rollback_does_not_undo_outputs_of_other_sessions() -> None:
    async with stdio_client_session("--tools", "all") as client:
        await two(client)
        await text_from(client, "one", "open('outputs/a', 'w').write('old')")
        await client.call_tool("checkpoint", {"session_id": "one"})
        await text_from(client, "two", "open('outputs/a', 'w').write('new'); open('outputs/b', 'w').write('new')")
        await text_from(client, "one", "x = 1")
        await client.call_tool("rollback", {"session_id": "one"})
        for name in ("one", "two"):
            assert await text_from(client, name, "open('outputs/a').read() + open('outputs/b').read()") == "'newnew'"


@pytest.mark.long
async def test_a_session_that_was_idle_for_too_long_is_recreated_with_the_outputs() -> None:
    async with stdio_client_session(environment={"ACASessions__SessionPool__SessionTimeoutMinutes": "0.01"}) as client:
        await two(client)
        await text_from(client, "one", "x = 1; open('outputs/a', 'w').write('kept')")
        with anyio.fail_after(120):
            while "started': True" in str((await client.call_tool("get_kernel_health", {"session_id": "one"})).structuredContent):
                await anyio.sleep(1)
        told = await text_from(client, "one", "'x' in globals() or open('outputs/a').read()")
    assert told.startswith("'kept'")
    assert "lost: expired" in told


async def shared_by_a_cell(
    outputs: Outputs, pool: SessionPool, named: NamedSession, code: str, *, is_lost: bool = False
) -> tuple[str, ...]:
    async with pool.session(named.id) as session:
        await outputs.copy_in(session, named)
        if is_lost:
            await pool._interpreter.delete_session(named.id)  # for the pool and the lease this is a loss
        result = await session.run(code)
        named.record_result(result)
        assert result.success, result.error
        return (await outputs.collect(session, named)).shared


async def test_outputs_are_shared_from_a_workspace_with_too_many_files_to_list(pool: SessionPool) -> None:
    outputs, named = Outputs(1 << 20), NamedSession(name="one")
    many = "import os; os.mkdir('many')\nfor number in range(2001): open(f'many/{number}', 'w').close()"
    assert await shared_by_a_cell(outputs, pool, named, many) == ()
    assert await shared_by_a_cell(outputs, pool, named, "open('outputs/a', 'w').close()") == ("outputs/a",)


async def test_files_that_one_session_lost_stay_in_the_others(pool: SessionPool) -> None:
    outputs, one, two = Outputs(1 << 20), NamedSession(name="one"), NamedSession(name="two")
    await shared_by_a_cell(outputs, pool, one, "open('outputs/a', 'w').close()")
    await shared_by_a_cell(outputs, pool, two, "1")
    assert await shared_by_a_cell(outputs, pool, one, "2", is_lost=True) == ()
    for named in (one, two):
        await shared_by_a_cell(outputs, pool, named, "open('outputs/a').close()")
