"""Test the filter program with a small interpreter of classic BPF, for both architectures."""

import errno
import functools
import itertools
import re
import struct
from pathlib import Path

import pytest

from aca_sessions.sandbox.guest.isolation import seccomp

from ..hostile.allowed_calls import TABLE, numbers

ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
HEADERS = {"x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), "aarch64": Path("/usr/include/asm-generic/unistd.h")}
GENERIC_SPELLING = {"newfstatat": ("fstatat", "newfstatat")}


def verdict(
    machine: str,
    number: int,
    *arguments: int,
    architecture: int | None = None,
    barriers: seccomp.Barriers = seccomp.NAMESPACES,
    counted: bool = False,
) -> int:
    """Return what the kernel would do with a call."""
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("=iIQ6Q", number, architecture or ARCHITECTURE[machine], 0, *padded)
    instructions = list(struct.iter_unpack("=HBBI", _program(counted, machine, barriers)))
    accumulator = position = 0
    while True:
        code, if_true, if_false, value = instructions[position]
        position += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, value)
            case 0x54:
                accumulator &= value
            case 0x06:
                return value
            case _:
                holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
                position += if_true if holds else if_false


@functools.cache
def _program(counted: bool, machine: str, barriers: seccomp.Barriers) -> bytes:
    return seccomp.build_filter(counted, machine, barriers=barriers)


@pytest.mark.parametrize("machine", ARCHITECTURE)
def test_exactly_the_listed_calls_are_allowed(machine: str) -> None:
    allowed, otherwise = seccomp.list_allowed_calls(machine), dict(seccomp.list_other_errors(machine).values())
    depends_on_arguments = {allowed.get(name) for name in seccomp._argument_rules(seccomp.NAMESPACES)}
    for number in {*range(600)} - depends_on_arguments:
        refusal = ERRNO | otherwise.get(number, errno.ENOSYS if number >= 424 else errno.EPERM)
        assert verdict(machine, number) == (ALLOW if number in allowed.values() else refusal), number
    assert verdict(machine, allowed["memfd_create"]) == ERRNO | errno.EPERM  # where nothing counts its memory


def test_the_table_of_reasons_has_exactly_the_names_of_the_filter() -> None:
    both = [numbers(machine) for machine in ARCHITECTURE]
    assert {section: {*lines} for section, lines in TABLE.items()} == {
        section: {name for machine in both for name in machine[section]} for section in both[0]
    }
    assert all(reason for lines in TABLE.values() for reason in lines.values())


@pytest.mark.parametrize("machine", ARCHITECTURE)
@pytest.mark.parametrize("name", seccomp.COMMANDS)
def test_only_listed_commands_are_allowed(machine: str, name: str) -> None:
    if name not in seccomp.list_allowed_calls(machine):
        return
    number, listed = seccomp.list_allowed_calls(machine)[name], seccomp.COMMANDS[name].values()
    for command in (*range(3000), *range(0x5400, 0x5500), *listed, 0x53564D41, 0xFFFFFFFF):
        at = {"fcntl": (3, command), "ioctl": (3, command), "madvise": (0, 4096, command), "sched_setscheduler": (0, command)}
        expected = ALLOW if command in listed else ERRNO | errno.EPERM
        assert verdict(machine, number, *at.get(name, (command,))) == expected, command


@pytest.mark.long
@pytest.mark.parametrize("machine", ARCHITECTURE)
def test_only_listed_socket_options_are_allowed_at_their_level(machine: str) -> None:
    listed = {(level, option) for (_, level), options in seccomp.OPTIONS.items() for option in options.values()}
    for call in ("getsockopt", "setsockopt"):
        for level, option in itertools.product((*range(50), 132, 279, 0xFFFFFFFF), range(130)):
            expected = ALLOW if (level, option) in listed else ERRNO | errno.EPERM
            assert verdict(machine, seccomp.list_allowed_calls(machine)[call], 3, level, option) == expected, (level, option)


@pytest.mark.parametrize("machine", ARCHITECTURE)
def test_only_listed_flags_of_messages_are_allowed(machine: str) -> None:
    before = {"sendto": (3, 0, 0), "recvfrom": (3, 0, 0), "sendmsg": (3, 0), "recvmsg": (3, 0), "sendmmsg": (3, 0, 0)}
    for (call, arguments), flag in itertools.product(before.items(), [1 << bit for bit in range(32)]):
        expected = ALLOW if flag in seccomp.FLAGS["message"].values() else ERRNO | errno.EPERM
        assert verdict(machine, seccomp.list_allowed_calls(machine)[call], *arguments, flag) == expected
        assert verdict(machine, seccomp.list_allowed_calls(machine)[call], *arguments, 0x40 | 0x4000) == ALLOW


