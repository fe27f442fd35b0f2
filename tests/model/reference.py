"""What must be true of a session after each step: small, slow, and without a line of the product's own ledger.

A world is one possible truth about a session. If the caller cannot know what happened, as after a cancelled call, there are several. Later
results of the session rule out the wrong ones. If no world is left, the product reported something untrue.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

CHECKPOINTS = 2  # as many as a session keeps
UNSURE = -1  # what a handle knows that got no result, and made a branch
_roots = itertools.count()


@dataclass(frozen=True)
class Happened:
    """A change of a session that its callers did not see. `to` is the target of a rollback: the number of earlier changes."""

    variables: str = "kept"
    files: str = "kept"
    processes: str = "kept"
    cause: str | None = None
    to: int = 0
    asked: frozenset[str] = frozenset()  # the handles that requested it


@dataclass(frozen=True)
class Mark:
    """A checkpoint. Its id is followed by its time, since a session that is recreated may count from 1 again."""

    id: str
    name: str | None
    x: tuple[int, ...] | None
    f: str | None
    at: int
    ran: bool = False


@dataclass(frozen=True)
class Claim:
    """What a result reports for each part, and why."""

    variables: str
    files: str
    processes: str
    reason: str | None
    reasons: frozenset[str | None] = frozenset()  # other reasons that are right as well


@dataclass(frozen=True)
class Shown:
    """What a cell itself shows: its output, its error, and the changes in its result."""

    output: str
    error: str | None = None
    variables: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


@dataclass
class World:
    """One possible truth. `x` and `f` hold the numbers of all cells whose effects are there, in order."""

    x: tuple[int, ...] | None = None
    f: str | None = None
    marks: list[Mark] = field(default_factory=list)
    log: list[Happened] = field(default_factory=list)
    told: dict[str, int | None] = field(default_factory=dict)  # by handle: how much had happened at its last result
    has_state: bool = False
    ran: bool = False  # whether the interpreter ran any cell: if not, nothing is lost with it
    root: int = field(default_factory=lambda: next(_roots))
    moves: int = 0
    home: tuple[int, int] = (0, 0)  # processes that can kill each other have the same value

    def __post_init__(self) -> None:
        if self.home == (0, 0):
            self.move()

    @property
    def identity(self) -> tuple[object, ...]:
        """Return a value that is equal for equal worlds."""
        lists = (tuple(self.marks), tuple(self.log), frozenset(self.told.items()))
        return (self.x, self.f, *lists, self.has_state, self.ran, self.root, self.moves, self.home)

    def move(self) -> None:
        """Start a new interpreter, with processes of its own."""
        self.moves += 1
        self.home, self.ran = (self.root, self.moves), False

    def copy(self) -> "World":
        return replace(self, marks=[*self.marks], log=[*self.log], told={**self.told})

    @property
    def now(self) -> int:
        return len(self.log)

    # --- what a handle must be told ---

    def claim(self, handle: str, start: int, end: int, since: int) -> Claim:
        """Return what a result must report of what happened since `since`, including what the handle requested while its cell ran."""
        parts = {part: self._fate(part, since, end, handle, start) for part in ("variables", "files", "processes")}
        fates = {part: fate for part, (fate, _) in parts.items()}
        reason = parts["variables"][1] if fates["variables"] != "kept" else parts["files"][1]
        others = {one.cause for one in self.log[since:end]} if fates["variables"] != "lost" else ()
        return Claim(**fates, reason=reason, reasons=frozenset({reason, *others}))

    def claims(self, handle: str, start: int, end: int) -> list[Claim]:
        """Return what a result may report. A handle that never got a result may get everything before reported, or nothing."""
        told = self.told[handle]
        starts = range(start + 1) if told is None or told == UNSURE else [min(told, start)]
        return [self.claim(handle, start, end, since) for since in starts]

    def _fate(self, part: str, since: int, until: int, handle: str, start: int) -> tuple[str, str | None]:
        """Look back from the end: the last change of a part decides, unless it restored an earlier state."""
        for position in range(until, since, -1):
            happened = self.log[position - 1]
            what, asked = getattr(happened, part), handle in happened.asked and position <= start
            if what == "kept":
                continue
            if what != "rolled_back":
                return ("kept", None) if asked else (what, happened.cause)
            past, cause = self._fate(part, since, happened.to, handle, start)
            if past in ("lost", "unknown"):
                return past, cause
            return ("kept", None) if asked and past == "kept" else ("rolled_back", happened.cause)
        return "kept", None

    def delivered(self, handle: str, end: int) -> None:
        """Record that a handle got a result."""
        for one in (handle, "client"):
            told = self.told.get(one)
            self.told[one] = end if told is None else max(told, end)

    def new_handle(self, handle: str) -> None:
        """Add a handle. It knows what the client's other handles got reported, and what they requested."""
        self.told[handle] = self.told.get("client")
        self.log = [replace(one, asked=one.asked | {handle}) if "client" in one.asked else one for one in self.log]

    # --- events ---

    def happen(self, **what: object) -> None:
        self.log.append(Happened(**what))  # type: ignore[arg-type]

    def asked_by(self, handle: str, at: int | None = None) -> None:
        """Record that the last event, or the one at a position, was a handle's request whose answer arrived."""
        at = at or self.now
        for one in (handle, "client"):
            told = self.told.get(one)
            if told is None:
                self.told[one] = at
            elif at > told:
                self.log[at - 1] = replace(self.log[at - 1], asked=self.log[at - 1].asked | {one})

    def effects(self, number: int, stage: "Stage | None" = None) -> None:
        """Apply the effects of a cell, as far as it came."""
        self.has_state = self.ran = True
        if stage is None or stage.x:
            self.x = (*(self.x or ()), number)
        if stage is None or stage.opened:
            self.f = self.f or ""
        if stage is None or stage.f:
            self.f = f"{self.f}{number} "

    @property
    def output(self) -> str:
        return f"{self.x} {self.f}\n"

    def die(self, cause: str, *, marks_too: bool = False) -> None:
        """Let the interpreter die, and with it the processes that it can reach, checkpoints included."""
        variables, processes = ("lost", "ended") if self.ran else ("kept", "kept")
        self.happen(variables=variables, processes=processes, cause=cause)
        self.x, self.marks = None, [] if marks_too else self.marks

    def fall_back(self, cause: str) -> None:
        """Continue from the latest checkpoint, or afresh. The host does this before the next cell; until then the difference is not
        visible.
        """
        if not self.marks:
            self.move()
            return
        mark = self.marks[-1]
        self.x, self.ran = mark.x, mark.ran
        self.happen(variables="rolled_back", cause=f"{cause}, to the last checkpoint", to=mark.at)

    def end(self, cause: str) -> None:
        """End the session with everything in it. A session that was never used had nothing."""
        if self.has_state:
            self.happen(variables="lost", files="lost", processes="ended", cause=cause)
        self.x, self.f, self.marks, self.has_state = None, None, [], False
        self.move()

    def reset(self) -> None:
        """Reset the session. The host cannot know whether there were variables, so callers who did not ask get a reset reported even of an
        empty session.
        """
        self.happen(variables="lost", processes="ended", cause="reset")
        self.x, self.marks = None, []
        self.move()

    def mark(self, id: str = "", name: str | None = None) -> Mark:
        return Mark(id, name, self.x, self.f, self.now, self.ran)

    def ask(self) -> None:
        """Run a cell of the client. The host cannot know that it leaves nothing."""
        self.has_state = self.ran = True

    @property
    def last_reset(self) -> int:
        return max(position for position, happened in enumerate(self.log, 1) if happened.cause == "reset" and happened.variables == "lost")

    def upload(self, text: str) -> None:
        self.f, self.has_state = text, True

    def checkpoint(self, id: str, name: str | None) -> None:
        self.marks = [*self.marks, self.mark(id, name)][-CHECKPOINTS:]

    def mark_of(self, text: str | None, *, by_id: bool) -> Mark | None:
        """Return the checkpoint of a text. Names go before ids, and the latest of a name counts."""
        if text is None:
            return self.marks[-1] if self.marks else None
        named = [mark for mark in self.marks if mark.name == text and not by_id]
        ids = [mark for mark in self.marks if (mark.id if by_id else mark.id.partition(" ")[0]) == text]
        return next(reversed(ids + named), None)

    def roll_back(self, mark: Mark, cause: str | None = "rollback") -> None:
        self.x, self.f, self.ran = mark.x, mark.f, mark.ran
        self.happen(variables="rolled_back", files="rolled_back", cause=cause, to=mark.at)

    def branch(self, handle: str, branch: str) -> "World":
        """Return the world of a branch. Its handle knows what the handle that made it knew."""
        if self.told[handle] is None:
            self.told[handle] = UNSURE  # the handle has asked where it is
        twin = replace(self.copy(), marks=[], has_state=True, root=next(_roots), told={branch: self.told[handle]})
        twin.log = [replace(one, asked=one.asked | {branch}) if handle in one.asked else one for one in twin.log]
        return twin


