"""Live executions over HTTP: what a cell does is read by long-poll, and what it asks is answered. Both sides' halves."""

from collections.abc import Mapping, Sequence
from typing import Literal, cast

from ..models import Display, Event
from .values import Body, is_well_formed

EVENTS_PATH = "executions/{id}/events"
REPLIES_PATH = "executions/{id}/replies"
ANSWERED_HEADER = "x-aca-sessions-answered"
LONGEST_POLL = 25.0  # seconds; proxies end what is silent for longer
EVENTS_MEMBER = "events"
NEXT_MEMBER = "after"
EXECUTION_MEMBER = "execution"

Kind = Literal["stdout", "stderr", "display", "clear", "input", "call", "skipped"]
QUESTIONS = ("input", "call")


def encode_events(events: list[Event], last: int) -> dict[str, object]:
    """A page of events, and what to ask for next."""
    return {EVENTS_MEMBER: [_encode(event) for event in events], NEXT_MEMBER: last}


def decode_events(body: Body) -> tuple[list[Event], int]:
    """The same, as the client has it."""
    return [_decode(event) for event in cast(list[Body], body[EVENTS_MEMBER])], cast(int, body[NEXT_MEMBER])


def encode_answered(kinds: Sequence[str]) -> str:
    """Which questions of a cell its caller answers, as a header says it."""
    return ", ".join(kinds)


def decode_answered(header: str) -> tuple[str, ...]:
    """The same, of what we know."""
    said = {part.strip() for part in header.split(",")}
    return tuple(kind for kind in QUESTIONS if kind in said)


def encode_reply(number: int, text: str | None) -> dict[str, object]:
    """An answer to a cell; None where there is none."""
    return {"number": number, "text": text}


def decode_reply(body: object) -> tuple[int, str | None]:
    """The same, checked; ValueError where it is something else."""
    match body:
        case {"number": int(number), "text": None | str() as text} if number > 0 and (text is None or is_well_formed(text)):
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
