"""Test frames: what is encoded is decoded unchanged, and nothing else is accepted."""

import json
import math
import struct
from dataclasses import asdict

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
WELL_FORMED = st.text(st.characters(exclude_categories=["Cs"])) | st.text(
    st.characters(exclude_categories=["Cs"]), min_size=129, max_size=300
)
FINISHED = st.builds(
    wire.Finished,
    execution=WELL_FORMED,
    value=st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WELL_FORMED,
    text=st.none() | WELL_FORMED,
    error_name=st.none() | WELL_FORMED,
    error_message=WELL_FORMED,
    error_traceback=WELL_FORMED,
    files=st.lists(st.tuples(st.sampled_from(["created", "changed", "deleted"]), st.integers(), WELL_FORMED), max_size=2),
    processes=st.lists(st.tuples(st.integers(), WELL_FORMED), max_size=2),
    variables=st.lists(
        st.tuples(st.sampled_from(["added", "changed", "deleted"]), st.integers(), st.lists(st.integers()), WELL_FORMED, WELL_FORMED),
        max_size=2,
    ),
)

FINISHED_BY_HAND = {"kind": "Finished", "texts": [], **asdict(wire.Finished("e", 1, None, None, "", "", [], []))}


@given(FINISHED)
def test_a_message_survives_encoding_and_decoding(message: wire.Finished) -> None:
    assert wire.decode(wire.encode(message), *KINDS) == message


@given(st.lists(FINISHED, max_size=4), st.integers(1, 50))
def test_frames_may_arrive_in_any_pieces(messages: list[wire.Finished], size: int) -> None:
    stream = b"".join(wire.frame(message) for message in messages)
    frames = wire.Frames(1 << 20)
    payloads = [payload for start in range(0, len(stream), size) for payload in frames.feed(stream[start : start + size])]
    assert [wire.decode(payload, wire.Finished) for payload in payloads] == messages


