"""Test what a server tells of a session's past: its cells, their outputs and what happened between them; and the session's name."""

import asyncio
import json

import httpx
import pytest

from aca_sessions.client.snippets import snippet
from aca_sessions.errors import GuestDiedError
from aca_sessions.server.executions import Executions

pytestmark = pytest.mark.slow
RICH = {"x-aca-sessions-rich": "1"}


async def run(http: httpx.AsyncClient, code: str, **headers: str) -> dict[str, object]:
    answer = await http.post("/executions", json={"code": code}, headers=RICH | headers)
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["acaSessions"])


async def history(http: httpx.AsyncClient, after: int = 0) -> dict[str, object]:
    return dict((await http.get("/session/history", params={"after": after})).json())


async def test_the_history_has_all_cells_in_order_but_not_those_of_clients(http: httpx.AsyncClient) -> None:
    for number in range(12):
        await run(http, f"print('out', {number})\n{number}")
        await run(http, snippet("variables"))
    told = await history(http)
    cells = told["cells"]
    assert [cell["number"] for cell in cells] == [*range(1, 13)]
    assert cells[7]["code"] == "print('out', 7)\n7"
    assert cells[7]["execution"]["acaSessions"]["text"] == "7"
    assert cells[7]["execution"]["acaSessions"]["stdout"] == "out 7\n"
    assert (told["accepted"], told["gone"]) == (12, 0)
    assert [cell["number"] for cell in (await history(http, 10))["cells"]] == [11, 12]
    live = (await http.get("/listSessions", headers=RICH)).json()["sessions"][0]["acaSessions"]
    assert live["cells"] == 12


async def test_a_cell_that_is_to_follow_a_success_is_not_run_after_a_failure(http: httpx.AsyncClient) -> None:
    async def start(id: str, code: str, **headers: str) -> None:
        body = {"code": code, "executionType": "Asynchronous"}
        await http.post("/executions", json=body, headers=RICH | {"x-aca-sessions-answered": "input", "operation-id": id} | headers)

    async def ended(id: str) -> dict[str, object]:
        while (told := (await http.get(f"/executions/{id}", headers=RICH)).json())["status"] in ("NotStarted", "Running"):
            await asyncio.sleep(0.01)
        return dict(told["acaSessions"])

    async def answer(id: str) -> None:
        after, asked = 0, []
        while not asked:
            page = (await http.get(f"/executions/{id}/events", params={"after": after})).json()
            after, asked = page["after"], [event["number"] for event in page["events"] if event["kind"] == "input"]
        await http.post(f"/executions/{id}/replies", json={"number": asked[0], "text": ""})

    follows = {"x-aca-sessions-after-success": "1"}
    await start("fails", "input(); 1 / 0")
    await start("follows", "a = 1", **follows)
    await start("alone", "b = 1")
    await answer("fails")
    assert (await ended("fails"))["error"]["name"] == "ZeroDivisionError"
    follower = await ended("follows")
    assert (follower["error"]["name"], follower["state"]["kind"]) == ("NotRun", "kept")
    assert (await ended("alone"))["error"] is None
    # One that its caller cancels before it begins has not failed.
    await start("waits", "input()")
    await start("cancelled", "c = 1", **follows)
    await start("goes-on", "d = 1", **follows)
    await http.post("/executions/cancelled/interrupt")
    await answer("waits")
    assert [(await ended("cancelled"))["error"]["name"], (await ended("goes-on"))["error"]] == ["KeyboardInterrupt", None]
    assert (await run(http, "sorted({'a', 'b', 'c', 'd'} & {*globals()})", **follows))["text"] == "['b', 'd']"


@pytest.mark.parametrize(("step", "error"), [("_start_interpreter", GuestDiedError("no")), ("_run_in_interpreter", OSError("disk"))])
async def test_a_cell_does_not_follow_one_that_the_server_could_not_run(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, step: str, error: Exception
) -> None:
    """The step fails for the first cell, as on a host without memory or descriptors."""
    real, failures = getattr(Executions, step), [error]

    async def fails_once(self: Executions, *arguments: object) -> object:
        if failures:
            raise failures.pop()
        return await real(self, *arguments)

    monkeypatch.setattr(Executions, step, fails_once)
    first, second = await asyncio.gather(run(http, "1"), run(http, "2", **{"x-aca-sessions-after-success": "1"}))
    assert (first["error"]["name"], second["error"]["name"]) == ("InterpreterDied", "NotRun")
    assert (await run(http, "3"))["text"] == "3"


async def test_output_is_in_the_history_as_it_came_and_a_running_cell_is_in_it(http: httpx.AsyncClient) -> None:
    body = {"code": "print('first')\ndisplay('second')\nprint('third')\ninput('Who? ')", "executionType": "Asynchronous"}
    started = await http.post("/executions", json=body, headers=RICH | {"x-aca-sessions-answered": "input", "operation-id": "asks"})
    assert started.headers["x-aca-sessions-number"] == "1"
    after, asked = 0, []
    while not asked:
        page = (await http.get("/executions/asks/events", params={"after": after})).json()
        after, asked = page["after"], [event for event in page["events"] if event["kind"] == "input"]
    told = await history(http)
    assert (told["cells"][0]["execution"]["status"], told["cells"][0]["events"]) == ("Running", [])
    assert told["questions"] == {"latest": asked[0]["number"], "open": [asked[0]["number"]]}
    await http.post("/executions/asks/replies", json={"number": asked[0]["number"], "text": "Ada"})
    while (await history(http))["cells"][0]["execution"]["status"] == "Running":
        await asyncio.sleep(0.01)
    told = await history(http)
    events = told["cells"][0]["events"]
    assert {event["kind"] for event in events} == {"stdout", "display", "input"}
    assert "".join(event["text"] for event in events if event["kind"] == "stdout").startswith("first\nthird\n")
    assert told["questions"] == {"latest": 0, "open": []}


