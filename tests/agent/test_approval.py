"""Test who approves calls, the budgets of tools, and the record of calls."""

import asyncio
from collections.abc import Sequence

import pytest

from aca_sessions import AgentSession, SessionPool, tool
from aca_sessions.agent.approval import Call
from aca_sessions.agent.tools.tool import Budget, Effect, Tool

from ..conftest import mostly_long

SENDS = "for name in ['Ada', 'Grace', 'Mary']:\n    tools.send(to=name)\n"


class Mail:
    """Tools of each kind, and a log of their calls."""

    def __init__(self, budget: Budget | None = None) -> None:
        self.sent: list[str] = []
        self.tools = [self._tool(effect, budget or Budget()) for effect in ("read", "write", "irreversible")]

    def _tool(self, effect: Effect, budget: Budget) -> Tool:
        @tool(name={"read": "look", "write": "draft", "irreversible": "send"}[effect], effect=effect, budget=budget)
        async def act(to: str = "all") -> str:
            self.sent.append(to)
            return f"{effect} {to}"

        return act


async def test_an_irreversible_call_is_refused_without_an_approver(pool: SessionPool) -> None:
    mail = Mail()
    async with AgentSession(pool, tools=mail.tools) as agent:
        result = await agent.run("tools.look('a'); tools.draft('b'); tools.send('c')")
    assert "send is irreversible and was not allowed" in str(result.error)
    assert mail.sent == ["a", "b"]


async def test_calls_that_write_are_shown_before_they_are_made(pool: SessionPool) -> None:
    mail, shown = Mail(), list[Call]()

    def approve(calls: Sequence[Call]) -> bool:
        shown.extend(calls)
        return calls[0].arguments["to"] != "Grace"

    code = SENDS.replace("    tools", "    try: tools") + "    except ToolError: pass\ntools.look('x')"
    async with AgentSession(pool, tools=mail.tools, approve=approve) as agent:
        await agent.run(code)
    assert [(call.tool, call.effect, call.arguments["to"]) for call in shown] == [
        ("send", "irreversible", name) for name in ("Ada", "Grace", "Mary")
    ]
    assert mail.sent == ["Ada", "Mary", "x"]


async def test_a_loop_of_calls_is_approved_in_one_question(pool: SessionPool) -> None:
    mail, asked = Mail(), list[int]()

    async def approve(calls: Sequence[Call]) -> bool:
        asked.append(len(calls))
        return True

    code = "with tools.batch() as batch:\n" + "".join(f"    {line}\n" for line in SENDS.splitlines()) + "batch.results"
    async with AgentSession(pool, tools=mail.tools, approve=approve) as agent:
        assert (await agent.run(code)).text == "['irreversible Ada', 'irreversible Grace', 'irreversible Mary']"
    assert (asked, mail.sent) == ([3], ["Ada", "Grace", "Mary"])


async def test_part_of_a_batch_may_be_approved(pool: SessionPool) -> None:
    mail = Mail()
    code = "with tools.batch():\n    one, two = tools.send('a'), tools.send('b')\n(one.value, tools.look('c'))\n"
    async with AgentSession(pool, tools=mail.tools, approve=lambda calls: [call.arguments["to"] == "a" for call in calls]) as agent:
        assert (await agent.run(code)).text == "('irreversible a', 'read c')"
        assert "was not allowed" in str((await agent.run("two.value")).error)
    assert mail.sent == ["a", "c"]


async def test_a_batch_that_fails_makes_no_call(pool: SessionPool) -> None:
    mail = Mail()
    async with AgentSession(pool, tools=mail.tools, approve=lambda calls: True) as agent:
        result = await agent.run("with tools.batch() as batch:\n    later = tools.send('a')\n    1 / 0")
        assert "its 'with' block raised" in str((await agent.run("later.value")).error)
    assert (str(result.error), mail.sent) == ("ZeroDivisionError: division by zero", [])


@pytest.mark.parametrize("answer", mostly_long([None, 1, "yes", [], [True, True], [1], {"ok": True}], every=3))
async def test_only_an_explicit_yes_approves(pool: SessionPool, answer: object) -> None:
    mail = Mail()
    async with AgentSession(pool, tools=mail.tools, approve=lambda calls: answer) as agent:  # type: ignore[arg-type, return-value]
        assert "was not allowed" in str((await agent.run("tools.send()")).error)
    assert mail.sent == []


async def test_an_approver_that_fails_approves_nothing(pool: SessionPool) -> None:
    mail = Mail()

    def approve(calls: Sequence[Call]) -> bool:
        raise ConnectionError("nobody is there")

    async with AgentSession(pool, tools=mail.tools, approve=approve) as agent:
        assert "nobody is there" in str((await agent.run("tools.send()")).error)
    assert mail.sent == []


@pytest.mark.long
async def test_the_clock_of_a_cell_stops_during_an_approval(pool: SessionPool) -> None:
    async def approve(calls: Sequence[Call]) -> bool:
        await asyncio.sleep(5)
        return True

    async with AgentSession(pool, tools=Mail().tools, approve=approve) as agent:
        assert (await agent.run("tools.send('a')", timeout=4)).success


