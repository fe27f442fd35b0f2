"""Test the service over HTTP: Azure's routes and shapes, and every kind of bad request."""

import asyncio
import logging
import re

import httpx
import pytest

from aca_sessions import open_server
from aca_sessions.hosting import Hosting
from aca_sessions.lifetime import Tasks

CODE = {"code": "6 * 7"}


async def run(http: httpx.AsyncClient, code: str, **more: object) -> dict:
    response = await http.post("/executions", json={"code": code} | more)
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_plain_client_gets_azures_body_and_nothing_else(http: httpx.AsyncClient) -> None:
    body = await run(http, "6 * 7", codeInputType="Inline", executionType="Synchronous", timeoutInSeconds=60)
    assert body["status"] == "Succeeded"
    assert body["identifier"] == "test"
    assert body["result"] | {"executionTimeInMilliseconds": 0} == {
        "$id": "2", "stdout": "", "stderr": "", "executionResult": 42, "executionTimeInMilliseconds": 0
    }  # fmt: skip
    assert set(body) == {"$id", "id", "identifier", "executionType", "status", "result"}


async def test_the_routes_work_under_azures_base_path_too(http: httpx.AsyncClient) -> None:
    response = await http.post("/subscriptions/s/resourceGroups/g/sessionPools/p/executions", json=CODE)
    assert response.json()["result"]["executionResult"] == 42


async def test_every_answer_names_the_extensions(http: httpx.AsyncClient) -> None:
    for response in (await http.get("/health"), await http.get("/nothing"), await http.get("/files")):
        assert "interrupt" in response.headers["x-aca-sessions-extensions"]
        assert "2024-02-02-preview" in response.headers["api-supported-versions"]


async def test_a_long_output_is_cut_at_the_callers_limit(http: httpx.AsyncClient) -> None:
    assert len((await run(http, "print('x' * 9999)"))["result"]["stdout"]) == 4096
    assert len((await run(http, "print('x' * 9999)", outputStreamsMaxLength=100))["result"]["stdout"]) == 100


async def test_an_asynchronous_execution_is_started_and_polled(http: httpx.AsyncClient) -> None:
    response = await http.post("/executions", json={"code": "import time; time.sleep(0.2); 5", "executionType": "Asynchronous"})
    assert response.json()["status"] in ("NotStarted", "Running")
    location = response.headers["operation-location"]
    assert response.headers["operation-id"] in location
    while (body := (await http.get(location)).json())["status"] in ("NotStarted", "Running"):
        await asyncio.sleep(0.05)
    assert body["result"]["executionResult"] == 5


async def test_one_operation_id_runs_one_cell(http: httpx.AsyncClient) -> None:
    await run(http, "n = 0")
    for _ in range(3):
        await http.post("/executions", json={"code": "n += 1; n"}, headers={"operation-id": "once"})
    assert (await run(http, "n"))["result"]["executionResult"] == 1


async def test_an_execution_is_interrupted(http: httpx.AsyncClient) -> None:
    running = asyncio.create_task(http.post("/executions", json={"code": "while True: pass"}, headers={"operation-id": "endless"}))
    while (await http.get("/executions/endless")).json().get("status") != "Running":
        await asyncio.sleep(0.01)
    assert (await http.post("/executions/endless/interrupt")).status_code == 202
    body = (await running).json()
    assert body["status"] == "Failed"
    assert "KeyboardInterrupt" in body["result"]["stderr"]


