"""Run every example of py-code-mode's page about sessions with only the import and the requested address changed."""

import http.server
import inspect
import json
import pydoc
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from aca_sessions.compat.py_code_mode import (
    ContainerConfig,
    ContainerExecutor,
    FileStorage,
    InProcessExecutor,
    MemoryStorage,
    Session,
    SubprocessConfig,
    SubprocessExecutor,
)
from aca_sessions.errors import ACASessionsError

from ..wheels import make_wheel

pytestmark = pytest.mark.slow

CURL = """
name: curl
description: Make HTTP requests
command: curl
timeout: 60
tags: [http]
schema:
  options:
    silent: {type: boolean, short: s}
    location: {type: boolean, short: L}
  positional:
    - {name: url, type: string, required: true, description: Target URL}
recipes:
  get:
    description: Simple GET request
    preset: {silent: true, location: true}
    params: {url: {}}
"""
FETCH = """def run(url: str) -> dict:
    import json
    response = tools.curl.get(url=url)
    return json.loads(response)
"""


class _Users(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"login": self.path.rpartition("/")[2], "public_repos": 8}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def github() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Users)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
async def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Session]:
    make_wheel(tmp_path / "wheels", "humanize", files={"humanize.py": "def intcomma(number): return f'{number:,}'"})
    monkeypatch.setenv("ACASessions__Packages__WheelFolder", str(tmp_path / "wheels"))
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "curl.yaml").write_text(CURL)
    executor = SubprocessExecutor(config=SubprocessConfig(tools_path=tmp_path / "tools"))
    async with Session(storage=FileStorage(base_path=tmp_path / "data"), executor=executor) as opened:
        yield opened


async def test_a_cell_calls_a_program_by_its_recipe(session: Session, github: str) -> None:
    code = f'import json\ndata = tools.curl.get(url="{github}/users/octocat")\njson.loads(data)["public_repos"]\n'
    result = await session.run(code)
    assert (result.is_ok, result.value, result.error) == (True, 8, None)


async def test_values_come_as_themselves_and_errors_as_text(session: Session) -> None:
    assert (await session.run("{'a': [1, (2,)]}")).value == {"a": [1, (2,)]}
    failed = await session.run("print('out')\n1 / 0")
    assert (failed.is_ok, failed.value, failed.stdout, failed.error) == (False, None, "out\n", "ZeroDivisionError: division by zero")


async def test_reset_clears_variables_and_keeps_the_namespaces(session: Session) -> None:
    await session.run("x = 42")
    await session.reset()
    assert (await session.run("x")).error == "NameError: name 'x' is not defined"
    assert (await session.run("[one['name'] for one in tools.list()]")).value == ["curl", "curl.get"]


async def test_a_timeout_ends_the_cell_and_the_next_one_runs_at_once(session: Session) -> None:
    assert session.supports("timeout")
    result = await session.run("while True: pass", timeout=0.3)
    assert "TimeoutError" in (result.error or "")
    assert (await session.run("6 * 7")).value == 42


async def test_capabilities_are_reported(session: Session) -> None:
    assert {"timeout", "process_isolation", "network_isolation", "reset", "deps_install"} <= session.supported_capabilities()
    assert not session.supports("container_isolation")


async def test_tools_are_listed_and_found(session: Session) -> None:
    assert {"name", "description", "tags"} <= (await session.list_tools())[0].keys()
    assert (await session.search_tools("make HTTP requests"))[0]["name"] == "curl"


async def test_skills_are_saved_found_and_called(session: Session, github: str) -> None:
    await session.add_skill(name="fetch_json", source=FETCH, description="Fetch and parse JSON from a URL")
    (listed,) = await session.list_skills()
    assert listed["parameters"] == [{"name": "url", "type": "str", "required": True, "default": None}]
    assert "source" not in listed
    assert (await session.search_skills("fetch GitHub repository data"))[0]["name"] == "fetch_json"
    skill = await session.get_skill("fetch_json")
    assert skill is not None
    assert skill["source"] == FETCH
    assert (await session.run(f"skills.fetch_json(url='{github}/users/ada')['login']")).value == "ada"
    assert (await session.run(f"skills.invoke('fetch_json', url='{github}/users/ada')['login']")).value == "ada"
    assert [await session.remove_skill("fetch_json") for _ in range(2)] == [True, False]
    assert await session.get_skill("fetch_json") is None


async def test_artifacts_are_saved(session: Session) -> None:
    data = {"repos": 42, "stars": 1000}
    await session.save_artifact(name="analysis_results", data=data, description="GitHub analysis results")
    assert await session.load_artifact("analysis_results") == data
    (listed,) = await session.list_artifacts()
    assert listed.keys() == {"name", "path", "description", "metadata", "created_at"}
    assert (await session.run("artifacts.load('analysis_results')['stars']")).value == 1000
    await session.delete_artifact("analysis_results")
    assert await session.list_artifacts() == []