@pytest.mark.parametrize("machine", ARCHITECTURE)
def test_memory_cannot_use_the_hosts_huge_pages(machine: str) -> None:
    numbers = seccomp.list_allowed_calls(machine)
    assert verdict(machine, numbers["mmap"], 0, 4096, 3, 0x22) == ALLOW
    assert verdict(machine, numbers["mmap"], 0, 4096, 3, 0x40022) == ERRNO | errno.EPERM
    assert verdict(machine, numbers["memfd_create"], 0, 3, counted=True) == ALLOW
    assert verdict(machine, numbers["memfd_create"], 0, 4, counted=True) == ERRNO | errno.EPERM


@pytest.mark.parametrize("machine", ARCHITECTURE)
def test_a_foreign_instruction_set_is_killed(machine: str) -> None:
    assert verdict(machine, 0, architecture=0x40000003) == KILL


def test_x32_calls_are_refused() -> None:
    assert verdict("x86_64", 0x40000000) == ERRNO | errno.ENOSYS


@pytest.mark.parametrize("machine", ARCHITECTURE)
@pytest.mark.parametrize("flag", [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000])
def test_no_clone_makes_a_namespace(machine: str, flag: int) -> None:
    clone = seccomp.list_allowed_calls(machine)["clone"]
    assert verdict(machine, clone, 17) == ALLOW
    assert verdict(machine, clone, flag | 17) == ERRNO | errno.EPERM


@pytest.mark.parametrize("machine", ARCHITECTURE)
def test_clone_allows_only_listed_flags(machine: str) -> None:
    clone = seccomp.list_allowed_calls(machine)["clone"]
    assert verdict(machine, clone, 0x3D0F00) == verdict(machine, clone, 0x7D0F00) == verdict(machine, clone, 0x1200011) == ALLOW
    for flag in (0x2000, 0x8000, 0x800000, 0x80000000):  # CLONE_PTRACE, CLONE_PARENT, CLONE_UNTRACED, CLONE_IO
        assert verdict(machine, clone, flag | 17) == ERRNO | errno.EPERM


@pytest.mark.parametrize("machine", ARCHITECTURE)
@pytest.mark.parametrize(
    ("family", "protocol", "expected"),
    [
        (1, 0, 0),
        (2, 6, 0),
        (10, 17, 0),
        (1, 1, errno.EPROTONOSUPPORT),
        (2, 1, errno.EPROTONOSUPPORT),
        (16, 0, errno.EAFNOSUPPORT),
        (17, 0, errno.EAFNOSUPPORT),
        (40, 0, errno.EAFNOSUPPORT),
    ],
)
def test_only_plain_sockets_can_be_made(machine: str, family: int, protocol: int, expected: int) -> None:
    answer = verdict(machine, seccomp.list_allowed_calls(machine)["socket"], family, 1, protocol)
    assert answer == (ERRNO | expected if expected else ALLOW)


@pytest.mark.parametrize("machine", ARCHITECTURE)
@pytest.mark.parametrize(
    ("kind", "allowed"), [(1, True), (2, True), (1 | 0o2004000, True), (3, False), (5, False), (6, False), (10, False)]
)
def test_sockets_are_streams_and_datagrams(machine: str, kind: int, allowed: bool) -> None:
    for family in (1, 2, 10):
        answer = verdict(machine, seccomp.list_allowed_calls(machine)["socket"], family, kind, 0)
        assert answer == (ALLOW if allowed else ERRNO | errno.ESOCKTNOSUPPORT)


@pytest.mark.parametrize("machine", ARCHITECTURE)
def test_pairs_are_made_of_unix_sockets_only(machine: str) -> None:
    pair = seccomp.list_allowed_calls(machine)["socketpair"]
    assert verdict(machine, pair, 1, 1) == verdict(machine, pair, 1, 2) == ALLOW
    assert verdict(machine, pair, 1, 5) == ERRNO | errno.ESOCKTNOSUPPORT
    for family in range(2, 50):
        assert verdict(machine, pair, family, 1) == ERRNO | errno.EAFNOSUPPORT


@pytest.mark.parametrize("machine", ARCHITECTURE)
def test_named_pipes_alone_can_be_made(machine: str) -> None:
    mknodat = seccomp.list_allowed_calls(machine)["mknodat"]
    assert verdict(machine, mknodat, 0, 0, 0o010644) == ALLOW
    for kind in (0, 0o020000, 0o060000, 0o100000, 0o140000):
        assert verdict(machine, mknodat, 0, 0, kind | 0o644) == ERRNO | errno.EPERM


