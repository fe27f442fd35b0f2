"""Test leases on real sessions."""

import asyncio
from collections.abc import Callable

import pytest

from aca_sessions import CodeInterpreter, InteractiveSession, Policy, SessionPool, Settings, open_interpreter, open_pool, open_server
from aca_sessions.errors import InvalidArgumentError, PoolClosedError, PoolError, PoolTimeoutError, RateLimitedError


async def test_two_sessions_keep_their_own_variables(pool: SessionPool) -> None:
    async with pool.session("alice") as alice, pool.session("bob") as bob:
        await alice.run("x = 'alice'")
        await bob.run("x = 'bob'")
        assert ((await alice.run("x")).value, (await bob.run("x")).value) == ("alice", "bob")


async def test_a_named_session_is_the_same_next_time(pool: SessionPool) -> None:
    async with pool.session("alice") as session:
        await session.run("x = 1")
    async with pool.session("alice") as session:
        assert (await session.run("x")).value == 1


async def test_an_anonymous_session_is_gone_after_its_lease(pool: SessionPool) -> None:
    async with pool.session() as session:
        await session.run("x = 1")
        name = session.session_id
    async with pool.session(name) as session:
        assert (await session.run("'x' in globals()")).value is False


async def test_the_documented_methods(pool: SessionPool) -> None:
    session = await pool.get_or_create()
    assert [info.is_active for info in pool.active()] == [True]
    await pool.release(session.session_id)
    assert pool.active() == []
    named = await pool.get_or_create("alice")
    await named.run("x = 1")
    await pool.terminate("alice")
    assert (await named.run("'x' in globals()")).value is False
    await pool.release("alice")


async def test_no_more_sessions_are_leased_than_allowed() -> None:
    async with open_pool(Settings(SessionPool={"MaxConcurrentSessions": 2, "AcquireTimeoutSeconds": 0.05})) as pool:
        async with pool.session("a"), pool.session("b"), pool.session("a"):
            with pytest.raises(PoolTimeoutError, match="2 of 2 are leased"):
                await pool.get_or_create("c")
        async with pool.session("c"), pool.session("d"):
            assert repr(pool) == "<SessionPool embedded, 2 of 2 leased, 0 waiting>"


async def test_terminate_frees_the_place_of_a_session_and_deletes_its_state() -> None:
    async with open_pool(Settings(SessionPool={"MaxConcurrentSessions": 2, "AcquireTimeoutSeconds": 5})) as pool:
        for name in (None, "alice"):
            session = await pool.get_or_create(name)
            await session.run("x = 1")
            await pool.terminate(session.session_id)
        assert pool.active() == []
        third = await pool.get_or_create()
        assert (await third.run("6 * 7")).value == 42
        assert [info.session_id for info in pool.active()] == [third.session_id]


async def test_terminate_ends_a_session_recreated_by_a_terminated_lease(interpreter: CodeInterpreter) -> None:
    async with SessionPool(interpreter) as pool:
        alice = await pool.get_or_create("alice")
        await alice.run("x = 1")
        await pool.terminate("alice")
        await alice.run("x = 2")
        await pool.terminate("alice")
        result = await alice.run("'x' in globals()")
        assert (result.value, str(result.state)) == (False, "lost: terminated")
        await interpreter.delete_session("alice")
    await pool.terminate("alice")  # a closed pool has none


async def test_terminate_gives_the_place_to_the_next_waiter() -> None:
    async with open_pool(max_concurrent_sessions=1) as pool:
        await pool.get_or_create("alice")
        waiting = asyncio.create_task(pool.get_or_create("bob"))
        await asyncio.sleep(0)
        await pool.terminate("alice")
        assert (await (await waiting).run("6 * 7")).value == 42


async def test_the_block_of_a_terminated_session_ends_only_what_it_started_since(interpreter: CodeInterpreter) -> None:
    async with SessionPool(interpreter) as pool:
        async with pool.session("alice") as session, pool.session() as anonymous:
            for one in (session, anonymous):
                await pool.terminate(one.session_id)
                assert (await one.run("x = 1")).success
        assert await interpreter.list_sessions() == []
        async with pool.session("alice"):
            await pool.terminate("alice")
            other = await pool.get_or_create("alice")
            await other.run("x = 2")
        assert (await other.run("x")).value == 2
        assert repr(pool) == "<SessionPool embedded, 1 of 10 leased, 0 waiting>"


async def test_a_waiter_gets_the_next_free_session() -> None:
    async with open_pool(max_concurrent_sessions=1) as pool:
        first = await pool.get_or_create("a")
        waiting = asyncio.create_task(pool.get_or_create("b"))
        await asyncio.sleep(0)
        assert not waiting.done()
        await pool.release(first.session_id)
        assert (await waiting).session_id == "b"


