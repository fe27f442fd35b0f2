"""Events of an execution on the server: kept, merged, dropped; and their routes."""

import httpx
import pytest

from aca_sessions.contract.events import decode_events, decode_reply, encode_events
from aca_sessions.models import Display, Event
from aca_sessions.server.events import Events


async def test_pieces_of_one_stream_join_while_nobody_has_read_them() -> None:
    events = Events()
    for text in ("a", "b"):
        events.add(Event(kind="stdout", text=text))
    assert await events.after(0, within=0) == ([Event(kind="stdout", text="ab")], 1)
    events.add(Event(kind="stdout", text="c"))
    assert await events.after(1, within=0) == ([Event(kind="stdout", text="c")], 2)
    assert (await events.after(0, within=0))[0] == [Event(kind="stdout", text="ab"), Event(kind="stdout", text="c")]


async def test_the_oldest_output_goes_first_and_that_is_told() -> None:
    events = Events()
    for number in range(100):
        events.add(Event(kind="stdout", text=str(number % 10) * 100_000))
    found, last = await events.after(0, within=0)
    assert (found[0].kind, last) == ("skipped", 100)
    assert events.size < 5_000_000


async def test_whoever_waits_gives_up_in_time() -> None:
    assert await Events().after(0, within=0.01) == ([], 0)


async def test_the_end_wakes_whoever_waits() -> None:
    events = Events()
    events.close()
    assert await events.after(0, within=60) == ([], 0)


@pytest.mark.parametrize(
    "event", [Event(kind="stdout", text="x"), Event(kind="input", number=3), Event(kind="display", display=Display({"a": "b"}))]
)
def test_both_halves_of_an_event_agree(event: Event) -> None:
    assert decode_events(encode_events([event], 7)) == ([event], 7)


@pytest.mark.parametrize(
    "body",
    [None, [], {}, {"number": "1", "text": ""}, {"number": 0, "text": ""}, {"number": 1, "text": 5}, {"number": 1, "text": "\ud800"}],
)
def test_a_reply_of_another_shape_is_refused(body: object) -> None:
    with pytest.raises(ValueError, match="a reply"):
        decode_reply(body)


async def started(http: httpx.AsyncClient, code: str, **headers: str) -> str:
    body = {"codeInputType": "Inline", "executionType": "Asynchronous", "code": code}
    return str((await http.post("executions", json=body, headers=headers)).json()["id"])


async def test_events_come_with_the_execution_at_the_end(http: httpx.AsyncClient) -> None:
    id = await started(http, "print('out')\n5")
    after, kinds = 0, []
    while True:
        page = (await http.get(f"executions/{id}/events", params={"after": after})).json()
        after, kinds = page["after"], kinds + [event["kind"] for event in page["events"]]
        if "execution" in page:
            break
    assert (kinds, page["execution"]["status"], page["execution"]["result"]["executionResult"]) == (["stdout"], "Succeeded", 5)


@pytest.mark.parametrize("query", [{"after": "-1"}, {"after": "x"}, {"wait": "soon"}, {"wait": "-1"}, {"wait": "nan"}])
async def test_a_page_that_cannot_be_is_refused(http: httpx.AsyncClient, query: dict[str, str]) -> None:
    id = await started(http, "1")
    assert (await http.get(f"executions/{id}/events", params=query)).status_code == 400


async def test_an_answer_that_nobody_waits_for_is_refused(http: httpx.AsyncClient) -> None:
    id = await started(http, "1")
    reply = await http.post(f"executions/{id}/replies", json={"number": 1, "text": "x"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "QuestionNotOpen")


async def test_a_question_is_read_and_answered_by_any_client(http: httpx.AsyncClient) -> None:
    id = await started(http, "input('n? ') * 2", **{"x-aca-sessions-answered": "input"})
    page: dict[str, list[dict[str, object]]] = {"events": []}
    while not any(event["kind"] == "input" for event in page["events"]):
        page = (await http.get(f"executions/{id}/events")).json()
    assert (await http.post(f"executions/{id}/replies", json={"number": page["events"][-1]["number"], "text": "ab"})).status_code == 200
    ended = (await http.get(f"executions/{id}/events", params={"after": 10**6})).json()
    assert ended["execution"]["result"]["executionResult"] == "abab"
