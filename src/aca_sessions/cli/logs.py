"""The log of a server on standard error: one line for each event, as text or as JSON, with the time."""

import argparse
import json
import logging
import time

import anyio

from ..hosting import EVENTS

_OF_EVENTS = ("event", "fields")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the option `--log-format`."""
    parser.add_argument(
        "--log-format", choices=("text", "json"), default="text", help="the format of the log on standard error (default: %(default)s)"
    )


def configure(form: str) -> None:
    """Set the format of all log lines, `text` or `json`. Also enable the level INFO for the events of a server."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonLines() if form == "json" else TimedLines())
    logging.getLogger(EVENTS).setLevel(logging.INFO)
    logging.captureWarnings(form == "json")  # they would otherwise be lines of another format
    shorten_mcp_log()


def shorten_mcp_log() -> None:
    """Shorten what the MCP SDK logs about its clients: requests that it does not know become one line, and disconnects none."""
    logging.getLogger("mcp.server.streamable_http").addFilter(_is_not_a_disconnect)
    logging.getLogger().addFilter(_keep_first_line)  # the SDK logs invalid requests with the root logger


def _keep_first_line(record: logging.LogRecord) -> bool:
    """Cut the message about an invalid request after its first line. Pydantic adds 90 lines for a method that the SDK does not know."""
    if isinstance(record.msg, str) and record.msg.startswith("Failed to validate request: "):
        record.msg = record.msg.partition("\n")[0]
    return True


def _is_not_a_disconnect(record: logging.LogRecord) -> bool:
    """Return False for the traceback that the MCP SDK logs as an error when a client closes its session."""
    return not (record.exc_info and isinstance(record.exc_info[1], anyio.ClosedResourceError))


class TimedLines(logging.Formatter):
    """Formats log records as lines of text that begin with the time in UTC."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self.converter = time.gmtime


class JsonLines(TimedLines):
    """Formats each log record as one JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a log record as JSON. A server's event has its name and fields; other records have a message."""
        entry: dict[str, object] = {"time": self.formatTime(record), "level": record.levelname, "logger": record.name}
        event, fields = (getattr(record, name, None) for name in _OF_EVENTS)
        entry |= {"event": event, **fields} if isinstance(fields, dict) else {"message": record.getMessage()}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)
