"""A host of MCP Apps: a web page with the AppBridge of @modelcontextprotocol/ext-apps, in Chromium."""

import fcntl
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mcp.types import CallToolResult

from ..playground.browser import Browser, Page

# `npm install` of these two; the version of the bundle is in its name.
_PACKAGES = ("@modelcontextprotocol/ext-apps@2.0.4", "esbuild@0.28.2")
_BUNDLE = Path.home() / ".cache" / "aca-sessions-tests" / "ext-apps-2.0.4.js"
_ENTRY = 'export { AppBridge, PostMessageTransport } from "@modelcontextprotocol/ext-apps/app-bridge";'
# What a host enforces for a page that declares no domains.
POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "media-src 'self' data:; connect-src 'none'"
)
_HOST = """<!doctype html><title>A host</title><script src="/bundle.js"></script>
<iframe sandbox="allow-scripts allow-same-origin allow-forms"></iframe>
<script>
  const frame = document.querySelector("iframe"), received = [];
  let bridge;
  addEventListener("message", ({ data }) => received.push(data.method ?? JSON.stringify(data.result ?? data.error)));
  async function load(address, hostContext) {
    bridge = new apps.AppBridge(null, { name: "A host", version: "1" }, {}, { hostContext });
    bridge.onsizechange = ({ height }) => { frame.style.height = `${height}px`; };
    const initialized = new Promise((resolve) => { bridge.oninitialized = resolve; });
    await bridge.connect(new apps.PostMessageTransport(frame.contentWindow, frame.contentWindow));
    frame.src = address;
    await initialized;
    await bridge.sendToolInput({ arguments: {} });
  }
</script>"""


def _bundle() -> bytes:
    """Return ext-apps' bridge as a script. Build it once for all users of this cache."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not on PATH: apt install nodejs npm")
    _BUNDLE.parent.mkdir(parents=True, exist_ok=True)
    with _BUNDLE.with_suffix(".lock").open("w") as lock, tempfile.TemporaryDirectory() as folder:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _BUNDLE.exists():
            Path(folder, "entry.js").write_text(_ENTRY)
            installing = ["npm", "install", "--no-audit", "--no-fund", "--prefix", folder, *_PACKAGES]
            if (installed := subprocess.run(installing, capture_output=True, text=True, timeout=500)).returncode:
                pytest.skip(f"npm cannot install ext-apps: {installed.stderr[-200:]}")
            building = ["node_modules/.bin/esbuild", "entry.js", "--bundle", "--format=iife", "--global-name=apps", "--outfile=bundle.js"]
            subprocess.run(building, cwd=folder, check=True, capture_output=True, timeout=120)
            made = _BUNDLE.with_suffix(f".{os.getpid()}")
            shutil.copy(Path(folder, "bundle.js"), made)
            made.rename(_BUNDLE)
    return _BUNDLE.read_bytes()


class Host:
    """The host's page, with a frame that shows an app."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self._address = address

    def load(self, context: str = "{}") -> Page:
        """Load the app into the frame, with a host context as JavaScript. Return the frame."""
        self.page.evaluate(f"load({self._address!r}, {context})")
        return self.page.frame()

    def send(self, result: CallToolResult) -> None:
        """Send the app the result of a call."""
        self.page.evaluate(f"bridge.sendToolResult({result.model_dump_json(by_alias=True, exclude_none=True)})")


@contextmanager
def app_host(browser: Browser, app: str, policy: str = POLICY) -> Iterator[Host]:
    """Open a host in a browser, for an app that is a page of HTML. The app has an origin of its own."""
    files = {"/": ("text/html", _HOST.encode()), "/bundle.js": ("text/javascript", _bundle()), "/app": ("text/html", app.encode())}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, content = files.get(self.path, ("text/plain", b""))
            self.send_response(200)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            if self.path == "/app":
                self.send_header("Content-Security-Policy", policy)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield Host(browser.open(f"http://127.0.0.1:{server.server_port}/"), f"http://localhost:{server.server_port}/app")
        finally:
            server.shutdown()
