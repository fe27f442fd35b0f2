"""`.management/*`: what the platform itself says of sessions, in words of its own. Only the server speaks this."""

from ..models import SessionInfo
from .flat import encode_session as _encode_flat

_PAGE = 300


def encode_session(session: SessionInfo) -> dict[str, object]:
    """One session; what elsewhere is `expireAt` is `expiresAt` here."""
    known = _encode_flat(session)
    return {("expiresAt" if name == "expireAt" else name): value for name, value in known.items()}


def encode_sessions(sessions: list[SessionInfo], total: int, skip: int, url: str) -> dict[str, object]:
    """A page of them, and where the next one is."""
    body: dict[str, object] = {"value": [encode_session(session) for session in sessions], "count": len(sessions)}
    return body | {"nextLink": f"{url}?skip={skip + _PAGE}"} if total > skip + _PAGE else body
