"""How cells of a session run with their calls answered: followed live, or met in executions of ours. It is chosen once, by endpoint."""

from collections.abc import Callable

from ..client.session import Session
from ..models import CodeExecutionResult
from .exchange import Exchange
from .outside import Outside
from .placed import place


class Followed:
    """Runs cells where their calls come as events."""

    def __init__(self, session: Session) -> None:
        """Starts nothing yet."""
        self._session = session

    async def run(self, outside: Outside, code: str, timeout: float | None) -> CodeExecutionResult:
        """What became of a cell; cancelling the call interrupts it."""
        session = self._session
        execution = await session.start(code, timeout=timeout, on_call=lambda text: outside.answer(session, text))
        try:
            return await execution.wait()
        except BaseException:
            await session.cancel_quietly(execution)
            raise


class Alone:
    """Runs cells where nobody can answer their calls."""

    def __init__(self, session: Session) -> None:
        """Starts nothing yet."""
        self._session = session

    async def run(self, outside: Outside, code: str, timeout: float | None) -> CodeExecutionResult:
        """What became of a cell that can call nothing."""
        del outside
        return await self._session.run(code, timeout=timeout)


Running = Callable[[Session], Followed | Exchange | Alone]


async def running_in(session: Session) -> tuple[Running, str]:
    """How cells run in sessions like this one; where their calls cannot be answered, why."""
    if await session.supports("events"):
        return Followed, ""
    lacking = await place(session)
    return (Alone, lacking) if lacking else (Exchange, "")
