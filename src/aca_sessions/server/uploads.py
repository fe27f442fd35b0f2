"""Bodies of requests within a limit, and files from forms, whatever content type their clients declare."""

import errno
import logging
import re
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from starlette.datastructures import FormData, Headers, UploadFile
from starlette.requests import Request
from starlette.types import Message

from ..contract.records import ProblemError

_logger = logging.getLogger("aca_sessions")
_FORM_MARGIN = 1 << 16
_BOUNDARY = re.compile(rb"--([^\r\n]{1,200})\r\n")
_FIRST_LINE = 204  # bytes: the longest match of _BOUNDARY


def limited(request: Request, most: int, told: int) -> Request:
    """Return the request with a limit on its body. Raise ProblemError (413) when more bytes come, or more are announced.

    The announced length is not enough: a client can send more.

    Args:
        request: The request.
        most: The limit in bytes.
        told: The limit that the message names.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most:
        raise _too_large(told)
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > most:
            raise _too_large(told)
        return message

    return Request(request.scope, receive)


@asynccontextmanager
async def uploaded(request: Request, most: int) -> AsyncIterator[tuple[str, Iterator[bytes]]]:
    """Parse a form for the block. Yield the name of its file and the content in chunks. A large file is on disk, not in memory.

    Raise ProblemError if the form has no file (400) or the file is larger than `most` bytes (413).
    """
    labelled = await _labelled(limited(request, most + _FORM_MARGIN, most))
    async with _kept_on_disk(labelled) as form:
        upload = form.get("file")
        if not isinstance(upload, UploadFile):
            raise ProblemError(400, "SessionRequestValidationFailed", "the form has no part 'file' with a file name")
        if (upload.size or 0) > most:
            raise _too_large(most)
        yield (upload.filename or "").removeprefix("/mnt/data/"), iter(lambda: upload.file.read(1 << 20), b"")


@asynccontextmanager
async def _kept_on_disk(request: Request) -> AsyncIterator[FormData]:
    """Parse a form and yield it. A large file is in the folder of this host for temporary files, which is unrelated to a session's disk."""
    try:
        form = await request.form(max_files=1, max_fields=8)
    except OSError as error:
        _logger.error("an upload could not be kept in this host's folder for temporary files (TMPDIR): %s", error.strerror)
        raise _host_problem(error) from None
    try:
        yield form
    finally:
        await form.close()


def _host_problem(error: OSError) -> ProblemError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ProblemError(
            507, "HostStorageFull", "the disk of the server's host is full, not the session's: its operator must free space"
        )
    return ProblemError(500, "HostStorageUnavailable", "the server's host has no folder for temporary files: its operator must set TMPDIR")


async def _labelled(request: Request) -> Request:
    """Return the request with the content type of a form, if its body begins like one.

    Semantic Kernel's tool labels its forms as JSON once it has run a cell.
    """
    if request.headers.get("content-type", "").startswith("multipart/form-data;"):
        return request
    messages, start, more = deque[Message](), b"", True
    while more and b"\n" not in start and len(start) < _FIRST_LINE:
        messages.append(await request.receive())
        start += messages[-1].get("body", b"")
        more = messages[-1].get("more_body", False)
    boundary = _BOUNDARY.match(start)
    headers = [(name, value) for name, value in Headers(scope=request.scope).raw if name != b"content-type"]
    if boundary:
        headers.append((b"content-type", b"multipart/form-data; boundary=" + boundary[1]))

    async def receive() -> Message:
        return messages.popleft() if messages else await request.receive()

    return Request({**request.scope, "headers": headers}, receive)


def _too_large(most: int) -> ProblemError:
    return ProblemError(413, "RequestTooLarge", f"this may have at most {most} bytes")
