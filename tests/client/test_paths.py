"""Test paths that models write: a file is stored where its path names, or refused."""

import posixpath

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aca_sessions import Session, SessionPool
from aca_sessions.client.arguments import checked_path
from aca_sessions.errors import InvalidArgumentError
from aca_sessions.integrations.model_session import PythonTool
from aca_sessions.mcp import resources as paths
from aca_sessions.sandbox.session.files import UnusableNameError, validate_folder

INSIDE = ["data.csv", "./data.csv", "/mnt/data/data.csv", "/mnt/data/./data.csv", "/mnt/data//data.csv"]
ELSEWHERE = [
    "/tmp/data.csv",
    "/mnt/database/data.csv",
    "/mnt/data/../data.csv",
    "../data.csv",
    "a/../data.csv",
    "/data.csv",
    "/mnt/data.csv",
]
WALK = "import os; [os.path.join(d, f) for d, _, fs in os.walk('/mnt/data') for f in fs]"


@pytest.mark.parametrize("name", INSIDE)
async def test_a_path_under_mnt_data_is_accepted(session: Session, name: str) -> None:
    await session.upload_file(name, "a,b")
    assert (await session.run(WALK)).text == "['/mnt/data/data.csv']"
    assert await session.download_file(name) == b"a,b"
    await session.delete_file(name)
    assert await session.list_files("/mnt/data") == []


@pytest.mark.parametrize("name", ELSEWHERE)
async def test_a_path_elsewhere_is_refused_with_a_suggestion(pool: SessionPool, name: str) -> None:
    async with PythonTool(pool) as tool:
        said = await tool.execute_python_with_files("1", {"first.csv": "a", name: "a,b"})
        assert "'/mnt/data/data.csv'" in said
        assert name in said
        assert await tool.execute_python(WALK) == "[]"


async def test_folders_follow_the_same_rules(session: Session, http: httpx.AsyncClient) -> None:
    await session.upload_file("folder/data.csv", "a,b")
    for folder in ("folder", "/mnt/data/folder", "/mnt/data/folder/", "./folder"):
        assert [file.name for file in await session.list_files(folder)] == ["data.csv"]
    for folder in ("/folder", "/mnt/data/../folder", "/mnt/datafolder"):
        with pytest.raises(InvalidArgumentError):
            await session.list_files(folder)
    assert [file.name for file in await session.list_files("/")] == ["folder"]


@pytest.mark.parametrize("folder", ["/tmp", "/mnt/database", "/mnt/data/..", "/mnt"])
async def test_the_server_redirects_no_path_either(http: httpx.AsyncClient, folder: str) -> None:
    answers = [
        await http.post("/files", params={"path": folder}, files={"file": ("data.csv", b"a,b")}),
        await http.get("/files", params={"path": folder}),
        await http.get(f"/files/{folder.replace('/', '%2F')}%2Fdata.csv/content"),
        await http.get("/files/data.csv/content", params={"path": folder}),
    ]
    assert [answer.status_code for answer in answers] == [400] * 4
    assert {answer.json()["error"]["code"] for answer in answers} <= {"FileNameInvalid", "FilePathInvalid"}
    assert (await http.get("/files", params={"recursive": "true"})).json()["value"] == []


@given(st.lists(st.sampled_from(["/", "mnt", "data", "a", "..", ".", "database"]), max_size=9).map("".join))
def test_every_path_resolves_as_in_posix_or_is_refused(path: str) -> None:
    meant = posixpath.normpath(posixpath.join("/mnt/data", path))
    try:
        folder, name = checked_path(path)
    except InvalidArgumentError:
        pass
    else:
        assert posixpath.join("/mnt/data", folder, name) == meant.replace("//", "/")
    for check in (validate_folder, paths.checked_folder):
        try:
            inside = check(path)
        except (InvalidArgumentError, UnusableNameError):
            continue
        if meant.strip("/"):  # "/" alone means /mnt/data, as in Azure's API
            assert posixpath.normpath(posixpath.join("/mnt/data", inside)) == meant.replace("//", "/")
