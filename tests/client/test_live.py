"""Test cells that are followed while they run: live output, questions, background cells. In process here; tests/scenarios covers TCP."""

import asyncio

import pytest

from aca_sessions import Session, SessionPool, Settings, open_pool
from aca_sessions.errors import InvalidArgumentError
from aca_sessions.models import Event, Prompt

from ..cli.test_cli import Server

ENDLESS = "import time\nfor number in range(10_000):\n    print(number, flush=True)\n    time.sleep(0.01)"
GATED = "import os, time\nopen('at', 'w').close()\nprint('before')\nwhile os.path.exists('at'): time.sleep(0.01)\nprint('after')"


async def text_of(session: Session, code: str, kind: str) -> str:
    return "".join([event.text async for event in session.stream(code) if event.kind == kind])


async def test_output_arrives_while_the_cell_runs(session: Session) -> None:
    seen = []
    async for event in session.stream(GATED):
        seen.append(event.text)
        if event.text == "before\n":
            await session.delete_file("at")
    assert seen == ["before\n", "after\n", ""]


async def test_the_last_event_is_the_result(session: Session) -> None:
    events = [event async for event in session.stream("print('out')\n6 * 7")]
    assert [event.kind for event in events] == ["stdout", "result"]
    result = events[-1].result
    assert result is not None
    assert (result.value, result.stdout, str(result.state)) == (42, "out\n", "kept")


async def test_streams_are_separate_and_a_failure_is_a_result(session: Session) -> None:
    events = [event async for event in session.stream("import sys\nprint('a', file=sys.stderr)\n1 / 0")]
    assert events[0] == Event(kind="stderr", text="a\n")
    assert events[-1].result is not None
    assert events[-1].result.error is not None
    assert events[-1].result.error.name == "ZeroDivisionError"


async def test_displays_arrive_as_they_are_shown(session: Session) -> None:
    events = [event async for event in session.stream("display('one')\nprint('two')\ndisplay('three')")]
    shown = [event.display.data["text/plain"] for event in events if event.display is not None]
    assert shown == ["'one'", "'three'"]


async def test_a_character_written_in_two_pieces_arrives_as_one(session: Session) -> None:
    code = "import os, time\nos.write(1, b'\\xc3'); time.sleep(0.05); os.write(1, b'\\xa4')"
    assert await text_of(session, code, "stdout") == "ä"


async def test_leaving_the_loop_interrupts_the_cell(session: Session) -> None:
    events = session.stream(ENDLESS)
    async for event in events:
        if event.kind == "stdout":
            break
    await events.aclose()
    result = await session.run("number < 9_999")
    assert (result.value, str(result.state)) == (True, "kept")


async def test_a_slow_reader_delays_no_cell_and_sees_how_much_it_missed(session: Session) -> None:
    execution = await session.start("for _ in range(100):\n    print('x' * 99_999)")
    result = await execution.wait()
    events = [event async for event in execution.events()]
    assert result.success
    assert events[0].kind == "skipped"
    assert "were dropped" in events[0].text
    assert events[-1].result == result


async def test_a_background_cell_is_found_by_its_id(session: Session) -> None:
    started = await session.start("print('once')\n'done'")
    again = session.execution(started.id)
    assert (await again.wait()).value == "done"
    assert [event.text async for event in again.events() if event.kind == "stdout"] == ["once\n"]


async def test_a_background_cell_can_be_cancelled(session: Session) -> None:
    execution = await session.start(ENDLESS)
    async for event in execution.events():
        if event.kind == "stdout":
            await execution.cancel()
    result = await execution.wait()
    assert result.error is not None
    assert (result.error.name, str(result.state)) == ("KeyboardInterrupt", "kept")


async def test_a_finished_cell_may_be_cancelled(session: Session) -> None:
    execution = await session.start("1")
    await execution.wait()
    await execution.cancel()
    assert (await execution.wait()).value == 1


async def test_code_that_cannot_be_run_is_a_failed_result_here_too(session: Session) -> None:
    assert (await (await session.start("'\ud800'")).wait()).error is not None


async def test_an_unknown_execution_is_reported_as_unknown(session: Session) -> None:
    await session.run("1")
    assert str((await session.execution("nobody").wait()).state) == "unknown: no reply"


async def test_input_is_answered_by_the_caller(session: Session) -> None:
    events = [event async for event in session.stream("name = input('Who? ')\nprint('Hello', name)", on_input=lambda prompt: "Ada")]
    assert [(event.kind, event.text) for event in events[:3]] == [("stdout", "Who? "), ("input", "Who? "), ("stdout", "Hello Ada\n")]


async def test_input_is_answered_by_a_coroutine(session: Session) -> None:
    async def answer(prompt: str) -> str:
        await asyncio.sleep(0)
        return prompt.upper()

    execution = await session.start("import getpass\ninput('a') + getpass.getpass('b')", on_input=answer)
    assert (await execution.wait()).value == "AB"