@dataclass(frozen=True)
class Ran:
    """A possible course of a cell: the world after it, where it began and ended, and what it showed.

    A cell that was interrupted may have printed a part of its output. `asked` is the position of a request during the cell.
    """

    world: World
    start: int
    end: int
    shown: Shown
    in_part: bool = False
    asked: int | None = None

    def showed(self, shown: Shown) -> bool:
        if self.in_part and self.shown.output.startswith(shown.output):
            shown = replace(shown, output=self.shown.output)
        return self.shown == shown


_ERRORS = {"ok": None, "fail": "ZeroDivisionError", "exit": "InterpreterDied", "sigkill": "InterpreterDied", "killall": "InterpreterDied"}
CAUSES = {"exit": "exit", "sigkill": "killed", "killall": "exit"}


def run(world: World, number: int, ending: str, *, transactional: bool = False) -> Iterator[Ran]:
    """Yield the courses of a cell that runs to its own end."""
    after = world.copy()
    before = after.mark()
    after.effects(number)
    shown = Shown(after.output, _ERRORS[ending], *((("x",), ("f",)) if ending in ("ok", "fail") else ()))
    cause = CAUSES.get(ending)
    if cause is not None:
        after.die(cause, marks_too=ending == "killall")
    if transactional and ending == "killall":  # the checkpoint to undo it with is dead as well
        after.happen(files="unknown", cause="not undone")
        after.fall_back(cause or "")
    elif transactional and ending != "ok":
        after.roll_back(before, cause)
        shown = replace(shown, variables=(), files=())
    elif cause is not None:
        after.fall_back(cause)
    yield Ran(after, before.at, after.now, shown)


