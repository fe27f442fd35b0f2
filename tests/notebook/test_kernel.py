"""Test the Jupyter kernel: cells of a notebook run in a session."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from aca_sessions.cli.main import main

from ..conftest import COMMAND
from .kernels import Cell, Notebook

pytestmark = pytest.mark.slow

STRANGE = "raise RuntimeError('a module of the notebook folder was imported outside of the sandbox')"


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Install the kernel for Jupyter, and go to a folder of notebooks which has modules and settings of a stranger."""
    data, folder = tmp_path_factory.mktemp("jupyter"), tmp_path_factory.mktemp("notebooks")
    for module in ("aca_sessions", "ipykernel", "zmq", "pandas"):
        (folder / f"{module}.py").write_text(STRANGE)
    (folder / "appsettings.json").write_text(json.dumps({"ACASessions": {"Sandbox": {"Mounts": [{"Host": "/etc", "Guest": "/mnt/host"}]}}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_DATA_DIR", str(data))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(data / "runtime"))
        patch.chdir(folder)
        subprocess.run([*COMMAND, "kernel", "install"], check=True, stdout=subprocess.DEVNULL, cwd=data)
        yield folder


@pytest.fixture(scope="module")
def notebook(jupyter: Path) -> Iterator[Notebook]:
    opened = Notebook("aca-sessions")
    yield opened
    if opened.client.channels_running:
        opened.close()


def kinds(cell: Cell) -> list[str]:
    return [one["output_type"] for one in cell.outputs]


@pytest.mark.long
def test_nbclient_runs_a_notebook_in_a_session(jupyter: Path) -> None:
    sources = (
        "import os, sys\nx = 20\nprint('out'); print('err', file=sys.stderr)\nx + 22",
        "from IPython.display import HTML, display\ndisplay(HTML('<b>shown</b>'))\nHTML('<b>value</b><script>bad()</script>')",
        "os.path.exists('/mnt/host'), os.getcwd(), 'aca_sessions.py' in os.listdir()",
        "os._exit(3)",
        "'x' in globals()",
    )
    cells = [new_code_cell(source) for source in sources]
    NotebookClient(new_notebook(cells=cells), kernel_name="aca-sessions", allow_errors=True, timeout=240).execute()
    first, rich, place, died, after = ([dict(output) for output in cell.outputs] for cell in cells)
    assert [(one["output_type"], one.get("text")) for one in first[:2]] == [("stream", "out\n"), ("stream", "err\n")]
    assert (first[2]["output_type"], first[2]["data"]) == ("execute_result", {"text/plain": "42"})
    assert [one["output_type"] for one in rich] == ["display_data", "execute_result"]
    assert "<b>value</b>" in rich[1]["data"]["text/html"]
    assert "<script" not in rich[1]["data"]["text/html"]
    assert place[0]["data"]["text/plain"] == "(False, '/mnt/data', False)"
    assert died[0]["text"] == "[session state lost: exit; variables from before are gone, files are kept]\n"
    assert died[1]["ename"] == "InterpreterDied"
    assert after[0]["data"]["text/plain"] == "False"
    nbformat.validate(new_notebook(cells=cells))


@pytest.mark.long
def test_cells_are_numbered_as_in_their_tracebacks(notebook: Notebook) -> None:
    notebook.run("import os; os._exit(3)")
    assert notebook.run("1").reply["execution_count"] == 1
    cell = notebook.run("1 / 0")
    assert cell.reply["execution_count"] == 2
    assert "Cell In[2], line 1" in "".join(cell.reply["traceback"])
    assert notebook.run("6 * 7", silent=True).outputs == []
    assert kinds(notebook.run("6 * 7", store_history=False)) == ["execute_result"]
    assert notebook.run("silent = 1\n1 / 0", silent=True).reply["ename"] == "ZeroDivisionError"
    assert notebook.run(" ").reply["execution_count"] == 2
    assert notebook.run("silent, len(In)").text == "(1, 4)"
    assert notebook.client.history(hist_access_type="tail", n=2, reply=True, timeout=240)["content"]["history"] == [
        [0, 2, "1 / 0"],
        [0, 3, "silent, len(In)"],
    ]


@pytest.mark.long
def test_a_later_cell_replaces_a_display(notebook: Notebook) -> None:
    begun = notebook.run("handle = display('one', display_id='d')")
    update = notebook.run("handle.update('two')")
    (shown,) = [one["content"] for one in begun.messages if one["msg_type"] == "display_data"]
    (changed,) = [one["content"] for one in update.messages if one["msg_type"] == "update_display_data"]
    assert shown["transient"] == changed["transient"] != {}
    assert changed["data"]["text/plain"] == "'two'"
    again = notebook.run("display('three', display_id='d');")
    assert [one["content"]["transient"] for one in again.messages if one["msg_type"] == "display_data"] == [shown["transient"]]
    assert notebook.run("from IPython.display import clear_output\nprint('gone')\nclear_output()").outputs == []


@pytest.mark.long
def test_input_is_asked_and_an_interrupt_ends_it(notebook: Notebook) -> None:
    cell = notebook.run("import getpass\nname = input('Name? '), getpass.getpass('Key? ')\nname", ("Ada", "plum"))
    assert cell.asked == [{"prompt": "", "password": False}, {"prompt": "Key? ", "password": True}]
    assert cell.text == "Name? ('Ada', 'plum')"
    assert notebook.run("input()", ("\x04",)).reply["ename"] == "EOFError"
    assert "[hint] this front end cannot ask" in notebook.run("input()").stream("stderr")
    asked = []

    def interrupt(message: dict) -> None:
        asked.append(message)
        notebook.manager.interrupt_kernel()

    reply = notebook.client.execute_interactive("input()", allow_stdin=True, stdin_hook=interrupt, output_hook=lambda _: None, timeout=240)
    assert (len(asked), reply["content"]["ename"]) == (1, "KeyboardInterrupt")
    assert notebook.run("name").text == "('Ada', 'plum')"


@pytest.mark.long
def test_the_first_interrupt_keeps_the_variables_and_the_second_ends_the_cell(notebook: Notebook) -> None:
    def interrupt(cell: Cell) -> None:
        if cell.outputs[-1].get("text") == "begun\n" or "interrupt again" in cell.outputs[-1].get("text", ""):
            notebook.manager.interrupt_kernel()

    notebook.run("import time\nkept = 1")
    assert notebook.run("print('begun')\ntime.sleep(600)", on_output=interrupt).reply["ename"] == "KeyboardInterrupt"
    assert notebook.run("kept").text == "1"
    stubborn = "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\nprint('begun')\nwhile True:\n    time.sleep(0.01)"
    cell = notebook.run(stubborn, on_output=interrupt)
    assert cell.reply["status"] == "error"
    assert "[session state lost: " in cell.stream("stderr")


@pytest.mark.long
def test_completion_help_and_complete_cells_come_from_the_session(notebook: Notebook) -> None:
    notebook.run("def greeting_of(name):\n    'Greet.'")
    assert notebook.complete("greeting_|") == ["greeting_of"]
    assert "Greet." in (notebook.inspect("greeting_of|") or "")
    assert "Greet." in notebook.run("greeting_of?").reply["payload"][0]["data"]["text/plain"]
    notebook.client.is_complete("def f():")
    assert notebook.client.get_shell_msg(timeout=240)["content"] == {"status": "incomplete", "indent": "    "}
    assert notebook.run("1", user_expressions={"a": "2"}).reply["user_expressions"]["a"]["ename"] == "NotSupportedError"


@pytest.mark.long
def test_a_widget_is_refused_with_a_line_that_says_so(notebook: Notebook) -> None:
    sent = notebook.client.session.msg("comm_open", {"comm_id": "one", "target_name": "jupyter.widget", "data": {}})
    notebook.client.shell_channel.send(sent)
    received: list[dict] = []
    while not (received and received[-1]["content"] == {"execution_state": "idle"}):
        message = notebook.client.get_iopub_msg(timeout=240)
        received += [message] if message["parent_header"].get("msg_id") == sent["header"]["msg_id"] else []
    closed, line = received[1:3]
    assert (closed["msg_type"], closed["content"]["comm_id"]) == ("comm_close", "one")
    assert line["content"]["text"].startswith("[widgets are not available in this kernel")
    info = notebook.client.kernel_info(reply=True, timeout=240)["content"]
    assert (info["implementation"], info["supported_features"]) == ("aca_sessions", [])


@pytest.mark.long
def test_one_line_installs_packages_in_the_session(notebook: Notebook) -> None:
    cell = notebook.run("%pip install --quiet 'not a name'")
    assert (cell.reply["status"], cell.reply["ename"]) == ("error", "InvalidRequirementError")
    assert "`%pip install PACKAGE`, in a cell of its own" in notebook.run("import no_such_package").stream("stderr")


@pytest.mark.long
def test_a_restart_and_a_shutdown_end_the_session(notebook: Notebook) -> None:
    notebook.run("here = 1")
    notebook.manager.restart_kernel()
    notebook.client.wait_for_ready(timeout=240)
    assert notebook.run("'here' in globals()").text == "False"
    children = Path(f"/proc/{notebook.manager.provisioner.pid}/task/{notebook.manager.provisioner.pid}/children").read_text().split()
    notebook.close()
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < end:
        time.sleep(0.05)
    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []


@pytest.mark.long
def test_a_sandbox_that_cannot_start_fails_the_cell(jupyter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACASessions__Sandbox__Python", "/nowhere/python")
    opened = Notebook("aca-sessions")
    try:
        cell = opened.run("1")
        assert cell.reply["status"] == "error"
        assert "/nowhere/python" in cell.reply["evalue"]
        assert opened.complete("pri|") == []
    finally:
        opened.close()


def test_install_and_remove_leave_kernels_of_other_programs_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["kernel", *arguments, "--prefix", str(tmp_path)])
        return int(ended.value.code or 0), "".join(capsys.readouterr())

    kernels = tmp_path / "share" / "jupyter" / "kernels"
    (tmp_path / "settings").mkdir()
    assert run("install", "--name", "own", "--html", "raw", "--settings", str(tmp_path / "settings")) == (0, f"installed: {kernels}/own\n")
    written = json.loads((kernels / "own" / "kernel.json").read_text())
    assert written["argv"][:3] == [sys.executable, "-P", "-m"]
    assert written["argv"][4:8] == ["--folder", str(tmp_path / "settings"), "--html", "raw"]
    assert written["interrupt_mode"] == "message"
    assert run("remove", "--name", "own") == (0, f"removed: {kernels}/own\n")
    assert run("remove", "--name", "own")[0] == 2
    (kernels / "python3").mkdir()
    (kernels / "python3" / "kernel.json").write_text("{}")
    for action in ("install", "remove"):
        status, text = run(action, "--name", "python3")
        assert (status, "is the kernel of another program" in text) == (2, True)
    assert run("install", "--name", "../up")[0] == 2
    assert run("install", "--settings", str(tmp_path / "missing"))[0] == 2
