"""Checks of arguments, made before anything is sent. InvalidArgumentError says what to give instead."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from ..contract.extensions import MAX_INSTALL_SECONDS
from ..contract.records import IDENTIFIER, MAX_ASYNCHRONOUS_SECONDS, split_path
from ..errors import InvalidArgumentError
from ..models import CodeError

_PACKAGE = re.compile(r"[\w.-]{1,200}", re.ASCII)
_LONGEST_MOMENT, _MOST_BRANCHES = 256, 64
_NAME_IS = "a file name is text such as 'data.csv' or 'folder/data.csv'"
_NOT_IN_NAMES = frozenset('"\\') | {chr(code) for code in range(32)} | {chr(127)}


def checked_session_id(session_id: object) -> str:
    """Return the identifier if it is 1 to 256 of the characters that endpoints accept. Raise InvalidArgumentError otherwise."""
    if not isinstance(session_id, str) or not IDENTIFIER.fullmatch(session_id):
        raise InvalidArgumentError("a session_id is 1 to 256 ASCII letters, digits or signs")
    return session_id


def checked_timeout(timeout: object) -> float | None:
    """Return a timeout in seconds. None stands for the endpoint's own limit. Zero, a negative number and more than 24 hours are refused."""
    if timeout is None:
        return None
    # A bool is an int in Python, and NaN compares false with every bound.
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not math.isfinite(timeout):
        raise InvalidArgumentError("a timeout is a number of seconds, or None")
    if not 0 < timeout <= MAX_ASYNCHRONOUS_SECONDS:
        raise InvalidArgumentError(f"a timeout is above 0 and up to {MAX_ASYNCHRONOUS_SECONDS:g} seconds")
    return timeout


def checked_path(path: object) -> tuple[str, str]:
    """Return the folders and the name of a file in /mnt/data. Raise InvalidArgumentError if the path leads out of it or names a folder."""
    if not isinstance(path, str):
        raise InvalidArgumentError(_NAME_IS)
    folder, name = _split(path)
    if not name:
        raise InvalidArgumentError(_NAME_IS)
    return folder, name


def checked_folder(path: object) -> str:
    """Return a folder in /mnt/data, relative to it; '' for /mnt/data itself."""
    if not isinstance(path, str):
        raise InvalidArgumentError("a folder is text such as 'folder' or '/mnt/data/folder'")
    return _split(f"{path}/")[0] if path else ""


def _split(path: str) -> tuple[str, str]:
    """Split a path into folders and name.

    A path outside /mnt/data is an error: moving it below /mnt/data would write another file than asked.
    """
    # Uploads name the file in a quoted header of a multipart form, which cannot hold these. A lone surrogate has no UTF-8 form.
    if _NOT_IN_NAMES & set(path) or not _is_well_formed(path):
        raise InvalidArgumentError("a file name holds no quotation mark, backslash, control character or lone surrogate")
    try:
        return split_path(path)
    except ValueError:
        end = [part for part in path.split("/") if part not in ("", ".", "..")][-1:]
        inside = "/".join(["/mnt/data", *end])
        raise InvalidArgumentError(f"a session's files must be in /mnt/data, got {path!r}: use {inside!r}") from None


def checked_data(data: object) -> bytes | Path:
    """Return a file's content as bytes, or the path of a file on this machine. The file's content is read only when it is sent."""
    match data:
        case Path():
            if not data.is_file():
                raise InvalidArgumentError(f"{data.name} is no file on this machine")
            return data
        case str() if _is_well_formed(data):
            return data.encode()
        case bytes():
            return data
        case bytearray() | memoryview():
            return bytes(data)
    raise InvalidArgumentError("a file's content is bytes, text without lone surrogates, or the Path of a file")


def checked_moment(name: object) -> str | None:
    """Return the name or the id of a checkpoint. None stands for a checkpoint without a name, or for the latest one."""
    if name is None or (isinstance(name, str) and 0 < len(name) <= _LONGEST_MOMENT and _is_well_formed(name)):
        return name
    raise InvalidArgumentError(f"a checkpoint's name is text of 1 to {_LONGEST_MOMENT} characters")


def checked_count(count: object) -> int:
    """Return the number of branches to make: 1 to 64."""
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count <= _MOST_BRANCHES:
        raise InvalidArgumentError(f"branches are made 1 to {_MOST_BRANCHES} at a time")
    return count


def checked_requirements(requirements: Sequence[str]) -> None:
    """Raise InvalidArgumentError unless each requirement is one line of a requirements.txt.

    A line that pip would read as an option is refused.
    """
    if not requirements:
        raise InvalidArgumentError("no package is named: install('humanize'), for example")
    for requirement in requirements:
        if not isinstance(requirement, str) or not requirement.strip() or requirement.lstrip().startswith("-") or "\n" in requirement:
            raise InvalidArgumentError("a package is named as in a line of requirements.txt; options are not taken")


def checked_names(names: Sequence[str]) -> Sequence[str]:
    """Return the names of packages. Raise InvalidArgumentError if there are none, or if one has a version."""
    if not names or not all(isinstance(name, str) and _PACKAGE.fullmatch(name) for name in names):
        raise InvalidArgumentError("a package to uninstall is given by its name: uninstall('humanize'), for example")
    return names


def checked_install_timeout(timeout: object) -> None:
    """Raise InvalidArgumentError unless the timeout is a number of seconds up to 3600. None is refused: an installation needs a limit."""
    if (checked_timeout(timeout) or math.inf) > MAX_INSTALL_SECONDS:
        raise InvalidArgumentError(f"installing is given up to {MAX_INSTALL_SECONDS:g} seconds")


def refusal(code: object) -> CodeError | None:
    """Return the error of something that cannot be a cell, or None.

    A model may have sent it, so the error becomes a result and is not raised.
    """
    if not isinstance(code, str):
        return CodeError("TypeError", f"code is a {type(code).__name__}, not a string: send the Python source text")
    if not _is_well_formed(code):
        return CodeError("ValueError", "the code is not well-formed Unicode: it holds a lone surrogate")
    return None


def _is_well_formed(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
