"""Hooks of the documentation site, which MkDocs builds. `python docs/site_hooks.py` writes the pages that are made from the code."""

import argparse
import ast
import inspect
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

import griffe
import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel

from aca_sessions import _HOMES
from aca_sessions.cli.commands import build_parser
from aca_sessions.settings import SECTION, Settings, _types_in

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "samples" / "cookbook"
MERMAID = ROOT / ".venv-others" / "mermaid.js"  # draws diagrams in the reader's browser; without it, their source is shown
# Files outside of docs/ that are pages of the site. Others to which a page links are copied below files/.
PAGES = {
    "README.md": "index.md",
    "SECURITY.md": "guides/security.md",
    "CHANGELOG.md": "reference/changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
MEASURED = "benchmarks/results.md"
_LINK = re.compile(r"\]\(([^)\s#:]+)(#[^)\s]*)?\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_OF_CODE = re.compile(r"^::: aca_sessions\.([\w.]+)\n((?: +\S.*\n)*)", re.MULTILINE)  # a name of the code, and options below it
_TO_CODE = re.compile(r"\[(`[^`]+`)\]\[aca_sessions\.[\w.]+\]")  # a link to the description of a name
_texts: dict[str, str] = {}  # the Markdown of each page by its path


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the recipes to the navigation, and the script that draws diagrams."""
    if MERMAID.exists():
        config.extra_javascript.append("assets/mermaid.js")
    for section in config.nav or ():
        if "Cookbook" in section:
            section["Cookbook"] += _recipe_sections()
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/, and the files of the repository to which pages link. Warn about reference pages that are old."""
    for path, text in reference_pages().items():
        if (ROOT / "docs" / path).read_text() != text:
            logging.getLogger("mkdocs").warning("docs/%s differs from the code: run `make docs-reference`", path)
    pages = {page: (ROOT / file).read_text() for file, page in PAGES.items() if page != "index.md"}
    for path, text in (pages | {_recipe_page(one): recipe_page(one) for one in recipes()}).items():
        files.append(File.generated(config, path, content=text))
    for name in ("llms.txt", "llms-full.txt"):  # `on_post_build` writes them
        files.append(File.generated(config, name, content=""))
    if MERMAID.exists():
        files.append(File.generated(config, "assets/mermaid.js", abs_src_path=str(MERMAID)))
    for page in [*files.documentation_pages()]:
        for target in _linked_files(page):
            if files.get_file_from_path(f"files/{target}") is None:
                files.append(File.generated(config, f"files/{target}", abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Turn links to files of the repository into links of the site."""
    text = _with_links(markdown, page.file.src_uri)
    _texts[page.file.src_uri] = _TO_CODE.sub(r"\1", _OF_CODE.sub(_described, text))
    return text


def on_post_build(*, config: MkDocsConfig) -> None:
    """Write each page as Markdown beside its HTML, and both indexes for models: llms.txt and llms-full.txt."""
    site = Path(config.site_dir)
    for path, text in _texts.items():
        target = site / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    ordered = [*_pages_of(config.nav or [])]
    index = [f"# {config.site_name}\n\n> {config.site_description}\n"]
    for section, pages in ordered:
        index.append(f"## {section}\n\n" + "\n".join(f"- [{_title(path)}]({path})" for path in pages) + "\n")
    (site / "llms.txt").write_text("\n".join(index))
    (site / "llms-full.txt").write_text("\n\n".join(_texts[path] for _, pages in ordered for path in pages))


# --- the published Markdown of the API ---


@cache
def _package() -> griffe.Object | griffe.Alias:
    return griffe.load("aca_sessions", search_paths=[ROOT / "src"])


def _described(found: re.Match[str]) -> str:
    """Return the signatures and docstrings of a public name and its members. In the HTML, mkdocstrings shows them instead."""
    name, options = found[1], {key: value for part in (yaml.safe_load(found[2]) or {}).values() for key, value in part.items()}
    one = _original(_package()[f"{_HOMES[name]}.{name}" if name in _HOMES else name])
    parts = [f"### `aca_sessions.{name}`", *_signature_and_text(one)]
    if one.is_class:
        initializer = one.all_members.get("__init__") if options.get("merge_init_into_class", True) else None
        members = one.all_members if options.get("inherited_members") else one.members
        if options.get("members") is False:
            initializer, members = None, {}
        public = [_original(each) for key, each in members.items() if not key.startswith("_")]
        parts[1] = _class_block(one, initializer and _original(initializer), public)
        if initializer and initializer.docstring and not initializer.docstring.value.isspace():
            parts.append(initializer.docstring.value)
        for each in public:
            if each.docstring:
                parts += [f"#### `{one.name}.{each.name}`", *_signature_and_text(each)]
    return "\n\n".join(parts) + "\n"


def _original(one: Any) -> Any:
    return one.final_target if one.is_alias else one


def _class_block(one: Any, initializer: Any, public: list[Any]) -> str:
    """Return the signature of a class. If its initializer is not for users, return its fields, which the docstring describes."""
    if initializer is not None:
        head = initializer.signature().removeprefix("__init__").rpartition(" -> ")[0]
        return f"```python\nclass {one.name}{head}\n```"
    fields = [f"    {each.name}: {each.annotation}" for each in public if each.is_attribute and not each.docstring and each.annotation]
    return "\n".join([f"```python\nclass {one.name}" + ":" * bool(fields), *fields, "```"])


def _signature_and_text(one: Any) -> list[str]:
    if one.is_function:
        code = "async def " * ("async" in one.labels) + "def " * ("async" not in one.labels) + one.signature()
    else:
        code = f"{one.name}: {one.annotation}" if one.is_attribute and one.annotation else one.name
    return [f"```python\n{code}\n```", *([one.docstring.value] if one.docstring else [])]


# --- links ---


def _linked_files(source: File) -> Iterator[str]:
    for found in _LINK.finditer("".join(_FENCE.split(source.content_string)[::2])):
        target = _in_repository(found[1], source.src_uri)
        if target is not None and _page_of(target) is None and (ROOT / target).is_file():
            yield target


def _in_repository(link: str, page: str) -> str | None:
    """Return the path in the repository of a file outside of docs/ to which a page links, or None if the link is another one."""
    folder = _source(page).parent
    path = normpath(folder / link)
    return None if path.startswith(("docs/", "..")) or link.startswith("/") else path


def _page_of(file: str) -> str | None:
    """Return the page of the site that is made from a file outside of docs/, or None."""
    recipe = ROOT / file
    return _recipe_page(recipe) if recipe in recipes() else "reference/benchmarks.md" if file == MEASURED else PAGES.get(file)


def _source(page: str) -> PurePosixPath:
    """Return the path in the repository from which a page is made."""
    return PurePosixPath(next((file for file, one in PAGES.items() if one == page and page != "index.md"), f"docs/{page}"))


def _with_links(text: str, page: str) -> str:
    def replaced(found: re.Match[str]) -> str:
        path, anchor = normpath(_source(page).parent / found[1]), found[2] or ""
        outside = _in_repository(found[1], page)
        target = path.removeprefix("docs/") if outside is None else _page_of(outside) or f"files/{outside}"
        return f"]({relpath(target, PurePosixPath(page).parent)}{anchor})"

    parts = _FENCE.split(text)
    parts[::2] = [_LINK.sub(replaced, part) for part in parts[::2]]
    return "".join(parts)


def _title(path: str) -> str:
    found = re.search(r"^# (.+)$", _texts[path], re.MULTILINE)
    return found[1] if found else path


def _pages_of(nav: Iterable[Any], section: str = "Home") -> Iterator[tuple[str, list[str]]]:
    """Yield the sections of the navigation with the paths of their pages."""
    own = [entry if isinstance(entry, str) else value for entry in nav for value in ([entry] if isinstance(entry, str) else entry.values())]
    if pages := [one for one in own if isinstance(one, str)]:
        yield section, pages
    for entry in nav:
        for name, value in entry.items() if isinstance(entry, dict) else ():
            if isinstance(value, list):
                yield from _pages_of(value, name)


# --- generated pages ---


def reference_pages() -> dict[str, str]:
    """Return the pages that are made from the code, by their paths in docs/. The text above the first heading is kept from the file."""
    made = {
        "reference/settings.md": "\n\n".join(_section_tables(SECTION, Settings)),
        "reference/cli.md": "\n\n".join(_command(build_parser(), "aca-sessions")),
        "reference/benchmarks.md": _measured((ROOT / MEASURED).read_text()),
        "reference/http.md": "\n\n".join(_requests(yaml.safe_load((ROOT / "docs" / "reference" / "openapi.yaml").read_text()))),
    }
    return {path: (ROOT / "docs" / path).read_text().partition("\n## ")[0] + f"\n{text}\n" for path, text in made.items()}


def _section_tables(path: str, model: type[BaseModel]) -> Iterator[str]:
    rows, inner = list[str](), list[tuple[str, type[BaseModel]]]()
    schemas = model.model_json_schema()["properties"]
    for name, field in model.model_fields.items():
        found = [*_types_in(field.annotation)]
        section = next((one for one in found if issubclass(one, BaseModel)), None)
        if section is not None:
            inner.append((f"{path}:{name}:NAME" if Mapping in found else f"{path}:{name}", section))
            if not any(issubclass(one, (tuple, Mapping)) for one in found):
                continue
        meaning = description(model, name)
        rows.append(f"| `{name}`<br>{_values(schemas[name])}<br>{_default(field)} | {meaning} |")
    yield f"## `{path}`\n\n{inspect.getdoc(model)}"
    if rows:
        yield "\n".join(["| key, values, default | meaning |", "|---|---|", *rows])
    for name, section in inner:
        yield from _section_tables(name, section)


@cache
def _settings_source(module: str) -> griffe.Object | griffe.Alias:
    return griffe.load(module, search_paths=[ROOT / "src"])


def description(model: type[BaseModel], name: str) -> str:
    """Return the docstring below a field. pydantic could read it as well, but each import of the settings would take longer."""
    docstring = _settings_source(model.__module__)[model.__name__][name].docstring
    return " ".join(docstring.value.split()) if docstring else ""


def _values(schema: dict[str, Any]) -> str:
    """Return which values a setting can have, from its JSON schema."""
    parts = schema.get("anyOf", schema.get("oneOf", [schema]))
    one = next(part for part in parts if part.get("type") != "null")
    if "enum" in one:
        return ", ".join(f"`{word}`" for word in one["enum"])
    kind = {"array": "list", "boolean": "`true`, `false`", "string": "text"}.get(one["type"], one["type"])
    if any("$ref" in part for part in parts):
        kind += " or object"
    if kind not in ("integer", "number"):
        return kind
    least, above, most = (one.get(key) for key in ("minimum", "exclusiveMinimum", "maximum"))
    if least is None and above is not None and kind == "integer":
        least = above + 1
    if least is None:
        bounds = [text for text, bound in (("above", above), ("at most", most)) if bound is not None for text in [f"{text} {bound:,.16g}"]]
        return ", ".join([kind, *bounds])
    return f"{kind}, {least:g} or more" if most is None else f"{kind}, {least:g} to {most:,.16g}"


def _default(field: Any) -> str:
    if field.is_required():
        return "must be set"
    value = field.default
    if field.default_factory or value is None:
        return "default unset"
    if isinstance(value, tuple):
        value = ", ".join(map(str, value))
    elif isinstance(value, bool):
        value = json.dumps(value)
    elif isinstance(value, float):
        value = f"{value:g}"
    return f"default `{value}`" if value != "" else "default none"


def _measured(report: str) -> str:
    """Return the sections of the report of `make bench`, the machine first."""
    head, _, rest = report.partition("\n## ")
    return f"## Machine\n\n{head.rpartition('**Machine.** ')[2].strip()}\n\n## {rest.strip()}"


def _requests(api: dict[str, Any]) -> Iterator[str]:
    """Yield the tables of requests and of headers from a document of OpenAPI."""
    operations = [(f"{method.upper()} {path}", one) for path, methods in api["paths"].items() for method, one in methods.items()]
    for tag in api["tags"]:
        shown = {
            request: f"{one['summary']}. {one.get('description', '')}".strip() for request, one in operations if tag["name"] in one["tags"]
        }
        rows = [f"| `{request}` | {meaning} |" for request, meaning in shown.items()]
        yield f"## {tag['name']}\n\n{tag['description']}"
        yield "\n".join(["| request | meaning |", "|---|---|", *rows])
    parameters = [one for one in api["components"]["parameters"].values() if one["in"] == "header"]
    headers = [(one["name"], one["description"]) for one in parameters]
    for _, operation in operations:
        headers += [(one["name"], one["description"]) for one in operation.get("parameters", ()) if one.get("in") == "header"]
    yield "## Headers of requests"
    yield "\n".join(["| header | meaning |", "|---|---|", *(f"| `{name}` | {meaning} |" for name, meaning in headers)])


def _command(one: argparse.ArgumentParser, name: str, about: str = "") -> Iterator[str]:
    options, inner = list[str](), list[Iterator[str]]()
    for action in one._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for command, below in action.choices.items():
                if command in helps:
                    inner.append(_command(below, f"{name} {command}", helps[command]))
        elif action.help != argparse.SUPPRESS and not isinstance(action, argparse._HelpAction):
            shown = ", ".join(action.option_strings) or {"+": "{}…", "?": "[{}]"}.get(str(action.nargs), "{}").format(action.metavar)
            choices = "|".join(map(str, action.choices or ())) or action.dest.upper()
            value = f" {action.metavar or choices}" if action.option_strings and action.nargs != 0 else ""
            meaning = (action.help or "") % {**vars(action), "prog": name}
            options.append(f"| `{shown}{value}` | {meaning} |")
    about = about or (one.description or "").rstrip(".")
    yield f"## `{name}`\n\n{about[:1].upper() + about[1:]}."
    if options:
        yield "\n".join(["| argument | meaning |", "|---|---|", *options])
    for lines in inner:
        yield from lines


def recipes() -> list[Path]:
    """Return the programs of the cookbook."""
    return sorted(one for one in RECIPES.glob("*.py") if not one.stem.startswith("_"))


def _recipe_page(path: Path) -> str:
    return f"cookbook/{path.stem}.md"


def _recipe_sections() -> list[dict[str, list[str]]]:
    """Return the pages of the recipes, in the sections and the order of the cookbook's index."""
    sections = (ROOT / "docs" / "cookbook" / "index.md").read_text().split("\n## ")[1:]
    return [
        {one.partition("\n")[0]: [f"cookbook/{name}.md" for name in re.findall(r"/samples/cookbook/(\w+)\.py\)", one)]} for one in sections
    ]


def recipe_page(path: Path) -> str:
    """Return the page of a recipe: its docstring, and its source."""
    source = path.read_text()
    about = ast.get_docstring(ast.parse(source)) or ""
    title, _, text = about.partition("\n")
    code = source.split('"""', 2)[2].strip()
    return f"# {title.rstrip('.')}\n\n{text.strip()}\n\n```python\n{code}\n```\n\nRun it: `python samples/cookbook/{path.name}`\n"


if __name__ == "__main__":
    for path, text in reference_pages().items():
        (ROOT / "docs" / path).write_text(text)
