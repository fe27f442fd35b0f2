"""Test that both halves of 2025-10-02-preview agree with each other and with recorded Azure replies."""

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aca_sessions.contract import flat
from aca_sessions.contract.records import (
    ExecutionRequest,
    ExecutionResponse,
    MalformedBodyError,
    ProblemError,
    decode_problem,
    encode_problem,
    retry_after,
)
from aca_sessions.errors import AuthenticationError, NotFoundError, RateLimitedError, ServiceError
from aca_sessions.models import (
    NO_REPLY,
    CodeError,
    CodeExecutionResult,
    Display,
    FileChange,
    RemoteFile,
    SessionInfo,
    State,
    VariableChange,
)

GOLDEN = Path(__file__).parent / "golden"
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
CHANGES = st.builds(FileChange, TEXT, st.sampled_from(["created", "changed", "deleted"]), st.integers(0, 1 << 40))
MOMENTS = st.datetimes(datetime(1990, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
SHAPES = st.lists(st.integers(0, 1 << 40), max_size=3).map(tuple)
VARIABLES = st.builds(
    VariableChange, TEXT, st.sampled_from(["added", "changed", "deleted"]), TEXT, st.none() | SHAPES, st.integers(0, 1 << 40)
)
SHOWN = st.dictionaries(st.sampled_from(["text/plain", "text/html"]), TEXT, min_size=1)
CALLS = st.builds(
    ExecutionRequest,
    code=TEXT.filter(str.strip),
    asynchronous=st.booleans(),
    timeout=st.none() | st.integers(1, 220),
    output_limit=st.integers(1, 1 << 20),
)
PARTS = st.sampled_from(["kept", "restored", "rolled_back", "lost", "unknown"])
RESULTS = st.builds(
    CodeExecutionResult,
    session_id=st.just("s"),
    stdout=TEXT,
    stderr=TEXT,
    value=st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    text=st.none() | TEXT,
    displays=st.lists(st.builds(Display, SHOWN, st.none() | TEXT), max_size=3).map(tuple),
    files=st.lists(
        st.builds(FileChange, TEXT, st.sampled_from(["created", "changed", "deleted"]), st.integers(0, 1 << 40)), max_size=2
    ).map(tuple),
    variables=st.lists(VARIABLES, max_size=2).map(tuple),
    error=st.none() | st.builds(CodeError, TEXT, TEXT, TEXT),
    state=st.builds(State, PARTS, PARTS, st.sampled_from(["kept", "ended", "unknown"]), st.none() | TEXT, st.none() | TEXT),
    duration=st.integers(0, 10**6).map(lambda milliseconds: milliseconds / 1000),
)
FILES = st.builds(
    RemoteFile,
    name=TEXT,
    size=st.integers(0, 1 << 40),
    modified=MOMENTS,
    directory=st.sampled_from(["", "a", "a/b"]),
    is_directory=st.booleans(),
)


def through_json(body: object) -> object:
    return json.loads(json.dumps(body))


@given(CALLS)
def test_a_call_survives_encoding_and_decoding(call: ExecutionRequest) -> None:
    assert flat.decode_request(through_json(flat.encode_request(call))) == call


@given(RESULTS, st.booleans())
def test_a_rich_result_survives_encoding_and_decoding(result: CodeExecutionResult, asynchronous: bool) -> None:
    status = "Succeeded" if result.success else "Failed"
    execution = ExecutionResponse(id="e", identifier="s", status=status, asynchronous=asynchronous, result=result)
    assert flat.decode_execution(through_json(flat.encode_execution(execution, 10, full=True))) == execution


@given(FILES)
def test_a_file_survives_encoding_and_decoding(file: RemoteFile) -> None:
    assert flat.decode_file(through_json(flat.encode_file(file))) == file


@given(MOMENTS)
def test_a_session_survives_encoding_and_decoding(moment: datetime) -> None:
    session = SessionInfo(session_id="s", created=moment, last_used=moment, expires=moment + timedelta(seconds=300))
    assert flat.decode_session(through_json(flat.encode_session(session))) == session


def test_a_running_execution_has_no_result() -> None:
    running = ExecutionResponse(id="e", identifier="s", status="Running", asynchronous=True)
    assert flat.decode_execution(flat.encode_execution(running, 10, full=True)) == running


def plain(result: CodeExecutionResult) -> dict:
    status = "Succeeded" if result.success else "Failed"
    return flat.encode_execution(ExecutionResponse(id="e", identifier="s", status=status, result=result), 4096, full=False)


@pytest.mark.parametrize(
    ("value", "text", "on_the_wire"),
    [
        (42, "42", 42),
        ("abc", "'abc'", "abc"),
        ("{'a': 1}", "{'a': 1}", "{'a': 1}"),
        (True, "True", True),
        (None, None, ""),
        (float("nan"), "nan", "nan"),
    ],
)
def test_values_without_the_rich_header_are_encoded_as_azure_does(value: object, text: str | None, on_the_wire: object) -> None:
    assert plain(CodeExecutionResult(value=value, text=text))["result"]["executionResult"] == on_the_wire


def test_a_value_of_none_is_null_and_our_client_reads_both_as_none() -> None:
    for is_none, on_the_wire in ((True, None), (False, "")):
        body = plain(CodeExecutionResult(value_is_none=is_none))
        assert body["result"]["executionResult"] == on_the_wire
        result = flat.decode_execution(through_json(body)).result
        assert (result.value, result.text) == (None, None)


def test_our_client_reads_problems_of_this_and_of_older_servers() -> None:
    error = decode_problem(400, through_json(encode_problem(MalformedBodyError("$", "no JSON at 3"))), {})
    assert isinstance(error, ServiceError)
    assert (error.status_code, "no JSON at 3" in str(error)) == (400, True)
    bare = decode_problem(400, {"title": "One or more validation errors occurred.", "status": 400}, {})
    assert "validation errors" in str(bare)
    older = decode_problem(400, {"error": {"code": "SessionRequestValidationFailed", "message": "the body is not JSON"}}, {})
    assert isinstance(older, ServiceError)
    assert older.code == "SessionRequestValidationFailed"


def test_an_image_is_azures_object() -> None:
    body = plain(CodeExecutionResult(displays=(Display({"image/png": "iVBO"}),)))
    assert body["result"]["executionResult"] == {"type": "image", "format": "png", "base64_data": "iVBO"}


def test_without_the_rich_header_no_extension_is_in_the_body() -> None:
    body = plain(
        CodeExecutionResult(
            stdout="x" * 5000, state=State(variables="lost", reason="crash"), error=CodeError("InterpreterDied", "m"), stderr="m"
        )
    )
    assert set(body) == {"$id", "id", "identifier", "executionType", "status", "result"}
    assert body["status"] == "Failed"
    assert body["result"]["stderr"] == "Execution aborted"
    assert len(body["result"]["stdout"]) == 4096


def test_a_timeout_has_azures_error_text() -> None:
    body = plain(CodeExecutionResult(error=CodeError("TimeoutError", "the cell ran longer")))
    assert body["result"]["stderr"] == "Request timed out waiting for code execution to complete"
    assert flat.decode_execution(body).result.state == NO_REPLY


def golden(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def test_a_recorded_execution_is_read() -> None:
    execution = flat.decode_execution(golden("execution"))
    assert execution.status == "Succeeded"
    assert (execution.result.stdout, execution.result.value, execution.result.duration) == ("Hello World!\n", None, 0.007)


def test_a_recorded_execution_is_what_the_server_would_encode() -> None:
    recorded = golden("execution")
    said = flat.encode_execution(flat.decode_execution(recorded), 4096, full=False)
    assert said == recorded


def test_a_recorded_file_is_read() -> None:
    file = flat.decode_file(golden("file"))
    assert (file.name, file.size, file.content_type) == ("test-file.txt", 516, "text/plain")
    assert file.modified == datetime(2024, 8, 6, 16, 21, 22, 242394, tzinfo=UTC)


def test_a_traceback_without_the_rich_body_still_names_its_error() -> None:
    body = plain(
        CodeExecutionResult(
            stderr="Traceback\n\nZeroDivisionError: division by zero", error=CodeError("ZeroDivisionError", "division by zero")
        )
    )
    error = flat.decode_execution(body).result.error
    assert (error.name, error.message) == ("ZeroDivisionError", "division by zero")


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (401, None, AuthenticationError),
        (403, {"error": {"code": "Forbidden", "message": "no"}}, AuthenticationError),
        (404, {"error": {"code": "FileNotFound", "message": "no"}}, NotFoundError),
        (429, {"code": "SessionsCountExceedsLimit", "message": "full"}, RateLimitedError),
        (503, {"error": {"code": "TooManySessionsStarting", "message": "later"}}, RateLimitedError),
        (503, {"error": {"code": "ServerDraining", "message": "elsewhere"}}, ServiceError),
        (400, {"title": "One or more validation errors occurred.", "status": 400}, ServiceError),
        (502, "<html>", ServiceError),
    ],
)
def test_each_error_form_becomes_its_exception(status: int, body: object, kind: type) -> None:
    error = decode_problem(status, body, {"retry-after": "7"})
    assert type(error) is kind
    if isinstance(error, RateLimitedError):
        assert error.retry_after == 7
    if status == 403:
        assert "Azure ContainerApps Session Executor" in str(error)


def test_retry_after_may_be_seconds_or_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    assert 3500 < retry_after({"retry-after": later}) <= 3600
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert [retry_after({"retry-after": said}) for said in ("0.5", "120", "-1", "nan", "soon", "")] == [0.5, 120] + [None] * 4
    assert retry_after({}) is None


def test_a_problem_survives_encoding_and_decoding() -> None:
    for status in (400, 404, 429):
        problem = ProblemError(status, "Code", "message")
        error = decode_problem(status, encode_problem(problem), {})
        assert (error.status_code, error.code, error.message) == (status, "Code", "message")
