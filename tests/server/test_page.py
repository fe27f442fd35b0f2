"""Test the playground's files as the server sends them."""

import httpx
import pytest

from aca_sessions import open_server
from aca_sessions.hosting import Hosting

TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "py": "text/plain; charset=utf-8"}


def client(app: object, **headers: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", headers=headers)


async def test_the_page_and_all_files_that_it_names_need_no_key() -> None:
    async with open_server(hosting=Hosting(api_key="key", page=True)) as app, client(app) as http:
        page = await http.get("/")
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        named = ["playground/page.css", "playground/page.js", "playground/frame.css", "playground/snippets/variables.py"]
        for path in named:
            part = await http.get(f"/{path}")
            assert (part.status_code, part.headers["content-type"]) == (200, TYPES[path.rpartition(".")[2]]), path
            assert "frame-ancestors 'none'" in part.headers["content-security-policy"]
        assert [path for path in named[:2] if path not in page.text] == []
        assert "https://" not in page.text.replace("http://www.w3.org", "")


@pytest.mark.parametrize("path", ["/playground/page.html", "/playground/", "/playground/../app.py", "/playground/snippets/health.py"])
async def test_no_other_path_is_served_as_part_of_the_page(path: str) -> None:
    async with open_server(hosting=Hosting(page=True)) as app, client(app) as http:
        assert (await http.get(path)).status_code == 404


async def test_a_server_without_a_page_has_none() -> None:
    async with open_server(hosting=Hosting(api_key="key")) as app, client(app) as http:
        assert (await http.get("/")).status_code == 401
        assert (await http.get("/", headers={"authorization": "Bearer key"})).status_code == 404
        assert (await http.get("/playground/page.js")).status_code == 401


async def test_the_page_is_not_served_under_azures_base_path() -> None:
    async with open_server(hosting=Hosting(page=True)) as app, client(app) as http:
        assert (await http.get("/subscriptions/s/resourceGroups/g/sessionPools/p/")).status_code == 404