@pytest.mark.parametrize("machine", ARCHITECTURE)
def test_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip("no kernel headers on this machine")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)$", HEADERS[machine].read_text(), re.MULTILINE)
    numbers = {name: int(number) for name, number in found}
    for name, number in seccomp.list_allowed_calls(machine).items():
        known = [numbers[spelling] for spelling in GENERIC_SPELLING.get(name, (name,)) if spelling in numbers]
        assert not known or known[0] == number, name


@pytest.mark.parametrize("machine", ARCHITECTURE)
def test_without_namespaces_a_call_cannot_name_another_process(machine: str) -> None:
    numbers, barriers = seccomp.list_allowed_calls(machine), seccomp.Barriers()
    for name in ("prlimit64", "sched_setaffinity", "sched_setparam", "sched_setscheduler"):
        assert verdict(machine, numbers[name], 0, 3, barriers=barriers) == ALLOW
        assert verdict(machine, numbers[name], 1, 0, barriers=barriers) == ERRNO | errno.EPERM
    assert verdict(machine, numbers["sched_setscheduler"], 0, 1, barriers=barriers) == ERRNO | errno.EPERM
    assert verdict(machine, numbers["setpriority"], 0, 0, 5, barriers=barriers) == ALLOW
    for which, who in ((0, 7), (1, 0), (2, 0)):
        assert verdict(machine, numbers["setpriority"], which, who, 5, barriers=barriers) == ERRNO | errno.EPERM


@pytest.mark.parametrize("machine", ARCHITECTURE)
@pytest.mark.parametrize(
    ("barriers", "name", "allowed"),
    [
        (seccomp.Barriers(), "fchmodat", False),
        (seccomp.Barriers(own_user=True), "fchmodat", True),
        (seccomp.Barriers(), "kill", False),
        (seccomp.Barriers(own_signals=True), "kill", True),
        (seccomp.Barriers(own_user=True, own_signals=True), "connect", False),
        (seccomp.Barriers(network=True), "connect", True),
        (seccomp.Barriers(own_user=True, own_signals=True, network=True), "inotify_add_watch", False),
        (seccomp.NAMESPACES, "inotify_add_watch", True),
    ],
)
def test_a_missing_wall_costs_the_calls_that_it_would_contain(machine: str, barriers: seccomp.Barriers, name: str, allowed: bool) -> None:
    assert (verdict(machine, seccomp.list_allowed_calls(machine)[name], barriers=barriers) == ALLOW) is allowed


@pytest.mark.parametrize("machine", ARCHITECTURE)
def test_without_namespaces_socket_pairs_are_connected_streams(machine: str) -> None:
    pair, barriers = seccomp.list_allowed_calls(machine)["socketpair"], seccomp.Barriers(network=True)
    assert verdict(machine, pair, 1, 1 | 0o2000000, barriers=barriers) == ALLOW
    for family, kind in ((1, 2), (1, 5), (2, 1), (16, 3)):
        assert verdict(machine, pair, family, kind, barriers=barriers) != ALLOW
    assert verdict(machine, seccomp.list_allowed_calls(machine)["socket"], 1, 1, barriers=barriers) == ERRNO | errno.EAFNOSUPPORT


@pytest.mark.parametrize("machine", ARCHITECTURE)
@pytest.mark.parametrize("barriers", [seccomp.NAMESPACES, seccomp.Barriers()])
def test_no_descriptor_sends_a_signal(machine: str, barriers: seccomp.Barriers) -> None:
    numbers = seccomp.list_allowed_calls(machine)
    for command in (8, 10, 15):  # F_SETOWN, F_SETSIG, F_SETOWN_EX
        assert verdict(machine, numbers["fcntl"], 3, command, barriers=barriers) == ERRNO | errno.EPERM
    for control in (0x5452, 0x8901, 0x8902):  # FIOASYNC, FIOSETOWN, SIOCSPGRP
        assert verdict(machine, numbers["ioctl"], 3, control, barriers=barriers) != ALLOW


@pytest.mark.parametrize("machine", ARCHITECTURE)
def test_file_attributes_are_refused_like_on_file_systems_without_them(machine: str) -> None:
    for name, (number, refusal) in seccomp.list_other_errors(machine).items():
        assert verdict(machine, number) == ERRNO | refusal
        assert (refusal == errno.EOPNOTSUPP) is ("xattr" in name)
    reads = seccomp.list_allowed_calls(machine)["listxattr"]
    assert verdict(machine, reads) == ALLOW
    assert verdict(machine, reads, barriers=seccomp.Barriers()) == ERRNO | errno.EOPNOTSUPP
