"""Examine an endpoint: `aca-sessions doctor --endpoint` and `aca-sessions conformance`.

`doctor` checks step by step that an endpoint can be used. `conformance` compares the responses of its API with those of this package's
server, to find out how the real service differs (docs/reference/azure-fidelity.md). It uses the api-version 2025-10-02-preview.
"""

import contextlib
import json
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ..client.http import SessionsHttpClient, decode_response
from ..client.interpreter import CodeInterpreter
from ..connect import open_http, open_interpreter
from ..contract import flat
from ..contract.records import ExecutionRequest
from ..errors import ACASessionsError, ServiceError
from ..settings import Settings

Step = Callable[[CodeInterpreter, str], Awaitable[str]]


async def check(settings: Settings) -> bool:
    """Check step by step that an endpoint can be used, and print a line for each step. Return whether all steps succeeded.

    Stop at the first step that fails.
    """
    session = f"doctor-{uuid.uuid4()}"
    try:
        async with open_interpreter(settings) as interpreter:
            for name, step in _STEPS.items():
                if not await _print_step(name, step, interpreter, session):
                    if step is not _reach:
                        with contextlib.suppress(ACASessionsError):  # the failed step has its line already
                            await interpreter.delete_session(session)
                    return False
    except ACASessionsError as error:
        print(f"NO  settings        {error}")
        return False
    print("endpoint: usable")
    return True


async def _print_step(name: str, step: Step, interpreter: CodeInterpreter, session: str) -> bool:
    try:
        print(f"ok  {name:<15} {await step(interpreter, session)}")
    except ACASessionsError as error:
        print(f"NO  {name:<15} {error}")
        return False
    return True


async def _reach(interpreter: CodeInterpreter, session: str) -> str:
    await interpreter.list_files(session)
    return "reached, and the credentials are accepted"


async def _run_cell(interpreter: CodeInterpreter, session: str) -> str:
    result = await interpreter.execute(session, "6 * 7")
    if result.value != 42:
        raise ACASessionsError(
            f"expected 42 for 6 * 7, got {result.text!r:.80}: check that the Endpoint is a pool of Python code interpreters"
        )
    return f"6 * 7 is {result.value}, in {result.duration:.3f} s"


async def _keep_state(interpreter: CodeInterpreter, session: str) -> str:
    await interpreter.execute(session, "x = 20")
    result = await interpreter.execute(session, "x + 22")
    if result.value != 42:
        raise ACASessionsError(
            "expected the next cell to have the first one's variable: let a load balancer send all requests of a session to one server"
        )
    return f"variables are {result.state}"


async def _move_files(interpreter: CodeInterpreter, session: str) -> str:
    await interpreter.upload_file(session, "doctor.txt", b"hello")
    if await interpreter.download_file(session, "doctor.txt") != b"hello":
        raise ACASessionsError("expected the uploaded content from the download, got another: check that no proxy rewrites bodies")
    await interpreter.delete_file(session, "doctor.txt")
    return "uploaded, downloaded, deleted"


async def _end(interpreter: CodeInterpreter, session: str) -> str:
    if not interpreter.can_end_sessions:
        return "this api-version cannot end sessions: they expire"
    await interpreter.delete_session(session)
    return "sessions can be ended"


async def _extensions(interpreter: CodeInterpreter, _session: str) -> str:
    rich = await interpreter.supports("rich")
    return "this is aca-sessions: rich results, interrupt, ranges" if rich else "none: this endpoint has Azure's API only"


_STEPS: dict[str, Step] = {
    "reach": _reach,
    "one cell": _run_cell,
    "state": _keep_state,
    "files": _move_files,
    "ending": _end,
    "extensions": _extensions,
}


_PNG = "data of an image"


@dataclass(frozen=True, slots=True)
class Observation:
    """One comparison of an endpoint with this package's server: what is compared, the server's value, and the endpoint's value."""

    question: str
    expected: object
    observed: object

    @property
    def agrees(self) -> bool:
        """Return whether the endpoint's value equals the value of this package's server."""
        return self.expected == self.observed


VALUES: dict[str, tuple[str, object]] = {
    "an integer": ("6 * 7", 42),
    "a float": ("1 / 4", 0.25),
    "a bool": ("True", True),
    "a string": ("'a' * 3", "aaa"),
    "a list": ("[1, 2]", "[1, 2]"),
    "a dict": ("{'a': 1}", "{'a': 1}"),
    "a variable that is None": ("x = None; x", None),
    "nan": ("float('nan')", "nan"),
    "an assignment": ("x = 1", ""),
    "print as the last line": ("print('out')", ""),
    "a list too long for a line": ("['a' * 30] * 4", "['" + "',\n '".join(["a" * 30] * 4) + "']"),
    "a figure": ("import matplotlib.pyplot as plt; plt.plot([1]); plt.show()", _PNG),
    "two figures": ("plt.plot([1]); plt.show(); plt.plot([2]); plt.show()", _PNG),
    "a string with a figure": ("plt.plot([1]); plt.show(); 'text'", _PNG),
    "the working directory": ("import os; os.getcwd()", "/mnt/data"),
}


