"""Play programs: drive real sessions, and compare what their results report with the worlds that are possible."""

import asyncio
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

from aca_sessions import Checkpoint as Taken
from aca_sessions import CodeExecutionResult, Session
from aca_sessions.client.session import Branch as Branched
from aca_sessions.errors import ACASessionsError, NotFoundError, ServiceUnavailableError, SnapshotError

from . import reference
from .machine import FLOOD, MOST_HANDLES, MOST_PLACES, MOST_SESSIONS, MOST_WORLDS, LieError, Machine, until, until_true
from .programs import (
    Ask,
    Branch,
    Cancelled,
    CancelledCall,
    Checkpoint,
    Delete,
    Fill,
    Flood,
    KillForkServer,
    Late,
    Mid,
    NewHandle,
    Parallel,
    Program,
    Queued,
    Reset,
    Rollback,
    Run,
    Step,
    Terminate,
    Undo,
    Upload,
)
from .reference import ALL, ANYWHERE, CHECKPOINTS, Ran, Shown, World
from .result_checks import UNKNOWN, Act, after_any_order, claim_of, described, distinct, key, record_result, shown_by

# Files are closed by calls: Python ignores a KeyboardInterrupt that arrives while an open file is being deallocated.
_WRITE = "(lambda file: (file.write('{n} '), file.close()))(open('f', 'a'))"
_READ = "(lambda file: (file.read(), file.close())[0])(open('f'))"
_CELL = "x = globals().get('x', ()) + ({n},); " + _WRITE + "; print(x, " + _READ + ", flush=True)\n{ending}"
_OS = "__import__('os')"
_ENDINGS = {
    "ok": "None",
    "fail": "1/0",
    "exit": f"{_OS}._exit(1)",
    "sigkill": f"{_OS}.kill({_OS}.getpid(), 9)",
    "killall": f"try: {_OS}.kill(-1, 9)\nexcept OSError: pass  # there are no others\n{_OS}._exit(1)",
    "late": f"__import__('threading').Timer(0.02, {_OS}._exit, [1]).start()",
    "hang": "__import__('time').sleep(60)",
    "stubborn": "while True:\n    try: __import__('time').sleep(60)\n    except BaseException: pass",
}


async def play(program: Program, machine: Machine) -> None:
    """Take the steps of a program. Raise LieError if the product reports something untrue."""
    player, before = Player(machine), asyncio.all_tasks()
    try:
        await player.begin()
        for step in program.steps:
            await player.take(step)
            await player.check_checkpoints()
        for number in range(len(player.handles)):
            await player.take(Run(number))
    finally:
        machine.network.fault, machine.network.silent = None, False
        await player.end()
    await machine.check_nothing_left(before)


@dataclass
class Place:
    """A session: its name, the worlds it may be in, and its checkpoints by id."""

    name: str
    worlds: list[World]
    taken: dict[str, Taken] = field(default_factory=dict)


@dataclass
class Handle:
    """A handle and its name in the worlds."""

    name: str
    place: Place
    session: Session
    leased: bool = True


