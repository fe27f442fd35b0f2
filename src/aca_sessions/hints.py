"""Write hints. If a cell lacked a package, a file or the network, or reached a limit, the hint is a line of the host that tells the
caller what to do.

A hint depends only on what the host knows about the session, and never quotes the guest. A guest can cause a hint, but cannot choose its
words. A hint does not depend on files of the host, because a model could search for them.
"""

import re
from dataclasses import dataclass

from .models import Access, AccessLimits, CodeExecutionResult

NOT_PUBLIC = "at least one of its addresses is not public"  # in errors of the proxy of allowed domains
_LOOKED_AT = 10_000  # characters at the end of each stream
_MOST_LISTED = 10
_NO_PACKAGE = re.compile(
    r"ModuleNotFoundError(?:: |\Z)|No module named |Missing optional dependency |a cell cannot install packages: the host does"
)
# Messages of C libraries, of Python's HTTP clients behind the proxy of allowed domains, of curl and of git.
_NO_NETWORK = re.compile(
    r"[Nn]ame resolution|Name or service not known|No address associated with hostname|Network is unreachable|[Cc]ould not resolve|"
    r"getaddrinfo failed|Tunnel connection failed: 403|ProxyError|CONNECT tunnel failed, response 403|by this session's network rules|"
    + NOT_PUBLIC
)
# Errors at the beginning of a line. Libraries have subclasses of MemoryError with longer names. If the loader of C libraries gets none,
# the error is an ImportError or OSError; on a file system without `exec` it ends with "Operation not permitted".
_NO_MEMORY = re.compile(r"^[\w.]*MemoryError(?:: |$)|failed to map segment from shared object(?!: Operation)", re.MULTILINE)
_NO_ROOM = re.compile(r"^OSError: \[Errno (?:27|28)\] ", re.MULTILINE)
_NO_PROGRAM = re.compile(r"_execute_child|_posix_spawn")  # functions of subprocess that start a program
_NO_PROCESS = re.compile(r"^BlockingIOError: \[Errno 11\] Resource temporarily|^RuntimeError: can't start new thread", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Remedies:
    """The advice that hints give to the users of one integration.

    Attributes:
        install: How to install a missing package. It is '' if the integration has no function for that.
        data: What to do without the network.
        file: What to do about a missing file. The user may mean a file of the host.
    """

    install: str
    data: str = "work with the files in /mnt/data"
    file: str = "this session sees only its own files: list them with os.listdir()"


def hint(result: CodeExecutionResult, access: Access, remedies: Remedies) -> str:
    """Return the hint for a result, or '' if the cell seems to lack no package, no network and no file, and reached no limit.

    Output is searched for errors too, because programs catch errors and print them.

    Args:
        result: The result of a cell.
        access: What the cell's session can reach and install.
        remedies: The advice of the integration that ran the cell.
    """
    ends = (str(result.error or ""), result.stderr[-_LOOKED_AT:], result.stdout[-_LOOKED_AT:])
    if any(_NO_PACKAGE.search(text) for text in ends):
        return remedies.install or _without_install(access)
    if any(_NO_NETWORK.search(text) for text in ends):
        return _about_network(access, remedies, is_private=any(NOT_PUBLIC in text for text in ends))
    if result.error is not None and result.error.name == "FileNotFoundError" and not _NO_PROGRAM.search(result.error.traceback):
        return _about_files(access, remedies)
    return _about_limits("\n".join(ends[:2]), access.limits)


def _about_files(access: Access, remedies: Remedies) -> str:
    return f"{remedies.file}. {mounts_sentence(access)}" if access.mounts else remedies.file


def _about_limits(errors: str, limits: AccessLimits | None) -> str:
    """Return the hint for errors of a cell that reached a limit of its session. Name the limit if it is known."""
    if _NO_MEMORY.search(errors):
        limit = "" if limits is None else f" ({_size(limits.memory)})"
        return f"the session's limit of memory{limit} was reached: work on smaller parts of the data, or delete variables"
    if _NO_ROOM.search(errors):
        limit = f" (/mnt/data {_size(limits.disk)} and {limits.files} files, /tmp {_size(limits.temporary)})" if limits else ""
        return f"a limit of the session's files{limit} was reached: delete files, or write less"
    if _NO_PROCESS.search(errors):
        limit = "" if limits is None else f" ({limits.processes})"
        return f"the session's limit of processes and threads{limit} was reached: start fewer at a time, or end some"
    return ""


def _size(size: int) -> str:
    return f"{size / (1 << 30):g} GB" if size % (1 << 29) == 0 else f"{size >> 20} MB"


def access_sentences(access: Access) -> str:
    """Return sentences about the network and the mounted folders of sessions, for a tool's description. Return '' if nothing is known."""
    return " ".join(filter(None, (_network_sentence(access), mounts_sentence(access))))


def mounts_sentence(access: Access) -> str:
    """Return a sentence that names the folders of the host that code in sessions sees. Return '' if there are none."""
    if not access.mounts:
        return ""
    return f"Code sees these folders of the host: {_listed(tuple(f'{path} ({shared})' for path, shared in access.mounts))}."


def _network_sentence(access: Access) -> str:
    match access.network:
        case None:
            return ""
        case ("none",):
            return "There is no network."
        case ("host",):
            return "The network of the host is reachable."
        case domains:
            return f"The network has only these domains, by HTTP and HTTPS: {_listed(domains)}."


def install_sentence(access: Access) -> str:
    """Return a sentence which says that the host downloads packages, for the description of a tool that installs them.

    Return '' if it is not known whether the host or the session downloads them.
    """
    return "" if access.network is None else "The host fetches them, so the session needs no network."


def _without_install(access: Access) -> str:
    if access.network is None:
        return (
            "no function installs packages here: `%pip install NAME` in a cell works only if the pool of this session has network access, "
            "otherwise use the packages that are installed"
        )
    return "no package can be installed in this session: use the standard library and the packages that are installed"


def _about_network(access: Access, remedies: Remedies, *, is_private: bool) -> str:
    match access.network:
        case None:
            return f"the pool of this session decides about its network: if other addresses fail too, {remedies.data}"
        case ("none",):
            return f"this session has no network, so trying again does not help: {remedies.data}"
        case ("host",):
            return ""  # the policy is not the cause
        case _ if is_private:
            advice = f"so trying again does not help: {remedies.data}"
            return f"sessions reach only public addresses, and at least one address of an allowed domain is not public, {advice}"
        case domains:
            return f"this session reaches only these domains, by HTTP and HTTPS: {_listed(domains)}"


def _listed(names: tuple[str, ...]) -> str:
    rest = len(names) - _MOST_LISTED
    return ", ".join(names[:_MOST_LISTED]) + (f" and {rest} more" if rest > 0 else "")
