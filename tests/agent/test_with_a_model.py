"""Test a scripted model through Semantic Kernel: it uses tools in a loop, saves a skill, and its next session finds the skill.

The same runs over every endpoint whose cells can call tools.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Annotated

import pytest
from openai import AsyncOpenAI
from samples.scripted_model import ScriptedModel
from semantic_kernel import Kernel
from semantic_kernel.agents import ChatCompletionAgent
from semantic_kernel.connectors.ai.open_ai import OpenAIChatCompletion
from semantic_kernel.functions import kernel_function

from aca_sessions import AgentSession, FileStorage, SessionPool, open_pool, tool
from aca_sessions.agent.approval import Call

from ..conftest import mostly_long
from ..scenarios.endpoints import settings_of, trusted

pytestmark = pytest.mark.slow

ENDPOINTS = ["embedded", "tls", "plain"]
Answer = list[tuple[str, dict[str, object]]] | str
LOOP = """
with tools.batch() as batch:
    for one in tools.customers():
        if one["owes"] >= 10:
            tools.remind(name=one["name"])
batch.results"""
SKILL = f'''def run(minimum: int) -> list:
    """Reminds every customer who owes so much.

    >>> run(minimum=1_000_000)
    []
    """{LOOP.replace("10", "minimum").replace(chr(10), chr(10) + "    ").replace("batch.results", "return batch.results")}
'''


class Office:
    """Tools of a program, and a log of their calls."""

    def __init__(self) -> None:
        self.asked: list[list[object]] = []
        self.reminded: list[str] = []
        self.tools = [tool(effect="read")(self.customers), tool(effect="irreversible")(self.remind)]

    def customers(self) -> list[dict[str, object]]:
        """All customers, with what they owe."""
        return [{"name": "Ada", "owes": 30}, {"name": "Grace", "owes": 0}, {"name": "Mary", "owes": 75}]

    def remind(self, name: str) -> str:
        """Sends a customer a reminder."""
        self.reminded.append(name)
        return f"reminded {name}"

    async def approve(self, calls: Sequence[Call]) -> bool:
        self.asked.append([call.arguments["name"] for call in calls])
        return True


class Python:
    """What the model is given."""

    def __init__(self, agent: AgentSession) -> None:
        self._agent = agent

    @kernel_function
    async def execute(self, code: Annotated[str, "Python"]) -> str:
        """Runs Python code that can call tools and skills."""
        return str(await self._agent.run(code))


@pytest.fixture(params=mostly_long(ENDPOINTS, ENDPOINTS[0]))
async def leased(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SessionPool]:
    with settings_of(request.param, tmp_path) as settings, trusted(tmp_path / "cert.pem"):
        async with open_pool(settings) as pool:
            yield pool


async def run_script(agent: AgentSession, script: Sequence[str | Callable[[str], str]]) -> str:
    """Return the last text of the model. Each step is code, or makes code from the last answer."""

    def step(code: str | Callable[[str], str]) -> Callable[[list[dict]], Answer]:
        def answer(messages: list[dict]) -> Answer:
            made = code if isinstance(code, str) else code(messages[-1]["content"])
            return [("python-execute", {"code": made})]

        return answer

    with ScriptedModel([*map(step, script), lambda messages: messages[-1]["content"]]) as model:
        async with AsyncOpenAI(base_url=model.base_url, api_key="none", max_retries=0) as client:
            kernel = Kernel(services=[OpenAIChatCompletion(ai_model_id="scripted", async_client=client)])
            kernel.add_plugin(Python(agent), "python")
            return str(await ChatCompletionAgent(kernel=kernel, name="Clerk").get_response("Remind those who owe us."))


async def test_a_model_saves_a_skill_and_its_next_session_uses_it(leased: SessionPool, tmp_path: Path) -> None:
    office = Office()
    options = {"storage": FileStorage(tmp_path / "kept"), "tools": office.tools, "approve": office.approve}
    async with AgentSession(leased, **options) as agent:  # type: ignore[arg-type]
        find, save = "tools.search('send a reminder')[0]['signature']", f"skills.create('remind_debtors', {SKILL!r})['tested']"
        assert "remind(name: string)" in await run_script(agent, [find])
        assert "['reminded Ada', 'reminded Mary']" in await run_script(agent, [LOOP])
        assert "True" in await run_script(agent, [save])
    assert office.asked == [["Ada", "Mary"]]
    async with AgentSession(leased, **options) as later:  # type: ignore[arg-type]
        search = "print(skills.search('remind customers who owe money')[0]['name'])"
        assert "['reminded Mary']" in await run_script(later, [search, lambda found: f"skills.invoke({found.strip()!r}, minimum=50)"])
    assert (office.asked, office.reminded) == ([["Ada", "Mary"], ["Mary"]], ["Ada", "Mary", "Mary"])
