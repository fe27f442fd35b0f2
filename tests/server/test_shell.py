"""Test pools of shells: a command returns its exit code and runs in the same sandbox as a cell."""

import asyncio

import pytest

from ..conftest import mostly_long
from .test_versions import speaking

VERSION = "2025-10-02-preview"


async def run_command(http, **body: object) -> tuple[str, str, str]:
    answer = await http.post("/executions", json=body)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    return told["status"], told["result"]["stdout"], told["result"]["stderr"]


async def test_a_commands_exit_code_is_its_status() -> None:
    async with speaking(VERSION, shell=True) as http:
        answer = (await http.post("/executions", json={"shellCommand": "echo hi; echo no >&2; exit 3"})).json()
        assert (answer["identifier"], answer["status"]) == ("test-session", "3")
        assert answer["result"] | {"executionTimeInMilliseconds": 0} == {
            "stdout": "hi\n", "stderr": "no\n", "executionTimeInMilliseconds": 0
        }  # fmt: skip


@pytest.mark.parametrize(
    ("body", "status", "stdout"),
    mostly_long(
        [
            ({"shellCommand": "echo $((6 * 7))"}, "0", "42\n"),
            ({"execCommandAndArgs": ["echo", "$HOME", "; ls"]}, "0", "$HOME ; ls\n"),
            ({"shellCommand": "cat; echo", "stdin": "through"}, "0", "through\n"),
            ({"shellCommand": "true", "stdin": "nobody reads this\n" * 100_000}, "0", ""),
            ({"shellCommand": "kill -9 $$"}, "137", ""),
            ({"execCommandAndArgs": ["no-such-program"]}, "127", ""),
            ({"execCommandAndArgs": ["/mnt/data"]}, "126", ""),
            ({"shellCommand": "printf 123456789", "outputStreamsMaxLength": 4}, "0", "1234"),
        ],
        every=3,
    ),
)
async def test_commands(body: dict, status: str, stdout: str) -> None:
    async with speaking(VERSION, shell=True) as http:
        assert (await run_command(http, **body))[:2] == (status, stdout)


async def test_files_are_kept_between_commands() -> None:
    async with speaking(VERSION, shell=True) as http:
        await http.post("/files", files={"file": ("a.txt", b"one\n")}, params={"path": "/mnt/data"})
        assert await run_command(http, shellCommand="cat a.txt >> b.txt; pwd") == ("0", "/mnt/data\n", "")
        assert (await http.get("/files/b.txt/content")).content == b"one\n"


async def test_a_command_over_its_time_is_ended_with_all_processes_it_started() -> None:
    async with speaking(VERSION, shell=True) as http:
        async with asyncio.timeout(100):
            assert (await run_command(http, shellCommand="sleep 500 & sleep 600", timeoutInSeconds=0.3))[0] == "-1"
        assert (await run_command(http, shellCommand="pgrep sleep | wc -l"))[1] == "0\n"


async def test_commands_are_isolated_like_cells() -> None:
    async with speaking(VERSION, shell=True) as http:
        assert (await run_command(http, shellCommand="cat /etc/shadow"))[0] != "0"
        assert (await run_command(http, shellCommand="unshare -r true"))[0] != "0"
        assert "UID" not in (await run_command(http, shellCommand="env"))[1]


@pytest.mark.parametrize(
    "body",
    mostly_long(
        [
            {"code": "1"},
            {"shellCommand": "true", "execCommandAndArgs": ["true"]},
            {"shellCommand": ""},
            {"shellCommand": "a\0b"},
            {"execCommandAndArgs": []},
            {"execCommandAndArgs": "true"},
            {"execCommandAndArgs": ["true", 1]},
            {"shellCommand": "true", "stdin": 1},
            {"shellCommand": "true", "timeoutInSeconds": -1},
            {"shellCommand": "true", "outputStreamsMaxLength": 0.5},
        ],
        every=4,
    ),
)
async def test_a_malformed_command_is_refused(body: object) -> None:
    async with speaking(VERSION, shell=True) as http:
        refused = await http.post("/executions", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "SessionRequestValidationFailed")


async def test_earlier_versions_have_no_shell() -> None:
    async with speaking("2024-10-02-preview", shell=True) as http:
        refused = await http.post("/executions", json={"shellCommand": "true"})
        assert "Shell execution is not supported in API version 2024-10-02-preview" in refused.text
