"""Run pip, confined by `pip_launcher`, to find wheels that meet requirements in the guests' Python and to unpack them."""

import ast
import asyncio
import contextlib
import importlib.util
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from packaging.utils import canonicalize_name

from ..images.image_python import ImagePython
from ..policy import PackageSource
from .pip_launcher import TOO_LARGE, TOO_MUCH_FETCHED, TOO_MUCH_METADATA
from .requirements import PackageError, Wheel

ReportProgress = Callable[[str], None]

_LONGEST = 2000
_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)
_FOLDERS = re.compile(r"(?<=\s)/\S*/")
_NOT_FOUND = re.compile(r"Could not find a version that satisfies the requirement (.+?) \(from versions: (.*?)\)")
_CAUSES = re.compile(r"The conflict is caused by:\n(.+?)\n\s*\n", re.DOTALL)
_UNREACHED = re.compile(r"connection broken by|Could not fetch URL .*(?:Max retries|SSLError|Connection|timed out)|ReadTimeoutError")
_UNFIT = re.compile(r"none of the wheel's tags|No sources permitted|requires a different Python", re.IGNORECASE)
_PROGRESS = ("Collecting ", "Downloading ", "Processing ", "Installing collected packages")
_ERRORS_BY_PATTERN = {
    r"\[Errno 28\]|No space left": (
        "DiskFullError",
        "the host's disk is full: free some of it, or name another place in ACASessions:Packages:CacheFolder",
    ),
    TOO_LARGE: (
        "PackageTooLargeError",
        "the wheels hold more than the whole cache may, or more than 500,000 files: raise ACASessions:Packages:CacheMegabytes",
    ),
    TOO_MUCH_FETCHED: (
        "PackageTooLargeError",
        "pip fetched more than the whole cache may hold: name exact versions, or raise ACASessions:Packages:CacheMegabytes",
    ),
    rf"{TOO_MUCH_METADATA}|MemoryError": (
        "UnsafeWheelError",
        "a wheel has metadata or a directory that is too large to be read: name another version",
    ),
    r"\[Errno 27\]": ("PackageTooLargeError", "a file is larger than the whole cache: raise ACASessions:Packages:CacheMegabytes"),
    r"outside the target directory": (
        "UnsafeWheelError",
        "a wheel has files that would lie outside its folder, so nothing was installed: name another version",
    ),
    r"while executing command|No permission to execute|Cannot find command": (
        "BuildRefusedError",
        "a package has no wheel, and building it would run its code on the host: only ready-made wheels are installed",
    ),
    r"DO NOT MATCH THE HASHES": (
        "PackageChangedError",
        "a wheel is not the one that its index announced, so nothing was installed: try again, and check the index if this stays",
    ),
    r"(?:401|403) Client Error": (
        "IndexRefusedError",
        "the package index refused this host: check the user name and password in ACASessions:Packages:IndexUrl",
    ),
    r"is not a supported wheel|Wheel .* is invalid|BadZipFile|invalid wheel": (
        "UnsafeWheelError",
        "a wheel is damaged and cannot be read: name another version, or replace the wheel in the index",
    ),
}


def explain_failure(output: str) -> PackageError:
    """Convert the output of a failed run of pip to an error whose message gives the cause and what to do."""
    for sign, (name, message) in _ERRORS_BY_PATTERN.items():
        if re.search(sign, output):
            return PackageError(name, message)
    if missing := _NOT_FOUND.search(output):
        return _missing(missing[1], missing[2], output)
    if "ResolutionImpossible" in output:
        causes = _CAUSES.search(output)
        reason = _format_output(causes[1] if causes else _errors(output))
        return PackageError("PackageConflictError", f"no set of versions fits together, so ask for other versions:\n{reason}")
    said = _errors(output) or output.strip().rpartition("\n")[2]
    return PackageError(
        "PackageError", _format_output(said) or "pip failed without a message: check the host's free disk and memory, and try again"
    )


def filter_progress(line: str) -> str | None:
    """Return a line of pip's output without folders of this host if users may see the line, else None.

    Users may see lines that report progress and contain no address.
    """
    if not line.lstrip().startswith(_PROGRESS) or _ADDRESS.search(line):
        return None
    return _FOLDERS.sub("", line.strip())


def redact(text: str, settings: Iterable[str]) -> str:
    """Return a text in which each address is replaced by [address], and each secret by ****.

    `settings` are the values of pip's settings. Addresses in them may contain secrets, such as a password.
    """
    for secret in sorted({part for value in settings for part in _secrets(value)}, key=len, reverse=True):
        text = text.replace(secret, "****")
    return _ADDRESS.sub("[address]", text)


