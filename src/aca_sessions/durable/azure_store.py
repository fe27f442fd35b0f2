"""A store in Azure Blob Storage. Each key is a blob. A large content is staged in blocks, which are committed at once."""

import contextlib
import os
import secrets
from base64 import b64encode
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import aiohttp  # noqa: F401  the transport of azure-storage-blob, which imports it only at the first request
from azure.core import MatchConditions
from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError, ResourceExistsError, ResourceNotFoundError
from azure.storage.blob import BlobBlock
from azure.storage.blob.aio import BlobClient, BlobServiceClient

from ..errors import ConfigurationError, StorageError, imports_of
from .chunks import Data, closing, split
from .store import PIECE, SMALL, ClosingStore, check_folder, check_key, check_swap, is_key, missing_record

_FORM = "azure-blob://account/container or azure-blob://account/container/prefix"
_SINGLE = 1024 * 1024  # bytes of a content that is sent in one request
_OPTIONS: dict[str, Any] = {"max_single_get_size": PIECE, "max_chunk_get_size": PIECE, "max_single_put_size": _SINGLE}


class AzureStore(ClosingStore):
    """A store in a container of Azure Blob Storage, which is created if it is missing."""

    def __init__(self, url: str) -> None:
        """Check a URL such as `azure-blob://account/container/prefix`. The first operation opens a connection.

        If `AZURE_STORAGE_CONNECTION_STRING` is set, it must be of the same account. Otherwise DefaultAzureCredential is used.
        """
        parts = urlsplit(url)
        container, _, prefix = parts.path.strip("/").partition("/")
        if not parts.hostname or parts.netloc != parts.hostname or not container or parts.query or parts.fragment:
            raise ConfigurationError(f"the URL of an Azure store must be {_FORM}")
        self._prefix = f"{prefix}/" if prefix else ""
        self._credential: Any = None
        self._service = self._connect(parts.hostname)
        self._container = self._service.get_container_client(container)
        self._is_ready = False

    async def write(self, key: str, chunks: AsyncIterable[Data]) -> None:
        """Stage the blocks of a content, then commit them at once. Azure deletes blocks that are not committed after a week."""
        blob = self._blob(check_key(key))
        async with closing(split(chunks, PIECE)) as pieces:
            first = await anext(pieces.__aiter__(), b"")  # closes nothing: `pieces` continues below
            await self._create_container()
            if len(first) <= _SINGLE:
                with _convert_errors():
                    await blob.upload_blob(first, overwrite=True)
                return
            blocks = [await self._stage(blob, first)]
            async for piece in pieces:
                blocks.append(await self._stage(blob, piece))
            with _convert_errors():
                await blob.commit_block_list(blocks)

    async def read(self, key: str) -> AsyncIterator[bytes]:
        """Yield the content of a blob."""
        with _convert_errors():
            download = await self._blob(check_key(key)).download_blob()
        chunks = download.chunks().__aiter__()
        while True:
            with _convert_errors():
                chunk = await anext(chunks, None)
            if chunk is None:
                return
            yield chunk

    async def size(self, key: str) -> int | None:
        """Return the length of a blob, or None."""
        with contextlib.suppress(ResourceNotFoundError), _convert_errors(missing=False):
            return int((await self._blob(check_key(key)).get_blob_properties()).size)
        return None

    async def keys(self, folder: str = "") -> list[str]:
        """Return the keys below a folder, sorted."""
        start = f"{self._prefix}{check_folder(folder)}/" if folder else self._prefix
        with contextlib.suppress(ResourceNotFoundError), _convert_errors(missing=False):  # a container that is missing has no keys
            names = [name async for name in self._container.list_blob_names(name_starts_with=start)]
            return sorted(filter(is_key, (name.removeprefix(self._prefix) for name in names)))
        return []

    async def delete(self, key: str) -> None:
        """Delete a blob."""
        with contextlib.suppress(ResourceNotFoundError), _convert_errors(missing=False):
            await self._blob(check_key(key)).delete_blob()

    async def swap(self, key: str, old: bytes | None, new: bytes | None) -> bool:
        """Replace a small blob if its content is `old` and if its ETag shows that it did not change since."""
        blob = self._blob(check_swap(key, old, new))
        with _convert_errors(missing=False):
            try:
                return await self._create(blob, new) if old is None else await self._replace(blob, old, new)
            except (ResourceExistsError, ResourceNotFoundError):
                return False
            except HttpResponseError as error:
                if error.status_code == 412:  # the blob has another ETag
                    return False
                raise

    async def close(self) -> None:
        """Close the connections."""
        await self._service.close()
        if self._credential is not None:
            await self._credential.close()

    def _connect(self, account: str) -> BlobServiceClient:
        if connection := os.environ.get("AZURE_STORAGE_CONNECTION_STRING"):
            return _connect_by_string(connection, account)
        with imports_of("azure-blob"):
            from azure.identity.aio import DefaultAzureCredential

        self._credential = DefaultAzureCredential()
        return BlobServiceClient(f"https://{account}.blob.core.windows.net", self._credential, **_OPTIONS)

    def _blob(self, key: str) -> BlobClient:
        return self._container.get_blob_client(f"{self._prefix}{key}")

    async def _create_container(self) -> None:
        """Create the container if it is missing, before the first write."""
        if not self._is_ready:
            with _convert_errors(missing=False):
                if not await self._container.exists():
                    with contextlib.suppress(ResourceExistsError):  # another server created it just now
                        await self._container.create_container()
            self._is_ready = True

    async def _stage(self, blob: BlobClient, piece: bytes) -> BlobBlock:
        id = b64encode(secrets.token_bytes(16)).decode()
        with _convert_errors():
            await blob.stage_block(id, BytesIO(piece), length=len(piece))  # aiohttp warns of more than 1 MB as bytes
        return BlobBlock(id)

    async def _create(self, blob: BlobClient, new: bytes | None) -> bool:
        if new is None:
            return not await blob.exists()
        await self._create_container()
        await blob.upload_blob(new, overwrite=False)  # sends If-None-Match: *
        return True

    async def _replace(self, blob: BlobClient, old: bytes, new: bytes | None) -> bool:
        download = await blob.download_blob(0, SMALL + 1) if old else await blob.download_blob()
        if await download.readall() != old:
            return False
        unchanged: dict[str, Any] = {"etag": download.properties.etag, "match_condition": MatchConditions.IfNotModified}
        if new is None:
            await blob.delete_blob(**unchanged)
        else:
            await blob.upload_blob(new, overwrite=True, **unchanged)
        return True


