"""Preloads once and waits to fork. Holds no secret: every session can read what was ever in its memory."""

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
from . import bare, confine, image, root
from .bare import Bare
from .namespaces import Namespaced
from .refusal import RefusalError, part

if TYPE_CHECKING:
    from .shell import Shell

World = Union[Bare, Namespaced]

_BROUGHT = {ShowTree: 1, Spawn: 2}  # descriptors
_GO_ON = "import sys; sys.path.append({!r}); from aca_sessions.sandbox.guest.zygote import go_on; go_on()"


def main() -> None:
    """Turns a plain interpreter, started with -I -S, into a fork server in a world of its own."""
    control, code, host = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
    try:
        plan = decode(control.recv(1 << 20), Plan)
        _check_kernel()
        source = f"/proc/self/fd/{code}"
        if plan.base:
            home, world = f"{plan.base}/code", _without_namespaces(plan, source)
        else:
            home, world = root.GUEST_CODE, str(_settle(plan, source))
        program = image.python(plan.python) if plan.image else _own_program()
        os.close(code)
        _begin_again(program, (control.fileno(), host), home, [world, *plan.preload])
    except RefusalError as refusal:
        control.send(encode(refusal.told))
        sys.exit(1)


def _check_kernel() -> None:
    """What no kind of session does without is looked for at once, and told in words."""
    with part("Landlock"):
        if syscalls.landlock_version() == 0:
            raise OSError(errno.ENOSYS, "this kernel has no Landlock")
    with part("seccomp"):
        syscalls.check_filters()


def go_on() -> None:
    """The same fork server as a program of its own root, with the environment's own packages."""
    import site

    control, host = int(sys.argv[1]), int(sys.argv[2])
    for descriptor in (control, host):
        os.set_inheritable(descriptor, False)
    world, preload = _world(sys.argv[3], sys.argv[4:])
    code = sys.path.pop()
    site.main()
    image.add_supply()
    sys.path.append(code)
    preload_and_serve(socket.socket(fileno=control), host, world, preload)


def preload_and_serve(control: socket.socket, host: int, world: World, preload: list[str]) -> None:
    """Builds the shell before any session needs it, then forks on request until the host is gone."""
    try:
        from . import cells, init, packages, seeds  # noqa: F401 - what every session needs
        from .shell import build_shell

        shell = build_shell(preload)
    except ImportError as error:
        part = "preload" if error.name in preload else "IPython in the guests' environment"
        control.send(encode(Refused(part, 0, str(error))))
        sys.exit(1)
    own = os.getpid()
    world.settle()
    gc.collect()
    gc.disable()
    gc.freeze()  # a collection in a session would otherwise write to, and so copy, every page of the zygote
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    _allow_many_descriptors()
    control.send(encode(Done()))
    try:
        _Forking(control, world, shell).serve(host)
    finally:
        if os.getpid() == own:
            world.end()


def _world(first: str, rest: list[str]) -> tuple[World, list[str]]:
    """How sessions are held, as `main` found it out, and what else it said: the modules to preload."""
    if first.isdecimal():
        os.set_inheritable(int(first), False)
        syscalls.die_with_parent()
        syscalls.set_dumpable(False)  # from here on no other process of this user may read or trace it
        return Namespaced(int(first)), rest
    return Bare.told(first), rest


def _allow_many_descriptors() -> None:
    """The kernel counts the descriptors on their way between sockets for each user, and sessions of an ordinary user are that user. What
    one of them can send within its own limit must not keep us from sending one.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Forking:
    def __init__(self, control: socket.socket, world: World, shell: Shell) -> None:
        self._control = control
        self._world = world
        self._shell = shell

    def serve(self, host: int) -> None:
        """Answers one request at a time, until the host ends: it may do so in the middle of one."""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            self._serve(host)

    def _serve(self, host: int) -> None:
        """The host's end is seen twice over: a process it forked may hold the socket open."""
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
        if len(descriptors) != _BROUGHT.get(type(request), 0):  # this process had none free: the kernel dropped some on the way
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if isinstance(request, MakeTree):
            return [self._world.make_tree(request)]
        if isinstance(request, Spawn):
            return [self._spawn(request, descriptors)]
        if isinstance(request, DropTree):
            self._world.drop_tree(request.tree)
        elif isinstance(request, ShowTree):
            self._world.show_tree(request.tree, descriptors[0])
        return []

    def _send_done(self, request: Message, made: list[int]) -> None:
        """Tell the host. If sessions of this user have too many descriptors on their way, ours cannot be sent: undo what was made."""
        try:
            socket.send_fds(self._control, [encode(Done())], made)
        except OSError:
            if isinstance(request, MakeTree):
                self._world.drop_tree(request.tree)
            raise  # a session that was spawned ends as its host closes the link

    def _spawn(self, request: Spawn, descriptors: list[int]) -> int:
        connection, report = descriptors
        pid = self._world.fork(request.tree)
        if pid == 0:
            self._become_session(request, connection, report)
        self._world.remember(request.tree, pid)
        return os.pidfd_open(pid)

    def _become_session(self, request: Spawn, connection: int, report: int) -> NoReturn:
        try:
            from . import init

            confine.close_all_but(connection, report)
            init.main(request, self._world, connection, report, self._shell)
        finally:
            os._exit(70)