@pytest.mark.long
async def test_dependencies_are_installed_listed_and_removed(session: Session) -> None:
    assert await session.add_dep("humanize>=1.0") == {"installed": ["humanize>=1.0"], "already_present": [], "failed": []}
    assert (await session.run("import humanize; humanize.intcomma(1000)")).value == "1,000"
    assert await session.list_deps() == ["humanize>=1.0"]
    assert await session.sync_deps() == {"installed": [], "already_present": ["humanize>=1.0"], "failed": []}
    removed = await session.remove_dep("humanize")
    assert removed == {"removed": ["humanize"], "not_found": [], "failed": [], "removed_from_config": True}
    assert (await session.remove_dep("humanize"))["not_found"] == ["humanize"]
    failed = await session.add_dep("there-is-no-such-thing")
    assert failed["failed"] == ["there-is-no-such-thing"]
    assert await session.list_deps() == []


async def test_the_storage_has_a_skill_library(session: Session) -> None:
    skill_library = session.storage.get_skill_library()
    skill_library.add("one", "def run(): return 1")
    assert (await session.run("skills.one()")).value == 1
    await session.run("skills.create('two', 'def run(): return 2')")
    assert [skill.name for skill in skill_library] == ["one", "two"]


async def test_a_session_without_a_block_is_started_and_closed(tmp_path: Path) -> None:
    session = Session(storage=FileStorage(tmp_path), executor=InProcessExecutor())
    await session.start()
    try:
        assert (await session.run("6 * 7")).value == 42
    finally:
        await session.close()


@pytest.mark.long
async def test_configured_dependencies_are_installed_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(tmp_path / "wheels", "humanize")
    monkeypatch.setenv("ACASessions__Packages__WheelFolder", str(tmp_path / "wheels"))
    config = ContainerConfig(deps=["humanize"], allow_runtime_deps=False)
    async with Session(FileStorage(tmp_path), ContainerExecutor(config), sync_deps_on_start=True) as session:
        assert (await session.run("import humanize")).is_ok
        assert "locked" in str((await session.run("deps.add('x')")).error)


async def test_a_folder_is_a_session(tmp_path: Path, github: str) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "curl.yaml").write_text(CURL)
    (tmp_path / "skills").mkdir()
    (tmp_path / "skills" / "fetch.py").write_text(FETCH.replace("def run", "async def run"))
    async with Session.from_base(tmp_path, timeout=20) as session:
        assert (await session.run(f"await skills.fetch(url='{github}/users/ada')")).value == {"login": "ada", "public_repos": 8}


async def test_tools_are_listed_and_found_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "curl.yaml").write_text(CURL)
    session = Session(storage=FileStorage(tmp_path), executor=SubprocessExecutor(config=SubprocessConfig(tools_path=tmp_path)))
    tools = await session.list_tools()
    assert [tool["name"] for tool in tools] == ["curl", "curl.get"]
    assert (await session.search_tools("make HTTP requests"))[0]["name"] == "curl"


async def test_an_error_names_the_users_class(tmp_path: Path) -> None:
    session = Session(storage=FileStorage(tmp_path))
    with pytest.raises(ACASessionsError, match=r"use 'async with Session\("):
        await session.run("1")


@pytest.mark.parametrize("query", ["http get", "download a web page", "fetch GitHub repository data"])
async def test_a_skill_is_found_by_its_purpose(tmp_path: Path, query: str) -> None:
    session = Session(storage=FileStorage(tmp_path))
    await session.add_skill(name="fetch_json", source=FETCH, description="Fetch and parse JSON from a URL")
    assert [skill["name"] for skill in await session.search_skills(query)] == ["fetch_json"]


async def test_a_function_of_the_caller_may_find_skills_by_meaning(tmp_path: Path) -> None:
    session = Session(storage=FileStorage(tmp_path), embed=lambda texts: [[float("cat" in text), float("car" in text)] for text in texts])
    for name in ("feed_cat", "drive_car"):
        await session.add_skill(name=name, source="def run(): pass", description="")
    assert [skill["name"] for skill in await session.search_skills("my car", limit=1)] == ["drive_car"]


@pytest.mark.parametrize("kind", [FileStorage, MemoryStorage])
async def test_every_storage_of_a_session_has_a_skill_library(tmp_path: Path, kind: type[FileStorage | MemoryStorage]) -> None:
    session = Session(storage=FileStorage(tmp_path) if kind is FileStorage else MemoryStorage())
    await session.add_skill(name="FetchJSON", source=FETCH, description="Fetch and parse JSON from a URL")
    skill_library = session.storage.get_skill_library()
    skill_library.refresh()
    assert (len(skill_library), [skill.name for skill in skill_library.list()]) == (1, ["FetchJSON"])


def test_every_documented_method_is_a_real_one() -> None:
    page = """start close reset run supports supported_capabilities list_tools search_tools list_skills search_skills get_skill add_skill
    remove_skill list_artifacts save_artifact load_artifact delete_artifact list_deps add_dep remove_dep sync_deps storage"""
    shown = pydoc.render_doc(Session, renderer=pydoc.plaintext)
    for name in page.split():
        assert inspect.getdoc(inspect.getattr_static(Session, name)), name
        assert name in shown
    assert not hasattr(Session, "__getattr__")
