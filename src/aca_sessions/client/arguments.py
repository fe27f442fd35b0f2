"""Check the arguments of the client's methods before anything is sent.

An InvalidArgumentError says what was wrong and what to give instead.
"""

import ast
import hashlib
import hmac
import json
import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from ..contract.extensions import MAX_INSTALL_SECONDS
from ..contract.records import IDENTIFIER, MAX_ASYNCHRONOUS_SECONDS, split_path
from ..errors import InvalidArgumentError
from ..models import CodeError

# Possessive quantifiers, and the closing fence is looked for from the end: a model chooses this text, so matching must take linear time.
_OPENING = re.compile(r"\s*+(?P<fence>`{3,}+|~{3,}+)[ \t]*+[\w+.-]*+[ \t]*+\n")
_QUOTED = re.compile(r"\A\s*+`(?P<code>[^`\n]++)`\s*+\Z")
# Such a line is never Python, except inside a string of several lines. (A line of tildes can be Python: `~` inverts what follows.)
_FENCE = re.compile(r"^[ \t]*+`{3,}+[ \t]*+(?P<language>[\w+.-]*+)[ \t]*+$", re.MULTILINE)
_LANGUAGE_LINE = re.compile(r"\s*+(?:python3?|py)[ \t]*+\n(?=(?:[ \t]*+(?:#[^\n]*+)?\n)*+[ \t]*+[^\s#\\])", re.IGNORECASE)
_CELL_MAGIC = re.compile(r"\s*+%%")
_MARK = "\ufeff"
_MOST_PROSE = 2000  # characters that are parsed to see whether they are code: so few cannot exhaust Python's parser


def sanitize(code: str) -> str:
    """Extract the Python code from a language model's text: remove Markdown fences, backticks, a byte order mark and Windows line ends.

    A first line that only names the language is dropped if a statement follows. If a text begins and ends with the same fence, everything
    between them is the code. Otherwise, text before and after a fence is dropped. But nothing is dropped if that text may be code, if there
    are several fenced blocks, or if the fence may be inside a string.
    """
    text = code.removeprefix(_MARK)
    text = text.replace("\r\n", "\n") if "\r\n" in text else text
    if ("```" in text or "~~~" in text) and (fenced := _extract_fenced(text)) is not None:
        return textwrap.dedent(fenced)
    if quoted := _QUOTED.match(text):
        return quoted["code"]
    named = _LANGUAGE_LINE.match(text)
    return text[named.end() :] if named else text


def _extract_fenced(text: str) -> str | None:
    """Return the code inside the Markdown fence around the whole text, or inside the only fenced block of the text.

    Return None if there is no fence, if there are several fenced blocks, or if the text around the only block may be code.
    """
    opening = _OPENING.match(text)
    if opening is not None:
        rest, fence = text[opening.end() :].rstrip(), opening["fence"]
        # Python may begin with three tildes, and end with them in a comment. It has no backticks, and no line of tildes alone at its end.
        if rest.endswith(fence) and (fence[0] == "`" or rest.rpartition("\n")[2].strip() == fence):
            return rest.removesuffix(fence).rstrip(" \t").removesuffix("\n")
    return _extract_only_block(text)


def _extract_only_block(text: str) -> str | None:
    """Return the code of the only fenced block in a text. If the fence is not closed, the block extends to the end of the text.

    Return None if there is no block or more than one, or if the text around the block may be code.
    """
    fences = [found for found, _ in zip(_FENCE.finditer(text), range(3), strict=False)]
    if not 0 < len(fences) < 3 or _CELL_MAGIC.match(text) or any(fence["language"] for fence in fences[1:]):
        return None
    before, end = text[: fences[0].start()], fences[1] if len(fences) > 1 else None
    after = text[end.end() :] if end else ""
    if '"""' in before or "'''" in before or _is_code(before) or _is_code(after) or len(text) == fences[0].end():
        return None
    return text[fences[0].end() + 1 : end.start() if end else None].removesuffix("\n")


def _is_code(text: str) -> bool:
    """Return whether a text may be Python code instead of prose.

    A text is prose if it cannot be parsed as Python, or if each statement is a single name, as in "Hello". A text of more than 2,000
    characters is not parsed and counts as code.
    """
    if len(text) > _MOST_PROSE:
        return True
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(not (isinstance(one, ast.Expr) and isinstance(one.value, ast.Name)) for one in statements)


_PACKAGE = re.compile(r"[\w.-]{1,200}", re.ASCII)
_LONGEST_NAME, _MOST_BRANCHES = 256, 64
_SHORTEST_SALT = 16
_NAME_IS = "a file name must be text such as 'data.csv' or 'folder/data.csv'"
_NOT_IN_NAMES = frozenset('"\\') | {chr(code) for code in range(32)} | {chr(127)}