async def test_a_handler_is_told_which_answers_must_not_be_shown(session: Session) -> None:
    def answer(prompt: Prompt) -> str:
        return f"{prompt}{'hidden' if prompt.password else 'shown'} "

    code = "from getpass import getpass\ninput('a ') + getpass() + getpass('b ')"
    events = [event async for event in session.stream(code, on_input=answer)]
    assert events[-1].result.value == "a shown Password: hidden b hidden "
    assert [(event.text, event.password) for event in events if event.kind == "input"] == [
        ("a ", False),
        ("Password: ", True),
        ("b ", True),
    ]
    assert events[-1].result.stdout == "a "


async def test_input_without_a_handler_is_a_clear_error(session: Session) -> None:
    result = await session.run("input('Who? ')")
    assert result.error is not None
    assert result.error.name == "EOFError"
    assert result.error.message == "input() is not answered here: put the values into the code"
    assert str(result.state) == "kept"


async def test_a_handler_that_fails_ends_the_question(session: Session) -> None:
    def fail(prompt: str) -> str:
        raise LookupError(prompt)

    execution = await session.start("input('Who? ')", on_input=fail)
    with pytest.raises(LookupError):
        await execution.wait()
    result = await session.execution(execution.id).wait()
    assert result.error is not None
    assert result.error.name == "EOFError"


async def test_a_handler_at_the_end_of_its_input_is_pythons_error_in_the_cell(session: Session) -> None:
    def end(_prompt: str) -> str:
        raise EOFError

    result = await (await session.start("input('Who? ')", on_input=end)).wait()
    assert (result.error.name, result.error.message) == ("EOFError", "EOF when reading a line")
    result = await (await session.start("input('Who? ')", on_input=lambda _: None)).wait()
    assert result.error.message.startswith("the user declined to answer")


async def test_an_answer_is_text(session: Session) -> None:
    execution = await session.start("input()", on_input=lambda prompt: 5)  # type: ignore[arg-type, return-value]
    with pytest.raises(InvalidArgumentError, match="text"):
        await execution.wait()


async def test_parallel_threads_of_a_cell_get_their_own_answers(session: Session) -> None:
    asked = "[*map(str, range(40))]"
    code = f"import concurrent.futures as f\nwith f.ThreadPoolExecutor(8) as pool: answers = [*pool.map(input, {asked})]"
    execution = await session.start(code, on_input=lambda prompt: prompt)
    assert (await execution.wait()).success
    assert (await session.run(f"answers == {asked}")).value is True


@pytest.mark.long
async def test_the_clock_of_a_cell_stops_while_it_waits_for_an_answer(session: Session) -> None:
    async def slowly(prompt: str) -> str:
        await asyncio.sleep(5)
        return "late"

    execution = await session.start("input()", timeout=4, on_input=slowly)
    assert (await execution.wait()).value == "late"


async def test_a_cell_that_waits_for_an_answer_can_be_interrupted(session: Session) -> None:
    execution = await session.start("x = 1\ninput()", on_input=lambda prompt: None)  # type: ignore[arg-type, return-value]
    assert (await execution.wait()).success is False
    answered = asyncio.Event()

    async def never(prompt: str) -> str:
        answered.set()
        await asyncio.sleep(60)
        return ""

    execution = await session.start("input()", on_input=never)
    waiting = asyncio.create_task(execution.wait())
    await answered.wait()
    await execution.cancel()
    result = await session.execution(execution.id).wait()
    waiting.cancel()
    assert result.error is not None
    assert (result.error.name, str(result.state)) == ("KeyboardInterrupt", "kept")
    assert (await session.run("x")).value == 1


async def test_the_end_of_a_session_ends_its_executions(pool: SessionPool) -> None:
    async with pool.session() as session:
        execution = await session.start(ENDLESS)
        waiting = asyncio.create_task(execution.wait())
        await anext(execution.events())
    assert str((await waiting).state) == "lost: terminated"


@pytest.mark.long
async def test_an_endpoint_without_events_delivers_at_the_end() -> None:
    with Server("--port", "0", "--api-key", "key", "--plain") as server:
        settings = Settings(Endpoint=server.endpoint, ApiKey="key")
        async with open_pool(settings) as pool, pool.session() as session:
            events = [event async for event in session.stream("print('out')\n1")]
            assert [event.kind for event in events] == ["stdout", "result"]
            execution = await session.start("2")
            assert (await execution.wait()).value == 2


@pytest.mark.slow
@pytest.mark.long
async def test_a_progress_bar_is_seen_moving_over_tcp() -> None:
    code = "import tqdm, time\nfor _ in tqdm.tqdm(range(5), mininterval=0): time.sleep(0.05)"
    with Server("--port", "0", "--api-key", "key") as server:
        async with open_pool(Settings(Endpoint=server.endpoint, ApiKey="key")) as pool, pool.session() as session:
            pieces = [event.text async for event in session.stream(code) if event.kind == "stderr"]
    seen = [share for share in (" 20%", " 40%", " 60%", " 80%", "100%") if any(share in piece for piece in pieces)]
    assert len(pieces) >= 4
    assert len(seen) == 5
