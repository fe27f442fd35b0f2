"""Programs: lists of steps drawn by hypothesis. Numbers in them name things by their position among the existing ones, so any part of a
program is a program, too.
"""

from dataclasses import dataclass

from hypothesis import strategies as st


@dataclass(frozen=True)
class Run:
    """A cell that ends in some way. `fault` is what the network does to its answer."""

    handle: int
    ending: str = "ok"
    transactional: bool = False
    fault: str | None = None


@dataclass(frozen=True)
class Late:
    """A cell whose interpreter ends after it."""

    handle: int


@dataclass(frozen=True)
class Mid:
    """A cell that something happens to while it runs, through another handle if that is of the same session."""

    handle: int
    by: int
    action: str
    transactional: bool = False
    stubborn: bool = False


@dataclass(frozen=True)
class Queued:
    """A cell that is cancelled while another one runs, in the same session or in a branch that is made for it."""

    handle: int
    other: int
    how: str
    transactional: bool = False
    in_branch: bool = False


@dataclass(frozen=True)
class Cancelled:
    """A cell whose call is cancelled after that many turns of the event loop: before it starts, in its middle, or after its end."""

    handle: int
    turns: int
    transactional: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """Take a checkpoint. `former` stands for a name that is the id of the checkpoint before."""

    handle: int
    name: str | None = None
    lost: bool = False  # the answer


@dataclass(frozen=True)
class Fill:
    """Take as many checkpoints as a session keeps, each named by the id of the one before; then roll back to one by a text."""

    handle: int
    text: int


@dataclass(frozen=True)
class Rollback:
    """Roll back to a checkpoint by its object, by a text that is a name or an id, or to the latest."""

    handle: int
    by: str
    mark: int
    lost: bool = False


@dataclass(frozen=True)
class CancelledCall:
    """A call without a cell that is cancelled after that many turns of the event loop."""

    handle: int
    what: str
    turns: int


@dataclass(frozen=True)
class Flood:
    """More parallel cells than a server keeps results of, whose results are fetched at the end. The first request arrives twice."""

    handle: int


@dataclass(frozen=True)
class Undo:
    handle: int


@dataclass(frozen=True)
class Reset:
    handle: int
    lost: bool = False


@dataclass(frozen=True)
class Terminate:
    """End a session by its owner, by the pool for its idleness, or by the server for lack of room. Close a branch."""

    handle: int
    how: str


@dataclass(frozen=True)
class KillForkServer:
    pass


@dataclass(frozen=True)
class Ask:
    """Let the client find out something by cells of its own, or without a cell."""

    handle: int
    what: str


@dataclass(frozen=True)
class Upload:
    handle: int


@dataclass(frozen=True)
class Delete:
    handle: int


@dataclass(frozen=True)
class Branch:
    handle: int


@dataclass(frozen=True)
class NewHandle:
    handle: int


@dataclass(frozen=True)
class Parallel:
    """Steps that are taken at the same time."""

    steps: "tuple[Run | Cancelled | Checkpoint | Rollback | Reset | Ask, ...]"


Step = (
    Run
    | Late
    | Mid
    | Queued
    | Cancelled
    | CancelledCall
    | Fill
    | Flood
    | Checkpoint
    | Rollback
    | Undo
    | Reset
    | Terminate
    | KillForkServer
    | Ask
    | Upload
    | Delete
    | Branch
    | NewHandle
    | Parallel
)

HANDLES = st.integers(0, 4)
NAMES = st.sampled_from([None, "a", "former"])
ASKED = st.sampled_from(["variables", "health", "packages", "list_files", "checkpoints"])
FAULTS = st.sampled_from(["before", "after", "504", "silent", "twice"])
DEATHS = st.sampled_from(["exit", "sigkill", "killall"])
SELDOM = st.integers(0, 9).map(lambda drawn: drawn == 9)
VERY_SELDOM = st.integers(0, 59).map(lambda drawn: drawn == 59)  # a stubborn cell takes the two seconds until it is killed

BOTH = st.booleans()
OK = st.builds(Run, HANDLES)
ANY_RUN = st.builds(Run, HANDLES, st.sampled_from(["ok", "fail", "exit", "sigkill"]), BOTH)
CANCELLED = st.builds(Cancelled, HANDLES, st.integers(0, 60), BOTH)
CHECKPOINT = st.builds(Checkpoint, HANDLES, NAMES, SELDOM)
AT_ONCE = [
    OK,
    ANY_RUN,
    CANCELLED,
    st.builds(Reset, HANDLES),
    st.builds(Checkpoint, HANDLES),
    st.builds(Rollback, HANDLES, st.just("latest"), st.just(0)),
    st.builds(Ask, HANDLES, ASKED),
]
ACTIONS = st.sampled_from(["cancel", "interrupt", "timeout", "reset", "terminate", "leave"])
# How often each is drawn, the simplest first, since programs shrink to those.
WEIGHTS = [
    (3, OK),
    (3, ANY_RUN),
    (2, st.builds(Run, HANDLES, DEATHS, BOTH)),
    (1, st.builds(Run, HANDLES, st.just("killall"), st.just(True))),
    (3, CHECKPOINT),
    (2, st.builds(Fill, HANDLES, st.integers(0, 3))),
    (3, st.builds(Rollback, HANDLES, st.sampled_from(["object", "name", "latest"]), st.integers(0, 3), SELDOM)),
    (1, st.builds(Undo, HANDLES)),
    (2, st.builds(Late, HANDLES)),
    (2, st.builds(Reset, HANDLES, SELDOM)),
    (2, st.builds(Ask, HANDLES, ASKED)),
    (1, st.builds(Branch, HANDLES)),
    (1, st.builds(NewHandle, HANDLES)),
    (1, st.builds(Terminate, HANDLES, st.sampled_from(["terminated", "expired", "evicted"]))),
    (1, st.builds(Run, HANDLES, st.sampled_from(["ok", "fail", "exit"]), BOTH, FAULTS)),
    (2, st.builds(Mid, HANDLES, HANDLES, ACTIONS, BOTH, VERY_SELDOM)),
    (2, st.builds(Queued, HANDLES, HANDLES, st.sampled_from(["call", "execution"]), BOTH, BOTH)),
    (2, CANCELLED),
    (1, st.builds(CancelledCall, HANDLES, st.sampled_from(["checkpoint", "rollback", "reset", "branch"]), st.integers(0, 60))),
    (1, st.one_of(st.builds(Upload, HANDLES), st.builds(Delete, HANDLES))),
    (3, st.builds(Parallel, st.lists(st.one_of(AT_ONCE), min_size=2, max_size=4).map(tuple))),
    (1, st.builds(lambda seldom, handle: KillForkServer() if seldom else Run(handle), SELDOM, HANDLES)),
    (1, st.builds(lambda seldom, handle: Flood(handle) if seldom else Run(handle), SELDOM, HANDLES)),
]
STEPS = st.sampled_from([step for weight, step in WEIGHTS for _ in range(weight)]).flatmap(lambda step: step)


@dataclass(frozen=True)
class Program:
    """Steps, and the seed of the order in which the host's tasks are woken meanwhile. None is asyncio's own order."""

    seed: int | None
    steps: tuple[Step, ...]


PROGRAMS = st.builds(Program, st.none() | st.integers(1, 1000), st.lists(STEPS, min_size=1, max_size=12).map(tuple))