def _missing(requirement: str, versions: str, output: str) -> PackageError:
    wanted = _format_output(requirement)
    if versions.strip() not in ("", "none"):
        return PackageError(
            "PackageNotFoundError", f"no version fits {wanted}: ask for one that has a wheel for the sessions' Python: {versions}"
        )
    if _UNREACHED.search(output):
        advice = "check this host's network and ACASessions:Packages:IndexUrl"
        return PackageError("IndexUnreachableError", f"cannot reach a package index to look for {wanted}: {advice}")
    if _UNFIT.search(output.rpartition("to search for versions of ")[2]):  # what pip said about earlier packages is no cause
        return PackageError(
            "NoWheelError",
            f"{wanted} has no wheel for the sessions' Python on this machine, and nothing is built from source: name another version",
        )
    return PackageError("PackageNotFoundError", f"the index does not have a package {wanted}: check the spelling of its name")


def _errors(output: str) -> str:
    lines = [line.strip().removeprefix("ERROR: ") for line in output.splitlines() if line.strip().startswith("ERROR: ")]
    return "\n".join(dict.fromkeys(lines))


def _format_output(text: str) -> str:
    """Return a part of pip's output as text for users, shortened to 2,000 characters.

    pip says "The user requested (constraint) numpy==2". Replace that by "the sessions' environment has numpy==2".
    """
    plain = text.replace("The user requested (constraint)", "the sessions' environment has").replace("The user requested", "asked for is")
    return "\n".join(line.strip() for line in plain.splitlines())[:_LONGEST]


def _secrets(value: str) -> set[str]:
    """Return what may be secret in the addresses of a setting: user names, passwords and folders, if longer than 3 characters."""
    found: set[str] = set()
    for word in value.split():
        if not word.startswith(("http://", "https://")):
            continue
        try:
            parts = urlsplit(word)
        except ValueError:
            continue
        named = [parts.username or "", parts.password or "", *(part for part in parts.path.split("/") if part != "simple")]
        found |= {form for part in named for form in (part, unquote(part)) if len(form) > 3}
    return found


_BOOT = "import sys; sys.path.append(sys.argv[1]); from aca_sessions.sandbox.packages.pip_launcher import main; main()"
_CODE = Path(__file__).parents[3]
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
class InstalledPackages:
    """The packages that are installed before the resolver runs.

    Attributes:
        environment: The version of each package of the guests' Python, by its canonical name. These must not change.
        added: The METADATA files of the packages that a session has installed. The resolver may choose other versions of them.
    """

    environment: Mapping[str, str]
    added: Sequence[Path]  # the METADATA files of what was added


@dataclass(frozen=True, slots=True)
class Resolver:
    """Runs pip for one Python and one source of wheels. Each method works in a folder that the caller makes and removes.

    The Python of a container image runs only in sessions. So for an image, pip runs in the host's Python, with options and requirement
    markers that make it choose wheels for the image's Python.
    """

    python: str
    source: PackageSource
    largest: int
    image: ImagePython | None = None

    async def resolve(
        self, folder: Path, requirements: Sequence[str], known: InstalledPackages, report_progress: ReportProgress
    ) -> list[Wheel]:
        """Return the wheels to install so that the requirements are met, sorted by name. Raise PackageError if that is impossible.

        Args:
            folder: An empty folder to work in.
            requirements: The requirements, with canonical names.
            known: What is installed already.
            report_progress: Called with each line of progress.
        """
        constraints, report = folder / "constraints.txt", folder / "report.json"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in known.environment.items()))
        _copy_metadata(folder / "known", known.added)
        if self.image is not None:
            self.image.write_metadata(folder / "known")
        await self._pip(folder, ("--dry-run", f"--report={report}", f"--constraint={constraints}", "--", *requirements), report_progress)
        if report.stat().st_size > _MOST_REPORT:
            raise PackageError(
                "UnsafeWheelError", f"the metadata of the wheels is larger than {_MOST_REPORT >> 20} MB together: install fewer at once"
            )
        return _wheels(json.loads(report.read_text()))

    async def unpack(self, folder: Path, wheels: Sequence[Wheel], report_progress: ReportProgress) -> Path:
        """Unpack exactly these wheels into a new subfolder of `folder`, and return its path. Raise PackageError on failure."""
        hashed = all(wheel.sha256 for wheel in wheels)  # pip wants hashes of all or of none
        listing, target = folder / "wheels.txt", folder / "unpacked"
        listing.write_text("".join(f"{wheel.pin} --hash=sha256:{wheel.sha256}\n" if hashed else f"{wheel.pin}\n" for wheel in wheels))
        where = (f"--target={target}", f"--requirement={listing}")
        await self._pip(folder, (*where, "--no-deps", "--no-compile", "--no-warn-script-location"), report_progress)
        return target

    async def install(self, folder: Path, arguments: Sequence[str], report_progress: ReportProgress) -> None:
        """Install packages into the environment of `self.python`, which must be below `folder`.

        `arguments` are requirements and options of pip.
        """
        await self._pip(folder, ["--no-warn-script-location", *arguments], report_progress)

    async def _pip(self, folder: Path, arguments: Sequence[str], report_progress: ReportProgress) -> None:
        variables = await self._variables()
        boot = (
            self.python,
            "-I",
            "-S",
            "-B",
            "-c",
            _BOOT,
            str(_CODE),
            str(folder),
            str(self.largest),
            _find_pip_script(),
            str(folder / "known"),
        )
        markers, options = (json.dumps(self.image.markers), self.image.options) if self.image is not None else ("", [])
        command = (*boot, markers, "install", *_ALWAYS, *options, *arguments)
        status, output = await _run_program(command, variables | _folder_variables(folder), folder, report_progress)
        if status != 0:
            raise explain_failure(redact(output, variables.values()))

    async def _variables(self) -> dict[str, str]:
        """Return the environment variables for pip: package sources, network settings, and the host's HOME, proxies and certificates."""
        configured = await _configuration()
        chosen = {name: value for name, value in configured.items() if name in _REACH}
        if self.source.index_url is None and self.source.wheels is None:
            chosen |= {name: value for name, value in configured.items() if name in _INDEX}
        if self.source.index_url is not None:
            chosen["index-url"] = self.source.index_url
        elif self.source.wheels is not None:
            chosen["no-index"] = "1"
        if self.source.wheels is not None:
            chosen["find-links"] = self.source.wheels
        # Not as arguments, which every user of the host can read: an index's address may hold its password.
        variables = {f"PIP_{name.upper().replace('-', '_')}": value for name, value in chosen.items()}
        return variables | {name: os.environ[name] for name in _REACH_VARIABLES if name in os.environ}


