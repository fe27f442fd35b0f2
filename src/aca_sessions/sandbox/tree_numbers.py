"""The numbers of workspaces (`tree` in the code), and the users that own them. No two sessions have the same one at a time."""

import itertools
import threading

from ..errors import IsolationError


class Numbers:
    """The numbers that are in use. A user belongs to one session, its checkpoints and its branches."""

    def __init__(self, most: int | None) -> None:
        """Give out at most `most` users at a time, or without a limit if it is None."""
        self._most = most
        self._trees: dict[int, int] = {}  # how many workspaces a user has
        self._latest = 0
        self._further = itertools.count(1 if most is None else most + 1)
        self._lock = threading.Lock()

    def take(self, user: int | None = None) -> tuple[int, int]:
        """Return a number for a new workspace, and the number of its user: `user`, or a free one. Raise IsolationError if none is free.

        The first workspace of a new user has its user's number. A session without namespaces has one workspace, and is known by that
        number.
        """
        with self._lock:
            number = next(self._further) if user is not None or self._most is None else self._free()
            user = user or number
            self._trees[user] = self._trees.get(user, 0) + 1
            return number, user

    def give_back(self, user: int) -> None:
        """Give back one workspace of a user. The user is free once it has none."""
        with self._lock:
            self._trees[user] -= 1
            if not self._trees[user]:
                del self._trees[user]

    def _free(self) -> int:
        """Return the next free user after the latest, so that one that was just in use comes last."""
        most = self._most or 0
        for step in range(most):
            number = (self._latest + step) % most + 1
            if number not in self._trees:
                self._latest = number
                return number
        raise IsolationError("uid range", f"all {most} users that sessions may have are in use", "end some sessions and try again")