async def test_files_go_in_and_out(http: httpx.AsyncClient) -> None:
    uploaded = await http.post("/files", files={"file": ("/mnt/data/a.txt", b"hello")})
    assert (uploaded.status_code, uploaded.json()["name"], uploaded.json()["sizeInBytes"]) == (200, "a.txt", 5)
    assert [file["name"] for file in (await http.get("/files")).json()["value"]] == ["a.txt"]
    assert (await http.get("/files/a.txt")).json()["type"] == "file"
    content = await http.get("/files/a.txt/content")
    assert (content.content, content.headers["content-type"]) == (b"hello", "application/octet-stream")
    part = await http.get("/files/a.txt/content", headers={"range": "bytes=1-2"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"el", "bytes 1-2/5")
    assert (await http.delete("/files/a.txt")).status_code == 204
    assert (await http.get("/files/a.txt/content")).status_code == 404


async def test_sessions_are_described_listed_and_deleted(http: httpx.AsyncClient) -> None:
    await run(http, "x = 1")
    session = (await http.get("/session")).json()
    assert (session["identifier"], set(session)) == ("test", {"identifier", "createdAt", "expireAt", "lastAccessedAt", "etag"})
    assert [one["identifier"] for one in (await http.get("/listSessions")).json()["sessions"]] == ["test"]
    assert (await http.delete("/session")).status_code == 204
    assert (await http.get("/session")).json()["error"]["code"] == "SessionWithIdentifierNotFound"
    assert (await run(http, "'x' in globals()"))["result"]["executionResult"] is False


async def test_deleting_a_session_ends_its_running_cell(http: httpx.AsyncClient) -> None:
    running = asyncio.create_task(run(http, "open('begun', 'w').close()\nwhile True: pass"))
    while (await http.get("/files/begun")).status_code != 200:
        await asyncio.sleep(0.01)
    await http.delete("/session")
    body = await running
    assert (body["status"], body["result"]["stderr"]) == ("Failed", "Execution aborted")
    assert (await run(http, "1"))["result"]["executionResult"] == 1


@pytest.mark.parametrize("code", ["", " ", "\n\n", "# nothing"])
@pytest.mark.parametrize("plain", [False, True])
async def test_an_empty_cell_succeeds_in_every_dialect(code: str, plain: bool) -> None:
    """Send the empty cell that AutoGen's executor sends after `restart()`."""
    answers = []
    async with open_server(hosting=Hosting(plain=plain)) as app:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test", params={"identifier": "test"}) as http:
            for version, path, properties in (
                ("2025-10-02-preview", "executions", {"code": code}),
                ("2024-02-02-preview", "code/execute", {"properties": {"code": code}}),
                ("2024-02-02-preview", "python/execute", {"properties": {"pythonCode": code}}),
            ):
                response = await http.post(f"/{path}", json=properties, params={"api-version": version})
                body = response.json()
                answers.append((response.status_code, body.get("properties", body)["status"]))
    assert answers == [(200, "Succeeded"), (200, "Success"), (200, "Success")]


BAD_BODIES = [
    b"{}", b'{"code": 3}', b'{"code": null}', b'{"code": ["1"]}', b'{"code": "\\ud800"}',
    b'{"code": "1", "executionType": "Sometimes"}', b'{"code": "1", "executionType": 3}',
    b'{"code": "1", "timeoutInSeconds": 0}', b'{"code": "1", "timeoutInSeconds": 221}', b'{"code": "1", "timeoutInSeconds": "9"}',
    b'{"code": "1", "timeoutInSeconds": true}', b'{"code": "1", "timeoutInSeconds": NaN}', b'{"code": "1", "outputStreamsMaxLength": -1}',
    b'{"code": "1", "outputStreamsMaxLength": 0.5}', b'{"code": "1", "outputStreamsMaxLength": 1.5}',
    b'{"properties": {"code": "1"}}',
]  # fmt: skip


@pytest.mark.parametrize("body", BAD_BODIES, ids=lambda body: body[:40].decode("latin-1"))
async def test_a_bad_body_is_a_clear_400_and_the_session_works_afterwards(http: httpx.AsyncClient, body: bytes) -> None:
    response = await http.post("/executions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == response.headers["x-ms-error-code"]
    assert error["message"]
    assert (await run(http, "6 * 7"))["result"]["executionResult"] == 42


@pytest.mark.parametrize("code", ["a\0b", "\x00"])
async def test_a_nul_in_the_code_is_a_failed_cell(http: httpx.AsyncClient, code: str) -> None:
    assert (await run(http, code))["status"] == "Failed"


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../a", "x" * 300, "a\0b", ""])
async def test_a_bad_file_name_is_a_clear_4xx(http: httpx.AsyncClient, name: str) -> None:
    body = f'--b\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\nx\r\n--b--\r\n'
    response = await http.post("/files", content=body.encode(), headers={"content-type": "multipart/form-data; boundary=b"})
    assert response.status_code == 400
    assert response.json()["error"]["message"]
    assert (await http.get("/files")).json()["value"] == []


@pytest.mark.parametrize(
    "path", ["/files/..%2Fx/content", "/files/%2Fetc%2Fpasswd/content", "/files/a%00b/content", f"/files/{'x' * 300}/content"]
)
async def test_a_bad_path_is_a_clear_4xx(http: httpx.AsyncClient, path: str) -> None:
    response = await http.get(path)
    assert response.status_code in (400, 404)
    assert response.json()["error"]["code"]


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=zz", "application/json", "text/plain"])
async def test_an_upload_that_is_not_a_form_is_a_clear_400(http: httpx.AsyncClient, content_type: str) -> None:
    response = await http.post("/files", content=b"x" * 100, headers={"content-type": content_type})
    assert response.status_code == 400


async def test_a_request_over_the_limit_is_a_413(http: httpx.AsyncClient) -> None:
    async def endless():
        while True:
            yield b"x" * (1 << 20)

    assert (await http.post("/executions", content=endless())).status_code == 413
    response = await http.post("/executions", content=b"{}", headers={"content-length": str(1 << 40)})
    assert response.status_code == 413


async def test_an_upload_larger_than_the_disk_is_refused_and_leaves_nothing(http: httpx.AsyncClient) -> None:
    response = await http.post("/files", files={"file": ("big", b"x" * (20 << 20))})
    assert (response.status_code, response.json()["error"]["code"]) == (507, "SessionStorageFull")
    assert (await http.get("/files")).json()["value"] == []


@pytest.mark.parametrize(
    "query", [{"api-version": "2019-01-01"}, {"api-version": ""}, {"identifier": ""}, {"identifier": "x" * 300}, {"identifier": "a\nb"}]
)
async def test_a_bad_query_is_a_clear_400(http: httpx.AsyncClient, query: dict) -> None:
    response = await http.post("/executions", json=CODE, params=query)
    assert response.status_code == 400
    assert response.json()["error"]["message"]


async def test_an_unknown_route_and_method_are_errors_in_azures_form(http: httpx.AsyncClient) -> None:
    assert (await http.get("/nothing")).json()["error"]["code"] == "NotFound"
    assert (await http.put("/executions")).json()["error"]["code"] == "MethodNotAllowed"
    await run(http, "1")
    assert (await http.get("/executions/none")).json()["error"]["code"] == "ExecutionNotFound"


async def test_health_needs_no_version(http: httpx.AsyncClient) -> None:
    response = await http.get("/health")
    assert (response.status_code, response.json()["status"]) == (200, "healthy")


def client(app: object) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", params={"api-version": "2025-10-02-preview"})


async def test_the_least_recently_used_session_ends_first_and_its_owner_gets_a_result_that_reports_it() -> None:
    async with open_server(hosting=Hosting(max_sessions=2)) as app, client(app) as http:
        for name in ("a", "b", "a", "c"):
            await http.post("/executions", json={"code": "x = 1"}, params={"identifier": name})
        known = [session["identifier"] for session in (await http.get("/listSessions")).json()["sessions"]]
        assert known == ["a", "c"]
        told = await http.post("/executions", json={"code": "1"}, params={"identifier": "b"}, headers={"x-aca-sessions-rich": "1"})
        assert told.json()["acaSessions"]["state"]["consequence"] == "variables and files from before are gone"


async def test_a_session_whose_events_are_read_is_in_use() -> None:
    async with open_server(hosting=Hosting(max_sessions=2)) as app, client(app) as http:
        ran = await http.post("/executions", json={"code": "1"}, params={"identifier": "a"})
        await http.post("/executions", json={"code": "1"}, params={"identifier": "b"})
        assert (await http.get(f"/executions/{ran.json()['id']}/events", params={"identifier": "a"})).status_code == 200
        await http.post("/executions", json={"code": "1"}, params={"identifier": "c"})
        known = [session["identifier"] for session in (await http.get("/listSessions")).json()["sessions"]]
        assert known == ["a", "c"]


async def test_a_server_whose_sessions_all_run_is_full() -> None:
    async with open_server(hosting=Hosting(max_sessions=1)) as app, client(app) as http:
        code = "import os, time\nopen('begun', 'w').close()\nwhile not os.path.exists('go'): time.sleep(0.01)"
        running = asyncio.create_task(http.post("/executions", json={"code": code}, params={"identifier": "a"}))
        while (await http.get("/files/begun", params={"identifier": "a"})).status_code != 200:
            await asyncio.sleep(0.01)
        response = await http.post("/executions", json=CODE, params={"identifier": "b"})
        assert (response.status_code, response.json()["code"]) == (429, "SessionsCountExceedsLimit")
        assert response.headers["retry-after"] == "1"
        await http.post("/files", files={"file": ("go", b"")}, params={"identifier": "a"})
        assert (await running).status_code == 200


async def test_a_plain_server_that_is_full_ends_no_session() -> None:
    async with open_server(hosting=Hosting(max_sessions=1, plain=True)) as app, client(app) as http:
        await http.post("/executions", json={"code": "x = 42"}, params={"identifier": "first"})
        refused = await http.post("/executions", json=CODE, params={"identifier": "second"})
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        count = "There are already '1' active sessions and the maximum active sessions count is '1'."
        assert refused.json() == {"code": "SessionsCountExceedsLimit", "message": f"The request sessions count is '1'. {count}"}
        kept = await http.post("/executions", json={"code": "x"}, params={"identifier": "first"})
        assert kept.json()["result"]["executionResult"] == 42


async def test_an_execution_is_not_found_under_another_identifier(http: httpx.AsyncClient) -> None:
    await http.post("/executions", json=CODE, headers={"operation-id": "mine"})
    assert (await http.get("/executions/mine")).json()["status"] == "Succeeded"
    await http.post("/executions", json=CODE, params={"identifier": "neighbour"})
    answers = [await http.get("/executions/mine", params={"identifier": name}) for name in ("neighbour", "nobody")]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert answers[0].json() == answers[1].json()
    assert answers[0].json()["error"]["code"] == "ExecutionNotFound"


async def test_malformed_json_is_refused_as_aspnet_refuses_it(http: httpx.AsyncClient) -> None:
    refused = await http.post("/executions", content=b'{"code":\n "1", secret}', headers={"content-type": "application/json"})
    assert (refused.status_code, refused.headers["content-type"]) == (400, "application/problem+json")
    body = refused.json()
    assert set(body) == {"type", "title", "status", "errors", "traceId"}
    assert (body["type"], body["status"]) == ("https://tools.ietf.org/html/rfc9110#section-15.5.1", 400)
    assert body["title"] == "One or more validation errors occurred."
    assert "LineNumber: 1 | BytePositionInLine: 6" in body["errors"]["$"][0]
    assert "secret" not in refused.text
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-00", body["traceId"])
    for content in (b"", b"{", b"[]", b"null", b"3", b'"code"', b"[" * 100_000, b"\xff\xfe"):
        refused = await http.post("/executions", content=content)
        assert (refused.status_code, refused.headers["content-type"]) == (400, "application/problem+json"), content[:5]
    assert (await http.post("/executions", json=CODE)).status_code == 200


async def all_sessions_ended(http: httpx.AsyncClient) -> None:
    async with asyncio.timeout(120):
        while (await http.get("/listSessions")).json()["sessions"]:
            await asyncio.sleep(0.02)


async def test_an_unused_session_ends_after_the_cooldown() -> None:
    async with open_server(hosting=Hosting(cooldown=0.2)) as app, client(app) as http:
        await http.post("/executions", json=CODE, params={"identifier": "a"})
        await all_sessions_ended(http)


async def test_a_key_is_required_if_one_is_set() -> None:
    async with open_server(hosting=Hosting(api_key="secret")) as app, client(app) as http:
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "secret"},
            {"authorization": "Bearer \xff".encode("latin-1")},
        ):
            response = await http.get("/listSessions", headers=headers)
            assert (response.status_code, response.json()["error"]["code"]) == (401, "Unauthorized")
        assert (await http.get("/listSessions", headers={"authorization": "Bearer secret"})).status_code == 200
        assert (await http.get("/health")).status_code == 200


