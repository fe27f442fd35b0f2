"""How the cells of a session run and how their calls are answered. It is chosen once, by what the endpoint supports."""

from collections.abc import Callable

from ..client.session import Session
from ..models import CodeExecutionResult
from .exchange import Exchange
from .outside import Outside
from .placed import place


class Followed:
    """A runner for endpoints with events: calls arrive as events of the execution."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def run(self, outside: Outside, code: str, timeout: float | None) -> CodeExecutionResult:
        """Run a cell and return its result. Cancelling the call interrupts the cell."""
        session = self._session
        execution = await session.start(code, timeout=timeout, on_call=lambda text: outside.answer(session, text))
        try:
            return await execution.wait()
        except BaseException:
            await session.cancel_quietly(execution)
            raise


class Alone:
    """A runner for endpoints where the calls of cells cannot be answered."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def run(self, outside: Outside, code: str, timeout: float | None) -> CodeExecutionResult:
        """Run a cell that can make no calls, and return its result."""
        del outside
        return await self._session.run(code, timeout=timeout)


Running = Callable[[Session], Followed | Exchange | Alone]


async def running_in(session: Session) -> tuple[Running, str]:
    """Return how cells run in sessions like this one. If their calls cannot be answered, also return why, else ""."""
    if await session.supports("events"):
        return Followed, ""
    lacking = await place(session)
    return (Alone, lacking) if lacking else (Exchange, "")
