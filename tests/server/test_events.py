"""Test the events of an execution on the server: kept, merged and dropped; and their routes."""

import httpx
import pytest

from aca_sessions import Session
from aca_sessions.contract.extensions import decode_events, decode_reply, encode_events
from aca_sessions.contract.records import ProblemError
from aca_sessions.models import Display, Event
from aca_sessions.server.executions import Events


async def test_unread_pieces_of_one_stream_are_joined() -> None:
    events = Events()
    for text in ("a", "b"):
        events.add(Event(kind="stdout", text=text))
    assert await events.read_after(0, within=0) == ([Event(kind="stdout", text="ab")], 1)
    events.add(Event(kind="stdout", text="c"))
    assert await events.read_after(1, within=0) == ([Event(kind="stdout", text="c")], 2)
    assert (await events.read_after(0, within=0))[0] == [Event(kind="stdout", text="ab"), Event(kind="stdout", text="c")]


async def test_the_oldest_output_is_dropped_first_and_the_drop_is_reported() -> None:
    events = Events()
    for number in range(100):
        events.add(Event(kind="stdout", text=str(number % 10) * 100_000))
    found, last = await events.read_after(0, within=0)
    assert (found[0].kind, last) == ("skipped", 100)
    assert events.text_size + events.display_size < 5_000_000


def shown(content: str, name: str | None = None) -> Event:
    return Event(kind="display", display=Display({"text/html": content}, name))


async def test_another_state_of_a_display_replaces_an_unread_one() -> None:
    events, written = Events(), Event(kind="stdout", text="x")
    for event in (shown("1", "bar"), written, shown("2", "bar"), shown("a"), shown("3", "bar")):
        events.add(event)
    assert await events.read_after(0, within=0) == ([shown("3", "bar"), written, shown("a")], 3)
    events.add(shown("4", "bar"))
    events.add(shown("5", "bar"))
    assert await events.read_after(3, within=0) == ([shown("5", "bar")], 4)
    assert (await events.read_after(0, within=0))[0] == [shown("3", "bar"), written, shown("a"), shown("5", "bar")]


async def test_a_display_after_a_clear_replaces_none_before_it() -> None:
    events, clear = Events(), Event(kind="clear")
    for event in (shown("1", "bar"), clear, clear, shown("2", "bar")):
        events.add(event)
    assert (await events.read_after(0, within=0))[0] == [shown("1", "bar"), clear, shown("2", "bar")]


async def test_the_oldest_of_too_many_displays_are_dropped_and_the_drop_is_reported() -> None:
    events = Events()
    for number in range(100):
        events.add(shown(str(number % 10) * 1_000_000, str(number)))
        await events.read_after(number, within=0)
    found, last = await events.read_after(0, within=0)
    assert (found[0].kind, found[-1], last) == ("skipped", shown("9" * 1_000_000, "99"), 100)
    assert found[0].text.startswith("67 displays")
    assert events.text_size + events.display_size < 34_000_000
    events.add(shown("x" * 40_000_000))
    assert (await events.read_after(100, within=0))[0] == [shown("x" * 40_000_000)]


async def test_a_slow_reader_gets_the_number_of_dropped_characters_and_displays() -> None:
    events = Events()
    for _ in range(40):
        events.add(Event(kind="stdout", text="x" * 70_000))
        events.add(shown("y" * 1_000_000))
    (skipped, *_), _ = await events.read_after(0, within=0)
    assert skipped.text.startswith("490000 characters of output and 7 displays")


async def test_a_wait_for_events_ends_at_its_timeout() -> None:
    assert await Events().read_after(0, within=0.01) == ([], 0)


async def test_the_end_wakes_waiting_readers() -> None:
    events = Events()
    events.close()
    assert await events.read_after(0, within=60) == ([], 0)


@pytest.mark.parametrize(
    "event",
    [
        Event(kind="stdout", text="x"),
        Event(kind="input", number=3),
        Event(kind="input", number=3, password=True),
        Event(kind="display", display=Display({"a": "b"})),
    ],
)
def test_both_halves_of_an_event_agree(event: Event) -> None:
    assert decode_events(encode_events([event], 7)) == ([event], 7)


@pytest.mark.parametrize(
    "body",
    [
        *(None, [], {}, {"number": "1", "text": ""}, {"number": 0, "text": ""}, {"number": 1, "text": 5}, {"number": 1, "text": "\ud800"}),
        {"number": True, "text": ""},
    ],
)
def test_a_malformed_reply_is_refused(body: object) -> None:
    with pytest.raises(ProblemError, match="the reply"):
        decode_reply(body)


async def started(http: httpx.AsyncClient, code: str, **headers: str) -> str:
    body = {"codeInputType": "Inline", "executionType": "Asynchronous", "code": code}
    return str((await http.post("executions", json=body, headers=headers)).json()["id"])


async def test_the_events_of_a_cell_say_how_long_it_has_run_or_that_it_waits(http: httpx.AsyncClient) -> None:
    first = await started(http, "import time\nprint('begun')\nwhile True: time.sleep(0.01)")
    second = await started(http, "1")
    elapsed = [
        (await http.get(f"executions/{id}/events", params={"wait": wait})).json()["elapsed"] for id, wait in ((first, 25), (second, 0))
    ]
    assert (elapsed[0] >= 0, elapsed[1]) == (True, None)
    await http.post(f"executions/{first}/interrupt")
    assert (await http.get(f"executions/{second}/events", params={"wait": 25})).json()["elapsed"] >= 0


async def test_the_last_events_come_with_the_finished_execution(http: httpx.AsyncClient) -> None:
    id = await started(http, "print('out')\n5")
    after, kinds = 0, []
    while True:
        page = (await http.get(f"executions/{id}/events", params={"after": after})).json()
        after, kinds = page["after"], kinds + [event["kind"] for event in page["events"]]
        if "execution" in page:
            break
    assert (kinds, page["execution"]["status"], page["execution"]["result"]["executionResult"]) == (["stdout"], "Succeeded", 5)


@pytest.mark.parametrize("query", [{"after": "-1"}, {"after": "x"}, {"wait": "soon"}, {"wait": "-1"}, {"wait": "nan"}])
async def test_an_invalid_page_is_refused(http: httpx.AsyncClient, query: dict[str, str]) -> None:
    id = await started(http, "1")
    assert (await http.get(f"executions/{id}/events", params=query)).status_code == 400


async def test_an_answer_without_a_question_is_refused(http: httpx.AsyncClient) -> None:
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


@pytest.mark.long
async def test_unread_displays_are_dropped_and_the_result_has_the_last(session: Session) -> None:
    updates = "h = display(HTML('a'), display_id=True)\nfor n in range(60): h.update(HTML(str(n) + 'x' * 1_000_000))\n"
    more = "for n in range(60):\n    if n % 20 == 0: clear_output()\n    display(HTML(str(n) + 'y' * 1_000_000))"
    for code, expected in ((updates, ["59x"]), (updates + more, [f"{n}y" for n in range(40, 60)])):
        execution = await session.start(f"from IPython.display import display, HTML, clear_output\n{code}")
        result = await execution.wait()
        told = [event.display.data["text/html"] async for event in execution.events() if event.display]
        assert [html[:3] for html in (one.data["text/html"] for one in result.displays)] == expected
        assert [html[:3] for html in told][-len(expected) :] == expected
        assert sum(map(len, told)) < 34_000_000
