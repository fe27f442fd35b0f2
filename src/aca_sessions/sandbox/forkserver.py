"""Start the fork server, the process that makes workspaces and forks interpreters, and send requests to it.

Each request blocks until its answer comes. Any thread may send requests. The fork server's process is also called the zygote
(`guest.zygote`). Policies with equal keys (`_Key`) share one fork server. It ends when `release` was called as often as `shared`. If this
process forks, the child process starts its own fork server: two processes on one socket would get each other's answers.
"""

import contextlib
import errno
import fcntl
import functools
import itertools
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from anyio import CapacityLimiter
from anyio.lowlevel import RunVar

from ..errors import ConfigurationError, GuestDiedError, IsolationError
from ..lifetime import OwnerProcess
from . import environment, wire
from .hosts import IMAGE, lines_for_image, remedy_for
from .images import images
from .limits.capacity import explained_shortage, raise_descriptor_limit, reserve, shortage_error
from .limits.cgroup import CleanupShell, Groups
from .limits.memory import MemoryLimit
from .limits.watchdog import Watchdog, bytes_in, process_tree
from .packages.cache import make_mount
from .policy import Limits, Mount, Policy, Together
from .session.descriptors import SpawnedSession, Workspace, kill

if TYPE_CHECKING:
    from .proxy.authority import Authority

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
# Waits until this process has ended, and removes the folder. Sessions may still be ending and writing, so it tries for 2.5 s.
_CLEANUP_SCRIPT = 'read _; n=0; while [ $n -lt 25 ] && [ -e "$1" ]; do chmod -R u+rwX -- "$1"; rm -rf -- "$1"; n=$((n+1)); sleep 0.1; done'
_NOTHING_WAS_SENT = (errno.ETOOMANYREFS, errno.ENOMEM, errno.ENOBUFS)
_BOOT_SECONDS = 120
_END_SECONDS = 5
_THREADS = 8  # enough: a fork server answers one request at a time
_KILLS = 100  # tries within _END_SECONDS


_threads: RunVar[CapacityLimiter] = RunVar("threads that wait for fork servers")


def limiter() -> CapacityLimiter:
    """Return the limiter of the worker threads that call fork servers. Only they use it, so other work never waits for them."""
    try:
        return _threads.get()
    except LookupError:
        _threads.set(made := CapacityLimiter(_THREADS))
        return made


class _Key(NamedTuple):
    """The settings that two policies must have in common to share a fork server, such as the interpreter and the mounts."""

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
        """Return the key of a policy. It contains this process's pid, so that a forked process does not use its parent's fork server."""
        python, preload, packages = policy.python or sys.executable, policy.preload or (), policy.packages.folder
        network, together, mounts = _network_of(policy), policy.together, policy.mounts
        return cls(os.getpid(), python, preload, network, together, mounts, policy.tenant, policy.isolation, packages, policy.image)


class NumberAllocator:
    """Gives numbers to workspaces and to their owners, the users that sessions run as.

    A session, its checkpoints and its branches share one user.
    """

    def __init__(self, most: int | None) -> None:
        """Allow at most `most` users at the same time. If `most` is None, there is no limit."""
        self._most = most
        self._workspaces: dict[int, int] = {}  # how many workspaces a user has
        self._latest = 0
        self._further = itertools.count(1 if most is None else most + 1)
        self._lock = threading.Lock()

    def allocate(self, user: int | None = None) -> tuple[int, int]:
        """Return two numbers for a new workspace: its own, and that of its user.

        If `user` is None, the workspace gets a user who has none yet, and both numbers are equal. Otherwise it belongs to `user`. Raise
        IsolationError if all users have a workspace.
        """
        with self._lock:
            number = next(self._further) if user is not None or self._most is None else self._free()
            user = user or number
            self._workspaces[user] = self._workspaces.get(user, 0) + 1
            return number, user

    def release(self, user: int) -> None:
        """Record that one workspace of `user` was removed. After the last one, another session can get this user's number."""
        with self._lock:
            self._workspaces[user] -= 1
            if not self._workspaces[user]:
                del self._workspaces[user]

    def _free(self) -> int:
        """Return the number of a user without workspaces. Raise IsolationError if there is none.

        Search from the number after the latest result, so that a number is not used again soon.
        """
        most = self._most or 0
        for step in range(most):
            number = (self._latest + step) % most + 1
            if number not in self._workspaces:
                self._latest = number
                return number
        raise IsolationError("uid range", f"all {most} users that sessions may have are in use", "End some sessions, and try again")


