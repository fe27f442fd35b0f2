"""The MCP App (the extension `io.modelcontextprotocol/ui`) of the tools that run cells: a page that shows figures and tables in a host.

The host loads the page once, from the resource `ui://aca-sessions/cell.html`, in a frame of its own, and sends it the results of calls.
Clients that do not declare the extension get neither the link to the page nor the data that only the page reads.
"""

import base64
import hashlib
import json
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any

from mcp import types

from ..guest_text import shown_caption
from ..models import Display
from .sdk import Exchange, to_uri

EXTENSION = "io.modelcontextprotocol/ui"
KIND = "text/html;profile=mcp-app"
URI = "ui://aca-sessions/cell.html"
DISPLAYS_KEY = "aca-sessions/displays"  # in the `_meta` of a result
TABLE = "application/vnd.dataresource+json"
_SVG = "image/svg+xml"
_TOOL = "run_python_code"
_MOST_DISPLAYS = 100
_MOST_CHARACTERS = 200_000  # of tables and SVG: with the images it stays below what Claude Desktop takes, 1,048,576 characters


def is_shown_by(exchange: Exchange) -> bool:
    """Return whether the client declared that it shows MCP Apps."""
    kinds = (exchange.extension(EXTENSION) or {}).get("mimeTypes")
    return isinstance(kinds, list) and KIND in kinds


def for_host(tool: types.Tool) -> types.Tool:
    """Return a tool as hosts list it: the page, which it links to if it runs cells, calls no tool, so hosts let it call none."""
    link = {"resourceUri": URI} if tool.name == _TOOL else {}
    return tool.model_copy(update={"meta": {"ui": {**link, "visibility": ["model"]}}})


@cache
def page() -> types.ReadResourceResult:
    """Return the page. Its content security policy permits its own script and style, which it identifies by their hashes."""
    text = files(__package__).joinpath("cell.html").read_text("utf-8")
    for tag in ("script", "style"):
        part = text.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        text = text.replace(f"sha256-{tag}", f"sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}", 1)
    # A border shows where untrusted output begins and ends.
    content = types.TextResourceContents(uri=to_uri(URI), text=text, mimeType=KIND, _meta={"ui": {"prefersBorder": True}})
    return types.ReadResourceResult(contents=[content])


def for_page(displays: Iterable[tuple[Display, bool]]) -> list[dict[str, Any]]:
    """Return what the page draws, in order: tables, SVG, and for an image its title: the image itself is in the result's content.

    Leave out what is too large: the result has links to it.

    Args:
        displays: Each display of a cell, and whether it is an image in the content.
    """
    drawn: list[dict[str, Any]] = []
    room = _MOST_CHARACTERS
    for display, is_image in displays:
        if is_image:
            drawn.append({"title": shown_caption(str(display.data.get("text/plain", "")))})
            continue
        for name, kind in (("table", TABLE), ("svg", _SVG)):
            value = display.data.get(kind)
            if value:
                entry = {name: value if isinstance(value, str) else json.dumps(value)}
                size = len(json.dumps(entry))
                if size <= room:
                    drawn.append(entry)
                    room -= size
                break
    return drawn[:_MOST_DISPLAYS]
