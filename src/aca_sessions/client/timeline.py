"""Checkpoints and branches of an endpoint's sessions. Only our own server has them."""

import contextlib
from collections.abc import Sequence

from ..contract import flat, timeline
from ..contract.extensions import SINCE_HEADER, decode_position
from ..errors import ACASessionsError
from ..models import Checkpoint, Record
from ..tasks import Tasks
from .delivered import Delivered
from .http import Response, SessionsHttpClient, decoded

_WAIT = 250.0  # seconds: a cell of up to 220 s may have to end first


class Timeline:
    """The checkpoints and branches of one client's sessions."""

    def __init__(self, http: SessionsHttpClient) -> None:
        self._http = http
        self._tasks = Tasks()

    async def take(self, session_id: str, name: str | None) -> Checkpoint:
        """Take a checkpoint of a session and return it. Raise SnapshotError if the session cannot be kept as it is."""
        answer = await self._ask("POST", timeline.CHECKPOINTS_PATH, session_id, {"name": name})
        return decoded(answer, timeline.decode_checkpoint)

    async def all(self, session_id: str) -> list[Checkpoint]:
        """Return a session's checkpoints, the oldest first."""
        return decoded(await self._ask("GET", timeline.CHECKPOINTS_PATH, session_id), timeline.decode_checkpoints)

    async def roll_back(self, session_id: str, id: str | None, name: str | None) -> tuple[Checkpoint, tuple[str, int]]:
        """Return to a checkpoint by its id or its name, or to the latest.

        Return it, and the ledger's id and the position of the new entry.
        """
        answer = await self._ask("POST", timeline.ROLLBACK_PATH, session_id, {"id": id, "name": name})
        return decoded(answer, timeline.decode_checkpoint), decoded(answer, decode_position)

    async def drop(self, session_id: str, id: str) -> None:
        """Remove a checkpoint."""
        await self._ask("DELETE", timeline.CHECKPOINT_PATH.format(id=id), session_id)

    async def branch(
        self, session_id: str, identifiers: Sequence[str], caller: Delivered, *, reseed: bool
    ) -> tuple[Record, dict[str, str]]:
        """Make sessions that continue from here, under the given identifiers: all or none.

        Return the origin's record for its caller, and the position at which each new ledger begins.
        """
        headers = {SINCE_HEADER: caller.since} if caller.since else {}
        body = {"identifiers": list(identifiers), "reseed": reseed}
        try:
            answer = await self._ask("POST", timeline.BRANCHES_PATH, session_id, body, headers)
            return decoded(answer, timeline.decode_branched)
        # A cancelled call, or one whose answer was lost, may have made the branches. No caller knows of them, so they are ended.
        except BaseException:
            self._tasks.start(self._end_branches(session_id, identifiers))
            raise

    async def _end_branches(self, session_id: str, identifiers: Sequence[str]) -> None:
        """End branches that no caller knows."""
        with contextlib.suppress(ACASessionsError):
            # The service may still be making them. Requests about the session wait for that, so this one returns afterwards.
            await self.all(session_id)
        for identifier in identifiers:
            with contextlib.suppress(ACASessionsError):
                await self._http.request("DELETE", flat.SESSION_PATH, identifier=identifier)

    async def close(self) -> None:
        """Cancel the background tasks."""
        await self._tasks.cancel()

    async def _ask(self, method: str, path: str, session_id: str, body: object = None, headers: dict[str, str] | None = None) -> Response:
        await self._http.require("checkpoint", "keep what a session was")
        return await self._http.request(method, path, identifier=session_id, json=body, headers=headers, timeout=_WAIT)
