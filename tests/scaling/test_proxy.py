"""Test servers behind nginx in `make test`: one session, and the settings in its configuration. test_nginx.py has the rest."""

import re

import pytest

from aca_sessions import Session, open_interpreter
from aca_sessions.contract.records import MAX_ASYNCHRONOUS_SECONDS

from .cluster import CONFIGURATION, Cluster, needs_nginx


@pytest.mark.long
@needs_nginx
async def test_a_whole_session_works_through_the_proxy() -> None:
    with Cluster(2) as cluster:
        async with open_interpreter(cluster.settings()) as interpreter:
            session = Session(interpreter, "whole session/1")
            await session.upload_file("folder/a b.csv", b"n\n1\n2\n")
            assert (await session.run("import os; os.listdir('/mnt/data/folder')")).text == "['a b.csv']"
            assert await session.download_file("folder/a b.csv") == b"n\n1\n2\n"
            checkpoint = await session.checkpoint()
            await session.run("x = 1")
            await session.rollback(checkpoint)
            assert (await session.run("'x' in globals()")).value is False


def test_both_lists_of_servers_are_the_same() -> None:
    lists = re.findall(r"upstream (?:sessions|elsewhere) \{(.*?)\}", CONFIGURATION.read_text(), re.DOTALL)
    first, second = [re.findall(r"server (\S+) ", listed) for listed in lists]
    assert first == second != []


def test_the_proxy_waits_as_long_as_a_cell_may_run() -> None:
    unit = {"s": 1, "m": 60, "h": 3600}
    value = re.search(r"proxy_read_timeout (\d+)([smh]);", CONFIGURATION.read_text())
    assert int(value[1]) * unit[value[2]] >= MAX_ASYNCHRONOUS_SECONDS
