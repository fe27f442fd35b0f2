"""Test commands in a session, at the embedded server and at an endpoint without extensions."""

import asyncio

import pytest

from aca_sessions import Session, open_pool
from aca_sessions.errors import ExecutionError, InvalidArgumentError, PathError

from ..conftest import mostly_long, until

SLEEPS = "sleep 3600.1 & sleep 3600.2"


@pytest.fixture
def session(any_session: Session) -> Session:
    return any_session


async def are_running(session: Session) -> bool:
    return "sleep 3600" in (await session.execute_command("ps -e -o args")).stdout


async def test_streams_and_the_exit_code_are_returned_apart(session: Session) -> None:
    done = await session.execute_command("echo out; echo err >&2; exit 3")
    assert (done.stdout, done.stderr, done.exit_code, done.success, str(done.state)) == ("out\n", "err\n", 3, False, "kept")


async def test_arguments_reach_the_program_as_they_are(session: Session) -> None:
    arguments = ["", "a b", "$HOME", "'", '"', "\\", "*", "ü\n", "-n"]
    done = await session.execute_command(["python3", "-c", "import sys; print(sys.argv[1:])", *arguments])
    assert done.stdout == f"{arguments}\n"


async def test_input_folder_and_environment_are_given_to_the_command(session: Session) -> None:
    await session.filesystem.make_folder("deep/folder")
    data = bytes(range(256)) * 4096  # a megabyte
    done = await session.execute_command('pwd; echo "$A"; cat', stdin=data, cwd="deep/folder", env={"A": "b=c"})
    folder, value, rest = done.raw_stdout.split(b"\n", 2)
    assert folder.endswith(b"/deep/folder")
    assert (value, rest) == (b"b=c", data)
    assert (await session.execute_command('cat; echo "$A"')).stdout == "\n"  # of the next command neither


@pytest.mark.long
async def test_a_program_that_cannot_be_started_has_the_exit_code_of_a_shell(session: Session) -> None:
    await session.upload_file("text", b"no program")
    for program, code in (("no-such-program", 127), ("./text", 126)):
        done = await session.execute_command([program])
        assert (done.exit_code, done.stdout) == (code, "")
        assert done.stderr.startswith(f"{program}: ")


async def test_a_folder_that_does_not_exist_is_an_error(session: Session) -> None:
    with pytest.raises(FileNotFoundError, match="cannot run a command in 'none': No such file or directory"):
        await session.execute_command("ls", cwd="none")


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((" ",), {}),
        (([],), {}),
        (([""],), {}),
        ((["ls", 1],), {}),
        (("a\0b",), {}),
        (("ls",), {"env": {"A": 1}}),
        (("ls",), {"env": {"A=": ""}}),
        (("ls",), {"env": [1]}),
        (("ls",), {"cwd": 1}),
        (("ls",), {"timeout": -1}),
    ],
    ids=str,
)
async def test_invalid_arguments_are_refused(session: Session, arguments, options) -> None:
    with pytest.raises(InvalidArgumentError):
        await session.execute_command(*arguments, **options)


async def test_a_timeout_ends_the_command_and_what_it_started_and_keeps_its_output(session: Session) -> None:
    done = await session.execute_command(f"echo first; {SLEEPS}", timeout=0.5)
    assert (done.exit_code, done.timed_out, done.stdout) == (-9, True, "first\n")
    assert not await are_running(session)


async def test_a_cancelled_command_is_ended_with_what_it_started_and_leaves_no_zombie(session: Session) -> None:
    running = asyncio.ensure_future(session.execute_command(SLEEPS))
    await until(lambda: are_running(session))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not await are_running(session)
    assert "defunct" not in (await session.execute_command("ps -e -o args")).stdout


async def test_commands_run_at_the_same_time_and_beside_cells(session: Session) -> None:
    first = asyncio.ensure_future(session.execute_command("echo one > one; until test -e two; do sleep 0.01; done; cat two"))
    await until(lambda: session.filesystem.exists("one"))
    await session.run("x = 42")
    await session.execute_command("echo second > part; mv part two")
    assert (await first).stdout == "second\n"
    assert (await session.run("x")).value == 42


