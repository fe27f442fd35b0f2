"""Test the notebook's magics in a real Jupyter kernel."""

import base64
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_notebook

from aca_sessions import CodeExecutionResult
from aca_sessions.models import CodeError, Display, State
from aca_sessions.rendering import mimebundle

from ..conftest import PATIENT, ROOT
from ..wheels import make_wheel
from .kernels import OUTPUTS, Cell, Notebook

pytestmark = pytest.mark.slow

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("notebook"))
        patch.setenv("ACASessions__MaxConcurrentSessions", "100")  # each test has sessions of its own
        opened = Notebook()
        yield opened
        opened.close()


def test_a_cell_shows_what_it_printed_and_its_value(notebook: Notebook) -> None:
    notebook.run("open('data.txt', 'w').write('content')")
    cell = notebook.run("%%session one --file data.txt\nx = 20\nprint('out')\nopen('data.txt').read()")
    assert cell.text == "out\n'content'"
    assert cell.outputs[-1]["output_type"] == "execute_result"
    assert notebook.run(f"_, Out[{cell.reply['execution_count']}]").text == "('content', 'content')"
    cell = notebook.run("%%session one\n[1, 2]")
    assert notebook.run(f"{cell.reply['execution_count']} in Out").text == "False"


def test_state_is_kept_per_session_name(notebook: Notebook) -> None:
    notebook.run("%%session one\nx = 20")
    assert notebook.run("%%session one\nx + 22").text == "42"
    assert notebook.run("%%session two\n'x' in globals()").text == "False"


def test_a_session_runs_one_line_and_returns_its_value(notebook: Notebook) -> None:
    notebook.run("x = 'the notebook'")
    assert notebook.run("%session -n line x = 20; print('{x}')").text == "{x}\n"
    assert notebook.run("y = %session -n line x + 22\ny + 1").text == "43"
    assert notebook.run("%session --name line --timeout 60 [x]").text == "[20]"
    assert notebook.run("%session").reply["ename"] == "UsageError"
    assert notebook.run("%session -n line -o x").text == ""
    assert notebook.run("x").text == "20"
    notebook.run("x = 21")
    assert notebook.run("%session -n line --input=x").text == ""
    assert notebook.run("%session -n line x").text == "21"


def test_output_arrives_while_the_cell_runs_and_input_is_asked_by_the_kernel(notebook: Notebook) -> None:
    code = (
        "%%session asks\nimport sys, getpass\nfrom IPython.display import display\n"
        "print('begun'); sys.stderr.write('\\r 50%'); display({'text/plain': 'seen'}, raw=True)\n"
        "name = input('Name? ')\nsecret = getpass.getpass('Key? ')\nsys.stderr.write('\\r100%'); (name, secret)"
    )
    # The kernel sends output and questions by different ways. The answer waits for the output, so output that came late would be none.
    cell = notebook.run(code, ("Ada", "plum"), first=("begun\n", "\r 50%", "seen", "Name? "))
    assert [(one["prompt"], one["password"]) for one in cell.asked] == [
        ("the session asks: ", False),  # the cell has printed its prompt
        ("the session asks: Key? ", True),
    ]
    assert cell.text.count("Name? ") == 1
    unseen = "%%session asks\nimport contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()): input('Unseen? ')"
    assert [one["prompt"] for one in notebook.run(unseen, ("",)).asked] == ["the session asks: Unseen? "]
    assert cell.text.endswith("\r100%('Ada', 'plum')")
    assert "plum" not in cell.text.removesuffix("('Ada', 'plum')")


def test_a_notebook_that_cannot_be_asked_ends_input_at_once(notebook: Notebook) -> None:
    cell = notebook.run("%%session asks\ninput()")
    assert cell.reply["ename"] == "EOFError"
    assert "[hint] this front end cannot ask for a line" in cell.stream("stderr")


def test_an_error_is_an_error_of_the_notebook_with_the_traceback_of_the_session(notebook: Notebook) -> None:
    cell = notebook.run("%%session one\nimport sys; print('err', file=sys.stderr)\n1 / 0")
    assert cell.stream("stderr") == "err\n"
    assert (cell.reply["status"], cell.reply["ename"], cell.reply["evalue"]) == ("error", "ZeroDivisionError", "division by zero")
    assert "\x1b[32m----> 2\x1b[0m 1 / 0" in cell.reply["traceback"]
    assert cell.reply["traceback"][-1] == "\x1b[31mZeroDivisionError\x1b[0m: division by zero"
    assert "aca_sessions" not in "\n".join(cell.reply["traceback"])
    assert cell.outputs[-1]["traceback"] == cell.reply["traceback"]


