"""`aca-sessions doctor --endpoint` at endpoints where a step fails."""

import pytest

from aca_sessions import Settings, open_interpreter
from aca_sessions.cli import endpoints

from ..client.faults import FaultyProxy
from ..ports import serving

pytestmark = pytest.mark.slow


async def test_a_step_that_fails_leaves_no_session(capsys: pytest.CaptureFixture[str]) -> None:
    async with serving() as (_, port), FaultyProxy(port, "POST /executions", ["500"]).listening() as endpoint:
        settings = Settings(Endpoint=endpoint, ApiKey="the-key")
        assert not await endpoints.check(settings)
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["ok", "NO"]
        async with open_interpreter(settings) as interpreter:
            assert await interpreter.list_sessions() == []
