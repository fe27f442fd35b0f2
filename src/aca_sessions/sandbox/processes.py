"""The processes of a session and its branches, on hosts without control groups. Each belongs to one workspace (`tree` in the code).

Only processes of the workspace that is shown run. All of them live in one pid namespace and one mount namespace, where guests have no
capability, so a process cannot be given a /mnt/data of its own. Instead, the host stops every process of a workspace before another
workspace takes its place, and continues it afterwards. A stopped process cannot fork. So every other process that is alive, except the
session's first one, belongs to the workspace that is shown. All calls block: use a worker thread.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from typing import NamedTuple

from ..models import RunningProcess
from .shortage import is_shortage, told_of

_INIT = 1
_STATE, _PARENT, _THREADS, _START = 0, 1, 17, 19  # fields in /proc/PID/stat, counted from behind the name: proc(5)
_STOPPED, _DEAD, _BLOCKED = frozenset("Tt"), frozenset("ZX"), frozenset("D")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_DESCRIPTORS = 5  # open during one look at a process, and one to spare
_QUIET = 2  # looks in a row that find nothing new
_CALM_LOOKS, _QUICK_LOOKS, _MOST_LOOKS = 3, 60, 400  # until new processes are signalled unseen, until pauses get longer, in all
_SHORT_PAUSE, _PAUSE = 0.00005, 0.002  # what was signalled needs a processor: without a pause this took five times as long


class Identity(NamedTuple):
    """The identity of a process: its number in the session, and the clock tick at which it started. A number alone may be reused."""

    number: int
    start: int


class _Seen(NamedTuple):
    identity: Identity
    parent: int
    name: str
    threads: int
    states: Set[str]  # those of its threads that live; none for the dead
    signalled: bool = False

    @property
    def stands(self) -> bool:
        return self.states <= _STOPPED

    @property
    def told(self) -> RunningProcess:
        return RunningProcess(self.identity.number, self.name)


class Ended(NamedTuple):
    """The outcome of ending processes: those that ended, and those that are still alive although they were killed."""

    ended: tuple[RunningProcess, ...] = ()
    left: tuple[RunningProcess, ...] = ()


class Processes:
    """The processes of one pid namespace, to stop, continue and end. `switch` and `end` must not overlap, nor be running at `close`."""

    def __init__(self, proc: int, tree: int) -> None:
        """Take over `proc`, a descriptor of the namespace's own /proc. `tree` is the workspace that is shown."""
        self.shown: int | None = tree
        self._mounted: int | None = tree
        self._latest = tree
        self._proc = proc  # it lists every process; lists of children, read one by one, miss one that changes its parent meanwhile
        self._members: dict[int, Identity] = {}
        self._frozen: dict[int, dict[Identity, bool]] = {}  # by workspace that is not shown: whether to continue each process

    def take_in(self, number: int, tree: int, process: int) -> None:
        """Register an interpreter, to distinguish it from what its cells start. Stop it until its workspace is shown.

        Args:
            number: its number in the session.
            tree: its workspace.
            process: a pidfd of it.
        """
        with contextlib.suppress(OSError), self._opened(number) as folder:
            seen = _look(folder, number)
            self._members[number] = seen.identity
            if tree != self.shown:
                self._frozen[tree] = {**self._frozen.get(tree, {}), seen.identity: not seen.stands}
                _signal(process, signal.SIGSTOP)

    def leave(self, number: int) -> None:
        """Forget an interpreter that has ended."""
        self._members.pop(number, None)

    def drop(self, tree: int) -> None:
        """Forget a workspace that has ended."""
        self._frozen.pop(tree, None)

    def elsewhere(self, tree: int) -> set[int]:
        """Return the numbers of all interpreters, and of all processes that belong to another workspace than `tree`."""
        return {*self._members} | {one.number for one in self._of_others(tree)}

    def switch(self, tree: int, show: Callable[[], None]) -> tuple[RunningProcess, ...]:
        """Stop all that runs, call `show`, and continue what belongs to `tree`.

        Return the processes that were ended because they did not stop.

        `show` puts the workspace into /mnt/data. If it fails, no workspace is shown, and everything stays stopped until the next switch.
        Raise TimeoutError if something runs even after the kill: it must not see the other workspace.
        """
        ended = self.halt()
        if self._mounted != tree:
            self._mounted = None
            show()
            self._mounted = tree
        self.shown = self._latest = tree
        self._continue(self._frozen.pop(tree, {}))
        return ended

    def halt(self) -> tuple[RunningProcess, ...]:
        """Stop all that runs until the next switch: no workspace is shown. Return the processes that were ended because they did not stop.

        Raise TimeoutError if something runs even after that.
        """
        stopped, calm = self._stop()
        ended: tuple[RunningProcess, ...] = ()
        if not calm:
            ended = self._kill_shown().ended
            again, calm = self._stop()
            stopped = {one: stopped.get(one, True) for one in again}
        self._frozen[self._latest] = {**self._frozen.get(self._latest, {}), **stopped}
        if not calm:
            raise TimeoutError("processes of the session do not stop")
        self.shown = None
        return ended

    def end(self, tree: int) -> Ended:
        """End the processes of a workspace, except its interpreters. They are stopped first, so that none starts another one meanwhile."""
        if tree != self.shown:
            doomed = self._frozen.get(tree, {}).keys() - {*self._members.values()}
            return self._kill(doomed.__contains__)
        stopped, _ = self._stop()
        try:
            return self._kill_shown()
        finally:
            self._continue(stopped)

    def has_work(self) -> bool:
        """Return whether more than idle interpreters runs in the workspace that is shown."""
        others, members = self._of_others(self.shown), {*self._members.values()}
        mine = [one for one in self._look_at_all()[0] if one.states and one.identity not in others]
        return any(one.threads > 1 or one.identity not in members for one in mine)

    def close(self) -> None:
        """Close the descriptor of /proc."""
        os.close(self._proc)

    def _stop(self) -> tuple[dict[Identity, bool], bool]:
        """Stop all processes. Return those of the shown workspace, each with whether this call stopped it, and whether all are stopped now.

        While the list is read, a process may start another one, or be continued by one that still runs. So the list is read until nothing
        has changed twice in a row. Processes of other workspaces are looked at too, since code in the session may have continued one.
        """
        _check_descriptors()
        found: dict[Identity, bool] = {}
        try:
            return self._stop_all(found)
        except BaseException:
            self._continue(found)
            raise

    def _stop_all(self, found: dict[Identity, bool]) -> tuple[dict[Identity, bool], bool]:
        others = self._of_others(self.shown)
        earlier: set[Identity] = set()
        quiet = 0
        for look in range(_MOST_LOOKS):
            known = None if look < _CALM_LOOKS else {one.number for one in (*found, *others)}
            seen, gone = self._look_at_all(signal.SIGSTOP, lambda one: not one.stands, known)
            alive = [one for one in seen if one.states]
            mine = {one.identity: one.signalled or found.get(one.identity, False) for one in alive if one.identity not in others}
            found.clear()
            found.update(mine)
            dead = {one.identity for one in seen if not one.states}
            quiet = 0 if gone or dead - earlier or not _all_stand(alive) else quiet + 1
            earlier = dead
            if quiet == _QUIET:
                return found, True
            if not quiet:
                time.sleep(_SHORT_PAUSE if look < _QUICK_LOOKS else _PAUSE)
        return found, False

    def _kill_shown(self) -> Ended:
        """Kill the processes of the shown workspace, except interpreters."""
        spared = {*self._of_others(self.shown), *self._members.values()}
        return self._kill(lambda one: one not in spared, {one.number for one in spared})

    def _kill(self, doomed: Callable[[Identity], bool], known: Set[int] | None = None) -> Ended:
        """Kill processes until two looks in a row find none of them alive, or for 400 looks."""
        ended: dict[Identity, RunningProcess] = {}
        alive: list[_Seen] = []
        quiet = 0
        for look in range(_MOST_LOOKS):
            seen, _ = self._look_at_all(signal.SIGKILL, lambda one: bool(one.states) and doomed(one.identity), known)
            alive = [one for one in seen if one.states and doomed(one.identity)]
            ended |= {one.identity: one.told for one in alive}
            quiet = 0 if alive else quiet + 1
            if quiet == _QUIET:
                break
            if not quiet:
                time.sleep(_SHORT_PAUSE if look < _QUICK_LOOKS else _PAUSE)
        left = {one.identity: one.told for one in alive}
        return Ended(tuple(told for one, told in ended.items() if one not in left), tuple(left.values()))

    def _continue(self, stopped: dict[Identity, bool]) -> None:
        """Continue what `_stop` stopped, children first: a shell that notices a stopped child takes it for a stopped job."""
        for one in sorted(stopped, reverse=True):
            if stopped[one]:
                with contextlib.suppress(OSError), self._opened(one.number) as process:
                    if _look(process, one.number).identity == one:
                        _signal(process, signal.SIGCONT)

    def _of_others(self, tree: int | None) -> set[Identity]:
        return {one for other, frozen in [*self._frozen.items()] if other != tree for one in frozen}

    def _look_at_all(
        self, number: signal.Signals | None = None, wanted: Callable[[_Seen], bool] = lambda _: False, known: Set[int] | None = None
    ) -> tuple[list[_Seen], bool]:
        """Look at every process but the first, and signal those that `wanted` selects.

        Return them all, and whether one had ended before the look.

        If `known` is given, processes that are not in it are signalled before they are looked at. Otherwise a process that starts another
        one and ends, again and again, would always be gone by then.
        """
        seen: list[_Seen] = []
        gone = False
        for pid in self._numbers():
            try:
                with self._opened(pid) as process:
                    at_once = known is not None and pid not in known
                    if at_once and number is not None:
                        _signal(process, number)
                    one = _look(process, pid)
                    if number is not None and not at_once and wanted(one):
                        _signal(process, number)
                        at_once = True
                    seen.append(one._replace(signalled=at_once))
            except OSError as error:
                if is_shortage(error):
                    raise  # a process that cannot be looked at may run
                gone = True
        return seen, gone

    def _numbers(self) -> list[int]:
        """Return the numbers of all processes but the first."""
        try:
            with self._opened(".") as folder:  # a new descriptor: threads would share the offset of the one that is kept
                return [int(name) for name in os.listdir(folder) if name.isdecimal() and int(name) != _INIT]
        except OSError as error:
            if is_shortage(error):
                raise
            return []  # the first process has ended, and all others with it

    @contextmanager
    def _opened(self, name: int | str) -> Iterator[int]:
        """Open the folder of a process.

        It never refers to a later process of that number, and takes signals as a pidfd does: pidfd_send_signal(2).
        """
        folder = os.open(str(name), _FOLDER, dir_fd=self._proc)
        try:
            yield folder
        finally:
            os.close(folder)


