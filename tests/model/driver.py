"""Drives real sessions through programs, and holds what they say against the worlds that are possible."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

from aca_sessions import CodeExecutionResult, Policy, Session, SessionPool, open_server
from aca_sessions import Checkpoint as Taken
from aca_sessions.client.http import SessionsHttpClient
from aca_sessions.client.interpreter import CodeInterpreter
from aca_sessions.errors import ACASessionsError, SnapshotError
from aca_sessions.hosting import Hosting
from aca_sessions.sandbox.policy import Limits, Together

from .programs import Ask, Checkpoint, Late, NewHandle, Program, Reset, Rollback, Run, Step, Terminate, Undo
from .reference import CHECKPOINTS, Claim, Ran, Shown, World, run

# Another share of processes than other pools have makes it a fork server of its own.
POLICY = Policy(preload=(), spares=0, together=Together(processes=29_000), limits=Limits(checkpoints=CHECKPOINTS))
_CELL = "x = globals().get('x', ()) + ({n},); open('f', 'a').write('{n} '); print(x, open('f').read(), flush=True)\n{ending}"
_OS = "__import__('os')"
_ENDINGS = {
    "ok": "None",
    "fail": "1/0",
    "exit": f"{_OS}._exit(1)",
    "sigkill": f"{_OS}.kill({_OS}.getpid(), 9)",
    "killall": f"try: {_OS}.kill(-1, 9)\nexcept OSError: pass  # there are no others\n{_OS}._exit(1)",
    "late": f"__import__('threading').Timer(0.02, {_OS}._exit, [1]).start()",
}


class LieError(AssertionError):
    """The product said what was not so."""


@dataclass
class Place:
    """A session: its name, the worlds it may be in, and the checkpoints that were taken, by their ids."""

    name: str
    worlds: list[World]
    taken: dict[str, Taken] = field(default_factory=dict)


@dataclass
class Handle:
    """A handle and its name in the worlds."""

    name: str
    place: Place
    session: Session


class Machine:
    """A server, a client and a pool for many programs."""

    def __init__(self, app: object, interpreter: CodeInterpreter, pool: SessionPool) -> None:
        self.app = app
        self.interpreter = interpreter
        self.pool = pool

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator["Machine"]:
        async with open_server(policy=POLICY, hosting=Hosting(max_sessions=20, cooldown=None)) as app:
            client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://model")
            async with CodeInterpreter(SessionsHttpClient(client, patience=0.05)) as interpreter:
                async with SessionPool(interpreter, max_concurrent_sessions=20) as pool:
                    yield cls(app, interpreter, pool)

    async def play(self, program: Program) -> None:
        """Take the steps of a program. LieError says what was not so."""
        player = Player(self)
        try:
            await player.begin()
            for step in program.steps:
                await player.take(step)
                await player.check_checkpoints()
            for handle in player.handles:
                await player.take(Run(player.handles.index(handle)))
        finally:
            await player.end()

    def hosted(self, name: str) -> object | None:
        return self.app._sessions._sessions.get(name)  # type: ignore[attr-defined]

    def live(self, name: str) -> object | None:
        """The interpreter of a session, if it has one."""
        session = self.hosted(name)
        if session is None or not session._opening.done():  # type: ignore[attr-defined]
            return None
        return session._opening.result().running  # type: ignore[attr-defined]


class Player:
    """One program being played."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.handles: list[Handle] = []
        self.places: list[Place] = []
        self.number = 0
        self.names = iter(f"h{number}" for number in range(100))

    async def begin(self) -> None:
        self.places.append(Place(f"model-{uuid.uuid4().hex[:8]}", [World()]))
        for _ in range(2):
            await self.new_handle(self.places[0])

    async def end(self) -> None:
        for place in self.places:
            await self.machine.pool.terminate(place.name)
        for handle in self.handles:
            await self.machine.pool.release(handle.place.name)

    async def new_handle(self, place: Place) -> None:
        session = await self.machine.pool.get_or_create(place.name)
        handle = Handle(next(self.names), place, session)
        for world in place.worlds:
            world.new_handle(handle.name)
        self.handles.append(handle)

    async def take(self, step: Step) -> None:
        self.number += 1
        handle = self.handles[getattr(step, "handle", 0) % len(self.handles)]
        match step:
            case Run(_, ending, transactional):
                await self.run(handle, ending, transactional)
            case Late():
                await self.run(handle, "late", False)
                await dead(self.machine, handle.place.name)
            case Checkpoint(_, name):
                await self.checkpoint(handle, name)
            case Rollback(_, by, number):
                await self.roll_back(handle, by, number)
            case Undo():
                await self.undo(handle)
            case Reset():
                await handle.session.reset()
                self.change(handle.place, lambda world: (world.reset(), world.asked_by(handle.name)))
            case Terminate():
                await self.machine.pool.terminate(handle.place.name)
                self.change(handle.place, lambda world: (world.end("terminated"), world.told.update(client=None)))
            case Ask(_, what):
                await getattr(handle.session, what)()
                if what in ("variables", "health"):
                    self.change(handle.place, lambda world: setattr(world, "has_state", True))
            case NewHandle() if len(self.handles) < 4:
                await self.new_handle(handle.place)

    # --- steps ---

    async def run(self, handle: Handle, ending: str, transactional: bool) -> None:
        code = _CELL.format(n=self.number, ending=_ENDINGS[ending])
        result = await handle.session.run(code, transactional=transactional)

        def courses(world: World) -> Iterator[Ran]:
            if ending != "late":
                yield from run(world, self.number, ending, transactional=transactional)
                return
            yield from run(world, self.number, "exit", transactional=False)
            for ran in run(world, self.number, "ok", transactional=False):
                ran.world.die("exit")
                ran.world.fall_back("exit")
                yield ran

        self.delivered(handle, result, courses)

    async def checkpoint(self, handle: Handle, name: str | None) -> None:
        taken = await handle.session.checkpoint(name)
        handle.place.taken[taken.id] = taken
        self.change(handle.place, lambda world: world.checkpoint(taken.id, name))

    async def roll_back(self, handle: Handle, by: str, number: int) -> None:
        """By its object, a checkpoint that was there once may be asked for as well."""
        taken = [*handle.place.taken.values()]
        if by == "object":
            if not taken:
                return
            wanted = taken[number % len(taken)]
            await self.go_to(handle, wanted, wanted.id, by_id=True)
        else:
            name = ["1", "2", "3", "a"][number] if by == "name" else None
            await self.go_to(handle, name, name, by_id=False)

    async def go_to(self, handle: Handle, wanted: Taken | str | None, text: str | None, *, by_id: bool) -> None:
        reached = None
        try:
            reached = await handle.session.rollback(wanted)
        except SnapshotError:
            pass

        def went(world: World) -> bool:
            mark = world.mark_named(text, by_id=by_id)
            if (mark and mark.id) != (reached and reached.id):
                return False
            if mark is not None:
                world.roll_back(mark)
                world.asked_by(handle.name)
            return True

        self.filter(handle.place, went, f"rollback to {text} reached {reached and reached.id}")

    async def undo(self, handle: Handle) -> None:
        reached = None
        try:
            reached = await handle.session.undo()
        except SnapshotError:
            pass

        def went(world: World) -> bool:
            if (reached and reached.id) != (world.marks[-1].id if world.marks else None):
                return False
            if world.marks:
                world.roll_back(world.marks.pop())
                world.asked_by(handle.name)
            return True

        self.filter(handle.place, went, f"undo reached {reached and reached.id}")

    async def check_checkpoints(self) -> None:
        for place in self.places:
            handle = next(handle for handle in self.handles if handle.place is place)
            ids = [checkpoint.id for checkpoint in await handle.session.checkpoints()]
            self.filter(place, lambda world, ids=ids: [mark.id for mark in world.marks] == ids, f"checkpoints are {ids}")

    # --- worlds ---

    def change(self, place: Place, change: Callable[[World], object]) -> None:
        for world in place.worlds:
            change(world)

    def filter(self, place: Place, is_so: Callable[[World], bool], said: str) -> None:
        before = [world.copy() for world in place.worlds]
        place.worlds = [world for world in place.worlds if is_so(world)]
        if not place.worlds:
            raise LieError(f"{said}; possible were {before}")

    def delivered(self, handle: Handle, result: CodeExecutionResult, courses: Callable[[World], Iterable[Ran]]) -> None:
        """Hold a result that a handle got against the possible courses of its cell."""
        place, shown, claim = handle.place, shown_by(result), claim_of(result)
        possible: list[World] = []
        expected: list[object] = []
        for world in place.worlds:
            for ran in courses(world):
                claims = ran.world.claims(handle.name, ran.start, ran.end)
                expected += [(ran.shown, *claims)]
                if ran.shown == shown and any(agree(one, claim) for one in claims):
                    ran.world.delivered(handle.name, ran.end)
                    possible.append(ran.world)
        place.worlds = distinct(possible)
        if not possible:
            raise LieError(f"{handle.name} was told {claim} and {shown}; possible were {expected}, in {place.worlds}")


def agree(expected: Claim, claim: Claim) -> bool:
    """The reason counts if there is something to give a reason for."""
    same = (expected.variables, expected.files, expected.processes) == (claim.variables, claim.files, claim.processes)
    return same and (claim.reason in expected.reasons or claim.variables == claim.files == "kept")


def claim_of(result: CodeExecutionResult) -> Claim:
    state = result.state
    return Claim(state.variables, state.files, state.processes, state.reason)


def shown_by(result: CodeExecutionResult) -> Shown:
    names = tuple(sorted(one.name for one in result.variables)), tuple(sorted(one.path for one in result.files))
    return Shown(result.stdout, result.error.name if result.error else None, *names)


def distinct(worlds: list[World]) -> list[World]:
    found: list[World] = []
    for world in worlds:
        if world not in found:
            found.append(world)
    return found


async def until(check: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await check():
            await asyncio.sleep(0.002)


async def dead(machine: Machine, name: str) -> None:
    """Wait until the host knows that a session's interpreter has died, without asking the session to run anything."""

    async def is_dead() -> bool:
        live = machine.live(name)
        return live is None or not live.alive  # type: ignore[attr-defined]

    await until(is_dead)
