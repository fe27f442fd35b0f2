"""Test the names that `session_name` makes of user ids."""

import re
from uuid import UUID

import pytest

from aca_sessions import Session, SessionPool, session_name
from aca_sessions.contract.records import IDENTIFIER
from aca_sessions.contract.versions import VERSIONS
from aca_sessions.errors import InvalidArgumentError

SALT = "0123456789abcdef"
IDS = [
    "ann@example.com",
    "Ann@example.com",
    " ann@example.com",
    "a",
    "id with spaces",
    "back\\slash",
    "née",
    "ne\u0301e",
    "🙂",
    "x" * 5000,
    "\0",
]


def test_a_name_is_the_same_in_every_program_and_release() -> None:
    assert session_name("ann@example.com") == "2584826dfd893c1a0e4a70f7829714e316c1b0fe1cfe5266ae5eaf6cb4860ac9"


@pytest.mark.parametrize("user_id", IDS)
def test_any_user_id_becomes_a_name_that_every_endpoint_accepts(user_id: str) -> None:
    name = session_name(user_id)
    for allowed in (IDENTIFIER, *(version.identifier for version in VERSIONS.values())):
        assert allowed.fullmatch(name)


def test_different_users_namespaces_and_salts_have_different_names() -> None:
    given = [(id, namespace, salt) for id in IDS for namespace in ("", "a", "reports") for salt in (None, SALT, SALT + "\0", bytes(16))]
    given += [('","a', "", None), ("a", '","', None), ("aa", "", None)]  # that would be equal if the parts were only joined
    assert len({session_name(id, namespace=namespace, salt=salt) for id, namespace, salt in given}) == len(given)


def test_nothing_of_the_user_id_can_be_read_from_the_name() -> None:
    assert re.fullmatch("[0-9a-f]{64}", session_name("cafe", namespace="beef", salt=SALT))
    assert "cafe" not in session_name("cafe")


def test_a_number_is_the_same_user_as_its_digits() -> None:
    assert session_name(7) == session_name("7")
    id = "6fa459ea-ee8a-3ca4-894e-db77e160355e"
    assert session_name(UUID(id)) == session_name(id)
    assert session_name("7", salt=SALT) == session_name(7, salt=SALT.encode())


@pytest.mark.parametrize("user_id", [None, "", "  ", True, 1.5, b"ann", ["ann"], "\ud800"], ids=repr)
def test_what_cannot_be_a_user_id_is_refused(user_id: object) -> None:
    with pytest.raises(InvalidArgumentError, match="user_id"):
        session_name(user_id)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"salt": ""}, {"salt": "short"}, {"salt": 5}, {"namespace": None}, {"namespace": "\ud800"}], ids=repr)
def test_a_refused_argument_does_not_appear_in_the_message(options: dict[str, object]) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        session_name("ann@example.com", **options)  # type: ignore[arg-type]
    assert "ann@" not in str(refused.value)
    assert "short" not in str(refused.value)


async def test_a_user_finds_the_session_again(pool: SessionPool) -> None:
    async def lease(user_id: str, code: str) -> object:
        session: Session
        async with pool.session(session_name(user_id, salt=SALT)) as session:
            return (await session.run(code)).value

    await lease("ann", "x = 42")
    assert await lease("ben", "globals().get('x', 0)") == 0
    assert await lease("ann", "x") == 42
