"""Test the documentation site: it is built without a warning, and each link of it leads somewhere."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import FunctionType
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import aca_sessions
from aca_sessions import InteractiveSession, Session

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


@pytest.mark.long
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


@pytest.mark.long
def test_each_page_is_published_as_markdown_and_listed_for_models(site: Path) -> None:
    listed = re.findall(r"\]\((.+?)\)", (site / "llms.txt").read_text())
    assert {*map(str, PAGES)} <= {*listed}
    everything = (site / "llms-full.txt").read_text()
    for page in listed:
        assert (site / page).read_text() in everything


REFERENCE = (ROOT / "docs" / "reference" / "api.md").read_text()


def test_each_public_name_is_in_the_reference() -> None:
    names = re.findall(r"^::: aca_sessions\.(\w+)$", REFERENCE, re.MULTILINE)
    assert sorted(names) == aca_sessions.__all__


def test_each_blocking_method_is_linked_to_its_description() -> None:
    """The methods of InteractiveSession that are those of Session have no text of their own in the reference."""
    own = {name for name, member in vars(Session).items() if not name.startswith("_") and callable(member)}
    shared = {name for name in own if getattr(InteractiveSession.__dict__.get(name), "__wrapped__", None) is vars(Session)[name]}
    assert {*re.findall(r"\[`(\w+)`\]\[aca_sessions\.Session\.\w+\]", REFERENCE)} == shared


@pytest.mark.long
def test_the_published_markdown_of_the_reference_has_signatures_and_docstrings(site: Path) -> None:
    published = (site / "reference" / "api.md").read_text()
    assert not re.search(r"^:::|\]\[aca_sessions", published, re.MULTILINE)
    for name in aca_sessions.__all__:
        described = published.partition(f"\n### `aca_sessions.{name}`\n")[2].partition("\n### ")[0]
        public = getattr(aca_sessions, name)
        assert (public.__doc__ or "").splitlines()[0] in described, name
        # The page says of these two, in a sentence, which methods are those of another class.
        is_shared = name in ("InteractiveSession", "PythonCodeInterpreterPlugin")
        for key, member in vars(public).items() if isinstance(public, type) and name != "Settings" and not is_shared else ():
            if not key.startswith("_") and isinstance(member, FunctionType) and member.__doc__:
                assert f"\n#### `{name}.{key}`\n\n```python\n" in described, f"{name}.{key}"
    assert "async def run(code: str, *, libraries: Sequence[str] = ()" in published


def test_each_public_method_and_argument_is_documented() -> None:
    """Arguments need a text if there are more than two. Those of a class are in its docstring or in that of `__init__`."""
    griffe = pytest.importorskip("griffe")
    package, missing = griffe.load("aca_sessions", search_paths=[ROOT / "src"], docstring_parser="google"), []
    linked = {*re.findall(r"\[aca_sessions\.Session\.(\w+)\]", REFERENCE)}
    for target in re.findall(r"^::: aca_sessions\.([\w.]+)$", REFERENCE, re.MULTILINE):
        described = package[f"{aca_sessions._HOMES[target]}.{target}" if target in aca_sessions._HOMES else target]
        members = {"": described} | (described.all_members if described.is_class and target != "Settings" else {})
        of_class = _described(described)
        for name, alias in members.items():
            if name in ("__init__", "") or not name.startswith("_"):
                one = alias.final_target if alias.is_alias else alias
                texts = _described(one) | (of_class if name == "__init__" or one.is_attribute else set())
                arguments = [each.name for each in one.parameters if each.name not in ("self", "cls")] if one.is_function else []
                required = {each for each in arguments if not each.startswith("_")} if len(arguments) > 2 else set()
                is_linked = target == "InteractiveSession" and name in linked
                if not one.docstring and name != "__init__" and name not in of_class and not is_linked:
                    missing.append(f"{target}.{name}")
                missing += [f"{target}.{name}({each})" for each in sorted(required - texts)]
                unknown = {each for each in texts - of_class if each not in arguments} if arguments else set()
                missing += [f"{target}.{name} has no argument {each}" for each in sorted(unknown)]
    assert missing == []


def _described(one: Any) -> set[str]:
    """Return the names that the sections `Args:` and `Attributes:` of a docstring describe."""
    sections = one.docstring.parse("google") if one.docstring else []
    return {each.name.lstrip("*") for part in sections if part.kind.value in ("parameters", "attributes") for each in part.value}


def test_the_home_page_names_the_version() -> None:
    assert f"\nVersion {aca_sessions.__version__}, " in (ROOT / "docs" / "index.md").read_text()


def test_each_setting_is_described() -> None:
    rows = re.findall(r"^\| `(\w+)`<br>.* \| (.*) \|$", (ROOT / "docs" / "reference" / "settings.md").read_text(), re.MULTILINE)
    assert len(rows) > 40
    assert [name for name, meaning in rows if not meaning.endswith(".")] == []
