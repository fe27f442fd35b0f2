"""Code comes out of fences, and nothing else is touched."""

import pytest

from aca_sessions.client.sanitize import sanitize


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
