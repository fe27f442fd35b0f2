"""Test handles, the names of sessions for clients without a connection."""

import pytest

from aca_sessions.client.arguments import checked_session_id
from aca_sessions.mcp.handles import DEFAULT, Identity, identity_of

ALICE, BOB = identity_of("a key of alice"), identity_of("a key of bob")


def test_every_process_that_knows_the_key_finds_the_same_session() -> None:
    handle = ALICE.mint("work")
    again = Identity(identity_of.__wrapped__("a key of alice")._secret)
    assert again.accepts(handle)
    assert again.session_id(handle) == ALICE.session_id(handle)
    assert again.default_id == ALICE.default_id
    checked_session_id(ALICE.session_id(handle))


def test_no_two_handles_name_one_session() -> None:
    identifiers = {ALICE.session_id(ALICE.mint("work")) for _ in range(100)} | {ALICE.default_id, BOB.default_id}
    assert len(identifiers) == 102


def test_a_handle_of_another_client_is_not_accepted() -> None:
    handle = ALICE.mint("work")
    assert not BOB.accepts(handle)


def test_a_handle_of_which_any_character_differs_is_not_accepted() -> None:
    for handle in (ALICE.mint("work"), ALICE.mint_branch("b", DEFAULT, f"{ALICE.default_id}~branch-1")):
        assert ALICE.accepts(handle)
        for place, character in enumerate(handle):
            for other in "AaB_9.":
                assert other == character or not ALICE.accepts(f"{handle[:place]}{other}{handle[place + 1 :]}")
        assert not any(map(ALICE.accepts, (f"{handle}=", f"{handle}A", handle[:-1], f" {handle}", f"x{handle}")))


@pytest.mark.parametrize("handle", ["", ".", "work", "work.", "default", "work.ä", "\ud800.", "a.b" * 100, "work." + "A" * 32])
def test_other_text_is_not_accepted(handle: str) -> None:
    assert not ALICE.accepts(handle)


def test_the_handle_of_a_branch_gives_the_identifier_of_the_branch() -> None:
    origin = ALICE.mint("work")
    first, second = (f"{ALICE.session_id(origin)}~branch-{number}" for number in (1, 2))
    branch = ALICE.mint_branch("other", origin, first)
    assert (ALICE.session_id(branch), BOB.accepts(branch)) == (first, False)
    assert ALICE.session_id(ALICE.mint_branch("more", branch, second)) == second
    of_default = f"{ALICE.default_id}~branch-3"
    assert ALICE.session_id(ALICE.mint_branch("more", DEFAULT, of_default)) == of_default
