"""Errors and progress out of what pip wrote, in words that a user can act on. Nothing here awaits.

Addresses are left out, because an index's address may hold its password.
"""

import re
from collections.abc import Callable, Iterable
from urllib.parse import unquote, urlsplit

from .pip_launcher import TOO_LARGE, TOO_MUCH_ABOUT, TOO_MUCH_FETCHED
from .requirements import PackageError

Tell = Callable[[str], None]

_LONGEST = 2000
_ADDRESS = re.compile(r"\b[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)
_FOLDERS = re.compile(r"(?<=\s)/\S*/")
_NOT_FOUND = re.compile(r"Could not find a version that satisfies the requirement (.+?) \(from versions: (.*?)\)")
_CAUSES = re.compile(r"The conflict is caused by:\n(.+?)\n\s*\n", re.DOTALL)
_UNREACHED = re.compile(r"connection broken by|Could not fetch URL .*(?:Max retries|SSLError|Connection|timed out)|ReadTimeoutError")
_UNFIT = re.compile(r"none of the wheel's tags|No sources permitted|requires a different Python", re.IGNORECASE)
_PROGRESS = ("Collecting ", "Downloading ", "Processing ", "Installing collected packages")
_BY_SIGN = {
    r"\[Errno 28\]|No space left": (
        "DiskFullError",
        "the host's disk is full: free some of it, or name another place in ACASessions:Packages:CacheFolder",
    ),
    TOO_LARGE: (
        "PackageTooLargeError",
        "what is in its wheels is larger than the whole cache, or more than 500,000 files: raise ACASessions:Packages:CacheMegabytes",
    ),
    TOO_MUCH_FETCHED: (
        "PackageTooLargeError",
        "what was fetched for it is larger than the whole cache: name exact versions, or raise ACASessions:Packages:CacheMegabytes",
    ),
    rf"{TOO_MUCH_ABOUT}|MemoryError": ("UnsafeWheelError", "a wheel has metadata or a directory that is too large to be read"),
    r"\[Errno 27\]": ("PackageTooLargeError", "a file in it is larger than the whole cache: raise ACASessions:Packages:CacheMegabytes"),
    r"outside the target directory": ("UnsafeWheelError", "a wheel has files that would lie outside their place; nothing was installed"),
    r"while executing command|No permission to execute|Cannot find command": (
        "BuildRefusedError",
        "a package would have to be built here, which runs its code on the host: only ready-made wheels are installed",
    ),
    r"DO NOT MATCH THE HASHES": ("PackageChangedError", "a wheel is not the one that its index announced; nothing was installed"),
    r"(?:401|403) Client Error": ("IndexRefusedError", "the package index refused this host: look at ACASessions:Packages:IndexUrl"),
    r"is not a supported wheel|Wheel .* is invalid|BadZipFile|invalid wheel": ("UnsafeWheelError", "a wheel cannot be read: it is damaged"),
}


def explained(output: str) -> PackageError:
    """Return the error for a run of pip that failed: the cause, and what to do."""
    for sign, (name, message) in _BY_SIGN.items():
        if re.search(sign, output):
            return PackageError(name, message)
    if missing := _NOT_FOUND.search(output):
        return _missing(missing[1], missing[2], output)
    if "ResolutionImpossible" in output:
        causes = _CAUSES.search(output)
        reason = _shown(causes[1] if causes else _errors(output))
        return PackageError("PackageConflictError", f"no set of versions fits together:\n{reason}")
    said = _errors(output) or output.strip().rpartition("\n")[2]
    return PackageError("PackageError", _shown(said) or "pip failed without a word; look at the host's disk and memory")


def progress(line: str) -> str | None:
    """Return a line of pip's output if it reports progress, else None.

    Folders of this host are cut out of the line. A line with an address is not returned at all.
    """
    if not line.lstrip().startswith(_PROGRESS) or _ADDRESS.search(line):
        return None
    return _FOLDERS.sub("", line.strip())


def without_secrets(text: str, settings: Iterable[str]) -> str:
    """Return the text without any address, and without the secret parts of addresses in the settings."""
    for secret in sorted({part for value in settings for part in _secrets(value)}, key=len, reverse=True):
        text = text.replace(secret, "****")
    return _ADDRESS.sub("[address]", text)


def _missing(requirement: str, versions: str, output: str) -> PackageError:
    wanted = _shown(requirement)
    if versions.strip() not in ("", "none"):
        return PackageError("PackageNotFoundError", f"no version fits {wanted}; as wheels for the sessions' Python there are {versions}")
    if _UNREACHED.search(output):
        advice = "is this host connected, is ACASessions:Packages:IndexUrl right?"
        return PackageError("IndexUnreachableError", f"no package index was reached to look for {wanted}: {advice}")
    if _UNFIT.search(output):
        return PackageError("NoWheelError", f"{wanted} has no wheel for the sessions' Python on this machine; nothing is built from source")
    return PackageError("PackageNotFoundError", f"there is no package {wanted} in the index: is its name spelt right?")


def _errors(output: str) -> str:
    lines = [line.strip().removeprefix("ERROR: ") for line in output.splitlines() if line.strip().startswith("ERROR: ")]
    return "\n".join(dict.fromkeys(lines))


def _shown(text: str) -> str:
    """Return pip's words in terms of this project, 2000 characters at most. What pip calls a constraint is the sessions' environment."""
    told = text.replace("The user requested (constraint)", "the sessions' environment has").replace("The user requested", "asked for is")
    return "\n".join(line.strip() for line in told.splitlines())[:_LONGEST]


def _secrets(value: str) -> set[str]:
    """Return the user name, the password and the folders of each address in a value, if they are longer than three characters."""
    found: set[str] = set()
    for word in value.split():
        if not word.startswith(("http://", "https://")):
            continue
        try:
            parts = urlsplit(word)
        except ValueError:
            continue
        named = [parts.username or "", parts.password or "", *(part for part in parts.path.split("/") if part != "simple")]
        found |= {form for part in named for form in (part, unquote(part)) if len(form) > 3}
    return found
