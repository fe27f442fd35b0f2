"""Try everything that the kernel offers from inside a session. What is not refused must be in a committed table, with a reason."""

import ast
import itertools
import textwrap

import pytest

from aca_sessions import Session
from aca_sessions.sandbox.guest.isolation import seccomp
from aca_sessions.sandbox.syscalls import ARCHITECTURES, MACHINE

from ..conftest import mostly_long
from .allowed_calls import TABLE, numbers
from .attempts import PRELUDE, is_well, outcome

pytestmark = pytest.mark.slow
_NUMBERS = {
    "ARCH_PRCTL": (158, 600), "CLONE": (56, 220), "FCNTL": (72, 25), "GETSOCKOPT": (55, 209), "IOCTL": (16, 29), "MADVISE": (28, 233),
    "MEMBARRIER": (324, 283), "MEMFD_CREATE": (319, 279), "MMAP": (9, 222), "PRCTL": (157, 167), "RECVFROM": (45, 207),
    "RECVMSG": (47, 212), "SCHED_SETSCHEDULER": (144, 119), "SENDMMSG": (307, 269), "SENDMSG": (46, 211), "SENDTO": (44, 206),
    "SETSOCKOPT": (54, 208), "SOCKET": (41, 198), "SOCKETPAIR": (53, 199), "SYNC": (162, 81), "TEE": (276, 77), "PERSONALITY": (135, 92),
    "VFORK": (58, 600), "READAHEAD": (187, 213), "MLOCKALL": (151, 230), "SIGQUEUE": (129, 138), "PKEY_ALLOC": (330, 289),
}  # fmt: skip
NUMBERED = PRELUDE + "\n".join(f"{name} = {pair[ARCHITECTURES.index(MACHINE)]}" for name, pair in _NUMBERS.items()) + "\n"

