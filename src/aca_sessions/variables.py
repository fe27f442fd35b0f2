"""Checks of the environment variables of the settings, before pydantic-settings reads them.

pydantic-settings ignores unknown variables, and of two that contradict each other it takes one silently. No error holds a value, because it
may be a secret.
"""

import difflib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from .errors import ConfigurationError


def check_variables(section: str, known: Mapping[str, Collection[str]]) -> None:
    """Raise ConfigurationError for a variable that is not a setting, and for two that contradict each other.

    Args:
        section: The beginning of the variables' names, in any case.
        known: The settings, each with the keys below it.
    """
    prefix, found = f"{section}__".lower(), dict[str, tuple[str, str]]()
    for variable, value in os.environ.items():
        name = variable.lower()
        if not name.startswith(prefix):
            _check_separator(variable, section, known)
            continue
        key = variable[len(prefix) :]
        if key.partition("__")[0].lower() not in {one.lower() for one in known}:
            raise ConfigurationError(f"the environment variable {variable} is no setting{suggestion(key, known)}")
        earlier, its_value = found.setdefault(name, (variable, value))
        if its_value != value:
            raise ConfigurationError(f"the environment variables {earlier} and {variable} contradict each other: keep one")
    _check_sections(found)


def suggestion(key: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the key that is probably meant, or all keys that exist."""
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(key.lower(), names, n=1)
    return f": did you mean {names[close[0]]}?" if close else f"; there are {', '.join(names.values())}"


def _check_separator(variable: str, section: str, known: Mapping[str, Collection[str]]) -> None:
    """Raise ConfigurationError for a wrong separator: ACASessions_Endpoint and ACASessions:Endpoint.

    Names that Kubernetes defines for a service are not refused: ACASESSIONS_MCP_SERVICE_HOST.
    """
    if not variable.lower().startswith(section.lower()):
        return
    parts = re.split(r"[_:.]+", variable[len(section) :])
    if len(parts) < 2 or parts[0]:
        return
    keys = {name.lower(): {key.lower() for key in below} for name, below in known.items()}.get(parts[1].lower())
    if keys is not None and ((len(parts) == 2 and not keys) or (len(parts) > 2 and parts[2].lower() in keys)):
        meant = "__".join([section, *parts[1:]])
        raise ConfigurationError(f"the environment variable {variable} is no setting: did you mean {meant}?")


def _check_sections(found: Mapping[str, tuple[str, str]]) -> None:
    """Raise ConfigurationError if a section in JSON and a variable for one of its keys contradict each other."""
    for name, (variable, value) in found.items():
        for key, inner in _leaves(name, value):
            other, text = found.get(key, (variable, value))
            if other != variable and text != inner:
                raise ConfigurationError(f"the environment variables {variable} and {other} contradict each other: keep one")


def _leaves(name: str, text: str) -> Iterator[tuple[str, str]]:
    try:
        content = json.loads(text) if text.lstrip().startswith("{") else None
    except ValueError:
        return  # pydantic-settings raises for invalid JSON
    for key, value in content.items() if isinstance(content, dict) else ():
        inner = value if isinstance(value, str) else json.dumps(value)
        yield f"{name}__{key.lower()}", inner
        yield from _leaves(f"{name}__{key.lower()}", inner)
