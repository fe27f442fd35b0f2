"""Tools that run Python for Microsoft Agent Framework, and a provider that gives each conversation its own session."""

import uuid
from typing import Annotated, Any, Self, Unpack

from ..client.pool import SessionPool
from ..errors import imports_of
from ..models import CodeExecutionResult
from ..settings import Settings
from .model_session import CODE, PACKAGES, ModelSession, Options, check_options

with imports_of("agent-framework"):
    from agent_framework import AgentSession, Content, ContextProvider, FunctionTool, SessionContext, SupportsAgentRun, tool

_INSTRUCTIONS = "Use execute_python for calculations and data: it is a notebook whose variables and files are kept between calls."
_CODE = f"{CODE} PNG images of figures follow the result."
_EXECUTE = "Runs Python code in an isolated session. Variables, imports and files in /mnt/data are kept from call to call."
_INSTALL = "Installs Python packages for execute_python. If it fails, nothing was installed."


def execute_tool(session: ModelSession) -> FunctionTool:
    """Make a tool for Agent Framework, named `execute_python`, that runs code in `session`.

    Each call of the tool returns the text of the cell's result, then its images.
    """

    async def execute_python(code: Annotated[str, _CODE]) -> CodeExecutionResult:
        return await session.run(code)

    return tool(execute_python, description=f"{_EXECUTE} {session._about_access}".rstrip(), result_parser=_contents)


def install_tool(session: ModelSession) -> FunctionTool:
    """Make a tool for Agent Framework, named `install_packages`, that installs packages into `session`.

    Each call returns an error if the session's option `install_packages` is off.
    """

    async def install_packages(packages: Annotated[list[str], PACKAGES]) -> CodeExecutionResult:
        return await session._install_for_model(packages)

    return tool(install_packages, description=f"{_INSTALL} {session._about_install}".rstrip(), result_parser=_contents)


class PythonSessionProvider(ContextProvider):
    """A context provider for Agent Framework that gives each conversation its own session, with the tool `execute_python`.

    If models may install packages, there is a second tool, `install_packages`. The conversation's state contains the session's name, so a
    conversation that is stored and loaded again continues with its session.
    """

    def __init__(
        self, pool: SessionPool | None = None, *, settings: Settings | None = None, source_id: str = "python", **options: Unpack[Options]
    ) -> None:
        """Use the given pool, which the caller closes, or open a pool from the settings at the first call.

        Args:
            pool: The pool of sessions.
            settings: Where sessions run, if no pool is given. By default the settings are read from appsettings.json (section ACASessions)
                and from environment variables.
            source_id: The provider's name in Agent Framework.
            options: `timeout`, `max_output`, `install_packages` and other options of ModelSession.
        """
        super().__init__(source_id)
        check_options(options, "PythonSessionProvider")
        self._sessions = ModelSession(pool, settings=settings, **options)

    async def before_run(self, *, agent: SupportsAgentRun, session: AgentSession, context: SessionContext, state: dict[str, Any]) -> None:
        """Add to `context` the tools for this conversation's session, and instructions on how to use them.

        The session's name is in `state`. A conversation without one gets a new name.
        """
        del agent, session
        name = state.setdefault("session_id", f"conversation-{uuid.uuid4()}")
        context.extend_instructions(self.source_id, _INSTRUCTIONS)
        python = self._sessions.for_session(name)
        context.extend_tools(self.source_id, [execute_tool(python), *([install_tool(python)] if python._can_install else [])])

    async def close(self) -> None:
        """Close the pool if the provider opened it. Otherwise do nothing."""
        await self._sessions.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _contents(result: CodeExecutionResult) -> list[Content]:
    return [Content.from_text(str(result)), *(Content.from_data(image, "image/png") for image in result.images)]
