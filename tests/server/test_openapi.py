"""Test that docs/reference/openapi.yaml describes the server: its routes, and the requests and responses of real exchanges."""

import asyncio
import re
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import quote

import httpx
import pytest
import yaml
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from aca_sessions import PackageSource, Policy, Settings, open_server
from aca_sessions.durable.chunks import stream
from aca_sessions.durable.records import Manifest, encode_notebook
from aca_sessions.durable.sealed_stream import seal
from aca_sessions.hosting import Hosting
from aca_sessions.sandbox.wire import RECORD
from aca_sessions.server import app as server
from aca_sessions.server.routing import RouteSpec

from ..conftest import IMAGE, ROOT
from ..wheels import make_wheel

pytestmark = pytest.mark.slow
DOCUMENT = yaml.safe_load((ROOT / "docs" / "reference" / "openapi.yaml").read_text())
REGISTRY = Registry().with_resource("urn:api", DRAFT202012.create_resource(DOCUMENT))
OPERATIONS = {(method, path): one for path, methods in DOCUMENT["paths"].items() for method, one in methods.items()}
# Paths that only earlier api-versions have. The document describes the newest.
EARLIER = {
    ("post", "/code/execute"),
    ("post", "/files/upload"),
    ("post", "/python/execute"),
    ("post", "/python/uploadFile"),
    ("get", "/python/files"),
    ("get", "/python/downloadFile"),
}
RICH = {"x-aca-sessions-rich": "1"}


def test_the_document_is_one_of_openapi() -> None:
    validate(DOCUMENT)


def test_the_document_has_the_routes_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    routes, build = set(), server.build_route

    def record(route: RouteSpec, *more: Any) -> Any:
        routes.add((route[1].lower(), f"/{route[0]}".replace("{name:path}", "{name}")))
        return build(route, *more)

    monkeypatch.setattr(server, "build_route", record)
    server.Service(cast(Any, SimpleNamespace(journal=None, saved=True)), Hosting(metrics=bytes))
    content = ("get", "/files/{name}/content")  # the server has one route for this and `GET /files/{name}`
    assert routes - EARLIER == {*OPERATIONS} - {content}
    assert routes > EARLIER


class Contract:
    """The exchanges of a client, each of which is compared with the document."""

    def __init__(self) -> None:
        self.seen: defaultdict[tuple[str, str], set[str]] = defaultdict(set)

    async def check(self, response: httpx.Response) -> None:
        """Compare a response and its request with the document. A request that succeeded must be as documented."""
        await response.aread()
        request, status = response.request, response.status_code
        key, values = _operation(request)
        place = f"urn:api#/paths/{_escape(key[1])}/{key[0]}"
        declared = OPERATIONS[key]["responses"]
        name = str(status) if str(status) in declared else "default"
        assert name in declared, f"{key} has no response {status}: {response.text}"
        self.seen[key].add(name)
        described, where = _resolve(declared[name], f"{place}/responses/{name}")
        for header, one in described.get("headers", {}).items():
            assert header in response.headers or not _resolve(one, "")[0].get("required"), (key, header)
        _check_body(response.headers.get("content-type", ""), response.content, described.get("content", {}), f"{where}/content")
        if status < 400:
            self._check_request(request, key, place, values)

    def _check_request(self, request: httpx.Request, key: tuple[str, str], place: str, values: dict[str, str]) -> None:
        given = {("query", name): value for name, value in request.url.params.items()} | {
            ("path", name): one for name, one in values.items()
        }
        given |= {("header", name): value for name, value in request.headers.items()}
        declared = {}
        for number, parameter in enumerate(OPERATIONS[key].get("parameters", ())):
            one, where = _resolve(parameter, f"{place}/parameters/{number}")
            declared[one["in"], one["name"]] = one
            if (text := given.get((one["in"], one["name"]))) is not None:
                number_like = _resolve(one["schema"], "")[0].get("type") in ("integer", "number")
                _validate(float(text) if number_like else text, f"{where}/schema")
            assert text is not None or not one.get("required"), (key, one["name"])
        sent = {name for name in given if name[0] == "query" or name[1].startswith(("x-aca-", "range", "if-"))}
        assert sent - {*declared} <= {("query", "api-version"), ("query", "identifier")}, key  # which this client always sends
        if "requestBody" in OPERATIONS[key]:
            content = OPERATIONS[key]["requestBody"]["content"]
            if request.content:
                _check_body(request.headers["content-type"], request.content, content, f"{place}/requestBody/content")
            assert request.content or not OPERATIONS[key]["requestBody"].get("required")
        else:
            assert not request.content, key


