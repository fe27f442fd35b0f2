"""The guest half of the fork server: a process that preloads libraries once, then forks a session on each request.

It holds no secret: every session can read all that was ever in the zygote's memory.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import select
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Union

from .. import syscalls
from ..syscalls import Namespace
from ..wire import Done, DropTree, MakeTree, Message, Ping, Plan, Refused, ShowTree, Spawn, WireError, decode, encode
from .isolation import confine, no_namespaces, root
from .isolation.namespaces import NamespaceIsolation
from .isolation.no_namespaces import NoNamespaceIsolation
from .isolation.root import RefusalError, isolation_step

if TYPE_CHECKING:
    from .notebook.shell import Shell

Isolation = Union[NoNamespaceIsolation, NamespaceIsolation]

_DESCRIPTOR_COUNTS = {ShowTree: 1, Spawn: 2}  # how many descriptors come with a request
_EXEC_CODE = "import sys; sys.path.append({!r}); from aca_sessions.sandbox.guest.zygote import continue_after_exec; continue_after_exec()"


def main() -> None:
    """Prepare the isolation of sessions, then exec the Python that forks them.

    With namespaces, build the template root and enter it. Without namespaces, check the host. If a step of the isolation fails, send
    `Refused` and exit with status 1.

    The host starts this program with `python -I -S`. Its arguments are three descriptors: the control socket, the folder of this package's
    sources, and a pidfd of the host's process.
    """
    control, code, host = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
    try:
        plan = decode(control.recv(1 << 20), Plan)
        _check_kernel()
        source = f"/proc/self/fd/{code}"
        if plan.base:
            home, isolation = f"{plan.base}/code", _prepare_without_namespaces(plan, source)
        else:
            home, isolation = root.GUEST_CODE, str(_prepare_namespaces(plan, source))
        program = root.find_image_python(plan.python) if plan.image else _own_program()
        os.close(code)
        _exec_python(program, (control.fileno(), host), home, [isolation, *plan.preload])
    except RefusalError as refusal:
        control.send(encode(refusal.report))
        sys.exit(1)


def _check_kernel() -> None:
    with isolation_step("Landlock"):
        if syscalls.landlock_version() == 0:
            raise OSError(errno.ENOSYS, "this kernel has no Landlock")
    with isolation_step("seccomp"):
        syscalls.check_filters()


def continue_after_exec() -> None:
    """Add the packages of the sessions' Python environment to the import path, then serve the host.

    The Python that `main` execs calls this function.
    """
    import site

    control, host = int(sys.argv[1]), int(sys.argv[2])
    for descriptor in (control, host):
        os.set_inheritable(descriptor, False)
    isolation, preload = _create_isolation(sys.argv[3], sys.argv[4:])
    code = sys.path.pop()
    site.main()
    root.add_host_ipython()
    sys.path.append(code)  # last, behind the environment's packages
    preload_and_serve(socket.socket(fileno=control), host, isolation, preload)


def preload_and_serve(control: socket.socket, host: int, isolation: Isolation, preload: list[str]) -> None:
    """Build the shell, then fork a session on each request, until the host ends.

    Args:
        control: The socket on which the host sends requests and this process replies.
        host: A pidfd of the host's process.
        isolation: Isolates the sessions.
        preload: The modules to import before any session is forked.
    """
    try:
        from . import cells  # noqa: F401 - what every session needs
        from .isolation import init  # noqa: F401
        from .notebook.shell import build_shell

        shell = build_shell(preload)
    except ImportError as error:
        part = "preload" if error.name in preload else "IPython in the guests' environment"
        control.send(encode(Refused(part, 0, str(error))))
        sys.exit(1)
    own = os.getpid()
    isolation.unmount_tmp()
    gc.collect()
    gc.disable()
    # A collection in a session would otherwise write to, and so copy, every page of the zygote. Measured: 27 MB a session (3.11).
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel collects dead children
    _allow_many_descriptors()
    try:
        control.send(encode(Done()))
    except BrokenPipeError:  # the host ended while the libraries loaded
        sys.exit(1)
    try:
        _RequestLoop(control, isolation, shell).serve(host)
    finally:
        if os.getpid() == own:
            isolation.end_sessions()


def _create_isolation(first: str, rest: list[str]) -> tuple[Isolation, list[str]]:
    """Create a `NamespaceIsolation` if `first` is the number of a descriptor, or a `NoNamespaceIsolation` if it is JSON.

    Return it with `rest`, which is unchanged. With namespaces, also make this process end with its parent, and forbid tracing it.
    """
    if first.isdecimal():
        os.set_inheritable(int(first), False)
        syscalls.die_with_parent()
        syscalls.set_dumpable(False)  # no other process of this user may read or trace this one from now on
        return NamespaceIsolation(int(first)), rest
    return NoNamespaceIsolation.from_json(first), rest


def _allow_many_descriptors() -> None:
    # The kernel counts descriptors in flight between sockets for each user (unix(7), ETOOMANYREFS), and on an unprivileged host all
    # sessions are the same user. What one of them can send within its own limit must not keep the zygote from sending one.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _RequestLoop:
    def __init__(self, control: socket.socket, isolation: Isolation, shell: Shell) -> None:
        self._control = control
        self._isolation = isolation
        self._shell = shell

    def serve(self, host: int) -> None:
        """Carry out requests until the host ends or closes the socket. `host` is a pidfd of the host's process."""
        # The host may end in the middle of a request.
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            self._serve(host)

    def _serve(self, host: int) -> None:
        # Both the socket and the host's pidfd are watched: a process that the host forked may hold the socket open.
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(host, select.POLLIN)
        while not any(descriptor == host for descriptor, _ in poll.poll()):
            payload, descriptors, _, _ = socket.recv_fds(self._control, 1 << 16, 4)
            if not payload:
                return
            try:
                self._answer(payload, descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

    def _answer(self, payload: bytes, descriptors: list[int]) -> None:
        try:
            request: Message = decode(payload, MakeTree, DropTree, ShowTree, Spawn, Ping)
            made = self._carry_out(request, descriptors)
            try:
                self._send_done(request, made)
            finally:
                for descriptor in made:
                    os.close(descriptor)
        except (OSError, WireError) as error:
            refused = Refused("session", getattr(error, "errno", None) or 0, str(error))
            self._control.send(encode(refused))

    def _carry_out(self, request: Message, descriptors: list[int]) -> list[int]:
        # The kernel drops descriptors if this process has no free one (unix(7)).
        if len(descriptors) != _DESCRIPTOR_COUNTS.get(type(request), 0):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if isinstance(request, MakeTree):
            return [self._isolation.make_workspace(request)]
        if isinstance(request, Spawn):
            return [self._spawn(request, descriptors)]
        if isinstance(request, DropTree):
            self._isolation.remove_workspace(request.tree)
        elif isinstance(request, ShowTree):
            self._isolation.mount_workspace(request.tree, descriptors[0])
        return []

    def _send_done(self, request: Message, made: list[int]) -> None:
        """Send `Done` to the host, with the descriptors `made`. If it fails, remove a workspace that was created and raise OSError."""
        try:  # fails if sessions of this user have too many descriptors in flight
            socket.send_fds(self._control, [encode(Done())], made)
        except OSError:
            if isinstance(request, MakeTree):
                self._isolation.remove_workspace(request.tree)
            raise  # a spawned session needs no undoing: it ends when the host closes the link

    def _spawn(self, request: Spawn, descriptors: list[int]) -> int:
        connection, report = descriptors
        pid = self._isolation.fork(request.tree)
        if pid == 0:
            self._become_session(request, connection, report)
        self._isolation.record_init(request.tree, pid)
        return os.pidfd_open(pid)

    def _become_session(self, request: Spawn, connection: int, report: int) -> NoReturn:
        try:
            from .isolation import init

            confine.close_other_descriptors(connection, report)
            init.main(request, self._isolation, connection, report, self._shell)
        finally:
            os._exit(70)


def _prepare_namespaces(plan: Plan, code: str) -> int:
    """Leave the host's namespaces and enter the template root. Return a descriptor of the new pid namespace.

    This function forks and returns only in the zygote, the first process of that namespace. The zygote's ancestors wait for its end, then
    exit.
    """
    os.umask(0o022)
    _limit_all_sessions(plan.processes)
    base = _build_as_root(plan, code) if plan.uid_count else _build_as_user(plan, code)
    with isolation_step("root folder"):
        namespace = root.enter(base)
    with isolation_step("limits"):
        _limit_inotify()
    with isolation_step("host name"):  # once, so that a refusal is reported at the start; each session gets a copy of the namespace
        syscalls.unshare(Namespace.UTS)
        syscalls.set_host_name(b"session")
    os.set_inheritable(namespace, True)
    return namespace


def _limit_all_sessions(processes: int) -> None:
    """Limit how many processes and pending signals all sessions can have together."""
    # The user namespace that is created next takes these limits as the most that it and the namespaces below it may have
    # (user_namespaces(7)).
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    most = processes if hard == resource.RLIM_INFINITY else min(processes, hard)
    resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
    _, hard = resource.getrlimit(resource.RLIMIT_SIGPENDING)
    if hard != resource.RLIM_INFINITY:  # the other half is for the host's own processes of this user
        resource.setrlimit(resource.RLIMIT_SIGPENDING, (hard // 2, hard // 2))


def _limit_inotify() -> None:
    """Limit all sessions together to half of the inotify instances and watches that this user may have. The host keeps the other half."""
    # The kernel counts those of the namespaces below as the user's, too.
    for name in ("instances", "watches"):
        with open(f"/proc/sys/fs/inotify/max_user_{name}") as most:
            confine.write_file(f"/proc/sys/user/max_inotify_{name}", str(int(most.read()) // 2))


def _build_as_root(plan: Plan, code: str) -> str:
    """Build the template root as the host's root user, then continue without privileges in a new process.

    Return, in that process, the folder over which the template root is mounted.
    """
    with isolation_step("mount namespace"):
        syscalls.unshare(Namespace.MOUNT)
    with isolation_step("root folder"):  # first, because the Python environment may lie in a folder that only root of the host can enter
        base = root.build(plan, code)
        os.chdir(base)
    created, mapped = os.pipe(), os.pipe()  # child: "I have a user namespace"; parent: "its ids are mapped"
    child = os.fork()
    if child:
        _map_and_wait(plan, child, created, mapped)
    syscalls.die_with_parent()
    _change_user(plan.first_uid)
    syscalls.die_with_parent()  # again: a change of user clears it (prctl(2), PR_SET_PDEATHSIG)
    with isolation_step("user namespace"):
        syscalls.unshare(Namespace.USER)
    os.write(created[1], b"u")
    os.close(mapped[1])
    if not os.read(mapped[0], 1):
        sys.exit(1)
    for descriptor in (*created, mapped[0]):
        os.close(descriptor)
    with isolation_step("user namespace"):  # AppArmor may let a user namespace be created and then forbid everything in it
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    syscalls.die_with_parent()
    with isolation_step("mount and pid namespaces"):
        syscalls.unshare(Namespace.MOUNT | Namespace.PID)
    _fork_first_process()
    return base


def _is_host_root() -> bool:
    with open("/proc/self/uid_map") as lines:
        return any(line.split()[:2] == ["0", "0"] for line in lines)


def _map_and_wait(plan: Plan, child: int, created: tuple[int, int], mapped: tuple[int, int]) -> NoReturn:
    """Map the ids of the child's user namespace, then wait until the child ends, and exit.

    The child writes to the pipe `created` when its namespace exists. This process writes to the pipe `mapped` when the ids are mapped.
    """
    # The kernel lets only a process that is root on the host map more than one id.
    os.close(created[1])
    try:
        if not os.read(created[0], 1):
            sys.exit(1)  # the child sent the reason
        with isolation_step("uid range"):
            for name in ("uid_map", "gid_map"):
                confine.write_file(f"/proc/{child}/{name}", f"0 {plan.first_uid} {plan.uid_count}")
        _change_user(plan.first_uid)
        os.write(mapped[1], b"m")
    except BaseException:
        os.close(mapped[1])
        os.waitpid(child, 0)
        raise
    _wait_and_exit(child)


def _build_as_user(plan: Plan, code: str) -> str:
    uid, gid = os.getuid(), os.getgid()
    real_root = uid == 0 and _is_host_root()
    with isolation_step("user namespace"):
        syscalls.unshare(Namespace.USER)
    with isolation_step("uid"):
        if real_root:
            raise PermissionError(errno.EPERM, "this root user has no other uids for sessions, which would run as root of the host")
    with isolation_step("user namespace"):
        confine.map_ids(0, uid, gid)
    with isolation_step("mount and pid namespaces"):
        syscalls.unshare(Namespace.MOUNT | Namespace.PID)
    _fork_first_process()
    with isolation_step("root folder"):
        return root.build(plan, code)


def _change_user(uid: int) -> None:
    """Make this process run as the user `uid`, which no other process of the host uses.

    Keep the process dumpable, so that this user owns the process's files in /proc.
    """
    # The uid that creates a user namespace has every capability in it (user_namespaces(7)), and so in every session. Many programs of a
    # host run as `nobody`, so that user would not do.
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    syscalls.set_dumpable(True)  # a change of user clears it, and this process's files in /proc would belong to root


def _fork_first_process() -> None:
    child = os.fork()
    if child:
        _wait_and_exit(child)
    syscalls.die_with_parent()


def _wait_and_exit(child: int) -> NoReturn:
    confine.close_other_descriptors()
    os.waitpid(child, 0)
    os._exit(0)


def _prepare_without_namespaces(plan: Plan, code: str) -> str:
    """Check that the host can run sessions without namespaces, and copy the guest's code below `plan.base`.

    Return the arguments of `NoNamespaceIsolation` as JSON text.
    """
    os.umask(0o022)
    no_namespaces.check_host(plan)
    with isolation_step("sessions' folder"):
        root.copy_code(Path(code), Path(plan.base, "code"))
        os.environ |= dict.fromkeys(("HOME", "IPYTHONDIR", "MPLCONFIGDIR"), plan.base)
    return no_namespaces.encode_arguments(plan)


def _own_program() -> str:
    return sys.executable if os.path.exists(sys.executable) else os.readlink("/proc/self/exe")


def _exec_python(program: str, descriptors: Sequence[int], code: str, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by the Python `program`, which imports this module from the folder `code` and calls `continue_after_exec`.

    The program's arguments are the numbers of `descriptors`, then `arguments`. The descriptors stay open.
    """
    # The kernel remembers how a running program was found: without this, /proc/self/exe leads to its file through the host's own mount.
    # On an unprivileged host the sessions' user may own that file, and could change its mode there.
    with isolation_step("Python inside the root"):
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        os.execv(program, [program, "-I", "-S", "-B", "-c", _EXEC_CODE.format(code), *map(str, descriptors), *arguments])  # noqa: S606