def _settle(plan: Plan, code: str) -> int:
    """Leaves the host's world; only the zygote itself, first process of a new pid namespace, comes back from here."""
    os.umask(0o022)
    _limit_all_sessions(plan.processes)
    base = _as_root(plan, code) if plan.uid_count else _as_user(plan, code)
    with part("root folder"):
        namespace = root.enter(base)
    with part("limits"):
        _share_inotify()
    with part("host name"):  # here, so that who may not is told at once; each session has a copy of it
        syscalls.unshare(Namespace.UTS)
        syscalls.set_host_name(b"session")
    os.set_inheritable(namespace, True)
    return namespace


def _limit_all_sessions(processes: int) -> None:
    """The user namespace that is made next takes these as the most that all in it, and in those below it, may have (user_namespaces(7))."""
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    most = processes if hard == resource.RLIM_INFINITY else min(processes, hard)
    resource.setrlimit(resource.RLIMIT_NPROC, (most, most))
    _, hard = resource.getrlimit(resource.RLIMIT_SIGPENDING)
    if hard != resource.RLIM_INFINITY:  # the other half is for the host's own processes of this user
        resource.setrlimit(resource.RLIMIT_SIGPENDING, (hard // 2, hard // 2))


def _share_inotify() -> None:
    """Leaves half of a user's inotify instances and watches to the host: the kernel counts those of namespaces below as the user's too."""
    for name in ("instances", "watches"):
        with open(f"/proc/sys/fs/inotify/max_user_{name}") as most:
            confine.write_file(f"/proc/sys/user/max_inotify_{name}", str(int(most.read()) // 2))


def _as_root(plan: Plan, code: str) -> str:
    """Real root builds the root (its interpreter may lie where only root may go), then a child without power takes over."""
    with part("mount namespace"):
        syscalls.unshare(Namespace.MOUNT)
    with part("root folder"):
        base = root.build(plan, code)
        os.chdir(base)
    told, mapped = os.pipe(), os.pipe()
    child = os.fork()
    if child:
        _map_and_wait(plan, child, told, mapped)
    syscalls.die_with_parent()
    _become(plan.first_uid)
    syscalls.die_with_parent()  # each change of user has cleared it
    with part("user namespace"):
        syscalls.unshare(Namespace.USER)
    os.write(told[1], b"u")
    os.close(mapped[1])
    if not os.read(mapped[0], 1):
        sys.exit(1)
    for descriptor in (*told, mapped[0]):
        os.close(descriptor)
    with part("user namespace"):  # AppArmor lets one be made, and nothing be done in it
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    syscalls.die_with_parent()
    with part("mount and pid namespaces"):
        syscalls.unshare(Namespace.MOUNT | Namespace.PID)
    _fork_first_process()
    return base


def _is_root_outside() -> bool:
    with open("/proc/self/uid_map") as lines:
        return any(line.split()[:2] == ["0", "0"] for line in lines)


def _map_and_wait(plan: Plan, child: int, told: tuple[int, int], mapped: tuple[int, int]) -> NoReturn:
    """Only real root may map more than one id."""
    os.close(told[1])
    try:
        if not os.read(told[0], 1):
            sys.exit(1)  # the child said why
        with part("uid range"):
            for name in ("uid_map", "gid_map"):
                confine.write_file(f"/proc/{child}/{name}", f"0 {plan.first_uid} {plan.uid_count}")
        _become(plan.first_uid)
        os.write(mapped[1], b"m")
    except BaseException:
        os.close(mapped[1])
        os.waitpid(child, 0)
        raise
    _wait_for(child)


def _as_user(plan: Plan, code: str) -> str:
    uid, gid = os.getuid(), os.getgid()
    real_root = uid == 0 and _is_root_outside()
    with part("user namespace"):
        syscalls.unshare(Namespace.USER)
    with part("uid"):
        if real_root:
            raise PermissionError(errno.EPERM, "this root has no other uids to give away, and guests would be root on the host")
    with part("user namespace"):
        confine.map_ids(0, uid, gid)
    with part("mount and pid namespaces"):
        syscalls.unshare(Namespace.MOUNT | Namespace.PID)
    _fork_first_process()
    with part("root folder"):
        return root.build(plan, code)


def _become(uid: int) -> None:
    """Become a uid that no other process of the host has: it owns the user namespace, and so every session in it."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    syscalls.set_dumpable(True)


def _fork_first_process() -> None:
    child = os.fork()
    if child:
        _wait_for(child)
    syscalls.die_with_parent()


def _wait_for(child: int) -> NoReturn:
    confine.close_all_but()
    os.waitpid(child, 0)
    os._exit(0)


def _without_namespaces(plan: Plan, code: str) -> str:
    """Nothing is left but to put the sessions' own code where they may read it."""
    os.umask(0o022)
    bare.check(plan)
    with part("sessions' folder"):
        root.copy_code(Path(code), Path(plan.base, "code"))
        os.environ |= dict.fromkeys(("HOME", "IPYTHONDIR", "MPLCONFIGDIR"), plan.base)
    return bare.told_by(plan)


def _own_program() -> str:
    return sys.executable if os.path.exists(sys.executable) else os.readlink("/proc/self/exe")


def _begin_again(program: str, descriptors: Sequence[int], code: str, told: Sequence[str]) -> NoReturn:
    """Starts the interpreter anew from inside the root, where its program is read-only.

    The kernel remembers how a running program was found: /proc/self/exe leads to it through the host's own mount, and whoever owns the
    file (an ordinary user's sessions are that user) could change its mode there.
    """
    with part("Python inside the root"):
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)
        os.execv(program, [program, "-I", "-S", "-B", "-c", _GO_ON.format(code), *map(str, descriptors), *told])  # noqa: S606
