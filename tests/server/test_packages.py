"""Test packages over HTTP, as a client of another project would use them."""

import httpx
import pytest

PATH = "session/packages"


async def test_a_new_session_has_no_packages_of_its_own(http: httpx.AsyncClient) -> None:
    assert (await http.get(PATH)).json() == {"packages": []}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"requirements": "alpha", "timeout": 5}',
        b'{"requirements": [1], "timeout": 5}',
        b'{"requirements": ["alpha"]}',
        b'{"requirements": ["alpha"], "timeout": 0}',
        b'{"requirements": ["alpha"], "timeout": 1e9}',
        b'{"requirements": ["alpha"], "timeout": NaN}',
        b'{"requirements": ["alpha"], "timeout": "5"}',
        b'{"requirements": ["alpha"], "timeout": true}',
    ],
)
async def test_a_malformed_body_is_refused(http: httpx.AsyncClient, body: bytes) -> None:
    answer = await http.post(PATH, content=body)
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json" if not body else answer.json()["error"]["code"]


async def test_a_body_that_is_too_long_is_refused(http: httpx.AsyncClient) -> None:
    answer = await http.post(PATH, json={"requirements": ["a" * 100_000], "timeout": 5})
    assert answer.status_code == 413


@pytest.mark.slow
async def test_a_failed_install_is_a_result_and_not_a_problem(http: httpx.AsyncClient) -> None:
    answer = await http.post(PATH, json={"requirements": ["-e ."], "timeout": 5})
    assert answer.status_code == 200
    assert answer.json()["acaSessions"]["error"]["name"] == "InvalidRequirementError"


@pytest.mark.slow
@pytest.mark.parametrize("names", ["", ",", "../x", "a b", "a" * 400])
async def test_an_invalid_name_is_not_uninstalled(http: httpx.AsyncClient, names: str) -> None:
    answer = await http.delete(PATH, params={"names": names})
    assert answer.json()["acaSessions"]["error"]["name"] == "InvalidRequirementError"


async def test_a_plain_server_has_no_such_path() -> None:
    from aca_sessions import open_server
    from aca_sessions.hosting import Hosting

    async with open_server(hosting=Hosting(plain=True)) as app, httpx.AsyncClient(transport=httpx.ASGITransport(app)) as client:
        assert (await client.get(f"http://test/{PATH}?api-version=2025-10-02-preview&identifier=s")).status_code == 404
