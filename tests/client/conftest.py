"""A session for tests of what works at every endpoint."""

from collections.abc import AsyncIterator, Iterator

import pytest

from aca_sessions import Session, Settings, open_pool

from ..cli.test_cli import Server
from ..conftest import mostly_long


@pytest.fixture(scope="session")
def plain_endpoint() -> Iterator[Settings]:
    """The settings of a server without extensions."""
    with Server("--port", "0", "--api-key", "key", "--plain") as server:
        yield Settings(SessionsHttpClient={"Endpoint": server.endpoint, "ApiKey": "key"})


@pytest.fixture(params=mostly_long(["embedded", "plain"], "embedded"))
async def any_session(request: pytest.FixtureRequest) -> AsyncIterator[Session]:
    """A session at the embedded server, or at one without extensions."""
    settings = request.getfixturevalue("plain_endpoint") if request.param == "plain" else None
    async with open_pool(settings) as pool, pool.session() as leased:
        yield leased
