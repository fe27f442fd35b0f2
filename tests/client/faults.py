"""A proxy on loopback that fails as networks do."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aca_sessions.contract.records import UNBEGUN

Fault = str | bytes

ANSWERS = {
    "401": b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    "429": b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 0.05\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    "429 for long": b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 3600\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    "500": b'HTTP/1.1 500 Error\r\ncontent-length: 37\r\nconnection: close\r\n\r\n{"error":{"code":"X","message":"bad"}}',
    "503": b"HTTP/1.1 503 Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    **{
        code: f"HTTP/1.1 503 Unavailable\r\nx-ms-error-code: {code}\r\nretry-after: 0.05\r\ncontent-length: 0\r\n\r\n".encode()
        for code in UNBEGUN
    },
    "html": b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 13\r\nconnection: close\r\n\r\n<h1>Hello</h1"[:-1] + b"1",
}


class FaultyProxy:
    """Forward requests. A request whose first line contains `target` meets the next fault first."""

    def __init__(self, port: int, target: str, faults: list[str]) -> None:
        self._port = port
        self._target = target
        self._faults = deque(faults)
        self.seen: list[str] = []

    @asynccontextmanager
    async def listening(self, port: int = 0) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await _request(reader)
            line = request.split(b"\r\n", 1)[0].decode()
            self.seen.append(line)
            fault = self._faults.popleft() if self._target in line and self._faults else "pass"
            await self._meet(fault, request, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _meet(self, fault: str, request: bytes, writer: asyncio.StreamWriter) -> None:
        if fault == "drop before":
            return
        if fault in ANSWERS:
            writer.write(ANSWERS[fault])
            await writer.drain()
            return
        answer = await self._forward(request)
        match fault:
            case "drop after":
                return
            case "half":
                writer.write(answer[: len(answer) // 2])
            case "slow":
                for start in range(0, len(answer), 100):
                    writer.write(answer[start : start + 100])
                    await writer.drain()
                    await asyncio.sleep(0.01)
            case "delay":
                await asyncio.sleep(0.3)
                writer.write(answer)
            case _:
                writer.write(answer)
        await writer.drain()

    async def _forward(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        head, _, body = request.partition(b"\r\n\r\n")
        lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
        writer.write(b"\r\n".join([*lines, b"connection: close"]) + b"\r\n\r\n" + body)
        answer = await reader.read(-1)
        writer.close()
        return answer


async def _request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    return head + (await reader.readexactly(int(lengths[0])) if lengths else b"")
