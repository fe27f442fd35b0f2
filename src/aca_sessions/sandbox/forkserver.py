"""The fork server as the host sees it: it makes workspaces and forks interpreters. All calls block, and are safe from any thread.

Policies with equal keys (`_Key`) share one fork server, whose users are counted. Its own half, in the guest, is called the zygote. A
process that is forked from this one starts its own fork server: two hosts on one socket would get each other's answers.
"""

import contextlib
import errno
import functools
import logging
import os
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

from anyio import CapacityLimiter
from anyio.lowlevel import RunVar

from ..errors import ConfigurationError, GuestDiedError, IsolationError
from ..owner import Owner
from . import environment, supply, wire
from .cgroup import Groups
from .ends import Spawned, Tree, kill
from .folder import Folder
from .memory import Memory
from .package_cache import shown
from .policy import Limits, Mount, Policy, Together
from .remedy import IMAGE, lines_for_image, remedy_for
from .shortage import allow_many, no_descriptor, reserve, told_of
from .tree_numbers import Numbers
from .watchdog import Watchdog, bytes_in, family

_BOOT = "import sys; sys.path.append('/proc/self/fd/' + sys.argv[2]); from aca_sessions.sandbox.guest.zygote import main; main()"
# Sessions can read the environment that the zygote was started with, so nothing of the host's environment is in it.
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/tmp",
    "IPYTHONDIR": "/tmp/.ipython",
    "MPLCONFIGDIR": "/tmp/.matplotlib",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
_logger = logging.getLogger("aca_sessions")
_NOTHING_WAS_SENT = (errno.ETOOMANYREFS, errno.ENOMEM, errno.ENOBUFS)
_BOOT_SECONDS = 120
_END_SECONDS = 5
_THREADS = 8  # enough: a fork server answers one request at a time
_KILLS = 100  # tries within _END_SECONDS


_threads: RunVar[CapacityLimiter] = RunVar("threads that wait for fork servers")


def limiter() -> CapacityLimiter:
    """Return the limiter of the threads that wait for fork servers. However long they wait, other work has threads of its own."""
    try:
        return _threads.get()
    except LookupError:
        _threads.set(made := CapacityLimiter(_THREADS))
        return made


class _Key(NamedTuple):
    """What sessions of a policy have in common with their fork server. Policies with equal keys share one fork server."""

    process: int
    python: str
    preload: tuple[str, ...]
    network: str
    together: Together
    mounts: tuple[Mount, ...]
    tenant: str | None
    isolation: str
    packages: str
    image: str | None

    @classmethod
    def of(cls, policy: Policy) -> "_Key":
        """Return the key of a policy in this process."""
        python, preload, packages = policy.python or sys.executable, policy.preload or (), policy.packages.folder
        network, together, mounts = policy.network.kind, policy.together, policy.mounts
        return cls(os.getpid(), python, preload, network, together, mounts, policy.tenant, policy.isolation, packages, policy.image)


