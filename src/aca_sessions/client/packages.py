"""Packages of a session, at an endpoint whose host fetches them for the session."""

from collections.abc import Sequence
from dataclasses import replace

from .. import telemetry
from ..contract import extensions
from ..models import CodeExecutionResult, Package
from .arguments import checked_install_timeout, checked_names, checked_requirements, checked_session_id
from .http import SessionsHttpClient, decoded

INSTALL_SECONDS = 200.0
_ANSWER_MARGIN = 220.0  # seconds: the session may still run a cell when the packages are there


async def install(http: SessionsHttpClient, session_id: str, requirements: Sequence[str], timeout: float) -> CodeExecutionResult:
    """Install packages and return the result. `timeout` is in seconds. Raise NotSupportedError if the endpoint does not fetch packages."""
    checked_requirements(requirements)
    checked_install_timeout(timeout)
    await http.require("packages", "install packages itself")
    with telemetry.span("install", checked_session_id(session_id), requirements=len(requirements)):
        response = await http.request(
            "POST",
            extensions.PACKAGES_PATH,
            identifier=session_id,
            json=extensions.encode_installation(requirements, timeout),
            timeout=timeout + _ANSWER_MARGIN,
        )
    return replace(decoded(response, extensions.decode_outcome), session_id=session_id)


async def uninstall(http: SessionsHttpClient, session_id: str, names: Sequence[str]) -> CodeExecutionResult:
    """Uninstall packages and return the result. Raise NotSupportedError if the endpoint does not fetch packages."""
    query = {"names": ",".join(checked_names(names))}
    await http.require("packages", "uninstall packages")
    path, named = extensions.PACKAGES_PATH, checked_session_id(session_id)
    response = await http.request("DELETE", path, identifier=named, query=query, timeout=_ANSWER_MARGIN)
    return replace(decoded(response, extensions.decode_outcome), session_id=session_id)


async def listed(http: SessionsHttpClient, session_id: str) -> list[Package]:
    """Return the packages that the session has beyond its environment. Raise NotSupportedError if the endpoint does not fetch packages."""
    await http.require("packages", "list what was installed")
    response = await http.request("GET", extensions.PACKAGES_PATH, identifier=checked_session_id(session_id))
    return decoded(response, extensions.decode_packages)
