"""Test rules that name this machine, whose loopback has the same names as the session's own."""

from pathlib import Path

import pytest

from aca_sessions import Network, Policy, open_pool

from .upstream import upstream

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_a_rule_may_name_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    with upstream(tmp_path, monkeypatch) as site:
        rule = {"Host": f"{host}:{site.port}", "Headers": {"X-Key": "of the host"}}
        policy = Policy(network=Network.rules([rule]), preload=(), spares=0)
        async with open_pool(policy=policy) as pool, pool.session() as session:
            url = f"https://{host}:{site.port}/"
            await session.run(f"import requests, subprocess; requests.get({url!r}); subprocess.run(['curl', '-sS', {url!r}])")
            refused = await session.run("import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/', timeout=20)")
    assert [request.header("x-key") for request in site.requests] == [["of the host"], ["of the host"]]
    assert ("403" if host == "127.0.0.1" else "Connection refused") in str(refused.error)
