"""Files of this machine, which are replaced whole or not at all."""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` when the block succeeds. Otherwise `path` stays as it was, and the temporary file is removed.

    The new file has the permissions of the one that it replaces, or those of any new file. A device or a pipe is written to directly.
    """
    target = Path(os.path.realpath(path))  # a link stays a link: the file that it names is replaced
    earlier = _status(target)
    if earlier is not None and not stat.S_ISREG(earlier.st_mode):
        with target.open("wb") as file:
            yield file
        return
    # In the same folder: rename(2) replaces a file atomically only within one file system.
    temporary = target.with_name(f".{secrets.token_hex(8)}.part")
    descriptor = _create(temporary, path, 0o666 if earlier is None else 0o600)
    try:
        with open(descriptor, "wb") as file:
            yield file
            if earlier is not None:
                _give_rights(descriptor, earlier)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise


def _create(temporary: Path, path: Path, mode: int) -> int:
    try:
        return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # the caller does not know the temporary name


def _give_rights(descriptor: int, earlier: os.stat_result) -> None:
    if not hasattr(os, "fchown"):  # Windows
        return
    with contextlib.suppress(PermissionError):  # only root may change the owner of a file, chown(2)
        os.fchown(descriptor, earlier.st_uid, earlier.st_gid)
    os.fchmod(descriptor, earlier.st_mode & 0o777)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None
