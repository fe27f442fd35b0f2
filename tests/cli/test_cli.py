"""Test the command line as a shell uses it."""

import asyncio
import importlib.metadata
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import httpx
import pytest

import aca_sessions as aca_sessions_package
from aca_sessions import Settings, open_pool
from aca_sessions.cli.serving import listen_on_port
from aca_sessions.hosting import key_digits

from ..conftest import COMMAND, aca_sessions, descendants, mostly_long
from ..wheels import make_wheel

pytestmark = pytest.mark.slow


def test_a_cell_prints_its_output_and_value() -> None:
    run = aca_sessions("run", "print('hello')\n6 * 7")
    assert (run.stdout, run.stderr, run.returncode) == ("hello\n42\n", "", 0)


def test_code_may_come_from_standard_input() -> None:
    assert aca_sessions("run", "-", stdin="6 * 7").stdout == "42\n"


def test_a_failed_cell_is_exit_code_1_with_its_traceback_on_stderr() -> None:
    run = aca_sessions("run", "print('out')\n1 / 0")
    assert (run.stdout, run.returncode) == ("out\n", 1)
    assert run.stderr.rstrip().endswith("ZeroDivisionError: division by zero")


@pytest.mark.long
def test_json_holds_everything() -> None:
    result = json.loads(aca_sessions("run", "--json", "print('out'); 6 * 7").stdout)
    assert (result["success"], result["stdout"], result["value"], result["state"]) == (True, "out\n", 42, "kept")


