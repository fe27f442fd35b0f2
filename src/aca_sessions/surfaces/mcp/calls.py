"""One call of a tool: its client, and what the client receives before the answer."""

import json
from dataclasses import dataclass, field
from typing import Any

from mcp import types
from mcp.server.session import ServerSession
from mcp.shared.context import RequestContext
from mcp.shared.exceptions import McpError
from pydantic import AnyUrl

from ...guest_text import for_model, shown_name
from ...models import Event
from .clients import Client

_LOGGER = "aca_sessions.cell"
_LONGEST_NOTE = 4000
_MOST_NOTES = 64_000  # characters of one call; its result has the head and the tail of the output
_ANSWER = {"type": "object", "properties": {"answer": {"type": "string", "title": "Answer"}}, "required": ["answer"]}
_LONGEST_PROMPT = 2000
_NO_LOUDER = ("warning", "error", "critical", "alert", "emergency")


@dataclass(slots=True)
class Call:
    """What a tool gets beside its arguments."""

    client: Client
    context: RequestContext[ServerSession, Client, Any]
    content: list[types.ContentBlock] = field(default_factory=list)
    _steps: int = 0
    _noted: int = 0

    def show(self, *blocks: types.ContentBlock) -> None:
        """Add content that the model reads or sees, in place of the answer as JSON."""
        self.content += blocks

    @property
    def can_ask(self) -> bool:
        """Return whether the client can ask its user (MCP elicitation)."""
        parameters = self.context.session.client_params
        return parameters is not None and parameters.capabilities.elicitation is not None

    async def tell(self, event: Event) -> None:
        """Send the client an event of the cell: as progress, if it asked for that, and as a log message. Stop after 64,000 characters."""
        text = for_model(event.text) if event.kind in ("stdout", "stderr", "input") else _described(event)
        if not text or self._noted > _MOST_NOTES:
            return
        self._noted += len(text)
        told = text[:_LONGEST_NOTE] if self._noted <= _MOST_NOTES else "[more output is not told while the cell runs: see its result]"
        await self._progress(told)
        await self._log(event.kind, told)

    async def ask(self, prompt: str) -> str | None:
        """Return the user's answer to `input()`, or None if there is none: the cell gets an EOFError then."""
        session, request = self.context.session, self.context.request_id
        message = f"The code asks: {for_model(prompt[:_LONGEST_PROMPT])}" if prompt.strip() else "The code waits for a line of input."
        try:
            answered = await session.elicit_form(message, _ANSWER, related_request_id=request)
        except McpError:
            return None  # the client could not ask its user
        text = (answered.content or {}).get("answer") if answered.action == "accept" else None
        return text if isinstance(text, str) else None

    async def resources_changed(self, uris: list[str]) -> None:
        """Notify the client that its list of resources changed, and that those of the URIs which it watches changed."""
        session = self.context.session
        await session.send_resource_list_changed()
        for uri in uris:
            if uri in self.client.subscribed:
                await session.send_resource_updated(AnyUrl(uri))

    async def _progress(self, text: str) -> None:
        token = self.context.meta.progressToken if self.context.meta else None
        if token is None:
            return
        self._steps += 1
        await self.context.session.send_progress_notification(
            token, self._steps, message=text, related_request_id=str(self.context.request_id)
        )

    async def _log(self, kind: str, text: str) -> None:
        if self.client.log_level in _NO_LOUDER:
            return
        await self.context.session.send_log_message(
            "info", {"kind": kind, "text": text}, logger=_LOGGER, related_request_id=self.context.request_id
        )


def _described(event: Event) -> str:
    match event.kind:
        case "display" if event.display is not None:
            return f"[displayed: {', '.join(map(shown_name, sorted(map(str, event.display.data))))}]"
        case "skipped":
            return "[some output is not told while the cell runs: see its result]"
    return ""


def as_json(answer: dict[str, Any]) -> str:
    """Return an answer as the text that a model reads."""
    return json.dumps(answer, ensure_ascii=False)