def checked_session_id(session_id: object) -> str:
    """Return `session_id` if it is an identifier that endpoints accept, of 1 to 256 characters. Otherwise raise InvalidArgumentError."""
    if not isinstance(session_id, str) or not IDENTIFIER.fullmatch(session_id):
        # Without the value: a session's identifier gives access to it.
        got = type(session_id).__name__
        if isinstance(session_id, str):
            wrong = next((place for place, sign in enumerate(session_id, 1) if not IDENTIFIER.fullmatch(sign)), None)
            got = f"{len(session_id)} characters" if wrong is None else f"another character in place {wrong}"
        raise InvalidArgumentError(f"session_id must be 1 to 256 ASCII letters, digits, spaces or signs except the backslash, got {got}")
    return session_id


def session_name(user_id: str | int | UUID, *, namespace: str = "", salt: str | bytes | None = None) -> str:
    """Return the name of a user's session: 64 hexadecimal digits, which are the same only for the same arguments.

    Every endpoint accepts the name, Azure's too. Raise InvalidArgumentError for a user id that cannot name a user, such as None or "".

    Args:
        user_id: The user's id in your program, for example an e-mail address or a database key. Case and spaces matter: "Ann" and "ann" are
            two users. The number 7 and the text "7" are the same user.
        namespace: What the session is for, for example "charts". In each namespace, the same user has a different session.
        salt: A secret of your program, at least 16 characters or bytes. With it, only your program can compute the name of a user's
            session. Without it, anyone who knows the user's id can compute the name, although the name does not contain the id.
    """
    if isinstance(user_id, bool) or not isinstance(user_id, str | int | UUID) or not str(user_id).strip():
        got = "empty text" if isinstance(user_id, str) else type(user_id).__name__  # without the value, which is about a person
        raise InvalidArgumentError(f"user_id must be text that is not empty, an int or a UUID, got {got}")
    if not isinstance(namespace, str):
        raise InvalidArgumentError(f"namespace must be text, got {type(namespace).__name__}")
    if not _is_well_formed(str(user_id)) or not _is_well_formed(namespace):
        raise InvalidArgumentError("user_id and namespace must be well-formed Unicode, got a lone surrogate: decode them as UTF-8")
    secret = b""
    if salt is not None:
        if not isinstance(salt, str | bytes) or len(salt) < _SHORTEST_SALT:
            got = f"{len(salt)}" if isinstance(salt, str | bytes) else type(salt).__name__
            raise InvalidArgumentError(
                f"salt must have at least {_SHORTEST_SALT} characters or bytes, got {got}: make one with secrets.token_hex()"
            )
        # HMAC fills keys up with zeros, so that salts of different lengths could be one key.
        secret = hashlib.sha256(salt if isinstance(salt, bytes) else salt.encode("utf-8", "surrogatepass")).digest()
    # As JSON, because no two pairs of texts have the same JSON.
    return hmac.digest(secret, json.dumps([namespace, str(user_id)]).encode(), hashlib.sha256).hex()


def checked_timeout(timeout: object) -> float | None:
    """Return `timeout`, in seconds, if it is above 0 and at most 24 hours. Raise InvalidArgumentError otherwise.

    None is valid and means the endpoint's own limit.
    """
    if timeout is None:
        return None
    # A bool is an int in Python, and NaN compares false with every bound.
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not math.isfinite(timeout):
        raise InvalidArgumentError(f"timeout must be a number of seconds or None, got {timeout!r:.40}")
    if not 0 < timeout <= MAX_ASYNCHRONOUS_SECONDS:
        raise InvalidArgumentError(f"timeout must be above 0 and at most {MAX_ASYNCHRONOUS_SECONDS:g} seconds, got {timeout:g}")
    return timeout


def checked_path(path: object) -> tuple[str, str]:
    """Split the path of a file in /mnt/data into its folder, relative to /mnt/data, and its name.

    Raise InvalidArgumentError if the path leads outside /mnt/data, names a folder or has characters that cannot be sent.
    """
    if not isinstance(path, str):
        raise InvalidArgumentError(f"{_NAME_IS}, got {type(path).__name__}")
    folder, name = _split_checked_path(path)
    if not name:
        raise InvalidArgumentError(f"{_NAME_IS}, got {path!r:.200}")
    return folder, name


def checked_folder(path: object) -> str:
    """Return the path of a folder relative to /mnt/data, or '' for /mnt/data itself. Raise InvalidArgumentError if it leads outside."""
    if not isinstance(path, str):
        raise InvalidArgumentError(f"a folder must be text such as 'folder' or '/mnt/data/folder', got {type(path).__name__}")
    return _split_checked_path(f"{path}/")[0] if path else ""


def _split_checked_path(path: str) -> tuple[str, str]:
    """Split a path into its folder, relative to /mnt/data, and the file's name, which is '' if the path names a folder.

    Raise InvalidArgumentError if the path leads outside /mnt/data or has characters that cannot be sent.
    """
    # Uploads name the file in a quoted header of a multipart form, which cannot hold these. A lone surrogate has no UTF-8 form.
    if _NOT_IN_NAMES & set(path) or not _is_well_formed(path):
        raise InvalidArgumentError(
            f"a file name cannot contain quotation marks, backslashes, control characters or lone surrogates, got {path!r:.200}"
        )
    try:
        return split_path(path)
    except ValueError:
        end = [part for part in path.split("/") if part not in ("", ".", "..")][-1:]
        inside = "/".join(["/mnt/data", *end])
        raise InvalidArgumentError(f"a session's files must be in /mnt/data, got {path!r:.200}: use {inside!r}") from None


