"""HTTP endpoints as tools. Cells choose values; only the description of a tool decides to which address its requests go."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx

from ...bridge.host import ToolFailedError
from .tool import DEFAULT_SECONDS, Effect, Parameter, Tool, parameters_of_schema

_PATH_ARGUMENT = re.compile(r"\{(\w+)\}")
_IN_THE_QUERY = {"GET", "HEAD", "DELETE"}
_MAX_RESPONSE = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One endpoint of an API. `path` may contain arguments in braces, such as `/users/{id}`.

    All other arguments are sent in the query (GET, HEAD, DELETE) or in a JSON body.
    """

    name: str
    method: str = "GET"
    path: str = "/"
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    effect: Effect = "write"
    tags: Sequence[str] = ()
    seconds: float = DEFAULT_SECONDS

    def tool_parameters(self) -> tuple[Parameter, ...]:
        """Return the parameters of the tool that calls this endpoint.

        Parameters in the path are required. Others are required only if their entry in `parameters` sets `required`.
        """
        in_path: dict[str, Any] = {name: {} for name in _PATH_ARGUMENT.findall(self.path)}
        properties = in_path | dict(self.parameters)
        required = [name for name, one in properties.items() if name in in_path or one.get("required")]
        return parameters_of_schema({"properties": properties, "required": required})


class HttpApi:
    """The endpoints of an API under one base URL. Each is a tool named `name.endpoint`."""

    def __init__(self, name: str, base_url: str, endpoints: Sequence[Endpoint], *, headers: Mapping[str, str] | None = None) -> None:
        """Store the description of an API. Call `open` before its tools are used.

        Args:
            name: The first part of the tools' names.
            base_url: The URL that the paths of all endpoints are appended to.
            endpoints: The endpoints.
            headers: Sent with every request. They stay on the host: no session sees them.
        """
        self._name = name
        self._base_url = base_url.rstrip("/")
        self._endpoints = list(endpoints)
        self._headers = dict(headers or {})
        self._client: httpx.AsyncClient | None = None

    async def open(self) -> list[Tool]:
        """Create the HTTP client. Return a tool for each endpoint."""
        self._client = httpx.AsyncClient(headers=self._headers, timeout=None)  # noqa: S113  a tool's own time limit holds
        return [self._build_tool(endpoint) for endpoint in self._endpoints]

    async def close(self) -> None:
        """Close the HTTP client and its connections. Do nothing if it is not open."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def _build_tool(self, endpoint: Endpoint) -> Tool:
        return Tool(
            name=f"{self._name}.{endpoint.name}",
            act=lambda arguments: self._call(endpoint, arguments),
            description=endpoint.description,
            parameters=endpoint.tool_parameters(),
            effect=endpoint.effect,
            tags=tuple(endpoint.tags),
            seconds=endpoint.seconds,
        )

    async def _call(self, endpoint: Endpoint, arguments: Mapping[str, Any]) -> object:
        if self._client is None:
            raise ToolFailedError(f"the HTTP API {self._name} is closed: start its AgentSession again")
        in_path = set(_PATH_ARGUMENT.findall(endpoint.path))
        path = _PATH_ARGUMENT.sub(lambda place: _quote_segment(place[1], arguments[place[1]]), endpoint.path)
        rest = {name: value for name, value in arguments.items() if name not in in_path}
        method = endpoint.method.upper()
        sent: dict[str, Any] = ({"params": rest} if method in _IN_THE_QUERY else {"json": rest}) if rest else {}
        try:
            async with self._client.stream(method, f"{self._base_url}{path}", **sent) as response:
                return _decode_content(response, await _read_body(response))
        except httpx.HTTPError as error:
            # Not chained: the cause quotes the URL.
            raise ToolFailedError(
                f"{self._name}.{endpoint.name} got no answer ({type(error).__name__}): check its base_url, or try again"
            ) from None


async def _read_body(response: httpx.Response) -> bytes:
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > _MAX_RESPONSE:
            raise ToolFailedError(f"the answer is larger than {_MAX_RESPONSE >> 20} MB: ask for less")
    return bytes(body)


def _decode_content(response: httpx.Response, body: bytes) -> object:
    """Return the body of a response: JSON as a value, text as text, everything else as bytes.

    Raise ToolFailedError if the status is not a success. Redirects are not followed, because they would send values to another address.
    """
    kind = response.headers.get("content-type", "")
    text = body.decode(response.encoding or "utf-8", "replace") if "json" in kind or kind.startswith("text/") else None
    if not response.is_success:
        advice = "redirects are not followed, so correct base_url or path" if response.is_redirect else response.reason_phrase
        raise ToolFailedError(f"the service answered {response.status_code}: {advice if response.is_redirect else (text or advice)[:2000]}")
    if text is not None and "json" in kind and text:
        return httpx.Response(200, content=body).json()
    return body if text is None else text


def _quote_segment(name: str, value: object) -> str:
    """Quote a value as one segment of a path. Raise ToolFailedError if it is empty or only dots: even quoted, it would change the path."""
    text = quote(str(value), safe="")
    if not text or set(text) == {"."}:
        raise ToolFailedError(f"{name} must not be empty or only dots, because it is a part of the path, got {text!r:.80}")
    return text