class ForkServer:
    """A fork server: its process, and the socket by which this process sends it requests."""

    _shared: ClassVar[dict[_Key, "ForkServer"]] = {}
    _sharing = threading.Lock()

    def __init__(self, policy: Policy) -> None:
        """Start the zygote, but do not wait for it. The first request waits until it is ready."""
        self._owner = Owner("the fork server")
        self._lock = threading.Lock()
        self._counting_trees = threading.Lock()
        self._trees: set[Tree] = set()
        self._users = 0
        self._ready = False
        self._broken = self._ending = self._retired = False
        self._failure: Exception | None = None
        self._first_uid, self._uid_count = environment.uid_range()
        self._numbers = Numbers(self._uid_count - 1 if self._uid_count else None)  # the first uid is the fork server's own
        self._network = policy.network.kind
        self._together = policy.together
        python = sys.executable if policy.image else policy.python or sys.executable
        roots = ({} if policy.image else environment.visible_roots(python)) | (environment.NAME_LOOKUP if self._network == "host" else {})
        with contextlib.ExitStack() as on_failure:
            allow_many()
            reserve.hold()
            self._folder = _folder_for(policy)
            if self._folder is not None:
                on_failure.callback(self._folder.remove)
            self.groups = Groups.shared(policy.together)
            if self.groups is not None:
                on_failure.callback(self.groups.release)
            plan = wire.encode(self._plan(policy, roots))
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            on_failure.callback(self._control.close)
            self._control.settimeout(_BOOT_SECONDS)
            self._process = _start(python, theirs)
            on_failure.callback(self._process.wait)
            on_failure.callback(self._process.kill)
            with contextlib.suppress(ConnectionError):  # it has ended already: the first request notices
                self._control.send(plan)
            on_failure.pop_all()

    def _plan(self, policy: Policy, roots: dict[str, str]) -> wire.Plan:
        return wire.Plan(
            roots=roots,
            first_uid=self._first_uid,
            uid_count=self._uid_count,
            mounts={mount.guest: os.path.realpath(mount.host) for mount in policy.mounts}
            | shown(policy.packages)
            | supply.shown(policy.image),
            writable=[mount.guest for mount in policy.mounts if mount.shared == "writable"],
            preload=list(policy.preload or ()),
            processes=policy.together.processes,
            base=self._folder.path if self._folder is not None else "",
            image=policy.image or "",
            python=(policy.python or "") if policy.image else "",
        )

    @classmethod
    def shared(cls, policy: Policy) -> "ForkServer":
        """Return the fork server of this process for a policy, and start one if none is alive. Each call needs one call of `release`."""
        key = _Key.of(policy)
        with cls._sharing:
            server = cls._shared.get(key)
            if server is None or not server.alive:
                with told_of("the embedded sandbox"):
                    server = cls._shared[key] = cls(policy)
            server._users += 1
            return server

    def retire(self) -> None:
        """Mark that the fork server ends with its only user. Do nothing if it has several.

        `shared` returns it to no further user, and workspaces are not given back one by one: they end with the fork server.
        """
        with self._sharing:
            if self._users == 1:
                self._retired = True
                self._forget()

    def release(self) -> None:
        """Release one use of the fork server. The last one ends it, and all its sessions with it. Do nothing in a forked process."""
        if not self._owner.is_here:
            return  # shutting down the socket here would shut it down for the parent
        with self._sharing:
            self._users -= 1
            if self._users > 0:
                return
            self._forget()
        self._end()

    def _forget(self) -> None:
        for key in [key for key, server in self._shared.items() if server is self]:
            del self._shared[key]

    @property
    def alive(self) -> bool:
        """Return whether the fork server still runs."""
        return not self._broken and self._process.poll() is None

    def answers(self) -> bool:
        """Return whether the fork server answers a request."""
        # Unlike `alive`, this notices a death before the process can be waited for.
        with contextlib.suppress(GuestDiedError):
            self._ask(wire.Ping("fork server"))
        return self.alive

    def wait_until_ready(self) -> None:
        """Wait until the fork server can fork. Raise IsolationError if this host refuses a part of the isolation."""
        with self._lock:
            self._finish_boot()

    def make_place(self, limits: Limits) -> tuple[Tree, Memory]:
        """Make what a session keeps when its interpreter ends: its workspace, and what counts its memory."""
        tree = self.make_tree(limits)
        try:
            with told_of("another session"):
                return tree, self._counting(tree, limits)
        except GuestDiedError:
            self.drop_tree(tree)
            raise
        except OSError as error:
            self.drop_tree(tree)
            raise IsolationError("control group", str(error.strerror), remedy_for("control group", error.errno or 0)) from None

    def _counting(self, tree: Tree, limits: Limits) -> Memory:
        if self.groups is not None:
            return self.groups.make(limits)
        in_memory = self._folder is None
        files = partial(self._bytes_of, tree.user) if in_memory else None
        return Watchdog(limits, self._together, files=files, lists_sockets=in_memory and self._network != "host")

    def room_for(self, tree: Tree, limits: Limits) -> int:
        """Return how many more bytes of files the host may write for a session, its branches and its checkpoints together.

        Files on a disk, as sessions without namespaces have them, have no such limit.
        """
        return limits.family - self._bytes_of(tree.user) if self._folder is None else sys.maxsize

    def _bytes_of(self, user: int) -> int:
        """Return the bytes in all workspaces of a user: those of a session, its checkpoints and its branches."""
        with self._counting_trees:
            return sum(bytes_in(tree.directory) for tree in self._trees if tree.user == user)

    def drop_place(self, place: tuple[Tree, Memory]) -> None:
        """Drop what `make_place` made, after the processes of the session have ended."""
        tree, memory = place
        try:
            self.drop_tree(tree)
        finally:
            memory.remove()

    def make_tree(self, limits: Limits, *, user: int | None = None) -> Tree:
        """Make an empty workspace.

        Args:
            limits: Its size in bytes and in files.
            user: The user of an existing session, for a branch or checkpoint. None: a new user.
        """
        number, user = self._numbers.take(user)
        try:
            directory = self._ask_for_one(wire.MakeTree(number, user, limits.disk, limits.files), undo=wire.DropTree(number))
        except BaseException:
            self._numbers.give_back(user)
            raise
        tree = Tree(number, directory, self._first_uid + user if self._uid_count else None, user)
        with self._counting_trees:
            self._trees.add(tree)
        return tree

    def show_tree(self, init: int, tree: int) -> None:
        """Mount a workspace at /mnt/data of a session.

        Args:
            init: The pidfd of the session's first process.
            tree: The number of the workspace.
        """
        self._ask(wire.ShowTree(tree), init)

    def drop_tree(self, tree: Tree) -> None:
        """Drop a workspace and its memory. If the fork server refuses, its user stays in use."""
        with self._counting_trees:
            self._trees.discard(tree)
            os.close(tree.directory)
        # Unmounting one workspace takes the kernel milliseconds, and a fork server does one thing at a time. When it ends, all workspaces
        # are unmounted at once: so a retired one is not asked.
        if self.alive and not self._retired:
            self._ask(wire.DropTree(tree.number))
            self._numbers.give_back(tree.user)

    def spawn(self, tree: Tree, limits: Limits) -> Spawned:
        """Start a session with a confined interpreter on a workspace. Its first frame, on its link, reports that it is ready."""
        request = wire.Spawn(
            tree=tree.number,
            owner=tree.user,
            address_space=limits.memory,
            processes=limits.processes,
            open_files=limits.open_files,
            file_size=limits.disk,
            temporary=limits.temporary,
            network=self._network,
            memory_is_counted=self.groups is not None,
            history=limits.history,
        )
        with told_of("another session"), contextlib.ExitStack() as on_failure:
            ours, theirs = (on_failure.enter_context(end) for end in socket.socketpair())
            report, report_end = (on_failure.enter_context(end) for end in socket.socketpair())
            init = self._ask_for_one(request, theirs.fileno(), report_end.fileno())
            theirs.close()
            report_end.close()
            on_failure.pop_all()
        return Spawned(ours, report, init, namespaces=self._folder is None)

    def _ask_for_one(self, request: wire.Message, *descriptors: int, undo: wire.Message | None = None) -> int:
        """Send a request, and return the one descriptor of its answer.

        Args:
            request: The request.
            descriptors: Sent with it.
            undo: Sent if the descriptor of the answer is lost. A spawned session needs none: it ends when the host closes its link.
        """
        answer = self._ask(request, *descriptors)
        if not answer:  # the kernel dropped the descriptor, because this process has none free
            if undo is not None:
                self._ask(undo)
            raise no_descriptor("another session")
        return answer[0]

    def _ask(self, request: wire.Message, *descriptors: int) -> list[int]:
        self._owner.check()
        with self._lock:
            self._finish_boot()
            return self._exchange(request, descriptors)

    def _finish_boot(self) -> None:
        """Wait for the zygote's first answer. If it failed to start, raise the same error for every request."""
        if self._failure is not None:
            raise self._failure
        if not self._ready:
            try:
                self._answer()
            except Exception as failure:
                self._failure = failure
                raise
            self._ready = True

    def _exchange(self, request: wire.Message, descriptors: tuple[int, ...]) -> list[int]:
        try:
            socket.send_fds(self._control, [wire.encode(request)], descriptors)
        except OSError as error:
            if error.errno in _NOTHING_WAS_SENT:  # so no answer will come, and later ones still match their requests
                raise refusal(wire.Refused("session", error.errno, os.strerror(error.errno))) from error
            raise self._give_up() from None
        return self._answer()

    def _answer(self) -> list[int]:
        """Receive one answer, and return its descriptors. Raise if it refuses the request."""
        # If an answer is missing or malformed, later ones cannot be matched to their requests. So the zygote is killed.
        try:
            payload, descriptors, _, _ = socket.recv_fds(self._control, 1 << 16, 4)
            answer = wire.decode(payload, wire.Done, wire.Refused)
        except (OSError, wire.WireError):
            raise self._give_up() from None
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        if isinstance(answer, wire.Refused):
            raise refusal(answer)
        return list(descriptors)

    def _give_up(self) -> GuestDiedError:
        self._broken = True
        if not self._ending:  # else `_end` woke a thread that waited, and ends the processes in their order
            self._process.kill()
        return GuestDiedError("the fork server of the embedded sandbox ended, and its sessions with it; the next session starts another")

    def _end(self) -> None:
        """End the zygote and its sessions, and release what they used."""
        self._ending = True
        # A process that was forked from this one may hold the socket open as well. Then the zygote would not notice a close alone.
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self._control.close()
        if not self._ready:  # it is loading libraries, and would look at the socket only after that
            self._kill_from_inside()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._folder is not None:
            self._folder.remove()
        if self.groups is not None:
            self.groups.release()

    def _kill_from_inside(self) -> None:
        """Kill the innermost of the zygote's processes. The others wait for it, so when the outermost has ended, all have."""
        for _ in range(_KILLS):  # the innermost may be about to start another
            with contextlib.suppress(subprocess.TimeoutExpired):
                kill(family(self._process.pid)[-1])
                self._process.wait(_END_SECONDS / _KILLS)
                return


