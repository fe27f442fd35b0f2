"""Send any request: the answer has Azure's form, comes soon, and is never an internal error."""

import asyncio
import json

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aca_sessions import open_server
from aca_sessions.contract.versions import VERSIONS
from aca_sessions.hosting import Hosting

pytestmark = pytest.mark.slow
RUNNING = ["executions", "code/execute", "executions/x", "executions/x/interrupt", "session/reset", "python/execute", "mcp"]
FILES = [
    "files",
    "files/upload",
    "files/a",
    "files/content/a",
    "files/a/content",
    "python/uploadFile",
    "python/files",
    "python/downloadFile",
]
LOOKING = ["session", "listSessions", "metadata", "health", "nothing"]
MANAGING = [f".management/{name}" for name in ("getSession", "listSessions", "stopSession")]
ROUTES = [*RUNNING, *FILES, *LOOKING, *MANAGING]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n'
FIELDS = ["code", "pythonCode", "properties", "executionType", "codeInputType", "timeoutInSeconds", "outputStreamsMaxLength", "identifier"]
FIELDS += ["shellCommand", "execCommandAndArgs", "stdin", "method", "params", "id"]
BODIES = (
    st.binary(max_size=200)
    | JSON.map(lambda content: json.dumps(content).encode())
    | st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4).map(lambda content: json.dumps(content).encode())
    | st.binary(max_size=80).map(
        lambda rest: b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n' + rest + b"\r\n--b--\r\n"
    )
)
QUERIES = st.fixed_dictionaries(
    {},
    optional={
        "api-version": st.sampled_from([*VERSIONS, "x"]),
        "identifier": st.sampled_from(["fuzz", "fuzz2"]) | st.text(max_size=20),
        "path": st.text(max_size=20) | st.sampled_from(["..", "a/b", "/mnt/data"]),
        "skip": st.text(max_size=5),
        "recursive": st.sampled_from(["true", "x"]),
        "filename": st.text(max_size=20),
    },
)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "content-type": st.sampled_from(["application/json", "multipart/form-data; boundary=b", "multipart/form-data", ";;;"]),
        "range": st.sampled_from(["bytes=0-", "bytes=5-1", "x"]),
        "operation-id": st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20),
        "x-aca-sessions-rich": st.sampled_from(["1", "0"]),
    },
)


REQUESTS = st.tuples(st.sampled_from(["GET", "POST", "DELETE", "PUT"]), st.sampled_from(ROUTES), QUERIES, HEADERS, BODIES)


@pytest.mark.parametrize("shell", [False, True])
@given(requests=st.lists(REQUESTS, min_size=20, max_size=20))
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_request_gets_a_well_formed_answer(requests: list[tuple], shell: bool) -> None:
    asyncio.run(_send_all(requests, Hosting(shell=shell)))


async def _send_all(requests: list[tuple], hosting: Hosting) -> None:
    async with open_server(hosting=hosting) as app, httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for method, route, query, headers, body in requests:
            async with asyncio.timeout(120):
                answer = await client.request(method, f"/{route}", params=query, headers=headers, content=body)
            assert answer.status_code < 500, (method, route, query, headers, body, answer.text)
            assert "Traceback" not in answer.text or answer.status_code == 200
            if answer.status_code >= 400 and answer.status_code != 416:
                malformed = answer.headers["content-type"] == "application/problem+json"
                assert answer.json()["errors"] if malformed else answer.json()["error"]["code"]
        await client.post("/executions", json={"code": "1"}, params={"api-version": "2025-10-02-preview", "identifier": "alive"})
