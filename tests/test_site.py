"""Test the documentation site: it is built without a warning, and each link of it leads somewhere."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import aca_sessions

from .conftest import ROOT

pytestmark = pytest.mark.slow
PAGES = sorted(path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site, and fail at warnings."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    built = subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False)
    assert (built.returncode, re.findall("WARNING.*", built.stderr)) == (0, []), built.stderr
    return folder


class _Page(HTMLParser):
    """The anchors and links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors, self.links = set[str](), list[str]()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.anchors.add(given.get("id") or "")
        self.links += [value for name in ("href", "src") if (value := given.get(name))]


def test_each_link_leads_to_a_page_and_an_anchor_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = {path: _Page(path.read_text()) for path in site.rglob("*.html")}
    dead = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (
                parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in pages[target].anchors
            ):
                dead.append((str(path.relative_to(site)), link))
    assert dead == []
    loaded = [link for page in pages.values() for link in page.links if re.match("https?:.*[.](js|css|woff2?|png|svg)", link)]
    assert loaded == []


def test_each_page_is_published_as_markdown_and_listed_for_models(site: Path) -> None:
    listed = re.findall(r"\]\((.+?)\)", (site / "llms.txt").read_text())
    assert {*map(str, PAGES)} <= {*listed}
    everything = (site / "llms-full.txt").read_text()
    for page in listed:
        assert (site / page).read_text() in everything


def test_each_public_name_is_in_the_reference() -> None:
    names = re.findall(r"^::: aca_sessions\.(\w+)$", (ROOT / "docs" / "reference" / "api.md").read_text(), re.MULTILINE)
    assert sorted(names) == aca_sessions.__all__
