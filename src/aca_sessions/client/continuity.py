"""What became of a session between two cells of its user. Where the service does not say, a mark in the session does.

Azure ends a session after its cool-down and begins an empty one under the same identifier without a word. So the first cell of a session
there is preceded by one of ours, which leaves a mark, and sets up what our own server has from the start: /mnt/data as working directory
and import path.

Answers may name the life of the session that they come from. Where our own server names another one than before, the session was begun
anew: at another server behind a proxy, or by one that was started again. Elsewhere that is a reason to look for the mark.
"""

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from ..models import CodeExecutionResult, State

_REMEMBERED = 10_000
_PRELUDE = """__import__('os').chdir('/mnt/data')
'/mnt/data' in __import__('sys').path or __import__('sys').path.insert(0, '/mnt/data')
__import__('builtins').__dict__['_aca_sessions_mark'] = {mark!r}
None"""
_IS_MARKED = "__import__('builtins').__dict__.get('_aca_sessions_mark') == {mark!r}"

Run = Callable[[str, str], Awaitable[CodeExecutionResult]]


@dataclass(slots=True)
class _Life:
    """A session as this client knows it."""

    mark: str | None = None
    guid: str | None = None
    replaced: bool = False  # another guid than before came, which nobody looked into yet
    untold: State | None = None
    last_known: float = 0.0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Continuity:
    """Marks sessions, and looks for the mark after a pause or a doubtful end."""

    def __init__(self, run: Run, *, verify_after: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Runs its own cells by the given function; a session unused for so many seconds is looked at before it is used."""
        self._run = run
        self._verify_after = verify_after
        self._clock = clock
        self._lives: OrderedDict[str, _Life] = OrderedDict()

    async def before(self, session_id: str) -> State | None:
        """What became of the session since its last cell; None where nothing did, or where nothing was known of it."""
        life = self._life(session_id)
        async with life.turn:
            if life.mark is not None and not life.replaced and self._clock() - life.last_known < self._verify_after:
                return None
            life.replaced = False
            if life.mark is not None and await self._is_marked(session_id, life.mark):
                return None
            lost = State("lost", "expired") if life.mark is not None else None
            life.mark = str(uuid.uuid4())
            await self._run(session_id, _PRELUDE.format(mark=life.mark))
            return lost

    def after(self, session_id: str, result: CodeExecutionResult) -> None:
        """A cell that ended well proves its session; after any other end it is looked at before the next."""
        life = self._life(session_id)
        life.last_known = self._clock() if result.state.kind == "kept" else float("-inf")
        if result.state.kind == "lost":
            life.mark = None  # told already

    def seen(self, session_id: str, guid: str) -> None:
        """An answer of a session's named its life."""
        life = self._life(session_id)
        life.replaced = life.replaced or life.guid not in (None, guid)
        life.guid = guid

    def is_replaced(self, session_id: str) -> bool:
        """Whether answers came from another life than before, and nobody looked into it."""
        return self._life(session_id).replaced

    def tell_replaced(self, session_id: str, result: CodeExecutionResult) -> CodeExecutionResult:
        """The result, with the loss that another life is where guids can be relied on; once."""
        life = self._life(session_id)
        if not life.replaced or result.state.kind == "unknown":
            return result
        life.replaced = False
        return with_earlier_loss(result, State("lost", "expired"))

    def keep(self, session_id: str, state: State) -> None:
        """A loss that the user has not heard of is told with the next result of theirs."""
        if state.kind == "lost":
            self._life(session_id).untold = state

    def tell(self, session_id: str, result: CodeExecutionResult) -> CodeExecutionResult:
        """The result, with a loss that the user has not heard of."""
        life = self._lives.get(session_id)
        if life is None or life.untold is None or result.state.kind == "unknown":
            return result
        untold, life.untold = life.untold, None
        return with_earlier_loss(result, untold)

    def forget(self, session_id: str) -> None:
        """The session was ended on purpose: its end is no news."""
        self._lives.pop(session_id, None)

    async def _is_marked(self, session_id: str, mark: str) -> bool:
        return (await self._run(session_id, _IS_MARKED.format(mark=mark))).value in (True, "True")

    def _life(self, session_id: str) -> _Life:
        life = self._lives.setdefault(session_id, _Life())
        self._lives.move_to_end(session_id)
        while len(self._lives) > _REMEMBERED:
            self._lives.popitem(last=False)
        return life


def with_earlier_loss(result: CodeExecutionResult, loss: State | None) -> CodeExecutionResult:
    """The result, with a loss from before its cell, unless what the cell itself did to the variables says as much."""
    return replace(result, state=loss) if loss is not None and result.state.kind in ("kept", "rolled_back") else result
