"""Events and replies of a running execution over HTTP.

The client reads events by long-poll and answers the cell's questions by requests.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, cast

from ..models import Display, Event
from .values import Body, is_well_formed

EVENTS_PATH = "executions/{id}/events"
REPLIES_PATH = "executions/{id}/replies"
ANSWERED_HEADER = "x-aca-sessions-answered"
LONGEST_POLL = 25.0  # seconds; proxies close connections that are silent for longer
EVENTS_MEMBER = "events"
NEXT_MEMBER = "after"
EXECUTION_MEMBER = "execution"

Kind = Literal["stdout", "stderr", "display", "clear", "input", "call", "skipped"]
QUESTIONS = ("input", "call")


def encode_events(events: list[Event], last: int) -> dict[str, object]:
    """Return a page of events. `last` is the `after` of the request for the next page."""
    return {EVENTS_MEMBER: [_encode(event) for event in events], NEXT_MEMBER: last}


def decode_events(body: Body) -> tuple[list[Event], int]:
    """Return the events of a page, and the `after` of the request for the next page."""
    return [_decode(event) for event in cast(list[Body], body[EVENTS_MEMBER])], cast(int, body[NEXT_MEMBER])


def encode_answered(kinds: Sequence[str]) -> str:
    """Return the header value that names which questions of a cell its caller answers."""
    return ", ".join(kinds)


def decode_answered(header: str) -> tuple[str, ...]:
    """Return the known kinds of questions in a header value. Ignore others."""
    said = {part.strip() for part in header.split(",")}
    return tuple(kind for kind in QUESTIONS if kind in said)


def encode_reply(number: int, text: str | None) -> dict[str, object]:
    """Return the reply to a question of a cell. `text` is None if the caller has no answer."""
    return {"number": number, "text": text}


def decode_reply(body: object) -> tuple[int, str | None]:
    """Return the number and the text of a reply. Raise ValueError for any other body."""
    match body:
        case {"number": int(number), "text": None | str() as text} if number > 0 and not isinstance(number, bool):
            if text is None or is_well_formed(text):
                return number, text
    raise ValueError("a reply names the number of a question, and a text or null")


def _encode(event: Event) -> dict[str, object]:
    encoded: dict[str, object] = {"kind": event.kind}
    if event.text:
        encoded["text"] = event.text
    if event.number:
        encoded["number"] = event.number
    if event.display is not None:
        encoded["display"] = dict(event.display.data)
        encoded["name"] = event.display.name
    return encoded


def _decode(body: Body) -> Event:
    shown = body.get("display")
    return Event(
        kind=cast(Kind, body["kind"]),
        text=str(body.get("text", "")),
        number=cast(int, body.get("number", 0)),
        display=Display(cast(Mapping[str, object], shown), cast(str | None, body.get("name"))) if shown is not None else None,
    )
