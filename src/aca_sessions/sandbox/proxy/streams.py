"""Streams of bytes to sessions and to hosts, with and without TLS, for the protocols of the proxy.

TLS is done in memory: asyncio's own `start_tls` cannot be given bytes that were read before, and calls a protocol for each record of 16 KB.
"""

import asyncio
import ssl

SIZE = 1 << 18  # bytes of one read: larger ones are no faster
_RECORD = 1 << 14  # the most that one record of TLS holds


class Stream:
    """A connection, of which some bytes may have been read already. One task reads, and any task writes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, early: bytes = b"") -> None:
        """Use a connection. `early` is what was read from it already."""
        self._reader, self._writer, self._early = reader, writer, early
        writer.transport.set_write_buffer_limits(SIZE)

    @property
    def protocol(self) -> str | None:
        """Return the protocol that was agreed on with TLS, such as `h2`."""
        return None

    async def read(self) -> bytes:
        """Return the next bytes, or none at the end. It may be cancelled: nothing is lost."""
        if self._early:
            early, self._early = self._early, b""
            return early
        return await self._reader.read(SIZE)

    async def write(self, data: bytes) -> None:
        """Send bytes. Wait while the other side is behind."""
        self._writer.write(data)
        await self._writer.drain()

    def write_eof(self) -> None:
        """Tell the other side that nothing more will be sent."""
        if not self._writer.is_closing() and self._writer.can_write_eof():
            self._writer.write_eof()

    def abort(self) -> None:
        """Close the connection at once."""
        self._writer.transport.abort()


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
        super().__init__(*connection, early)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=host is None, server_hostname=host)
        self._ended = False

    @property
    def protocol(self) -> str | None:
        """Return the protocol that was agreed on with TLS, such as `h2`."""
        return self._tls.selected_alpn_protocol()

    async def handshake(self) -> None:
        """Agree on keys with the other side. Raise ssl.SSLError if that fails, or the certificate is not accepted."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._receive()
            except ssl.SSLError:
                self._write_pending()  # the alert that says why
                raise
            else:
                return await self._flush()

    async def read(self) -> bytes:
        """Return the next bytes, or none at the end. It may be cancelled: nothing is lost."""
        while True:
            if data := self._decrypt():
                return data
            if self._ended:
                return b""
            self._write_pending()  # replies of the protocol itself, such as new keys
            await self._receive()

    async def write(self, data: bytes) -> None:
        """Send bytes. Wait while the other side is behind."""
        for start in range(0, len(data), SIZE):
            self._tls.write(data if len(data) <= SIZE else data[start : start + SIZE])
            await self._flush()

    def write_eof(self) -> None:
        """Tell the other side that nothing more will be sent."""
        if not self._writer.is_closing():
            try:
                self._tls.unwrap()
            except ssl.SSLError:  # it wants to read the reply
                pass
            self._write_pending()
        super().write_eof()

    def _decrypt(self) -> bytes:
        parts: list[bytes] = []
        size = 0
        try:
            while size < SIZE:
                part = self._tls.read(_RECORD)
                if not part:
                    self._ended = True
                    break
                parts.append(part)
                size += len(part)
        except ssl.SSLWantReadError:
            pass
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):  # many servers close without the alert that ends a stream
            self._ended = True
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _receive(self) -> None:
        if data := await super().read():
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _flush(self) -> None:
        self._write_pending()
        await self._writer.drain()

    def _write_pending(self) -> None:
        if self._outgoing.pending:
            self._writer.write(self._outgoing.read())
