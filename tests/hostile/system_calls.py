"""Numbers of system calls that no session may make, on x86_64 and on aarch64. Those of only one machine are marked."""

import errno
import os

_MACHINES = ("x86_64", "aarch64")
_FIRST_MODERN = 424  # from this number on the refusal is ENOSYS, on which libc falls back

_MOUNTS = {
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "statmount": (457, 457), "listmount": (458, 458), "swapon": (167, 224), "quotactl": (179, 60),
}  # fmt: skip
_OTHERS_MEMORY = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272), "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "move_pages": (279, 239), "migrate_pages": (256, 238),
}  # fmt: skip
_KERNEL = {
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "reboot": (169, 142), "syslog": (103, 116),
    "acct": (163, 89), "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "sethostname": (170, 161), "setdomainname": (171, 162), "vhangup": (153, 58), "seccomp": (317, 277),
    "landlock_create_ruleset": (444, 444), "lookup_dcookie": (212, 18), "fanotify_init": (300, 262), "fanotify_mark": (301, 263),
}  # fmt: skip
_KEYS_AND_HANDLES = {
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
}  # fmt: skip
_QUEUES_AND_RINGS = {
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "io_setup": (206, 0),
    "io_submit": (209, 2), "shmget": (29, 194), "shmat": (30, 196),
    "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180), "vmsplice": (278, 75),
    "memfd_secret": (447, 447), "mbind": (237, 235), "set_mempolicy": (238, 237), "remap_file_pages": (216, 234),
}  # fmt: skip
_NAMESPACES = {"unshare": (272, 97), "setns": (308, 268), "clone3": (435, 435)}
_X86_ONLY = {
    "modify_ldt": 154, "iopl": 172, "ioperm": 173, "set_thread_area": 205, "uselib": 134, "ustat": 136, "sysfs": 139, "_sysctl": 156,
    "create_module": 174, "query_module": 178, "nfsservctl": 180,
}  # fmt: skip


def _here() -> dict[str, int]:
    column = _MACHINES.index(os.uname().machine)
    groups = (_MOUNTS, _OTHERS_MEMORY, _KERNEL, _KEYS_AND_HANDLES, _QUEUES_AND_RINGS, _NAMESPACES)
    numbers = {name: pair[column] for group in groups for name, pair in group.items()}
    return numbers | (_X86_ONLY if os.uname().machine == "x86_64" else {})


REFUSED = _here()


def refusal(number: int) -> str:
    """Return the error of a call outside the list."""
    return errno.errorcode[errno.ENOSYS if number >= _FIRST_MODERN else errno.EPERM]