async def test_a_foreign_host_header_is_refused() -> None:
    async with open_server(hosting=Hosting(api_key="secret", allowed_hosts=frozenset({"localhost", "::1"}))) as app, client(app) as http:
        key = {"authorization": "Bearer secret"}
        for host, status in (("localhost:80", 200), ("LOCALHOST", 200), ("[::1]:9", 200), ("evil.example", 403), ("", 403)):
            assert (await http.get("/listSessions", headers=key | {"host": host})).status_code == status


async def test_a_page_of_another_origin_is_refused_even_if_no_key_is_required() -> None:
    async with open_server(hosting=Hosting(allowed_hosts=frozenset({"localhost", "::1"}))) as app, client(app) as http:
        for origin, status in (("http://localhost:80", 200), ("http://[::1]", 200), ("https://evil.example", 403), ("null", 403)):
            response = await http.get("/listSessions", headers={"host": "localhost", "origin": origin})
            assert response.status_code == status


async def test_many_parallel_sessions_stay_separate(http: httpx.AsyncClient) -> None:
    async def one(number: int) -> object:
        params = {"identifier": f"session-{number}"}
        await http.post("/executions", json={"code": f"x = {number}"}, params=params)
        return (await http.post("/executions", json={"code": "x"}, params=params)).json()["result"]["executionResult"]

    assert await asyncio.gather(*(one(number) for number in range(12))) == list(range(12))