@pytest.mark.long
def test_a_file_is_there_for_the_cell(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("content")
    assert aca_sessions("run", "--file", str(tmp_path / "data.txt"), "open('data.txt').read()").stdout == "'content'\n"


def test_a_file_is_run_with_its_arguments_and_its_images_and_files_are_brought_out(tmp_path: Path) -> None:
    (tmp_path / "my tool.py").write_text(
        "import sys\nfrom IPython.display import Image, display\n"
        "display(Image(b'\\x89PNG', format='png'))\nopen('out.txt', 'w').write('result')\n"
        "print(sys.argv[1:], __name__)\n1 / 0\n"
    )
    run = aca_sessions("run", "--get", "out.txt", "--get", "none.txt", "my tool.py", "$a", "{b} *", "--get", "--", "--help")
    assert (run.stdout, run.returncode) == ("['$a', '{b} *', '--get', '--', '--help'] __main__\n", 1)
    assert "my tool.py:6" in run.stderr
    assert "IPython" not in run.stderr
    assert run.stderr.endswith(
        "[image saved: image-1.png]\n[file saved: out.txt]\naca-sessions: --get none.txt: the session has no such file\n"
    )
    assert (tmp_path / "image-1.png").read_bytes() == b"\x89PNG"
    assert (tmp_path / "out.txt").read_text() == "result"
    assert sorted(os.listdir(tmp_path)) == ["image-1.png", "my tool.py", "out.txt"]


@pytest.mark.parametrize("form", mostly_long(["code", "file", "input"], "file"))
@pytest.mark.parametrize(
    ("given", "code", "said"), mostly_long([("", 0, ""), ("0", 0, ""), ("3", 3, ""), ("-1", 255, ""), ("'bye'", 1, "bye\n")], every=3)
)
def test_sys_exit_is_the_exit_code_as_in_python(tmp_path: Path, form: str, given: str, code: int, said: str) -> None:
    program = f"import sys\nprint('out')\nsys.exit({given})"
    (tmp_path / "a.py").write_text(program)
    arguments = {"code": program, "file": "a.py", "input": "-"}
    run = aca_sessions("run", arguments[form], stdin=program if form == "input" else "")
    assert (run.stdout, run.stderr, run.returncode) == ("out\n", said, code)


@pytest.mark.long
def test_json_reports_sys_exit_as_in_python() -> None:
    succeeded = json.loads(aca_sessions("run", "--json", "import sys; sys.exit()").stdout)
    assert (succeeded["success"], succeeded["exit_code"], succeeded["error"], succeeded["stderr"]) == (True, 0, None, "")
    failed = aca_sessions("run", "--json", "import sys; sys.exit(3)")
    result = json.loads(failed.stdout)
    assert (failed.returncode, result["success"], result["exit_code"]) == (3, False, 3)
    assert (result["error"]["message"], result["stderr"]) == ("3", "")


@pytest.mark.long
def test_an_interpreter_that_ended_itself_is_exit_code_1_and_reported_once() -> None:
    run = aca_sessions("run", "import os; print('out'); os._exit(5)")
    assert (run.stdout, run.returncode) == ("out\n", 1)
    assert run.stderr == "InterpreterDied: the session's interpreter ended (exit)\n"  # its variables and files are gone in any case


@pytest.mark.long
def test_questions_are_answered_by_lines_of_standard_input() -> None:
    run = aca_sessions("run", "import getpass\nprint([input('n? '), getpass.getpass(), input()])\ninput()", stdin="one\r\ntwo\nthree")
    assert (run.stdout, run.returncode) == ("n? ['one', 'two', 'three']\n", 1)
    assert run.stderr.endswith("EOFError: EOF when reading a line\n")  # as Python says it, and not that a user declined


def test_standard_input_can_be_read_as_a_file() -> None:
    code = "import sys\nprint([input(), sys.stdin.readline(), [*sys.stdin.buffer], sys.stdin.read()])"
    run = aca_sessions("run", code, stdin="one\ntwo\nthree\nfö\n")
    assert (run.stdout, run.returncode) == ("['one', 'two\\n', [b'three\\n', b'f\\xc3\\xb6\\n'], '']\n", 0)


@pytest.mark.long
def test_the_network_of_the_session_can_be_chosen() -> None:
    assert aca_sessions("run", "--network", "host", "__import__('socket').gethostbyname('localhost')").stdout == "'127.0.0.1'\n"


@pytest.mark.long
def test_json_saves_no_images(tmp_path: Path) -> None:
    run = aca_sessions("run", "--json", "from IPython.display import Image\nImage(b'\\x89PNG', format='png')")
    assert (len(json.loads(run.stdout)["displays"]), os.listdir(tmp_path)) == (1, [])


@pytest.mark.long
def test_an_image_leaves_the_name_of_a_file_that_is_brought_out(tmp_path: Path) -> None:
    code = "open('image-1.png', 'w').write('mine')\nfrom IPython.display import Image\nImage(b'\\x89PNG', format='png')"
    assert aca_sessions("run", "--get", "image-1.png", code).returncode == 0
    assert ((tmp_path / "image-1.png").read_text(), (tmp_path / "image-2.png").read_bytes()) == ("mine", b"\x89PNG")


@pytest.mark.long
def test_a_file_here_is_replaced_only_with_force_and_a_link_never(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "elsewhere" / "target")
    code = "print('ran')\nfor name in ('a.txt', 'link.txt'): open(name, 'w').write('theirs')"
    for arguments in (["a.txt"], ["link.txt"], ["link.txt", "--force"]):
        refused = aca_sessions("run", "--get", *arguments, code)
        assert (refused.returncode, refused.stdout, f"{arguments[0]} exists" in refused.stderr) == (2, "", True)
    assert ((tmp_path / "a.txt").read_text(), os.listdir(tmp_path / "elsewhere")) == ("mine", [])
    assert aca_sessions("run", "--get", "a.txt", "--force", code).returncode == 0
    assert (tmp_path / "a.txt").read_text() == "theirs"


@pytest.mark.long
def test_a_file_that_the_session_lacks_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    run = aca_sessions("run", "--get", "none.txt", "print('ran')")
    assert (run.returncode, run.stdout) == (2, "ran\n")
    assert (run.stderr, os.listdir(tmp_path)) == ("aca-sessions: --get none.txt: the session has no such file\n", [])


@pytest.mark.long
def test_files_are_brought_out_after_a_cell_that_was_killed(tmp_path: Path) -> None:
    run = aca_sessions("run", "--live", "--get", "a.txt", "import os; open('a.txt', 'w').write('kept'); os.kill(os.getpid(), 9)")
    assert (run.returncode, (tmp_path / "a.txt").read_text()) == (1, "kept")
    assert "[session state lost: killed; variables from before are gone, files are kept]" in run.stderr  # files matter with --get


@pytest.mark.long
def test_the_path_of_a_file_that_is_brought_out_stays_in_the_session(tmp_path: Path) -> None:
    code = "import os; os.mkdir('out'); open('out/a.txt', 'w').write('one')"
    assert aca_sessions("run", "--get", "out/a.txt", code).returncode == 0
    assert (tmp_path / "a.txt").read_text() == "one"


@pytest.mark.long
def test_packages_are_installed_before_the_cell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (wheels := tmp_path / "wheels").mkdir()
    make_wheel(wheels, "alpha")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ACASessions__Packages__WheelFolder", str(wheels))
    run = aca_sessions("run", "--with", "alpha", "import alpha; alpha.__name__")
    assert (run.stdout, run.stderr, run.returncode) == ("'alpha'\n", "", 0)
    make_wheel(wheels, "beta")
    assert aca_sessions("run", "--with", "alpha>=1,<3,beta", "import alpha, beta").returncode == 0
    (tmp_path / "a.py").write_text("# /// script\n# dependencies = [\n#   'beta>=1',\n# ]\n# ///\nimport beta\nprint(beta.__name__)\n")
    assert aca_sessions("run", "a.py").stdout == "beta\n"
    (tmp_path / "a.py").write_text("# /// script\n# dependencies = 'beta'\n# ///\n")
    assert "must be a list of texts" in aca_sessions("run", "a.py").stderr
    missing = aca_sessions("run", "--with", "alpha", "--with", "no-such-package", "print('ran')")
    assert (missing.stdout, missing.returncode) == ("", 1)
    assert "no-such-package" in missing.stderr
    as_json = json.loads(aca_sessions("run", "--json", "--with", "no-such-package", "print('ran')").stdout)
    assert as_json["error"]["name"] == "PackageNotFoundError"


def test_the_version_is_that_of_the_package() -> None:
    assert aca_sessions("--version").stdout == f"aca-sessions {aca_sessions_package.__version__}\n"
    installed = [one.version for one in importlib.metadata.distributions() if one.name in ("aca-sessions", "aca-sessions-core")]
    assert {*installed} == {aca_sessions_package.__version__}


@pytest.mark.long
def test_a_cell_over_its_time_reports_it() -> None:
    run = aca_sessions("run", "--timeout", "0.2", "while True: pass")
    assert (run.returncode, run.stderr) == (1, "TimeoutError: the cell ran longer than 0.2 s and was interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    mostly_long(
        [
            (["run", "--session", "mine", "1"], "`export ACASessions__Endpoint=URL ACASessions__ApiKey=KEY`"),
            (["run", "--file", "/nonexistent", "1"], "--file /nonexistent"),
            (["run", "--fil", "sales.csv", "1"], "unrecognized arguments: --fil"),
            (["run", "--timeout", "-1", "1"], "--timeout"),
            (["run", "--timeout", "soon", "1"], "--timeout"),
            (["run", "--timeout", "inf", "1"], "--timeout"),
            (["serve", "--max-sessions", "0"], "--max-sessions"),
            (["serve", "--cooldown", "inf"], "--cooldown"),
            (["serve", "--drain-seconds", "-1"], "must be a number of seconds from 0 to 86400, got '-1'"),
            (["serve", "--drain-seconds", "1e9"], "must be a number of seconds from 0 to 86400, got '1e9'"),
            (["serve", "--drain-seconds", "soon"], "must be a number of seconds from 0 to 86400, got 'soon'"),
            (["serve", "--socket", "/tmp/" + "x" * 200], "--socket"),
            (["run", "--endpoint", "nowhere", "1"], "Endpoint"),
            (["run", "--endpoint", "http://127.0.0.1:9", "1"], "`export ACASessions__ApiKey=KEY`"),
            (["run", "--memory", "1", "1"], "usage: aca-sessions run [-h]"),
            (["run"], "are required: CODE|FILE|- (code"),
            (["run", "none.txt"], "none.txt is not a file"),
            (["run", "./none"], "./none is not a file"),
            (["run", "."], ". is a folder without __main__.py: name a file in it"),
            (["run", "--network", "none", "--endpoint", "http://localhost:1", "1"], "--network is for sessions of this machine"),
            (["run", "1", "--json"], "options of `run` before it"),
            (["run", "none.py"], "none.py cannot be read: No such file or directory"),
            (["run", "1", "2"], "only a file can have arguments"),
            (["run", "--get", "..", "1"], "--get must name a file of the session, got .."),
            (["run", "--get", "", "1"], "--get must name a file of the session, got ''"),
            (["run", "--get", "a/x", "--get", "b/x", "1"], "another --get writes x already"),
            (["run", "--with", "--index-url=http://evil.example", "1"], "--with: expected one argument"),
            ([], "COMMAND"),
            (["serve", "--port", "70000"], "70000"),
            (["serve", "--socket", "/nonexistent/socket"], "--socket"),
            (["serve", "--no-api-key", "--api-key", "key"], "--no-api-key"),
            (["serve", "--no-api-key", "--api-key-file", "/dev/null"], "must hold a key"),
            (["serve", "--api-key-file", "/dev/null/none"], "--api-key-file /dev/null/none cannot be read"),
            (["serve", "--api-key-file", "/etc/hostname", "--api-key", "key"], "not allowed with"),
            (["serve", "--port", "0", "--tls-dir", "/tmp"], "--tls-dir has no effect without --tls: add --tls"),
            (["mcp", "--port", "8000"], "--port has no effect without --http: add --http"),
            (["mcp", "--api-key-file", "key.txt"], "--api-key-file has no effect without --http: add --http"),
            (["serve", "--port", "0", "--audit-code"], "--audit-code has no effect without --audit FILE"),
            (
                ["serve", "--port", "0", "--metrics-key", "key"],
                "--metrics-key (or $ACA_SESSIONS_METRICS_KEY) has no effect without --metrics",
            ),
            (["serve", "--port", "0", "--allowed-host", "http://x/"], "without scheme, port and path, got 'http://x/'"),
        ],
        (["run", "--session", "mine", "1"], "`export ACASessions__Endpoint=URL ACASessions__ApiKey=KEY`"),
        (["run", "--timeout", "soon", "1"], "--timeout"),
        (["run", "none.py"], "none.py cannot be read: No such file or directory"),
        (["run", "none.txt"], "none.txt is not a file"),
        (["serve", "--port", "70000"], "70000"),
        (["serve", "--drain-seconds", "-1"], "must be a number of seconds from 0 to 86400, got '-1'"),
    ),
)
def test_an_error_is_one_line(arguments: list[str], said: str) -> None:
    run = aca_sessions(*arguments)
    assert run.returncode == 2
    assert said in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("arguments", mostly_long([[""], ["--live", "  "], ["# nothing"]], [""]))