# `answering(calls)` returns which of these (label, number, arguments …) end with anything but a refusal. A child makes one call after the
# other. A call that ends its child or waits was not refused, and another child continues behind it.
ANSWERING = """
import select, tempfile
libc.syscall.argtypes = [ctypes.c_long] * 7
TEXT = ctypes.addressof(ctypes.create_string_buffer(4096))
def answering(calls, *refusals):
    calls, answered, position = [*calls], set(), 0
    while position < len(calls):
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            make(calls[position:], tell, {errno.EPERM, errno.ENOSYS, *refusals})
        os.close(tell)
        while position < len(calls):
            silent = not select.select([told], [], [], 0.2)[0]
            if silent and not (waits(child) and not select.select([told], [], [], 0)[0]):
                continue
            verdicts = b"" if silent else os.read(told, 65536)
            answered |= {calls[position + at][0] for at, has_answered in enumerate(verdicts) if has_answered}
            position += len(verdicts)
            if not verdicts:
                answered.add(calls[position][0])
                position += 1
                break
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(told)
    return sorted(answered)[:500]
def waits(pid):
    return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] == "S"
def make(calls, tell, refusals):
    try:
        own = os.getpid()
        with tempfile.TemporaryFile() as nothing:
            os.dup2(nothing.fileno(), 0)
        for label, *call in calls:
            ctypes.set_errno(0)
            refused = libc.syscall(*(call + [0] * 6)[:7]) == -1 and ctypes.get_errno() in refusals
            if os.getpid() != own:
                break
            os.write(tell, bytes([not refused]))
    finally:
        os._exit(0)
"""
_BITS = "[1 << bit for bit in range(32)]"
# The attempts for each section of the table. Labels are the numbers that the table's names stand for.
TRIED = {
    # A bare vfork would share this test's own stack.
    "calls": "answering((n, n, *[argument] * 6) for n in range(600) if n != VFORK for argument in (0, -1))",
    "prctl": """
        patterns = [(0,), (1,), (1, 1), (2,), (1, TEXT, TEXT, TEXT)]
        answering((n, PRCTL, n, *some) for n in [*range(300), 0x53564D41, 0x59616D61, 0x41555856] for some in patterns)""",
    "arch_prctl": "answering((n, ARCH_PRCTL, n, TEXT) for n in range(0x1000, 0x6000)) if ARCH_PRCTL < 600 else []",
    "fcntl": "answering((n, FCNTL, 0, n, argument) for n in range(4096) for argument in (0, 1, TEXT))",
    # Numbers of every kind: without a size, and of two sizes in some directions.
    "ioctl": """
        sized = [way << 30 | size << 16 for way, size in ((1, 4), (2, 4), (2, 8), (3, 8))]
        ours, theirs = os.openpty()
        numbers = [*range(1 << 16), *(kind | n for kind in sized for n in range(1 << 16)), *INTERESTING]
        answering((n, IOCTL, theirs, n, TEXT) for n in numbers)""",
    "madvise": """
        import mmap
        pages = ctypes.addressof(ctypes.c_char.from_buffer(mmap.mmap(-1, 8192)))
        answering((n, MADVISE, pages, 8192, n) for n in range(-1, 512))""",
    "membarrier": f"answering((n, MEMBARRIER, n) for n in [0, *{_BITS}, *range(3, 64)])",
    "sched_setscheduler": "answering((n, SCHED_SETSCHEDULER, 0, n, 0) for n in range(16))",
    # A thread needs shared signal handlers and memory, so no combination of it with one flag makes anything.
    "clone": f"answering((n, CLONE, n | 0x10000) for n in {_BITS} if n != 0x10000)",
    "memfd_create": f"answering((n, MEMFD_CREATE, 0, n) for n in {_BITS})",
    "message": f"""
        one, other = socket.socketpair()
        one.setblocking(False)
        whole, by_header = (SENDTO, RECVFROM, SENDMMSG), (SENDMSG, RECVMSG)
        first = [(n, number, one.fileno(), 0, 0, n) for n in {_BITS} for number in whole]
        answering(first + [(n, number, one.fileno(), 0, n) for n in {_BITS} for number in by_header])""",
}
INTERESTING = {
    "FIBMAP": 1, "FIGETBSZ": 2, "FS_IOC_GETFLAGS": 0x80086601, "FS_IOC_SETFLAGS": 0x40086602, "FIDEDUPERANGE": 0xC0189436,
    "FS_IOC_FIEMAP": 0xC020660B, "FS_IOC_FSGETXATTR": 0x801C581F, "FIFREEZE": 0xC0045877, "FITRIM": 0xC0185879,
    "FS_IOC_GETUUID": 0x80111500, "FS_IOC_ENABLE_VERITY": 0x40806685, "FS_IOC_SET_ENCRYPTION_POLICY": 0x800C6613,
    "PAGEMAP_SCAN": 0xC0606610, "PIDFD_GET_INFO": 0xC040FF0B, "NS_GET_MNTNS_ID": 0x8008B705, "TUNSETIFF": 0x400454CA,
    "LOOP_CTL_GET_FREE": 0x4C82, "KVM_CREATE_VM": 0xAE01, "USERFAULTFD_IOC_NEW": 0xAA00, "USBDEVFS_RESET": 0x5514,
}  # fmt: skip
# Calls that attacks have used, or could use, and that no library needs.
UNNEEDED = {
    "a table of the kernel's for futexes": "call(PRCTL, 78, 1, 1 << 21, 0, 0)",
    "names for its memory": "call(PRCTL, 0x53564D41, 0, 0, 0, 0)",
    "pages in common with other sessions": "call(PRCTL, 67, 1, 0, 0, 0)",
    "processes that hide from their own user": "call(PRCTL, 4, 0, 0, 0, 0)",
    "pages of the host's huge ones": "call(MMAP, 0, 2 << 20, 3, 0x40022, -1, 0)",
    "a file of huge pages": "os.memfd_create('x', 4)",
    "pages that merge with others": "import mmap; mmap.mmap(-1, 8192).madvise(12)",
    "a message out of band": "one, other = socket.socketpair(); one.send(b'x', socket.MSG_OOB)",
    "to take one by a message's header": "one, other = socket.socketpair(); one.recvmsg(1, 0, socket.MSG_OOB)",
    "to send pages that stay its own": "one, other = socket.socketpair(); one.send(b'x', 0x4000000)",
    "a filter on a socket": "socket.socket().setsockopt(1, 26, bytes(16))",
    "a filter that chooses among sockets": "socket.socket().setsockopt(1, 51, bytes(16))",
    "a protocol above TCP": "socket.socket().setsockopt(6, 31, b'tls')",
    "another control of congestion": "socket.socket().setsockopt(6, 13, b'bbr')",
    "many packets at once": "socket.socket(type=socket.SOCK_DGRAM).setsockopt(17, 103, 1000)",
    "options of addresses": "socket.socket().setsockopt(0, 4, bytes(8))",
    "a lease of a file": "import fcntl; fcntl.fcntl(open('x', 'w'), 1024, 1)",
    "news of a folder by signals": "import fcntl; fcntl.fcntl(os.open('.', os.O_RDONLY), 1026, 4)",
    "signals from a descriptor": "import fcntl; fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())",
    "to sync the host's disks": "call(SYNC)",
    "to read ahead": "call(READAHEAD, 0, 0, 4096)",
    "to double what a pipe has": "call(TEE, 0, 0, 1, 0)",
    "memory that stays": "call(MLOCKALL, 1)",
    "signals with a value": "call(SIGQUEUE, os.getpid(), 0, 0)",
    "keys for its pages": "call(PKEY_ALLOC, 0, 0)",
    "another personality": "call(PERSONALITY, 0xFFFFFFFF)",
}
# The same, for calls after which libraries fall back only on one errno.
WORDED = {
    "an attribute of a file": ("os.setxattr(open('x', 'w').fileno(), 'user.a', bytes(1000))", "ENOTSUP"),
    "a program by its descriptor alone": ("call({'x86_64': 322, 'aarch64': 281}[os.uname().machine], 0, 0, 0, 0, 0)", "ENOSYS"),
    "a splice": ("call({'x86_64': 275, 'aarch64': 76}[os.uname().machine], os.pipe()[0], 0, os.pipe()[1], 0, 1, 0)", "ENOSYS"),
    "a child by what no filter sees": ("call(435, 0, 0)", "ENOSYS"),
    "another kind of Unix socket": ("socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)", "ESOCKTNOSUPPORT"),
}


