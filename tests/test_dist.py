"""Test the packages: what they contain, and what their wheels alone give a newcomer."""

import json
import os
import re
import subprocess
import sys
import tarfile
import venv
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest
from build import ProjectBuilder

import aca_sessions

from .conftest import ROOT

pytestmark = [pytest.mark.long, pytest.mark.defaults, pytest.mark.timeout(1800)]  # pip is slow on a busy machine
LARGEST = 200_000  # bytes of a file
CORE = f"aca_sessions_core-{aca_sessions.__version__}"
WHOLE = f"aca_sessions-{aca_sessions.__version__}"
MODULES = {
    str(one.relative_to(ROOT / "src"))
    for one in (ROOT / "src" / "aca_sessions").rglob("*")
    if one.is_file() and "__pycache__" not in one.parts
}
SEMANTIC_KERNEL = "from aca_sessions import PythonCodeInterpreterPlugin"
ENDPOINT = "https://westeurope.dynamicsessions.io/subscriptions/s/resourceGroups/r/sessionPools/p"
OPENED = "import asyncio, aca_sessions as a\nasync def main():\n    async with a.{}: pass\nasyncio.run(main())"
SEARCH = "import aca_sessions.agent.library.search as s; s.WordIndex({'a': 'b'}).best('b', 1)"
STORED = "open_pool(a.Settings(Durable={'Store': '%s', **%s}))"
SECRET = "import asyncio; from aca_sessions.network.secrets import *; asyncio.run(SecretStore({{'a': Secret.{}}}).get('a'))"
# What a user writes, and the extra that it needs. Each is run where the extra is missing.
MISSING = {
    "aca-sessions mcp": "mcp",
    "aca-sessions mcp --http": "mcp",
    "aca-sessions serve": "server",
    "aca-sessions playground --no-browser": "server",
    "from IPython.core.interactiveshell import InteractiveShell as I; I.instance().run_line_magic('load_ext', 'aca_sessions')": "notebook",
    SEARCH: "agents",
    "import aca_sessions.agent.tools.yaml_files": "agents",
    "import aca_sessions.agent.tools.mcp": "mcp",
    SEMANTIC_KERNEL: "semantic-kernel",
    "from aca_sessions import add_aca_sessions": "semantic-kernel",
    "import aca_sessions.integrations.agent_framework": "agent-framework",
    "import aca_sessions.testing": "testing",
    "import aca_sessions.integrations.inspect_sandbox": "inspect",
    "aca-sessions kernel install": "jupyter",
    "import aca_sessions.integrations.smolagents": "smolagents",
    "import aca_sessions.integrations.autogen": "autogen",
    "import aca_sessions.integrations.openai_agents": "openai-agents",
    "import aca_sessions.integrations.deepagents": "deepagents",
    "import aca_sessions.integrations.pydantic_ai": "pydantic-ai",
    "import aca_sessions.integrations.pydantic_ai_code": "pydantic-ai",
    "import aca_sessions.sandbox.proxy.authority": "network",
    SECRET.format("keyring('service', 'user')"): "keyring",
    SECRET.format("key_vault('https://v.vault.azure.net/secrets/db')"): "azure",
    OPENED.format(f"open_pool(a.Settings(Endpoint={ENDPOINT!r}))"): "azure",
    "from aca_sessions import RedisStorage": "redis",
    "from aca_sessions.compat.py_code_mode import RedisStorage": "redis",
    OPENED.format(STORED % ("redis://localhost", {})): "redis",
    OPENED.format(STORED % ("azure-blob://account/container", {})): "azure-blob",
    OPENED.format(STORED % ("file:///tmp/saves", {"Key": "00" * 32})): "server",
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdists, and from them the wheels."""
    folder = tmp_path_factory.mktemp("dist")
    for project in (ROOT / "src", ROOT):
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, project]
        subprocess.run(command, check=True, capture_output=True, timeout=1700)
    return folder


class Installed:
    """A fresh environment in which wheels are installed, and what runs in it."""

    def __init__(self, folder: Path, packages: Path) -> None:
        venv.create(folder / "venv", with_pip=True)
        self._folder, self._program = folder, folder / "venv" / "bin"
        self._found = packages

    def install(self, *requirements: str, remove: bool = False) -> None:
        pip = [self._program / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
        how = ["uninstall", "--yes"] if remove else ["install", "--find-links", self._found]
        subprocess.run([*pip, *how, *requirements], check=True, timeout=1700)

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        with self.start(*command) as program:
            output, errors = program.communicate(timeout=1700)
        return subprocess.CompletedProcess(command, program.returncode, output, errors)

    def start(self, *command: str) -> "subprocess.Popen[str]":
        environment = {name: value for name, value in os.environ.items() if not name.lower().startswith("acasessions")}
        words, pipes = [self._program / command[0], *command[1:]], dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(words, **pipes, text=True, cwd=self._folder, env=environment)


@pytest.fixture(scope="module")
def core(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Install the core without any extra."""
    environment = Installed(tmp_path_factory.mktemp("core"), packages)
    environment.install("aca-sessions-core")
    return environment


def read_wheel(path: Path) -> tuple[dict[str, int], list[str], str]:
    """Return the files of a wheel with their sizes, its dependencies, and its licence."""
    with ZipFile(path) as wheel:
        files = {one.filename: one.file_size for one in wheel.infolist()}
        metadata, licence = (wheel.read(next(name for name in files if name.endswith(end))).decode() for end in ("METADATA", "LICENSE"))
    return files, Parser().parsestr(metadata).get_all("Requires-Dist") or [], licence


def read_example(page: Path) -> tuple[str, str]:
    """Return the first example of a page with its output."""
    return re.findall(r"```python\n(.*?)```\n```text\n(.*?)```", page.read_text(), re.DOTALL)[0]


@pytest.mark.parametrize(("name", "own"), [(CORE, MODULES), (WHOLE, set())])
def test_a_wheel_contains_its_modules_and_an_sbom_and_no_tests(packages: Path, name: str, own: set[str]) -> None:
    (path,) = packages.glob(f"{name}-*.whl")
    files, _, licence = read_wheel(path)
    (sbom,) = [one for one in files if "/sboms/" in one]
    with ZipFile(path) as wheel:
        components = json.loads(wheel.read(sbom))
    assert {one for one in files if ".dist-info/" not in one} == own
    assert {one for one, size in files.items() if size > LARGEST} == set()
    assert components["metadata"]["component"]["purl"] == f"pkg:pypi/{name.replace('_', '-').replace('-0', '@0')}"
    assert {one["name"]: one["scope"] for one in components["components"]}.items() >= {"httpx": "required", "pandas": "optional"}.items()
    assert licence == (ROOT / "LICENSE").read_text()


def test_the_published_wheel_depends_on_the_core_of_its_version(packages: Path) -> None:
    (path,) = packages.glob(f"{WHOLE}-*.whl")
    (needed,) = [one for one in read_wheel(path)[1] if one.startswith("aca-sessions-core")]
    assert needed == f"aca-sessions-core[agents,azure,cli,mcp,network,notebook,packages,server]=={aca_sessions.__version__}"


def test_an_installation_from_a_checkout_has_its_sources_and_needs_no_published_core(tmp_path: Path) -> None:
    _, of_core, _ = read_wheel(Path(ProjectBuilder(ROOT / "src").build("wheel", tmp_path)))
    linked, needed_by_link, _ = read_wheel(Path(ProjectBuilder(ROOT).build("editable", tmp_path / "editable")))
    copied, needed_by_copy, _ = read_wheel(Path(ProjectBuilder(ROOT).build("wheel", tmp_path)))
    assert {one for one in copied if ".dist-info/" not in one} == MODULES
    (link,) = [one for one in linked if ".dist-info/" not in one]
    with ZipFile(next((tmp_path / "editable").iterdir())) as wheel:
        assert wheel.read(link).decode().strip() == str(ROOT / "src")
    assert sorted(needed_by_link) == sorted(needed_by_copy)
    assert "aca-sessions-core" not in " ".join(needed_by_link)
    assert {one for one in of_core if "extra ==" not in one} <= {*needed_by_link}


@pytest.mark.parametrize(
    ("name", "own"),
    [
        (CORE, {"aca_sessions", "hatch_build.py"}),
        (WHOLE, {"src", "CHANGELOG.md", "SECURITY.md", "appsettings.example.json"}),
    ],
)
def test_an_sdist_contains_what_builds_the_wheel_and_no_tests(packages: Path, name: str, own: set[str]) -> None:
    with tarfile.open(packages / f"{name}.tar.gz") as sdist:
        files = {one.name.partition("/")[2]: one.size for one in sdist.getmembers() if one.isfile()}
    assert {one.partition("/")[0] for one in files} - {".gitignore"} == own | {"PKG-INFO", "pyproject.toml", "README.md", "LICENSE"}
    assert {one for one, size in files.items() if size > LARGEST} == set()


def test_the_packages_pass_the_checks_of_the_index(packages: Path) -> None:
    files = sorted(map(str, packages.iterdir()))
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True, capture_output=True)
    check = Path(sys.executable).with_name("check-wheel-contents")
    for name, ignored in ((CORE, ""), (WHOLE, "W007,W008")):  # it has no module
        (wheel,) = packages.glob(f"{name}-*.whl")
        subprocess.run([check, "--ignore", ignored, wheel], check=True, capture_output=True, cwd=packages)


