"""Snippets about the session's interpreter: its variables, names, health, packages and modules."""

import base64
import builtins
import contextlib
import importlib
import json
import os
import platform
import re
import reprlib
import subprocess
import sys
import sysconfig
import threading
import time
import warnings
import zlib
from http.client import HTTPException
from importlib import metadata
from importlib.util import find_spec
from itertools import islice
from types import ModuleType
from typing import Any
from urllib.request import Request, urlopen


def variables(user: dict, classes: bool = True) -> None:
    """Print at most 500 of the user's variables as JSON, sorted by name, without running code of the user's classes.

    Leave out variables that are modules, and those that are classes if `classes` is false.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    hidden = shell.user_ns_hidden if shell is not None else {}
    user = user.copy()  # threads of the user may add variables meanwhile
    names = [name for name in user if type(name) is str and not name.startswith("_")]
    names = [name for name in names if not (name in hidden and hidden[name] is user[name])]
    left_out = (ModuleType,) if classes else (ModuleType, type)
    described = [_describe(name, user[name]) for name in sorted(names) if not issubclass(type(user[name]), left_out)]
    print(json.dumps(described[:500]))


# A type is known by its address: its `==` could be code of the user's metaclass.
_SIZED = frozenset(map(id, (str, bytes, list, tuple, dict, set, frozenset, range)))
_PLAIN = _SIZED | frozenset(map(id, (bool, int, float, complex, type(None))))
_ORDERED = frozenset(map(id, (int, float, str, bytes)))
_FOREIGN = ("numpy", "pandas", "polars")
_module_of = type.__dict__["__module__"].__get__  # `kind.__module__` could run code of the user's metaclass


def _describe(name: str, value: Any) -> dict:
    kind = type(value)
    of_library = _is_library_type(kind)
    shape = [int(side) for side in value.shape] if of_library and hasattr(value, "shape") else None
    if id(kind) in _SIZED:
        shape = [len(value)]
    text = _short.repr(value) if id(kind) in _PLAIN else ""
    return {"name": name, "type": _name_of(kind), "shape": shape, "size": _size(value, of_library), "text": text}


def _name_of(kind: type) -> str:
    """Return a type's name as a plain `str`, so that no method of a user's own `str` subclass can run."""
    return "".join([type.__dict__["__name__"].__get__(kind)])


def _is_library_type(kind: type) -> bool:
    """Return whether a type is of numpy, pandas or polars.

    The `__module__` of a class can be forged, so the type must also be found in the module that it names.
    """
    named = _module_of(kind)
    if type(named) is not str or named.partition(".")[0] not in _FOREIGN:
        return False
    module = sys.modules.get(named)
    return type(module) is ModuleType and vars(module).get(_name_of(kind)) is kind


def _size(value: Any, of_library: bool) -> int:
    """Return a value's size in bytes, without the items of a container.

    Return 0 if measuring an object of numpy, pandas or polars fails.
    """
    try:
        if of_library and hasattr(value, "memory_usage"):
            used = value.memory_usage()
            return int(used.sum() if hasattr(used, "sum") else used)
        if of_library and hasattr(value, "nbytes"):
            return int(value.nbytes)
    except Exception:
        return 0
    return sys.getsizeof(value) if id(type(value)) in _PLAIN else object.__sizeof__(value)


class _SafeRepr(reprlib.Repr):
    """A `repr` that shows plain values (numbers, texts, lists and such), shortened if they are long, and only the type of other objects."""

    repr_bytes = reprlib.Repr.repr_str  # it cuts before it makes the text

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80

    def repr1(self, x: object, level: int) -> str:
        """Return the text of a plain value, else the name of the type. The object's own `__repr__` is not called."""
        if id(type(x)) in _PLAIN:
            with contextlib.suppress(ValueError):  # an int with more digits than Python writes
                return super().repr1(x, level)
        return f"<{_name_of(type(x))}>"

    def repr_set(self, x: Any, level: int) -> str:
        """Return the text of a set, sorted if its members have one built-in type. Comparing other members could run the user's code."""
        members = list(x)
        kinds = {*map(id, map(type, members))}
        if len(kinds) == 1 and kinds <= _ORDERED:
            members.sort()
        return f"{{{self.repr_list(members, level)[1:-1]}}}" if x else "set()"

    def repr_frozenset(self, x: Any, level: int) -> str:
        """Return the text of a frozenset."""
        return f"frozenset({self.repr_set(x, level)})" if x else "frozenset()"

    def repr_dict(self, x: dict, level: int) -> str:
        """Return the text of a dict's first items without looking up keys, because their `==` could be the user's code."""
        if x and level <= 0:
            return "{...}"
        items = [f"{self.repr1(key, level - 1)}: {self.repr1(value, level - 1)}" for key, value in islice(x.items(), self.maxdict)]
        return f"{{{', '.join(items + ['...'] * (len(x) > self.maxdict))}}}"


