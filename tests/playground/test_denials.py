"""Test what the playground shows of requests that the network refuses, as a person sees and answers it."""

from collections.abc import Iterator

import pytest

from ..cli.test_cli import Server
from .browser import Browser
from .conftest import KEY, Playground, opened

pytestmark = [pytest.mark.slow, pytest.mark.long]
RULES = """{"Rules": [
  {"Host": "api.example.invalid", "Methods": ["GET"], "Paths": ["/open/**"], "Headers": {"Authorization": "Bearer key", "X-Team": "a"}}
]}"""
# 403 if it is refused, 502 if it is allowed, because the host is not known.
FETCH = """
import urllib.request as u, urllib.error as e
def fetch(url, **more):
    try: u.urlopen(u.Request(url, **more))
    except e.URLError as error: print(getattr(error, 'code', error))
"""
CLEAR = """
import threading, time
from IPython.display import clear_output
def clear():
    while True: clear_output(); print('x'); time.sleep(0.01)
threading.Thread(target=clear, daemon=True).start()
"""
DEFINE = f"exec({FETCH!r})\n"


@pytest.fixture(scope="module")
def ruled() -> Iterator[Server]:
    before = f"export ACASessions__Sandbox__Network='{RULES}';"
    with Server("--port", "0", "--api-key", KEY, before=before) as started:
        yield started


@pytest.fixture
def asking(browser: Browser, ruled: Server) -> Iterator[Playground]:
    with opened(browser, ruled) as page:
        yield page


def ask(playground: Playground, code: str) -> str:
    """Run code that makes a request, and return what the page asks about it once it can be answered."""
    playground.start(DEFINE + code)
    playground.page.wait("document.querySelector('.denial button:not(:disabled)')")
    return str(playground.page.evaluate("document.querySelector('.denial[role=group]').innerText"))


def choose(playground: Playground, label: str) -> str:
    """Click one of the buttons, and return the text of the cell when it has ended."""
    playground.page.evaluate(f"[...document.querySelectorAll('.denial button')].find((one) => one.innerText === '{label}').click()")
    return playground.ended()


def test_a_person_allows_and_refuses_requests_and_sees_which_headers_are_sent(asking: Playground) -> None:
    page = asking.page
    shown = ask(asking, "fetch('https://other.invalid/')")
    assert shown.startswith(
        "The network rules do not allow it to connect to other.invalid, port 443.\n\nThey allow: the hosts api.example.invalid."
    )
    assert "the code can send anything there" in shown
    assert page.evaluate("[...document.querySelectorAll('.denial button')].map((one) => one.innerText)") == [
        "Allow once",
        "Allow from now on",
        "Refuse",
    ]
    assert page.evaluate("document.activeElement.id") == "source"  # what is typed next answers nothing
    assert "Refused: connect to other.invalid, port 443." in choose(asking, "Refuse")
    page.wait("document.querySelector('#refused .row')")
    assert page.text("#refused .name") == "other.invalid:443"
    assert page.text("#refused .facts").startswith("by the rules, ")
    for label, told in (("Allow once", "Allowed once"), ("Allow from now on", "Allowed from now on")):
        ask(asking, "fetch('http://other.invalid/')")
        text = choose(asking, label)
        assert "502" in text
        assert f"{told}: connect to other.invalid, port 80." in text
    assert "502" in asking.run(f"{DEFINE}fetch('http://other.invalid/')")  # without a question
    page.reload()
    page.wait("document.querySelectorAll('.denial').length === 3")
    assert page.evaluate("document.querySelectorAll('.denial button').length") == 0


def test_what_code_chose_is_text_and_code_cannot_take_the_question_away(asking: Playground) -> None:
    page = asking.page
    path = "/open/<b>x</b>" + "y" * 900
    shown = ask(asking, f"exec({CLEAR!r})\nfetch('http://api.example.invalid{path}', method='POST')")
    assert 'send a POST request to api.example.invalid, port 80, path "/open/<b>x</b>yyy' in shown
    assert "characters]" in shown
    assert len(shown) < 1200
    assert "They allow: GET /open/**." in shown
    assert "the server sends these headers with it: authorization, x-team." in shown
    assert page.evaluate("document.querySelectorAll('.denial b').length") == 0
    assert "Refused: send a POST request" in choose(asking, "Refuse")


def test_a_question_is_there_after_a_reload_and_goes_with_its_cell(asking: Playground) -> None:
    page = asking.page
    ask(asking, "fetch('http://third.invalid/')")
    page.reload()
    page.wait("document.querySelector('.denial button:not(:disabled)')")
    page.click("#interrupt")
    page.wait("document.querySelector('.denial')?.innerText === 'Refused: connect to third.invalid, port 80.'")
    assert page.evaluate("document.querySelectorAll('.denial button').length") == 0
