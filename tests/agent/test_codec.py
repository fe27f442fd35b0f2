"""Test the encoding of values in host calls: both halves use the same one."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aca_sessions import AgentSession, SessionPool
from aca_sessions.bridge import codec

LOOKS_LIKE_A_FILE = {"$": "bytes", "file": f".call-{0:032x}"}
KEYS = st.sampled_from(["$", "file", "content", "x"])
LEAVES = st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.sampled_from(["bytes", "dict", LOOKS_LIKE_A_FILE["file"]])
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner))


@given(VALUES)
def test_a_value_arrives_as_it_was_sent(value: Any) -> None:
    files: dict[str, bytes] = {}

    def attach(data: bytes) -> str:
        name = codec.new_file_name()
        files[name] = data
        return name

    sent = json.loads(json.dumps(codec.pack(value, attach)))
    assert codec.unpack(sent, lambda _, name: files[name]) == value


@pytest.mark.parametrize("value", [object(), {1: 2}, {"x": {None: 1}}, [{1, 2}]])
def test_a_value_that_cannot_be_sent_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError, match="cannot be sent"):
        codec.pack(value, lambda data: "")


@pytest.mark.parametrize("name", ["../x", ".call-", f".call-{0:032x}/..", f".call-{0:032X}\n", "/etc/passwd", 5, None])
def test_only_a_name_of_the_bridge_is_read(name: object) -> None:
    value = {"$": "bytes", "file": name}
    assert codec.unpack(value, lambda kind, name: pytest.fail(f"{name} is read")) == value


async def test_a_dict_that_looks_like_a_file_is_data(pool: SessionPool) -> None:
    async with AgentSession(pool) as agent:
        result = await agent.run(f"artifacts.save('x', {LOOKS_LIKE_A_FILE}); artifacts.load('x')")
        assert result.text == str(LOOKS_LIKE_A_FILE)
