"""One leased session: what a caller does with it."""

from dataclasses import replace
from pathlib import Path

from ..models import CodeExecutionResult, RemoteFile, State
from .interpreter import CodeInterpreter


class Session:
    """A live interpreter with state, named by its `session_id`."""

    def __init__(self, interpreter: CodeInterpreter, session_id: str, *, expired: bool = False) -> None:
        """A handle; the session itself begins with its first use. `expired` says that one of this name went before, untold."""
        self._interpreter = interpreter
        self.session_id = session_id
        self._expired = expired

    async def run(self, code: str, *, timeout: float | None = None, sanitize: bool = True) -> CodeExecutionResult:
        """What became of a cell. Cancelling the call interrupts the cell and keeps the variables."""
        result = await self._interpreter.execute(self.session_id, code, timeout=timeout, sanitize=sanitize)
        if self._expired and result.state.kind == "kept":
            result = replace(result, state=State("lost", "expired"))
        self._expired = False
        return result

    async def upload_file(self, name: str, data: bytes | str | Path) -> RemoteFile:
        """Writes a file into /mnt/data. A Path is sent without being read whole."""
        return await self._interpreter.upload_file(self.session_id, name, data)

    async def download_file(self, name: str) -> bytes:
        """A file's content."""
        return await self._interpreter.download_file(self.session_id, name)

    async def save_file(self, name: str, path: Path) -> int:
        """Writes a file's content to a path on this machine and answers its size."""
        return await self._interpreter.save_file(self.session_id, name, path)

    async def list_files(self, folder: str = "") -> list[RemoteFile]:
        """The files in /mnt/data, or in a folder of it."""
        return await self._interpreter.list_files(self.session_id, folder)

    async def delete_file(self, name: str) -> None:
        """Deletes a file."""
        await self._interpreter.delete_file(self.session_id, name)

    async def supports(self, extension: str) -> bool:
        """Whether this endpoint has what goes beyond Azure's API, by name."""
        return await self._interpreter.supports(extension)

    def __repr__(self) -> str:
        return "<Session>"  # its name is a secret: whoever has it owns the session
