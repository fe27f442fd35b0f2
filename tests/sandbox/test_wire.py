"""Frames: what is encoded comes back, and nothing else gets through."""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aca_sessions.sandbox import wire

KINDS = (
    wire.Plan,
    wire.MakeTree,
    wire.DropTree,
    wire.Spawn,
    wire.Done,
    wire.Refused,
    wire.Ready,
    wire.Started,
    wire.Shown,
    wire.Finished,
    wire.Run,
)
WELL_FORMED = st.text(st.characters(exclude_categories=["Cs"]))
FINISHED = st.builds(
    wire.Finished,
    execution=WELL_FORMED,
    value=st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WELL_FORMED,
    text=st.none() | WELL_FORMED,
    error_name=st.none() | WELL_FORMED,
    error_message=WELL_FORMED,
    error_traceback=WELL_FORMED,
    files=st.lists(st.tuples(WELL_FORMED, st.integers()).map(list), max_size=2),
)


@given(FINISHED)
def test_a_message_comes_back_as_it_was(message: wire.Finished) -> None:
    assert wire.decode(wire.encode(message), *KINDS) == message


@given(st.lists(FINISHED, max_size=4), st.integers(1, 50))
def test_frames_may_arrive_in_any_pieces(messages: list[wire.Finished], size: int) -> None:
    stream = b"".join(wire.frame(message) for message in messages)
    frames = wire.Frames()
    payloads = [payload for start in range(0, len(stream), size) for payload in frames.feed(stream[start : start + size])]
    assert [wire.decode(payload, wire.Finished) for payload in payloads] == messages


@given(st.binary())
def test_noise_is_no_message(noise: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(noise, *KINDS)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_that_is_no_message_is_refused(content: object) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(json.dumps(content).encode(), *KINDS)


@pytest.mark.parametrize(
    "content",
    [
        {"kind": "Finished"},
        {"kind": "Started", "execution": 1},
        {"kind": "Started", "execution": "e", "more": 1},
        {"kind": "Run", "execution": "e", "code": "1"},
        {"kind": ["Started"], "execution": "e"},
    ],
)
def test_a_message_of_another_shape_is_refused(content: dict) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(json.dumps(content).encode(), wire.Started, wire.Shown, wire.Finished)


def test_a_message_too_deep_to_read_is_refused() -> None:
    payload = b'{"kind": "Shown", "execution": "e", "data": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}"
    with pytest.raises(wire.WireError):
        wire.decode(payload, wire.Shown)


def test_a_frame_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(wire.WireError):
        wire.Frames().feed(struct.pack("<I", wire.MAX_FRAME + 1))


def test_what_cannot_be_encoded_further_on_is_replaced() -> None:
    payload = json.dumps({"kind": "Shown", "execution": "e", "data": {"x": ["\ud800", float("nan")]}}).encode()
    assert wire.decode(payload, wire.Shown).data == {"x": ["\\ud800", None]}
