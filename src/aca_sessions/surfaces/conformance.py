"""`aca-sessions conformance`: ask any endpoint what its API answers, compare that with ours, and write a report.

It finds out what is not known of the real service (docs/azure-fidelity.md), for owners of a pool. It speaks 2025-10-02-preview.
"""

import json
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from ..client.http import SessionsHttpClient, decoded
from ..connect import open_http
from ..contract import flat
from ..contract.records import ExecutionCall
from ..errors import ACASessionsError, ServiceError
from ..settings import Settings

_PNG = "data of an image"


@dataclass(frozen=True, slots=True)
class Observation:
    """One question, the answer of our server, and the answer of this endpoint."""

    question: str
    expected: object
    observed: object

    @property
    def agrees(self) -> bool:
        """Return whether both answers are the same."""
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


async def examine(settings: Settings, report: Path | None) -> bool:
    """Print each observation and write all of them to the report, if one is wanted. Return whether all answers agree.

    If an error ends the examination, the observations until then are printed and written.
    """
    session, observations = f"conformance-{uuid.uuid4()}", list[Observation]()
    try:
        async with open_http(settings) as http:
            for question in VALUES:
                observations.append(await _value(http, session, question))
            for ask in (_exception, _cut, _unknown_file, _file, _asynchronous, _ended):
                observations.append(await ask(http, session))
    finally:
        _tell(observations, report)
    return all(one.agrees for one in observations)


def _tell(observations: list[Observation], report: Path | None) -> None:
    for one in observations:
        difference = "" if one.agrees else f": {one.observed!r}, ours is {one.expected!r}"
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
    return Observation("the length of stdout where 100 are asked for", 100, len(str(result.get("stdout"))))


async def _unknown_file(http: SessionsHttpClient, session: str) -> Observation:
    return Observation("an unknown file", [404, "FileNotFound"], await _outcome(http, "GET", "files/nothing.txt", session))


async def _file(http: SessionsHttpClient, session: str) -> Observation:
    shown = decoded(await http.request("POST", "files", identifier=session, file=("a b.txt", b"hello")), dict)
    observed = [shown.get("name"), shown.get("type"), shown.get("sizeInBytes"), shown.get("directory")]
    return Observation("an uploaded file: name, type, size, directory", ["a b.txt", "file", 5, ""], observed)


async def _asynchronous(http: SessionsHttpClient, session: str) -> Observation:
    call = flat.encode_call(ExecutionCall(code="import time; time.sleep(1)", asynchronous=True))
    answer = await http.request("POST", "executions", identifier=session, json=call)
    observed = [
        answer.status_code,
        decoded(answer, dict).get("status") in ("NotStarted", "Running"),
        "operation-location" in answer.headers,
    ]
    return Observation("an asynchronous start: status, still running, where to ask", [200, True, True], observed)


async def _ended(http: SessionsHttpClient, session: str) -> Observation:
    ended, _ = await _outcome(http, "DELETE", "session", session)
    observed = [ended, *await _outcome(http, "GET", "session", session)]
    return Observation("an ended session, and asking for it afterwards", [204, 400, "SessionWithIdentifierNotFound"], observed)


async def _execute(http: SessionsHttpClient, session: str, code: str, limit: int = 4096) -> tuple[object, dict[str, object]]:
    """Run code and return the execution's status and result."""
    call = flat.encode_call(ExecutionCall(code=code, output_limit=limit, timeout=60))
    body = decoded(await http.request("POST", "executions", identifier=session, json=call, timeout=90), dict)
    if not isinstance(result := body.get("result"), dict):
        raise ACASessionsError("an execution was answered without a result: is this a pool of Python code interpreters?")
    return body.get("status"), result


async def _outcome(http: SessionsHttpClient, method: str, path: str, session: str) -> list[object]:
    """Send a request and return the status of its response, and the code of its error or None."""
    try:
        return [(await http.request(method, path, identifier=session)).status_code, None]
    except ServiceError as error:
        return [error.status_code, error.code]
