"""Fetch the released source of a framework, whose tests are not in its wheel, and load a file of tests from it."""

import contextlib
import importlib
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

_FOLDER = Path.home() / ".cache" / "aca-sessions-tests" / "sources"


def fetch_source(package: str) -> Path:
    """Return the folder with the source of the installed version of a package. Skip the file of tests if no index has it."""
    folder = _FOLDER / f"{package.replace('-', '_')}-{version(package)}"
    if folder.exists():
        return folder
    _FOLDER.mkdir(parents=True, exist_ok=True)
    wanted = f"{package}=={version(package)}"
    with tempfile.TemporaryDirectory(dir=_FOLDER) as new:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", package, "--dest", new, wanted]
        run = subprocess.run(download, capture_output=True, text=True, timeout=300, check=False)
        if run.returncode:
            pytest.skip(f"the source of {wanted} cannot be downloaded: {run.stderr[-300:]}", allow_module_level=True)
        with tarfile.open(Path(new) / f"{folder.name}.tar.gz") as packed:
            packed.extractall(new, filter="data")
        with contextlib.suppress(OSError):  # another process of the tests was faster
            (Path(new) / folder.name).rename(folder)
    return folder


def load_tests(package: str, file: str, **modules: ModuleType) -> ModuleType:
    """Load a file of tests from the source of a package, unchanged. `modules` are those that it imports and that the source lacks.

    The folder of the file becomes the package `tests_of_PACKAGE`, so that it can import others by relative names.
    """
    path = fetch_source(package) / file
    parent = f"tests_of_{package.replace('-', '_')}"
    holder = ModuleType(parent)
    holder.__path__ = [str(path.parent)]
    sys.modules[parent] = holder
    for name, module in modules.items():
        sys.modules[f"{parent}.{name.replace('__', '.')}"] = module
    pytest.register_assert_rewrite(f"{parent}.{path.stem}")
    return importlib.import_module(f"{parent}.{path.stem}")
