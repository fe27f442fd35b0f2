"""Test three servers behind nginx as if they were one: which requests work, and which are refused."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from urllib.parse import quote

import httpx
import pytest

from aca_sessions import CodeInterpreter, Session, open_interpreter
from aca_sessions.contract.records import TOO_MANY_STARTING
from aca_sessions.errors import ServiceError
from aca_sessions.hosting import Hosting

from ..conftest import descendants
from ..server.test_openings import stopped
from .cluster import KEY, Cluster, Member, needs_nginx

pytestmark = [pytest.mark.slow, pytest.mark.long, needs_nginx]
AUTHORIZED = {"authorization": f"Bearer {KEY}"}
QUERY = "api-version=2025-10-02-preview"
CELL = {"codeInputType": "Inline", "executionType": "Synchronous", "code": "6 * 7"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(3) as running:
        yield running


@pytest.fixture
async def interpreter(cluster: Cluster) -> AsyncIterator[CodeInterpreter]:
    async with open_interpreter(cluster.settings()) as opened:
        yield opened


@pytest.fixture
def client(cluster: Cluster) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=cluster.endpoint, headers=AUTHORIZED, timeout=60) as opened:
        yield opened


@pytest.mark.parametrize(
    "spellings",
    [
        ["a%20b", "a+b", "a%20b&x=1"],
        ["user:7@x", "user%3A7%40x", "user%3a7%40x"],
        ["a/b", "a%2Fb", "a%2fb"],
        ["it%27s~(me)!*", "it's%7E%28me%29%21%2A", "it's~%28me%29!*"],
        ["alice", "alice~branch-6f1e0c86-2a64-4a8e-9f5e-6d1f1f6c9a11", "alice%7Ebranch-6f1e0c86-2a64-4a8e-9f5e-6d1f1f6c9a11"],
    ],
    ids=lambda spellings: spellings[0],
)
def test_an_identifier_is_routed_alike_in_every_spelling(cluster: Cluster, spellings: list[str]) -> None:
    assert len(set(cluster.ports_of(spellings))) == 1


def test_identifiers_of_one_tenant_are_spread_over_the_servers(cluster: Cluster) -> None:
    assert len(set(cluster.ports_of(f"tenant:7/conversation:{number}" for number in range(30)))) == 3


async def test_a_spelling_reaches_the_session_that_another_one_started(client: httpx.Client) -> None:
    began = client.post(f"/executions?{QUERY}&identifier=a%20b%3Ac", json=CELL | {"code": "x = 42"})
    found = client.post(f"/executions?{QUERY}&identifier=a+b:c", json=CELL | {"code": "x"})
    assert (began.status_code, found.json()["result"]["executionResult"]) == (200, 42)


async def test_output_arrives_while_a_cell_runs_and_questions_are_answered(interpreter: CodeInterpreter) -> None:
    code = "print('begun', flush=True); name = input('who? '); print('hello', name)"
    events = [event async for event in Session(interpreter, "live").stream(code, on_input=lambda _: "Ada")]
    assert [event.text for event in events if event.kind == "stdout"][0].startswith("begun")  # noqa: RUF015 - the first, not any
    assert [event.kind for event in events][-1] == "result"
    assert "hello Ada" in events[-1].result.stdout


async def test_branches_are_on_the_server_of_their_session(interpreter: CodeInterpreter) -> None:
    for number in range(6):
        session = Session(interpreter, f"branching-{number}")
        await session.run("x = 20")
        (branch,) = await session.branch()
        (further,) = await branch.branch()
        result = await further.run("x + 22")
        assert (result.value, str(result.state)) == (42, "kept")


async def test_the_largest_file_is_accepted_and_a_larger_one_refused(interpreter: CodeInterpreter) -> None:
    most = Hosting().max_upload
    await interpreter.upload_file("files", "large.bin", b"x" * most)
    assert (await interpreter.execute("files", "import os; os.path.getsize('/mnt/data/large.bin')")).value == most
    with pytest.raises(ServiceError, match="413"):
        await interpreter.upload_file("files", "larger.bin", b"x" * (most + (1 << 17)))


async def test_a_cell_that_outlasts_the_proxys_timeout_is_polled_and_its_server_stays_in_use(cluster: Cluster) -> None:
    cluster.configure(cluster.members, proxy_read_timeout="1s")
    cluster.reload()
    try:
        async with open_interpreter(cluster.settings()) as interpreter:
            await interpreter.execute("patient", "n = 0")
            result = await interpreter.execute("patient", "import time; time.sleep(2); n += 1; n")
            after = await interpreter.execute("patient", "n")
    finally:
        cluster.configure(cluster.members)
        cluster.reload()
    assert (result.value, str(result.state)) == (1, "kept")
    assert (after.value, str(after.state)) == (1, "kept")


def test_environments_of_the_mcp_endpoint_are_found_again(client: httpx.Client) -> None:
    def call(tool: str, **arguments: str) -> dict[str, object]:
        request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
        return client.post("/mcp", json=request).json()["result"]["structuredContent"]

    for _ in range(4):
        environment = call("launchShell")["environmentId"]
        assert call("runPythonCodeInRemoteEnvironment", environmentId=environment, pythonCode="x = 42")["stderr"] == ""
        assert call("runPythonCodeInRemoteEnvironment", environmentId=environment, pythonCode="x")["executionResult"] == 42


@pytest.mark.parametrize("name", ["mcp", "metrics", "listSessions", "python/execute", "upload"])
async def test_files_may_be_named_like_routes(interpreter: CodeInterpreter, name: str) -> None:
    for number in range(4):
        await interpreter.upload_file(f"names-{number}", name, b"1")
        assert await interpreter.download_file(f"names-{number}", name) == b"1"
        await interpreter.delete_file(f"names-{number}", name)


def test_routes_under_azures_base_path_work_the_same(client: httpx.Client) -> None:
    base = "/subscriptions/s/resourceGroups/g/sessionPools/p"
    client.post(f"{base}/executions?{QUERY}&identifier=azure", json=CELL | {"code": "x = 42"})
    answer = client.post(f"/executions?{QUERY}&identifier=azure", json=CELL | {"code": "x"})
    assert answer.json()["result"]["executionResult"] == 42


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", f"/listSessions?{QUERY}", 501, "NotSharded"),
        ("POST", f"/.management/listSessions?{QUERY}", 501, "NotSharded"),
        ("GET", f"/subscriptions/s/resourceGroups/g/sessionPools/p/listSessions?{QUERY}", 501, "NotSharded"),
        ("GET", "/metrics", 501, "NotSharded"),
        ("POST", "/python/execute", 400, "SessionRequestValidationFailed"),
        ("GET", f"/files?{QUERY}&identifier=a&identifier=b", 400, "SessionRequestValidationFailed"),
        ("GET", f"/files?identifier=a&{QUERY}&identifier=b", 400, "SessionRequestValidationFailed"),
    ],
)
def test_a_request_that_cannot_be_sharded_is_refused(client: httpx.Client, method: str, path: str, status: int, code: str) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_health_and_the_key_are_checked_by_the_servers(client: httpx.Client, cluster: Cluster) -> None:
    assert client.get("/health").json()["status"] == "healthy"
    assert httpx.get(f"{cluster.endpoint}/files?{QUERY}&identifier=a").status_code == 401


async def test_an_unauthorized_upload_that_is_cut_off_moves_no_session(cluster: Cluster, interpreter: CodeInterpreter) -> None:
    (name,) = cluster.of(cluster.members[0], 1, "neighbour")
    await interpreter.execute(name, "x = 1")
    for _ in range(3):
        try:
            httpx.post(f"{cluster.endpoint}/executions?{QUERY}&identifier={name}", content=b" " * (60 << 20), timeout=60)
        except httpx.TransportError:
            continue
    result = await interpreter.execute(name, "x")
    assert (result.value, str(result.state)) == (1, "kept")


async def test_no_log_holds_an_identifier_or_a_file(cluster: Cluster, interpreter: CodeInterpreter) -> None:
    secret = "secret-name:4711"
    await interpreter.upload_file(secret, "secret-file.txt", b"1")
    cluster.configure([Member()])  # never started
    cluster.reload()
    httpx.get(f"{cluster.endpoint}/files/secret-file.txt?{QUERY}&identifier={quote(secret)}", headers=AUTHORIZED)
    httpx.post(f"{cluster.endpoint}/executions?{QUERY}&identifier={quote(secret)}", content=b" " * (70 << 20))
    cluster.configure(cluster.members)
    cluster.reload()
    assert "502" in cluster.logs()
    assert "secret" not in cluster.logs()


def test_a_request_that_reached_no_server_is_refused_with_503(client: httpx.Client, cluster: Cluster) -> None:
    cluster.configure([Member()])  # never started
    cluster.reload()
    answer = client.post(f"/executions?{QUERY}&identifier=a", json=CELL)
    cluster.configure(cluster.members)
    cluster.reload()
    assert (answer.status_code, answer.headers["x-ms-error-code"], answer.headers["retry-after"]) == (503, "ServerUnreachable", "1")


async def test_a_server_that_starts_too_many_sessions_keeps_its_own(cluster: Cluster) -> None:
    member, *others = cluster.members
    names = cluster.of(member, Hosting().max_starting + 1, "starting")
    limits = httpx.Limits(max_connections=200)
    async with httpx.AsyncClient(base_url=cluster.endpoint, headers=AUTHORIZED, timeout=60, limits=limits) as client:
        with stopped(descendants(member.process.pid)):
            pending = [asyncio.create_task(client.post(f"/executions?{QUERY}&identifier={name}", json=CELL)) for name in names]
            async with asyncio.timeout(120):
                refused = await next(asyncio.as_completed(pending))
        answers = await asyncio.gather(*pending)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert refused.json()["error"]["code"] == refused.headers["x-ms-error-code"] == TOO_MANY_STARTING
    assert sum(answer.status_code == 200 for answer in answers) == len(names) - 1
    for other in others:
        assert not {*names} & await other.names()
