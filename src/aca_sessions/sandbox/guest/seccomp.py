"""The system calls that guest code may make: an allow list, as a classic BPF program made by hand."""

import errno
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..syscalls import ARCHITECTURES, MACHINE, Namespace

# Name, number on x86_64 / on aarch64. Left out on purpose: System V and POSIX queues, shared memory and semaphores, AIO, io_uring,
# vmsplice, memory policy, name_to_handle_at, memfd_secret, landlock, seccomp, keyrings, ptrace, bpf, and all that mounts or
# changes namespaces.
_BOTH = """
    read 0/63 write 1/64 readv 19/65 writev 20/66 pread64 17/67 pwrite64 18/68 preadv 295/69 pwritev 296/70 preadv2 327/286 pwritev2
    328/287 lseek 8/62 sendfile 40/71 splice 275/76 tee 276/77 copy_file_range 326/285 openat 257/56 openat2 437/437 close 3/57
    close_range 436/436 dup 32/23 dup3 292/24 fcntl 72/25 flock 73/32 ioctl 16/29 pipe2 293/59 fstat 5/80 newfstatat 262/79 statx
    332/291 statfs 137/43 fstatfs 138/44 faccessat 269/48 faccessat2 439/439 readlinkat 267/78 getcwd 79/17 chdir 80/49 fchdir 81/50
    getdents64 217/61 mkdirat 258/34 unlinkat 263/35 renameat 264/38 renameat2 316/276 linkat 265/37 symlinkat 266/36 mknodat 259/33
    fchmod 91/52 fchmodat 268/53 fchmodat2 452/452 fchown 93/55 fchownat 260/54 umask 95/166 truncate 76/45 ftruncate 77/46 fallocate
    285/47 fadvise64 221/223 readahead 187/213 sync 162/81 fsync 74/82 fdatasync 75/83 syncfs 306/267 sync_file_range 277/84 utimensat
    280/88 getxattr 191/8 lgetxattr 192/9 fgetxattr 193/10 setxattr 188/5 lsetxattr 189/6 fsetxattr 190/7 listxattr 194/11 llistxattr
    195/12 flistxattr 196/13 removexattr 197/14 lremovexattr 198/15 fremovexattr 199/16 inotify_init1 294/26 inotify_add_watch 254/27
    inotify_rm_watch 255/28 brk 12/214 mmap 9/222 munmap 11/215 mremap 25/216 mprotect 10/226 madvise 28/233 msync 26/227 mincore 27/232
    mlock 149/228 mlock2 325/284 munlock 150/229 mlockall 151/230 munlockall 152/231 memfd_create 319/279 membarrier 324/283 mseal
    462/462 map_shadow_stack 453/453 pkey_alloc 330/289 pkey_free 331/290 pkey_mprotect 329/288 clone 56/220 execve 59/221 execveat
    322/281 exit 60/93 exit_group 231/94 wait4 61/260 waitid 247/95 kill 62/129 tkill 200/130 tgkill 234/131 pidfd_open 434/434
    pidfd_send_signal 424/424 futex 202/98 futex_waitv 449/449 set_robust_list 273/99 get_robust_list 274/100 set_tid_address 218/96
    rseq 334/293 restart_syscall 219/128 prctl 157/167 personality 135/92 rt_sigaction 13/134 rt_sigprocmask 14/135 rt_sigpending
    127/136 rt_sigreturn 15/139 rt_sigsuspend 130/133 rt_sigtimedwait 128/137 rt_sigqueueinfo 129/138 rt_tgsigqueueinfo 297/240
    sigaltstack 131/132 signalfd4 289/74 getpid 39/172 getppid 110/173 gettid 186/178 getpgid 121/155 setpgid 109/154 getsid 124/156
    setsid 112/157 getuid 102/174 geteuid 107/175 getgid 104/176 getegid 108/177 getresuid 118/148 getresgid 120/150 getgroups 115/158
    setuid 105/146 setgid 106/144 setreuid 113/145 setregid 114/143 setresuid 117/147 setresgid 119/149 setfsuid 122/151 setfsgid
    123/152 capget 125/90 getrlimit 97/163 setrlimit 160/164 prlimit64 302/261 getrusage 98/165 times 100/153 sysinfo 99/179 uname
    63/160 getcpu 309/168 getpriority 140/141 setpriority 141/140 ioprio_get 252/31 ioprio_set 251/30 sched_yield 24/124
    sched_getaffinity 204/123 sched_setaffinity 203/122 sched_getparam 143/121 sched_setparam 142/118 sched_getscheduler 145/120
    sched_setscheduler 144/119 sched_getattr 315/275 sched_setattr 314/274 sched_get_priority_max 146/125 sched_get_priority_min 147/126
    sched_rr_get_interval 148/127 gettimeofday 96/169 clock_gettime 228/113 clock_getres 229/114 clock_nanosleep 230/115 nanosleep
    35/101 getitimer 36/102 setitimer 38/103 timer_create 222/107 timer_settime 223/110 timer_gettime 224/108 timer_getoverrun 225/109
    timer_delete 226/111 timerfd_create 283/85 timerfd_settime 286/86 timerfd_gettime 287/87 getrandom 318/278 ppoll 271/73 pselect6
    270/72 epoll_create1 291/20 epoll_ctl 233/21 epoll_pwait 281/22 epoll_pwait2 441/441 eventfd2 290/19 socket 41/198 socketpair 53/199
    bind 49/200 connect 42/203 listen 50/201 accept 43/202 accept4 288/242 getsockname 51/204 getpeername 52/205 getsockopt 55/209
    setsockopt 54/208 shutdown 48/210 sendto 44/206 recvfrom 45/207 sendmsg 46/211 recvmsg 47/212 sendmmsg 307/269 recvmmsg 299/243
"""
_X86_64_ONLY = """
    open 2 creat 85 dup2 33 pipe 22 stat 4 lstat 6 access 21 readlink 89 getdents 78 mkdir 83 rmdir 84 unlink 87 rename 82 link 86
    symlink 88 mknod 133 chmod 90 chown 92 lchown 94 utime 132 utimes 235 futimesat 261 inotify_init 253 fork 57 vfork 58 arch_prctl 158
    signalfd 282 pause 34 alarm 37 getpgrp 111 time 201 poll 7 select 23 epoll_create 213 epoll_wait 232 eventfd 284
"""
# RLIMIT_AS does not see a memfd: without a memory cgroup it would be a way round the limit.
_ESCAPES_ADDRESS_SPACE_LIMIT = "memfd_create"

