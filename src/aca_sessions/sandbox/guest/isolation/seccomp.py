"""The seccomp filter, a classic BPF program: which system calls guest code may make, and with which arguments.

tests/hostile/allowed_calls.toml gives the reason for each name below. A system call that no list contains fails with EPERM, or with ENOSYS
if it is so new that libraries have a fallback.
"""

import errno
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ...syscalls import ARCHITECTURES, MACHINE

# Name, number on x86_64 / on aarch64.
_BOTH = """
    read 0/63 write 1/64 readv 19/65 writev 20/66 pread64 17/67 pwrite64 18/68 preadv 295/69 pwritev 296/70 preadv2 327/286 pwritev2
    328/287 lseek 8/62 sendfile 40/71 copy_file_range 326/285 openat 257/56 openat2 437/437 close 3/57 close_range 436/436 dup 32/23
    dup3 292/24 fcntl 72/25 flock 73/32 ioctl 16/29 pipe2 293/59 fstat 5/80 newfstatat 262/79 statx 332/291 statfs 137/43 fstatfs
    138/44 faccessat 269/48 faccessat2 439/439 readlinkat 267/78 getcwd 79/17 chdir 80/49 fchdir 81/50 getdents64 217/61 mkdirat 258/34
    unlinkat 263/35 renameat 264/38 renameat2 316/276 linkat 265/37 symlinkat 266/36 mknodat 259/33 fchmod 91/52 fchmodat 268/53
    fchmodat2 452/452 fchown 93/55 fchownat 260/54 umask 95/166 truncate 76/45 ftruncate 77/46 fallocate 285/47 fadvise64 221/223
    fsync 74/82 fdatasync 75/83 utimensat 280/88 getxattr 191/8 lgetxattr 192/9 fgetxattr 193/10 listxattr 194/11 llistxattr 195/12
    flistxattr 196/13 inotify_init1 294/26 inotify_add_watch 254/27 inotify_rm_watch 255/28 brk 12/214 mmap 9/222 munmap 11/215 mremap
    25/216 mprotect 10/226 madvise 28/233 msync 26/227 memfd_create 319/279 membarrier 324/283 clone 56/220 execve 59/221 exit 60/93
    exit_group 231/94 wait4 61/260 waitid 247/95 kill 62/129 tkill 200/130 tgkill 234/131 pidfd_open 434/434 pidfd_send_signal 424/424
    futex 202/98 set_robust_list 273/99 set_tid_address 218/96 rseq 334/293 restart_syscall 219/128 prctl 157/167 rt_sigaction 13/134
    rt_sigprocmask 14/135 rt_sigpending 127/136 rt_sigreturn 15/139 rt_sigsuspend 130/133 rt_sigtimedwait 128/137 sigaltstack 131/132
    signalfd4 289/74 getpid 39/172 getppid 110/173 gettid 186/178 getpgid 121/155 setpgid 109/154 getsid 124/156 setsid 112/157 getuid
    102/174 geteuid 107/175 getgid 104/176 getegid 108/177 getresuid 118/148 getresgid 120/150 getgroups 115/158 setuid 105/146 setgid
    106/144 setreuid 113/145 setregid 114/143 setresuid 117/147 setresgid 119/149 capget 125/90 getrlimit 97/163 setrlimit 160/164
    prlimit64 302/261 getrusage 98/165 times 100/153 sysinfo 99/179 uname 63/160 getcpu 309/168 getpriority 140/141 setpriority 141/140
    sched_yield 24/124 sched_getaffinity 204/123 sched_setaffinity 203/122 sched_getparam 143/121 sched_setparam 142/118
    sched_getscheduler 145/120 sched_setscheduler 144/119 sched_get_priority_max 146/125 sched_get_priority_min 147/126
    sched_rr_get_interval 148/127 gettimeofday 96/169 clock_gettime 228/113 clock_getres 229/114 clock_nanosleep 230/115 nanosleep
    35/101 getitimer 36/102 setitimer 38/103 timer_create 222/107 timer_settime 223/110 timer_gettime 224/108 timer_getoverrun 225/109
    timer_delete 226/111 timerfd_create 283/85 timerfd_settime 286/86 timerfd_gettime 287/87 getrandom 318/278 ppoll 271/73 pselect6
    270/72 epoll_create1 291/20 epoll_ctl 233/21 epoll_pwait 281/22 epoll_pwait2 441/441 eventfd2 290/19 socket 41/198 socketpair 53/199
    bind 49/200 connect 42/203 listen 50/201 accept 43/202 accept4 288/242 getsockname 51/204 getpeername 52/205 getsockopt 55/209
    setsockopt 54/208 shutdown 48/210 sendto 44/206 recvfrom 45/207 sendmsg 46/211 recvmsg 47/212 sendmmsg 307/269
"""
_X86_64_ONLY = """
    open 2 creat 85 dup2 33 pipe 22 stat 4 lstat 6 access 21 readlink 89 getdents 78 mkdir 83 rmdir 84 unlink 87 rename 82 link 86
    symlink 88 mknod 133 chmod 90 chown 92 lchown 94 utime 132 utimes 235 inotify_init 253 fork 57 vfork 58 arch_prctl 158 pause 34
    alarm 37 getpgrp 111 time 201 poll 7 select 23 epoll_create 213 epoll_wait 232
"""
# These fail with ENOSYS. glibc then uses clone in place of clone3, whose flags no filter can read because they are behind a pointer, and
# /proc in place of execveat. os.splice raises an OSError.
_ABSENT = "clone3 435/435 execveat 322/281 splice 275/76"
# These fail as on a file system without extended attributes: cp -p, tar and shutil.copystat then continue without. The values of
# attributes are memory that no limit counts.
_UNSUPPORTED = "setxattr 188/5 lsetxattr 189/6 fsetxattr 190/7 removexattr 197/14 lremovexattr 198/15 fremovexattr 199/16"


