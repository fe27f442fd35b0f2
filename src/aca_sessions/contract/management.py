"""The routes `.management/*`: the platform's own view of sessions, with names of its own. Only the server uses them."""

from ..models import SessionInfo
from .flat import encode_session as _encode_flat

_PAGE = 300  # sessions on a page, as in Azure


def encode_session(session: SessionInfo) -> dict[str, object]:
    """Return the description of one session. `expireAt` is called `expiresAt` in these routes."""
    known = _encode_flat(session)
    return {("expiresAt" if name == "expireAt" else name): value for name, value in known.items()}


def encode_sessions(sessions: list[SessionInfo], total: int, skip: int, url: str) -> dict[str, object]:
    """Return a page of sessions, with the link to the next page if there is one.

    Args:
        sessions: The sessions of this page, at most 300.
        total: The number of all sessions.
        skip: How many sessions the pages before held.
        url: The address of the listing, without a query.
    """
    body: dict[str, object] = {"value": [encode_session(session) for session in sessions], "count": len(sessions)}
    return body | {"nextLink": f"{url}?skip={skip + _PAGE}"} if total > skip + _PAGE else body