@pytest.mark.parametrize(
    ("budget", "said"),
    mostly_long([(Budget(calls=2), "2 calls"), (Budget(size=20), "20 bytes"), (Budget(seconds=1e-9), "1e-09 seconds")], every=2),
)
async def test_a_budget_is_exhausted(pool: SessionPool, budget: Budget, said: str) -> None:
    mail = Mail(budget)
    async with AgentSession(pool, tools=mail.tools) as agent:
        assert said in str((await agent.run("for _ in range(10): tools.look('abcdef')")).error)
    assert len(mail.sent) < 10


AT_ONCE = """
import asyncio
async def go(n): return await tools.{tool}(n)
out = await asyncio.gather(*(go(n) for n in range(20)), return_exceptions=True)
[one for one in out if not isinstance(one, ToolError)]
"""


class Parallel:
    """A tool whose calls can overlap. It records how many did."""

    def __init__(self, budget: Budget, *, seconds: float = 60.0) -> None:
        self.made = self.running = self.most = 0
        self.fails = False

        @tool(name="work", effect="read", budget=budget, seconds=seconds)
        async def work(n: int) -> str:
            self.made += 1
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                await asyncio.sleep(0.02)
                if self.fails:
                    raise LookupError("nothing is there")
                return "x" * 998
            finally:
                self.running -= 1

        self.tool = work


@pytest.mark.parametrize(
    ("budget", "seconds", "made", "most"),
    mostly_long(
        [(Budget(size=3000), 60.0, 3, 1), (Budget(calls=5), 60.0, 5, 5), (Budget(seconds=60), 20.0, 20, 3), (Budget(size=1), 60.0, 1, 1)],
        every=3,
    ),
)
async def test_parallel_calls_do_not_exceed_a_budget(pool: SessionPool, budget: Budget, seconds: float, made: int, most: int) -> None:
    parallel = Parallel(budget, seconds=seconds)
    async with AgentSession(pool, tools=[parallel.tool]) as agent:
        result = await agent.run(AT_ONCE.format(tool="work"))
        assert result.text is not None
        assert (parallel.made, result.text.count("'xxx")) == (made, made)
        assert [call.decision for call in agent.calls].count("over budget") == 20 - made
    assert parallel.most <= most


async def test_a_failed_call_returns_its_unused_budget(pool: SessionPool) -> None:
    parallel = Parallel(Budget(size=1000, calls=21))
    parallel.fails = True
    async with AgentSession(pool, tools=[parallel.tool]) as agent:
        await agent.run(AT_ONCE.format(tool="work"))
        assert parallel.made == 20
        parallel.fails = False
        assert (await agent.run("len(tools.work(1))")).value == 998
        assert "used up: 21 calls" in str((await agent.run("tools.work(1)")).error)


async def test_a_cancelled_call_returns_its_reserved_budget(pool: SessionPool) -> None:
    begun, hang = asyncio.Event(), asyncio.Event()

    @tool(effect="read", budget=Budget(size=100, seconds=50))
    async def work() -> str:
        begun.set()
        await hang.wait()
        return "done"

    async with AgentSession(pool, tools=[work]) as agent:
        running = asyncio.create_task(agent.run("import threading\nthreading.Thread(target=tools.work).start()\ntools.work()"))
        await begun.wait()
        running.cancel()
        await asyncio.wait([running])
        hang.set()
        assert (await agent.run("tools.work()", timeout=10)).value == "done"


async def test_a_record_keeps_every_call_and_large_arguments_of_the_latest_only(pool: SessionPool) -> None:
    @tool(effect="read")
    async def take(data: bytes, n: int) -> int:
        return n

    async with AgentSession(pool, tools=[take]) as agent:
        await agent.run("for n in range(6): tools.take(bytes(15 << 20), n)")
        assert [len(call.arguments["data"]) > 1 << 20 for call in agent.calls] == [False, False, True, True, True, True]
        assert "dropped from the record" in agent.calls[0].arguments["n"]


async def test_every_call_is_recorded(pool: SessionPool) -> None:
    mail = Mail(Budget(calls=1))
    async with AgentSession(pool, tools=mail.tools) as agent:
        for code in ("tools.look('a')", "tools.look('b')", "tools.send('c')", "tools.draft('d')"):
            await agent.run(code)
        told = [(one.tool, dict(one.arguments), one.decision, one.error, one.digest is not None) for one in agent.calls]
    assert told == [
        ("look", {"to": "a"}, "not asked", None, True),
        ("look", {"to": "b"}, "over budget", None, False),
        ("send", {"to": "c"}, "refused", None, False),
        ("draft", {"to": "d"}, "not asked", None, True),
    ]


async def test_equal_results_have_equal_digests(pool: SessionPool) -> None:
    @tool(effect="read")
    def image() -> bytes:
        return bytes(100)

    async with AgentSession(pool, tools=[image]) as agent:
        await agent.run("tools.image(), tools.image()")
        assert agent.calls[0].digest == agent.calls[1].digest