def _operation(request: httpx.Request) -> tuple[tuple[str, str], dict[str, str]]:
    path, method = request.url.raw_path.decode().partition("?")[0], request.method.lower()
    for key in sorted(OPERATIONS, key=lambda one: one[1].count("{")):
        if key[0] == method and (found := re.fullmatch(re.sub(r"\\?\{(\w+)\\?\}", r"(?P<\1>[^/]+)", re.escape(key[1])), path)):
            return key, found.groupdict()
    raise AssertionError(f"{method} {path} is not in the document")


def _resolve(one: dict[str, Any], place: str) -> tuple[dict[str, Any], str]:
    """Return the object that `one` refers to and its place, or both unchanged if it is not a reference."""
    if "$ref" not in one:
        return one, place
    found: Any = DOCUMENT
    for part in one["$ref"].removeprefix("#/").split("/"):
        found = found[part]
    return found, "urn:api" + one["$ref"]


def _check_body(content_type: str, body: bytes, content: dict[str, Any], place: str) -> None:
    kind = content_type.partition(";")[0]
    assert bool(body) <= bool(content), body
    if body:
        assert kind in content, f"{kind}: {body[:200]!r}"
    if kind.endswith("json"):
        _validate(httpx.Response(200, content=body).json(), f"{place}/{_escape(kind)}/schema")


def _escape(part: str) -> str:
    return quote(part.replace("~", "~0").replace("/", "~1"), safe="~")


def _validate(value: object, place: str) -> None:
    validator = Draft202012Validator({"$ref": place}, registry=REGISTRY)
    assert [f"{error.json_path}: {error.message:.300}" for error in validator.iter_errors(value)] == [], place


@asynccontextmanager
async def serving(
    contract: Contract, wheels: Path | None = None, store: Path | None = None, **hosting: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Any]]:
    """Serve sessions, and yield a client whose exchanges are checked, and the server."""
    policy = Policy(preload=(), spares=0, image=IMAGE, packages=PackageSource(wheels=str(wheels) if wheels else None))
    params = {"api-version": "2025-10-02-preview", "identifier": "test"}
    async with (
        open_server(Settings(Durable={"Store": f"file://{store}"} if store else {}), policy=policy, hosting=Hosting(**hosting)) as app,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app),
            base_url="http://test",
            params=params,
            event_hooks={"request": [httpx.Request.aread], "response": [contract.check]},
            timeout=60,
        ) as http,
    ):
        yield http, app


@pytest.mark.long
async def test_requests_and_responses_are_as_documented(tmp_path: Path) -> None:
    contract = Contract()
    make_wheel(tmp_path, "alpha")
    async with serving(contract, tmp_path, max_upload=1 << 16, metrics=lambda: b"up 1\n") as (http, app):
        await _about_missing_sessions(http)
        await _about_cells(http)
        await _about_running_cells(http)
        await _about_files(http)
        await _about_packages(http)
        await _about_state(http)
        await _about_sessions(http)
        await _about_the_server(http)
        app.refuse_new_sessions()
        assert (await http.get("/health")).status_code == (await http.get("/readyz")).status_code == 503
        assert (await http.post("/executions", json={"code": "1"}, params={"identifier": "new"})).status_code == 503
    async with serving(contract, store=tmp_path / "store") as (http, _):
        await _about_saves(http)
    async with serving(contract, store=tmp_path / "store") as (http, _):
        restored = (await http.post("/executions", json={"code": "x"}, headers=RICH)).json()["acaSessions"]
        assert (restored["text"], restored["state"]["missing"]) == ("1", ["lock"])
        assert (await http.delete("/session/save")).status_code == 204
        assert (await http.delete("/session/save")).status_code == 404
    async with serving(contract, session_rules=True) as (http, _):
        await _about_networks(http)
    async with serving(contract) as (http, _):
        assert (await http.put("/session/network", json=NETWORK)).status_code == 403
    async with serving(contract, shell=True) as (http, _):
        for body in ({"shellCommand": "echo hi; exit 3"}, {"execCommandAndArgs": ["cat"], "stdin": "x", "executionType": "Asynchronous"}):
            started = await http.post("/executions", json=body)
            await http.get(f"/executions/{started.headers['operation-id']}/events", params={"after": 0})
    async with serving(contract, api_key="secret") as (http, _):
        assert (await http.get("/session")).status_code == 401
        assert (await http.get("/session", headers={"x-ms-apikey": "secret"})).status_code == 400
    async with serving(contract, max_sessions=1, evicts=False) as (http, _):
        await http.post("/executions", json={"code": "1"})
        full = await http.post("/executions", json={"code": "1"}, params={"identifier": "another"})
        assert (full.status_code, full.json().keys()) == (429, {"code", "message"})
    expected = {key: {*one["responses"]} - {"default"} for key, one in OPERATIONS.items()}
    assert {key: names - contract.seen[key] for key, names in expected.items() if names - contract.seen[key]} == {}


