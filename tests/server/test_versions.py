"""Test every api-version with its own routes and shapes."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from aca_sessions import open_server
from aca_sessions.hosting import Hosting

OLD = ("2024-02-02-preview", "2024-08-02-preview")
NEW = ("2024-10-02-preview", "2025-02-02-preview", "2025-10-02-preview")
WITH_SESSIONS = NEW[1:]


@asynccontextmanager
async def speaking(version: str, **hosting: object) -> AsyncIterator[httpx.AsyncClient]:
    async with open_server(hosting=Hosting(**hosting)) as app:
        params = {"api-version": version, "identifier": "test-session"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", params=params) as client:
            yield client


def wrapped(code: str) -> dict:
    return {"properties": {"codeInputType": "inline", "executionType": "synchronous", "code": code, "timeoutInSeconds": 100}}


@pytest.mark.parametrize("version", OLD)
async def test_the_first_generation(version: str) -> None:
    async with speaking(version) as http:
        answer = (await http.post("/code/execute", json=wrapped("print('hi'); 1 + 1"))).json()
        assert answer["properties"] | {"executionTimeInMilliseconds": 0} == {
            "$id": "2", "status": "Success", "stdout": "hi\n", "stderr": "", "result": 2, "executionTimeInMilliseconds": 0
        }  # fmt: skip
        failed = (await http.post("/code/execute", json=wrapped("1 / 0"))).json()["properties"]
        assert (failed["status"], failed["stderr"].splitlines()[-1]) == ("Failure", "ZeroDivisionError: division by zero")
        uploaded = (await http.post("/files/upload", files={"file": ("/mnt/data/a b.txt", b"hello")})).json()
        assert uploaded["value"][0]["properties"]["filename"] == "a b.txt"
        assert (await http.get("/files")).json()["value"][0]["properties"]["size"] == 5
        assert (await http.get("/files/content/a%20b.txt")).content == b"hello"
        assert (await http.get("/files/a b.txt")).json()["value"][0]["properties"]["filename"] == "a b.txt"
        assert (await http.delete("/files/a b.txt")).json() == {"message": "file deleted successfully"}
        for route in ("/executions", "/files"):
            assert (await http.post(route, json=wrapped("1"))).status_code == 404
        assert (await http.get("/session")).status_code == 404


@pytest.mark.parametrize("version", NEW)
async def test_the_second_generation(version: str) -> None:
    async with speaking(version) as http:
        answer = (await http.post("/executions", json={"code": "'text'", "executionType": "SYNCHRONOUS"})).json()
        assert (answer["status"], answer["result"]["executionResult"]) == ("Succeeded", "text")
        refused = await http.post("/executions", json=wrapped("1"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "SessionPropertiesMissing")
        await http.post("/files", files={"file": ("a.txt", b"hello")}, params={"path": "folder/deep"})
        assert (await http.get("/files", params={"path": "folder/deep"})).json()["value"][0]["directory"] == "folder/deep"
        assert (await http.get("/files/folder%2Fdeep%2Fa.txt/content")).content == b"hello"
        assert (await http.get("/files", params={"recursive": "true"})).json()["value"][-1]["name"] == "a.txt"
        assert (await http.get("/files/a.txt", params={"path": "folder/deep"})).json()["sizeInBytes"] == 5
        assert (await http.delete("/files/a.txt", params={"path": "folder/deep"})).status_code == 204
        for route in ("/code/execute", "/files/upload"):
            assert (await http.post(route, json={"code": "1"})).status_code == 404
        assert (await http.get("/session")).status_code == (200 if version in WITH_SESSIONS else 404)


@pytest.mark.parametrize("version", OLD + NEW)
async def test_an_object_without_properties_is_refused(version: str) -> None:
    async with speaking(version) as http:
        refused = await http.post("/code/execute" if version in OLD else "/executions", json={})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "SessionPropertiesMissing")
    assert refused.headers["x-ms-error-code"] == "SessionPropertiesMissing"


async def test_base64_code_is_decoded_and_enums_are_accepted_in_any_case() -> None:
    code = base64.b64encode("x = 'größe'\nx".encode()).decode()
    async with speaking(NEW[-1]) as http:
        for kind in ("InlineBase64", "inlinebase64", "INLINEBASE64"):
            body = {"codeInputType": kind, "executionType": "synchronous", "code": code}
            assert (await http.post("/executions", json=body)).json()["result"]["executionResult"] == "größe"
        for kind in ("Inline", "inlineText", "INLINE", None):
            body = {"codeInputType": kind, "executionType": "SYNCHRONOUS", "code": "6 * 7"}
            assert (await http.post("/executions", json=body)).json()["result"]["executionResult"] == 42
        for kind, text in (("InlineBase64", "6 * 7"), ("InlineBase64", "/w=="), ("InlineFile", "1"), (5, "1")):
            refused = await http.post("/executions", json={"codeInputType": kind, "code": text})
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "SessionRequestValidationFailed")
    async with speaking(OLD[0]) as http:
        body = {"properties": {"codeInputType": "InlineBase64", "executionType": "Synchronous", "code": code}}
        assert (await http.post("/code/execute", json=body)).json()["properties"]["result"] == "größe"


NONE_AND_NOTHING = [
    ("a = None;a", None), ("None", None), ("x = {}\nx.get\nx['k'] if 'k' in x else None", None),
    ("print(7*9)", ""), ("x = None", ""), ("[].sort()", ""), ("None;", ""), ("if True: None", ""), ("5", 5), ("%pwd", "/mnt/data"),
]  # fmt: skip


@pytest.mark.parametrize("version", [OLD[0], NEW[-1]])
async def test_a_value_of_none_is_null_and_no_value_is_empty(version: str) -> None:
    async with speaking(version) as http:
        for code, expected in NONE_AND_NOTHING:
            if version in OLD:
                found = (await http.post("/code/execute", json=wrapped(code))).json()["properties"]["result"]
            else:
                found = (await http.post("/executions", json={"code": code})).json()["result"]["executionResult"]
            assert found == expected, code


async def test_files_whose_names_look_like_routes() -> None:
    async with speaking(NEW[-1]) as http:
        for name in ("content", "upload", "files"):
            await http.post("/files", files={"file": (name, name.encode())})
            assert (await http.get(f"/files/{name}/content")).content == name.encode()
            assert (await http.get(f"/files/{name}")).json()["name"] == name
        await http.delete("/files/content")
        await http.post("/files", files={"file": ("x", b"below")}, params={"path": "content"})
        assert (await http.get("/files/content/x/content")).content == b"below"
        assert (await http.get("/files/content/x")).json()["directory"] == "content"
    async with speaking(OLD[0]) as http:
        await http.post("/files/upload", files={"file": ("content", b"here")})
        assert (await http.get("/files/content/content")).content == b"here"


async def test_the_private_preview() -> None:
    async with speaking("") as http:
        body = {"properties": {"identifier": "s1", "codeInputType": "inline", "executionType": "synchronous", "pythonCode": "1 + 1"}}
        answer = (await http.post("/python/execute", json=body)).json()
        assert (answer["status"], answer["result"], answer["stdout"]) == ("Success", 2, "")
        await http.post("/python/uploadFile", files={"file": ("a.txt", b"hello")})
        assert (await http.get("/python/files")).json()["$values"][0]["filename"] == "a.txt"
        assert (await http.get("/python/downloadFile", params={"filename": "a.txt"})).content == b"hello"


async def test_metadata_names_the_python_and_its_packages() -> None:
    async with speaking(NEW[-1]) as http:
        metadata = (await http.get("/metadata")).json()
    assert metadata["runtimes"][0]["name"] == "python"
    assert {"ipython", "pandas"} <= {package["name"].lower() for package in metadata["preInstalledPackages"]}


async def test_the_routes_of_the_management_api() -> None:
    async with speaking(NEW[-1]) as http:
        assert (await http.post("/.management/getSession")).json()["error"]["code"] == "SessionWithIdentifierNotFound"
        await http.post("/executions", json={"code": "1"})
        session = (await http.post("/.management/getSession")).json()
        assert set(session) == {"identifier", "etag", "expiresAt", "createdAt", "lastAccessedAt"}
        listed = (await http.post("/.management/listSessions", params={"skip": "0"})).json()
        assert (listed["count"], [one["identifier"] for one in listed["value"]]) == (1, ["test-session"])
        assert (await http.post("/.management/stopSession")).json()["error"]["code"] == "SessionRequestNotSupported"


async def test_the_first_answer_reports_a_new_session() -> None:
    async with speaking(NEW[-1]) as http:
        first, second = [await http.post("/executions", json={"code": "1"}) for _ in range(2)]
    assert [answer.headers["x-ms-new-allocation"] for answer in (first, second)] == ["true", "false"]
    assert first.headers["x-ms-session-guid"] == second.headers["x-ms-session-guid"]


@pytest.mark.parametrize("version", ["", "2019-01-01", "2025-10-02", "latest"])
async def test_an_unknown_version_is_refused(version: str) -> None:
    async with speaking(version) as http:
        response = await http.post("/executions", json={"code": "1"})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "InvalidApiVersion")


async def test_a_lenient_server_accepts_the_wrapper() -> None:
    async with speaking(NEW[-1], lenient=True) as http:
        assert (await http.post("/executions", json=wrapped("6 * 7"))).json()["result"]["executionResult"] == 42


async def test_a_plain_server_has_no_extensions() -> None:
    async with speaking(NEW[-1], plain=True) as http:
        response = await http.post("/executions", json={"code": "6 * 7"}, headers={"x-aca-sessions-rich": "1"})
        assert set(response.json()) == {"$id", "id", "identifier", "executionType", "status", "result"}
        assert "x-aca-sessions-extensions" not in response.headers
        assert (await http.post(f"/executions/{response.json()['id']}/interrupt")).status_code in (404, 405)
        await http.post("/files", files={"file": ("a.txt", b"hello")})
        assert (await http.get("/files/a.txt/content", headers={"range": "bytes=0-1"})).content == b"hello"
        for short in ("abc", "x" * 129, "with space"):
            assert (await http.post("/executions", json={"code": "1"}, params={"identifier": short})).status_code == 400


async def test_a_form_labelled_as_json_is_accepted() -> None:
    async with speaking(OLD[0]) as http:
        body = b'--b1\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nhello\r\n--b1--\r\n'
        assert (await http.post("/files/upload", content=body, headers={"content-type": "application/json"})).status_code == 200
        assert (await http.get("/files/content/a.txt")).content == b"hello"


async def test_a_form_that_is_labelled_json_is_a_form_in_pieces_of_any_size() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for byte in b'--b1\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nhello\r\n--b1--\r\n':
            yield bytes([byte])

    async with speaking(OLD[0]) as http:
        uploaded = await http.post("/files/upload", content=pieces(), headers={"content-type": "application/json"})
        assert uploaded.status_code == 200
        assert (await http.get("/files/content/a.txt")).content == b"hello"


async def test_a_form_with_bare_names_and_odd_order_is_accepted() -> None:
    async with speaking(NEW[-1]) as http:
        part = b"Content-Type: application/json\r\nContent-Disposition: form-data; name=file; filename=a.txt\r\n\r\nhello\r\n"
        body = b"--b1\r\n" + part + b"--b1--\r\n"
        response = await http.post("/files", content=body, headers={"content-type": "multipart/form-data; boundary=b1"})
        assert response.json()["name"] == "a.txt"


async def test_a_chunked_upload_is_accepted() -> None:
    async def chunks():
        for part in (b'--b1\r\nContent-Disposition: form-data; name="file"; ', b'filename="a.txt"\r\n\r\nhel', b"lo\r\n--b1--\r\n"):
            yield part

    async with speaking(NEW[-1]) as http:
        await http.post("/files", content=chunks(), headers={"content-type": "multipart/form-data; boundary=b1"})
        assert (await http.get("/files/a.txt/content")).content == b"hello"


async def test_a_probe_of_installed_packages_works_and_prints_nothing_else() -> None:
    async with speaking(OLD[0]) as http:
        probe = "import pkg_resources\n[d.project_name for d in pkg_resources.working_set]"
        answer = (await http.post("/code/execute", json=wrapped(probe))).json()["properties"]
    assert (answer["status"], answer["stdout"], answer["stderr"]) == ("Success", "", "")
    assert "pandas" in answer["result"]


async def test_a_long_upload_is_not_held_in_memory(tmp_path) -> None:
    import resource

    async def form():
        yield b'--b1\r\nContent-Disposition: form-data; name="file"; filename="big"\r\n\r\n'
        for _ in range(100):
            yield b"x" * (1 << 20)
        yield b"\r\n--b1--\r\n"

    async with speaking(NEW[-1]) as http:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        response = await http.post("/files", content=form(), headers={"content-type": "multipart/form-data; boundary=b1"})
        assert response.json()["sizeInBytes"] == 100 << 20
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 << 10
