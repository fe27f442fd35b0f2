"""Test that code is taken out of fences and not changed otherwise."""

import ast
import re
import subprocess
import sys
import sysconfig
import textwrap
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aca_sessions.client.arguments import sanitize

# A fence as one regular expression: correct, but it takes quadratic time.
FENCED = re.compile(r"\A\s*(?P<fence>`{3,}|~{3,})[ \t]*[\w+.-]*[ \t]*\n(?P<code>.*?)\n?[ \t]*(?P=fence)\s*\Z", re.DOTALL)
QUOTED = re.compile(r"\A\s*`(?P<code>[^`\n]+)`\s*\Z")
PIECES = ["```", "~~~", "`", "~", " ", "\t", "\n", "\r\n", "\x0b", "\u2028", "py", "x=1", "-", "\ufeff"]
PYTHON = [
    *(
        "python",
        "x",
        "1",
        "~~~",
        "~",
        "```",
        "``` ",
        "```python",
        "#",
        "'",
        '"""',
        "'''",
        "(",
        ")",
        "=",
        ",",
        "if x:",
        "\n",
        "\n",
        "\n    ",
    ),
    *('"""\n```python\nx\n```\n"""', "x = 1\n", "python\n", "# ```\n", 'f"""\n```\n{x}\n"""', "\\\n"),
]
LONG = [
    *('"```" + "\\n```" * n', '"py\\n" + "\\n" * n', '"python\\n" + " #\\n" * n', '"x\\n" * n + "```"', '"- " * n + "x\\n```\\ny"'),
    *('"```" + " " * n + "x"', '"```\\n" + " " * n + "x"', '"```\\n" + "\\n" * n + "x"', '" " * n + "x"', '"`" * n', '"`" + "x" * n'),
]


@pytest.mark.parametrize(
    "fenced",
    [
        "```python\nprint(1)\n```",
        "```\nprint(1)\n```",
        "```py\nprint(1)\n```",
        "```python3\nprint(1)\n```",
        "~~~python\nprint(1)\n~~~",
        "  ```python\nprint(1)\n```  \n",
        "````\nprint(1)\n````",
        "```Python\r\nprint(1)\r\n```",
        "\ufeff```python\nprint(1)\n```",
        "  ```python\n  print(1)\n  ```",
        "`print(1)`",
        "\ufeffprint(1)",
        "```python\nprint(1)",
        "```python\nprint(1)\n",
        "Here is the code:\n```python\nprint(1)",
        "python\nprint(1)",
        "Python3\nprint(1)",
        "python\n```\nprint(1)\n```",
        "Here's the code:\n\n```python\nprint(1)\n```",
        "```python\nprint(1)\n```\n\nThis prints 1.",
        "Sure! This prints 1:\n  ```py\n  print(1)\n  ```\nLet me know if that helps.",
    ],
)
def test_a_fence_around_the_whole_is_removed(fenced: str) -> None:
    assert sanitize(fenced) == "print(1)"


@pytest.mark.parametrize(
    "code",
    [
        "python_path = 1",
        "PythonREPL()",
        "    x = 1\n    y = 2",
        'text = """\n```python\nprint(1)\n```\n"""',
        "`",
        "```",
        "",
        "x = 1  # ```",
        "x = `1`",
        "`a` + `b`",
        "\tif x:\n\t\ty",
        "python",
        "python\n# shows a variable of this name",
        "pythonic\nprint(1)",
        "%%writefile notes.md\n# Notes\n```python\nprint(1)\n```\n",
        "%%markdown\n```python\nprint(1)\n",
        "Two blocks:\n```python\na = 1\n```\nthen\n```python\nb = 2\n```\n",
        "a = 1\n```python\nprint(a)\n```",
        "~~~x\nprint(1)",
        "~~~x\n# ~~~",
        "text = '''\n```python\nprint(1)",
    ],
)
def test_code_without_a_fence_around_it_is_not_changed(code: str) -> None:
    assert sanitize(code) == code


def test_an_inner_fence_survives_a_longer_outer_one() -> None:
    code = "text = '''\n```\ninner\n```\n'''"
    assert sanitize(f"````\n{code}\n````") == code


@given(st.lists(st.sampled_from(PIECES), max_size=14))
def test_sanitizing_agrees_with_the_regular_expression(pieces: list[str]) -> None:
    code = "".join(pieces)
    text = code.removeprefix("\ufeff").replace("\r\n", "\n")
    fenced, quoted = FENCED.match(text), QUOTED.match(text)
    if fenced and "~" in fenced["fence"] and text.rstrip().split("\n")[-1].strip() != fenced["fence"]:
        fenced = None  # a comment of Python may end so
    if fenced or quoted:
        assert sanitize(code) == (textwrap.dedent(fenced["code"]) if fenced else quoted["code"])
    elif "```" not in text and not text.lstrip().startswith("py"):
        assert sanitize(code) == text


def is_python(code: str) -> bool:
    try:
        with warnings.catch_warnings(action="ignore"):
            ast.parse(code)
    except (SyntaxError, ValueError):
        return False
    return True


@pytest.mark.long
@given(st.lists(st.sampled_from(PYTHON), max_size=12).map("".join).filter(is_python))
def test_python_is_unchanged_but_for_a_first_line_without_effect(code: str) -> None:
    sanitized = sanitize(code)
    if sanitized != code:
        first, *rest = ast.parse(code).body
        assert isinstance(first, ast.Expr)
        assert isinstance(first.value, ast.Name)
        assert first.value.id == "python"
        assert rest, "it would be shown"
        assert [ast.dump(one) for one in ast.parse(sanitized).body] == [ast.dump(one) for one in rest]


def test_no_module_of_the_standard_library_is_changed() -> None:
    folder = Path(sysconfig.get_path("stdlib"))
    sources = [path.read_text(encoding="utf-8", errors="ignore") for path in (*folder.glob("*.py"), *folder.glob("*/*.py"))]
    assert len(sources) > 100
    assert [source[:80] for source in sources if sanitize(source) != source and is_python(source)] == []


@pytest.mark.long
@pytest.mark.parametrize("text", LONG)
def test_a_long_text_takes_linear_time(text: str) -> None:
    code = f"from aca_sessions.client.arguments import sanitize; n = 1_000_000; text = {text}; assert sanitize(text).strip() in text"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)  # in quadratic time it would be hours