def test_an_empty_cell_succeeds_and_prints_nothing(arguments: list[str]) -> None:
    run = aca_sessions("run", *arguments)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.long
def test_a_reader_that_closes_the_pipe_causes_no_traceback() -> None:
    pipeline = f"{sys.executable} -m aca_sessions.cli.main run 'print(\"x\" * 500000)' | true"
    run = subprocess.run(["sh", "-c", pipeline], capture_output=True, text=True, timeout=240, check=False)
    assert "Traceback" not in run.stderr


@pytest.mark.long
def test_output_that_the_terminal_cannot_show_is_escaped() -> None:
    assert aca_sessions("run", "print('é')", env=os.environ | {"PYTHONIOENCODING": "ascii"}).stdout == "\\xe9\n"


def test_json_is_json_whatever_the_value() -> None:
    assert json.loads(aca_sessions("run", "--json", "float('nan')").stdout)["value"] == {"float": "nan"}


@pytest.mark.long
def test_nothing_of_the_host_is_shown() -> None:
    shadow = aca_sessions("run", 'open("/etc/shadow").read()')
    assert (shadow.stdout, shadow.returncode) == ("", 1)
    environment = aca_sessions("run", "import os; print(os.environ)", env=os.environ | {"SECRET": "hunter2"})
    assert "hunter2" not in environment.stdout + environment.stderr