class Player:
    """One program that is being played."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.handles: list[Handle] = []
        self.places: list[Place] = []
        self.number = 0
        self.named = 0

    async def begin(self) -> None:
        self.places.append(Place(f"model-{uuid.uuid4().hex[:8]}", [World()]))
        for _ in range(2):
            await self.new_handle(self.places[0])

    async def end(self) -> None:
        for handle in [*self.handles]:
            if handle.leased:
                await self.machine.pool.release(handle.place.name)
        for place in self.places:
            await self.machine.pool.terminate(place.name)
            with suppress(NotFoundError):
                await self.machine.interpreter.delete_session(place.name)

    async def new_handle(self, place: Place) -> None:
        session = await self.machine.pool.get_or_create(place.name)
        handle = Handle(self.new_name(), place, session)
        self.change(place, lambda world: world.new_handle(handle.name))
        self.handles.append(handle)

    def new_name(self) -> str:
        self.named += 1
        return f"h{self.named - 1}"

    def handle(self, number: int) -> Handle:
        return self.handles[number % len(self.handles)]

    async def take(self, step: Step) -> None:
        self.number += 1
        handle = self.handle(getattr(step, "handle", 0))
        match step:
            case Run(_, ending, transactional, fault):
                await self.run(handle, ending, transactional, fault)
            case Late():
                result = await self.run(handle, "late", False, None)
                if result is not None and result.error is None:  # otherwise it has died in its cell, and the session continued
                    await self.wait_until_dead(handle.place)
            case Mid():
                await self.mid(handle, step)
            case Queued():
                await self.queued(handle, step)
            case Cancelled() | Parallel():
                await self.parallel(step.steps if isinstance(step, Parallel) else (step,))
                for one in [one for one in self.handles if len(one.place.worlds) > MOST_WORLDS]:
                    self.number += 1  # find out which of them it is: two such steps in a row have tens of thousands
                    await self.run(one, "ok", False, None)
            case Fill(_, text):
                for _ in range(CHECKPOINTS):
                    await self.checkpoint(handle, "former", False)
                await self.roll_back(handle, "name", text, False)
            case Flood():
                await self.flood(handle)
            case CancelledCall(_, what, turns):
                await self.cancelled_call(handle, what, turns)
            case Checkpoint(_, name, lost):
                await self.checkpoint(handle, name, lost)
            case Rollback(_, by, number, lost):
                await self.roll_back(handle, by, number, lost)
            case Undo():
                await self.undo(handle)
            case Reset(_, lost):
                await self.reset(handle, lost)
            case Terminate(_, how):
                await self.terminate(handle, how)
            case KillForkServer():
                await self.kill_fork_server()
            case Ask(_, what):
                await getattr(handle.session, what)()
                if what in ("variables", "health"):
                    self.change(handle.place, World.ask)
            case Upload():
                text = f"u{self.number} "
                await handle.session.upload_file("f", text)
                self.change(handle.place, lambda world: world.upload(text))
            case Delete():
                await self.delete(handle)
            case Branch() if len(self.places) < MOST_PLACES:
                await self.branch(handle)
            case NewHandle() if len(self.handles) < MOST_HANDLES:
                await self.new_handle(handle.place)

    # --- cells ---

    async def run(self, handle: Handle, ending: str, transactional: bool, fault: str | None) -> CodeExecutionResult | None:
        kin = [one for one in self.places if one is not handle.place and self.may_share_home(one, handle.place)]
        if ending == "killall" and any(len(one.worlds) > 1 for one in (handle.place, *kin)):
            return None
        self.machine.network.fault, self.machine.network.path = fault, "executions"
        result = await handle.session.run(cell(self.number, ending), transactional=transactional)
        self.machine.network.fault, self.machine.network.silent = None, False
        if fault in ("before", "silent"):
            await self.unanswered(handle, result, ending, transactional, ran=fault == "silent")
            return result

        def courses(world: World) -> Iterator[Ran]:
            if ending != "late":
                yield from reference.run(world, self.number, ending, transactional=transactional)
                return
            yield from reference.run(world, self.number, "exit")
            yield from reference.ended_late(world, self.number)

        self.check_result(handle, result, courses)
        if ending == "killall":
            await until(lambda: not self.machine.checkpoints(handle.place.name))
        for place in kin if ending == "killall" else ():
            await self.wait_until_dead(place)
            await until(lambda place=place: not self.machine.checkpoints(place.name))  # type: ignore[misc]
            self.change(place, lambda world: world.die("killed", marks_too=True) or world.fall_back("killed"))
        return result

    async def unanswered(self, handle: Handle, result: CodeExecutionResult, ending: str, transactional: bool, *, ran: bool) -> None:
        if (claim_of(result), result.error and result.error.name) != (UNKNOWN, "ConnectionError"):
            raise LieError(f"the answer was lost, and {handle.name} was told {claim_of(result)} and {result.error}")
        if ran:
            await self.wait_until_settled(handle.place)
            self.advance(handle.place, lambda world: reference.run(world, self.number, ending, transactional=transactional))

    async def mid(self, handle: Handle, step: Mid) -> None:
        code, transactional = cell(self.number, "stubborn" if step.stubborn else "hang"), step.transactional
        if step.action == "leave":
            stream = handle.session.stream(code, transactional=transactional)
            async with aclosing(stream):
                async for _ in stream:
                    break
            running = None
        else:
            timeout = 0.1 if step.action == "timeout" else None
            running = asyncio.ensure_future(handle.session.run(code, timeout=timeout, transactional=transactional))
        by = self.handle(step.by)
        by = by if by.place is handle.place else handle
        if step.action != "timeout":
            await self.wait_until_started(handle, self.number, running)
        match step.action:
            case "cancel":
                await cancelled(running)
            case "interrupt":
                await by.session.interrupt()
            case "reset":
                await by.session.reset()
            case "terminate":
                await self.machine.interpreter.delete_session(handle.place.name)
        if step.action in ("cancel", "leave"):
            await self.wait_until_settled(handle.place)
        self.ended_mid(handle, by, step, await running if running is not None and not running.cancelled() else None)

    def ended_mid(self, handle: Handle, by: Handle, step: Mid, result: CodeExecutionResult | None) -> None:
        def courses(world: World) -> Iterator[Ran]:
            transactional = step.transactional
            if step.action == "reset":
                yield from reference.reset_inside(world, self.number, transactional=transactional)
            elif step.action == "terminate":
                yield from reference.ended_inside(world, self.number, "terminated")
            else:
                error = "TimeoutError" if step.action == "timeout" else "KeyboardInterrupt"
                stages = ANYWHERE if step.action == "timeout" else (ALL,)
                yield from reference.cut_short(world, self.number, error, stages=stages, transactional=transactional)
                # A machine that is busy for longer than the grace period kills a cell that would have stopped.
                error = "TimeoutError" if step.action == "timeout" else "InterpreterDied"
                yield from reference.cut_short(world, self.number, error, stages=stages, transactional=transactional, killed=True)

        if result is None:
            self.advance(handle.place, courses)
        else:
            self.check_result(handle, result, courses)
        if step.action == "terminate":
            self.change(handle.place, lambda world: world.told.update(client=None))
        if step.action == "reset":  # its position is that of the last reset
            self.change(handle.place, lambda world: world.asked_by(by.name, world.last_reset))

    async def queued(self, handle: Handle, step: Queued) -> None:
        """Let another cell wait for the first one, and cancel it. It must not start."""
        first, second = self.number, self.number + 1
        self.number = second
        if step.in_branch:
            await self.branch(handle)
            other = self.handles[-1]
        else:
            other = self.handle(step.other)
            other = other if other.place is handle.place else handle
        running = asyncio.ensure_future(handle.session.run(cell(first, "hang")))
        await self.wait_until_started(handle, first, running)
        execution = None
        if step.how == "call":
            waiting = asyncio.ensure_future(other.session.run(cell(second, "ok"), transactional=step.transactional))
            await until(lambda: self.machine.unfinished(other.place.name) == 1 + (other.place is handle.place))
            await cancelled(waiting)
        else:
            execution = await other.session.start(cell(second, "ok"), transactional=step.transactional)
            await execution.cancel()
        await handle.session.interrupt()
        self.check_result(handle, await running, lambda world: interrupted(world, first))
        await self.wait_until_settled(other.place)
        if execution is not None:
            self.check_result(other, await execution.wait(), lambda world: reference.not_run(world, "KeyboardInterrupt"))
        if step.in_branch:
            self.number += 1
            await self.run(other, "ok", False, None)
            await self.close(other)

    async def flood(self, handle: Handle) -> None:
        await self.run(handle, "ok", False, None)
        self.number, self.machine.network.first = self.number + 1, None
        executions = [await handle.session.start(cell(self.number, "ok"))]
        executions += [await handle.session.start(f"{number}") for number in range(1, FLOOD)]
        await self.wait_until_settled(handle.place)
        await self.machine.network.send_first_again()
        await self.wait_until_settled(handle.place)
        self.check_result(handle, await executions[0].wait(), lambda world: reference.run(world, self.number, "ok"))
        results = [await execution.wait() for execution in executions[1:]]
        if (told := [(one.value, one.state.kind) for one in results]) != [(number, "kept") for number in range(1, FLOOD)]:
            raise LieError(f"results of a flood are {told}")
        self.number += 1
        await self.run(handle, "ok", False, None)  # now the first result is no longer kept
        await self.machine.network.send_first_again()
        await self.wait_until_settled(handle.place)

    # --- steps at the same time ---

    async def parallel(self, steps: tuple[Step, ...]) -> None:
        order: list[Act] = []
        handles, acts = {one.name: one for one in self.handles}, []
        for step in steps:
            self.number += 1
            acts.append(Act(self.handle(step.handle).name, step, self.number))  # type: ignore[union-attr]
        await asyncio.gather(*(self.act(act, handles[act.handle].session, order) for act in acts))
        for place in self.places:
            own = [act for act in order if handles[act.handle].place is place]
            if not own:
                continue
            await self.wait_until_settled(place)
            found = distinct(world for before in place.worlds for world in after_any_order(before, own))
            if not found:
                raise LieError("no order explains " + "\n".join(map(described, own)) + f"\npossible were {place.worlds}")
            place.worlds = found
            place.taken |= {key(act.taken): act.taken for act in own if act.taken is not None}  # a rollback's checkpoint is known already

    async def act(self, act: Act, session: Session, order: list[Act]) -> None:
        """Take a step. Append it to the order when its caller gets the outcome."""
        try:
            match act.step:
                case Run(_, ending, transactional, _):
                    act.result = await session.run(cell(act.number, ending), transactional=transactional)
                case Cancelled(_, turns, transactional):
                    running = asyncio.ensure_future(self.note(act, session, transactional, order))
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    running.cancel()
                    await asyncio.wait({running})
                case Checkpoint():
                    act.taken = await session.checkpoint()
                case Rollback():
                    act.taken = await session.rollback()
                case Reset():
                    await session.reset()
                case Ask(_, what):
                    await getattr(session, what)()
        except ACASessionsError as error:
            act.error = error
        if act not in order:
            order.append(act)

    async def note(self, act: Act, session: Session, transactional: bool, order: list[Act]) -> None:
        act.result = await session.run(cell(act.number, "ok"), transactional=transactional)
        order.append(act)

    # --- all else ---

    async def checkpoint(self, handle: Handle, name: str | None, lost: bool) -> None:
        if name == "former":
            name = next((one.id for one in reversed(handle.place.taken.values())), "1")
        self.lose("session/checkpoints", lost)
        with suppress(ServiceUnavailableError):
            taken = await handle.session.checkpoint(name)
        if lost:
            taken = (await handle.session.checkpoints())[-1]
        handle.place.taken[key(taken)] = taken
        self.change(handle.place, lambda world: world.checkpoint(key(taken), name))

    async def roll_back(self, handle: Handle, by: str, number: int, lost: bool) -> None:
        """Roll back to a checkpoint. `by` object, the checkpoint may also be a dropped one or another session's."""
        taken = [one for place in self.places for one in place.taken.values()]
        if by == "object" and not taken:
            return
        texts = [text for mark in handle.place.worlds[0].marks for text in (mark.name, mark.id.partition(" ")[0]) if text] or ["1"]
        wanted = taken[number % len(taken)] if by == "object" else texts[number % len(texts)] if by == "name" else None
        reached = None
        self.lose("session/rollback", lost)
        with suppress(SnapshotError, ServiceUnavailableError):
            reached = await handle.session.rollback(wanted)
        self.machine.network.fault = None

        def advance(world: World) -> bool:
            mark = world.mark_of(key(wanted) if isinstance(wanted, Taken) else wanted, by_id=isinstance(wanted, Taken))
            if not lost and (mark and mark.id) != (reached and key(reached)):
                return False
            if mark is not None:
                world.roll_back(mark)
            if mark is not None and not lost:
                world.asked_by(handle.name)
            return True

        self.filter(handle.place, advance, f"rollback to {wanted} reached {reached and reached.id}")

    async def undo(self, handle: Handle) -> None:
        reached = None
        with suppress(SnapshotError):
            reached = await handle.session.undo()

        def advance(world: World) -> bool:
            if (reached and key(reached)) != (world.marks[-1].id if world.marks else None):
                return False
            if world.marks:
                world.roll_back(world.marks.pop())
                world.asked_by(handle.name)
            return True

        self.filter(handle.place, advance, f"undo reached {reached and reached.id}")

    async def reset(self, handle: Handle, lost: bool) -> None:
        self.lose("session/reset", lost)
        with suppress(ServiceUnavailableError):
            await handle.session.reset()
        self.change(handle.place, lambda world: world.reset() or (None if lost else world.asked_by(handle.name)))

    async def terminate(self, handle: Handle, how: str) -> None:
        place, interpreter = handle.place, self.machine.interpreter
        if how == "evicted":
            others = [f"model-other-{number}" for number in range(MOST_SESSIONS)]
            for name in others:
                await interpreter.list_files(name)
            for name in others:
                await interpreter.delete_session(name)
            for one in self.places:
                self.change(one, lambda world: world.end("expired"))
        elif place is not self.places[0]:
            await self.close(handle)
        elif how == "expired":
            with suppress(NotFoundError):
                await interpreter.delete_session(place.name, expired=True)
            self.change(place, lambda world: world.end("expired"))
        else:
            await self.machine.pool.terminate(place.name)
            self.change(place, lambda world: world.end("terminated") or world.told.update(client=None))

    async def close(self, handle: Handle) -> None:
        """Close a branch, and forget all its handles."""
        place = handle.place
        await Branched.close(handle.session)  # type: ignore[arg-type]
        for one in [one for one in self.handles if one.place is place]:
            self.handles.remove(one)
            if one.leased:
                await self.machine.pool.release(place.name)
        await self.machine.pool.terminate(place.name)
        self.places.remove(place)

    async def kill_fork_server(self) -> None:
        server = self.machine.app._sessions._sandboxes._generations[-1].fork_server
        server.process.kill()
        await asyncio.to_thread(server.process.wait)
        for place in self.places:
            self.change(place, lambda world: world.end("crash"))

    async def delete(self, handle: Handle) -> None:
        there = True
        try:
            await handle.session.delete_file("f")
        except NotFoundError:
            there = False
        self.filter(handle.place, lambda world: (world.f is not None) == there, f"the file was there: {there}")
        self.change(handle.place, lambda world: setattr(world, "f", None))

    async def branch(self, handle: Handle) -> None:
        (session,) = await handle.session.branch()
        name = self.new_name()
        place = Place(session.session_id, [world.branch(handle.name, name) for world in handle.place.worlds])
        self.places.append(place)
        self.handles.append(Handle(name, place, session, leased=False))

    async def check_checkpoints(self) -> None:
        for place in self.places:
            handle = next(handle for handle in self.handles if handle.place is place)
            ids = [*map(key, await handle.session.checkpoints())]
            self.filter(place, lambda world, ids=ids: [mark.id for mark in world.marks] == ids, f"checkpoints are {ids}")

    async def cancelled_call(self, handle: Handle, what: str, turns: int) -> None:
        """Cancel a call. It may have taken effect all the same, and is then reported."""
        place, call = handle.place, asyncio.ensure_future(getattr(handle.session, what)())
        for _ in range(turns):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait({call})
        done = not call.cancelled() and call.exception() is None
        if what == "branch":
            for session in call.result() if done else ():
                await session.close()
            return
        await self.wait_until_settled(place)
        ids = [*map(key, await handle.session.checkpoints())]

        def courses(world: World) -> Iterator[Ran]:
            after, here = world.copy(), world.now
            match what:
                case "checkpoint":
                    for id in {*ids[-1:]} - {mark.id for mark in after.marks}:
                        after.checkpoint(id, None)
                case "rollback" if after.marks:
                    after.roll_back(after.marks[-1])
                case "reset":
                    after.reset()
            if done and after.now > here:
                after.asked_by(handle.name)
            yield from () if done else [Ran(world, here, here, Shown(""))]
            yield Ran(after, here, here, Shown(""))

        self.advance(place, courses)
        place.taken |= {key(one): one for one in await handle.session.checkpoints()}

    def lose(self, path: str, lost: bool) -> None:
        """Lose the answer to the next request to a path."""
        if lost:
            self.machine.network.fault, self.machine.network.path = "after", path

    # --- worlds ---

    def change(self, place: Place, change: Callable[[World], object]) -> None:
        for world in place.worlds:
            change(world)

    def filter(self, place: Place, is_so: Callable[[World], bool], said: str) -> None:
        before = [world.copy() for world in place.worlds]
        place.worlds = [world for world in place.worlds if is_so(world)]
        if not place.worlds:
            raise LieError(f"{said}; possible were {before}")

    def advance(self, place: Place, courses: Callable[[World], Iterable[Ran]]) -> None:
        """Continue with all possible courses of a cell whose result no caller got."""
        place.worlds = distinct(ran.world for world in place.worlds for ran in courses(world))

    def check_result(self, handle: Handle, result: CodeExecutionResult, courses: Callable[[World], Iterable[Ran]]) -> None:
        """Compare a result that a handle got with the possible courses of its cell."""
        shown, expected = shown_by(result), [ran for world in handle.place.worlds for ran in courses(world)]
        worlds = [ran.world for ran in expected if ran.showed(shown) and record_result(ran, handle.name, result)]
        if not worlds:  # worlds have recorded the result, so start again from those before
            expected = [ran for world in handle.place.worlds for ran in courses(world)]
            possible = "\n".join(f"{ran.shown} {ran.world.claims(handle.name, ran.start, ran.end)} in {ran.world}" for ran in expected)
            raise LieError(f"{handle.name} was told {claim_of(result)} and {shown}; possible were\n{possible}")
        handle.place.worlds = distinct(worlds)

    def may_share_home(self, one: Place, other: Place) -> bool:
        homes = [{world.home for world in place.worlds} for place in (one, other)]
        return bool(homes[0] & homes[1])

    # --- events of the host ---

    async def wait_until_started(self, handle: Handle, number: int, running: "asyncio.Future[CodeExecutionResult] | None") -> None:
        """Wait until the cell has written its number, or its call has ended."""

        async def wrote() -> bool:
            if running is not None and running.done():
                return True
            with suppress(NotFoundError):
                return f"{number} ".encode() in await handle.session.download_file("f")
            return False

        await until_true(wrote)

    async def wait_until_settled(self, place: Place) -> None:
        """Wait until no cell runs, and no request is still being carried out."""
        await until(lambda: self.machine.is_settled(place.name))

    async def wait_until_dead(self, place: Place) -> None:
        """Wait until the host knows that a session's interpreter has died, without asking the session to run anything."""

        def is_dead() -> bool:
            live = self.machine.live(place.name)
            return live is None or not live.alive

        await until(is_dead)


def cell(number: int, ending: str) -> str:
    return _CELL.format(n=number, ending=_ENDINGS[ending])


async def cancelled(running: "asyncio.Future[Any] | None") -> None:
    """Cancel a call that waits for its cell."""
    assert running is not None
    running.cancel()
    await asyncio.wait({running})
    if not running.cancelled():
        raise LieError("a call that was cancelled returned")


def interrupted(world: World, number: int) -> Iterator[Ran]:
    """Yield the courses of a cell that was interrupted, or killed since the machine was busy for longer than the grace period."""
    yield from reference.cut_short(world, number, "KeyboardInterrupt", stages=(ALL,))
    yield from reference.cut_short(world, number, "InterpreterDied", stages=(ALL,), killed=True)