class ForkServer:
    """A fork server's process, and the socket on which this process sends requests to it."""

    _shared: ClassVar[dict[_Key, "ForkServer"]] = {}
    _sharing = threading.Lock()

    def __init__(self, policy: Policy) -> None:
        """Start the process of the fork server without waiting for it: the first request waits until the process is ready."""
        self._owner = OwnerProcess("the fork server")
        self._lock = threading.Lock()
        self._workspaces_lock = threading.Lock()
        self._authority_lock = threading.Lock()
        self._authority: Authority | None = None
        self._workspaces: set[Workspace] = set()
        self._users = 0
        self._ready = False
        self.broken = self._ending = self._retired = False
        self._failure: Exception | None = None
        self._first_uid, self._uid_count = environment.uid_range()
        self._numbers = NumberAllocator(self._uid_count - 1 if self._uid_count else None)  # the first uid is the fork server's own
        self.network = _network_of(policy)
        self._together = policy.together
        python = sys.executable if policy.image else policy.python or sys.executable
        roots = ({} if policy.image else environment.visible_roots(python)) | (environment.NAME_LOOKUP if self.network == "host" else {})
        with contextlib.ExitStack() as on_failure:
            raise_descriptor_limit()
            reserve.open()
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
            self.process = _start(python, theirs)
            on_failure.callback(self.process.wait)
            on_failure.callback(self.process.kill)
            with contextlib.suppress(ConnectionError):  # it has ended already: the first request notices
                self._control.send(plan)
            on_failure.pop_all()

    def _plan(self, policy: Policy, roots: dict[str, str]) -> wire.Plan:
        return wire.Plan(
            roots=roots,
            first_uid=self._first_uid,
            uid_count=self._uid_count,
            mounts={mount.guest: os.path.realpath(mount.host) for mount in policy.mounts}
            | make_mount(policy.packages)
            | images.ipython_mount(policy.image),
            writable=[mount.guest for mount in policy.mounts if mount.shared == "writable"],
            preload=list(policy.preload or ()),
            processes=policy.together.processes,
            base=self._folder.path if self._folder is not None else "",
            image=policy.image or "",
            python=(policy.python or "") if policy.image else "",
        )

    @classmethod
    def shared(cls, policy: Policy) -> "ForkServer":
        """Return this process's fork server for a policy. Start it if none is alive. Call `release` once for each call of `shared`."""
        key = _Key.of(policy)
        with cls._sharing:
            server = cls._shared.get(key)
            if server is None or not server.alive:
                with explained_shortage("the embedded sandbox"):
                    server = cls._shared[key] = cls(policy)
            server._users += 1
            return server

    def retire(self) -> None:
        """Prepare to end this fork server at the next `release`. Do nothing if more than one call of `release` is still to come.

        Afterwards, `shared` starts another fork server, and `drop_workspace` frees no memory. The end of this fork server frees all its
        workspaces at once, which is faster.
        """
        with self._sharing:
            if self._users == 1:
                self._retired = True
                self._stop_sharing()

    def release(self) -> None:
        """Undo one call of `shared`. After the last one, end the fork server and all its sessions.

        Do nothing in a forked process.
        """
        if not self._owner.is_current:
            return  # shutting down the socket here would shut it down for the parent
        with self._sharing:
            self._users -= 1
            if self._users > 0:
                return
            self._stop_sharing()
        self._end()

    def _stop_sharing(self) -> None:
        for key in [key for key, server in self._shared.items() if server is self]:
            del self._shared[key]

    @property
    def alive(self) -> bool:
        """Return whether the fork server still runs, and no message to or from it was lost or malformed."""
        return not self.broken and self.process.poll() is None

    def ping(self) -> bool:
        """Send a request that does nothing, wait for the answer, and return whether the fork server is alive."""
        # Unlike `alive`, this notices a death before the process can be waited for.
        with contextlib.suppress(GuestDiedError):
            self._ask(wire.Ping("fork server"))
        return self.alive

    def wait_until_ready(self) -> None:
        """Wait until the fork server has started. Raise IsolationError if this host refuses a part of the isolation."""
        with self._lock:
            self._wait_for_boot()

    def make_session_resources(self, limits: Limits) -> tuple[Workspace, MemoryLimit]:
        """Make a workspace and a memory limit for a new session. They outlive the interpreter: a reset or a rollback keeps them.

        Raise GuestDiedError if the fork server has died or this process has no file descriptor left. Raise IsolationError if a control
        group cannot be made.
        """
        workspace = self.make_workspace(limits)
        try:
            with explained_shortage("another session"):
                return workspace, self._make_memory_limit(workspace, limits)
        except GuestDiedError:
            self.drop_workspace(workspace)
            raise
        except OSError as error:
            self.drop_workspace(workspace)
            raise IsolationError("control group", str(error.strerror), remedy_for("control group", error.errno or 0)) from error

    def _make_memory_limit(self, workspace: Workspace, limits: Limits) -> MemoryLimit:
        if self.groups is not None:
            return self.groups.make(limits)
        in_memory = self._folder is None
        files = partial(self._bytes_of, workspace.user) if in_memory else None
        return Watchdog(limits, self._together, files=files, lists_sockets=in_memory and self.network != "host")

    def free_file_bytes(self, workspace: Workspace, limits: Limits) -> int:
        """Return how many more bytes of files the host may write for a session, its branches and its checkpoints together.

        Return sys.maxsize if sessions have no namespaces: their files are on a disk then, and have no such limit.
        """
        return limits.family - self._bytes_of(workspace.user) if self._folder is None else sys.maxsize

    def _bytes_of(self, user: int) -> int:
        with self._workspaces_lock:
            return sum(bytes_in(workspace.directory) for workspace in self._workspaces if workspace.user == user)

    def drop_session_resources(self, resources: tuple[Workspace, MemoryLimit]) -> None:
        """Remove a workspace and memory limit that `make_session_resources` made. The processes of the session must have ended."""
        workspace, memory = resources
        try:
            self.drop_workspace(workspace)
        finally:
            memory.remove()

    def make_workspace(self, limits: Limits, *, user: int | None = None) -> Workspace:
        """Make an empty workspace. It belongs to a new user or, if it is for a branch or a checkpoint, to the session's `user`."""
        number, user = self._numbers.allocate(user)
        try:
            directory = self._ask_for_one(wire.MakeTree(number, user, limits.disk, limits.files), undo_request=wire.DropTree(number))
        except BaseException:
            self._numbers.release(user)
            raise
        workspace = Workspace(number, directory, self._first_uid + user if self._uid_count else None, user)
        with self._workspaces_lock:
            self._workspaces.add(workspace)
        return workspace

    def mount_workspace(self, init: int, workspace: int) -> None:
        """Mount the workspace with the number `workspace` at /mnt/data of a session. `init` is the pidfd of the session's first process."""
        self._ask(wire.ShowTree(workspace), init)

    def drop_workspace(self, workspace: Workspace) -> None:
        """Close a workspace, and ask the fork server to free its memory.

        Send no request to a dead or retired fork server: its end frees all workspaces. If the request fails, raise the error. The workspace
        then still counts for its user.
        """
        with self._workspaces_lock:
            self._workspaces.discard(workspace)
            os.close(workspace.directory)
        # Unmounting one workspace takes the kernel milliseconds, and a fork server does one thing at a time. When it ends, all workspaces
        # are unmounted at once: so a retired one is not asked.
        if self.alive and not self._retired:
            self._ask(wire.DropTree(workspace.number))
            self._numbers.release(workspace.user)

    @property
    def authority(self) -> "Authority":
        """Return the certificate authority of this fork server's sessions. Create it at the first call.

        Raise MissingExtraError if a library for it is missing.
        """
        from .proxy.authority import Authority  # takes 0.1 s to load, and only sessions with inspected hosts need it

        with self._authority_lock:
            if self._authority is None:
                self._authority = Authority.create()
            return self._authority

    def spawn(
        self, workspace: Workspace, limits: Limits, *, network: str | None = None, authority: str = "", no_proxy: str = ""
    ) -> SpawnedSession:
        """Start a session in a workspace. Do not wait for its interpreter, which sends the message `Ready` when it can run cells.

        Args:
            workspace: Where the session's files are.
            limits: The limits of the session.
            network: `none`, `host`, or `allow` for one behind a proxy. None: `host` if that is the policy's, otherwise `none`.
            authority: A certificate in PEM format that the session trusts, in addition to those in its root.
            no_proxy: Hosts, separated by commas, to which its programs connect without the proxy.
        """
        network = network or self.network
        differs = network != self.network
        if (differs and "host" in (network, self.network)) or (self._folder is not None and (differs or authority)):
            raise ValueError(f"the network must be {self.network}, as that of this fork server's other sessions, got {network}")
        request = wire.Spawn(
            tree=workspace.number,
            owner=workspace.user,
            address_space=limits.memory,
            processes=limits.processes,
            open_files=limits.open_files,
            file_size=limits.disk,
            temporary=limits.temporary,
            network=network,
            memory_is_counted=self.groups is not None,
            history=limits.history,
            authority=authority,
            no_proxy=no_proxy,
        )
        with explained_shortage("another session"), contextlib.ExitStack() as on_failure:
            ours, theirs = (on_failure.enter_context(end) for end in socket.socketpair())
            report, report_end = (on_failure.enter_context(end) for end in socket.socketpair())
            init = self._ask_for_one(request, theirs.fileno(), report_end.fileno())
            theirs.close()
            report_end.close()
            on_failure.pop_all()
        return SpawnedSession(ours, report, init, namespaces=self._folder is None)

    def _ask_for_one(self, request: wire.Message, *descriptors: int, undo_request: wire.Message | None = None) -> int:
        """Send a request to the fork server, and return the file descriptor that comes with the answer.

        If this process cannot receive it, because it has too many files open, send `undo_request` and raise GuestDiedError. A request to
        start a session needs no `undo_request`: the session ends when the host closes its socket to it.
        """
        answer = self._ask(request, *descriptors)
        if not answer:  # the kernel dropped the descriptor, because this process has none free
            if undo_request is not None:
                self._ask(undo_request)
            raise shortage_error("another session")
        return answer[0]

    def _ask(self, request: wire.Message, *descriptors: int) -> list[int]:
        self._owner.check()
        with self._lock:
            self._wait_for_boot()
            return self._exchange(request, descriptors)

    def _wait_for_boot(self) -> None:
        """Wait until the zygote has started. If it fails to start, raise the error, and raise it again in each later call."""
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
                raise refusal_error(wire.Refused("session", error.errno, os.strerror(error.errno))) from error
            raise self._mark_broken() from error
        return self._answer()

    def _answer(self) -> list[int]:
        """Receive the fork server's answer to one request, and return the file descriptors that come with it.

        If the fork server reports that it cannot do what was requested, raise an IsolationError or a ConfigurationError. If no valid answer
        comes, raise GuestDiedError.
        """
        # If an answer is missing or malformed, later ones cannot be matched to their requests. So the zygote is killed.
        try:
            payload, descriptors, _, _ = socket.recv_fds(self._control, 1 << 16, 4)
            answer = wire.decode(payload, wire.Done, wire.Refused)
        except (OSError, wire.WireError) as error:
            raise self._mark_broken() from error
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        if isinstance(answer, wire.Refused):
            raise refusal_error(answer)
        return list(descriptors)

    def _mark_broken(self) -> GuestDiedError:
        self.broken = True
        if not self._ending:  # else `_end` woke a thread that waited, and ends the processes in their order
            self.process.kill()
        return GuestDiedError(
            "the fork server of the embedded sandbox ended, and its sessions with it: open a new session, which starts another fork server"
        )

    def _end(self) -> None:
        self._ending = True
        # A process that was forked from this one may hold the socket open as well. Then the zygote would not notice a close alone.
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self._control.close()
        if not self._ready:  # it is loading libraries, and would look at the socket only after that
            self._kill_from_inside()
        try:
            self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self._folder is not None:
            self._folder.remove()
        if self.groups is not None:
            self.groups.release()

    def _kill_from_inside(self) -> None:
        """End a zygote that has not started completely. It may be a chain of processes, each of which ends when its child ends.

        Kill the last process of the chain. Repeat this until the zygote has ended, because the last process may have forked another.
        """
        for _ in range(_KILLS):  # the innermost may be about to start another
            with contextlib.suppress(subprocess.TimeoutExpired):
                kill(process_tree(self.process.pid)[-1])
                self.process.wait(_END_SECONDS / _KILLS)
                return