def _named(text: str) -> dict[str, int]:
    words = text.split()
    return {name: int(number, 0) for name, number in zip(words[::2], words[1::2])}


# The allowed commands of calls that do many things. The numbers are the same on both architectures.
COMMANDS = {
    "prctl": _named("""
        PR_SET_PDEATHSIG 1 PR_GET_PDEATHSIG 2 PR_SET_NAME 15 PR_GET_NAME 16 PR_CAPBSET_READ 23 PR_SET_NO_NEW_PRIVS 38
        PR_GET_NO_NEW_PRIVS 39 PR_SVE_GET_VL 51
    """),
    "arch_prctl": _named(
        "ARCH_SET_FS 0x1002 ARCH_GET_FS 0x1003 ARCH_GET_XCOMP_SUPP 0x1021 ARCH_GET_XCOMP_PERM 0x1022 ARCH_REQ_XCOMP_PERM 0x1023"
    ),
    "fcntl": _named("""
        F_DUPFD 0 F_GETFD 1 F_SETFD 2 F_GETFL 3 F_SETFL 4 F_GETLK 5 F_SETLK 6 F_SETLKW 7 F_OFD_GETLK 36 F_OFD_SETLK 37 F_OFD_SETLKW 38
        F_DUPFD_CLOEXEC 1030 F_SETPIPE_SZ 1031 F_GETPIPE_SZ 1032 F_ADD_SEALS 1033 F_GET_SEALS 1034
    """),
    "ioctl": _named("""
        TCGETS 0x5401 TCSETS 0x5402 TCSETSW 0x5403 TCSETSF 0x5404 TCSBRK 0x5409 TCXONC 0x540A TCFLSH 0x540B TIOCSCTTY 0x540E
        TIOCGPGRP 0x540F TIOCSPGRP 0x5410 TIOCOUTQ 0x5411 TIOCGWINSZ 0x5413 TIOCSWINSZ 0x5414 FIONREAD 0x541B FIONBIO 0x5421
        TIOCNOTTY 0x5422 TCSBRKP 0x5425 TIOCGSID 0x5429 TCGETS2 0x802C542A TCSETS2 0x402C542B TCSETSW2 0x402C542C TCSETSF2 0x402C542D
        TIOCGPTN 0x80045430 TIOCSPTLCK 0x40045431 TIOCGPTPEER 0x5441 FIONCLEX 0x5450 FIOCLEX 0x5451 SIOCGIFNAME 0x8910
        SIOCGIFINDEX 0x8933 FICLONE 0x40049409
    """),
    "madvise": _named("""
        MADV_NORMAL 0 MADV_RANDOM 1 MADV_SEQUENTIAL 2 MADV_WILLNEED 3 MADV_DONTNEED 4 MADV_FREE 8 MADV_DONTFORK 10 MADV_DOFORK 11
        MADV_HUGEPAGE 14 MADV_NOHUGEPAGE 15 MADV_DONTDUMP 16 MADV_DODUMP 17 MADV_WIPEONFORK 18 MADV_KEEPONFORK 19
        MADV_GUARD_INSTALL 102 MADV_GUARD_REMOVE 103
    """),
    "membarrier": _named("""
        MEMBARRIER_CMD_QUERY 0 MEMBARRIER_CMD_PRIVATE_EXPEDITED 8 MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED 16
        MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE 32 MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE 64
    """),
    "sched_setscheduler": _named("SCHED_OTHER 0 SCHED_BATCH 3 SCHED_IDLE 5"),
}
# The allowed socket options by their level, the same for getsockopt and setsockopt.
OPTIONS = {
    ("SOL_SOCKET", 1): _named("""
        SO_REUSEADDR 2 SO_TYPE 3 SO_ERROR 4 SO_BROADCAST 6 SO_SNDBUF 7 SO_RCVBUF 8 SO_KEEPALIVE 9 SO_OOBINLINE 10 SO_LINGER 13
        SO_REUSEPORT 15 SO_RCVTIMEO 20 SO_SNDTIMEO 21 SO_ACCEPTCONN 30 SO_PROTOCOL 38 SO_DOMAIN 39 SO_MEMINFO 55
    """),
    ("IPPROTO_IP", 0): _named("IP_TOS 1 IP_TTL 2 IP_RECVERR 11"),
    ("IPPROTO_TCP", 6): _named("TCP_NODELAY 1 TCP_KEEPIDLE 4 TCP_KEEPINTVL 5 TCP_KEEPCNT 6 TCP_USER_TIMEOUT 18"),
    ("IPPROTO_IPV6", 41): _named("""
        IPV6_UNICAST_HOPS 16 IPV6_RECVERR 25 IPV6_V6ONLY 26 IPV6_RECVHOPLIMIT 51 IPV6_RECVTCLASS 66 IPV6_TCLASS 67
    """),
}
FLAGS = {
    "message": _named("""
        MSG_PEEK 0x2 MSG_CTRUNC 0x8 MSG_TRUNC 0x20 MSG_DONTWAIT 0x40 MSG_WAITALL 0x100 MSG_NOSIGNAL 0x4000 MSG_MORE 0x8000
        MSG_CMSG_CLOEXEC 0x40000000
    """),
    "clone": _named("""
        CSIGNAL 0xFF CLONE_VM 0x100 CLONE_FS 0x200 CLONE_FILES 0x400 CLONE_SIGHAND 0x800 CLONE_PIDFD 0x1000 CLONE_VFORK 0x4000
        CLONE_THREAD 0x10000 CLONE_SYSVSEM 0x40000 CLONE_SETTLS 0x80000 CLONE_PARENT_SETTID 0x100000 CLONE_CHILD_CLEARTID 0x200000
        CLONE_DETACHED 0x400000 CLONE_CHILD_SETTID 0x1000000
    """),
    "memfd_create": _named("MFD_CLOEXEC 0x1 MFD_ALLOW_SEALING 0x2 MFD_NOEXEC_SEAL 0x8 MFD_EXEC 0x10"),
}
FAMILIES = _named("AF_UNIX 1 AF_INET 2 AF_INET6 10")
TYPES = _named("SOCK_STREAM 1 SOCK_DGRAM 2")
PROTOCOLS = _named("default 0 IPPROTO_TCP 6 IPPROTO_UDP 17")

