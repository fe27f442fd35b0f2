"""Ask the user: answer input() of a cell.

`on_input` gets the prompt and returns the line, or None for an `EOFError` in the
cell. For `session.stream` and `session.start` of a pool's session it may be
`async`, for example to ask over a websocket. The cell's time limit is paused
meanwhile, for up to ten minutes each. For `getpass()`, `prompt.password` is true:
do not show the answer. Without `on_input`, `input()` fails at once.
"""

from aca_sessions import InteractiveSession
from aca_sessions.models import Prompt

ANSWERS = {"Which year? ": "2026", "Password: ": "plum"}


def ask(prompt: Prompt) -> str | None:
    """Return the user's answer. Here a table stands for the user."""
    print(f"{prompt}{'*' * 4 if prompt.password else ANSWERS[prompt]}")
    return ANSWERS[prompt]


CODE = """
from getpass import getpass
year, key = input("Which year? "), getpass("Password: ")
"""

with InteractiveSession() as session:
    session.run(CODE, on_input=ask).raise_for_error()
    print(session.run("int(year) + 1, len(key)"))
    print(session.run("input('Sure? ')").error.name)

# prints:
# Which year? 2026
# Password: ****
# (2027, 4)
# EOFError