def checked_data(data: object) -> bytes | Path:
    """Return the content of an upload as bytes, with text encoded as UTF-8. Return a Path unchanged: the file is read while it is sent.

    Raise InvalidArgumentError for other types, for text with a lone surrogate, and for a Path that is not a file.
    """
    match data:
        case Path():
            if not data.is_file():
                raise InvalidArgumentError(f"{data.name} is not a file on this machine: name an existing file")
            return data
        case str() if _is_well_formed(data):
            return data.encode()
        case bytes():
            return data
        case bytearray() | memoryview():
            return bytes(data)
    kind = "text with a lone surrogate" if isinstance(data, str) else type(data).__name__
    raise InvalidArgumentError(f"a file's content must be bytes, well-formed text or the Path of a file, got {kind}")


def checked_checkpoint_name(name: object) -> str | None:
    """Return a checkpoint's name or id unchanged if it is None or has 1 to 256 characters. Otherwise raise InvalidArgumentError."""
    if name is None or (isinstance(name, str) and 0 < len(name) <= _LONGEST_NAME and _is_well_formed(name)):
        return name
    raise InvalidArgumentError(f"a checkpoint's name must be 1 to {_LONGEST_NAME} characters without lone surrogates, got {name!r:.80}")


def checked_count(count: object) -> int:
    """Return the number of branches to create, unchanged, if it is an int from 1 to 64. Otherwise raise InvalidArgumentError."""
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count <= _MOST_BRANCHES:
        raise InvalidArgumentError(f"the number of branches must be an int from 1 to {_MOST_BRANCHES}, got {count!r:.40}")
    return count


def checked_requirements(requirements: Sequence[str]) -> None:
    """Raise InvalidArgumentError if there are no requirements, or if one of them is not a single line that names a package.

    Empty text, several lines and options of pip such as `--index-url` are refused.
    """
    if not requirements:
        raise InvalidArgumentError("expected at least one package to install, got none: name it as in install('humanize')")
    for number, requirement in enumerate(requirements, 1):
        if not isinstance(requirement, str) or not requirement.strip() or requirement.lstrip().startswith("-") or "\n" in requirement:
            # Without the value: an option such as --index-url may hold a password.
            raise InvalidArgumentError(
                f"package {number} of {len(requirements)} must be one line of a requirements.txt such as 'humanize>=4', without options of "
                f"pip, got {_describe_requirement(requirement)}"
            )


def _describe_requirement(requirement: object) -> str:
    """Describe an invalid requirement for an error message, without its text, which may hold a password."""
    if not isinstance(requirement, str):
        return type(requirement).__name__
    if not requirement.strip():
        return "empty text"
    return "an option" if requirement.lstrip().startswith("-") else "several lines"


def checked_names(names: Sequence[str]) -> Sequence[str]:
    """Return the names of packages to uninstall, unchanged.

    Raise InvalidArgumentError if there are no names, or if one is not a plain package name: for example `numpy==2.0` or `numpy scipy`.
    """
    wrong = [number for number, name in enumerate(names, 1) if not isinstance(name, str) or not _PACKAGE.fullmatch(name)]
    if wrong or not names:
        # Without the value: an option of pip may hold a password.
        got = f"something else in place {wrong[0]} of {len(names)}" if wrong else "none"
        raise InvalidArgumentError(f"expected names of packages without versions and options, as in uninstall('humanize'), got {got}")
    return names


def checked_install_timeout(timeout: object) -> None:
    """Raise InvalidArgumentError unless `timeout` is above 0 and at most 3600 seconds. None is invalid: an installation needs a limit."""
    if (checked_timeout(timeout) or math.inf) > MAX_INSTALL_SECONDS:
        raise InvalidArgumentError(
            f"the timeout of an installation must be above 0 and at most {MAX_INSTALL_SECONDS:g} seconds, got {timeout!r:.40}"
        )


def invalid_code_error(code: object) -> CodeError | None:
    """Return an error if `code` cannot be run as a cell, because it is not a string or not well-formed Unicode. Otherwise return None.

    The caller puts the error into a result and does not raise it, because the model that sent the code reads results.
    """
    if not isinstance(code, str):
        return CodeError("TypeError", f"code must be a string, got {type(code).__name__}: send the Python source text")
    try:
        code.encode()
    except UnicodeEncodeError as error:
        return CodeError("ValueError", f"code must be well-formed Unicode, got a lone surrogate as character {error.start + 1}: remove it")
    return None


def _is_well_formed(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_trust(trust: bool) -> None:
    """Raise InvalidArgumentError unless the caller trusts the file."""
    if trust is not True:
        raise InvalidArgumentError(
            "restoring an exported session runs the code in its file, in the sandbox of the new session: if you trust where the file is "
            "from, pass trust=True"
        )
