"""Compare what results report with the worlds that are possible: one result after the other, or those of parallel steps."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from aca_sessions import Checkpoint as Taken
from aca_sessions import CodeExecutionResult

from . import reference
from .programs import Ask, Cancelled, Checkpoint, Reset, Rollback, Run, Step
from .reference import ANYWHERE, Claim, Ran, Shown, World

UNKNOWN = Claim("unknown", "unknown", "unknown", "no reply")
# Printed by IPython if it cannot make its traceback, for example of an interrupt in a lambda.
_IPYTHON_GIVES_UP = "Unexpected exception formatting exception. Falling back to standard exception\n"


def record_result(ran: Ran, handle: str, result: CodeExecutionResult) -> bool:
    """Record that a handle got a result, and return whether the result is true."""
    right = any(agree(one, claim_of(result)) for one in ran.world.claims(handle, ran.start, ran.end))
    ran.world.delivered(handle, ran.end)
    return right


def agree(expected: Claim, claim: Claim) -> bool:
    """Compare two claims. The reason counts only if there is something to give a reason for."""
    same = (expected.variables, expected.files, expected.processes) == (claim.variables, claim.files, claim.processes)
    return same and (claim.reason in expected.reasons or claim.variables == claim.files == "kept")


def claim_of(result: CodeExecutionResult) -> Claim:
    state = result.state
    return Claim(state.variables, state.files, state.processes, state.reason)


def shown_by(result: CodeExecutionResult) -> Shown:
    names = tuple(sorted(one.name for one in result.variables)), tuple(sorted(one.path for one in result.files))
    output = result.stdout.replace(_IPYTHON_GIVES_UP, "")
    return Shown(output, result.error.name if result.error else None, *names)


@dataclass
class Act:
    """One of several parallel steps, and its outcome."""

    handle: str
    step: Step
    number: int
    result: CodeExecutionResult | None = None
    taken: Taken | None = None
    error: BaseException | None = None


def after_any_order(world: World, acts: list[Act]) -> Iterator[World]:
    """Yield the worlds after all orders of the acts, and all courses of each, that agree with their outcomes."""
    for after, courses in _orders(world, acts):
        told = after.copy()
        if all(_record_outcome(told, act, courses[act.number]) for act in acts):
            yield told


_Courses = dict[int, Ran]
_NOTHING = Shown("")


def _orders(world: World, acts: list[Act]) -> Iterator[tuple[World, _Courses]]:
    """Yield the worlds at the end of each order, and the course of each act. States that two orders share are followed once."""
    seen: set[object] = set()
    pending: list[tuple[World, list[Act], _Courses]] = [(world, acts, {})]
    while pending:
        world, acts, courses = pending.pop()
        done = frozenset((number, ran.start, ran.end, ran.shown, ran.asked) for number, ran in courses.items())
        here = (world.identity, done, len(acts))
        if here in seen:
            continue
        seen.add(here)
        if not acts:
            yield world, courses
        for act in acts:
            rest = [other for other in acts if other is not act]
            pending += [(ran.world, rest, {**courses, act.number: _visible_to_caller(act, ran)}) for ran in _courses(world, act)]
            resets = [other for other in rest if isinstance(other.step, Reset)] if not isinstance(act.step, Reset) else []
            for during in _ordered_subsets(resets):
                left = [other for other in rest if other not in during]
                for ran, positions in _with_resets(world, act, len(during)):
                    seen_by = {act.number: _visible_to_caller(act, ran)}
                    for reset, position in zip(during, positions, strict=True):
                        seen_by[reset.number] = _visible_to_caller(reset, replace(ran, asked=position))
                    pending.append((ran.world, left, {**courses, **seen_by}))


def _ordered_subsets(acts: list[Act]) -> Iterator[tuple[Act, ...]]:
    """Yield all orders of all subsets that are not empty."""
    for count in range(1, len(acts) + 1):
        yield from itertools.permutations(acts, count)


def _visible_to_caller(act: Act, ran: Ran) -> Ran:
    """Return the part of a course that its caller sees. The rest makes no difference between two orders."""
    asked = ran.asked if isinstance(act.step, Reset | Rollback) else None
    start, end, shown = (ran.start, ran.end, ran.shown) if act.result is not None else (0, 0, _NOTHING)
    return Ran(ran.world, start, end, shown, asked=asked)


def _courses(world: World, act: Act) -> Iterator[Ran]:
    """Yield the courses of a step that agree with its outcome."""
    after, here = world.copy(), world.now
    match act.step:
        case Run(_, ending, transactional, _):
            yield from _matching_result(act, reference.run(world, act.number, ending, transactional=transactional))
        case Cancelled(_, _, transactional):
            yield from _matching_result(act, reference.run(world, act.number, "ok", transactional=transactional))
            if act.result is None:
                yield from reference.not_run(world, "")
                yield from reference.cut_short(world, act.number, "", stages=ANYWHERE, transactional=transactional)
                # A machine that is busy for longer than the grace period kills a cell that would have stopped.
                yield from reference.cut_short(world, act.number, "", stages=ANYWHERE, transactional=transactional, killed=True)
        case Checkpoint() if act.taken is not None:
            after.checkpoint(key(act.taken), None)
            yield Ran(after, here, here, Shown(""))
        case Rollback() if (act.taken and key(act.taken)) == (after.marks[-1].id if after.marks else None):
            if after.marks:
                after.roll_back(after.marks[-1])
            yield Ran(after, here, here, Shown(""), asked=after.now if after.marks else None)
        case Reset():
            after.reset()
            yield Ran(after, here, here, Shown(""), asked=after.now)
        case Ask(_, what) if act.error is None:
            if what in ("variables", "health"):
                after.ask()
            yield Ran(after, here, here, Shown(""))


def _with_resets(world: World, act: Act, count: int) -> Iterator[tuple[Ran, list[int]]]:
    """Yield the courses of a step during which there were `count` resets, and the positions of these resets.

    All steps but cells fail then, or are as if they came after the resets. A cell whose turn had come may have run wholly after some of
    them, have been interrupted by one, and its result may have been made after the others.
    """
    if not isinstance(act.step, Run | Cancelled):
        if act.error is not None:
            after, positions = _after_resets(world, count)
            yield Ran(after, after.now, after.now, Shown("")), positions
        return
    for earlier in range(count + 1):
        before, first = _after_resets(world, earlier)
        for ran in _courses(before, act):
            after, others = _after_resets(ran.world, count - earlier)
            yield replace(ran, world=after, start=world.now, end=after.now if others else ran.end), first + others
        if earlier == count:
            continue
        inside = reference.reset_inside(before, act.number, transactional=act.step.transactional, stages=ANYWHERE)
        for ran in _matching_result(act, inside):
            assert ran.asked is not None
            after, others = _after_resets(ran.world, count - earlier - 1)
            yield replace(ran, world=after, start=world.now, end=after.now if others else ran.end), [*first, ran.asked, *others]


def _after_resets(world: World, count: int) -> tuple[World, list[int]]:
    """Return the world after some resets, and their positions."""
    after, positions = world.copy(), []
    for _ in range(count):
        after.reset()
        positions.append(after.now)
    return after, positions


def _matching_result(act: Act, courses: Iterable[Ran]) -> Iterator[Ran]:
    yield from (ran for ran in courses if act.result is None or ran.showed(shown_by(act.result)))


def _record_outcome(world: World, act: Act, ran: Ran) -> bool:
    """Record the outcome that the act's caller got, and return whether it is true."""
    if isinstance(act.step, Reset | Rollback) and ran.asked is not None:
        world.asked_by(act.handle, ran.asked)
    if act.result is None:
        return True
    return record_result(Ran(world, ran.start, ran.end, ran.shown), act.handle, act.result)


def described(act: Act) -> str:
    came = f"{claim_of(act.result)} {shown_by(act.result)}" if act.result is not None else act.taken or act.error
    return f"{act.number} {act.step} by {act.handle}: {came}"


def distinct(worlds: Iterable[World]) -> list[World]:
    """Return each world once: there may be a hundred thousand orders of parallel steps."""
    return [*{world.identity: world for world in worlds}.values()]


def key(taken: Taken) -> str:
    return f"{taken.id} {taken.created.isoformat()}"