async def test_a_session_deleted_during_a_cell_still_returns_its_output(http: httpx.AsyncClient) -> None:
    running = asyncio.create_task(rich(http, "print('before', flush=True)\nopen('begun', 'w')\nwhile True: pass"))
    while (await http.get("/files/begun")).status_code != 200:
        await asyncio.sleep(0.01)
    await http.delete("/session")
    body = await running
    assert body["acaSessions"]["stdout"] == "before\n"
    state = body["acaSessions"]["state"]
    assert (state["variables"], state["files"], state["reason"]) == ("lost", "lost", "terminated")


async def rich(http: httpx.AsyncClient, code: str, **params: str) -> dict:
    response = await http.post("/executions", json={"code": code}, headers={"x-aca-sessions-rich": "1"}, params=params)
    assert response.status_code == 200, response.text
    return response.json()


async def test_an_operation_id_is_not_kept_for_a_recreated_session(http: httpx.AsyncClient) -> None:
    once = {"operation-id": "once"}
    await http.post("/executions", json={"code": "'first'"}, headers=once)
    await http.delete("/session")
    assert (await http.post("/executions", json={"code": "'second'"}, headers=once)).json()["result"]["executionResult"] == "second"


async def test_a_cell_interrupted_before_it_arrives_does_not_run(http: httpx.AsyncClient) -> None:
    assert (await http.post("/executions/late/interrupt")).status_code == 202
    body = (await http.post("/executions", json={"code": "ran = True"}, headers={"operation-id": "late"})).json()
    assert body["status"] == "Failed"
    assert (await run(http, "'ran' in globals()"))["result"]["executionResult"] is False