# RLIMIT_AS does not count the memory behind a memfd: without a memory control group it would be a way around the limit.
_ESCAPES_ADDRESS_SPACE_LIMIT = "memfd_create"

# Without namespaces, a user of its own or Landlock's scope for signals, a session could reach the host with these.
_WATCHES = ("inotify_init", "inotify_init1", "inotify_add_watch", "inotify_rm_watch")
_READS_ATTRIBUTES = ("getxattr", "lgetxattr", "fgetxattr", "listxattr", "llistxattr", "flistxattr")
_CONNECTS = ("bind", "connect", "listen", "accept", "accept4")
# Landlock does not control who changes a file's mode, owner or times: the kernel checks only the owner of the file.
_CHANGES_WITHOUT_OPENING = (
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat", "utime", "utimes", "utimensat"),
)
_SIGNALS = ("kill", "tkill", "tgkill", "pidfd_send_signal")
_ON_ITSELF = ("prlimit64", "sched_setaffinity", "sched_setparam", "sched_setscheduler")
_PRIO_PROCESS = 0
# Other requests change flags of files that are open only for reading.
_HARMLESS_CONTROLS = ("FIONREAD", "FIONBIO", "FIOCLEX", "FIONCLEX", "TCGETS", "TIOCGWINSZ", "FICLONE")

_AUDIT_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000
_FIRST_MODERN = 424  # libc has a fallback for calls from this number on, which it uses only after ENOSYS

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

_STREAM, _SOCKET_TYPE = 1, 0xF
_MAP_HUGETLB = 0x40000
_FILE_TYPE, _FIFO = 0o170000, 0o010000