@pytest.mark.long
def test_an_interrupted_command_ends_quietly() -> None:
    code = "print('ready', flush=True)\nwhile True: pass"
    listens = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background job may ignore SIGINT
    command = subprocess.Popen([*COMMAND, "run", "--json", code], stderr=subprocess.PIPE, text=True, preexec_fn=listens)
    deadline = time.monotonic() + 120
    while len(descendants(command.pid)) < 5 and time.monotonic() < deadline:  # three of the fork server, two of the session
        time.sleep(0.05)
    time.sleep(0.3)
    command.send_signal(signal.SIGINT)
    _, stderr = command.communicate(timeout=120)
    assert command.returncode == 130
    assert "Traceback" not in stderr


@pytest.mark.long
def test_doctor_reports_full_isolation_item_by_item() -> None:
    run = aca_sessions("doctor")
    assert run.returncode == 0, run.stdout
    assert run.stdout.endswith("isolation: full\nready: aca-sessions run 'print(6*7)'\n")
    for part in ("user namespace", "seccomp", "Landlock", "capabilities", "no host network"):
        assert part in run.stdout


@pytest.mark.long
def test_doctor_says_that_it_does_not_check_the_endpoint_that_is_set() -> None:
    run = aca_sessions("doctor", env=os.environ | {"ACASessions__Endpoint": "http://127.0.0.1:1", "ACASessions__ApiKey": "key"})
    assert "this report is about this machine" in run.stderr
    assert "`doctor --endpoint URL`" in run.stderr
    assert run.stdout.endswith("isolation: full\nready: aca-sessions run 'print(6*7)'\n")