async def _about_saves(http: httpx.AsyncClient) -> None:
    await http.post("/executions", json={"code": "import threading; x, lock = 1, threading.Lock()"})
    assert (await http.post("/session/save")).json()["variables"] == 2
    assert [one["session_id"] for one in (await http.get("/savedSessions")).json()["value"]] == ["test"]
    exported = (await http.post("/session/export", json={"cells": []})).content
    octets, large = {"content-type": "application/octet-stream"}, Manifest(created=datetime.now(UTC)).encode() + encode_notebook(b"")
    large += RECORD.pack(2, 1 << 50) + b"{}"
    for name, status, content in (
        ("moved", 200, exported),
        ("moved", 409, exported),
        ("other", 400, exported[:-1]),
        ("other", 413, b"".join([chunk async for chunk in seal(stream(large))])),
    ):
        imported = await http.post("/session/import", content=content, headers=octets, params={"identifier": name})
        assert (imported.status_code, imported.json().get("variables", 2)) == (status, 2)
    assert (await http.delete("/session", params={"identifier": "moved"})).status_code == 204
    await http.post("/executions", json={"code": "import sys; sys.modules['aca_sessions.sandbox.guest.saves']._write = None"})
    assert (await http.post("/session/save")).status_code == 409
    assert (await http.post("/session/export")).status_code == 409


NETWORK = {"version": "0123456789abcdef", "kind": "allow", "rules": [{"host": "example.org"}]}


async def _about_networks(http: httpx.AsyncClient) -> None:
    rule = {"host": "api.site.test", "methods": ["GET"], "paths": ["/x/**"], "headers": {"X-Key": "${secret:key}"}, "requests": 5}
    rules = {"version": "another-0123456789", "kind": "rules", "rules": [rule], "secrets": {"key": "value"}, "limits": {"megabytes": 5}}
    assert (await http.put("/session/network", json=rules)).json() == {"version": "another-0123456789"}
    assert (await http.get("/session/network")).json() == {"refused": []}
    assert (await http.get("/session/network", params={"identifier": "none"})).status_code == 400
    named = {"x-aca-sessions-network": "another-0123456789"}
    assert (await http.post("/executions", json={"code": "1"}, headers=named)).status_code == 200
    assert (await http.put("/session/network", json=NETWORK)).status_code == 200
    missing = await http.post("/executions", json={"code": "1"}, headers=named)
    assert (missing.status_code, missing.json()["error"]["code"]) == (428, "NetworkMissing")
    assert (await http.put("/session/network", json=NETWORK | {"kind": "host"})).status_code == 400
    other = {"identifier": "other"}
    await http.post("/executions", json={"code": "1"}, params=other)
    assert (await http.put("/session/network", json=NETWORK, params=other)).status_code == 409


async def _about_missing_sessions(http: httpx.AsyncClient) -> None:
    assert (await http.get("/session")).json()["error"]["code"] == "SessionWithIdentifierNotFound"
    assert (await http.post("/executions/x/interrupt")).status_code == 202
    for method, path in (
        ("DELETE", "/session"),
        ("POST", "/session/interrupt"),
        ("POST", "/.management/getSession"),
        ("POST", "/.management/stopSession"),
    ):
        assert (await http.request(method, path)).status_code == 400
    for method, path in (("GET", "/metadata"), ("GET", "/listSessions"), ("POST", "/.management/listSessions")):
        assert (await http.request(method, path, params={"api-version": "2000-01-01"})).status_code == 400
    for method, path in (
        ("GET", "/session/checkpoints"),
        ("GET", "/session/packages"),
        ("DELETE", "/session/packages"),
        ("POST", "/session/reset"),
        ("GET", "/executions/x"),
        ("POST", "/executions/x/interrupt"),
    ):
        assert (await http.request(method, path, params={"identifier": ""})).status_code == 400


