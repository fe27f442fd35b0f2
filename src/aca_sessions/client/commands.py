"""Run commands in a session, beside its cells: a short cell starts one, and further cells fetch its output until it has ended."""

import asyncio
import base64
import binascii
import codecs
import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import ACASessionsError, ExecutionError, InvalidArgumentError, PathError
from ..models import CommandResult, Record, State
from .arguments import checked_timeout
from .snippet_results import parse_printed_json, unreadable

if TYPE_CHECKING:
    from .session import Session

COMMAND_SECONDS = 100.0
MOST_OUTPUT = 10 << 20  # bytes of each stream
INLINE_BYTES = 256 << 10  # of what is sent to a session inside a cell; more is uploaded
_FIRST_WAIT = 0.1  # seconds that the first cell waits: most commands have ended then
_PAUSE, _LONGEST_PAUSE = 0.01, 0.2
_KILL_SECONDS = 10.0
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126  # the exit codes of shells
_ENOENT = 2
OnOutput = Callable[[str, str], object]


@dataclass(slots=True)
class _Stream:
    """What a command has written to one stream: the beginning, up to a limit, and whether that is all."""

    name: str
    limit: int
    on_output: OnOutput | None
    data: bytearray = field(default_factory=bytearray)
    truncated: bool = False
    _decoder: Any = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace"))

    def add(self, encoded: object) -> None:
        """Add base64 that a session sent. Raise ServiceError if it is not that."""
        try:
            data = base64.b64decode(str(encoded), validate=True)
        except binascii.Error:
            raise unreadable() from None
        room = self.limit - len(self.data)
        self.data += data[:room]
        self.truncated |= len(data) > room
        if self.on_output is not None and (text := self._decoder.decode(data[:room])):
            self.on_output(self.name, text)


async def execute_command(
    session: "Session",
    command: str | Sequence[str],
    *,
    stdin: bytes | str = b"",
    cwd: str | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = COMMAND_SECONDS,
    max_output: int = MOST_OUTPUT,
    on_output: OnOutput | None = None,
) -> CommandResult:
    """Run a command like `Session.execute_command`."""
    request = _request(command, cwd, env)
    content = stdin.encode() if isinstance(stdin, str) else bytes(stdin)
    checked_timeout(timeout)
    streams = [_Stream(name, max_output, on_output) for name in ("stdout", "stderr")]
    running = _Running(session, request["id"], streams, None if timeout is None else time.monotonic() + timeout)
    try:
        request |= {"wait": _FIRST_WAIT if timeout is None else min(_FIRST_WAIT, timeout), **await send_content(session, content, "input")}
        match await running.call("start_command", json.dumps(request)):
            case {"errno": int(number), "program": bool(is_program)}:
                result = _not_started(number, None if is_program else cwd or "", request["arguments"], running.state)
                running.deliver()  # not if an error is raised, which does not have the state
                return result
            case reply:
                code = await running.wait(reply)
    except BaseException:
        if not running.is_lost:
            await session._interpreter._tasks.run_shielded(_end(session, request))
        raise
    running.deliver()
    out, err = (bytes(stream.data) for stream in streams)
    return CommandResult(
        exit_code=code,
        stdout=out.decode(errors="replace"),
        stderr=err.decode(errors="replace"),
        timed_out=running.timed_out,
        truncated=any(stream.truncated for stream in streams),
        raw_stdout=out,
        raw_stderr=err,
        state=running.state,
    )


class _Running:
    """A command that runs in a session."""

    def __init__(self, session: "Session", id: str, streams: list[_Stream], deadline: float | None) -> None:
        self._session, self._id, self._streams, self._deadline = session, id, streams, deadline
        self._caller = session._copy_position()
        self._records: list[Record] = []
        self.state = State()
        self.timed_out = self.is_lost = False

    async def call(self, name: str, *arguments: str | int) -> Any:
        """Run a snippet that prints a command's output, and return what else it printed."""
        result = await self._session._run_snippet(name, *arguments, caller=self._caller)
        if self.state.kind == "kept":
            self.state = result.state
        if result.record is not None:
            self._records = [*(one for one in self._records if one.entries), result.record]
        reply = parse_printed_json(result)
        if isinstance(reply, dict):
            for stream in self._streams:
                stream.add(reply.get(stream.name, ""))
            return reply
        self.is_lost = reply is None
        if not self.is_lost:
            raise unreadable()
        raise ExecutionError(f"the command was ended, because its session's state is {self.state}: look at what is left, and run it again")

    def deliver(self) -> None:
        """Note that the caller gets `state`, so that no later result of its object reports the same."""
        session = self._session
        for caller in (session._caller, session._interpreter._position_of(session.session_id)):
            for record in self._records:
                caller.advance(record)

    async def wait(self, reply: Any) -> int:
        """Fetch output until the command has ended, given the last reply. Kill it at its deadline. Return the exit code."""
        pause = _PAUSE
        while True:
            left = _LONGEST_PAUSE if self._deadline is None else self._deadline - time.monotonic()
            match reply:
                case {"exit_code": int(code)}:
                    return code
                case {"exit_code": None, "more": True, "stdout": str(out), "stderr": str(err)} if (out or err) and left > -_KILL_SECONDS:
                    pass
                case {"exit_code": None, "more": False} if not self.timed_out:
                    await asyncio.sleep(max(0.0, min(pause, left)))
                    pause = min(1.5 * pause, _LONGEST_PAUSE)
                case _:
                    raise unreadable()
            self.timed_out = self._deadline is not None and time.monotonic() >= self._deadline
            reply = await self.call("fetch_command", self._id, int(self.timed_out))


