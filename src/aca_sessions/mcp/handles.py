"""Handles: the names of sessions for clients without a connection. They work at every server that accepts the API key they were made with.

A handle is `LABEL.TOKEN`. The token has random bytes and a message authentication code. Its secret is derived from the client's API key, so
servers need nothing else in common to check a handle: no table, and no secret of their own. It also gives the session's identifier at
the endpoint, which clients do not see.
"""

import base64
import hashlib
import hmac
import secrets
from functools import lru_cache

_RANDOM, _CODE = 12, 12  # bytes
_DEFAULT = b"default".ljust(_RANDOM, b"\0")
DEFAULT = "default"  # names the session that each client has, in place of a handle


class Identity:
    """A client, as far as servers know one without a connection: who has its API key. It makes and checks the client's handles."""

    def __init__(self, secret: bytes) -> None:
        """Create the client that `secret` belongs to."""
        self._secret = secret

    def mint(self, label: str) -> str:
        """Return a new handle, which begins with `label`."""
        return self._handle(label, secrets.token_bytes(_RANDOM))

    def mint_branch(self, label: str, origin: str, session_id: str) -> str:
        """Return a handle for a branch of the session `origin`, given the branch's identifier: that of the first session, and more."""
        first = _DEFAULT if origin == DEFAULT else self._parse(origin)[:_RANDOM]
        return self._handle(label, first + session_id.removeprefix(self._identifier(first)).encode())

    def accepts(self, handle: str) -> bool:
        """Return whether this client made a handle. The session may have ended since."""
        return bool(self._parse(handle))

    def session_id(self, handle: str) -> str:
        """Return the identifier at the endpoint of the session that an accepted handle names."""
        data = self._parse(handle)
        return self._identifier(data[:_RANDOM]) + data[_RANDOM:].decode()

    @property
    def default_id(self) -> str:
        """Return the identifier at the endpoint of the client's session `default`."""
        return self._identifier(_DEFAULT)

    def _identifier(self, data: bytes) -> str:
        return f"mcp-{self._digest(b'session', data).hex()[:32]}"

    def _handle(self, label: str, data: bytes) -> str:
        return f"{label}.{base64.urlsafe_b64encode(data + self._code(label, data)).decode().rstrip('=')}"

    def _parse(self, handle: str) -> bytes:
        """Return the bytes in a handle that give its session, or b"" if this client did not make the handle."""
        label, _, token = handle.rpartition(".")
        try:
            inner = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))[:-_CODE]
        except ValueError:
            return b""
        # The whole text is compared, because several texts are decoded to the same bytes.
        accepted = len(inner) >= _RANDOM and hmac.compare_digest(self._handle(label, inner).encode(), handle.encode("utf-8", "replace"))
        return inner if accepted else b""

    def _code(self, label: str, data: bytes) -> bytes:
        return self._digest(b"handle", label.encode("utf-8", "replace"), data)[:_CODE]

    def _digest(self, *parts: bytes) -> bytes:
        return hmac.digest(self._secret, b"\0".join(parts), "sha256")


@lru_cache(256)
def identity_of(api_key: str) -> Identity:
    """Return the client with an API key.

    The secret is derived by scrypt, which is slow to compute. So who reads a handle, in a conversation or a log, cannot find a weak key by
    trying many keys.
    """
    return Identity(hashlib.scrypt(api_key.encode(), salt=b"aca-sessions mcp handle", n=1 << 14, r=8, p=1, dklen=32))