def ended_late(world: World, number: int) -> Iterator[Ran]:
    """Yield the courses of a cell whose interpreter ends after it."""
    for ran in run(world, number, "ok"):
        ran.world.die("exit")
        died = ran.world.now
        ran.world.fall_back("exit")
        yield ran
        yield replace(ran, world=ran.world.copy(), end=died)  # before its result was made


@dataclass(frozen=True)
class Stage:
    """How far a cell came: whether it had set `x`, opened `f`, and written it."""

    x: bool
    opened: bool
    f: bool


NOTHING, HALF = Stage(x=False, opened=False, f=False), Stage(x=True, opened=False, f=False)
OPENED, ALL = Stage(x=True, opened=True, f=False), Stage(x=True, opened=True, f=True)
ANYWHERE = (NOTHING, HALF, OPENED, ALL)


def cut_short(
    world: World, number: int, error: str, *, stages: tuple[Stage, ...], transactional: bool = False, killed: bool = False
) -> Iterator[Ran]:
    """Yield the courses of a cell that was interrupted at one of some stages, or killed because that did not end it."""
    for stage in stages:
        after = world.copy()
        before = after.mark()
        after.effects(number, stage)
        shown = Shown(after.output, error)
        if not killed:
            shown = replace(shown, variables=("x",) * stage.x, files=("f",) * (after.f != before.f))
        if killed:
            after.die("killed")
        if transactional:
            after.roll_back(before, "killed" if killed else None)
            shown = replace(shown, variables=(), files=())
        elif killed:
            after.fall_back("killed")
        yield Ran(after, before.at, after.now, shown, in_part=True)


def reset_inside(world: World, number: int, *, transactional: bool, stages: tuple[Stage, ...] = (ALL,)) -> Iterator[Ran]:
    """Yield the courses of a cell during which its session was reset. Its variables are gone by request; files of a transactional one are
    restored.
    """
    for stage in stages:
        after = world.copy()
        before = after.mark()
        after.effects(number, stage)
        shown = Shown(after.output, "InterpreterDied")
        after.reset()
        asked = after.now
        if transactional:
            after.f = before.f
            after.happen(files="rolled_back", to=before.at, cause="reset")
        yield Ran(after, before.at, after.now, shown, in_part=True, asked=asked)


def ended_inside(world: World, number: int, cause: str) -> Iterator[Ran]:
    """Yield the courses of a cell during which its session was ended."""
    after = world.copy()
    start = after.now
    after.effects(number)
    shown = Shown(after.output, "InterpreterDied")
    after.end(cause)
    yield Ran(after, start, after.now, shown, in_part=True)


def not_run(world: World, error: str) -> Iterator[Ran]:
    """Yield the course of a cell that did not start."""
    yield Ran(world.copy(), world.now, world.now, Shown("", error))