async def send_content(session: "Session", content: bytes, name: str) -> dict[str, str]:
    """Return the part of a snippet's request that has `content`: as base64, or the name of a file that was uploaded if it is large."""
    if len(content) <= INLINE_BYTES:
        return {name: base64.b64encode(content).decode()}
    file = f".call-{uuid.uuid4().hex}"
    await session._interpreter._upload(session.session_id, file, content)  # not by the session's method, which adds it to the history
    return {f"{name}_file": file}


def _request(command: object, cwd: object, env: object) -> dict[str, Any]:
    """Validate the arguments of a command, and return the request to start it."""
    if isinstance(command, str):
        arguments: Any = command
        if not command.strip():
            raise InvalidArgumentError("command must be text for the shell, such as 'ls -la', or a list of arguments, got empty text")
    elif isinstance(command, Sequence) and command and all(isinstance(one, str) for one in command) and command[0]:
        arguments = [*command]
    else:
        raise InvalidArgumentError(
            f"command must be text for the shell, such as 'ls -la', or a list of arguments, such as ['ls', '-la'], got {command!r:.80}"
        )
    variables = dict(env) if isinstance(env, Mapping) else {} if env is None else None
    if variables is None or not all(isinstance(name, str) and isinstance(value, str) for name, value in variables.items()):
        raise InvalidArgumentError("env must be a dict of texts: convert numbers by str(), and leave out what has no value")
    if any(not name or "=" in name for name in variables):
        raise InvalidArgumentError("a name in env must not be empty or contain '='")
    if cwd is not None and not isinstance(cwd, str):
        raise InvalidArgumentError(f"cwd must be the path of a folder in the session, got {cwd!r:.80}")
    if any(
        "\0" in one for one in (*([arguments] if isinstance(arguments, str) else arguments), *variables, *variables.values(), cwd or "")
    ):
        raise InvalidArgumentError("a command, its env and its cwd must not contain NUL characters")
    return {"id": uuid.uuid4().hex, "arguments": arguments, "folder": cwd, "variables": variables}


def _not_started(number: int, folder: str | None, arguments: str | list[str], state: State) -> CommandResult:
    """Return the result of a command whose program cannot be started, as a shell does. Raise PathError if its `folder` is the reason."""
    if folder is not None:
        raise PathError.of(number, f"cannot run a command in {folder!r:.200}", folder)
    problem = f"{arguments[0]}: {os.strerror(number)}\n"
    code = _NOT_FOUND if number == _ENOENT else _NOT_EXECUTABLE
    return CommandResult(exit_code=code, stdout="", stderr=problem, raw_stderr=problem.encode(), state=state)


async def _end(session: "Session", request: Mapping[str, Any]) -> None:
    """Kill a command whose caller does not wait any more, and delete its input. Ignore errors. Try for at most 10 s each."""
    with contextlib.suppress(ACASessionsError, TimeoutError):
        async with asyncio.timeout(_KILL_SECONDS):
            await session._run_snippet("fetch_command", request["id"], 1)
    if "input_file" in request:  # of a command that was not started
        await delete_quietly(session, request["input_file"])


async def delete_quietly(session: "Session", file: str) -> None:
    """Delete a file in /mnt/data that was written for a snippet, or by one. Ignore errors. Try for at most 10 s."""
    with contextlib.suppress(ACASessionsError, TimeoutError):
        async with asyncio.timeout(_KILL_SECONDS):
            await session._interpreter.delete_file(session.session_id, file)