async def test_large_results_are_dropped_soon(http: httpx.AsyncClient) -> None:
    for number in range(6):
        code = "from IPython.display import HTML, display; display(HTML('x' * (5 << 20)))"
        await http.post("/executions", json={"code": code}, headers={"operation-id": f"large-{number}"})
    assert (await http.get("/executions/large-0")).status_code == 410
    assert (await http.get("/executions/large-5")).status_code == 200


async def test_a_malformed_display_does_not_break_the_answer(http: httpx.AsyncClient) -> None:
    for shown in (
        "{'image/png': 'notbase64!'}",
        "{'image/png': 3}",
        "{'application/json': float('nan')}",
        "{'': '\\ud800'}",
        "{'a': object()}",
    ):
        body = await rich(http, f"from IPython.display import display; display({shown}, raw=True)")
        assert body["status"] == "Succeeded"


@pytest.mark.usefixtures("nothing_left")
async def test_a_delete_is_completed_if_its_caller_disconnects() -> None:
    async with open_server() as app, client(app) as http:
        for turns in range(8):
            name = {"identifier": f"s{turns}"}
            await http.post("/executions", json=CODE, params=name)
            deleting = asyncio.create_task(http.delete("/session", params=name))
            for _ in range(turns):
                await asyncio.sleep(0)
            deleting.cancel()
            await asyncio.wait({deleting})


