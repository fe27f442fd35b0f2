"""The format of what is stored. A reader gets no byte that was not verified.

A sealed value has a header, the content and a tag.

Without a key, the tag is a SHA-256 of the header, the context and the SHA-256 of the content. The caller has the latter already, to find
equal contents, and so each byte is hashed once. This detects damage and mistakes, but a program that can write into the store can forge a
value.

With a key, the content is encrypted by AES-256-GCM. Each value has a key of its own, derived by HKDF-SHA256 (RFC 5869) from the key, a
random salt of 32 bytes in the header, and the context. So no nonce is used twice with a key, however many values there are. A random nonce,
which is the alternative, has only 12 bytes, and two equal ones would reveal the contents.
"""

import contextlib
import hashlib
import hmac
import secrets
from base64 import b64decode
from typing import TYPE_CHECKING

from ..errors import ConfigurationError, SaveCorruptedError, SaveKeyError, imports_of
from .chunks import Data

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_MAGIC = b"ACAS"
_FORMAT = 1
_PLAIN, _ENCRYPTED = 0, 1
_SALT = 32
_NONCE = bytes(12)  # each value has a key of its own
_TAG, _GCM_TAG = 32, 16
_FINGERPRINT = 8
_KEY = 32


def parse_key(text: str) -> bytes:
    """Return the key that a text has as hex digits or base64. Raise ConfigurationError, without the text, if it is not 32 bytes."""
    text = text.strip()
    key = b""
    with contextlib.suppress(ValueError):  # its message would show a part of the key
        key = bytes.fromhex(text) if len(text) == 2 * _KEY else b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    if len(key) != _KEY:
        raise ConfigurationError(
            "the key of saved sessions must be 32 bytes as 64 hex digits or as base64. Make one with `openssl rand -base64 32`"
        )
    return key


class Sealer:
    """Seals and opens values, with a key or without.

    A context says what a value is, such as its owner and its name. A value can be opened only with the context it was sealed with.
    """

    def __init__(self, key: bytes | None = None) -> None:
        """Store a key of 32 bytes, which encrypts all values. Without one, they are only protected against damage."""
        if key is not None and len(key) != _KEY:
            raise ConfigurationError(f"the key of saved sessions must have 32 bytes, got {len(key)}: see parse_key")
        if key is not None:
            with imports_of("server"):  # now, because at the first save it would be too late
                import cryptography.hazmat.primitives.ciphers.aead  # noqa: F401
        self._key = key

    def seal(self, data: Data, context: bytes, sha256: bytes | None = None) -> list[Data]:
        """Return the sealed form of a value, as chunks, because joining a long one would copy it.

        Args:
            data: The value.
            context: What it is.
            sha256: The SHA-256 of the value, if the caller has it.
        """
        start = _MAGIC + bytes([_FORMAT])
        if self._key is None:
            header = start + bytes([_PLAIN])
            return [header, data, _hash(header, context, sha256 or hashlib.sha256(data).digest())]
        header = start + bytes([_ENCRYPTED]) + _fingerprint(self._key) + secrets.token_bytes(_SALT)
        return [header, self._cipher(header, context).encrypt(_NONCE, data, header)]

    def open(self, sealed: Data, context: bytes) -> memoryview:
        """Return the content of a sealed value.

        Raise SaveCorruptedError if it was changed or has another context. Raise SaveKeyError if it has another key.
        """
        view = memoryview(sealed)
        header, content = bytes(view[: self._header_length()]), view[self._header_length() :]
        self._check_header(header)
        if len(view) < self.sealed_length(0):
            raise _corrupted("its end is missing")
        if self._key is None:
            content, tag = content[:-_TAG], content[-_TAG:]
            if _hash(header, context, hashlib.sha256(content).digest()) != tag:
                raise _corrupted("it was changed, or belongs elsewhere")
            return content
        return self._decrypt(header, content, context)

    def sealed_length(self, size: int) -> int:
        """Return the length of the sealed form of a value of `size` bytes."""
        return self._header_length() + size + (_TAG if self._key is None else _GCM_TAG)

    def _header_length(self) -> int:
        return len(_MAGIC) + 2 + (0 if self._key is None else _FINGERPRINT + _SALT)

    def _check_header(self, header: bytes) -> None:
        """Validate a header: what it is, its format, whether it is encrypted, and with which key."""
        if header[: len(_MAGIC)] != _MAGIC or len(header) < len(_MAGIC) + 2:
            raise _corrupted("it does not begin as a save does")
        form, mode = header[len(_MAGIC)], header[len(_MAGIC) + 1]
        if form != _FORMAT:
            raise SaveCorruptedError(f"a saved session has format {form}, expected {_FORMAT}: update aca-sessions, or use an older save")
        if mode not in (_PLAIN, _ENCRYPTED):
            raise _corrupted("its header is damaged")
        if mode == _ENCRYPTED and self._key is None:
            raise SaveKeyError("a saved session is encrypted, and this server has no key: set the key of the server that saved it")
        if mode == _PLAIN and self._key is not None:
            raise SaveKeyError("a saved session is not encrypted, and this server has a key: remove the key, or delete those saves")
        start = len(_MAGIC) + 2
        if self._key is not None and header[start : start + _FINGERPRINT] != _fingerprint(self._key):
            raise SaveKeyError("a saved session is encrypted with another key: set the key of the server that saved it")

    def _decrypt(self, header: bytes, content: memoryview, context: bytes) -> memoryview:
        from cryptography.exceptions import InvalidTag

        try:
            return memoryview(self._cipher(header, context).decrypt(_NONCE, content, header))
        except InvalidTag:
            raise _corrupted("it was changed, or belongs elsewhere") from None

    def _cipher(self, header: bytes, context: bytes) -> "AESGCM":
        """Return the cipher for the one value that has this header."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        extracted = hmac.digest(header[-_SALT:], self._key or b"", "sha256")
        return AESGCM(hmac.digest(extracted, context + b"\x01", "sha256"))


def _hash(header: bytes, context: bytes, sha256: bytes) -> bytes:
    return hashlib.sha256(header + context + sha256).digest()


def _fingerprint(key: bytes) -> bytes:
    """Return what shows that two keys differ, but not what they are."""
    return hmac.digest(key, b"aca-sessions fingerprint of the key", "sha256")[:_FINGERPRINT]


def _corrupted(reason: str) -> SaveCorruptedError:
    return SaveCorruptedError(f"a saved session cannot be used, because {reason}: use an older save, or delete the saves of this session")