def _folder_variables(folder: Path) -> dict[str, str]:
    """Return environment variables that make pip keep its cache and temporary files in `folder`, and read no configuration file."""
    return {"PATH": "/usr/bin:/bin", "PIP_CONFIG_FILE": os.devnull, "PIP_CACHE_DIR": str(folder / "http"), "TMPDIR": str(folder)}


def _find_pip_script() -> str:
    """Return the path of the script that starts pip in any Python. `pip --python` uses it too."""
    found = importlib.util.find_spec("pip")
    if found is None or found.origin is None:
        raise PackageError(
            "PackageError",
            "the Python environment of aca-sessions does not have pip: install it there, for example by `python -m ensurepip`",
        )
    return str(Path(found.origin).with_name("__pip-runner__.py"))


async def _configuration() -> dict[str, str]:
    """Return the settings in this host's pip configuration, by their names. If one is set twice, use the later value."""
    status, output = await _run_program(
        (sys.executable, "-I", "-m", "pip", "config", "list"), dict(os.environ), Path("/"), lambda _line: None
    )
    settings = {}
    for line in output.splitlines() if status == 0 else ():
        if found := _SETTING.fullmatch(line):
            with contextlib.suppress(ValueError, SyntaxError):
                settings[found[1]] = str(ast.literal_eval(found[2]))
    return settings


async def _run_program(
    command: Sequence[str], variables: Mapping[str, str], folder: Path, report_progress: ReportProgress
) -> tuple[int, str]:
    """Run a program, and return its exit status and output. Call `report_progress` with each line that users may see.

    If the caller is cancelled, kill the program and its process group.
    """
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
        return await _read(process, report_progress)
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.shield(process.wait())


async def _read(process: asyncio.subprocess.Process, report_progress: ReportProgress) -> tuple[int, str]:
    kept: list[str] = []
    room = _OUTPUT_KEPT
    assert process.stdout is not None  # noqa: S101
    async for data in _lines(process.stdout):
        line = data.decode(errors="replace")
        if news := filter_progress(line):
            report_progress(news)
        if room > 0:
            kept.append(line)
            room -= len(line)
    return await process.wait(), "".join(kept)


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield the lines of a stream. Truncate each line at about 1 MB, because a hostile package index can send very long lines."""
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
            raise PackageError("PackageTooLargeError", f"the request needs more than {_MOST_WHEELS:,} packages: install fewer at once")
        info, about = item["download_info"], item["metadata"]
        if item["is_direct"]:
            name = canonicalize_name(about["name"])
            raise PackageError(
                "BuildRefusedError", f"{name} must come from the index, but a package names an address for it: put its wheel into the index"
            )
        hashes = info.get("archive_info", {}).get("hashes", {})
        wheels.append(Wheel(canonicalize_name(about["name"]), about["version"], hashes.get("sha256", "")))
    return sorted(wheels, key=lambda wheel: wheel.name)


def _copy_metadata(folder: Path, files: Sequence[Path]) -> None:
    """Copy the metadata of packages, but no code, to a new folder, so that pip treats the packages as installed."""
    folder.mkdir()
    for file in files:
        place = folder / file.parent.name
        place.mkdir()
        (place / file.name).write_bytes(file.read_bytes())
