"""`aca-sessions doctor --endpoint`: check an endpoint step by step, and name what to do about the first step that fails."""

import contextlib
import uuid
from collections.abc import Awaitable, Callable

from ..client.interpreter import CodeInterpreter
from ..connect import open_interpreter
from ..errors import ACASessionsError
from ..settings import Settings

Step = Callable[[CodeInterpreter, str], Awaitable[str]]


async def examine(settings: Settings) -> bool:
    """Print a line for each step. Return False when one fails; later steps are not tried."""
    session = f"doctor-{uuid.uuid4()}"
    try:
        async with open_interpreter(settings) as interpreter:
            for name, step in _STEPS.items():
                if not await _carried_out(name, step, interpreter, session):
                    if step is not _reach:
                        with contextlib.suppress(ACASessionsError):  # the failed step has its line already
                            await interpreter.delete_session(session)
                    return False
    except ACASessionsError as error:
        print(f"NO  settings        {error}")
        return False
    print("endpoint: usable")
    return True


async def _carried_out(name: str, step: Step, interpreter: CodeInterpreter, session: str) -> bool:
    try:
        print(f"ok  {name:<15} {await step(interpreter, session)}")
    except ACASessionsError as error:
        print(f"NO  {name:<15} {error}")
        return False
    return True


async def _reach(interpreter: CodeInterpreter, session: str) -> str:
    await interpreter.list_files(session)
    return "reached, and the credentials are taken"


async def _run_cell(interpreter: CodeInterpreter, session: str) -> str:
    result = await interpreter.execute(session, "6 * 7")
    if result.value != 42:
        raise ACASessionsError(f"6 * 7 was answered with {result.text!r}: is this a pool of Python code interpreters?")
    return f"6 * 7 is {result.value}, in {result.duration:.3f} s"


async def _keep_state(interpreter: CodeInterpreter, session: str) -> str:
    await interpreter.execute(session, "x = 20")
    result = await interpreter.execute(session, "x + 22")
    if result.value != 42:
        raise ACASessionsError("a variable was not there in the next cell: does a load balancer spread one session over several servers?")
    return f"variables are {result.state}"


async def _move_files(interpreter: CodeInterpreter, session: str) -> str:
    await interpreter.upload_file(session, "doctor.txt", b"hello")
    if await interpreter.download_file(session, "doctor.txt") != b"hello":
        raise ACASessionsError("a file came back with another content: does a proxy rewrite bodies?")
    await interpreter.delete_file(session, "doctor.txt")
    return "uploaded, downloaded, deleted"


async def _end(interpreter: CodeInterpreter, session: str) -> str:
    if not interpreter.can_end_sessions:
        return "this api-version cannot end sessions: they expire"
    await interpreter.delete_session(session)
    return "sessions can be ended"


async def _extensions(interpreter: CodeInterpreter, _session: str) -> str:
    rich = await interpreter.supports("rich")
    return "this is aca-sessions: rich results, interrupt, ranges" if rich else "none: what Azure has"


_STEPS: dict[str, Step] = {
    "reach": _reach,
    "one cell": _run_cell,
    "state": _keep_state,
    "files": _move_files,
    "ending": _end,
    "extensions": _extensions,
}