# Where no namespace, no user of its own or no scope of signals holds a session, these would reach what is the host's.
_WATCHES = (
    *("inotify_init", "inotify_init1", "inotify_add_watch", "inotify_rm_watch", "getxattr", "lgetxattr", "fgetxattr", "listxattr"),
    *("llistxattr", "flistxattr", "setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr"),
)
_CONNECTS = ("bind", "connect", "listen", "accept", "accept4")
# Landlock asks nobody who may change a file's mode, owner or times: the kernel asks only whose the file is.
_CHANGES_WITHOUT_OPENING = (
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat", "utime", "utimes", "futimesat", "utimensat"),
)
_SIGNALS = ("kill", "tkill", "tgkill", "pidfd_send_signal", "rt_sigqueueinfo", "rt_tgsigqueueinfo")
_OWNERS_OF_SIGNALS = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX
_ON_ITSELF = {"prlimit64": 0, "sched_setaffinity": 0, "sched_setparam": 0, "sched_setscheduler": 0, "sched_setattr": 0}
_ON_ONE_PROCESS = {"setpriority": 0, "ioprio_set": 1}  # PRIO_PROCESS, IOPRIO_WHO_PROCESS
# FIONREAD, FIONBIO, FIOCLEX, FIONCLEX, TCGETS, TIOCGWINSZ: others set flags of files that are only open to be read.
_HARMLESS_CONTROLS = (0x541B, 0x5421, 0x5451, 0x5450, 0x5401, 0x5413)

_AUDIT_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000
_FIRST_MODERN = 424  # from here on libc has a fall-back, which it takes on ENOSYS only

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

_NEW_NAMESPACES = Namespace.MOUNT | Namespace.CGROUP | Namespace.UTS | Namespace.IPC | Namespace.USER | Namespace.PID | Namespace.NETWORK
_UNIX, _INET, _INET6 = 1, 2, 10
_PLAIN_PROTOCOLS = (0, 6, 17)  # default, TCP, UDP
_STREAM, _DATAGRAM, _SOCKET_TYPE = 1, 2, 0xF
_TIOCSTI, _TIOCLINUX, _TIOCSETD = 0x5412, 0x541C, 0x5423  # the last loads line disciplines
_PR_SET_SECCOMP, _PR_SET_MM = 22, 35
_FILE_TYPE = 0o170000
_HARMLESS_FILE_TYPES = (0, 0o010000, 0o100000, 0o140000)  # none, FIFO, regular, socket: no devices