async def test_a_cancelled_waiter_leaves_the_counts_right() -> None:
    async with open_pool(max_concurrent_sessions=1) as pool:
        await pool.get_or_create("a")
        waiting = asyncio.create_task(pool.get_or_create("b"))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        assert repr(pool) == "<SessionPool embedded, 1 of 1 leased, 0 waiting>"
        await pool.release("a")
        async with pool.session("c"):
            pass


async def test_an_idle_session_ends_and_the_loss_is_reported_to_its_owner() -> None:
    async with open_pool(Settings(SessionTimeoutMinutes=0.2 / 60)) as pool:
        async with pool.session("alice") as session:
            await session.run("x = 1")
        async with asyncio.timeout(120):
            while pool.active():
                await asyncio.sleep(0.02)
        async with pool.session("alice") as session:
            result = await session.run("'x' in globals()")
            assert (result.value, str(result.state)) == (False, "lost: expired")
            assert str((await session.run("1")).state) == "kept"


async def test_a_use_without_a_cell_leaves_the_loss_to_be_reported_to_the_owner() -> None:
    async with open_pool(Settings(SessionTimeoutMinutes=0.2 / 60)) as pool:
        async with pool.session("alice") as session:
            await session.run("x = 1")
        async with asyncio.timeout(120):
            while pool.active():
                await asyncio.sleep(0.02)
        async with pool.session("alice") as session, pool.session("alice") as again:
            await session.health()
            await session.list_files()
            assert str((await again.run("1")).state) == "lost: expired"
            assert str((await again.run("1")).state) == "kept"
            assert str((await session.run("1")).state) == "lost: expired"  # reported to each caller once


async def test_a_name_used_again_while_its_session_ends_gets_a_complete_session() -> None:
    async with open_pool(Settings(SessionTimeoutMinutes=0.05 / 60)) as pool:
        for _ in range(5):
            async with pool.session("alice") as session:
                assert (await session.run("x = 1")).success
            async with asyncio.timeout(120):
                while pool.active():
                    await asyncio.sleep(0.001)
            async with pool.session("alice") as session:
                assert (await session.run("'x' in globals()")).value is False


async def test_a_closed_pool_returns_no_session() -> None:
    async with open_pool() as pool:
        pass
    with pytest.raises(PoolClosedError):
        await pool.get_or_create()


async def test_closing_the_pool_ends_its_sessions_at_the_service(interpreter: CodeInterpreter) -> None:
    async with SessionPool(interpreter) as pool:
        async with pool.session("alice") as alice, pool.session() as anonymous:
            await alice.run("1")
            await anonymous.run("1")
        assert [session.session_id for session in await interpreter.list_sessions()] == ["alice"]
    assert await interpreter.list_sessions() == []


async def test_names_are_not_shown_in_the_repr(pool: SessionPool) -> None:
    async with pool.session("a-secret-name") as session:
        assert "a-secret-name" not in repr(session) + repr(pool)