@pytest.mark.usefixtures("nothing_left")
async def test_a_first_call_whose_caller_disconnects_leaves_nothing() -> None:
    async with open_server(hosting=Hosting(max_sessions=3)) as app, client(app) as http:
        for turns in range(12):
            starting = asyncio.create_task(http.get("/files", params={"identifier": f"s{turns}"}))
            for _ in range(turns):
                await asyncio.sleep(0.001)
            starting.cancel()
            await asyncio.wait({starting})


async def test_sessions_deleted_while_others_expire_do_not_stop_the_expiry() -> None:
    async with open_server(hosting=Hosting(cooldown=0.1)) as app, client(app) as http:
        for _ in range(3):
            for name in "abcd":
                await http.post("/executions", json=CODE, params={"identifier": name})
            await asyncio.sleep(0.08)
            await asyncio.gather(*(http.delete("/session", params={"identifier": name}) for name in "ab"))
            await all_sessions_ended(http)


@pytest.mark.parametrize("range", ["bytes=99999999999999999999999-", "bytes=5-2", "bytes=-5", "lines=1-2", "bytes=0-99999999999999999"])
async def test_an_odd_range_is_not_a_server_error(http: httpx.AsyncClient, range: str) -> None:
    await http.post("/files", files={"file": ("a.txt", b"hello")})
    assert (await http.get("/files/a.txt/content", headers={"range": range})).status_code in (200, 206, 416)


@pytest.mark.parametrize("skip", ["-1", "x", "9" * 30, "1.5"])
async def test_an_odd_page_is_a_clear_400(http: httpx.AsyncClient, skip: str) -> None:
    assert (await http.get("/listSessions", params={"skip": skip})).status_code == 400


async def test_a_path_that_is_too_long_is_a_clear_400(http: httpx.AsyncClient) -> None:
    assert (await http.get("/files", params={"path": "/".join("x" * 3000)})).status_code in (400, 404)


async def test_an_internal_error_has_an_id_in_the_response_and_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "aca_sessions")
    async with open_server(hosting=Hosting(metrics=lambda: bytes(1 // 0))) as app, client(app) as http:
        response = await http.get("/metrics")
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (500, "InternalError")
    id = error["message"].rpartition(" ")[2]
    logged = {record.levelno: record for record in caplog.records if id in record.message}
    assert "ZeroDivisionError at " in logged[logging.ERROR].message
    assert "division" not in logged[logging.ERROR].message
    assert "metrics=lambda" in str(logged[logging.DEBUG].exc_text)


async def test_a_failed_background_task_has_its_traceback_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "aca_sessions")

    async def fail() -> None:
        raise ValueError("a message that may hold what a user sent")

    tasks = Tasks()
    tasks.start(fail())
    await tasks.finish()
    await asyncio.sleep(0)
    line, trace = caplog.records
    assert (line.levelno, trace.levelno, "ValueError at " in line.message, "a user sent" in line.message) == (40, 10, True, False)
    assert "in fail" in str(trace.exc_text)


@pytest.mark.slow
async def test_results_that_were_not_fetched_are_kept_longer_than_others(http: httpx.AsyncClient) -> None:
    async def start(id: str, execution_type: str) -> None:
        await http.post("/executions", json={"code": "1", "executionType": execution_type}, headers={"operation-id": id})

    for number in range(60):
        await start(f"waiting-{number}", "Asynchronous")
        await start(f"fetched-{number}", "Synchronous")
    kept = [number for number in range(60) if (await http.get(f"/executions/fetched-{number}")).status_code == 200]
    assert kept == [*range(9, 60)]  # the latest one, and the 50 before it
    assert [(await http.get(f"/executions/waiting-{number}")).status_code for number in range(60)] == [200] * 60
    await start("later", "Synchronous")
    waiting = [(await http.get(f"/executions/waiting-{number}")).status_code for number in range(60)]
    assert waiting.count(200) < 60