def _connect_by_string(connection: str, account: str) -> BlobServiceClient:
    named = dict(part.partition("=")[::2] for part in connection.split(";")).get("AccountName", account)
    if named != account:
        raise ConfigurationError(
            f"AZURE_STORAGE_CONNECTION_STRING is of the account {named!r}, and the URL of the store names {account!r}: change one of them"
        )
    try:
        return BlobServiceClient.from_connection_string(connection, **_OPTIONS)
    except ValueError:  # its message may have the key
        raise ConfigurationError("AZURE_STORAGE_CONNECTION_STRING is invalid: copy it again from 'Access keys' of the account") from None


@contextmanager
def _convert_errors(*, missing: bool = True) -> Iterator[None]:
    """Convert errors of Azure to StorageError. If `missing` is false, raise ResourceNotFoundError unchanged."""
    try:
        yield
    except ResourceNotFoundError:
        if missing:
            raise missing_record() from None
        raise
    except AzureError as error:
        raise _storage_error(error) from None  # the cause can have the URL of the blob, which has the key


def _storage_error(error: AzureError) -> StorageError:
    code = str(getattr(error, "error_code", None) or type(error).__name__)
    advice = "check the name of the account, the container and the network"
    if isinstance(error, ClientAuthenticationError) or getattr(error, "status_code", None) == 403:
        advice = "give the server's identity the role 'Storage Blob Data Contributor', or set AZURE_STORAGE_CONNECTION_STRING"
    return StorageError(f"Azure Blob Storage, the store of saved sessions, failed ({code}): {advice}")