@pytest.mark.long
def test_doctor_reports_how_many_sessions_fit_and_why() -> None:
    few = ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh", *COMMAND, "doctor"]
    run = subprocess.run(few, capture_output=True, text=True, timeout=100, check=False)
    (fit,) = (line for line in run.stdout.splitlines() if "sessions that fit" in line)
    numbers = re.search(
        r" (\d+): descriptors for (\d+) \(10 each, `ulimit -n` is 256\), memory for (\d+) that are idle \((\d+) MB each of (\d+) MB\) "
        r"or (\d+) that use all of theirs, processes for (\d+) \(2 each of \d+\)",
        fit,
    )
    fits, descriptors, memory, each, share, full, processes = map(int, numbers.groups())
    assert fits == min(descriptors, memory, processes) == descriptors
    assert 10 <= descriptors <= 19
    assert 0 < each < 100
    assert memory > full
    assert share * (1 << 20) < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.long
def test_doctor_checks_an_endpoint_step_by_step() -> None:
    with Server("--port", "0", "--api-key", "key") as server:
        good = aca_sessions("doctor", "--endpoint", server.endpoint, env=os.environ | {"ACASessions__ApiKey": "key"})
        assert good.returncode == 0, good.stdout
        assert good.stdout.rstrip().endswith("endpoint: usable")
        bad = aca_sessions("doctor", "--endpoint", server.endpoint, env=os.environ | {"ACASessions__ApiKey": "wrong"})
        assert (bad.returncode, "401" in bad.stdout) == (1, True)
    gone = aca_sessions("doctor", "--endpoint", "http://127.0.0.1:1", env=os.environ | {"ACASessions__ApiKey": "key"})
    assert (gone.returncode, "cannot be reached" in gone.stdout) == (1, True)


