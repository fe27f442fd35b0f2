"""Manage named virtual environments for sessions, in the user's data folder. They do not contain the packages of this program."""

import asyncio
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigurationError
from ..policy import PackageSource, user_folder
from .requirements import PackageError
from .resolver import ReportProgress, Resolver

_INSTALLED = "lib/python*/site-packages/*.dist-info"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}", re.ASCII)
_ALWAYS = ("ipython>=8.31", "matplotlib-inline>=0.1.7")  # every session needs these
# The packages in Azure's own sessions, as written down in July 2026 by a user who listed them there.
SERVICE_PACKAGES = {
    "azure": (
        *("numpy==1.26.4", "pandas==2.2.2", "matplotlib==3.8.4", "scipy==1.13.1", "scikit-learn==1.5.1", "seaborn==0.13.2"),
        *("statsmodels==0.14.6", "sympy==1.14.0", "networkx==3.3", "pyarrow==16.1.0", "openpyxl==3.1.5", "pillow==11.3.0", "lxml==6.1.1"),
        *("beautifulsoup4==4.12.3", "python-docx==1.2.0", "python-pptx==1.0.2", "reportlab==4.4.6"),
    )
}


_CHECKS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class NamedEnvironment:
    """An existing environment: its name, the version of its Python, and how many packages it has."""

    name: str
    python: str
    packages: int


def find_python(name: str) -> str:
    """Return the path of an environment's interpreter. Raise ConfigurationError if the name is invalid or unknown."""
    python = _folder(name) / "bin" / "python"
    if not python.exists():
        raise ConfigurationError(
            f"ACASessions:Sandbox:Environment: the environment {name} does not exist: "
            f"make it with `aca-sessions env create {name} -r requirements.txt` (or --like azure)"
        )
    return str(python)


class Environments:
    """The named environments of this user. They are made from wheels only, so no package runs code on this host."""

    def __init__(self, source: PackageSource, report_progress: ReportProgress) -> None:
        self._source = source
        self._report_progress = report_progress

    def list_all(self) -> list[NamedEnvironment]:
        """Return all environments, sorted by name."""
        root = _environments_folder()
        found = sorted(path for path in root.iterdir() if (path / "bin" / "python").exists()) if root.is_dir() else []
        return [NamedEnvironment(path.name, _version(path), len([*path.glob(_INSTALLED)])) for path in found]

    def remove(self, name: str) -> None:
        """Remove an environment. Sessions that still run with it cannot import its packages any more.

        Raise ConfigurationError if the environment does not exist.
        """
        folder = _folder(name)
        if not (folder / "bin" / "python").exists():
            raise ConfigurationError(f"the environment {name} does not exist: `aca-sessions env list` lists those that do")
        shutil.rmtree(folder)

    async def create(self, name: str, *, requirements_file: Path, python: str | None = None) -> None:
        """Create an environment with the packages in `requirements_file`.

        Raise ConfigurationError if that fails, and leave no incomplete environment behind. `python` is the path of the interpreter for the
        environment. None means the interpreter that runs this program.
        """
        async with self._create_empty(name, python) as folder:
            await self._install(folder, [f"--requirement={requirements_file}"])

    async def create_like(self, name: str, service: str, *, python: str | None = None, skip_missing: bool = False) -> list[str]:
        """Create an environment with the packages that a hosted service offers. Return the packages that were left out.

        Args:
            name: The name of the new environment.
            service: The service, a key of `SERVICE_PACKAGES`, such as `azure`.
            python: The path of the interpreter for the environment. None means the interpreter that runs this program.
            skip_missing: Whether to leave out packages that have no wheel for this Python. If it is false, raise ConfigurationError for
                such a package.
        """
        wanted = SERVICE_PACKAGES[service]
        async with self._create_empty(name, python) as folder:
            missing = await self._missing(folder, wanted)
            if missing and not skip_missing:
                raise ConfigurationError(
                    f"cannot find wheels of {', '.join(missing)} for this Python: use --skip-missing, or name another --python"
                )
            await self._install(folder, [one for one in wanted if one not in missing])
        return missing

    @asynccontextmanager
    async def _create_empty(self, name: str, python: str | None) -> AsyncIterator[Path]:
        """Create an environment without packages, and return its folder to a `with` block. If the block fails, remove the environment."""
        folder = _folder(name)
        if folder.exists():
            raise ConfigurationError(f"the environment {name} exists already: remove it first with `aca-sessions env remove {name}`")
        try:
            await asyncio.to_thread(_create_venv, folder, python or sys.executable)
            yield folder
        except PackageError as error:
            shutil.rmtree(folder)
            raise ConfigurationError(f"cannot make the environment {name}: {error}") from error
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    async def _install(self, folder: Path, wanted: Sequence[str]) -> None:
        await self._resolver(folder).install(folder, [*_ALWAYS, *wanted], self._report_progress)
        shutil.rmtree(folder / "http", ignore_errors=True)  # pip's cache of downloads

    async def _missing(self, folder: Path, wanted: Sequence[str]) -> list[str]:
        """Return those of the `wanted` packages that have no wheel for the environment's Python.

        Check all at once, which is faster. If any is missing, check them one by one to find out which.
        """
        if await self._have_wheels(folder, wanted):
            return []
        turns = asyncio.Semaphore(_CHECKS_AT_ONCE)

        async def has_none(one: str) -> bool:
            async with turns:
                return not await self._have_wheels(folder, [one])

        # Every check ends before an error is raised: the folder that they work in is removed then.
        found = await asyncio.gather(*map(has_none, wanted), return_exceptions=True)
        for error in found:
            if isinstance(error, BaseException):
                raise error
        return [one for one, is_missing in zip(wanted, found, strict=True) if is_missing]

    async def _have_wheels(self, folder: Path, wanted: Sequence[str]) -> bool:
        try:
            await self._resolver(folder).install(folder, ["--dry-run", "--no-deps", *wanted], self._report_progress)
        except PackageError as error:
            if error.name not in ("PackageNotFoundError", "NoWheelError"):
                raise
            return False
        return True

    def _resolver(self, folder: Path) -> Resolver:
        return Resolver(str(folder / "bin" / "python"), self._source, self._source.cache_size)


def _environments_folder() -> Path:
    data = user_folder("XDG_DATA_HOME", ".local", "share")
    if data is None:
        raise ConfigurationError("cannot keep environments, because this user has no home folder: set HOME or XDG_DATA_HOME")
    return Path(data, "aca-sessions", "environments")


def _folder(name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"an environment's name must be 1 to 64 lower-case letters, digits, '-' or '_', the first no '-' or '_', got {name!r:.80}"
        )
    return _environments_folder() / name


def _create_venv(folder: Path, python: str) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        subprocess.run([python, "-I", "-m", "venv", "--without-pip", str(folder)], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigurationError(
            f"--python must be a Python with the venv module, got {python}: install that module there, or name another Python"
        ) from error


def _version(folder: Path) -> str:
    lines = (folder / "pyvenv.cfg").read_text().splitlines()
    return next((line.partition("=")[2].strip() for line in lines if line.startswith("version")), "")
