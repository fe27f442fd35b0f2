"""The base of all sections of the settings, and the types of their keys."""

import json
import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import NoDecode

Positive = Annotated[float, Field(gt=0, le=31_536_000)]  # a year of seconds; in minutes more than anyone waits
Count = Annotated[int, Field(gt=0)]
Words = Annotated[tuple[str, ...], NoDecode]


class Section(BaseModel):
    """A section of the settings. Unknown keys are refused."""

    # The docstring below a field is its description, from which docs/reference/settings.md is made.
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, values: object) -> object:
        """Drop values that are null, so that they count as unset, as in the configuration of .NET."""
        return {key: value for key, value in values.items() if value is not None} if isinstance(values, Mapping) else values


def split_words(value: object) -> object:
    """Convert a text to a list, and return other values unchanged.

    The text is a JSON list, or words that are separated by commas, semicolons or spaces.
    """
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return parse_json(value, "a JSON list or words with commas between them, got text that begins with '['")
    return tuple(word for word in re.split(r"[,;\s]+", value) if word)


def parse_json(text: str, expected: str) -> object:
    """Parse JSON. If `text` is not JSON, raise ValueError, which names what was expected but does not show the text."""
    try:
        return json.loads(text)
    except ValueError:
        pass
    raise ValueError(f"must be {expected} but is not JSON")  # without a cause, which would contain the value
