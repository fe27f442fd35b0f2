"""Read the records of a session's state, and the manifest in front of those of an exported session. Payloads stay opaque.

An exported session is a sealed stream (see `sealed_stream`) of records: the manifest, the notebook, then the state as the session wrote it.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Self

from ..errors import ACASessionsError, SaveCorruptedError, SaveTooLargeError, SnapshotError
from ..guest_text import shown_caption, shown_name
from ..sandbox.wire import RECORD
from .chunks import Data, closing
from .sealed_stream import damaged, unseal

_CUT_OFF = "the session ended before its state was complete: it may have reached a limit. Try again"
MOST_NAMED = 1000  # names of what is missing, in an exported session
MOST_NOTEBOOK = 64 << 20  # bytes
_FORMAT = 1
_LARGE = 1 << 20  # bytes of a payload that has parts of its own, because it often stays the same from one save to the next
_PART = 8 << 20  # a change in a large payload costs the parts that it is in. Each part costs a file and two times fsync
_MAX_HEADER = 1 << 20
_AT_ONCE = 100  # records
_MOST_NAMED = 10_000
_LONGEST_NAME, _LONGEST_WHY = 1000, 300
_MOST_PACKAGES, _LONGEST_PACKAGE = 1000, 300
_DAMAGED = "the session wrote a state that cannot be read: its code may have interfered. Reset the session, and save it again"


@dataclass(slots=True)
class SavedVariables:
    """What a state has, as the session reported it.

    Attributes:
        python: The version of Python that wrote it.
        saved: How many variables it has.
        lost: The names of variables and settings that could not be saved, with the reasons.
    """

    python: str = ""
    saved: int = 0
    lost: dict[str, str] = field(default_factory=dict)


class StateReader:
    """Reads a state. `parts` yields it in parts, which belong together in their order; `variables` tells what it has.

    Attributes:
        variables: What the state has, as far as it was read.
        max_bytes: How many bytes the state may have.
        announced: How many of these its records have so far, by their headers.
        is_inside: Whether more of a payload follows after the latest part.
    """

    def __init__(self, chunks: AsyncIterator[Data] | None = None) -> None:
        """Read from `chunks`, which the caller closes. A subclass can read from something else."""
        self._chunks = chunks
        self._buffer = bytearray()
        self.variables = SavedVariables()
        self.max_bytes = 1 << 62
        self.is_inside = False
        self.announced = self._count = 0

    async def parts(self) -> AsyncIterator[Data]:
        """Yield the state in parts of at most about 8 MB.

        A large payload has parts of its own. Raise SnapshotError if the state is malformed or ends early.
        """
        is_end = False
        while not is_end:
            is_end, size, small = False, 0, bytearray()
            while not is_end and size < _LARGE:
                header, size = await self._read_header()
                is_end = self._note(header)
                small += RECORD.pack(len(header), size) + header
                if size < _LARGE:
                    small += await self._read(size)
                if len(small) >= _LARGE:
                    break
            if is_end:
                await self._finish()
            left = size if size >= _LARGE else 0
            self.is_inside = left > 0
            yield bytes(small)
            while left:
                part = await self._read_part(min(left, _PART))
                left -= len(part)
                self.is_inside = left > 0
                yield part

    async def _finish(self) -> None:
        """Do nothing: a session may keep its end of the pipe open."""

    async def _read_header(self) -> tuple[bytes, int]:
        header_size, size = RECORD.unpack(await self._read(RECORD.size))
        if header_size > _MAX_HEADER:
            raise self._damaged()
        self._count += 1
        if self._count % _AT_ONCE == 0:
            await asyncio.sleep(0)  # a million small records must not hold up the other sessions
        self.announced += RECORD.size + header_size + size
        if self.announced > self.max_bytes:
            raise too_large(self.max_bytes)
        return await self._read(header_size), size

    def _note(self, header: bytes) -> bool:
        """Read the header of a record. Return whether it is the last one."""
        try:
            match json.loads(header):
                case {"kind": "start", "python": str(python)}:
                    self.variables.python = python[:_LONGEST_NAME]
                case {"kind": "lost", "names": [str(name)], "why": str(why)}:
                    if len(self.variables.lost) < _MOST_NAMED:
                        self.variables.lost[name[:_LONGEST_NAME]] = why[:_LONGEST_WHY]
                case {"kind": "group" | "buffer" | "settings" | "file"}:
                    pass
                case {"kind": "failed", "why": str(why)}:
                    raise SnapshotError(f"the session cannot be saved: {shown_caption(why)}")
                case {"kind": "end", "saved": int(saved)}:
                    self.variables.saved = saved
                    return True
                case _:
                    raise self._damaged()
        except (ValueError, RecursionError):
            raise self._damaged() from None  # unchained: the cause would hold data of the guest
        return False

    async def _read_part(self, size: int) -> Data:
        """Return a part of a large payload, which is not longer than `size` and not empty."""
        return await self._read(size)

    async def _receive(self) -> Data:
        """Return what comes next, or nothing at the end."""
        return await anext(self._chunks, b"") if self._chunks is not None else b""

    async def _read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            data = await self._receive()
            if not data:
                raise self._cut_off()
            self._buffer += data
        taken = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return taken

    def _damaged(self) -> ACASessionsError:
        return SnapshotError(_DAMAGED)

    def _cut_off(self) -> ACASessionsError:
        return SnapshotError(_CUT_OFF)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an exported session says of itself. It has no name: the name of a session gives access to it.

    Attributes:
        created: When the state was written.
        packages: The requirements of the packages that were installed in the session.
        cells: How many cells were sent to the session.
        gone: Whether the session had lost its `variables`, its `files` or both before, and its caller did not know yet.
        missing: The names of what an earlier restore lacked, if its caller did not know yet.
    """

    created: datetime
    packages: Sequence[str] = ()
    cells: int = 0
    gone: Sequence[str] = ()
    missing: Sequence[str] = ()

    def encode(self) -> bytes:
        """Return the record of this manifest."""
        return encode_record({**asdict(self), "kind": "manifest", "format": _FORMAT, "created": self.created.isoformat()})


