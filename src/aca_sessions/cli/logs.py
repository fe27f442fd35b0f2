"""The log of a server on standard error: a line with its time for each event, as text or as JSON."""

import argparse
import json
import logging
import time

from ..hosting import EVENTS

_OF_EVENTS = ("event", "fields")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the option for the format of the log."""
    parser.add_argument(
        "--log-format", choices=("text", "json"), default="text", help="the format of the log on standard error (default: %(default)s)"
    )


def configure(form: str) -> None:
    """Write all log lines in a format, `text` or `json`, and write the events of servers too, which are less than warnings."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(JsonLines() if form == "json" else TimedLines())
    logging.getLogger(EVENTS).setLevel(logging.INFO)
    logging.captureWarnings(form == "json")  # they would otherwise be lines of another format


class TimedLines(logging.Formatter):
    """A formatter of text that begins with the time, in UTC."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self.converter = time.gmtime


class JsonLines(TimedLines):
    """A formatter that writes each record as one JSON object in one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record. An event has its name and its fields in place of a message."""
        entry: dict[str, object] = {"time": self.formatTime(record), "level": record.levelname, "logger": record.name}
        event, fields = (getattr(record, name, None) for name in _OF_EVENTS)
        entry |= {"event": event, **fields} if isinstance(fields, dict) else {"message": record.getMessage()}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)
