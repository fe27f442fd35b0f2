"""Describe refused connections and requests, and call the function that decides about them."""

import inspect
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, Self

_WORD = re.compile(r"[\w.:-]{1,253}", re.ASCII)
_LONGEST_SHOWN = 300  # characters
Decision = Literal["once", "always", "refuse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """A connection or request of a session that no rule of its network allows.

    Attributes:
        host: The host.
        port: The port.
        method: The method of the request. None for a connection to a host without rules: its requests are not known yet.
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

    def described(self) -> str:
        """Return the text that asks a person about the denial. Values that the session's code chose are quoted and shortened."""
        what = f"send a {_word(self.method)} request to" if self.method else "connect to"
        lines = [f"The session's network rules do not allow it to {what} {_word(self.host)}, port {self.port}."]
        if self.path is not None:
            lines.append(f"Path, as the code gives it: {_quoted(self.path)}")
        lines.append(f"The rules allow: {self.allowed[:_LONGEST_SHOWN]}")
        if self.headers:
            lines.append(f"If you allow it, these headers are sent with it: {', '.join(self.headers)}")
        elif self.method is None:
            lines.append("If you allow it, the code can send anything there.")
        return "\n".join(lines)

    def to_json(self) -> str:
        """Return the denial as JSON, without the session's identifier, which both sides know."""
        members: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__ if name != "session_id"}
        return json.dumps(members)

    @classmethod
    def from_json(cls, text: str, session_id: str) -> Self:
        """Create a denial from the JSON of `to_json` and the session's identifier."""
        members = json.loads(text)
        known = {name: members[name] for name in cls.__slots__ if name in members}
        return cls(**known | {"headers": tuple(members["headers"]), "session_id": session_id})


def _word(text: str) -> str:
    return text if _WORD.fullmatch(text) else _quoted(text)


def _quoted(text: str) -> str:
    """Return a text in quotes, with characters outside of ASCII escaped. Cut a long text in the middle."""
    half = _LONGEST_SHOWN // 2
    cut = f"{text[:half]} [{len(text) - 2 * half} characters] {text[-half:]}"
    return ascii(text if len(text) <= _LONGEST_SHOWN else cut)


Answer = Literal["once", "always"] | bool | None
OnDenied = Callable[[Denial], "Answer | Awaitable[Answer]"]


async def decide(on_denied: OnDenied, denial: Denial) -> Decision:
    """Call a function that decides about a denial, and return its decision.

    `"always"` is `always`, `"once"` and True are `once`, and every other value is `refuse`.
    """
    answer = on_denied(denial)
    if inspect.isawaitable(answer):
        answer = await answer
    if answer == "always":
        return "always"
    return "once" if answer is True or answer == "once" else "refuse"
