"""Test `aca-sessions playground` as a shell uses it."""

import os
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from ..conftest import COMMAND
from .test_cli import Server

pytestmark = pytest.mark.slow
_BROWSER = """#!/bin/sh
{ echo "$*"; stat -c %a "$(dirname "${1#file://}")"; cat "${1#file://}"; } > "$TOLD"
"""


def started(*arguments: str, **environment: str) -> "subprocess.Popen[str]":
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": os.environ | environment}
    return subprocess.Popen([*COMMAND, "playground", *arguments], **options)


def ended(command: "subprocess.Popen[str]") -> str:
    command.send_signal(signal.SIGINT)
    errors = command.communicate(timeout=120)[1]
    assert command.returncode == 0
    return errors


@pytest.mark.long
def test_it_serves_a_page_on_loopback_with_a_key_of_its_own() -> None:
    command = started("--no-browser")
    address = command.stdout.readline().removeprefix("Playground: ").strip()
    endpoint, _, key = address.partition("/#key=")
    assert (endpoint.startswith("http://127.0.0.1:"), len(key) > 20) == (True, True)
    assert "<title>aca-sessions playground</title>" in httpx.get(endpoint, timeout=120).text
    listing = f"{endpoint}/listSessions?api-version=2025-10-02-preview"
    statuses = [httpx.get(listing, headers={"authorization": f"Bearer {one}"}, timeout=120).status_code for one in (key, "another")]
    assert statuses == [200, 401]
    assert key not in ended(command)


@pytest.mark.long
def test_the_browser_is_opened_through_a_file_of_this_user_only(tmp_path: Path) -> None:
    """Arguments of a program can be read by every user, so the key is in none."""
    browser, told = tmp_path / "browser", tmp_path / "told"
    browser.write_text(_BROWSER)
    browser.chmod(0o700)
    os.mkfifo(told)
    command = started(BROWSER=f"{browser} %s", TOLD=str(told))
    address = command.stdout.readline().removeprefix("Playground: ").strip()
    argument, mode, page = told.read_text().split("\n", 2)
    assert (argument.startswith("file:///"), "key" in argument, mode) == (True, False, "700")
    assert f"url={address}" in page
    ended(command)
    assert not Path(argument.removeprefix("file://")).exists()


@pytest.mark.long
def test_an_endpoint_in_the_settings_is_ignored_with_a_message() -> None:
    command = started("--no-browser", ACASessions__Endpoint="http://127.0.0.1:1", ACASessions__ApiKey="key")
    assert command.stdout.readline().startswith("Playground: http://127.0.0.1:")
    assert "The Endpoint of the settings is not used" in ended(command)


@pytest.mark.long
def test_a_server_can_run_without_its_page() -> None:
    with Server("--port", "0", "--no-page") as server:
        assert httpx.get(server.endpoint).status_code == 401
