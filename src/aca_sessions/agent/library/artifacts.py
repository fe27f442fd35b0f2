"""Artifacts: data that outlives a session. The content is written before the description, so readers find a whole artifact or none."""

import json
import uuid
from datetime import UTC, datetime
from typing import Any, Literal

from ...bridge import codec, host
from ...errors import InvalidArgumentError, StorageError
from .storage import Storage, check_name

_ATTEMPTS = 5
Described = list[dict[str, Any]]
_MOST_DESCRIPTION = 64 << 10
Form = Literal["text", "bytes", "json", "table"]
_DEFAULT_DESCRIPTION: dict[str, Any] = {"description": "", "metadata": {}, "created_at": None, "content": None}
_DESCRIPTION_KEYS = {*_DEFAULT_DESCRIPTION, "name", "form"}


class Artifacts:
    """Artifacts in a storage, such as a folder or Redis. An artifact is data with a name, a description and metadata."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def list(self) -> Described:
        """Return a dict for each artifact, sorted by name: name, path, description, metadata and created_at, but not its data."""
        found = [await self._read_description(name) for name in await self._storage.names("artifacts")]
        return [self._describe(one) for one in found if one is not None]

    async def save(self, name: str, data: Any, description: str = "", metadata: dict[str, Any] | None = None) -> dict[str, Any]:
        """Save text, bytes, a JSON value or a DataFrame under a name. Return a dict that describes the artifact, as in `list`.

        An artifact of the same name is replaced.

        Args:
            name: The name, of up to 128 characters.
            data: The content.
            description: What the artifact is.
            metadata: Further facts about the artifact, such as `{"source": "sales.csv"}`. As JSON, name, description and metadata must have
                at most 64K characters together.
        """
        form, content = _encode_data(data)
        place = f"{check_name(name)[:80].strip(' .')}-{uuid.uuid4().hex}"
        described = {
            "name": name,
            "description": _check_text(description),
            "metadata": metadata or {},
            "created_at": datetime.now(UTC).isoformat(),
            "form": form,
            "content": place,
        }
        text = json.dumps(described, default=_reject_value)
        if len(text) > _MOST_DESCRIPTION:
            raise InvalidArgumentError(
                f"an artifact's description and metadata must have at most {_MOST_DESCRIPTION} characters of JSON together, got {len(text)}"
            )
        await self._storage.write("content", place, content)
        async with self._storage.locked("artifacts"):
            before = await self._read_description(name)
            await self._storage.write("artifacts", name, text.encode())
        if before is not None:
            await self._delete_content(before)
        return self._describe(described)

    async def load(self, name: str) -> Any:
        """Return an artifact's data as it was saved. A table becomes a DataFrame.

        Raise InvalidArgumentError if no artifact has that name.
        """
        form, content = await self._read_content(name)
        return _decode_data(form, content)

    async def load_into_session(self, name: str) -> Any:
        """Return an artifact's data for sending to a session.

        A table stays encoded, as a `codec.Table`, because the session decodes it. Other data is returned as by `load`.
        """
        form, content = await self._read_content(name)
        return codec.Table(content) if form == "table" else _decode_data(form, content)

    async def _read_content(self, name: str) -> tuple[Form, bytes]:
        for _ in range(_ATTEMPTS):
            described = await self._read_description(name)
            if described is None:
                raise InvalidArgumentError(f"there is no artifact {check_name(name)}: see artifacts.list()")
            is_plain_file = described["content"] is None
            content = (
                await self._storage.read("artifacts", name) if is_plain_file else await self._storage.read("content", described["content"])
            )
            if content is not None:  # otherwise it was replaced in between: read its description again
                return described["form"], content
        raise StorageError(f"the content of the artifact {name} is gone from the storage: save it again")

    async def delete(self, name: str) -> None:
        """Delete an artifact, if it exists.

        Take no lock: Redis cannot grant one when its memory is full, and then deleting artifacts must still be possible, to free memory.
        """
        described = await self._read_description(name)
        await self._storage.delete("artifacts", name)
        if described is not None:
            await self._delete_content(described)

    async def _read_description(self, name: str) -> dict[str, Any] | None:
        """Return the stored dict that describes an artifact, or None if the artifact does not exist.

        If `save` did not write the artifact, for example because a person put a file into the folder, return a dict of default values.
        """
        data = await self._storage.read("artifacts", name)
        return None if data is None else _parse_description(data) or {**_DEFAULT_DESCRIPTION, "name": name, "form": _guess_form(name, data)}

    async def _delete_content(self, described: dict[str, Any]) -> None:
        if described["content"] is not None:
            await self._storage.delete("content", described["content"])

    def _describe(self, described: dict[str, Any]) -> dict[str, Any]:
        content, fields = described["content"], {key: described[key] for key in ("name", "description", "metadata", "created_at")}
        return fields | {
            "path": self._storage.path("artifacts", fields["name"]) if content is None else self._storage.path("content", content)
        }


def _parse_description(data: bytes) -> dict[str, Any] | None:
    """Parse the JSON dict by which `save` describes an artifact. Return None if the data is anything else."""
    try:
        fields = json.loads(data) if len(data) <= 4 * _MOST_DESCRIPTION else None
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) and fields.keys() == _DESCRIPTION_KEYS else None


def _guess_form(name: str, data: bytes) -> Form:
    if name.endswith(".parquet"):
        return "table"
    try:
        text = data.decode()
        if name.endswith(".json"):
            json.loads(text)
            return "json"
    except UnicodeDecodeError:
        return "bytes"
    except (ValueError, RecursionError):
        pass
    return "text"


def _encode_data(data: Any) -> tuple[Form, bytes]:
    if isinstance(data, str):
        return "text", data.encode("utf-8", "backslashreplace")
    if isinstance(data, codec.Table):
        return "table", bytes(data)
    if isinstance(data, bytes | bytearray | memoryview):
        return "bytes", bytes(data)
    try:
        if codec.is_table(data):
            return "table", bytes(host.encode_table(data))
        return "json", json.dumps(data, default=_reject_value, indent=1).encode()
    except InvalidArgumentError:
        raise
    except TypeError as error:
        raise InvalidArgumentError(f"an artifact's data cannot be saved: {error}") from error
    except RecursionError as error:
        raise InvalidArgumentError("an artifact's data must not be nested that deeply: save it in parts") from error
    except ValueError as error:
        raise InvalidArgumentError(f"an artifact's data cannot be saved as JSON: {error}") from error


def _decode_data(form: Form, content: bytes) -> Any:
    match form:
        case "text":
            return content.decode()
        case "bytes":
            return content
        case "table":
            return host.read_table(content)
    return json.loads(content)


def _reject_value(value: object) -> object:
    advice = "convert it to text, numbers, lists and dicts; bytes and DataFrames must be the whole data"
    raise InvalidArgumentError(f"a value of type {type(value).__name__} cannot be saved as JSON: {advice}")


def _check_text(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidArgumentError(f"an artifact's description must be text, got {type(value).__name__}")
    return value