async def compare(settings: Settings, report: Path | None) -> bool:
    """Compare an endpoint's responses with those of this package's server, and print each comparison. Return whether all are equal.

    If `report` is given, write the comparisons to this file as JSON. If an error occurs, print and write the comparisons made before it.
    """
    session, observations = f"conformance-{uuid.uuid4()}", list[Observation]()
    try:
        async with open_http(settings) as http:
            for question in VALUES:
                observations.append(await _value(http, session, question))
            for ask in (_exception, _cut, _unknown_file, _file, _asynchronous, _ended):
                observations.append(await ask(http, session))
    finally:
        _print(observations, report)
    return all(one.agrees for one in observations)


def _print(observations: list[Observation], report: Path | None) -> None:
    for one in observations:
        difference = "" if one.agrees else f": expected {one.expected!r}, got {one.observed!r}"
        print(f"{'same' if one.agrees else 'DIFF'}  {one.question}{difference}")
    if report is not None:
        report.write_text(json.dumps([asdict(one) | {"agrees": one.agrees} for one in observations], indent=2, default=str))


async def _value(http: SessionsHttpClient, session: str, question: str) -> Observation:
    code, expected = VALUES[question]
    observed = (await _execute(http, session, code))[1].get("executionResult")
    if isinstance(observed, dict) and observed.get("type") == "image":
        observed = _PNG
    return Observation(f"the value of {question}", expected, observed)


async def _exception(http: SessionsHttpClient, session: str) -> Observation:
    status, result = await _execute(http, session, "1 / 0")
    stderr = str(result.get("stderr"))
    observed = [status, stderr.strip().rpartition("\n")[2], "\x1b" in stderr]
    return Observation("an exception: status, last line, ANSI codes", ["Failed", "ZeroDivisionError: division by zero", False], observed)


async def _cut(http: SessionsHttpClient, session: str) -> Observation:
    _, result = await _execute(http, session, "print('x' * 9999)", limit=100)
    return Observation("the length of stdout with a limit of 100", 100, len(str(result.get("stdout"))))


async def _unknown_file(http: SessionsHttpClient, session: str) -> Observation:
    return Observation("an unknown file", [404, "FileNotFound"], await _outcome(http, "GET", "files/nothing.txt", session))


async def _file(http: SessionsHttpClient, session: str) -> Observation:
    shown = decode_response(await http.request("POST", "files", identifier=session, file=("a b.txt", b"hello")), dict)
    observed = [shown.get("name"), shown.get("type"), shown.get("sizeInBytes"), shown.get("directory")]
    return Observation("an uploaded file: name, type, size, directory", ["a b.txt", "file", 5, ""], observed)


async def _asynchronous(http: SessionsHttpClient, session: str) -> Observation:
    call = flat.encode_request(ExecutionRequest(code="import time; time.sleep(1)", asynchronous=True))
    answer = await http.request("POST", "executions", identifier=session, json=call)
    observed = [
        answer.status_code,
        decode_response(answer, dict).get("status") in ("NotStarted", "Running"),
        "operation-location" in answer.headers,
    ]
    return Observation("an asynchronous start: status, still running, has operation-location", [200, True, True], observed)


async def _ended(http: SessionsHttpClient, session: str) -> Observation:
    ended, _ = await _outcome(http, "DELETE", "session", session)
    observed = [ended, *await _outcome(http, "GET", "session", session)]
    return Observation("an ended session, and asking for it afterwards", [204, 400, "SessionWithIdentifierNotFound"], observed)


async def _execute(http: SessionsHttpClient, session: str, code: str, limit: int = 4096) -> tuple[object, dict[str, object]]:
    call = flat.encode_request(ExecutionRequest(code=code, output_limit=limit, timeout=60))
    body = decode_response(await http.request("POST", "executions", identifier=session, json=call, timeout=90), dict)
    if not isinstance(result := body.get("result"), dict):
        raise ACASessionsError(
            "expected a result in the response to an execution, got none: check that the Endpoint is a pool of Python code interpreters"
        )
    return body.get("status"), result


async def _outcome(http: SessionsHttpClient, method: str, path: str, session: str) -> list[object]:
    try:
        return [(await http.request(method, path, identifier=session)).status_code, None]
    except ServiceError as error:
        return [error.status_code, error.code]
