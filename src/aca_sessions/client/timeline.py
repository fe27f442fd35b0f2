"""Checkpoints and branches of an endpoint's sessions. Only ours has them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..contract import timeline
from ..models import Checkpoint
from .http import SessionsHttpClient, decoded

if TYPE_CHECKING:
    import httpx

_WAIT = 250.0  # a cell may have to end before


class Timeline:
    """Speaks of what was, for one client."""

    def __init__(self, http: SessionsHttpClient) -> None:
        """Speaks through the given client."""
        self._http = http

    async def take(self, session_id: str, name: str | None) -> Checkpoint:
        """Keeps a session as it is now."""
        answer = await self._ask("POST", timeline.CHECKPOINTS_PATH, session_id, {"name": name})
        return decoded(answer, timeline.decode_checkpoint)

    async def all(self, session_id: str) -> list[Checkpoint]:
        """What a session can go back to, the oldest first."""
        return decoded(await self._ask("GET", timeline.CHECKPOINTS_PATH, session_id), timeline.decode_checkpoints)

    async def roll_back(self, session_id: str, id: str | None) -> Checkpoint:
        """Takes a session back to a checkpoint, or to the latest."""
        return decoded(await self._ask("POST", timeline.ROLLBACK_PATH, session_id, {"id": id}), timeline.decode_checkpoint)

    async def drop(self, session_id: str, id: str) -> None:
        """Lets go of a checkpoint."""
        await self._ask("DELETE", timeline.CHECKPOINT_PATH.format(id=id), session_id)

    async def branch(self, session_id: str, identifiers: Sequence[str], *, reseed: bool) -> None:
        """Makes further sessions, which go on from where this one is."""
        await self._ask("POST", timeline.BRANCHES_PATH, session_id, {"identifiers": list(identifiers), "reseed": reseed})

    async def _ask(self, method: str, path: str, session_id: str, body: object = None) -> "httpx.Response":
        await self._http.require("checkpoint", "keep what a session was")
        return await self._http.request(method, path, identifier=session_id, json=body, timeout=_WAIT)