def test_the_wheel_runs_the_readme_and_draws_a_chart(packages: Path, tmp_path: Path) -> None:
    """In a fresh environment: first without the extra `data`, whose lack is explained, then with it."""
    installed = Installed(tmp_path, packages)
    installed.install("aca-sessions")
    code, output = read_example(ROOT / "README.md")
    assert installed.run("python", "-c", code).stdout == output
    assert installed.run("python", "-c", SEMANTIC_KERNEL).returncode == 0
    missing = installed.run("aca-sessions", "run", "import pandas")
    assert missing.returncode == 1
    assert "[hint] install a missing package with --with PACKAGE" in missing.stderr
    installed.install("aca-sessions[data]")
    drawn = installed.run("aca-sessions", "run", "import pandas as pd; pd.Series([1, 3, 2]).plot(title='Sales');")
    assert (drawn.returncode, drawn.stderr) == (0, "[image saved: image-1.png]\n")


def test_the_core_alone_runs_cells_and_its_readme(core: Installed) -> None:
    code, output = read_example(ROOT / "src" / "README.md")
    assert core.run("python", "-c", code).stdout == output
    ran = core.run("aca-sessions", "run", "print(6 * 7)")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "42\n", "")
    assert core.run("aca-sessions", "--version").stdout == f"aca-sessions {aca_sessions.__version__}\n"


