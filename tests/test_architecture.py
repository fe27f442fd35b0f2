"""Check the rules of docs/architecture.md against the code."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from .conftest import ROOT

PACKAGE = ROOT / "src" / "aca_sessions"
FILES = sorted(PACKAGE.rglob("*.py"))

MAY_IMPORT = {
    "": {
        "models",
        "errors",
        "settings",
        "connect",
        "telemetry",
        "lifetime",
        "client",
        "agent",
        "integrations",
        "interactive",
        "notebook",
        "sandbox.policy",
        "network",
    },
    "models": {"errors", "rendering"},
    "ledger": {"models"},
    "hints": {"models"},
    "rendering": {"models", "clean_html", "guest_text"},
    "guest_text": set(),
    "clean_html": set(),
    "telemetry": {"models"},
    "errors": set(),
    "__version__": set(),
    "lifetime": {"errors"},
    "settings": {"settings", "client", "errors", "network", "sandbox.policy"},  # the defaults of each
    "contract": {"contract", "network", "models", "errors"},
    "client": {"client", "client.snippets", "contract", "durable", "ledger", "network"}
    | {"models", "errors", "telemetry", "lifetime", "guest_text"},
    "client.snippets": set(),  # sent as text, by the client and by the server's page
    "network": {"network", "errors", "lifetime"},
    "sandbox.policy": {"errors", "network"},
    "sandbox.wire": set(),
    "sandbox.syscalls": set(),
    "sandbox.guest": {"sandbox.guest", "sandbox.wire", "sandbox.syscalls", "bridge.guest"},
    "sandbox": {
        "sandbox",
        "sandbox.policy",
        "sandbox.wire",
        "sandbox.syscalls",
        "network",
        "durable",  # for the records of a saved state
        "ledger",
        "models",
        "errors",
        "lifetime",
        "guest_text",
    },
    "durable": {"durable", "sandbox.wire", "models", "errors", "telemetry", "lifetime", "guest_text"},
    "hosting": set(),
    "server.guard": {"hosting", "contract"},
    "server": {
        "server",
        "network",
        "server.guard",
        "client.snippets",
        "hosting",
        "contract",
        "sandbox",
        "ledger",
        "models",
        "errors",
        "lifetime",
        "telemetry",
        "durable",
        "guest_text",
    },
    "connect": {
        "settings",
        "network",
        "durable",
        "client",
        "contract",
        "server",
        "hosting",
        "sandbox",
        "sandbox.policy",
        "errors",
        "lifetime",
        "models",
    },
    "bridge.codec": set(),
    "bridge.guest": {"bridge.codec", "sandbox.guest"},  # for the session's own folder
    "bridge.threaded_guest": {"bridge.codec", "bridge.guest", "sandbox.guest", "sandbox.wire"},  # sent as text, with these
    "bridge": {"bridge.codec", "bridge", "client", "models", "errors", "lifetime"},
    # connect: for a session without a pool
    "agent": {"agent", "bridge", "bridge.codec", "connect", "client", "models", "errors", "lifetime"},
    "compat": {"compat", "integrations", "interactive", "agent", "connect", "client", "models", "errors", ""},
}
_ARRIVAL = {"connect", "agent", "client", "contract", "network", "settings", "models", "hints", "rendering", "guest_text"}
_ARRIVAL |= {"errors", "lifetime"}
MAY_IMPORT |= {
    "integrations": _ARRIVAL | {"integrations", "interactive", "ledger", "telemetry"},
    "integrations.jupyter_kernel": _ARRIVAL | {"__version__", "interactive"},
    "interactive": _ARRIVAL | {"network", "sandbox.policy"},
    "testing": _ARRIVAL,
    "notebook": _ARRIVAL | {"interactive", "transfer"},
    "transfer": {"client", "client.snippets", "models", "guest_text", "errors"},
    "cli": _ARRIVAL | {"__version__", "cli", "interactive", "mcp", "hosting", "sandbox.policy", "telemetry"},
    "mcp": _ARRIVAL
    | {
        "__version__",
        "mcp",
        "integrations",
        "cli",
        "client.snippets",
        "hosting",
        "server.guard",
    },  # cli, guard: what `mcp --http` shares with `serve`
}
ONLY_IN = {
    "httpx": {"client.http", "client.auth", "connect", "agent.tools.http", "network.key_vault", "network.secrets"},
    "redis": {"agent.library.redis_storage", "durable.redis_store"},
    "yaml": {"agent.tools.yaml_files"},
    "bm25s": {"agent.library.search"},
    "semantic_kernel": {"integrations.semantic_kernel"},
    "agent_framework": {"integrations.agent_framework"},
    "agents": {"integrations.openai_agents"},
    "autogen_core": {"integrations.autogen"},
    "smolagents": {"integrations.smolagents"},
    "deepagents": {"integrations.deepagents"},
    "pydantic_ai": {"integrations.pydantic_ai", "integrations.pydantic_ai_code"},
    "mcp": {"agent.tools.mcp", "mcp", *(f"mcp.{name}" for name in ("apps", "code_tools", "resources", "sdk", "server", "tool"))},
    "ctypes": {"sandbox.syscalls", "bridge.threaded_guest"},
    "azure": {"connect", "network.tokens", "network.secrets", "durable.azure_store"},
    "IPython": {
        *(f"sandbox.guest.notebook.{name}" for name in ("shell", "commands", "displays", "modules", "tracebacks")),
        *("client.snippets.interpreter", "notebook", "cli.prompt", "integrations.jupyter_kernel"),
    },
    "prompt_toolkit": {"cli.prompt"},
    "inspect_ai": {"integrations.inspect_sandbox"},
    "ipykernel": {"integrations.jupyter_kernel", "cli.kernel"},
}
GUEST_LIBRARIES = {"IPython", "traitlets", "stack_data", "cloudpickle"}  # IPython needs the others


def module_name(file: Path) -> str:
    name = ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix("__init__").rstrip(".")


def room(module: str) -> str:
    """Return the row of the table that a module belongs to: the longest name that begins it."""
    rows = [row for row in MAY_IMPORT if row and (module == row or module.startswith(row + "."))]
    return max(rows, key=len, default="")


@cache
def imports(file: Path) -> list[str]:
    """Return every module that a file imports, anywhere in it. Our own start with the name of the package."""
    found = []
    package = ["aca_sessions", *file.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Import(names):
                found += [alias.name for alias in names]
            case ast.ImportFrom(name, names, 0):
                found += [name or ""]
            case ast.ImportFrom(name, names, level):
                base = package[: len(package) - level + 1]
                found += [".".join([*base, *([name] if name else [alias.name])]) for alias in names]
    return found


def own_imports(file: Path) -> list[str]:
    return [name.partition(".")[2] for name in imports(file) if name.partition(".")[0] == "aca_sessions"]


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_a_module_imports_only_what_its_row_allows(file: Path) -> None:
    own = room(module_name(file))
    for imported in own_imports(file):
        assert room(imported) in MAY_IMPORT[own] | {own}, f"{module_name(file)} may not import {imported}"


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_is_imported_only_in_its_modules(library: str) -> None:
    users = {module_name(file) for file in FILES for name in imports(file) if name.partition(".")[0] == library}
    assert users <= ONLY_IN[library]


def test_guest_code_needs_nothing_but_ipython_and_cloudpickle() -> None:
    allowed = sys.stdlib_module_names | GUEST_LIBRARIES | {"aca_sessions"}
    bridge = [PACKAGE / "bridge" / f"{name}.py" for name in ("codec", "guest", "threaded_guest")]
    for file in [*bridge, *(PACKAGE / "sandbox" / "guest").rglob("*.py")]:
        if file.parent.name in ("children", "shims"):
            continue
        assert {name.partition(".")[0] for name in imports(file)} <= allowed, file.name


def test_settings_are_read_only_at_the_edges() -> None:
    readers = {room(module_name(file)) for file in FILES if any(name.startswith("settings") for name in own_imports(file))}
    assert readers <= {"", "settings", "connect", "integrations", "interactive", "notebook", "cli", "mcp", "testing"}


def test_no_file_is_longer_than_700_lines() -> None:
    assert [file.name for file in FILES if len(file.read_text().splitlines()) > 700] == []


def test_no_module_has_a_meaningless_name() -> None:
    empty = {"utils", "helpers", "common", "base", "types"}
    assert [file.name for file in FILES if file.stem in empty] == []


def test_the_tests_use_no_mocks() -> None:
    for file in (ROOT / "tests").rglob("*.py"):
        assert "unittest" + ".mock" not in file.read_text(), file.name


def test_importing_the_package_loads_no_library() -> None:
    heavy = "{'semantic_kernel', 'starlette', 'pydantic', 'httpx', 'azure', 'anyio', 'IPython'}"
    code = f"import sys, aca_sessions; print(sorted({heavy} & set(sys.modules)))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.needs("semantic_kernel")
def test_every_public_name_can_be_imported() -> None:
    import aca_sessions

    assert set(aca_sessions.__all__) == set(aca_sessions._HOMES)
    for name in aca_sessions.__all__:
        assert getattr(aca_sessions, name).__name__ == name


async def test_a_session_finds_no_module_of_the_host_program_loaded(session) -> None:
    result = await session.run("import sys; {'httpx', 'pydantic', 'azure', 'starlette', 'semantic_kernel'} & set(sys.modules)")
    assert result.text == "set()"


# Files whose functions touch what a guest owns. All that they do starts from a descriptor: a path may lead elsewhere by then.
OF_GUESTS = ("files", "copies", "trees")
BY_NAME = {"chmod", "chown", "lchown", "link", "listdir", "lstat", "makedirs", "mkdir", "mkfifo", "mknod", "open", "readlink", "remove"} | {
    *("removedirs", "rename", "renames", "replace", "rmdir", "scandir", "setxattr", "stat", "statvfs", "symlink", "truncate", "unlink"),
    *("utime", "walk"),
}
FROM_A_DESCRIPTOR = {"dir_fd", "src_dir_fd", "dst_dir_fd"}
DESCRIPTORS = {"descriptor", "inside", "target"}  # arguments of such functions in the place of a path
OWN_ENTRIES = {"entry", "f'/proc/self/fd/{place}'", "f'/proc/{pid}/fd'"}  # entries of /proc that lead to what is open


@pytest.mark.parametrize("name", OF_GUESTS)
def test_code_that_touches_guest_files_starts_from_a_descriptor(name: str) -> None:
    tree = ast.parse((PACKAGE / "sandbox" / "session" / f"{name}.py").read_text())
    found = [
        ast.unparse(call)
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and ast.unparse(call.func.value) in ("os", "shutil", "os.path")
        and (call.func.attr in BY_NAME or ast.unparse(call.func.value) != "os")
        and not {keyword.arg for keyword in call.keywords} & FROM_A_DESCRIPTOR
        and ast.unparse(call.args[0]) not in DESCRIPTORS | OWN_ENTRIES
    ]
    assert found == []
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in ("open", "Path")]