@dataclass(frozen=True)
class Walls:
    """What separates a session besides the filter; where something is missing, the filter refuses what would need it."""

    namespaces: bool = False
    own_user: bool = False  # no file of the host's is its user's, and no process
    own_signals: bool = False  # none reaches a process outside
    network: bool = False  # it may use the host's


NAMESPACES = Walls(namespaces=True, own_user=True, own_signals=True, network=True)


def program(memory_is_counted: bool, machine: str = MACHINE, *, walls: Walls = NAMESPACES) -> bytes:
    """The filter for this machine; memfd only where a cgroup counts the memory behind it."""
    numbers = allowed(machine)
    if not memory_is_counted:
        del numbers[_ESCAPES_ADDRESS_SPACE_LIMIT]
    for name in _needing_more(walls):
        numbers.pop(name, None)
    bare = [] if walls.namespaces else [*_bare_rules(numbers, walls)]
    rules = [*_prologue(machine), *bare, *_argument_rules(numbers, machine), *_allow_ranges(numbers.values())]
    rules += [_jump(_AT_LEAST, _FIRST_MODERN, 0, 1), _refuse(errno.ENOSYS), _refuse(errno.EPERM)]
    return b"".join(rules)


def allowed(machine: str = MACHINE) -> dict[str, int]:
    """The allowed calls and their numbers on a machine."""
    words = _BOTH.split()
    column = ARCHITECTURES.index(machine)
    numbers = {name: int(pair.split("/")[column]) for name, pair in zip(words[::2], words[1::2])}
    if machine == "x86_64":
        old = _X86_64_ONLY.split()
        numbers |= {name: int(number) for name, number in zip(old[::2], old[1::2])}
    return numbers


def _prologue(machine: str) -> Iterator[bytes]:
    """A foreign instruction set has other numbers: it ends the process. x32 is one in disguise."""
    yield _load(_ARCHITECTURE)
    yield _jump(_EQUAL, _AUDIT_ARCHITECTURE[machine], 1, 0)
    yield _return(_KILL_PROCESS)
    yield _load(_NUMBER)
    if machine == "x86_64":
        yield _jump(_AT_LEAST, _X32_BIT, 0, 1)
        yield _refuse(errno.ENOSYS)


def _needing_more(walls: Walls) -> list[str]:
    """The calls that a wall must hold which is not there."""
    by_user = ((walls.own_user, _CHANGES_WITHOUT_OPENING), (walls.own_signals, _SIGNALS))
    needed = ((walls.namespaces, _WATCHES), (walls.network, _CONNECTS), *by_user)
    return [name for there, names in needed if not there for name in names]


def _bare_rules(numbers: dict[str, int], walls: Walls) -> Iterator[bytes]:
    """Rules in the place of stricter walls: no path names a Unix socket of the host's, and no number another process."""
    yield from _rule(numbers.pop("socketpair"), _connected_pair())
    by_the_internet = [_argument(0), _jump(_EQUAL, _UNIX, 0, 1), _refuse(errno.EAFNOSUPPORT), *_socket_rule()]
    yield from _rule(numbers.pop("socket"), by_the_internet if walls.network else [_refuse(errno.EAFNOSUPPORT)])
    for name, argument in _ON_ITSELF.items():
        yield from _rule(numbers.pop(name), _only_values([_argument(argument)], (0,)))
    for name, one_process in _ON_ONE_PROCESS.items():
        itself = _only_values([_argument(1)], (0,))
        yield from _rule(numbers.pop(name), [_argument(0), _jump(_EQUAL, one_process, 1, 0), _refuse(errno.EPERM), *itself])
    yield from _rule(numbers.pop("ioctl"), _only_values([_argument(1)], _HARMLESS_CONTROLS, otherwise=errno.ENOTTY))
    if not walls.own_signals:
        yield from _rule(numbers.pop("fcntl"), _deny_values(1, _OWNERS_OF_SIGNALS))


def _connected_pair() -> list[bytes]:
    """Only a stream keeps to its other end: a datagram may be addressed to any socket that has a path."""
    kind = _only_values(_masked(1, _SOCKET_TYPE), (_STREAM,), otherwise=errno.ESOCKTNOSUPPORT)
    return [_argument(0), _jump(_EQUAL, _UNIX, 1, 0), _refuse(errno.EAFNOSUPPORT), *kind]


