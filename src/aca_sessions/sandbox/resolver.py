"""The resolver: it asks pip, confined by pip_launcher, which wheels meet requirements in the guests' environment, and to unpack them."""

import ast
import asyncio
import contextlib
import importlib.util
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import canonicalize_name

from .image_python import ImagePython
from .pip_output import Tell, explained, progress, without_secrets
from .policy import PackageSource
from .requirements import PackageError, Wheel

_BOOT = "import sys; sys.path.append(sys.argv[1]); from aca_sessions.sandbox.pip_launcher import main; main()"
_CODE = Path(__file__).parents[2]
_ALWAYS = ("--disable-pip-version-check", "--no-input", "--progress-bar=off", "--only-binary=:all:", "--root-user-action=ignore", "-vv")
_OUTPUT_KEPT = 4 << 20  # characters
_LONGEST_LINE, _CHUNK = 1 << 20, 1 << 16  # bytes
_MOST_REPORT = 64 << 20  # bytes: it holds the metadata of all wheels, and is read whole
_MOST_WHEELS = 1000  # of one resolution; the largest applications have some 500
# Of the host's own pip configuration, only the settings that concern how to reach an index are used.
_SETTING = re.compile(r"(?:global|install|:env:)\.([\w-]+)=(.+)")
_REACH = frozenset({"cert", "client-cert", "proxy", "timeout", "default-timeout", "retries", "trusted-host"})
_INDEX = frozenset({"index-url", "extra-index-url", "find-links", "no-index"})
_REACH_VARIABLES = ("HOME", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


@dataclass(frozen=True, slots=True)
class Known:
    """What is installed already: the environment, which must stay as it is, and what a session added to it, which may be replaced."""

    environment: Mapping[str, str]
    added: Sequence[Path]  # the METADATA files of what was added


@dataclass(frozen=True, slots=True)
class Resolver:
    """pip for one Python and one source of wheels. Each call works in a folder that the caller makes and removes.

    An image's Python runs in sessions only. For an image, pip runs in the host's Python instead, with the image's markers and tags.
    """

    python: str
    source: PackageSource
    largest: int
    image: ImagePython | None = None

    async def resolve(self, folder: Path, requirements: Sequence[str], known: Known, tell: Tell) -> list[Wheel]:
        """Return the wheels to add so that the requirements are met. Raise PackageError with the reason if that is impossible.

        Args:
            folder: an empty folder to work in.
            requirements: in canonical spelling.
            known: what is installed already.
            tell: called with each line of progress.
        """
        constraints, report = folder / "constraints.txt", folder / "report.json"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in known.environment.items()))
        _copy_metadata(folder / "known", known.added)
        if self.image is not None:
            self.image.write_metadata(folder / "known")
        await self._pip(folder, ("--dry-run", f"--report={report}", f"--constraint={constraints}", "--", *requirements), tell)
        if report.stat().st_size > _MOST_REPORT:
            raise PackageError("UnsafeWheelError", f"the metadata of its wheels is larger than {_MOST_REPORT >> 20} MB together")
        return _wheels(json.loads(report.read_text()))

    async def unpack(self, folder: Path, wheels: Sequence[Wheel], tell: Tell) -> Path:
        """Unpack these wheels and no others into a new folder in `folder`, and return it."""
        hashed = all(wheel.sha256 for wheel in wheels)  # pip wants hashes of all or of none
        listing, target = folder / "wheels.txt", folder / "unpacked"
        listing.write_text("".join(f"{wheel.pin} --hash=sha256:{wheel.sha256}\n" if hashed else f"{wheel.pin}\n" for wheel in wheels))
        where = (f"--target={target}", f"--requirement={listing}")
        await self._pip(folder, (*where, "--no-deps", "--no-compile", "--no-warn-script-location"), tell)
        return target

    async def install(self, folder: Path, arguments: Sequence[str], tell: Tell) -> None:
        """Install into the Python's own environment, which lies below `folder`. `arguments` are requirements and options of pip."""
        await self._pip(folder, ["--no-warn-script-location", *arguments], tell)

    async def _pip(self, folder: Path, arguments: Sequence[str], tell: Tell) -> None:
        variables = await self._variables()
        boot = (self.python, "-I", "-S", "-B", "-c", _BOOT, str(_CODE), str(folder), str(self.largest), _runner(), str(folder / "known"))
        markers, options = (json.dumps(self.image.markers), self.image.options) if self.image is not None else ("", [])
        command = (*boot, markers, "install", *_ALWAYS, *options, *arguments)
        status, output = await _ran(command, variables | _places(folder), folder, tell)
        if status != 0:
            raise explained(without_secrets(output, variables.values()))

    async def _variables(self) -> dict[str, str]:
        """Return pip's settings as environment variables."""
        told = await _configuration()
        chosen = {name: value for name, value in told.items() if name in _REACH}
        if self.source.index_url is None and self.source.wheels is None:
            chosen |= {name: value for name, value in told.items() if name in _INDEX}
        if self.source.index_url is not None:
            chosen["index-url"] = self.source.index_url
        elif self.source.wheels is not None:
            chosen["no-index"] = "1"
        if self.source.wheels is not None:
            chosen["find-links"] = self.source.wheels
        # Not as arguments, which every user of the host can read: an index's address may hold its password.
        variables = {f"PIP_{name.upper().replace('-', '_')}": value for name, value in chosen.items()}
        return variables | {name: os.environ[name] for name in _REACH_VARIABLES if name in os.environ}


