"""Isolated, persistent Python sessions for AI agents.

The folders and modules of the package. Calls go right, results come back:

    integrations · mcp · cli · notebook ─► agent ─► client ══ HTTP ══► server ─► sandbox ══ socket ══► sandbox.guest

    models, errors      the data that goes in and comes out, and the exceptions
    settings            the settings, from appsettings.json and environment variables
    connect             decides, alone, whether sessions are remote or embedded
    contract            the data that crosses HTTP, with its encoders and decoders
    client              sends requests to a server; has the classes for one session and for a pool of sessions
    server              receives the requests and runs the cells in sandboxes
    sandbox             isolates and runs untrusted code; sandbox.guest is the untrusted side
    durable             the store of saved sessions: a folder, Redis or Azure Blob Storage
    agent               tools of the host that cells call, and what outlives a session: skills, artifacts, dependencies
    integrations        adapters for agent frameworks, such as Semantic Kernel; beside them mcp, cli and notebook
    testing             a pytest plugin: fixtures, and the tests that each integration must pass
"""

__version__ = "0.1.0"  # of both distributions: pyproject.toml and src/pyproject.toml read it

TYPE_CHECKING = False  # as in typing, whose import takes longer than all the rest of this module
if TYPE_CHECKING:
    from .agent.library.redis_storage import RedisStorage
    from .agent.library.storage import FileStorage
    from .agent.session import AgentSession
    from .agent.tools.tool import tool
    from .client.arguments import session_name
    from .client.executions import Execution
    from .client.http import SessionsHttpClient
    from .client.interpreter import CodeInterpreter
    from .client.pool import SessionPool
    from .client.replay import ReplayReport, replay
    from .client.session import Session
    from .connect import isolation_report, open_interpreter, open_pool, open_server
    from .errors import ACASessionsError
    from .integrations.model_session import PythonTool
    from .integrations.semantic_kernel import PythonCodeInterpreterPlugin, add_aca_sessions
    from .interactive import InteractiveSession
    from .models import (
        Checkpoint,
        CodeExecutionRequest,
        CodeExecutionResult,
        Event,
        FileUploadRequest,
        Package,
        RemoteFile,
        SavedSession,
        SessionHealth,
        SessionInfo,
        Variable,
    )
    from .network.denials import Denial
    from .network.rules import Network, NetworkLimits, Rule
    from .network.secrets import Secret
    from .network.tokens import AzureTokenProvider
    from .sandbox.policy import Limits, Mount, PackageSource, Policy
    from .settings import Settings

_HOMES = {
    "ACASessionsError": "errors",
    "AgentSession": "agent.session",
    "AzureTokenProvider": "network.tokens",
    "Checkpoint": "models",
    "Denial": "network.denials",
    "SavedSession": "models",
    "CodeExecutionRequest": "models",
    "CodeExecutionResult": "models",
    "CodeInterpreter": "client.interpreter",
    "Event": "models",
    "Execution": "client.executions",
    "FileStorage": "agent.library.storage",
    "FileUploadRequest": "models",
    "InteractiveSession": "interactive",
    "Limits": "sandbox.policy",
    "Mount": "sandbox.policy",
    "Network": "network.rules",
    "NetworkLimits": "network.rules",
    "Package": "models",
    "PackageSource": "sandbox.policy",
    "Policy": "sandbox.policy",
    "PythonCodeInterpreterPlugin": "integrations.semantic_kernel",
    "PythonTool": "integrations.model_session",
    "RedisStorage": "agent.library.redis_storage",
    "RemoteFile": "models",
    "ReplayReport": "client.replay",
    "Rule": "network.rules",
    "Secret": "network.secrets",
    "Session": "client.session",
    "SessionHealth": "models",
    "SessionInfo": "models",
    "SessionPool": "client.pool",
    "SessionsHttpClient": "client.http",
    "Settings": "settings",
    "Variable": "models",
    "add_aca_sessions": "integrations.semantic_kernel",
    "isolation_report": "connect",
    "open_interpreter": "connect",
    "open_pool": "connect",
    "open_server": "connect",
    "replay": "client.replay",
    "session_name": "client.arguments",
    "tool": "agent.tools.tool",
}

__all__ = [
    "ACASessionsError",
    "AgentSession",
    "AzureTokenProvider",
    "Checkpoint",
    "CodeExecutionRequest",
    "CodeExecutionResult",
    "CodeInterpreter",
    "Denial",
    "Event",
    "Execution",
    "FileStorage",
    "FileUploadRequest",
    "InteractiveSession",
    "Limits",
    "Mount",
    "Network",
    "NetworkLimits",
    "Package",
    "PackageSource",
    "Policy",
    "PythonCodeInterpreterPlugin",
    "PythonTool",
    "RedisStorage",
    "RemoteFile",
    "ReplayReport",
    "Rule",
    "SavedSession",
    "Secret",
    "Session",
    "SessionHealth",
    "SessionInfo",
    "SessionPool",
    "SessionsHttpClient",
    "Settings",
    "Variable",
    "add_aca_sessions",
    "isolation_report",
    "open_interpreter",
    "open_pool",
    "open_server",
    "replay",
    "session_name",
    "tool",
]


def __getattr__(name: str) -> object:
    """Import a public name at its first use, so that `import aca_sessions` alone loads none of the libraries behind the names (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def load_ipython_extension(shell: object) -> None:
    """Register the notebook magics, such as `%%session`. IPython calls this for `%load_ext aca_sessions`."""
    from .errors import imports_of

    with imports_of("notebook"):
        import latex2mathml.converter  # noqa: F401
        import mdit_py_plugins.amsmath  # noqa: F401

        from .notebook import load

    load(shell)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