class ExportReader(StateReader):
    """Reads the content of an exported session, which may be a stranger's. Raises SaveCorruptedError if it is malformed or cut off.

    Use `async with`, which closes the stream.
    The last part is yielded only after the end of the stream, so that a state that is cut off is never complete for its reader.

    Attributes:
        size: How many bytes were read.
        is_whole: Whether the stream was read to its end.
    """

    def __init__(self, sealed: AsyncIterator[bytes], *, max_bytes: int) -> None:
        """Read a sealed stream of at most `max_bytes`."""
        self._content = unseal(self._limit(sealed))
        super().__init__(self._content)
        self.max_bytes = max_bytes
        self.size = 0
        self.is_whole = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._content.aclose()  # type: ignore[attr-defined]

    async def read_manifest(self) -> tuple[Manifest, bytes]:
        """Return the manifest and the notebook as JSON, which is empty if there is none. Call this once, before `parts`."""
        header, size = await self._read_header()
        try:
            fields = json.loads(header)
            if fields["kind"] != "manifest" or size:
                raise self._damaged()
            if fields["format"] != _FORMAT:
                found = f"{fields['format']!r:.20}"
                raise SaveCorruptedError(f"an exported session has format {found}, expected {_FORMAT}: update aca-sessions")
            created = datetime.fromisoformat(fields["created"])
            packages = [_text(one, _LONGEST_PACKAGE) for one in fields["packages"][:_MOST_PACKAGES]]
            missing = [_text(one, _LONGEST_NAME) for one in fields["missing"][:MOST_NAMED]]
            gone = [one for one in ("variables", "files") if one in fields["gone"]]
            cells = int(fields["cells"])
            created.astimezone()
            if created.tzinfo is None or not 0 <= cells < 1 << 53:
                raise self._damaged()
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError, AttributeError):
            raise self._damaged() from None
        header, size = await self._read_header()
        if header != _NOTEBOOK or size > MOST_NOTEBOOK:
            raise self._damaged()
        notebook = await self._read(size)
        return Manifest(created=created, packages=packages, cells=cells, gone=gone, missing=missing), notebook

    async def _finish(self) -> None:
        if self._buffer or await self._receive():
            raise damaged()
        self.is_whole = True

    async def _limit(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async with closing(chunks):
            async for chunk in chunks:
                self.size += len(chunk)
                if self.size > self.max_bytes:
                    raise too_large(self.max_bytes)
                yield chunk

    def _damaged(self) -> ACASessionsError:
        return damaged()

    _cut_off = _damaged


_NOTEBOOK = json.dumps({"kind": "notebook"}).encode()


def encode_record(header: dict[str, Any], payload: bytes = b"") -> bytes:
    """Return a record."""
    encoded = json.dumps(header).encode()
    return RECORD.pack(len(encoded), len(payload)) + encoded + payload


def encode_notebook(notebook: bytes) -> bytes:
    """Return the record of a notebook. Leave a notebook that is too large out."""
    return encode_record({"kind": "notebook"}, notebook if len(notebook) <= MOST_NOTEBOOK else b"")


def describe_lost(manifest: Manifest, lost: Mapping[str, str], packages: Mapping[str, str]) -> dict[str, str]:
    """Return the names of what an imported or exported session lacks, with the reasons, safe to show.

    `lost` names variables, files and settings, `packages` those that cannot be installed.
    """
    named = {f"package {shown_name(name)}": shown_caption(why) for name, why in packages.items()}
    lost = dict.fromkeys(manifest.missing, "it was missing in the exported session") | {**lost}
    named |= {shown_name(name): shown_caption(why) for name, why in lost.items()}
    return dict([*named.items()][:MOST_NAMED])


def too_large(max_bytes: int) -> SaveTooLargeError:
    """Return the error for an exported session that has more than `max_bytes`."""
    return SaveTooLargeError(
        f"an exported session must have at most {max_bytes >> 20} MB, got more: delete variables or files, or raise "
        "ACASessions:Durable:MaxMegabytes"
    )


def _text(value: object, longest: int) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value[:longest]
