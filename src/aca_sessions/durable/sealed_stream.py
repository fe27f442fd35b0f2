"""The format of an exported session: a stream whose reader gets no byte that was not verified, and notices a missing end.

A stream has a header and pieces. Each piece has a word of four bytes, which is its length and whether it is the last one, then up to 1 MB
of content, then the SHA-256 of the hash before it, the word and the content. So each hash depends on all before it. This detects damage and
mistakes. A program that writes such a file can write what it likes.
"""

import hashlib
from collections.abc import AsyncIterable, AsyncIterator

from ..errors import SaveCorruptedError
from .chunks import Data, closing, compute, split

PIECE = 1 << 20
_HEADER = b"ACAX\x01"
_LAST = 1 << 31
_WORD, _HASH = 4, 32
_DAMAGED = "this is not a whole exported session: it was changed or cut off. Export the session again"


def damaged() -> SaveCorruptedError:
    """Return the error for a stream that is not whole."""
    return SaveCorruptedError(_DAMAGED)


async def seal(chunks: AsyncIterable[Data]) -> AsyncIterator[bytes]:
    """Yield the sealed form of a stream."""
    yield _HEADER
    before, held = hashlib.sha256(_HEADER).digest(), b""
    is_first = True
    async with closing(split(chunks, PIECE)) as pieces:
        async for piece in pieces:
            if not is_first:
                word = len(held).to_bytes(_WORD, "big")
                before = await compute(_hash, held, before + word)
                yield word + held + before
            held, is_first = piece, False
    word = (len(held) | _LAST).to_bytes(_WORD, "big")
    yield word + held + await compute(_hash, held, before + word)


async def unseal(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Yield the content of a sealed stream. Raise SaveCorruptedError at the first piece that is damaged, or at the end if it is cut off."""
    waiting, before, is_ended = bytearray(), b"", False
    async with closing(chunks):
        async for chunk in chunks:
            waiting += chunk
            if not before and len(waiting) >= len(_HEADER):
                header = bytes(waiting[: len(_HEADER)])
                if header != _HEADER:
                    raise damaged()
                before = hashlib.sha256(header).digest()
                del waiting[: len(_HEADER)]
            while before and len(waiting) >= _WORD and not is_ended:
                word = bytes(waiting[:_WORD])
                number = int.from_bytes(word, "big")
                is_last, end = bool(number & _LAST), _WORD + (number & ~_LAST)
                if end > _WORD + PIECE or (end < _WORD + PIECE and not is_last):
                    raise damaged()
                if len(waiting) < end + _HASH:
                    break
                content, expected = bytes(memoryview(waiting)[_WORD:end]), bytes(memoryview(waiting)[end : end + _HASH])
                del waiting[: end + _HASH]
                before = await compute(_hash, content, before + word)
                if before != expected:
                    raise damaged()
                is_ended = is_last
                if content:
                    yield content
            if is_ended and waiting:
                raise damaged()
    if not is_ended:
        raise damaged()


def _hash(content: Data, before: bytes) -> bytes:
    digest = hashlib.sha256(before)
    digest.update(content)
    return digest.digest()
