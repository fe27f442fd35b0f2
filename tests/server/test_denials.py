"""Test the events and replies about requests that the rules of a session's network refuse."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import yaml
from jsonschema import Draft202012Validator

from aca_sessions import Network, Policy, open_server
from aca_sessions.models import Event
from aca_sessions.server.executions import Events

from ..conftest import ROOT

pytestmark = pytest.mark.slow
POLICY = Policy(network=Network.allow("target.test"), preload=(), spares=0)
# 403 if it is refused. If it is allowed, the host cannot be reached: 502.
FETCH = """
import urllib.request, urllib.error
def fetch(url):
    try:
        urllib.request.urlopen(url)
    except urllib.error.HTTPError as error:
        return error.code
"""
NETWORK = {"x-aca-sessions-rich": "1", "x-aca-sessions-answered": "network"}


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    params = {"api-version": "2025-10-02-preview", "identifier": "test"}
    async with (
        open_server(policy=POLICY) as app,
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", params=params) as client,
    ):
        yield client


async def send(http: httpx.AsyncClient, code: str, **options: str) -> dict[str, Any]:
    body = {"codeInputType": "Inline", "executionType": "Synchronous", "code": FETCH + code} | options
    return dict((await http.post("executions", json=body, headers=NETWORK)).json())


async def end(http: httpx.AsyncClient, id: str, after: int = 0) -> dict[str, Any]:
    """Return the last page of an execution's events."""
    page: dict[str, Any] = {}
    while "execution" not in page:
        page = (await http.get(f"executions/{id}/events", params={"after": after}, headers=NETWORK)).json()
    return page


async def test_a_synchronous_cell_responds_when_it_asks(http: httpx.AsyncClient) -> None:
    asking = await send(http, "print('x'); fetch('http://unknown.test/a?key=1')")
    assert (asking["status"], asking.get("result")) == ("Running", None)
    page = (await http.get(f"executions/{asking['id']}/events")).json()
    (event,) = page["events"]  # the result has the output
    denial = {"host": "unknown.test", "port": 80, "method": None, "path": None, "allowed": "the hosts target.test", "headers": []}
    assert (event["kind"], json.loads(event["text"])) == ("network", denial)
    document = yaml.safe_load((ROOT / "docs" / "reference" / "openapi.yaml").read_text())
    Draft202012Validator(document["components"]["schemas"]["Denial"]).validate(denial)
    reply = {"number": event["number"], "text": "always"}
    assert (await http.post(f"executions/{asking['id']}/replies", json=reply)).status_code == 200
    assert (await http.post(f"executions/{asking['id']}/replies", json=reply)).status_code == 409
    ended = await end(http, asking["id"])
    assert [(event["kind"], event["text"]) for event in ended["events"][1:]] == [("decision", "always")]
    result = ended["execution"]["acaSessions"]
    assert (result["stdout"], result["value"]) == ("x\n", 502)
    assert (await send(http, "fetch('http://unknown.test/')"))["acaSessions"]["value"] == 502


async def test_a_question_is_refused_when_its_cell_is_interrupted(http: httpx.AsyncClient) -> None:
    asking = await send(http, "fetch('http://unknown.test/')")
    history = (await http.get("session/history", params={"after": 0})).json()
    assert history["questions"] == {"latest": 1, "open": [1]}
    await http.post(f"executions/{asking['id']}/interrupt")
    ended = await end(http, asking["id"])
    assert [(event["kind"], event.get("text")) for event in ended["events"][1:]] == [("decision", "refuse")]
    assert ended["execution"]["acaSessions"]["error"]["name"] == "KeyboardInterrupt"
    late = await http.post(f"executions/{asking['id']}/replies", json={"number": 1, "text": "always"})
    assert (late.status_code, late.json()["error"]["code"]) == (409, "QuestionNotOpen")
    again = await send(http, "fetch('http://unknown.test/')")
    assert again["status"] == "Running"


async def test_a_question_that_was_dropped_is_kept_until_it_is_read_or_decided() -> None:
    events = Events()
    asked = [Event(kind="network", text="{}", number=number) for number in (1, 2)]
    for event in asked:
        events.add(event)
    for _ in range(70):
        events.add(Event(kind="stdout", text="x" * 65_000))
    events.add(Event(kind="decision", text="once", number=1))
    found, _ = await events.read_after(0, within=0)
    assert (found[0].kind, found[1], found[-1].kind) == ("skipped", asked[1], "decision")
    assert asked[0] not in found
