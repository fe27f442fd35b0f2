"""Test the request/result API, and what network faults do to it."""

import httpx
import pytest

from aca_sessions import CodeExecutionRequest, CodeInterpreter, FileUploadRequest, SessionsHttpClient, open_interpreter
from aca_sessions.errors import AuthenticationError, InvalidArgumentError, NotSupportedError, ServiceError, ServiceUnavailableError


async def test_the_documented_request_objects(interpreter: CodeInterpreter) -> None:
    await interpreter.upload_file(FileUploadRequest(session_id="s1", file_name="data.csv", file_content=b"a,b\n1,2\n"))
    code = "```python\nprint(open('/mnt/data/data.csv').read())\n```"
    result = await interpreter.execute(CodeExecutionRequest(session_id="s1", code=code, sanitize_input=True))
    assert (result.stdout, result.session_id) == ("a,b\n1,2\n\n", "s1")


async def test_without_sanitizing_a_fence_is_a_syntax_error(interpreter: CodeInterpreter) -> None:
    result = await interpreter.execute(CodeExecutionRequest(session_id="s1", code="```\n1\n```", sanitize_input=False))
    assert result.error.name == "SyntaxError"


@pytest.mark.parametrize("code", [None, 3, b"1", "'\ud800'"])
async def test_code_that_cannot_be_run_is_a_failed_result(interpreter: CodeInterpreter, code: object) -> None:
    result = await interpreter.execute("s1", code)  # type: ignore[arg-type]
    assert not result.success
    assert result.error.message
    assert (await interpreter.execute("s1", "6 * 7")).value == 42


async def test_a_cell_that_outlasts_one_request_is_polled(interpreter: CodeInterpreter) -> None:
    result = await interpreter.execute("s1", "import time; time.sleep(0.2); 5", timeout=1000)
    assert result.value == 5


async def test_sessions_are_known_to_the_service(interpreter: CodeInterpreter) -> None:
    await interpreter.execute("s1", "1")
    assert (await interpreter.get_session("s1")).session_id == "s1"
    assert [session.session_id for session in await interpreter.list_sessions()] == ["s1"]
    await interpreter.delete_session("s1")
    with pytest.raises(ServiceError, match="SessionWithIdentifierNotFound"):
        await interpreter.get_session("s1")


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 1e9, "5", True])
async def test_an_invalid_time_limit_is_refused(interpreter: CodeInterpreter, timeout: object) -> None:
    with pytest.raises(InvalidArgumentError):
        await interpreter.execute("s1", "1", timeout=timeout)  # type: ignore[arg-type]


@pytest.mark.parametrize("session_id", ["", "x" * 300, "名前", "a\nb", "\ud800"])
async def test_an_invalid_session_id_is_refused(interpreter: CodeInterpreter, session_id: object) -> None:
    for call in (interpreter.execute(session_id, "1"), interpreter.list_files(session_id), interpreter.delete_session(session_id)):  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError):
            await call


@pytest.mark.parametrize("name", ["", "folder/", 'quo"ted', "back\\slash", "line\nbreak", "nul\0", "\ud800", None, 3])
async def test_a_file_name_that_cannot_be_sent_is_refused(interpreter: CodeInterpreter, name: object) -> None:
    for call in (interpreter.upload_file("s1", name, b""), interpreter.download_file("s1", name), interpreter.delete_file("s1", name)):  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError):
            await call


@pytest.mark.parametrize("data", [3, None, ["x"], "\ud800"])
async def test_data_that_is_not_bytes_is_refused(interpreter: CodeInterpreter, data: object) -> None:
    with pytest.raises(InvalidArgumentError):
        await interpreter.upload_file("s1", "name", data)  # type: ignore[arg-type]


async def test_any_bytes_like_object_is_data(interpreter: CodeInterpreter) -> None:
    for data in (b"x", bytearray(b"x"), memoryview(b"x"), "x"):
        await interpreter.upload_file("s1", "name", data)  # type: ignore[arg-type]
        assert await interpreter.download_file("s1", "name") == b"x"