@pytest.mark.long
async def test_output_is_reported_as_it_is_written(session: Session) -> None:
    seen: list[tuple[str, str]] = []
    command = "printf 'n\\303'; until test -e go; do sleep 0.01; done; printf '\\274n' >&2; printf '\\274'"
    running = asyncio.ensure_future(session.execute_command(command, on_output=lambda stream, text: seen.append((stream, text))))
    await until(lambda: asyncio.sleep(0, bool(seen)))
    assert seen == [("stdout", "n")]
    await session.upload_file("go", b"")
    await running
    assert sorted(seen[1:]) == [("stderr", "�n"), ("stdout", "ü")]


@pytest.mark.long
async def test_much_output_is_complete_up_to_the_limit(session: Session) -> None:
    lines = "seq 300000"
    whole = await session.execute_command(lines)
    assert whole.stdout == "".join(f"{number}\n" for number in range(1, 300_001))
    cut = await session.execute_command(lines, max_output=1000)
    assert (cut.raw_stdout, cut.truncated, cut.exit_code, whole.truncated) == (whole.raw_stdout[:1000], True, 0, False)


@pytest.mark.long
async def test_a_command_ends_though_a_process_that_it_left_holds_its_output(session: Session) -> None:
    done = await session.execute_command("sleep 3600 & echo done")
    assert (done.stdout, done.exit_code) == ("done\n", 0)
    assert await are_running(session)


@pytest.mark.long
async def test_the_exit_code_that_code_has_fetched_is_no_success(session: Session) -> None:
    running = asyncio.ensure_future(session.execute_command("touch started; until test -e go; do sleep 0.01; done; exit 3"))
    await until(lambda: session.filesystem.exists("started"))
    await session.run("import os; open('go', 'w').close(); os.wait()")
    with pytest.raises(ExecutionError, match="ChildProcessError"):
        await running


@pytest.mark.parametrize("how", mostly_long(["reset", "rollback", "death"], "rollback"))
async def test_a_command_that_ended_with_its_interpreter_is_reported(how: str) -> None:
    async with open_pool() as pool, pool.session() as session:
        await session.run("x = 1")
        if how == "rollback":
            await session.checkpoint()
        running = asyncio.ensure_future(session.execute_command("touch started; sleep 3600"))
        await until(lambda: session.filesystem.exists("started"))
        match how:
            case "reset":
                await session.reset()
            case "rollback":
                await session.rollback()
            case "death":
                await session.run("import os; os._exit(1)")
        with pytest.raises(ExecutionError, match=r"the command was ended|the session's interpreter ended"):
            await running
        assert (await session.execute_command("echo usable")).stdout == "usable\n"


@pytest.mark.parametrize("first", mostly_long(["command", "file"], "command"))
async def test_a_loss_is_reported_once_by_the_next_command_also_before_the_first_cell(first: str) -> None:
    async with open_pool() as pool, pool.session("a") as session:
        await (session.execute_command("true") if first == "command" else session.filesystem.write("file", b""))
        await pool.terminate("a")
        assert not await session.filesystem.exists("file")  # has no state, so it reports nothing
        states = [str((await session.execute_command("true")).state) for _ in range(2)]
        assert [*states, str((await session.run("1")).state)] == ["lost: terminated", "kept", "kept"]


@pytest.mark.long
async def test_a_checkpoint_can_be_taken_between_commands() -> None:
    async with open_pool() as pool, pool.session() as session:
        await session.execute_command("echo one > file")
        checkpoint = await session.checkpoint()
        await session.execute_command("echo two > file")
        await session.rollback(checkpoint)
        assert (await session.execute_command("cat file")).stdout == "one\n"


async def test_a_loss_before_a_command_that_cannot_start_is_reported_by_the_next_one() -> None:
    async with open_pool() as pool, pool.session("a") as session:
        await session.execute_command("true")
        await pool.terminate("a")
        with pytest.raises(PathError):
            await session.execute_command("true", cwd="missing")
        assert str((await session.execute_command("true")).state) == "lost: terminated"