@pytest.mark.long
def test_conformance_reports_the_answers_of_an_endpoint(tmp_path: Path) -> None:
    with Server("--port", "0", "--api-key", "key", "--plain") as server:
        environment = os.environ | {"ACASessions__ApiKey": "key"}
        run = aca_sessions("conformance", "--endpoint", server.endpoint, "--report", str(tmp_path / "report.json"), env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert len(report) == len(run.stdout.splitlines()) > 20
    assert all(one["agrees"] for one in report)


class Server:
    """`aca-sessions serve` in a process of its own."""

    def __init__(self, *arguments: str, before: str = "") -> None:
        command = ["sh", "-c", f'{before} exec "$@"', "sh", *COMMAND, "serve", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.endpoint = self._said("Endpoint: ")

    def _said(self, what: str) -> str:
        line = self.process.stdout.readline()
        assert line.startswith(what), line + self.process.stderr.read()
        return line.removeprefix(what).strip()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.rest = self.process.communicate(timeout=120)

    def key(self) -> str:
        return self._said("ApiKey: ")


@pytest.mark.long
async def test_serve_makes_a_key_and_a_session_outlives_its_client() -> None:
    with Server("--port", "0") as server:
        settings = Settings(Endpoint=server.endpoint, ApiKey=server.key())
        environment = os.environ | {
            "ACASessions__Endpoint": server.endpoint,
            "ACASessions__ApiKey": settings.SessionsHttpClient.ApiKey.get_secret_value(),
        }
        aca_sessions("run", "--session", "mine", "x = 20", env=environment)
        assert aca_sessions("run", "--session", "mine", "x + 22", env=environment).stdout == "42\n"
        async with open_pool(settings) as pool, pool.session() as session:
            await session.upload_file("a.txt", b"hello")
            result = await session.run("open('a.txt').read()")
            assert (result.value, str(result.state)) == ("hello", "kept")
        wrong = aca_sessions("run", "1", env=environment | {"ACASessions__ApiKey": "wrong"})
        assert (wrong.returncode, "401" in wrong.stderr) == (2, True)
    assert server.process.returncode == 0
    written = "".join(server.rest)
    assert "mine" not in written


async def test_an_answer_on_an_open_connection_is_not_delayed_by_the_kernel() -> None:
    """Linux delays a small packet until the previous one is acknowledged, for up to 40 ms, unless TCP_NODELAY is set: tcp(7)."""
    told: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async with await asyncio.start_server(accept, sock=(listener := listen_on_port("127.0.0.1", 0))):
        _, writer = await asyncio.open_connection(*listener.getsockname())
        assert await told
        writer.close()


@pytest.mark.long
async def test_serve_on_a_socket_file_is_reachable_by_this_user_only(tmp_path: Path) -> None:
    path = tmp_path / "sessions.sock"
    with Server("--socket", str(path)) as server:
        assert server.endpoint == f"unix://{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with open_pool(endpoint=server.endpoint) as pool, pool.session() as session:
            assert (await session.run("6 * 7")).value == 42
    assert not path.exists()


@pytest.mark.long
async def test_a_served_cell_is_interrupted_when_its_caller_disconnects(tmp_path: Path) -> None:
    import asyncio

    with Server("--socket", str(tmp_path / "s")) as server:
        async with open_pool(endpoint=server.endpoint) as pool, pool.session() as session:
            await session.run("x = 5")
            running = asyncio.create_task(session.run("while True: pass"))
            await asyncio.sleep(0.2)
            running.cancel()
            await asyncio.wait({running})
            result = await session.run("x")
            assert (result.value, str(result.state)) == (5, "kept")


@pytest.mark.long
def test_serve_checks_the_host_header() -> None:
    with Server("--port", "0", "--api-key", "k", "--allowed-host", "friend.example") as server:

        def status(host: str) -> int:
            return httpx.get(f"{server.endpoint}/health", headers={"host": host}).status_code

        assert [status(host) for host in ("localhost", "127.0.0.1:99", "friend.example", "evil.example")] == [200, 200, 200, 403]


@pytest.mark.long
def test_serve_without_a_key_accepts_only_known_hosts() -> None:
    with Server("--port", "0", "--no-api-key") as server:
        files, query = f"{server.endpoint}/files", {"api-version": "2025-10-02-preview", "identifier": "some-session"}
        assert httpx.get(files, params=query).status_code == 200
        assert httpx.get(files, params=query, headers={"authorization": "Bearer of-somebody-else"}).status_code == 200
        assert httpx.get(files, params=query, headers={"host": "evil.example"}).status_code == 403


@pytest.mark.long
async def test_a_stopped_server_reports_it_in_the_results_of_running_cells(tmp_path: Path) -> None:
    import asyncio

    with Server("--socket", str(tmp_path / "s")) as server:
        async with open_pool(endpoint=server.endpoint) as pool, pool.session() as session:
            await session.run("x = 1")
            running = asyncio.create_task(session.run("print('before', flush=True)\nwhile True: pass"))
            await asyncio.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            result = await running
        await asyncio.to_thread(server.process.wait, 120)  # a second SIGTERM, from the end of the block, would not wait
    assert (result.success, result.stdout, str(result.state)) == (False, "before\n", "lost: killed")
    assert server.process.returncode == 0
    assert "Traceback" not in server.rest[1]


@pytest.mark.long
def test_a_second_server_does_not_replace_a_socket_file(tmp_path: Path) -> None:
    with Server("--socket", str(tmp_path / "s")):
        second = aca_sessions("serve", "--socket", str(tmp_path / "s"))
        assert (second.returncode, "--socket" in second.stderr) == (2, True)
        assert (tmp_path / "s").exists()


@pytest.mark.long
def test_the_module_and_the_script_are_the_same() -> None:
    script = Path(sys.executable).with_name("aca-sessions")
    assert subprocess.run([script, "run", "6 * 7"], capture_output=True, text=True, check=True).stdout == "42\n"


@pytest.mark.long
def test_lines_of_json_in_the_access_log_have_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACA_SESSIONS_API_KEY", "the-key")
    with Server("--port", "0", "--access-log", "--log-format", "json", "--drain-seconds", "0") as server:
        params = {"api-version": "2025-10-02-preview", "identifier": "the-secret"}
        with httpx.Client(base_url=server.endpoint, params=params) as client:
            client.get("/session", headers={"authorization": "Bearer the-key"})
            client.get("/session")
    lines = [line for line in map(json.loads, server.rest[1].splitlines()) if line.get("event") == "request"]
    hashed = lines[0]["session"]
    assert [[line[name] for name in ("level", "method", "route", "status", "session", "client", "key")] for line in lines] == [
        ["INFO", "GET", "/session", 400, hashed, "127.0.0.1", key_digits("the-key")],
        ["INFO", "GET", "any", 401, "-", "127.0.0.1", "-"],
    ]
    assert re.fullmatch(r"[0-9a-f]{12,}", hashed)
    assert {type(line["milliseconds"]) for line in lines} == {int}
    assert "the-" not in server.rest[1]


@pytest.mark.long
def test_the_access_log_contains_routes_and_no_secrets() -> None:
    with Server("--port", "0", "--api-key", "the-key", "--access-log") as server:
        params = {"api-version": "2025-10-02-preview", "identifier": "the-secret"}
        with httpx.Client(base_url=server.endpoint, params=params, headers={"authorization": "Bearer the-key"}) as client:
            client.post("/executions", json={"code": "'the-code'"})
            client.get("/files/the-file.txt/content")
            client.request("the-method", "/files", headers={"authorization": "Bearer the-wrong"})
            client.get("/files/the-file.txt", headers={"host": "the-host"})
    log = server.rest[1]
    assert "POST /executions 200 session " in log
    assert "GET /files/{name:path} 404 session " in log
    assert "- any 401 session - " in log
    assert "GET any 403 session - " in log
    assert "the-" not in log