_short = _SafeRepr()


def complete(user: dict, code: str, cursor: int) -> None:
    """Print the completions that IPython offers for `code` at `cursor`, as JSON: at most 200, each of at most 500 characters."""
    cursor = max(0, min(cursor, len(code)))
    found, shell = [], user.get("get_ipython", lambda: None)()
    if shell is not None:
        shell.Completer.use_jedi = False  # it reads the sources of libraries, which takes it 3 s for a DataFrame; IPython asks the objects
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # IPython calls its own completions provisional
            found = list(shell.Completer.completions(code, cursor))
    start, end = (found[0].start, found[0].end) if found else (cursor, cursor)
    texts = [one.text for one in found if (one.start, one.end) == (start, end)]
    dot = code[start:end].startswith(".") and all(text.startswith(".") for text in texts)  # IPython 9 completes `.app` of `list.app`
    print(json.dumps({"matches": [text[dot : dot + 500] for text in texts[:200]], "start": start + dot, "end": end}))


def inspect(user: dict, code: str, cursor: int, detail: int) -> None:
    """Print what IPython shows about the name at `cursor` as JSON, without colours: up to 20,000 characters, null for an unknown name."""
    from IPython.utils.tokenutil import token_at_cursor

    name, shown = token_at_cursor(code, max(0, min(cursor, len(code)))), None
    with contextlib.suppress(KeyError):
        shown = user["get_ipython"]().object_inspect_mime(name, detail_level=detail)["text/plain"]
    print(json.dumps({"text": re.sub(r"\x1b\[[0-9;]*m", "", shown[:20_000]) if shown else None}))


def reset(user: dict, mark: str = "") -> None:
    """Clear the user's variables, close figures and return to /mnt/data. Files, loaded modules and background threads stay.

    If `mark` is given, store it in the session. The client reads it later to check that the service has not replaced the session.
    """
    shell = user.get("get_ipython", lambda: None)()
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    if shell is not None:
        shell.reset(new_session=True)
    os.chdir("/mnt/data")
    if mark:  # the next position in the client's ledger
        builtins.__dict__["_aca_sessions_mark"] = mark


def health(user: dict) -> None:
    """Print, as JSON, the Python version of the session's interpreter, its memory, uptime, number of threads and processor time.

    Memory and uptime are 0 if /proc cannot be read: in some sessions, a process may not read its own entry there.
    """
    memory, uptime = 0, 0.0
    with contextlib.suppress(PermissionError), open("/proc/self/statm") as statm, open("/proc/self/stat") as stat:
        # The second field is the resident set size in pages (proc_pid_statm(5)).
        used = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        # Field 22 of proc_pid_stat(5), the start in clock ticks after boot. The second field, a name in parentheses, may hold spaces.
        started = int(stat.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        memory, uptime = used, max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)
    measured = {"python": platform.python_version(), "memory": memory, "uptime": uptime}
    print(json.dumps({**measured, "threads": threading.active_count(), "cpu": time.process_time()}))


