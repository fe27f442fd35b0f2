"""Streams of bytes to sessions and to hosts, with and without TLS, for the protocols of the proxy.

TLS is done in memory: asyncio's `start_tls` cannot use bytes that were read before, and calls a protocol for each record of 16 KB.
"""

import asyncio
import contextlib
import ssl

SIZE = 1 << 18  # bytes of one read: larger reads are not faster
_RECORD = 1 << 14  # the most that one record of TLS holds


class Stream:
    """A connection, of which some bytes may have been read already. One task reads, and any task writes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, early: bytes = b"") -> None:
        """Use a connection. `early` has the bytes that were already read from it."""
        self._reader, self._writer = reader, writer
        self._held, self._taken = early, 0  # bytes that were read, and how many of them were returned
        self._unsent = bytearray()  # of `write_soon`
        writer.transport.set_write_buffer_limits(SIZE)

    @property
    def protocol(self) -> str | None:
        """Return the protocol that was agreed on with TLS, such as `h2`."""
        return None

    @property
    def transport(self) -> asyncio.WriteTransport:
        """Return the transport of the connection."""
        return self._writer.transport

    async def read(self) -> bytes:
        """Return the next bytes, or none at the end. If it is cancelled, nothing is lost."""
        held, taken = self._held, self._taken
        if taken < len(held):
            self._held, self._taken = b"", 0
            return held[taken:] if taken else held
        return await self._receive()

    async def readexactly(self, size: int) -> bytes:
        """Return this many bytes. Raise IncompleteReadError if fewer follow. If it is cancelled, nothing is lost."""
        while len(self._held) - self._taken < size:
            if not (data := await self._receive()):
                raise asyncio.IncompleteReadError(self._held[self._taken :], size)
            self._held, self._taken = self._held[self._taken :] + data, 0
        start, self._taken = self._taken, self._taken + size
        return self._held[start : self._taken]

    def write(self, data: bytes) -> None:
        """Send bytes as soon as the other side takes them."""
        if self._unsent:
            data = bytes(self._unsent + data)
            self._unsent.clear()
        if data:
            self._write(data)

    def write_soon(self, data: bytes) -> None:
        """Send a few bytes with the next write, or in the next turn of the loop. The parts of a message often follow at once."""
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self.write, b"")
        self._unsent += data
        if len(self._unsent) >= _RECORD:
            self.write(b"")

    async def drain(self) -> None:
        """Wait while the other side is behind."""
        await self._writer.drain()

    async def send(self, data: bytes) -> None:
        """Send bytes. Wait while the other side is behind."""
        self.write(data)
        await self.drain()

    def write_eof(self) -> None:
        """Signal to the other side that nothing more will be sent."""
        self.write(b"")
        if not self._writer.is_closing() and self._writer.can_write_eof():
            self._writer.write_eof()

    def is_closing(self) -> bool:
        """Return whether the connection is closed, or will be."""
        return self._writer.is_closing()

    def abort(self) -> None:
        """Close the connection at once."""
        self._writer.transport.abort()

    def _write(self, data: bytes) -> None:
        self._writer.write(data)

    async def _receive(self) -> bytes:
        return await self._reader.read(SIZE)


class TlsStream(Stream):
    """A connection with TLS. `handshake` must be called first."""

    def __init__(
        self,
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        context: ssl.SSLContext,
        *,
        early: bytes = b"",
        host: str | None = None,
    ) -> None:
        """Use a connection. With `host`, this side is the client, and the certificate must be the one of that host."""
        super().__init__(*connection)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._incoming.write(early)
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=host is None, server_hostname=host)
        self._has_ended = False

    @property
    def protocol(self) -> str | None:
        """Return the protocol that was agreed on with TLS, such as `h2`."""
        return self._tls.selected_alpn_protocol()

    async def handshake(self) -> None:
        """Do the TLS handshake. Raise ssl.SSLError if it fails, for example because the certificate is not accepted."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._write_pending()
                await self._writer.drain()
                await self._receive_encrypted()
            except ssl.SSLError:
                self._write_pending()  # the alert with the reason
                raise
            else:
                self._write_pending()
                return

    def write_eof(self) -> None:
        """Signal to the other side that nothing more will be sent."""
        self.write(b"")
        if not self._writer.is_closing():
            with contextlib.suppress(ssl.SSLError):  # it would wait for the reply
                self._tls.unwrap()
            self._write_pending()
        super().write_eof()

    def _write(self, data: bytes) -> None:
        self._tls.write(data)
        self._write_pending()

    async def _receive(self) -> bytes:
        while not (data := self._decrypt()) and not self._has_ended:
            self._write_pending()  # replies of TLS itself
            await self._receive_encrypted()
        return data

    def _decrypt(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        try:
            while size < SIZE:
                part = self._tls.read(_RECORD)
                if not part:
                    self._has_ended = True
                    break
                parts.append(part)
                size += len(part)
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):  # many programs close without the alert that ends a stream
            self._has_ended = True
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _receive_encrypted(self) -> None:
        if data := await self._reader.read(SIZE):
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def _write_pending(self) -> None:
        if self._outgoing.pending and not self._writer.is_closing():
            self._writer.write(self._outgoing.read())
