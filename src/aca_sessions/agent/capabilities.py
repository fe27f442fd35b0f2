"""The capabilities of a session, by py-code-mode's names. One is listed only if the endpoint reports that it is enforced."""

from ..client.session import Session

_BY_EXTENSION = {
    "reset": "reset",
    "deps_install": "packages",
    "deps_uninstall": "packages",
    "interrupt": "interrupt",
    "live_output": "events",
    "checkpoint": "checkpoint",
}
_BY_ISOLATION = {
    "process_isolation": "pid namespace",
    "network_isolation": "no host network",
    "filesystem_isolation": "host files",
    "memory_limit": "memory of a session",
}


async def capabilities_of(session: Session, *, host_tools: bool) -> frozenset[str]:
    """Return the names of a session's capabilities. `host_tools` is whether its cells can call tools."""
    found = {"timeout"} | {name for name, extension in _BY_EXTENSION.items() if await session.supports(extension)}
    if host_tools:
        found.add("host_tools")
    parts = (await session.health()).isolation or {}
    found |= {name for name, part in _BY_ISOLATION.items() if part in parts and not parts[part].startswith("NOT ENFORCED")}
    return frozenset(found)