def install(user: dict, *requirements: str) -> None:
    """Install packages with the session's own pip and print its output. Raise RuntimeError if pip fails.

    The packages go into the session's environment if that is writable, otherwise into /mnt/data/.packages.
    """
    beside = "/mnt/data/.packages"
    target = [] if os.access(sysconfig.get_path("purelib"), os.W_OK) else ["--target", beside]
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet", *target, *requirements]
    done = subprocess.run(pip, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if target and beside not in sys.path:
        sys.path.append(beside)
    importlib.invalidate_caches()
    print(done.stdout, end="")
    if done.returncode:
        raise RuntimeError("pip could not install " + ", ".join(requirements) + ": see its output")


def print_missing(user: dict, *requirements: str) -> None:
    """Print, as a JSON list, those of the requirements that the installed packages do not meet."""
    print(json.dumps([requirement for requirement in requirements if not _is_met(requirement)]))


def _is_met(requirement: str) -> bool:
    """Return whether an installed package meets a requirement. Return False if it has extras: it is not known which packages they need."""
    try:
        from packaging.requirements import Requirement

        wanted = Requirement(requirement)
        version = metadata.version(wanted.name)
        return not wanted.extras and wanted.specifier.contains(version, prereleases=True)
    except (ImportError, ValueError):
        return False


def plotly_script(user: dict) -> None:
    """Display the script that draws charts of plotly, as text."""
    script = importlib.import_module("plotly.offline").get_plotlyjs()
    importlib.import_module("IPython.display").display({"text/plain": script}, raw=True)


def check_index(user: dict, url: str) -> None:
    """Print true if pip is installed and the package index answers, so that packages can be downloaded. Print false otherwise."""
    url = os.environ.get("PIP_INDEX_URL", url)
    try:
        urlopen(Request(url, method="HEAD"), timeout=5).close()  # noqa: S310
        reached = find_spec("pip") is not None
    except (OSError, ValueError, HTTPException):  # malformed, or no HTTP server answers there
        reached = False
    print(json.dumps(reached))


def show_workdir_as(user: dict, name: str) -> None:
    """Make `%pwd` and shells print `name` in place of the folder to which this symbolic link leads. Do nothing if `name` is not a link to a
    folder.

    `ls -l` with the link lists the folder's files, not the link itself. `os.getcwd()` still returns the real path (getcwd(3)).
    """
    folder = os.path.realpath(name)
    if folder == name or not os.path.isdir(folder):
        return
    if folder == os.getcwd():
        os.environ["PWD"] = name  # a shell keeps a name that leads to its directory (POSIX, "sh")
    os.environ["BASH_FUNC_ls%%"] = '() { command ls -H "$@"; }'  # noqa: SIM112 - ls -l shows a link and not its files

    def pwd(line: str = "") -> str:
        """Return the working directory."""
        current = os.getcwd()
        return name + current[len(folder) :] if f"{current}/".startswith(f"{folder}/") else current

    user["get_ipython"]().register_magic_function(pwd, "line", "pwd")


def create_modules(user: dict, package: str, packed: str) -> None:
    """Create modules in the package named `package`, from `packed`: their names and sources as JSON, compressed and in base64.

    A module must come after those that it imports. Print null as JSON when all are created. If the session lacks something that they need,
    create none and print what is missing: "python", "ipython" or "threads".
    """
    lack = _find_lack()
    if lack is None:
        for name, source in json.loads(zlib.decompress(base64.b64decode(packed))):
            _create_module(package, name, source)
    print(json.dumps(lack))


def _find_lack() -> "str | None":
    """Return what the session lacks to run the modules of `create_modules`: "python" (3.9 or later), "ipython", "threads", or None."""
    if sys.version_info < (3, 9):  # noqa: UP036 - the session's Python, not this one
        return "python"
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        return "ipython"
    try:
        thread = threading.Thread(target=str, daemon=True)
        thread.start()
        thread.join()
    except RuntimeError:
        return "threads"
    return None


def _create_module(package: str, name: str, source: str) -> None:
    """Create a module and its parent packages in `sys.modules`. If its code raises, remove the module again and re-raise."""
    full = package + "." + name
    above = _ensure_package(full.rpartition(".")[0])
    module = ModuleType(full)
    module.__package__ = above.__name__
    module.__file__ = "<" + package + ">/" + name.rpartition(".")[2] + ".py"
    sys.modules[full] = module
    try:
        exec(compile(source, module.__file__, "exec", dont_inherit=True), module.__dict__)  # noqa: S102
    except BaseException:
        del sys.modules[full]
        raise
    setattr(above, name.rpartition(".")[2], module)


def _ensure_package(name: str) -> ModuleType:
    if name not in sys.modules:
        sys.modules[name] = made = ModuleType(name)
        made.__path__ = []
        if "." in name:
            setattr(_ensure_package(name.rpartition(".")[0]), name.rpartition(".")[2], made)
    return sys.modules[name]


def pass_message(user: dict, module: str, marker: str, message: str) -> None:
    """Pass a message to a cell that runs in a thread, by calling the function `answer_poll` of `module`, which `create_modules` created.

    That function prints a report about the cell: one line with `marker` and JSON. If it was not created, print a line that says so.
    """
    found = sys.modules.get(module)
    if found is None:
        print("\n" + marker + '{"cell": "no module"}')
    else:
        found.answer_poll(marker, message)