async def test_a_closed_interpreter_is_reported() -> None:
    async with open_interpreter() as interpreter:
        pass
    with pytest.raises(ServiceUnavailableError, match="closed"):
        await interpreter.execute("s1", "1")


@pytest.mark.parametrize("body", [{"foo": 1}, {"id": 1, "identifier": "s", "status": "Succeeded", "result": 5}, [], None, "x"])
async def test_a_malformed_answer_is_an_error_and_not_a_crash(body: object) -> None:
    async with against(lambda _: httpx.Response(200, json=body)) as interpreter:
        with pytest.raises(ServiceUnavailableError):
            await interpreter.execute("s1", "1")


def against(answer) -> CodeInterpreter:
    """Return an interpreter whose network answers as given."""
    client = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://pool.example")
    return CodeInterpreter(SessionsHttpClient(client, patience=0.3))


async def test_an_error_page_of_a_proxy_is_not_a_traceback() -> None:
    async with against(lambda _: httpx.Response(200, html="<h1>Welcome</h1>")) as interpreter:
        with pytest.raises(ServiceUnavailableError, match="session pool"):
            await interpreter.execute("s1", "1")
    async with against(lambda _: httpx.Response(502, html="<h1>Bad gateway</h1>")) as interpreter:
        with pytest.raises(ServiceError, match="502"):
            await interpreter.list_files("s1")


@pytest.mark.parametrize("status", [502, 504])
async def test_a_gateway_error_leaves_open_whether_the_cell_ran(status: int) -> None:
    async with against(lambda _: httpx.Response(status, html="<h1>Bad gateway</h1>")) as interpreter:
        result = await interpreter.execute("s1", "1")
    assert (result.success, str(result.state)) == (False, "unknown: no reply")


async def test_a_proxys_error_page_does_not_change_what_the_endpoint_offers() -> None:
    answers = iter([httpx.Response(200, json={}, headers={"x-aca-sessions-extensions": "rich"}), httpx.Response(400, html="<h1>Bad</h1>")])
    async with against(lambda _: next(answers)) as interpreter:
        assert await interpreter.supports("rich")
        with pytest.raises(ServiceError):
            await interpreter.list_files("s1")
        assert await interpreter.supports("rich")


async def test_a_missing_permission_names_the_role() -> None:
    async with against(lambda _: httpx.Response(403)) as interpreter:
        with pytest.raises(AuthenticationError, match="Azure ContainerApps Session Executor"):
            await interpreter.execute("s1", "1")


async def test_a_missing_endpoint_got_no_request() -> None:
    client = httpx.AsyncClient(base_url="http://127.0.0.1:1")
    async with CodeInterpreter(SessionsHttpClient(client, patience=0.1)) as interpreter:
        with pytest.raises(ServiceUnavailableError) as raised:
            await interpreter.execute("s1", "1")
    assert raised.value.sent is False


async def test_after_a_lost_answer_the_result_is_fetched_and_the_cell_is_not_sent_again() -> None:
    posts = []

    def lose_the_first_answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            posts.append(request.headers["operation-id"])
            raise httpx.ReadError("connection reset")
        result = {"stdout": "", "stderr": "", "executionResult": 42, "executionTimeInMilliseconds": 1}
        return httpx.Response(200, json={"id": posts[0], "identifier": "s1", "status": "Succeeded", "result": result})

    async with against(lose_the_first_answer) as interpreter:
        assert (await interpreter.execute("s1", "1")).value == 42
    assert len(posts) == len(set(posts))


async def test_a_result_reports_that_the_outcome_of_a_cell_is_unknown() -> None:
    def lose_everything(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("late")

    async with against(lose_everything) as interpreter:
        result = await interpreter.execute("s1", "1")
    assert (result.success, str(result.state)) == (False, "unknown: no reply")


async def test_an_operation_that_an_endpoint_does_not_support_is_reported() -> None:
    async with against(lambda _: httpx.Response(404)) as interpreter:
        with pytest.raises(NotSupportedError, match="aca-sessions serve"):
            await interpreter.interrupt("s1", "e1")
