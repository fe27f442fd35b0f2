"""HTTP endpoints as tools. A session chooses values; the description of the tool alone decides where they are sent."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx

from .tool import DEFAULT_SECONDS, Effect, Parameter, Tool, ToolFailedError, parameters_of

_PLACE = re.compile(r"\{(\w+)\}")
_IN_THE_QUERY = {"GET", "HEAD", "DELETE"}
_MOST_ANSWERED = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One endpoint of an API. Names in braces in the path are replaced by arguments. The others are sent in the query or as JSON."""

    name: str
    method: str = "GET"
    path: str = "/"
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    effect: Effect = "write"
    tags: Sequence[str] = ()
    seconds: float = DEFAULT_SECONDS

    def takes(self) -> tuple[Parameter, ...]:
        """Return its parameters. Those in the path are required, the others as described."""
        in_path: dict[str, Any] = {name: {} for name in _PLACE.findall(self.path)}
        properties = in_path | dict(self.parameters)
        required = [name for name, one in properties.items() if name in in_path or one.get("required")]
        return parameters_of({"properties": properties, "required": required})


class HttpApi:
    """The endpoints below one address, as tools named `name.endpoint`."""

    def __init__(self, name: str, base_url: str, endpoints: Sequence[Endpoint], *, headers: Mapping[str, str] | None = None) -> None:
        """Describe an API. `open` connects to it.

        Args:
            name: The first part of the tools' names.
            base_url: The address that all paths are below.
            endpoints: The endpoints.
            headers: Sent with every request. They stay on the host: no session sees them.
        """
        self._name = name
        self._base_url = base_url.rstrip("/")
        self._endpoints = list(endpoints)
        self._headers = dict(headers or {})
        self._client: httpx.AsyncClient | None = None

    async def open(self) -> list[Tool]:
        """Return a tool for each endpoint."""
        self._client = httpx.AsyncClient(headers=self._headers, timeout=None)  # noqa: S113  a tool's own time limit holds
        return [self._tool(endpoint) for endpoint in self._endpoints]

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def _tool(self, endpoint: Endpoint) -> Tool:
        return Tool(
            name=f"{self._name}.{endpoint.name}",
            act=lambda arguments: self._call(endpoint, arguments),
            description=endpoint.description,
            parameters=endpoint.takes(),
            effect=endpoint.effect,
            tags=tuple(endpoint.tags),
            seconds=endpoint.seconds,
        )

    async def _call(self, endpoint: Endpoint, arguments: Mapping[str, Any]) -> object:
        if self._client is None:
            raise ToolFailedError(f"{self._name} is closed")
        in_path = set(_PLACE.findall(endpoint.path))
        path = _PLACE.sub(lambda place: _segment(arguments[place[1]]), endpoint.path)
        rest = {name: value for name, value in arguments.items() if name not in in_path}
        method = endpoint.method.upper()
        sent: dict[str, Any] = ({"params": rest} if method in _IN_THE_QUERY else {"json": rest}) if rest else {}
        try:
            async with self._client.stream(method, f"{self._base_url}{path}", **sent) as response:
                return _content(response, await _body(response))
        except httpx.HTTPError as error:
            raise ToolFailedError(f"{self._name}.{endpoint.name} was not answered: {type(error).__name__}") from None


async def _body(response: httpx.Response) -> bytes:
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > _MOST_ANSWERED:
            raise ToolFailedError(f"the answer is larger than {_MOST_ANSWERED >> 20} MB: ask for less")
    return bytes(body)


def _content(response: httpx.Response, body: bytes) -> object:
    """Return JSON as values, text as text, everything else as bytes. Raise ToolFailedError for an error or a redirect.

    Redirects are not followed, because they would lead a session's values to another place.
    """
    kind = response.headers.get("content-type", "")
    text = body.decode(response.encoding or "utf-8", "replace") if "json" in kind or kind.startswith("text/") else None
    if not response.is_success:
        raise ToolFailedError(f"the service answered {response.status_code}: {(text or '')[:2000]}")
    if text is not None and "json" in kind and text:
        return httpx.Response(200, content=body).json()
    return body if text is None else text


def _segment(value: object) -> str:
    """Return a value as one segment of a path, fully quoted, so that it cannot lead to another place.

    Raise ToolFailedError if it is empty or has only dots.
    """
    text = quote(str(value), safe="")
    if not text or set(text) == {"."}:
        raise ToolFailedError("a value for a path is neither empty nor only dots")
    return text
