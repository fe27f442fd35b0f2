"""What a session can do and what separates it, by py-code-mode's words: each is true only where the endpoint says that it holds."""

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
    """Their names; whether cells can call tools was found out before."""
    found = {"timeout"} | {name for name, extension in _BY_EXTENSION.items() if await session.supports(extension)}
    if host_tools:
        found.add("host_tools")
    parts = (await session.health()).isolation or {}
    found |= {name for name, part in _BY_ISOLATION.items() if part in parts and not parts[part].startswith("NOT ENFORCED")}
    return frozenset(found)