async def _answering(session: Session, attempt: str) -> set[int | tuple[int, ...]]:
    constants = f"INTERESTING = {[*INTERESTING.values()]}\n"
    result = await session.run(NUMBERED + ANSWERING + constants + textwrap.dedent(attempt).strip())
    assert result.success, result.stderr
    return set(ast.literal_eval(result.text))


@pytest.mark.parametrize("section", mostly_long(TRIED, *TRIED.keys() - {"ioctl"}))
async def test_every_call_that_is_not_refused_is_in_the_table(session: Session, section: str) -> None:
    """Of all that the kernel can be asked for, a session is answered what a table lists, with a reason for each line."""
    answering = await _answering(session, TRIED[section])
    listed = numbers().get(section, {})
    if section == "clone":  # its lowest byte is a signal
        answering -= {1 << bit for bit in range(8)}
    assert answering - {listed[name] for name in TABLE[section] if name in listed} == set()
    if section != "arch_prctl" or MACHINE == "x86_64":
        assert answering or section == "memfd_create"  # refused unless its memory is counted


async def test_only_socket_options_in_the_table_are_available(session: Session) -> None:
    """Of the options of sockets a session reads and sets those of the table alone, whatever their level."""
    tried = """
    made = socket.socket(socket.AF_INET6).fileno()
    every = ((level, name) for level in range(300) for name in range(130))
    answering((pair, number, made, *pair, 0, 0) for pair in every for number in (GETSOCKOPT, SETSOCKOPT))
    """
    answering = await _answering(session, tried)
    listed = {(level, options[name]) for (section, level), options in seccomp.OPTIONS.items() for name in TABLE[section]}
    assert answering - listed == set()
    assert answering


async def test_only_sockets_in_the_table_can_be_made(session: Session) -> None:
    """Whatever family, type and protocol a session asks for, sockets and pairs are made of those of the table alone."""
    tried = """
    protocols = (*range(64), 115, 132, 136, 255, 256, 262)
    every = [(family, kind, protocol) for family in range(64) for kind in range(12) for protocol in protocols]
    refusals = (errno.EAFNOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EPROTONOSUPPORT)
    answering(((asked, number, *asked, TEXT) for asked in every for number in (SOCKET, SOCKETPAIR)), *refusals)
    """
    answering = await _answering(session, tried)
    names = TABLE["socket"].keys()
    families, kinds, protocols = ([n for name, n in some.items() if name in names] for some in _SOCKETS)
    assert answering - {*itertools.product(families, kinds, protocols)} == set()
    assert len(answering) >= 8


_SOCKETS = (seccomp.FAMILIES, seccomp.TYPES, seccomp.PROTOCOLS)


@pytest.mark.parametrize("attempt", mostly_long([*UNNEEDED, *WORDED], every=3))
async def test_calls_that_no_library_needs_are_refused(session: Session, attempt: str) -> None:
    """A session does not have what no library needs: kernel memory that no limit counts, out-of-band messages, leases, socket filters."""
    code, refusal = WORDED[attempt] if attempt in WORDED else (UNNEEDED[attempt], "EPERM")
    assert await outcome(session, code, prelude=NUMBERED) == refusal
    assert await is_well(session)
