"""Modules for meetings (see `exchange.py`) in a session without them: their sources are sent as text."""

import base64
import hashlib
import json
import zlib
from functools import cache
from importlib.resources import files

from ..client.own_cells import answer
from ..client.session import Session
from ..errors import ExecutionError, ServiceError, ServiceUnavailableError
from ..models import CodeExecutionResult

MEETING = "agent.cells.meeting"
_GUEST = ("place", "processes", "collected", "calls", "awaiting", "batches", "bridge", "loop", "tracebacks")
# Ordered so that no module imports a later one.
_MODULES = ("sandbox.wire", *(f"sandbox.guest.{name}" for name in _GUEST), "agent.cells.diverted", "agent.cells.threaded", MEETING)
_LACKING = {
    "python": "its sessions have a Python older than 3.9",
    "ipython": "its sessions have no IPython",
    "threads": "its sessions start no threads",
}
_PLACE_SECONDS = 60.0


async def place(session: Session) -> str:
    """Put the modules into a session. Return why cells cannot use them there, or "" if they can."""
    try:
        result = await _placed(session)
        if result.state.kind != "kept":  # placing twice has no further effect
            result = await _placed(session)
        if result.state.kind == "unknown":
            raise ServiceUnavailableError("the session gave no answer when it was set up: try again", sent=True)
        lack = answer(result)
    except (ExecutionError, ServiceError):
        return "its sessions do not take what cells need for them"
    return "" if lack is None else _LACKING.get(str(lack), "its sessions lack what cells need for them")


async def _placed(session: Session) -> CodeExecutionResult:
    return await session.run_own("place", package(), _packed(), timeout=_PLACE_SECONDS)


@cache
def package() -> str:
    """Return the name of the package in the session that holds the modules. It contains a hash of their sources."""
    return f"_aca_sessions_{hashlib.sha256(_packed().encode()).hexdigest()[:12]}"


@cache
def _packed() -> str:
    sources = [(name, files("aca_sessions").joinpath(f"{name.replace('.', '/')}.py").read_text()) for name in _MODULES]
    return base64.b64encode(zlib.compress(json.dumps(sources).encode(), 9)).decode()
