"""Test other projects' clients of Azure's API, unmodified, against `aca-sessions serve --tls`. Only their URL is changed."""

import json
import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from langchain_azure_dynamic_sessions import SessionsBashTool, SessionsPythonREPLTool
from semantic_kernel.core_plugins.sessions_python_tool.sessions_python_plugin import SessionsPythonTool
from semantic_kernel.core_plugins.sessions_python_tool.sessions_python_settings import SessionsPythonSettings

from aca_sessions import Settings, open_pool
from aca_sessions.errors import ServiceUnavailableError

from ..cli.test_cli import Server

# These clients leave files and connections open.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]
PLOT = "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()"
BASE = "/subscriptions/S/resourceGroups/R/sessionPools/P"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def endpoint(folder: Path) -> Iterator[str]:
    with Server("--port", "0", "--tls", "--tls-dir", str(folder), "--plain", "--api-key", "key") as server:
        yield server.endpoint + BASE


@pytest.fixture
async def semantic_kernel(endpoint: str, folder: Path, tmp_path: Path):
    context = ssl.create_default_context(cafile=str(folder / "cert.pem"))
    async with httpx.AsyncClient(verify=context, timeout=240) as client:
        yield SessionsPythonTool(
            auth_callback=lambda: "key",
            pool_management_endpoint=endpoint,
            settings=SessionsPythonSettings(session_id=f"sk|{os.urandom(4).hex()}"),
            http_client=client,
            enable_dangerous_file_uploads=True,
            allowed_upload_directories={str(tmp_path)},
            allowed_download_directories={str(tmp_path)},
        )


@pytest.mark.long
async def test_semantic_kernels_tool_runs_code(semantic_kernel: SessionsPythonTool) -> None:
    assert await semantic_kernel.execute_code("x = 20\nprint('out')\nx + 1") == "Status:\nSuccess\nResult:\n21\nStdout:\nout\n\nStderr:\n"
    assert "Result:\n42\n" in await semantic_kernel.execute_code("x + 22")
    failed = await semantic_kernel.execute_code("1 / 0")
    assert failed.startswith("Status:\nFailure\n")
    assert "ZeroDivisionError: division by zero" in failed
    assert "'type': 'image', 'format': 'png', 'base64_data': 'iVBO" in await semantic_kernel.execute_code(PLOT)


async def test_semantic_kernels_tool_moves_files(semantic_kernel: SessionsPythonTool, tmp_path: Path) -> None:
    (tmp_path / "a b.txt").write_text("hello")
    for remote in ("before.txt", "after.txt"):  # after a cell it labels its forms as JSON
        uploaded = await semantic_kernel.upload_file(local_file_path=str(tmp_path / "a b.txt"), remote_file_path=remote)
        assert (uploaded.filename, uploaded.size_in_bytes) == (remote, 5)
        assert "hello" in await semantic_kernel.execute_code(f"open('{remote}').read()")
    assert [file.filename for file in await semantic_kernel.list_files()] == ["after.txt", "before.txt"]
    assert (await semantic_kernel.download_file(remote_file_name="after.txt")).read() == b"hello"
    await semantic_kernel.download_file(remote_file_name="after.txt", local_file_path=str(tmp_path / "down.txt"))
    assert (tmp_path / "down.txt").read_text() == "hello"


@pytest.fixture
def langchain(endpoint: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> SessionsPythonREPLTool:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(folder / "cert.pem"))
    return SessionsPythonREPLTool(pool_management_endpoint=endpoint, access_token_provider=lambda: "key")


@pytest.mark.long
def test_langchains_tool_runs_code(langchain: SessionsPythonREPLTool) -> None:
    assert json.loads(langchain.invoke("x = 20\nprint('out')\nx + 1")) == {"result": 21, "stdout": "out\n", "stderr": ""}
    assert json.loads(langchain.invoke("x + 22"))["result"] == 42
    assert "ZeroDivisionError" in json.loads(langchain.invoke("1 / 0"))["stderr"]
    assert langchain.execute(PLOT)["result"]["base64_data"].startswith("iVBO")


def test_langchains_tool_moves_files_and_deletes_its_session(langchain: SessionsPythonREPLTool, tmp_path: Path) -> None:
    (tmp_path / "local.txt").write_text("hello")
    uploaded = langchain.upload_file(local_file_path=str(tmp_path / "local.txt"), remote_file_path="a b.txt")
    assert (uploaded.filename, uploaded.size_in_bytes) == ("a b.txt", 5)
    assert [file.filename for file in langchain.list_files()] == ["a b.txt"]
    assert langchain.download_file(remote_file_path="a b.txt").read() == b"hello"
    langchain.delete_session()


@pytest.mark.long
async def test_the_certificate_is_made_once_and_its_key_is_secret(endpoint: str, folder: Path) -> None:
    before = (folder / "cert.pem").read_bytes()
    with Server("--port", "0", "--tls", "--tls-dir", str(folder), "--api-key", "key"):
        assert (folder / "cert.pem").read_bytes() == before
    assert (folder / "key.pem").stat().st_mode & 0o777 == 0o600


async def test_an_untrusted_certificate_is_refused(endpoint: str) -> None:
    with pytest.raises(ServiceUnavailableError) as raised:
        async with open_pool(Settings(Endpoint=endpoint, ApiKey="key")) as pool, pool.session() as session:
            await session.run("1")
    assert raised.value.sent is False


async def test_our_own_client_trusts_a_configured_certificate(endpoint: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "cert.pem"))
    async with open_pool(Settings(Endpoint=endpoint, ApiKey="key")) as pool, pool.session() as session:
        assert (await session.run("6 * 7")).value == 42


@pytest.mark.long
def test_langchains_bash_tool_runs_commands_in_a_pool_of_shells(tmp_path: Path) -> None:
    with Server("--port", "0", "--plain", "--shell", "--api-key", "key") as server:
        bash = SessionsBashTool(pool_management_endpoint=server.endpoint + BASE, access_token_provider=lambda: "key")
        (tmp_path / "a.txt").write_text("hello")
        assert bash.upload_file(local_file_path=str(tmp_path / "a.txt")).size_in_bytes == 5
        assert json.loads(bash.invoke("cat a.txt; exit 3")) == {"stdout": "hello", "stderr": "", "exitCode": 3}
        assert [file.filename for file in bash.list_files()] == ["a.txt"]
        assert bash.download_file(remote_file_path="a.txt").read() == b"hello"
        bash.delete_session()