@given(st.binary())
def test_noise_is_not_a_message(noise: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(noise, *KINDS)


def payload(header: object, *texts: bytes) -> bytes:
    """Return a payload as a guest might forge it."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<I", len(content)) + content + b"".join(texts)


def refused(forged: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(forged, wire.Started, wire.Shown, wire.Asked, wire.Finished)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_that_is_not_a_message_is_refused(content: object) -> None:
    refused(payload(content))


@pytest.mark.parametrize(
    "header",
    [
        {"kind": "Finished", "texts": []},
        {"kind": "Started", "texts": [], "execution": 1},
        {"kind": "Started", "texts": [], "execution": "e", "more": 1},
        {"kind": "Started", "execution": "e"},
        {"kind": "Started", "texts": 3, "execution": "e"},
        {"kind": "Started", "texts": [-1, 1], "execution": "e"},
        {"kind": "Started", "texts": [True], "execution": "e"},
        {"kind": "Started", "texts": [], "execution": {"text": 0}},
        {"kind": "Started", "texts": [], "execution": {"text": "0"}},
        {"kind": "Run", "texts": [], "execution": "e", "code": "1"},
        {"kind": ["Started"], "texts": [], "execution": "e"},
        {"kind": "Shown", "texts": [], "execution": "e", "data": {"a": []}},
        {"kind": "Shown", "texts": [], "execution": "e", "data": {"a": {"b": "c"}}},
        {"kind": "Shown", "texts": [], "execution": "e", "data": {"a": 1e999}},
        {"kind": "Shown", "texts": [], "execution": "e", "data": "text", "name": None, "update": False},
        {"kind": "Shown", "texts": [], "execution": "e", "data": ["text"], "name": None, "update": False},
        {"kind": "Shown", "texts": [], "execution": "e", "data": {"a": [{}]}, "name": None, "update": False},
        {"kind": "Shown", "texts": [], "execution": "e", "data": {}, "name": None, "update": 0},
        {"kind": "Asked", "texts": [], "execution": "e", "number": True, "about": "input", "text": ""},
        {"kind": "Asked", "texts": [], "execution": "e", "number": math.nan, "about": "input", "text": ""},
        FINISHED_BY_HAND | {"files": "text"},
        FINISHED_BY_HAND | {"files": {"a": "b"}},
        FINISHED_BY_HAND | {"files": ["created 1 a"]},
        FINISHED_BY_HAND | {"files": [["created", 1]]},
        FINISHED_BY_HAND | {"files": [["created", 1, "a", "more"]]},
        FINISHED_BY_HAND | {"files": [["renamed", 1, "a"]]},
        FINISHED_BY_HAND | {"files": [[["created"], 1, "a"]]},
        FINISHED_BY_HAND | {"files": [["created", "1", "a"]]},
        FINISHED_BY_HAND | {"files": [["created", 1.0, "a"]]},
        FINISHED_BY_HAND | {"files": [["created", True, "a"]]},
        FINISHED_BY_HAND | {"files": [["created", 1, None]]},
        FINISHED_BY_HAND | {"files": [["created", 1, ["a"]]]},
        FINISHED_BY_HAND | {"files": [{"created": 1}]},
        FINISHED_BY_HAND | {"processes": [["1 a"]]},
        FINISHED_BY_HAND | {"processes": [[True, "a"]]},
        FINISHED_BY_HAND | {"variables": [["added", 1, [True], "int", "a"]]},
        FINISHED_BY_HAND | {"variables": [["added", 1, [[1]], "int", "a"]]},
        FINISHED_BY_HAND | {"variables": [["added", 1, {"1": 2}, "int", "a"]]},
        FINISHED_BY_HAND | {"variables": [["added", 1, "2x3", "int", "a"]]},
        FINISHED_BY_HAND | {"variables": None},
        FINISHED_BY_HAND | {"value": []},
    ],
)
def test_a_malformed_message_is_refused(header: dict) -> None:
    refused(payload(header))


def test_a_text_that_refers_to_one_behind_the_header_is_no_list() -> None:
    refused(payload(FINISHED_BY_HAND | {"texts": [4], "files": {"text": 0}}, b"four"))
    refused(payload(FINISHED_BY_HAND | {"texts": [4], "files": [{"text": 0}]}, b"four"))
    refused(payload(FINISHED_BY_HAND | {"texts": [7], "files": [[{"text": 0}, 4, "a"]]}, b"created"))
    frame = payload(FINISHED_BY_HAND | {"texts": [4], "files": [["created", 4, {"text": 0}]]}, b"four")
    assert wire.decode(frame, wire.Finished).files == [("created", 4, "four")]


def test_a_text_behind_the_header_can_be_used_once() -> None:
    rows = [["created", 4, {"text": 0}], ["created", 4, {"text": 0}]]
    refused(payload(FINISHED_BY_HAND | {"texts": [4], "files": rows}, b"four"))


def test_texts_are_required_and_must_be_text() -> None:
    header = {"kind": "Started", "texts": [4], "execution": {"text": 0}}
    assert wire.decode(payload(header, b"four"), wire.Started).execution == "four"
    for text in (b"", b"thr", b"fours", b"\xff\xff\xff\xff", b"\xed\xa0\x80x"):
        refused(payload(header, text))


def test_a_header_too_deep_or_too_large_is_refused() -> None:
    refused(payload(b'{"kind": "Shown", "texts": [], "execution": "e", "data": ' + b'{"a":' * 40_000 + b"1" + b"}" * 40_000 + b"}"))
    refused(payload({"kind": "Shown", "texts": [], "execution": "e", "data": {"x": "y" * (300 << 10)}}))


def test_a_frame_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(wire.WireError):
        next(wire.Frames(wire.MAX_FROM_GUEST).feed(struct.pack("<I", wire.MAX_FROM_GUEST + 1)))


def test_lone_surrogates_are_escaped() -> None:
    assert wire.decode(wire.encode(wire.Shown("e", {"x": "\ud800", "y": "\ud800" * 200})), wire.Shown).data == {
        "x": "\\ud800", "y": "\\ud800" * 200
    }  # fmt: skip
