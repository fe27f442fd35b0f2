"""Finds out whether packages could be fetched from here."""

import importlib.util
import json
import socket


def main(user: dict, host: str, port: int) -> None:
    """Prints true or false."""
    try:
        socket.create_connection((host, port), timeout=3).close()
        reached = importlib.util.find_spec("pip") is not None
    except OSError:
        reached = False
    print(json.dumps(reached))