async def _about_cells(http: httpx.AsyncClient) -> None:
    codes = ("6 * 7", "print('x')", "{'a': 1}", "None", "float('nan')", "1 / 0", "'text'")
    images = ("import base64\ndisplay({'image/png': base64.b64encode(b'PNG').decode()}, raw=True)",)
    kept = "import subprocess\nd = [1, 2]\nopen('a.txt', 'w').close()\np = subprocess.Popen(['sleep', '100'])"
    ended = "import os; os._exit(3)"
    for code in (*codes, *images, kept, ended):
        for headers in ({}, RICH):
            limits = {"codeInputType": "Inline", "executionType": "Synchronous", "timeoutInSeconds": 50, "outputStreamsMaxLength": 100}
            answer = await http.post("/executions", json={"code": code, **limits}, headers=headers)
            await http.get(f"/executions/{answer.headers['operation-id']}", headers=headers)
    assert (await http.post("/executions", json={"code": "1"}, headers=RICH | {"x-aca-sessions-transactional": "1"})).status_code == 200
    assert (await http.post("/executions", content=b"no JSON")).headers["content-type"] == "application/problem+json"
    for body in ({"code": 1}, {"code": "1", "timeoutInSeconds": 0}, {"code": "1", "executionType": "Sometimes"}):
        with pytest.raises(AssertionError):
            _validate(body, "urn:api#/components/schemas/CellRequest")
        assert (await http.post("/executions", json=body)).status_code == 400
    assert (await http.get("/executions/unknown")).status_code == 404


async def _about_running_cells(http: httpx.AsyncClient) -> None:
    code = "print('first'); display({'text/html': '<b>'}, raw=True)\ninput('Who? ')"
    asking = RICH | {"x-aca-sessions-answered": "input, call", "operation-id": "asks"}
    await http.post("/executions", json={"code": code, "executionType": "Asynchronous"}, headers=asking)
    after, questions = 0, list[dict[str, Any]]()
    while not questions:
        page = (await http.get("/executions/asks/events", params={"after": after, "wait": 5}, headers=RICH)).json()
        after, questions = page["after"], [event for event in page["events"] if event["kind"] == "input"]
    await http.get("/session/history", params={"after": 0})
    number = questions[0]["number"]
    answer = {"number": number, "text": "Ada", "end": False}
    await http.post("/executions/asks/replies", json=answer, params={"after": after}, headers=RICH)
    assert (await http.post("/executions/asks/replies", json=answer)).status_code == 409
    assert (await http.post("/executions/asks/replies", json={"number": "1"})).status_code == 400
    assert (await http.post("/executions/unknown/replies", json=answer)).status_code == 404
    assert (await http.get("/executions/unknown/events")).status_code == 404
    assert (await http.get("/executions/asks/events", params={"wait": -1})).status_code == 400
    while "execution" not in (await http.get("/executions/asks/events", params={"after": after}, headers=RICH)).json():
        pass
    running = asyncio.create_task(http.post("/executions", json={"code": "while True: pass"}, headers=RICH | {"operation-id": "endless"}))
    while (await http.get("/executions/endless")).json().get("status") != "Running":
        await asyncio.sleep(0.01)
    await http.get("/listSessions", headers=RICH)
    assert (await http.post("/executions/endless/interrupt", headers={"x-aca-sessions-gentle": "1"})).status_code == 202
    await running
    assert (await http.post("/session/interrupt")).status_code == 202


async def _about_files(http: httpx.AsyncClient) -> None:
    for name, path in (("a.txt", ""), ("b.txt", "folder")):
        assert (await http.post("/files", files={"file": (name, b"hello")}, params={"path": path})).status_code == 200
    assert (await http.post("/files", files={"file": ("c", b"x")}, params={"path": "../c"})).status_code == 400
    assert (await http.post("/files", files={"file": ("c", bytes(1 << 18))})).status_code == 413
    assert len((await http.get("/files", params={"recursive": "true"})).json()["value"]) == 3
    await http.get("/files", params={"path": "folder"})
    assert (await http.get("/files", params={"path": "nothing"})).status_code == 404
    assert (await http.get("/files", params={"path": "../c"})).status_code == 400
    assert (await http.get("/files/folder%2Fb.txt")).json()["directory"] == "folder"
    content = "/files/a.txt/content"
    tag = (await http.get(content)).headers["etag"]
    assert (await http.get(content, headers={"range": "bytes=1-2", "if-range": tag})).status_code == 206
    assert (await http.get(content, headers={"range": "bytes=90-"})).status_code == 416
    assert (await http.get(content, headers={"if-match": '"x"'})).status_code == 412
    for method, path in (("GET", "/files/{}"), ("DELETE", "/files/{}"), ("GET", "/files/{}/content")):
        assert (await http.request(method, path.format("nothing"))).status_code == 404
        assert (await http.request(method, path.format("..%2F..%2Fetc"))).status_code == 400
    assert (await http.delete("/files/a.txt")).status_code == 204