def test_a_forged_error_shows_no_line_of_the_host(notebook: Notebook) -> None:
    code = "class E(Exception): pass\nE.__name__ = '[session state'\nraise E('[session state lost: memory]\\x1b]0;title\\x07')"
    cell = notebook.run(f"%%session one\n{code}")
    assert cell.reply["ename"] == "SessionError"
    shown = "\n".join([cell.reply["evalue"], *cell.reply["traceback"]])
    assert "\x1b]" not in shown
    assert shown.count("[session state") == shown.count("(printed) [session state") > 1


def test_an_interrupt_of_the_kernel_interrupts_the_cell_and_its_result_is_shown(notebook: Notebook) -> None:
    interrupted: list[bool] = []

    def interrupt(cell: Cell) -> None:
        if not interrupted:
            interrupted.append(True)
            notebook.manager.interrupt_kernel()

    code = "%%session busy\nkept = 5\nprint('begun', flush=True)\nwhile True: pass"
    cell = notebook.run(code, on_output=interrupt)
    assert (cell.reply["status"], cell.reply["ename"]) == ("error", "KeyboardInterrupt")
    assert "session state" not in cell.text
    assert notebook.run("%session -n busy kept").text == "5"


SLOW = "import signal, time\ndef slow(*_): {}\nsignal.signal(signal.SIGINT, slow)\nprint('begun')\nwhile True: time.sleep(0.1)"


@pytest.mark.long
def test_the_first_interrupt_of_a_cell_that_does_not_react_keeps_its_variables(notebook: Notebook) -> None:
    """The handler stands for C code: it takes longer than the time after which an interrupt usually kills the interpreter."""
    interrupted: list[bool] = []

    def interrupt(cell: Cell) -> None:
        if not interrupted:
            interrupted.append(True)
            notebook.manager.interrupt_kernel()

    code = SLOW.format("time.sleep(6); 1 / 0")
    cell = notebook.run(f"%%session slow\nkept = 5\n{code}", on_output=interrupt)
    assert cell.reply["ename"] == "ZeroDivisionError"
    assert "[hint] the cell runs code that cannot be interrupted yet" in cell.stream("stderr")
    assert notebook.run("%session -n slow kept").text == "5"


@pytest.mark.long
def test_the_second_interrupt_ends_a_cell_that_does_not_react(notebook: Notebook) -> None:
    interrupted: list[int] = []

    def interrupt(cell: Cell) -> None:
        if len(interrupted) < (2 if "[hint] the cell runs" in cell.stream("stderr") else 1):
            interrupted.append(1)
            notebook.manager.interrupt_kernel()

    cell = notebook.run(f"%%session stuck\nkept = 5\n{SLOW.format('pass')}", on_output=interrupt)
    assert "[session state lost" in cell.stream("stderr")
    assert len(interrupted) == 2


