"""What a function that decides about refused connections and requests receives."""

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

Decision = Literal["once", "always", "refuse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """A connection or request of a session that no rule of its network allows.

    Attributes:
        host: The host.
        port: The port.
        method: The method of the request. None for a connection to a host without rules: what it will send is not known.
        path: The path of the request, without its query. The session's code chose it.
        allowed: What the rules allow: requests such as `GET /repos/**`, or the hosts.
        headers: The names of headers that the host adds if the request is allowed.
        session_id: The identifier of the session.
    """

    host: str
    port: int
    method: str | None = None
    path: str | None = None
    allowed: str = ""
    headers: tuple[str, ...] = ()
    session_id: str = ""

    def __str__(self) -> str:
        """Return the request or connection as a line of text, such as `POST api.github.com/repos/x`."""
        host = self.host if self.port in (80, 443) else f"{self.host}:{self.port}"
        return f"{self.method} {host}{self.path}" if self.method else f"a connection to {host}"


Answer = Literal["once", "always"] | bool | None
OnDenied = Callable[[Denial], "Answer | Awaitable[Answer]"]


async def decide(on_denied: OnDenied, denial: Denial) -> Decision:
    """Call a function that decides about a denial, and return its decision. True means `once`; any other value than these refuses."""
    answer = on_denied(denial)
    if inspect.isawaitable(answer):
        answer = await answer
    if answer == "always":
        return "always"
    return "once" if answer is True or answer == "once" else "refuse"