def _argument_rules(numbers: dict[str, int], machine: str) -> Iterator[bytes]:
    """Calls that depend on an argument. Each rule decides for good, and takes its call out of the plain list."""
    # clone3 hides its flags behind a pointer; glibc falls back to clone.
    yield from _rule(435, [_refuse(errno.ENOSYS)])
    yield from _rule(numbers.pop("clone"), [_argument(0), _jump(_ANY_BIT, _NEW_NAMESPACES, 0, 1), _refuse(errno.EPERM), _return(_ALLOW)])
    if "socket" in numbers:
        yield from _rule(numbers.pop("socket"), _socket_rule())
    if "socketpair" in numbers:
        # A socket of any family is made before the kernel finds that the family knows no pairs.
        yield from _rule(numbers.pop("socketpair"), _only_values([_argument(0)], (_UNIX,), otherwise=errno.EAFNOSUPPORT))
    if "ioctl" in numbers:
        yield from _rule(numbers.pop("ioctl"), _deny_values(1, (_TIOCSTI, _TIOCLINUX, _TIOCSETD)))
    yield from _rule(numbers.pop("prctl"), _deny_values(0, (_PR_SET_SECCOMP, _PR_SET_MM)))
    yield from _rule(numbers.pop("personality"), _only_values([_argument(0)], (0, 0xFFFFFFFF)))
    yield from _rule(numbers.pop("mknodat"), _only_values(_masked(2, _FILE_TYPE), _HARMLESS_FILE_TYPES))
    if machine == "x86_64":
        yield from _rule(numbers.pop("mknod"), _only_values(_masked(1, _FILE_TYPE), _HARMLESS_FILE_TYPES))


def _socket_rule() -> list[bytes]:
    """Unix sockets; TCP and UDP, which end at the session's own loopback; nothing else (vsock is bound to no namespace).

    The type decides as well: protocol 0 is what a type makes of it (SCTP, DCCP), and an internet socket of type 10 is a packet socket.
    """
    kind = _masked(1, _SOCKET_TYPE)
    protocol = _only_values([_argument(2)], _PLAIN_PROTOCOLS, otherwise=errno.EPROTONOSUPPORT)
    return [
        _argument(0),
        _jump(_EQUAL, _UNIX, 0, 1),
        _return(_ALLOW),
        _jump(_EQUAL, _INET, 2, 0),
        _jump(_EQUAL, _INET6, 1, 0),
        _refuse(errno.EAFNOSUPPORT),
        *kind,
        _jump(_EQUAL, _STREAM, 2, 0),
        _jump(_EQUAL, _DATAGRAM, 1, 0),
        _refuse(errno.ESOCKTNOSUPPORT),
        *protocol,
    ]


def _deny_values(argument: int, values: Iterable[int]) -> list[bytes]:
    tests = [instruction for value in values for instruction in (_jump(_EQUAL, value, 0, 1), _refuse(errno.EPERM))]
    return [_argument(argument), *tests, _return(_ALLOW)]


def _only_values(load: list[bytes], values: Iterable[int], otherwise: int = errno.EPERM) -> list[bytes]:
    tests = [instruction for value in values for instruction in (_jump(_EQUAL, value, 0, 1), _return(_ALLOW))]
    return [*load, *tests, _refuse(otherwise)]


def _allow_ranges(numbers: Iterable[int]) -> Iterator[bytes]:
    for first, last in _ranges(sorted(numbers)):
        yield _jump(_AT_LEAST, first, 0, 2)
        yield _jump(_AT_LEAST, last + 1, 1, 0)
        yield _return(_ALLOW)


def _ranges(numbers: list[int]) -> Iterator[tuple[int, int]]:
    first = last = numbers[0]
    for number in numbers[1:]:
        if number != last + 1:
            yield first, last
            first = number
        last = number
    yield first, last


def _rule(number: int, body: list[bytes]) -> Iterator[bytes]:
    yield _jump(_EQUAL, number, 0, len(body))
    yield from body


def _masked(argument: int, mask: int) -> list[bytes]:
    return [_argument(argument), _instruction(_AND, 0, 0, mask)]


def _argument(index: int) -> bytes:
    # The low half decides: the kernel cuts these arguments to 32 bits as well.
    return _load(_ARGUMENTS + 8 * index)


def _load(offset: int) -> bytes:
    return _instruction(_LOAD, 0, 0, offset)


def _jump(test: int, value: int, if_true: int, if_false: int) -> bytes:
    return _instruction(test, if_true, if_false, value)


def _refuse(number: int) -> bytes:
    return _return(_ERRNO | number)


def _return(value: int) -> bytes:
    return _instruction(_RETURN, 0, 0, value)


def _instruction(code: int, if_true: int, if_false: int, value: int) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
