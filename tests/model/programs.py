"""Programs: lists of steps, drawn by hypothesis. Numbers in them name things by their place among those that there are, so that any part
of a program is a program, too.
"""

from dataclasses import dataclass

from hypothesis import strategies as st


@dataclass(frozen=True)
class Run:
    """A cell that ends in some way."""

    handle: int
    ending: str = "ok"
    transactional: bool = False


@dataclass(frozen=True)
class Late:
    """A cell whose interpreter ends after it."""

    handle: int


@dataclass(frozen=True)
class Checkpoint:
    handle: int
    name: str | None


@dataclass(frozen=True)
class Rollback:
    """To a checkpoint by its object, by its name, or to the latest."""

    handle: int
    by: str
    mark: int


@dataclass(frozen=True)
class Undo:
    handle: int


@dataclass(frozen=True)
class Reset:
    handle: int


@dataclass(frozen=True)
class Terminate:
    handle: int


@dataclass(frozen=True)
class Ask:
    """What the client finds out by cells of its own, or without a cell."""

    handle: int
    what: str


@dataclass(frozen=True)
class NewHandle:
    pass


Step = Run | Late | Checkpoint | Rollback | Undo | Reset | Terminate | Ask | NewHandle

HANDLES = st.integers(0, 3)
ENDINGS = st.sampled_from(["ok", "ok", "fail", "exit", "sigkill", "killall"])
NAMES = st.sampled_from([None, "1", "2", "a"])

STEPS = st.one_of(
    st.builds(Run, HANDLES),
    st.builds(Run, HANDLES, ENDINGS, st.booleans()),
    st.builds(Checkpoint, HANDLES, NAMES),
    st.builds(Rollback, HANDLES, st.sampled_from(["object", "name", "latest"]), st.integers(0, 3)),
    st.builds(Undo, HANDLES),
    st.builds(Late, HANDLES),
    st.builds(Reset, HANDLES),
    st.builds(Ask, HANDLES, st.sampled_from(["variables", "health", "packages", "list_files", "checkpoints"])),
    st.builds(Terminate, HANDLES),
    st.builds(NewHandle),
)


@dataclass(frozen=True)
class Program:
    """Steps, and the seed of the order in which the host's tasks are woken while they are taken."""

    seed: int | None
    steps: tuple[Step, ...]


PROGRAMS = st.builds(Program, st.none() | st.integers(1, 1000), st.lists(STEPS, min_size=1, max_size=12).map(tuple))