@dataclass(frozen=True)
class Barriers:
    """What isolates a session from the host besides the seccomp filter, such as namespaces.

    For each field that is false, the filter refuses more system calls.
    """

    namespaces: bool = False
    own_user: bool = False  # its user owns no file and no process of the host
    own_signals: bool = False  # its signals reach no process outside
    network: bool = False  # it may use a network: its own, or the host's


NAMESPACES = Barriers(namespaces=True, own_user=True, own_signals=True, network=True)


def build_filter(memory_is_counted: bool, machine: str = MACHINE, *, barriers: Barriers = NAMESPACES) -> bytes:
    """Return the seccomp filter: the bytes of an array of BPF instructions.

    Args:
        memory_is_counted: Whether a control group counts the session's memory. Only then is memfd_create allowed.
        machine: The processor architecture: `x86_64` or `aarch64`.
        barriers: What else isolates the session, such as namespaces. For each field that is false, the filter refuses more system calls.
    """
    numbers = list_allowed_calls(machine)
    if not memory_is_counted:
        del numbers[_ESCAPES_ADDRESS_SPACE_LIMIT]
    for name in _refused_without_barriers(barriers):
        numbers.pop(name, None)
    rules = [*_prologue(machine)]
    for name, body in _argument_rules(barriers).items():
        if name in numbers:
            rules += _rule(numbers.pop(name), body)
    rules += [*_refuse_with_other_errors(machine), *_allow_ranges(numbers.values())]
    rules += [_jump(_AT_LEAST, _FIRST_MODERN, 0, 1), _refuse(errno.ENOSYS), _refuse(errno.EPERM)]
    return b"".join(rules)


def list_allowed_calls(machine: str = MACHINE) -> dict[str, int]:
    """Return a dict from the name of each allowed system call to its number on one processor architecture."""
    return _numbers(_BOTH, machine) | (_named(_X86_64_ONLY) if machine == "x86_64" else {})


def list_other_errors(machine: str = MACHINE) -> dict[str, tuple[int, int]]:
    """Return the system calls that fail with another errno than EPERM: a dict from the name to a tuple of number and errno."""
    errors = ((_ABSENT, errno.ENOSYS), (_UNSUPPORTED, errno.EOPNOTSUPP))
    return {name: (number, error) for text, error in errors for name, number in _numbers(text, machine).items()}


def _numbers(text: str, machine: str) -> dict[str, int]:
    words, column = text.split(), ARCHITECTURES.index(machine)
    return {name: int(pair.split("/")[column]) for name, pair in zip(words[::2], words[1::2])}


def _prologue(machine: str) -> Iterator[bytes]:
    # Another instruction set has other numbers, so a call by it ends the process. x32 has x86_64's architecture and a bit in the number.
    yield _load(_ARCHITECTURE)
    yield _jump(_EQUAL, _AUDIT_ARCHITECTURE[machine], 1, 0)
    yield _return(_KILL_PROCESS)
    yield _load(_NUMBER)
    if machine == "x86_64":
        yield _jump(_AT_LEAST, _X32_BIT, 0, 1)
        yield _refuse(errno.ENOSYS)


def _refused_without_barriers(barriers: Barriers) -> list[str]:
    """Return the names of the system calls to refuse because a field of `barriers` is false, for example because no namespaces exist."""
    by_user = ((barriers.own_user, _CHANGES_WITHOUT_OPENING), (barriers.own_signals, _SIGNALS))
    needed = ((barriers.namespaces, _WATCHES), (barriers.network, _CONNECTS), *by_user)
    return [name for there, names in needed if not there for name in names]


def _argument_rules(barriers: Barriers) -> dict[str, list[bytes]]:
    """Return a dict from the name of a system call to the BPF instructions that check its arguments."""
    messages = {"sendto": 3, "recvfrom": 3, "sendmsg": 2, "recvmsg": 2, "sendmmsg": 3}
    commands = {"fcntl": 1, "ioctl": 1, "madvise": 2, "prctl": 0, "arch_prctl": 0, "membarrier": 0, "sched_setscheduler": 1}
    checks = {
        **{name: _allow_only_bits(argument, FLAGS["message"].values()) for name, argument in messages.items()},
        "mmap": _refuse_bits(3, _MAP_HUGETLB),  # no session is charged for the host's pool of huge pages
        **{name: _allow_only_values(_argument(argument), COMMANDS[name].values()) for name, argument in commands.items()},
        "clone": _allow_only_bits(0, FLAGS["clone"].values()),
        "memfd_create": _allow_only_bits(1, FLAGS["memfd_create"].values()),
        "socket": _socket_check(FAMILIES.values(), TYPES.values()),
        # The kernel creates a socket of any family before it finds that the family has no pairs.
        "socketpair": _socket_check((FAMILIES["AF_UNIX"],), TYPES.values()),
        "mknodat": _allow_only_values(_masked(2, _FILE_TYPE), (_FIFO,)),
        "mknod": _allow_only_values(_masked(1, _FILE_TYPE), (_FIFO,)),
    }
    if not barriers.namespaces:
        checks |= _checks_without_namespaces(checks, barriers)
    rules = {name: [*check, _return(_ALLOW)] for name, check in checks.items()}
    if not barriers.namespaces:
        rules |= {name: [_refuse(errno.EOPNOTSUPP)] for name in _READS_ATTRIBUTES}
    return rules | {"setsockopt": _check_socket_options(), "getsockopt": _check_socket_options()}


