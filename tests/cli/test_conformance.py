"""`aca-sessions conformance` at endpoints that do not answer as the API does."""

import json
from pathlib import Path

import pytest

from aca_sessions import Settings
from aca_sessions.cli import endpoints
from aca_sessions.errors import ServiceUnavailableError

from ..client.faults import FaultyProxy
from ..ports import serving

pytestmark = pytest.mark.slow


async def report_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, target: str, fault: str) -> dict[str, object]:
    """Examine a server behind a proxy that answers one request itself, and return what was observed, by question."""
    monkeypatch.setattr(endpoints, "VALUES", {"an integer": ("6 * 7", 42)})  # figures would take seconds
    report = tmp_path / "report.json"
    async with serving() as (_, port), FaultyProxy(port, target, [fault]).listening() as endpoint:
        try:
            await endpoints.compare(Settings(Endpoint=endpoint, ApiKey="the-key"), report)
        finally:
            observed = {one["question"]: one["observed"] for one in json.loads(report.read_text())}
    return observed


@pytest.mark.long
async def test_a_session_that_cannot_be_ended_is_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    observed = await report_of(tmp_path, monkeypatch, target="DELETE /session", fault="500")
    assert observed["an ended session, and asking for it afterwards"] == [500, 200, None]


async def test_an_answer_that_is_no_json_ends_the_report_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServiceUnavailableError, match="expected JSON of the sessions API"):
        await report_of(tmp_path, monkeypatch, target="POST /files", fault="html")
    assert json.loads((tmp_path / "report.json").read_text())[0]["observed"] == 42