def _check_descriptors() -> None:
    """Raise GuestDiedError, before anything is stopped, if there are too few free descriptors to look at processes."""
    with told_of("stopping the session's processes"), contextlib.ExitStack() as opened:
        for _ in range(_DESCRIPTORS):
            opened.callback(os.close, os.open("/", _FOLDER))


def _all_stand(alive: list[_Seen]) -> bool:
    """Return whether none of the processes can run on."""
    # A process that waits for its vfork child to start a program (state D) stops only after that. It counts as stopped if its child does.
    standing = {one.parent for one in alive if one.states <= _STOPPED | _BLOCKED}
    return all(one.stands or (one.states <= _STOPPED | _BLOCKED and one.identity.number in standing) for one in alive)


def _look(process: int, number: int) -> _Seen:
    """Return the state of a process and of each of its threads."""
    name, fields = _stat("stat", process)
    threads = int(fields[_THREADS])
    # The process itself has only the state of its first thread, which may have ended before the others.
    states = {fields[_STATE]} if threads == 1 else _states(process)
    return _Seen(Identity(number, int(fields[_START])), int(fields[_PARENT]), name, threads, frozenset(states - _DEAD))


def _states(process: int) -> set[str]:
    folder = os.open("task", _FOLDER, dir_fd=process)
    states = set()
    try:
        for thread in os.listdir(folder):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                states.add(_stat(f"{thread}/stat", folder)[1][_STATE])
    finally:
        os.close(folder)
    return states


def _stat(path: str, process: int) -> tuple[str, list[str]]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
    try:
        text = os.read(descriptor, 1 << 12).decode(errors="backslashreplace")
    finally:
        os.close(descriptor)
    # The name is in brackets, and may hold brackets and blanks itself.
    return text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 1 :].split()


def _signal(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(process, number)
