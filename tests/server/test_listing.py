"""Test the fields that the list of sessions has beyond Azure's, for clients that ask for them."""

import asyncio

import httpx

from aca_sessions import SessionInfo
from aca_sessions.contract.flat import decode_sessions


async def test_a_rich_listing_has_memory_and_running_executions(http: httpx.AsyncClient) -> None:
    rich = {"x-aca-sessions-rich": "1"}
    query = {"identifier": "mine"}
    await http.post("/executions", params=query, json={"code": "data = b'x' * 50_000_000"})
    (idle,) = (await http.get("/listSessions", params=query, headers=rich)).json()["sessions"]
    assert (idle["acaSessions"]["active"], idle["acaSessions"]["running"], idle["acaSessions"]["idle"] < 60) == (False, None, True)
    cell = {"code": "input()", "executionType": "Asynchronous"}
    answers = {"operation-id": "asking", "x-aca-sessions-answered": "input"}
    await http.post("/executions", params=query, json=cell, headers=answers)
    (await http.get("/executions/asking/events", params=query)).raise_for_status()
    async with asyncio.timeout(120):  # without a control group the memory is polled now and then
        while (running := await _only(http, rich)).memory < 50_000_000:
            await asyncio.sleep(0.05)
    assert (running.is_active, running.running) == (True, "asking")
    plain = (await http.get("/listSessions", params=query)).json()["sessions"]
    assert [sorted(one) for one in plain] == [["createdAt", "etag", "expireAt", "identifier", "lastAccessedAt"]]


async def _only(http: httpx.AsyncClient, headers: dict[str, str]) -> SessionInfo:
    (one,) = decode_sessions((await http.get("/listSessions", headers=headers)).json())
    return one