class DiskFolder:
    """The folder on disk for the files of sessions without namespaces.

    A shell waits in the background until this process ends, and removes the folder even if this process was killed.

    Other users of this host cannot list it. To open a file in it, they must know the file's name and have permission.
    """

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix="aca-sessions-")
        os.chmod(self.path, 0o711)  # noqa: S103 (others may pass through it, not list it)
        self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_SH)  # systemd-tmpfiles(8) deletes old files, except below a locked folder
        self._cleanup_shell = CleanupShell(_CLEANUP_SCRIPT, self.path)

    def remove(self) -> None:
        """Remove the folder. The sessions must have ended."""
        os.close(self._lock)
        self._cleanup_shell.finish()


def _network_of(policy: Policy) -> str:
    """Return `host` if sessions share the host's network, which needs another root. Otherwise return `none`: each may have a proxy."""
    return "host" if policy.network.kind == "host" else "none"


def _folder_for(policy: Policy) -> DiskFolder | None:
    """Make the folder for sessions without namespaces, and log a warning. Return None if the policy's sessions have namespaces."""
    if policy.isolation == "full":
        return None
    _warn_of_weaker_isolation()
    return DiskFolder()


@functools.cache
def _warn_of_weaker_isolation() -> None:
    _logger.warning(
        "ACASessions:Sandbox:Isolation is no-namespaces: sessions are held by Landlock, seccomp and limits alone; "
        "`aca-sessions doctor` and SECURITY.md say what is not enforced"
    )


def refusal_error(refused: wire.Refused) -> ConfigurationError | IsolationError:
    """Convert the fork server's message `Refused` to the error to raise. The error's text advises the user what to do."""
    if refused.part == IMAGE:
        return ConfigurationError(f"ACASessions:ContainerImage: it lacks {refused.message}. {lines_for_image(refused.message)}")
    return IsolationError(refused.part, refused.message, remedy_for(refused.part, refused.errno))


def _start(python: str, control: socket.socket) -> "subprocess.Popen[bytes]":
    """Start the zygote. Pass it its end of the control socket, a descriptor of the package's source folder, and a pidfd of this process."""
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
