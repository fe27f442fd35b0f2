"""Fixtures: a browser for each module, and servers for it."""

from collections.abc import Iterator

import pytest

from ..cli.test_cli import Server
from .browser import CHROMIUM, Browser, Page

KEY = "the-key-of-these-tests"
_LAST = "[...document.querySelectorAll('.cell')].at(-1)"


class Playground:
    """The page in one tab, once it is open. Cells are typed and run as a person does."""

    def __init__(self, page: Page) -> None:
        """Start at the first cell."""
        self.page = page
        self.cells = 0

    def start(self, code: str, keys: str = "Shift+Enter", *, goes_on: bool = False) -> None:
        """Type a cell in place of what the editor has, or after it, and run it."""
        self.page.evaluate("document.querySelector('#source').focus()")
        if not goes_on:
            self.page.evaluate("document.querySelector('#source').select()")
        self.page.write(code)
        self.page.press(keys)
        self.cells += 1
        self.page.wait(f"document.querySelectorAll('.cell').length === {self.cells}")

    def run(self, code: str, keys: str = "Shift+Enter", *, goes_on: bool = False) -> str:
        """Type a cell, run it, and return its text when it has ended."""
        self.start(code, keys, goes_on=goes_on)
        return self.ended()

    def ended(self) -> str:
        """Return the text of the last cell, once it has ended and the panels are up to date."""
        self.page.wait(f"!{_LAST}.hasAttribute('aria-busy')")
        return str(self.page.evaluate(f"{_LAST}.innerText"))

    def state(self) -> str:
        """Return what the last cell shows of the session's state, in the words of results."""
        return str(self.page.evaluate(f"{_LAST}.querySelector('.verdict').dataset.state"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs a browser: sudo apt install chromium")
    with Browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--port", "0", "--api-key", KEY) as started:
        yield started


@pytest.fixture
def playground(browser: Browser, server: Server) -> Iterator[Playground]:
    with opened(browser, server) as page:
        yield page


def opened(browser: Browser, server: Server) -> "Opened":
    """Open a tab, enter the key, and close the tab at the end of the block."""
    return Opened(browser.open(f"{server.endpoint}/#key={KEY}"))


class Opened:
    """A tab that closes at the end of the block."""

    def __init__(self, page: Page) -> None:
        """Wait for the editor."""
        self.playground = Playground(page)
        page.wait("document.activeElement?.id === 'source'")

    def __enter__(self) -> Playground:
        return self.playground

    def __exit__(self, *_: object) -> None:
        self.playground.page.close()