@pytest.mark.long
def test_a_figure_is_shown_as_the_notebook_shows_its_own(notebook: Notebook) -> None:
    cell = notebook.run("%%session one\nimport matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()")
    (image,) = [output["data"]["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
    assert base64.b64decode(image).startswith(PNG)


def test_html_is_shown_without_its_scripts(notebook: Notebook) -> None:
    html = notebook.run("%%session one\nfrom IPython.display import HTML; HTML('<b>bold</b><script>alert(1)</script>')").html
    assert "<b>bold</b></div>" in html
    assert "Scripts of this output do not run here; <code>--html=raw</code> runs them" in html
    assert "alert" not in html


@pytest.mark.long
def test_html_runs_in_a_frame_on_explicit_request(notebook: Notebook) -> None:
    code = "from IPython.display import HTML; HTML('<script>alert(1)</script>')"
    frame = '<iframe sandbox="allow-scripts"'
    html = notebook.run(f"%%session raw --html=raw\n{code}").html
    assert html.startswith(frame)
    assert "<script>" not in html
    later = [notebook.run(f"%%session {line}\n{code}").html for line in ("raw", "other", "raw --html=clean", "raw")]
    assert [one.startswith(frame) for one in later] == [True, False, False, False]
    notebook.run(f"%%session raw --html=raw\n{code}")
    assert "<iframe" not in notebook.run("%%session raw\nimport pandas as pd; pd.DataFrame({'a': [1]})").html
    assert "unrecognized arguments" in notebook.run(f"%%session other --htm=raw\n{code}").text
    notebook.run("%session_reset raw")
    assert not notebook.run(f"%%session raw\n{code}").html.startswith(frame)


def test_output_cannot_look_like_a_line_of_the_host(notebook: Notebook) -> None:
    cell = notebook.run("%%session one\nprint('[session state lost: memory]\\x1b]0;title\\x07')")
    assert cell.text == "(printed) [session state lost: memory]\\x1b]0;title\\x07\n"


def test_a_lost_state_is_told_below_the_output(notebook: Notebook) -> None:
    notebook.run("%%session dies\nx = 1")
    cell = notebook.run("%%session dies\nprint('last', flush=True); import os; os._exit(3)")
    assert cell.stream("stdout") == "last\n"
    assert cell.stream("stderr").startswith("[session state lost: exit; variables from before are gone")
    assert cell.reply["status"] == "error"


def test_displays_are_updated_in_place_and_cleared(notebook: Notebook) -> None:
    code = (
        "from IPython.display import display, clear_output\nshown = display({'text/plain': 'one'}, raw=True, display_id='d')\n"
        "input(); display({'text/plain': 'two'}, raw=True, display_id='d', update=True)\n"
        "input(); clear_output()\ndisplay({'text/plain': 'three'}, raw=True)"
    )
    cell = notebook.run(f"%%session one\n{code}", ("", ""), first=("one",))
    kinds = [one["msg_type"] for one in cell.messages if one["msg_type"] in (*OUTPUTS, "clear_output")]
    assert kinds == ["display_data", "update_display_data", "clear_output", "display_data"]
    ids = [one["content"]["transient"]["display_id"] for one in cell.messages if one["content"].get("transient")]
    assert len({*ids}) == 1
    assert ids[0] != "d"  # or the session could update displays of the notebook


def test_text_and_displays_keep_their_order(notebook: Notebook) -> None:
    cell = notebook.run("%%session one\nprint('A'); display(1); print('B'); display(2); print('C')")
    shown = [one.get("text") or one["data"]["text/plain"] for one in cell.outputs]
    assert [text.strip() for text in shown] == ["A", "1", "B", "2", "C"]


@pytest.mark.long
def test_a_clear_keeps_what_comes_after_it(notebook: Notebook) -> None:
    assert notebook.run("%%session one\nfrom IPython.display import clear_output\nprint('A'); clear_output(); print('B')").text == "B\n"
    progress = "for n in range(5): clear_output(wait=True); display(n); print('done', n)"
    assert notebook.run(f"%%session one\n{progress}").text == "4done 4\n"


def test_stdout_and_stderr_keep_their_order_and_nested_bars_their_rows(notebook: Notebook) -> None:
    bars = r"'\ra: 0%\n\rb: 0%\x1b[A', '\n\rb: 100%\x1b[A', '\ra: 100%\n'"
    code = f"import sys\nprint('begun')\nfor text in {bars}:\n    print(text, end='', file=sys.stderr, flush=True)\nprint('done')"
    notebook.run(f"%%session streams\n{PATIENT}")
    cell = notebook.run(f"%%session streams\n{code}")
    shown = [(one["name"], one["text"]) for one in cell.outputs]
    assert [name for name, _ in shown] == ["stdout", *["stderr"] * (len(shown) - 2), "stdout"]
    assert "".join(text for _, text in shown) == "begun\n\ra: 0%\n\rb: 0%\rb: 100%\ra: 100%\ndone\n"


LIES = """
def offer(completer, text, offset):
    from IPython.core.completer import Completion
    start, matches = (0, [f"{text[:offset]}_wide", "other"]) if text else (0, ["--file=/etc/passwd x", "-o x", "plain", "a\\nb", "\\x1b[A"])
    return [Completion(start, offset, match) for match in matches]
type(get_ipython().Completer).completions = offer
"""


def completed(notebook: Notebook, code: str) -> list[str]:
    """Ask for completions until there are some: on a busy machine a session, which may have to import jedi, answers late."""
    return next(filter(None, (notebook.complete(code) for _ in range(30))), [])


@pytest.mark.long
def test_names_in_code_of_a_session_are_completed_by_it(notebook: Notebook) -> None:
    notebook.run("notebook_only = 1")
    assert notebook.complete("%%session tab\nsession_on|") == []  # the session has not started
    notebook.run("%%session tab\nsession_only = {'key': 1}\ndef described():\n    'What it does.'")
    assert completed(notebook, "%%session tab\nx = session_on|\ny") == ["%%session tab\nx = session_only\ny"]
    assert notebook.complete("%session -n tab session_on|") == ["%session -n tab session_only"]
    assert notebook.complete("x = 1\ny = %session -n tab session_on|\nz") == ["x = 1\ny = %session -n tab session_only\nz"]
    assert notebook.complete("%%session tab\nnotebook_on|") == notebook.complete("session_on|") == []
    assert notebook.complete("notebook_on|") == ["notebook_only"]
    assert notebook.complete("%%session tab --t|") == ["%%session tab --timeout"]
    assert {"%session -o", "%session --input"} <= {*notebook.complete("%session -|")}
    assert notebook.complete("%%session tab --timeout soon\nsession_on|") == []
    assert "What it does." in (notebook.inspect("%%session tab\ndescri|bed") or "")
    assert "What it does." in (notebook.inspect("%session -n tab described|()") or "")
    assert notebook.inspect("%%session tab\nnosuch|") is None
    assert "int" in (notebook.inspect("notebook_on|ly") or "")


def test_a_session_completes_no_option_and_no_other_text(notebook: Notebook) -> None:
    notebook.run(f"%%session lies\n{LIES}")
    assert completed(notebook, "%session -n lies |") == ["%session -n lies plain"]
    assert completed(notebook, "%%session lies\nab|") == ["%%session lies\nab_wide"]


@pytest.mark.long
def test_a_session_that_does_not_answer_completes_nothing_and_keeps_its_state(notebook: Notebook) -> None:
    notebook.run("%%session slow\nimport time\nx = 5\ntype(get_ipython().Completer).completions = lambda *_: time.sleep(600)")
    assert notebook.complete("%%session slow\nx|") == []
    assert notebook.run("%session -n slow x").text == "5"


def test_files_go_in_and_out_and_a_reset_clears_the_state(notebook: Notebook) -> None:
    notebook.run("open('in.txt', 'w').write('content')")
    notebook.run("%session_put -n files in.txt other.txt")
    assert notebook.run("%session_files -n files").text == "['other.txt']"
    notebook.run("%session -n files x = open('out.txt', 'w').write(open('other.txt').read() * 2)")
    notebook.run("%session_get -n files out.txt")
    assert notebook.run("open('out.txt').read()").text == "'contentcontent'"
    notebook.run("%session_reset files")
    assert notebook.run("%session -n files 'x' in globals()").text == "False"
    missing = notebook.run("%session_get -n files nothing.txt")
    assert missing.text == "UsageError: the session has no file nothing.txt: %session_files lists those that it has\n"


def test_files_are_copied_with_a_confirmation_and_into_missing_folders(notebook: Notebook) -> None:
    notebook.run("open('in.txt', 'w').write('content')")
    assert notebook.run("%session_put -n files in.txt other.txt").text == "copied to the session files: other.txt\n"
    notebook.run("%session_get -n files other.txt new/folder/")
    notebook.run("%session_get -n files other.txt new/one.txt")
    assert notebook.run("open('new/folder/other.txt').read() + open('new/one.txt').read()").text == "'contentcontent'"
    assert notebook.run("%session_reset files").text == "the session files was ended: its next cell starts a new one\n"


@pytest.mark.parametrize(
    "magic", ["files nosuch", "get -n nosuch a.txt", "export -n nosuch a.ipynb", "rollback -n nosuch", "checkpoints -n nosuch"]
)
def test_a_mistyped_session_is_an_error_that_lists_the_sessions(notebook: Notebook, magic: str) -> None:
    notebook.run("%session -n listed 1")
    cell = notebook.run(f"%session_{magic}")
    assert cell.reply["ename"] == "UsageError"
    assert "unknown session nosuch: this notebook has " in cell.text
    assert "listed" in cell.text
    assert "unknown session nosuch" in notebook.run("%session_reset nosuch").text


def test_only_magics_that_run_code_start_the_session_without_a_name(notebook: Notebook) -> None:
    notebook.run("%session 1")
    notebook.run("%session_reset")
    for magic in ("files", "files -n notebook", "export a.ipynb", "get a.txt", "rollback", "checkpoints"):
        assert "UsageError: unknown session notebook: " in notebook.run(f"%session_{magic}").text
    assert notebook.run("%session_reset").text.startswith("unknown session notebook: ")


@pytest.mark.long
def test_a_full_disk_is_an_error_that_says_what_to_do(notebook: Notebook) -> None:
    notebook.run("values = [0.5] * 3_000_000; open('large', 'wb').write(bytes(2 << 20))")
    notebook.run("%%session full\nopen('full', 'wb').write(bytes(255 << 20)); values = [0.5] * 3_000_000")
    says = "the session's /mnt/data is full: delete files"
    for magic in ("session -n full -o values", "session -n full -i values 1", "session_put -n full large"):
        said = notebook.run(f"%{magic}").text
        assert says in said
        assert "service" not in said
        assert "Errno" not in said


def test_spaces_after_the_commas_of_variables_name_no_session(notebook: Notebook) -> None:
    notebook.run("a, b = 1, 2")
    assert notebook.run("%%session commas -i a, b -o c, d\nc = a + b; d = 4; c").text == "3"
    assert notebook.run("c, d").text == "(3, 4)"
    assert notebook.run("%session -n commas -i a , b a + b").text == "3"
    cell = notebook.run("%%session -i a b\na")
    assert cell.reply["ename"] == "UsageError"
    assert "`b` would be a new session: write several variables as `-i a,b`" in cell.text
    assert notebook.run("%%session -i a commas\na").text == "1"


@pytest.mark.long
def test_reloading_the_extension_keeps_the_sessions(notebook: Notebook) -> None:
    notebook.run("%session -n reloaded x = 20")
    assert notebook.run("%reload_ext aca_sessions").reply["status"] == "ok"
    assert notebook.run("%session -n reloaded x").text == "20"


def test_a_widget_gives_a_hint_that_it_cannot_work(notebook: Notebook) -> None:
    view = "{'text/plain': 'IntSlider(value=0)', 'application/vnd.jupyter.widget-view+json': {'model_id': 'a'}}"
    cell = notebook.run(f"%%session one\ndisplay({view}, raw=True)")
    hint = "[hint] widgets of a session are only shown as text that does not change"
    assert cell.stream("stderr").startswith(hint)
    bar = "raise ImportError('IProgress not found. Please update jupyter and ipywidgets.')"  # of tqdm.notebook without ipywidgets
    assert notebook.run(f"%%session one\n{bar}").stream("stderr").startswith(hint)


def test_magics_print_their_help(notebook: Notebook) -> None:
    for code in ("%%session --help\n1", "%session -h", "%session --help"):
        assert "set a variable of the session first" in notebook.run(code).stream("stdout")
    assert "a file in the session's /mnt/data" in notebook.run("%session_get --help").stream("stdout")


def test_a_missing_package_is_answered_with_the_magic_that_installs_it(notebook: Notebook) -> None:
    cell = notebook.run("%%session one\nimport no_module_of_that_name")
    assert cell.stream("stderr") == "[hint] install a missing package with %session_install -n one PACKAGE\n"
    cell = notebook.run("%%session\n!pip install no-package-of-that-name")
    assert "a cell cannot install packages: the host does, between cells\n" in cell.text
    assert "[hint] install a missing package with %session_install PACKAGE\n" in cell.stream("stderr")


def test_an_assigned_value_that_is_not_returned_is_answered_with_the_option_that_copies_it(notebook: Notebook) -> None:
    says = "[hint] the value is not returned to the notebook, only a number, a bool or text: `%session -o NAME` copies a variable"
    assert says in notebook.run("a = 1\ny = %session -n one [1, 2]").stream("stderr")
    for code in ("y = %session -n one 1 + 2", "%session -n one [1, 2]", "y = %session -n one print(1)"):
        assert "[hint]" not in notebook.run(code).text


def test_a_variable_of_the_notebook_is_answered_with_the_option_that_passes_it_in(notebook: Notebook) -> None:
    notebook.run("import json\nonly_here = [1]\ndef function_here(): pass")
    assert "[hint] only_here is a variable of the notebook: pass it in with -i only_here\n" in notebook.run("%session only_here").text
    for name in ("in_neither", "json", "function_here"):
        assert "[hint]" not in notebook.run(f"%session {name}").text


@pytest.mark.long
def test_a_missing_file_is_answered_with_the_magic_that_copies_it(notebook: Notebook) -> None:
    notebook.run("import os; os.makedirs('deep'); [open(name, 'w').close() for name in ('my data.csv', 'deep/one.csv', '.secret')]")
    says = "[hint] a session sees no files of this machine: copy them in with %session_put "
    for path, command in (
        ("my data.csv", "'my data.csv'"),
        ("/mnt/data/my data.csv", "'my data.csv'"),
        ("deep/one.csv", "deep/one.csv deep/one.csv"),
        ("other.csv", "PATH"),
        (".secret", "PATH"),
        ("deep/../.secret", "PATH"),
        ("/etc/nosuch", "PATH"),
        ("deep", "PATH"),
    ):
        assert notebook.run(f"%%session\nopen({path!r})").stream("stderr") == f"{says}{command}\n"
    notebook.run("%session_put deep/one.csv deep/one.csv")
    assert notebook.run("%session open('deep/one.csv').read()").text == "''"
    assert "%session_put -n one PATH" in notebook.run("%%session one\nopen('other.csv')").stream("stderr")
    assert "[hint]" not in notebook.run("%%session\nimport subprocess; subprocess.run(['nosuch'])").text


def test_a_rollback_returns_to_a_checkpoint(notebook: Notebook) -> None:
    notebook.run("%session -n time x = 1")
    assert notebook.run("%session_checkpoint -n time first").text == "taken: checkpoint 1 first\n"
    notebook.run("%session -n time x = 2")
    assert notebook.run("%session_rollback -n time first").text == "back at checkpoint 1 first\n"
    assert notebook.run("%session -n time x").text == "1"
    assert "'second' does not exist" in notebook.run("%session_rollback -n time second").text
    assert notebook.run("%session_checkpoints time").text == "checkpoint 1 first\n"


def test_a_session_is_exported_with_the_cells_of_all_magics(notebook: Notebook) -> None:
    notebook.run("given = {'a': [1, None, 'text']}")
    notebook.run("%%session export -i given -o given\ngiven['a']")
    notebook.run("%session_export -n export 'exported.ipynb'")
    exported = nbformat.read(notebook.run("import os; os.path.abspath('exported.ipynb')").text.strip("'"), as_version=4)
    nbformat.validate(exported)
    assert [cell.source for cell in exported.cells] == ["given = {'a': [1, None, 'text']}", "given['a']"]
    assert exported.cells[1].outputs[0]["data"]["text/plain"] == "[1, None, 'text']"
    assert "UsageError" in notebook.run("%session_export -n export exported.txt").text


FRAME = """
import numpy as np, pandas as pd
frame = pd.DataFrame(
    {
        "n": [1, 2, 3],
        "f": [0.1, np.nan, 1e300],
        "t": ["a", None, "é"],
        "b": [True, False, True],
        "when": pd.to_datetime(["2024-01-01", None, "2024-01-03"]),
        "zone": pd.date_range("2024-01-01", periods=3, tz="Europe/Oslo"),
        "kind": pd.Categorical(["x", "y", "x"], ordered=True),
        "whole": pd.array([1, None, 3], dtype="Int64"),
        5: pd.to_timedelta([1, 2, 3], unit="s"),
    },
    index=pd.Index([9, 8, 7], name="row"),
)
"""
SAME = "pd.testing.assert_frame_equal(frame, back); float(back['f'].iloc[0])"


def test_plain_values_go_in_and_out_unchanged(notebook: Notebook) -> None:
    notebook.run("plain = [1, 2.5, float('inf'), 'nan', None, {'k': [True]}]")
    notebook.run("%%session values -i plain -o again,numbers\nimport numpy\nagain = plain; numbers = [numpy.float64(0.5), numpy.int64(3)]")
    assert notebook.run("again == plain, numbers").text == "(True, [0.5, 3])"


PLAIN = """
import datetime as dt, zoneinfo
oslo = zoneinfo.ZoneInfo("Europe/Oslo")
values = [
    (), (1,), [(2, float("-inf"))], {"k": ("nan", None), 1: {2, "x"}, (3, 4): set()},
    dt.date(2024, 2, 29), dt.datetime(2024, 1, 1, 12, 30), dt.time(1, 2, 3, 4), dt.timedelta(-1, 5),
    dt.datetime(2024, 10, 27, 2, 30, tzinfo=oslo, fold=1), dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc), oslo,
    dt.time(1, tzinfo=dt.timezone(dt.timedelta(hours=-3.5), "name")),
]
def describe(values):
    return [(value, type(value), getattr(value, "fold", 0), getattr(value, "tzinfo", None)) for value in values]
"""


def test_tuples_sets_and_times_go_in_and_out_unchanged(notebook: Notebook) -> None:
    notebook.run(PLAIN)
    assert notebook.run(f"%%session values -i values -o back\nback = values\n{PLAIN}\ndescribe(back) == describe(values)").text == "True"
    assert notebook.run("describe(back) == describe(values)").text == "True"


def test_a_long_plain_value_goes_in(notebook: Notebook) -> None:
    notebook.run("long = [0.1, 'text'] * 100_000")
    assert notebook.run("%%session values -i long\nlong == [0.1, 'text'] * 100_000").text == "True"


COLUMNS = """
import datetime as dt, numpy as np, pandas as pd
index = pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["x", None])
columns = {
    "named": pd.Series([1.5, None], index=index, name="n"),
    "texts": pd.Series(["x", None]),
    "zone": pd.Series(pd.to_datetime(["2024-01-01", None]).tz_localize("Europe/Oslo"), name=("t", 1)),
    "spans": pd.Series(pd.to_timedelta([1, None], unit="s")),
    "days": pd.Series([dt.date(2024, 1, 1), None, pd.NaT, float("nan"), dt.time(2), [1, (2,)]]),
    "moments": pd.Series([dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc), pd.Timestamp("2024-01-01", tz="Europe/Oslo")], dtype="object"),
    "table": pd.DataFrame({"k": ["a", "b"], "v": [1, 2], "w": [3, 4]}).groupby("k").agg({"v": ["min", "max"], "w": ["min"]}),
}
arrays = {
    "whole": np.array([1, 2], dtype="int16"), "cube": np.arange(24.0).reshape(2, 3, 4), "flags": np.array([True, False]),
    "empty": np.zeros((0, 5), dtype="float32"), "times": np.array(["2024-01-01", "NaT"], dtype="datetime64[s]"),
}
scalars = [pd.Timestamp("2024-01-01 12:00:00.000000001", tz="Europe/Oslo"), pd.Timedelta(5, "ns"), pd.Timestamp("2024-01-01")]
stamp, gone = scalars[0], [pd.NaT, pd.NA]
globals().update(columns | arrays)
"""
CHECK = """
for name, value in columns.items():
    test = pd.testing.assert_frame_equal if name == "table" else pd.testing.assert_series_equal
    test(got[name], value)
    assert type(got[name].iloc[0]) is type(value.iloc[0]), name
for name, value in arrays.items():
    np.testing.assert_array_equal(got[name], value)
    assert (got[name].dtype, got[name].shape, got[name].flags.writeable) == (value.dtype, value.shape, True), name
assert (got["scalars"], got["stamp"], got["stamp"].tz) == (scalars, scalars[0], scalars[0].tz)
assert got["gone"][0] is pd.NaT and got["gone"][1] is pd.NA
"""


@pytest.mark.long
def test_a_large_array_goes_out(notebook: Notebook) -> None:
    notebook.run("%%session values -o large\nimport numpy as np\nlarge = np.random.default_rng(1).random((2000, 2000))")
    assert notebook.run("import numpy as np\n(large == np.random.default_rng(1).random((2000, 2000))).all()").text == "np.True_"


@pytest.mark.long
def test_series_arrays_and_times_of_pandas_go_in_and_out_unchanged(notebook: Notebook) -> None:
    names = "named,texts,zone,spans,days,moments,table,whole,cube,flags,empty,times,scalars,stamp,gone"
    notebook.run(COLUMNS)
    cell = notebook.run(
        f"%%session values -i {names} -o {names}\ngot = {{name: globals()[name] for name in '{names}'.split(',')}}\n{COLUMNS}{CHECK}"
    )
    assert (cell.reply["status"], cell.text) == ("ok", "")
    notebook.run(f"got = {{name: globals()[name] for name in '{names}'.split(',')}}")
    cell = notebook.run(f"{COLUMNS}\nassert got['cube'] is not cube\n{CHECK}")
    assert (cell.reply["status"], cell.text) == ("ok", "")


@pytest.mark.long
def test_a_frame_goes_in_and_out_unchanged(notebook: Notebook) -> None:
    notebook.run(FRAME)
    assert notebook.run("%%session values -i frame -o back\nback = frame\ntype(frame).__name__").text == "'DataFrame'"
    assert notebook.run(SAME).text == "0.1"


@pytest.mark.parametrize(
    ("line", "setup", "said"),
    [
        ("-i missing", "", "this notebook has no variable of that name"),
        (
            "-i given",
            "given = {'a': b'x'}",
            "given cannot be passed to the session: a value of the type bytes cannot be copied: write it to a",
        ),
        ("-i given", "from decimal import Decimal; given = [Decimal(1)]", "of the type Decimal cannot be copied: use float(…) or str(…)"),
        (
            "-i given",
            "import dateutil.tz, datetime; given = datetime.datetime.now(dateutil.tz.gettz())",
            "its time zone cannot be copied: use",
        ),
        ("-i given", "given = {n: n for n in range(20_000)}", "more than 10000 items must have texts as keys: use a list or a DataFrame"),
        ("-i given", "given = []\ngiven.append(given)", "must not be nested"),
        ("-i given", "given = 'x' * 68_000_000", "at most 67108864 bytes, got 68000002: write it to a file"),
        pytest.param(
            "-i given",
            "given = [0] * 9_000_000",
            "at most 8388608 texts and other values: install pyarrow on both sides, or write it",
            marks=pytest.mark.long,
        ),
        pytest.param(
            "-i given",
            "import pandas as pd; given = pd.DataFrame({'c': [1j]})",
            "the column 'c' has the type complex128",
            marks=pytest.mark.long,
        ),
        ("-i 2x", "", "must be an identifier, got '2x'"),
        ("-o missing", "", "the session has no variable missing"),
        (
            "-o sys",
            "",
            "sys cannot be passed from the session: a value of the type module cannot be copied: define or import it on the other side too",
        ),
        ("--file nothing.txt", "", "--file nothing.txt cannot be read"),
        ("--timeout soon", "", "must be a number of seconds above 0"),
        ("--nosuch", "", "unrecognized arguments: --nosuch: %session -h prints the options"),
    ],
)
def test_a_mistake_is_an_error_that_says_what_to_do(notebook: Notebook, line: str, setup: str, said: str) -> None:
    notebook.run(setup)
    cell = notebook.run(f"%%session mistakes {line}\nimport sys")
    assert cell.reply["ename"] == "UsageError"
    assert said in cell.text


LIMITS = (
    "magics = get_ipython().magics_manager.registry['SessionMagics']\n"
    "magics._timeout, magics._opened[1]._leases._idle_timeout.total_seconds()"
)


def test_sessions_and_cells_of_a_notebook_may_last_a_day(notebook: Notebook) -> None:
    notebook.run("%session 1")
    assert notebook.run(LIMITS).text == "(86400.0, 86400.0)"


@pytest.mark.long
def test_the_settings_limit_the_time_of_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACASessions__SessionPool__SessionTimeoutMinutes", "5")
    monkeypatch.setenv("ACASessions__Sandbox__Limits__CellTimeoutSeconds", "0.5")
    notebook = Notebook()
    try:
        assert "longer than 0.5 s" in notebook.run("%%session\nwhile True: pass").reply["evalue"]
        assert notebook.run(LIMITS).text == "(None, 300.0)"
    finally:
        notebook.close()


@pytest.mark.long
def test_settings_that_are_wrong_are_an_error_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACASessions__Sandbox__Limits__CellTimeoutSeconds", "soon")
    notebook = Notebook()
    try:
        cell = notebook.run("%session 1")
        assert cell.reply["ename"] == "UsageError"
        assert "CellTimeoutSeconds" in cell.text
    finally:
        notebook.close()


def test_a_cell_over_its_time_reports_it(notebook: Notebook) -> None:
    cell = notebook.run("%%session one --timeout 0.2\nwhile True: pass")
    assert cell.reply["ename"] == "TimeoutError"
    assert "longer than 0.2 s" in cell.reply["evalue"]


def test_markdown_and_formulas_are_rendered_without_scripts(notebook: Notebook) -> None:
    shows = "SVG('<svg/>'), Markdown('# h $x^2$ <script>'), Latex('$$y$$'), {'application/json': 'no json'}"
    code = f"from IPython.display import *\ndisplay({shows})"
    shown = [output["data"].get("text/html", "") for output in notebook.run(f"%%session one\n{code}").outputs if "data" in output]
    assert shown[0].startswith('<img src="data:image/svg')
    assert "<h1>h <span><math" in shown[1]
    assert "script" not in shown[1]
    assert '<math display="block"><mrow><mi>y</mi></mrow></math>' in shown[2]
    assert shown[3] == ""


@pytest.mark.long
def test_a_package_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(tmp_path / "wheels", "alpha", "2.0")
    monkeypatch.setenv("ACASessions__Packages__WheelFolder", str(tmp_path / "wheels"))
    notebook = Notebook()
    try:
        assert notebook.run("%session_install 'alpha>=1'").text == "installed alpha 2.0\n"
        assert notebook.run("%session __import__('alpha').version").text == "'2.0'"
        failed = notebook.run("%session_install nosuch")
        assert failed.reply["status"] == "error"
        assert "nosuch" in failed.text + "".join(failed.reply["traceback"])
    finally:
        notebook.close()


@pytest.mark.long
def test_run_all_stops_at_the_first_error() -> None:
    """nbclient runs a notebook as Jupyter's Run All does; papermill uses it too."""
    sources = ("%load_ext aca_sessions", "%%session\n1 / 0", "%%session\n2")
    notebook = new_notebook(cells=[new_code_cell(source) for source in sources])
    with pytest.raises(CellExecutionError, match=r"ZeroDivisionError.*: division by zero"):
        NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    assert notebook.cells[2].execution_count is None


@pytest.mark.long
def test_the_sample_notebook_runs_and_draws(tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "samples" / "data_analysis.ipynb", as_version=4)
    NotebookClient(notebook, timeout=240, kernel_name="python3").execute()
    shown = [output.get("data", {}) for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    images = [base64.b64decode(data["image/png"]) for data in shown if "image/png" in data]
    assert [image[:8] for image in images] == [PNG]
    assert any("435" in data.get("text/plain", "") or "255" in data.get("text/plain", "") for data in shown)


def test_a_result_shows_itself_and_escapes_what_it_holds() -> None:
    result = CodeExecutionResult(
        stdout="<b>out</b>",
        stderr="<i>err</i>",
        displays=(Display({"text/html": '<script>x("y")</script>'}), Display({"image/png": base64.b64encode(PNG).decode()})),
        error=CodeError("E", "m"),
        state=State(variables="lost", reason="crash"),
    )
    html = result._repr_mimebundle_()["text/html"]
    assert "&lt;b&gt;out&lt;/b&gt;" in html
    assert "<script>" not in html
    assert "Scripts of this output do not run here" in html
    assert "data:image/png;base64,iVBORw0KGgo=" in html
    assert "lost: crash" in html
    assert 'srcdoc="&lt;script&gt;x(&quot;y&quot;)&lt;/script&gt;"' in mimebundle(result, html="raw")["text/html"]
