"""Code comes out of fences, and nothing else is touched."""

import re
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aca_sessions.client.sanitize import sanitize

# What a fence is, as one expression; it is right, and takes quadratic time.
FENCED = re.compile(r"\A\s*(?P<fence>`{3,}|~{3,})[ \t]*[\w+.-]*[ \t]*\n(?P<code>.*?)\n?[ \t]*(?P=fence)\s*\Z", re.DOTALL)
QUOTED = re.compile(r"\A\s*`(?P<code>[^`\n]+)`\s*\Z")
PIECES = ["```", "~~~", "`", "~", " ", "\t", "\n", "\r\n", "\x0b", "\u2028", "py", "x=1", "-", "\ufeff"]
LONG = ['"```" + " " * n + "x"', '"```\\n" + " " * n + "x"', '"```\\n" + "\\n" * n + "x"', '" " * n + "x"', '"`" * n', '"`" + "x" * n']


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
    ],
)
def test_code_without_a_fence_around_it_is_not_changed(code: str) -> None:
    assert sanitize(code) == code


def test_an_inner_fence_survives_a_longer_outer_one() -> None:
    code = "text = '''\n```\ninner\n```\n'''"
    assert sanitize(f"````\n{code}\n````") == code


@given(st.lists(st.sampled_from(PIECES), max_size=14))
def test_it_takes_out_what_one_expression_says(pieces: list[str]) -> None:
    code = "".join(pieces)
    text = code.removeprefix("\ufeff").replace("\r\n", "\n")
    fenced, quoted = FENCED.match(text), QUOTED.match(text)
    assert sanitize(code) == (textwrap.dedent(fenced["code"]) if fenced else quoted["code"] if quoted else text)


@pytest.mark.parametrize("text", LONG)
def test_a_long_text_takes_no_more_than_one_look(text: str) -> None:
    code = f"from aca_sessions.client.sanitize import sanitize; n = 1_000_000; text = {text}; assert sanitize(text) == text"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)  # in quadratic time it would be hours