@pytest.mark.parametrize("written", MISSING)
def test_a_missing_extra_is_named_with_the_line_to_paste(core: Installed, written: str) -> None:
    ran = core.run(*written.split()) if written.startswith("aca-sessions ") else core.run("python", "-c", written)
    assert f"is not installed: pip install 'aca-sessions-core[{MISSING[written]}]'" in (ran.stderr or ran.stdout).splitlines()[-1]


def test_a_terminal_without_its_library_is_refused_with_the_line_to_paste(core: Installed) -> None:
    """IPython has prompt_toolkit among its dependencies, so it is removed first."""
    core.install("prompt_toolkit", remove=True)
    try:
        ran = core.run("aca-sessions", "repl")
    finally:
        core.install("prompt_toolkit")
    assert (ran.returncode, ran.stderr) == (
        2,
        "aca-sessions: prompt_toolkit is not installed: pip install 'aca-sessions-core[cli]'\n",
    )


def test_an_mcp_client_runs_a_cell_by_the_core_with_its_extra(packages: Path, tmp_path: Path) -> None:
    """As `uvx --from 'aca-sessions-core[mcp]' aca-sessions mcp` does, with the newest version of each dependency."""
    installed = Installed(tmp_path, packages)
    installed.install("aca-sessions-core[mcp]")
    about = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    call = {"name": "run_python_code", "arguments": {"code": "6 * 7"}}
    messages = [
        {"id": 1, "method": "initialize", "params": about},
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/call", "params": call},
    ]
    program = installed.start("aca-sessions", "mcp")
    with program:
        for message in messages:
            program.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
            program.stdin.flush()
            answer = json.loads(program.stdout.readline()) if "id" in message else {}
        program.stdin.close()
    assert answer["result"]["content"][0]["text"] == "42"