def _folder_for(policy: Policy) -> Folder | None:
    """Make the folder of sessions without namespaces, after a warning. Return None for other sessions, which need none."""
    if policy.isolation == "full":
        return None
    _warn_of_less()
    return Folder()


@functools.cache
def _warn_of_less() -> None:
    """Warn once that sessions without namespaces are less isolated."""
    _logger.warning(
        "ACASessions:Sandbox:Isolation is no-namespaces: sessions are held by Landlock, seccomp and limits alone; "
        "`aca-sessions doctor` and SECURITY.md say what is not enforced"
    )


def refusal(refused: wire.Refused) -> ConfigurationError | IsolationError:
    """Return the error for a part of the isolation that this host, or the image, cannot give. It has advice for the user."""
    if refused.part == IMAGE:
        return ConfigurationError(f"ACASessions:ContainerImage: it lacks {refused.message}. {lines_for_image(refused.message)}")
    return IsolationError(refused.part, refused.message, remedy_for(refused.part, refused.errno))


def _start(python: str, control: socket.socket) -> "subprocess.Popen[bytes]":
    """Start the zygote with three descriptors: its end of the control socket, the folder of this package, and a pidfd of this process."""
    with contextlib.ExitStack() as afterwards:
        afterwards.callback(control.close)
        code = os.open(Path(__file__).parents[2], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        afterwards.callback(os.close, code)
        host = os.pidfd_open(os.getpid())
        afterwards.callback(os.close, host)
        descriptors = (control.fileno(), code, host)
        arguments = [python, "-I", "-S", "-B", "-c", _BOOT, *map(str, descriptors)]
        # In a process session of its own, so that Ctrl-C in a terminal interrupts this program alone, which decides about its cells.
        return subprocess.Popen(
            arguments, pass_fds=descriptors, env=_ENVIRONMENT, cwd="/", stdin=subprocess.DEVNULL, start_new_session=True
        )