def _checks_without_namespaces(checks: dict[str, list[bytes]], barriers: Barriers) -> dict[str, list[bytes]]:
    """Return a dict from the name of a system call to BPF instructions that check its arguments in a session without namespaces.

    The instructions deny access to Unix sockets and processes of the host, as namespaces would. `checks` is the dict for all sessions.
    """
    internet = [family for name, family in FAMILIES.items() if barriers.network and name != "AF_UNIX"]
    itself = {name: _allow_only_values(_argument(0), (0,)) + checks.get(name, []) for name in _ON_ITSELF}
    controls = [COMMANDS["ioctl"][name] for name in _HARMLESS_CONTROLS]
    return {
        **itself,
        "setpriority": _allow_only_values(_argument(0), (_PRIO_PROCESS,)) + _allow_only_values(_argument(1), (0,)),
        "socket": _socket_check(internet, TYPES.values()),
        # Only a stream is bound to its other end: a datagram may be sent to any socket that has a path.
        "socketpair": _socket_check((FAMILIES["AF_UNIX"],), (_STREAM,)),
        "ioctl": _allow_only_values(_argument(1), controls, errno.ENOTTY),
    }


def _socket_check(families: Iterable[int], types: Iterable[int]) -> list[bytes]:
    """Return BPF instructions that refuse a socket unless its family and type are listed, and its protocol is TCP, UDP or the default."""
    # In a network namespace internet sockets end at the session's own loopback. Vsock belongs to no namespace. The type is checked as well:
    # protocol 0 means what the type makes of it (SCTP, DCCP), and an internet socket of type 10 is a packet socket.
    return [
        *_allow_only_values(_argument(0), families, errno.EAFNOSUPPORT),
        *_allow_only_values(_masked(1, _SOCKET_TYPE), types, errno.ESOCKTNOSUPPORT),
        *_allow_only_values(_argument(2), PROTOCOLS.values(), errno.EPROTONOSUPPORT),
    ]


def _check_socket_options() -> list[bytes]:
    """Return the BPF instructions that check the arguments of getsockopt and setsockopt. Only the options in `OPTIONS` are allowed."""
    # The level is tested first, because the same number means another option at another level.
    rule = _argument(1)
    for (_, level), options in OPTIONS.items():
        rule += _rule(level, [*_allow_only_values(_argument(2), options.values()), _return(_ALLOW)])
    return [*rule, _refuse(errno.EPERM)]


def _refuse_with_other_errors(machine: str) -> Iterator[bytes]:
    for number, error in list_other_errors(machine).values():
        yield from _rule(number, [_refuse(error)])


def _allow_only_values(load: list[bytes], values: Iterable[int], otherwise: int = errno.EPERM) -> list[bytes]:
    """Return BPF instructions that refuse a system call, unless the value that they check is one of `values`.

    Args:
        load: The instructions that load the value, such as an argument of the system call.
        values: The allowed values.
        otherwise: The errno with which a refused call fails.
    """
    values = [*values]
    tests = [_jump(_EQUAL, value, len(values) - position, 0) for position, value in enumerate(values)]
    return [*load, *tests, _refuse(otherwise)]


def _allow_only_bits(argument: int, bits: Iterable[int]) -> list[bytes]:
    return _refuse_bits(argument, ~sum(bits) & 0xFFFFFFFF)


def _refuse_bits(argument: int, bits: int) -> list[bytes]:
    return [*_argument(argument), _jump(_ANY_BIT, bits, 0, 1), _refuse(errno.EPERM)]


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
    return [*_argument(argument), _instruction(_AND, 0, 0, mask)]


def _argument(index: int) -> list[bytes]:
    # The low half is enough: the kernel cuts these arguments to 32 bits as well.
    return [_load(_ARGUMENTS + 8 * index)]


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