def _places(folder: Path) -> dict[str, str]:
    """Return variables that keep all that pip reads or writes by itself inside the folder."""
    return {"PATH": "/usr/bin:/bin", "PIP_CONFIG_FILE": os.devnull, "PIP_CACHE_DIR": str(folder / "http"), "TMPDIR": str(folder)}


def _runner() -> str:
    """Return the script that pip itself starts for `pip --python`."""
    found = importlib.util.find_spec("pip")
    if found is None or found.origin is None:
        raise PackageError("PackageError", "the host program's environment has no pip: install it there")
    return str(Path(found.origin).with_name("__pip-runner__.py"))


async def _configuration() -> dict[str, str]:
    """Return the host's own settings of pip. If several set the same, the later one counts."""
    status, output = await _ran((sys.executable, "-I", "-m", "pip", "config", "list"), dict(os.environ), Path("/"), lambda _line: None)
    settings = {}
    for line in output.splitlines() if status == 0 else ():
        if found := _SETTING.fullmatch(line):
            with contextlib.suppress(ValueError, SyntaxError):
                settings[found[1]] = str(ast.literal_eval(found[2]))
    return settings


async def _ran(command: Sequence[str], variables: Mapping[str, str], folder: Path, tell: Tell) -> tuple[int, str]:
    """Run a program and return its exit status and output. If the caller is cancelled, kill the program and all of its process group."""
    process = await asyncio.create_subprocess_exec(
        *command,
        env=variables,
        cwd=folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
        umask=0o022,
    )
    try:
        return await _read(process, tell)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.shield(process.wait())


async def _read(process: asyncio.subprocess.Process, tell: Tell) -> tuple[int, str]:
    kept: list[str] = []
    room = _OUTPUT_KEPT
    assert process.stdout is not None  # noqa: S101
    async for data in _lines(process.stdout):
        line = data.decode(errors="replace")
        if told := progress(line):
            tell(told)
        if room > 0:
            kept.append(line)
            room -= len(line)
    return await process.wait(), "".join(kept)


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield the lines of a stream. One that is too long is cut: an index decides how long pip's lines are."""
    rest = b""
    while data := await stream.read(_CHUNK):
        *lines, rest = (rest + data).split(b"\n")
        rest = rest[:_LONGEST_LINE]
        for line in lines:
            yield line + b"\n"
    yield rest


def _wheels(report: dict[str, object]) -> list[Wheel]:
    wheels: list[Wheel] = []
    for item in report["install"]:  # type: ignore[attr-defined]
        if len(wheels) == _MOST_WHEELS:
            raise PackageError("PackageTooLargeError", f"it needs more than {_MOST_WHEELS:,} packages: install fewer at once")
        info, about = item["download_info"], item["metadata"]
        if item["is_direct"]:
            name = canonicalize_name(about["name"])
            raise PackageError("BuildRefusedError", f"{name} would come from an address of its own, not from the index")
        hashes = info.get("archive_info", {}).get("hashes", {})
        wheels.append(Wheel(canonicalize_name(about["name"]), about["version"], hashes.get("sha256", "")))
    return sorted(wheels, key=lambda wheel: wheel.name)


def _copy_metadata(folder: Path, files: Sequence[Path]) -> None:
    """Copy the metadata of packages, so that pip takes them for installed. Their code is not needed."""
    folder.mkdir()
    for file in files:
        place = folder / file.parent.name
        place.mkdir()
        (place / file.name).write_bytes(file.read_bytes())
