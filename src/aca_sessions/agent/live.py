"""An agent session while it is open: it runs cells and answers their calls, and does afterwards what must wait until no cell runs."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

from ..client.pool import SessionPool
from ..client.session import Session
from ..errors import InvalidArgumentError, NotSupportedError, SnapshotError
from ..models import CodeExecutionResult
from .capabilities import capabilities_of
from .deps import Pending
from .outside import Answer, Outside
from .running import Running, running_in

_TRIAL_SECONDS = 10.0
_NOT_IN_TRIALS = {"skills.create", "skills.delete", "artifacts.save", "artifacts.delete", "deps.add", "deps.remove", "deps.sync"}


class Live:
    """A leased session and the calls that its cells can make."""

    def __init__(self, pool: SessionPool, session: Session, *, running: Running, why_not: str) -> None:
        """Prepare the session. Until `answer_with`, no call is answered.

        Args:
            pool: The pool of the session.
            session: The session.
            running: How cells run in sessions of this endpoint.
            why_not: Why cells cannot call tools, or "" if they can.
        """
        self.session = session
        self.capabilities = frozenset[str]()
        self.why_no_tools = why_not
        self.packages = Pending()
        self._pool = pool
        self._outside = self._trial = Outside({})
        self._running = running
        self._own = running(session)
        self._cells = 0

    @classmethod
    async def of(cls, pool: SessionPool, session: Session) -> "Live":
        """Create it for a session that was leased from a pool, and find out what its endpoint supports."""
        running, why_not = await running_in(session)
        live = cls(pool, session, running=running, why_not=why_not)
        live.capabilities = await capabilities_of(session, host_tools=not why_not)
        return live

    def answer_with(self, table: Mapping[str, Answer]) -> None:
        """Allow cells to make these calls from now on. Examples of skills can only make those that change nothing in the storage."""
        self._outside = Outside(table)
        self._trial = Outside({name: answer for name, answer in table.items() if name not in _NOT_IN_TRIALS})

    async def run(self, code: str, timeout: float | None) -> CodeExecutionResult:
        """Run a cell and return its result. If it was the last one that ran, then install and remove the packages that cells asked for."""
        self._cells += 1
        try:
            result = await self._own.run(self._outside, code, timeout)
        finally:
            self._cells -= 1
        if self._cells or not self.packages:
            return result
        try:
            return await self._with_packages(result)
        except BaseException:
            self.session.take_back(result)  # the caller does not get it, so what it reported must be reported again
            raise

    async def attempt(self, name: str, source: str) -> None:
        """Run the examples of a skill. Raise InvalidArgumentError if one fails, and NotSupportedError if cells here can make no calls."""
        if self.why_no_tools:
            raise NotSupportedError(f"examples of skills are run where cells can call outside, and here they cannot: {self.why_no_tools}")
        async with self._elsewhere() as session:
            result = await self._running(session).run(self._trial, f"skills.try_examples({name!r}, {source!r})", _TRIAL_SECONDS)
        if result.error is not None:
            raise InvalidArgumentError(f"the skill was not kept, since its examples do not hold: {result.error}")

    async def _with_packages(self, result: CodeExecutionResult) -> CodeExecutionResult:
        note = await self.packages.carry_out(self.session)
        return replace(result, stderr=result.stderr + note) if note else result

    @asynccontextmanager
    async def _elsewhere(self) -> AsyncIterator[Session]:
        """Open another session for the block: a branch of this one, or a fresh one while a cell runs or if branches are not possible."""
        if not self._cells and "checkpoint" in self.capabilities:
            try:
                (branch,) = await self.session.branch(1)
            except SnapshotError:
                pass
            else:
                async with branch:
                    yield branch
                return
        async with self._pool.session() as fresh:
            yield fresh
