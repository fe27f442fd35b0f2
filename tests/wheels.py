"""Make wheels and an index of packages locally, so that no test needs the internet."""

import base64
import functools
import http.server
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def make_wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    *,
    requires: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
    tag: str = "py3-none-any",
) -> Path:
    """Make a wheel with one module that knows its version, or with the given files."""
    module = name.replace("-", "_")
    about = f"{module}-{version}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{module}-{version}-{tag}.whl"
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires)
    with zipfile.ZipFile(path, "w") as wheel:
        for place, text in (files or {f"{module}.py": f"version = {version!r}\n"}).items():
            wheel.writestr(place, text)
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
        wheel.writestr(f"{about}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        wheel.writestr(f"{about}/RECORD", "")
    return path


@contextmanager
def index_of(wheels: Path, *, password: str | None = None) -> Iterator[str]:
    """Serve a folder of wheels as a simple index (PEP 503) on loopback. Yield its address, with the password if it has one."""
    root = wheels.parent / "index"
    for wheel in wheels.iterdir():
        project = root / "simple" / wheel.name.partition("-")[0].replace("_", "-")
        project.mkdir(parents=True, exist_ok=True)
        (project / wheel.name).write_bytes(wheel.read_bytes())
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, password, directory=str(root)))
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        yield f"http://{f'reader:{password}@' if password else ''}127.0.0.1:{server.server_port}/simple/"
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


class _Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, password: str | None, *arguments: Any, **options: Any) -> None:
        self._expected = "Basic " + base64.b64encode(f"reader:{password}".encode()).decode() if password else None
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        if self._expected not in (None, self.headers["authorization"]):
            self.send_response(401)
            self.send_header("content-length", "0")
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, *_: Any) -> None: ...
