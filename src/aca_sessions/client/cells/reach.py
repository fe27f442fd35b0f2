"""Find out whether packages could be downloaded from this session."""

import http.client
import importlib.util
import json
import os
import urllib.request


def main(user: dict, url: str) -> None:
    """Print true if the package index answers and pip is installed, otherwise false."""
    url = os.environ.get("PIP_INDEX_URL", url)
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5).close()  # noqa: S310
        reached = importlib.util.find_spec("pip") is not None
    except (OSError, ValueError, http.client.HTTPException):  # malformed, or no HTTP server answers there
        reached = False
    print(json.dumps(reached))