async def test_no_log_contains_a_name_a_cell_or_a_file(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG"):
        async with open_pool() as pool, pool.session("the-secret-name") as session:
            await session.upload_file("data.txt", "the-secret-content")
            await session.run("'the-secret' + '-code'")
            await session.run("raise ValueError('the-secret-error')")
    assert caplog.records
    assert "the-secret" not in caplog.text


async def test_a_waiter_gets_an_error_when_the_pool_is_closed() -> None:
    async with open_pool(max_concurrent_sessions=1) as pool:
        await pool.get_or_create("a")
        waiting = asyncio.create_task(pool.get_or_create("b"))
        await asyncio.sleep(0)
    with pytest.raises(PoolClosedError):
        await waiting


@pytest.mark.parametrize("session_id", ["", 5, "名前"])
async def test_an_invalid_name_is_refused(pool: SessionPool, session_id: object) -> None:
    with pytest.raises(InvalidArgumentError):
        await pool.get_or_create(session_id)  # type: ignore[arg-type]
    assert pool.active() == []


@pytest.mark.long
async def test_as_many_sessions_as_are_allowed_live_at_once() -> None:
    async with open_pool(max_concurrent_sessions=130) as pool:
        sessions = [await pool.get_or_create() for _ in range(130)]
        for number, session in enumerate(sessions):
            await session.run(f"x = {number}")
        assert (await sessions[0].run("x")).value == 0


async def test_events_are_reported_as_they_happen() -> None:
    events = []
    async with open_pool(Settings(SessionTimeoutMinutes=0.1 / 60), on_event=events.append) as pool:
        async with pool.session("alice"):
            pass
        async with asyncio.timeout(120):
            while pool.active():
                await asyncio.sleep(0.02)
        async with pool.session("alice"):
            await pool.terminate("alice")
    assert [event.kind for event in events] == ["leased", "released", "expired", "leased", "terminated"]


async def test_a_timeout_names_leased_sessions_by_their_hash() -> None:
    async with (
        open_pool(Settings(SessionPool={"MaxConcurrentSessions": 1, "AcquireTimeoutSeconds": 0.05})) as pool,
        pool.session("secret-name"),
    ):
        with pytest.raises(PoolTimeoutError, match=r"longest [0-9a-f]{12} for \d+\.\d s") as raised:
            await pool.get_or_create("other")
        assert "secret-name" not in str(raised.value)


def test_a_pool_used_in_another_event_loop_raises_a_clear_error() -> None:
    async def use(pool: SessionPool) -> None:
        async with pool.session() as session:
            await session.run("1")

    opening = open_pool()
    loop = asyncio.new_event_loop()
    pool = loop.run_until_complete(opening.__aenter__())
    loop.run_until_complete(use(pool))
    with pytest.raises(PoolError, match="another event loop"):
        asyncio.run(use(pool))
    loop.run_until_complete(opening.__aexit__())
    loop.close()


def test_a_pool_that_was_not_closed_warns_with_its_place_of_creation() -> None:
    async def forget() -> None:
        async with open_interpreter() as interpreter:
            pool = SessionPool(interpreter)
            await pool.release((await pool.get_or_create()).session_id)
            holder = [pool]
            del pool
            with pytest.warns(ResourceWarning, match=r"test_pool\.py:\d+") as warned:
                holder.clear()
            assert warned[0].filename == __file__
            await asyncio.sleep(0)

    asyncio.run(forget())


LIGHT = Policy(preload=(), spares=0)


async def test_the_embedded_server_has_room_for_all_sessions_of_the_pool() -> None:
    async with open_pool(policy=LIGHT) as pool:
        for number in range(22):
            async with pool.session(f"talk {number}") as session:
                await session.run(f"x = {number}")
        assert len(pool.active()) == 22
        async with pool.session("talk 0") as session:
            result = await session.run("x")
        assert (result.value, str(result.state)) == (0, "kept")


async def test_a_full_server_refuses_a_session_and_ends_none() -> None:
    settings = Settings(MaxConcurrentSessions=1, SessionsHttpClient={"PatienceSeconds": 0})
    async with open_pool(settings, policy=LIGHT) as pool:
        async with pool.session("first") as session:
            await session.run("x = 1")
            branches = await session.branch(18)
        with pytest.raises(RateLimitedError, match="MaxConcurrentSessions"):
            await branches[0].branch(2)
        async with pool.session("last") as session:
            await session.run("1")
        with pytest.raises(RateLimitedError, match=r"keeps: 20, 20 times its MaxConcurrentSessions. End .*raise ACASessions:"):
            async with pool.session("one too many") as session:
                await session.run("1")
        assert [(await branch.run("x")).value for branch in branches] == [1] * 18
        async with pool.session("first") as session:
            assert (await session.run("x")).value == 1


async def test_a_branch_can_be_closed_after_its_session_and_its_pool() -> None:
    async with open_pool(policy=LIGHT) as pool, pool.session() as session:
        one, other = await session.branch(2)
        await pool._interpreter.delete_session(one.session_id)
        await one.close()
    await other.close()


@pytest.mark.parametrize("opener", [open_pool, open_interpreter, open_server, InteractiveSession])
def test_what_is_no_settings_is_refused_at_once(opener: Callable[[object], object]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^settings must be Settings, got dict: pass Settings\(\*\*…\)$"):
        opener({"MaxConcurrentSessions": 3})
    with pytest.raises(InvalidArgumentError, match=r"^settings must be Settings, got str: pass Settings\(Endpoint=…\), and"):
        opener("http://127.0.0.1:1")


async def test_a_pool_that_is_used_before_it_is_opened_raises_how_to_open_it() -> None:
    how = r"use `async with open_pool\(\) as pool:`, or `pool = await stack.enter_async_context\(open_pool\(\)\)`"
    pool = open_pool()
    with pytest.raises(AttributeError, match=f"^open_pool\\(\\) has no attribute 'session' until it is opened: {how}"):
        pool.session()  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match=f"^open_pool\\(\\) cannot be awaited: {how}"):
        await pool  # type: ignore[misc]
    with pytest.raises(TypeError, match="use `async with open_interpreter\\(\\) as interpreter:`"):
        await open_interpreter()  # type: ignore[misc]
    with pytest.raises(TypeError, match=f"^open_pool\\(\\) cannot be opened by 'with': {how}"), pool:
        pass


async def test_a_session_that_is_used_before_it_is_leased_raises_how_to_lease_it(pool: SessionPool) -> None:
    how = "use `async with pool.session\\(\\) as session:`"
    with pytest.raises(AttributeError, match=f"^pool.session\\(\\) has no attribute 'run' until it is opened: {how}"):
        pool.session("a").run("1")  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match=f"cannot be awaited: {how}"):
        await pool.session("a")  # type: ignore[misc]
    with pytest.raises(TypeError, match=f"cannot be opened by 'with': {how}"), pool.session("a"):  # type: ignore[attr-defined]
        pass
    assert pool.active() == []
