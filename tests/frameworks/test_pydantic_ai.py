"""Test workspaces for Pydantic AI: by its own suite, unmodified, and by what that does not test."""

import pytest

pytest.importorskip("pydantic_ai.workspaces", reason="make test-integrations installs it")

from collections.abc import Awaitable, Callable

from pydantic_ai.workspaces import WorkspaceRef
from pydantic_ai.workspaces.conformance import WorkspaceBackendSuite

from aca_sessions import SessionPool
from aca_sessions.integrations.pydantic_ai import SessionWorkspace

pytestmark = [pytest.mark.long, pytest.mark.slow]


class TestSuite(WorkspaceBackendSuite):
    @pytest.fixture
    def backend(self, pool: SessionPool) -> SessionWorkspace:
        return SessionWorkspace(pool)

    @pytest.fixture
    def fresh_backend(self, pool: SessionPool) -> Callable[[], SessionWorkspace]:
        return lambda: SessionWorkspace(pool)

    @pytest.fixture
    def attach_backend(self, pool: SessionPool) -> Callable[[WorkspaceRef], SessionWorkspace]:
        return lambda ref: SessionWorkspace(pool, ref)

    @pytest.fixture
    def destroy_environment(self) -> Callable[[SessionWorkspace], Awaitable[None]]:
        return SessionWorkspace.delete