async def test_the_history_tells_a_loss_once_and_does_not_report_it_in_a_callers_place(http: httpx.AsyncClient) -> None:
    await run(http, "x = 1")
    await run(http, "import os; os._exit(3)")
    await run(http, "1")
    await http.post("/session/reset")
    await run(http, "2")
    states = [cell["execution"]["acaSessions"]["state"] for cell in (await history(http))["cells"]]
    assert [(state["kind"], state["reason"]) for state in states] == [("kept", None), ("lost", "exit"), ("kept", None), ("kept", None)]
    kinds = [entry["kind"] for entry in (await history(http))["ledger"]["entries"]]
    assert "reset" in kinds
    await http.post("/executions", json={"code": "os = __import__('os'); os._exit(1)", "executionType": "Asynchronous"}, headers=RICH)
    while (await history(http))["cells"][-1]["execution"]["status"] != "Failed":
        await asyncio.sleep(0.01)
    assert (await run(http, "3"))["state"]["kind"] == "lost"


@pytest.mark.long
async def test_a_history_that_is_too_large_says_what_is_gone(http: httpx.AsyncClient) -> None:
    await run(http, "'small'")
    for number in range(3):
        await run(http, f"{number}  # {'x' * (7 << 20)}")
    await run(http, "'last'")
    told = await history(http)
    assert (told["accepted"], told["gone"], len(told["cells"])) == (5, 1, 3)
    assert [cell["number"] for cell in (await history(http, told["cells"][-1]["number"]))["cells"]] == [5]


async def test_large_outputs_leave_the_history_before_cells_do(http: httpx.AsyncClient) -> None:
    # 5 MB of HTML: about as much as a chart of plotly
    chart = "from IPython.display import HTML\nHTML('x' * 5_000_000)"
    for number in range(4):
        await run(http, f"print('small', {number})")
        await run(http, f"{chart}  # {number}")
    await run(http, f"print('x' * 900_000)\n{'1 + ' * 100}1 / 0")
    cells, after = [], 0
    while page := (told := await history(http, after))["cells"]:
        cells += page
        after = page[-1]["number"]
    assert (told["gone"], [cell["number"] for cell in cells]) == (0, [*range(1, 10)])
    assert [cell["execution"]["acaSessions"]["stdout"] for cell in cells[:8:2]] == [f"small {number}\n" for number in range(4)]
    charts = cells[1:8:2]
    assert [cell["code"] for cell in charts] == [f"{chart}  # {number}" for number in range(4)]
    dropped = [cell for cell in charts if cell["events"]]  # a cell whose caller waits has no other events
    assert len(dropped) == 1
    assert dropped[0]["events"] == [{"kind": "skipped", "text": "5.0 MB of output are not kept: run the cell again to see it"}]
    assert dropped[0]["execution"]["acaSessions"]["displays"] == []
    assert cells[8]["execution"]["acaSessions"]["error"]["name"] == "ZeroDivisionError"


async def test_a_history_has_the_data_of_charts_without_their_pages(http: httpx.AsyncClient) -> None:
    forms = "{'application/vnd.plotly.v1+json': {'data': []}, 'text/html': 'x' * 5_000_000, 'text/plain': 'a chart'}"
    for number in range(4):
        rich = await run(http, f"display({forms}, raw=True)  # {number}")
        assert len(rich["displays"][0]["text/html"]) == 5_000_000
    told = await history(http)
    assert (told["gone"], len(told["cells"])) == (0, 4)
    kept = {"application/vnd.plotly.v1+json": '{"data": []}', "text/plain": "a chart"}
    assert [cell["execution"]["acaSessions"]["displays"] for cell in told["cells"]] == [[kept]] * 4


async def test_neither_a_history_nor_a_name_begins_a_session_and_a_history_begins_after_a_number(http: httpx.AsyncClient) -> None:
    assert (await http.get("/session/history")).status_code == 400
    assert (await http.put("/session/name", json={"name": "mine"})).status_code == 400
    assert (await http.get("/listSessions")).json()["sessions"] == []
    await run(http, "1")
    for after in ("-1", "x", "9" * 19, "1.5"):
        refused = await http.get("/session/history", params={"after": after})
        assert (refused.status_code, "'after' must be" in refused.text) == (400, True), after


async def test_a_session_is_renamed_and_keeps_its_identifier(http: httpx.AsyncClient) -> None:
    await run(http, "x = 1")
    names = {"  Überblick 1 ": "Überblick 1", "a" * 64: "a" * 64, "日本": "日本"}
    for given, shown in names.items():
        assert (await http.put("/session/name", json={"name": given})).json() == {"name": shown}
        listed = (await http.get("/listSessions", headers=RICH)).json()["sessions"]
        assert [(one["identifier"], one["acaSessions"]["name"]) for one in listed] == [("test", shown)]
    assert "name" not in (await http.get("/listSessions")).text
    for name in ("", "  ", "a" * 65, "a\nb", "a\x1b[31m", "a\u202eb", "a\u2028b", "\ud800", 5, ["a"], True):
        refused = await http.put("/session/name", content=json.dumps({"name": name}))
        assert (refused.status_code, "'name' must be null or 1 to 64 printable characters" in refused.text) == (400, True), name
    assert (await http.put("/session/name", content=b"[]")).status_code == 400
    await http.put("/session/name", json={"name": None})
    assert (await http.get("/listSessions", headers=RICH)).json()["sessions"][0]["acaSessions"]["name"] is None
    assert (await run(http, "x"))["text"] == "1"
