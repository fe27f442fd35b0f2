"""The endpoint of the MCP server's sessions."""

import subprocess
from collections.abc import Iterator

import pytest

from ..conftest import COMMAND


@pytest.fixture(scope="module")
def plain_endpoint() -> Iterator[dict[str, str]]:
    """An endpoint with Azure's API and no extensions."""
    process = subprocess.Popen([*COMMAND, "serve", "--plain", "--port", "0", "--api-key", "key"], stdout=subprocess.PIPE, text=True)
    endpoint = process.stdout.readline().partition(": ")[2].strip()
    yield {"ACASessions__Endpoint": endpoint, "ACASessions__ApiKey": "key"}
    process.terminate()
    process.wait(120)
    process.stdout.close()