async def _about_packages(http: httpx.AsyncClient) -> None:
    path = "/session/packages"
    for requirements in (["alpha"], ["no-such-package"]):
        await http.post(path, json={"requirements": requirements, "timeout": 60})
    assert (await http.get(path)).json() == {"packages": [{"name": "alpha", "version": "1.0"}]}
    assert (await http.post(path, json={"requirements": "alpha"})).status_code == 400
    assert (await http.delete(path, params={"names": "alpha"})).status_code == 200


async def _about_state(http: httpx.AsyncClient) -> None:
    taken = (await http.post("/session/checkpoints", json={"name": "start"})).json()
    await http.post("/session/checkpoints", headers={"x-aca-sessions-since": f"{taken['ledger']['id']}:0"})
    await http.get("/session/checkpoints")
    assert (await http.post("/session/rollback", json={"id": taken["id"]})).status_code == 200
    first = (await http.post("/executions", json={"code": "1"}, headers=RICH)).json()["acaSessions"]["ledger"]
    since = {"x-aca-sessions-since": f"{first['id']}:{first['end']}"}
    await http.post("/session/rollback")
    lost = await http.post("/executions", json={"code": "1"}, headers=RICH | since)
    assert lost.json()["acaSessions"]["ledger"]["entries"]
    assert (await http.post("/session/branches", json={"identifiers": ["b"], "reseed": True}, headers=since)).status_code == 200
    assert (await http.post("/session/branches", json={"identifiers": ["b"], "reseed": True})).status_code == 409
    assert (await http.post("/session/rollback", json={"name": "unknown"})).status_code == 409
    for path, body in (("branches", {}), ("rollback", {"id": ""}), ("checkpoints", {"name": 1}), ("name", {})):
        assert (await http.request("PUT" if path == "name" else "POST", f"/session/{path}", json=body)).status_code == 400
    assert (await http.delete(f"/session/checkpoints/{taken['id']}")).status_code == 204
    assert (await http.delete("/session/checkpoints/unknown")).status_code == 409
    await http.put("/session/name", json={"name": "my session"})
    await http.get("/session/history")
    assert (await http.get("/session/history", params={"after": -1})).status_code == 400
    await http.post(
        "/executions", json={"code": "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"}
    )
    assert (await http.post("/session/checkpoints", json={})).status_code == 409
    assert (await http.post("/session/reset")).status_code == 200


async def _about_sessions(http: httpx.AsyncClient) -> None:
    await http.get("/session")
    await http.get("/listSessions", params={"skip": 0}, headers=RICH)
    await http.get("/listSessions")
    await http.post("/.management/getSession")
    await http.post("/.management/listSessions", params={"skip": 0})
    await http.get("/metadata")
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    launched = (await http.post("/mcp", json=call | {"params": {"name": "launchShell", "arguments": {}}})).json()["result"]
    arguments = {"environmentId": launched["structuredContent"]["environmentId"], "pythonCode": "6 * 7"}
    await http.post("/mcp", json=call | {"params": {"name": "runPythonCodeInRemoteEnvironment", "arguments": arguments}})
    await http.post("/mcp", json={"jsonrpc": "2.0", "id": "a", "method": "tools/list"})
    await http.post("/mcp", json={"jsonrpc": "2.0", "id": 2, "method": "unknown"})
    assert (await http.post("/mcp", json={"jsonrpc": "2.0", "method": "notifications/initialized"})).status_code == 202
    assert (await http.post("/mcp", json=[])).status_code == 400
    assert (await http.delete("/session", headers={"x-aca-sessions-cause": "expired"})).status_code == 204


async def _about_the_server(http: httpx.AsyncClient) -> None:
    for path in ("/health", "/livez", "/readyz", "/isolation", "/metrics"):
        assert (await http.get(path)).status_code == 200
