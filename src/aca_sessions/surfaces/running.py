"""`aca-sessions run`: run one cell, and show it at its end or while it runs."""

import argparse
import asyncio
import contextlib
import uuid
from pathlib import Path

from ..client.execution import Execution
from ..client.interpreter import CodeInterpreter
from ..connect import open_interpreter
from ..errors import ACASessionsError, ConfigurationError
from .endpoints import lasting, settings_at
from .shown import Shown, images_of, show, show_json
from .standard_streams import code_from_argument, code_from_input

_INTERRUPTED = 130


async def run(options: argparse.Namespace) -> int:
    """Run the cell in a session of its own, or in the named one, and return the exit code. A session of its own is ended afterwards."""
    settings = lasting(options.endpoint, "--session") if options.session else settings_at(options.endpoint)
    code = code_from_input() if options.code == "-" else code_from_argument(options.code)
    files = [(path.name, _content(path)) for path in options.file]
    session = options.session or str(uuid.uuid4())
    async with open_interpreter(settings) as interpreter:
        try:
            for name, content in files:
                await interpreter.upload_file(session, name, content)
            return await (_run_live if options.live else _run_to_its_end)(interpreter, session, code, options)
        finally:
            if not options.session:
                with contextlib.suppress(ACASessionsError):  # it may never have started
                    await interpreter.delete_session(session)


async def _run_to_its_end(interpreter: CodeInterpreter, session: str, code: str, options: argparse.Namespace) -> int:
    result = await interpreter.execute(session, code, timeout=options.timeout)
    show_json(result) if options.json else show(result)
    return result.exit_code


async def _run_live(interpreter: CodeInterpreter, session: str, code: str, options: argparse.Namespace) -> int:
    """Run the cell and show it while it runs. Ctrl-C interrupts it."""
    execution = await interpreter.start(session, code, timeout=options.timeout)
    following = asyncio.create_task(_follow(interpreter, execution))
    try:
        return await asyncio.shield(following)
    except asyncio.CancelledError:
        # `asyncio.run` turns the first Ctrl-C into a cancellation of this task. It is taken back: the cell's result is still to come.
        # The second Ctrl-C raises KeyboardInterrupt.
        if (task := asyncio.current_task()) is not None:
            task.uncancel()
        await interpreter.cancel_quietly(execution)
        await following
        return _INTERRUPTED


async def _follow(interpreter: CodeInterpreter, execution: Execution) -> int:
    shown, status = Shown(), 1
    try:
        async for event in execution.events():
            shown.take(event)
            if event.result is not None:
                shown.finish(event.result, images_of(event.result))
                status = event.result.exit_code
    except BaseException:
        await interpreter.cancel_quietly(execution)
        raise
    return status


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"--file {path} cannot be read: {error.strerror}") from None
