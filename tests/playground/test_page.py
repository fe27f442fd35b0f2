"""Test the playground as a person uses it."""

import json
import os
import time
from pathlib import Path

import httpx
import nbformat
import pytest

from ..cli.test_cli import Server
from ..conftest import ROOT
from ..wheels import make_wheel
from .browser import Browser
from .conftest import KEY, Playground, opened

pytestmark = [pytest.mark.slow, pytest.mark.long]
_CHART = """chart = cities.plot.barh("city", "people", legend=False, figsize=(7.4, 2))
chart.set_title("People, in thousands", fontsize=11)
chart.spines[["top", "right"]].set_visible(False)"""
PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.title('people')\nplt.show()"
UNTIL_GO = "import os, time\nprint('begun', flush=True)\nwhile not os.path.exists('go.txt'): time.sleep(0.02)\nprint('gone on')"


def test_output_appears_while_the_cell_runs_and_a_dropped_file_reaches_it(playground: Playground, tmp_path: Path) -> None:
    (tmp_path / "go.txt").write_text("go")
    playground.start(UNTIL_GO)
    playground.page.wait("document.querySelector('.stream')?.innerText === 'begun\\n'")
    assert playground.page.evaluate("document.querySelector('.cell').getAttribute('aria-busy')") == "true"
    playground.page.drop(tmp_path / "go.txt", "#transcript")
    assert "begun\ngone on" in playground.ended()


def test_a_question_of_a_cell_is_answered_in_its_place(playground: Playground) -> None:
    playground.start("name = input('Who? ')\nprint('Hello', name)")
    playground.page.wait("document.activeElement.closest('.ask')")
    playground.page.write("Ada")
    playground.page.press("Enter")
    assert "Who? Ada\nHello Ada" in playground.ended()
    assert playground.page.evaluate("document.activeElement.id") == "source"


def test_a_cell_that_waits_says_so_and_the_clock_goes_on_after_a_reload(playground: Playground, tmp_path: Path) -> None:
    page = playground.page
    (tmp_path / "go.txt").write_text("go")
    playground.start(UNTIL_GO)
    playground.start("'second'")
    page.wait("parseInt(document.querySelector('.cell .running').innerText.replace('Running … ', '')) >= 4")
    assert page.text(".cell:last-child .running") == "Waiting …"
    page.wait("document.querySelector('.state-of-session.running')")
    badge = "document.querySelector('.state-of-session.running')"
    assert page.evaluate(f"[getComputedStyle({badge}).paddingLeft, getComputedStyle({badge}, '::before').content]") == ["0px", "none"]
    page.reload()
    clock = "document.querySelector('.cell .running')?.innerText"
    shown = page.wait(f"/^Running … [0-9]/.test({clock}) && {clock}")
    assert float(shown.split()[2]) >= 2
    assert [page.text(f"#{id}") for id in ("files", "variables", "packages", "checkpoints")] == ["Shown when the cell has ended."] * 4
    page.choose(tmp_path / "go.txt", "#upload")
    assert "'second'" in playground.ended()
    page.wait("document.querySelector('#files .row')")


def test_a_completion_does_not_hold_up_a_cell(playground: Playground) -> None:
    page = playground.page
    playground.run("import time\nclass Slow:\n    def __dir__(self): time.sleep(50); return []\nslow = Slow()")
    for act in (lambda: playground.run("real"), lambda: page.press("Escape")):
        page.write("slow.")
        before = len(_sent(playground, "/executions?"))
        page.press("Tab")
        while len(_sent(playground, "/executions?")) == before:  # pytest's timeout ends a test that hangs
            time.sleep(0.05)
        act()
        assert _sent(playground, "/interrupt?")[-1].partition("/interrupt?")[0].rpartition("/")[2].startswith("page-own-")


def test_tab_shows_that_it_looks_and_that_it_found_nothing(playground: Playground) -> None:
    page = playground.page
    playground.run("import time\nclass Slow:\n    def __dir__(self): time.sleep(2); return []\nslow = Slow()")
    page.write("slow.zzz")
    page.press("Tab")
    for shown in ("Looking for names …", "No name found."):
        page.wait(f"document.querySelector('#completions:not([hidden])')?.innerText === '{shown}'")
    page.write("z")
    page.wait("document.querySelector('#completions').hidden")


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize("hidden", [False, True])
def test_a_session_in_view_is_kept_and_for_an_hour_in_the_background(browser: Browser, *, hidden: bool) -> None:
    with Server("--port", "0", "--api-key", KEY, "--cooldown", "30") as short, opened(browser, short) as playground:
        playground.run("x = 1")
        playground.page.evaluate(f"Object.defineProperty(document, 'hidden', {{ value: {json.dumps(hidden)} }})")
        before = _described(short)["lastAccessedAt"]
        while _described(short)["lastAccessedAt"] == before:  # pytest's timeout ends a test that hangs
            time.sleep(0.2)
        playground.page.click("#new-session button")  # the other one goes on to be kept
        before = _described(short)["lastAccessedAt"]
        while _described(short)["lastAccessedAt"] == before:
            time.sleep(0.2)
        playground.page.evaluate("{ const now = Date.now; Date.now = () => now() + 3_600_000; }")
        time.sleep(5)  # a list that was on its way has come
        lists = "performance.getEntriesByType('resource').filter(({ name }) => name.includes('/listSessions')).length"
        listed = playground.page.evaluate(
            f"new Promise((go) => {{ const before = {lists}; setTimeout(() => go({lists} - before), 9_000); }})"
        )
        assert (listed == 0) is hidden


def test_a_checkpoint_after_a_loss_shows_the_loss(playground: Playground) -> None:
    page = playground.page
    playground.run("x = 20")
    page.wait("document.querySelector('#variables').innerText.includes('20')")
    playground.run("import os, threading\nthreading.Timer(1, lambda: os._exit(1)).start()")
    panel = "document.querySelector('#variables-panel').dispatchEvent(new Event('toggle'))"
    page.wait(f"{panel} && document.querySelector('#variables').innerText === 'No variables yet.'")
    page.click("#checkpoint")
    page.wait("document.querySelectorAll('.notice').length === 2")
    assert page.evaluate("[...document.querySelectorAll('.notice')].map((one) => one.innerText.split(':')[0])") == [
        "State lost (exit)",
        "Checkpoint #1 is taken.",
    ]
    playground.run("'x' in globals()")
    assert playground.state() == "kept"


def test_an_upload_that_takes_long_is_shown(playground: Playground, tmp_path: Path) -> None:
    page = playground.page
    (tmp_path / "large.bin").write_bytes(bytes(8 << 20))
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1}
    page.send("Network.emulateNetworkConditions", **slow, uploadThroughput=1 << 16)
    page.choose(tmp_path / "large.bin", "#upload")
    page.wait("document.querySelector('.upload label').innerText === 'Uploading …'")
    page.send("Network.emulateNetworkConditions", **slow, uploadThroughput=-1)
    page.wait("document.querySelector('#files .row') && document.querySelector('.upload label').innerText === 'Upload …'")


def test_a_file_that_is_too_large_is_named_before_it_is_sent(playground: Playground, tmp_path: Path) -> None:
    page = playground.page
    (tmp_path / "large.csv").write_text("1,2\n")
    assert page.evaluate("document.querySelector('#upload').dataset.most") == str(128 << 20)
    page.evaluate("document.querySelector('#upload').dataset.most = 3")
    page.choose(tmp_path / "large.csv", "#upload")
    page.wait("document.querySelector('.refusal')")
    assert page.text(".refusal") == "large.csv (4 B) is too large: this server takes files of up to 3 B."
    assert _sent(playground, "/files?api-version") == []


def test_a_file_is_uploaded_read_written_downloaded_and_deleted(playground: Playground, browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "números.csv").write_text("1,2\n")
    (tmp_path / 'a "b" %22 \\ c.txt').write_bytes(b"\x00odd\r\n")
    page = playground.page
    page.choose(tmp_path / "números.csv", "#upload")
    page.wait("document.querySelector('#files .row')")
    page.choose(tmp_path / 'a "b" %22 \\ c.txt', "#upload")
    page.wait("document.querySelectorAll('#files .row').length === 2")
    assert "b'\\x00odd\\r\\n'" in playground.run("import os; open('a \"b\" %22 \\\\ c.txt', 'rb').read()")
    page.click("#files .row button:last-child")
    page.click("#files .row button:last-child")
    page.wait("document.querySelectorAll('#files .row').length === 1")
    playground.run("import os; os.makedirs('out', exist_ok=True)\nopen('out/sum.txt', 'w').write(open('números.csv').read() + '3')")
    page.wait("document.querySelectorAll('#files .row').length === 2")
    page.click("[aria-label='Download out/sum.txt']")
    assert _downloaded(browser.downloads / "sum.txt") == b"1,2\n3"
    page.click("[aria-label='Delete números.csv']")
    page.click("[aria-label='Delete números.csv']")
    page.wait("document.querySelectorAll('#files .row').length === 1")
    assert playground.run("os.listdir()").count("out") == 1


def test_a_wrong_key_is_reported_and_the_right_one_is_kept_for_the_tab_only(browser: Browser, server: Server) -> None:
    page = browser.open(f"{server.endpoint}/#key=wrong")
    page.wait("document.querySelector('#key-problem').textContent.includes('does not take the key of this address')")
    for key in ("wrong again", "schlüssel", "鍵", KEY):
        assert page.text("#sessions") == ""
        page.evaluate("document.querySelector('#key').select()")
        page.write(key)
        page.press("Enter")
        page.wait("document.querySelector('#key-problem').textContent.includes('take this key') || document.activeElement.id === 'source'")
    page.wait("document.activeElement.id === 'source'")
    kept = page.evaluate("[location.href, document.cookie, JSON.stringify(localStorage), document.body.innerHTML]")
    assert KEY not in "".join(kept)
    page.close()


def test_two_tabs_share_a_session(playground: Playground, browser: Browser, server: Server, tmp_path: Path) -> None:
    playground.run("x = 20")
    playground.start(UNTIL_GO)
    name = playground.page.wait("document.querySelector('.session[aria-current]')?.dataset.name")
    with opened(browser, server) as other:
        other.page.click(f".session[data-name='{name}']")
        other.page.wait("document.querySelector('.stream')?.innerText === 'begun\\n'")
        other.cells = 2
        assert "x = 20" in other.page.text(".cell")
        (tmp_path / "go.txt").write_text("go")
        other.page.choose(tmp_path / "go.txt", "#upload")
        for tab in (playground, other):
            assert "gone on" in tab.ended()
        assert "22" in other.run("x + 2")
        other.page.wait("document.querySelector('#variables').innerText.includes('20')")


def test_a_cell_behind_one_of_another_tab_is_below_it(playground: Playground, browser: Browser, server: Server) -> None:
    page, running = playground.page, "print('begun', flush=True)\nwhile True: pass"
    playground.run("'first'")
    name = page.wait("document.querySelector('.session[aria-current]')?.dataset.name")
    with opened(browser, server) as other:
        other.page.click(f".session[data-name='{name}']")
        other.page.wait("document.querySelector('.cell .verdict')")
        page.send("Network.setBlockedURLs", urls=["*/session/history*"])  # so that the cell of the other tab appears after its own
        other.cells = 1
        other.start(running)
        other.page.wait("document.querySelector('.stream.stdout')?.innerText === 'begun\\n'")
        playground.start("'last'")
        page.send("Network.setBlockedURLs", urls=[])
        page.wait("document.querySelectorAll('.cell').length === 3")
        page.press("Control+c")  # interrupts the cell that runs, not the one behind it
        for tab in (playground, other):
            tab.page.wait("document.querySelectorAll('.cell .verdict').length === 3")
            sources = tab.page.evaluate("[...document.querySelectorAll('.source pre')].map((one) => one.innerText)")
            assert sources == ["'first'", running, "'last'"]
            assert "Interrupted after" in tab.page.text(".cell:nth-child(2) .verdict")
        page.click("#export")
        exported = json.loads(_downloaded(browser.downloads / f"{page.text('#session-name')}.ipynb"))
        assert [cell["source"] for cell in exported["cells"]] == sources


def test_a_table_has_the_look_of_the_page(playground: Playground) -> None:
    """The frame has an origin of its own, and no request from there is answered: its style comes with it."""
    playground.run("from IPython.display import HTML\nHTML('<table border=1><tr><td>1<td>2</table>')")
    playground.page.wait("document.querySelector('.framed iframe')")
    names = ("text-align", "padding-left", "border-top-width", "border-collapse")
    assert playground.page.styles_in_frame("td", *names) == ["right", "12px", "0px", "collapse"]
    assert [one for one in playground.page.happened("Network.responseReceived") if one["response"]["status"] == 403] == []


@pytest.mark.parametrize(
    "html",
    [
        "import pandas as pd, numpy as np; pd.DataFrame(np.random.rand(200, 30))",
        "HTML('<h3>Hi</h3><button>press</button><a href=https://example.org>link</a><script>0</script><p style=color:red>red</p>')",
        "HTML('<svg xmlns=http://www.w3.org/2000/svg width=9 height=300></svg><p>below the picture</p>')",
    ],
    ids=["table", "blocks", "picture"],
)
def test_a_frame_is_as_high_as_its_content(playground: Playground, html: str) -> None:
    playground.run(f"from IPython.display import HTML\n{html}")
    height = playground.page.wait("document.querySelector('.framed iframe')?.clientHeight")
    content = float(playground.page.styles_in_frame("html", "height")[0].removesuffix("px"))
    playground.page.wait(f"0 <= document.querySelector('.framed iframe').clientHeight - {content} && {height} - {content} < 2")
    assert playground.page.evaluate("getComputedStyle(document.querySelector('.framed')).resize") == "none"  # nothing more to be seen


@pytest.mark.parametrize("form", ["Markdown", "Latex"])
def test_markdown_and_formulas_are_laid_out(playground: Playground, browser: Browser, form: str) -> None:
    page = playground.page
    code, expected = {
        "Markdown": (
            "# Hi *there*\n\n- **one** `a<b` and $x^{2}$\n  - two\n\n| a | b |\n|:--|--:|\n| 1 | 2 |\n\n$$\n\\frac{1}{2}\n+ \\beta\n$$",
            [
                "<h1>Hi <em>there</em></h1>",
                "<li><strong>one</strong> <code>a&lt;b</code> and <math><msup><mi>x</mi>",
                "<ul><li>two</li></ul>",
                '<td align="right">2</td>',
                '<math display="block"><mfrac><mrow>',
                "<mi>β</mi>",
            ],
        ),
        "Latex": (
            r"so $\displaystyle \left[\begin{matrix}1 & \sqrt{x}\end{matrix}\right]$ & $\unknown{x}$",
            ["so <math displaystyle=", "<mtable><mtr><mtd><mn>1</mn></mtd><mtd><msqrt>", "&amp; <code>\\unknown{x}</code>"],
        ),
    }[form]
    playground.run(f"from IPython.display import {form}\n{form}({code!r})")
    page.wait("document.querySelector('.framed iframe')")
    assert page.styles_in_frame("math", "display")[0].endswith("math")
    if form == "Markdown":
        assert page.styles_in_frame("h1", "font-weight", "margin-top") == ["700", "0px"]
        assert page.styles_in_frame("td + td", "text-align") == ["right"]
    shown = page.evaluate("document.querySelector('.measure').shadowRoot.innerHTML")
    assert [part for part in expected if part not in shown] == []
    page.click("#export")
    file = browser.downloads / f"{page.text('#session-name')}.ipynb"
    exported = nbformat.reads(_downloaded(file).decode(), as_version=4).cells[0].outputs[0].data["text/html"]
    assert exported == shown


def test_the_end_stays_in_view_until_the_reader_scrolls_up(playground: Playground) -> None:
    page = playground.page
    playground.run("print('line\\n' * 100)")
    page.evaluate("transcript = document.querySelector('#transcript')")
    page.evaluate("below = () => transcript.scrollHeight - transcript.scrollTop - transcript.clientHeight")
    grow = "transcript.firstChild.append(Object.assign(document.createElement('div'), { style: 'height: 300px' }))"
    page.wait("below() < 2")
    page.evaluate(f"{grow}, transcript.dispatchEvent(new Event('scroll'))")  # the event of the page's own scroll, after the growth
    page.wait("below() < 2")
    x, y = page.evaluate("(() => { const box = transcript.getBoundingClientRect(); return [box.x + 9, box.y + 9]; })()")
    page.send("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=-400)
    page.wait("below() > 100")
    page.evaluate(f"{grow}, new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")
    assert page.evaluate("below() > 300")
    playground.run("print('line\\n' * 50)")
    page.wait("below() < 2")


def test_the_end_stays_in_view_while_many_cells_end(playground: Playground) -> None:
    page = playground.page
    page.evaluate("document.querySelector('#source').focus()")
    for number in range(28):
        page.write(f"print({number})\nlist(range({number} * 20))")
        page.press("Shift+Enter")
    page.wait("document.querySelectorAll('.cell .verdict').length === 28")
    page.evaluate("transcript = document.querySelector('#transcript')")
    page.wait("transcript.scrollHeight - transcript.scrollTop - transcript.clientHeight < 2")


def test_a_fence_around_the_code_is_left_out(playground: Playground) -> None:
    assert "42" in playground.run("```python\n6 * 7\n```")
    assert playground.page.text(".source code") == "6 * 7"


def test_a_phone_follows_the_end_until_the_reader_scrolls_away(playground: Playground) -> None:
    page = playground.page
    page.size(390, 844, mobile=True)
    page.evaluate("box = (selector) => document.querySelector(selector).getBoundingClientRect()")
    in_view = "box('.cell:last-child .verdict').top >= 0 && box('#editor').bottom <= innerHeight + 1"
    for _ in range(3):
        playground.run("for n in range(40): print(n)")
        page.wait(in_view)
    grow = "document.querySelector('.cells').append(Object.assign(document.createElement('li'), { style: 'height: 300px' }))"
    painted = "new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))"
    left = {"0": "scrollY === 0", "document.body.scrollHeight": "box('#editor').bottom < innerHeight - 60"}
    for top, stays in left.items():  # to the first cell, and to the panels below the editor
        page.evaluate(f"scrollTo(0, {top}), {painted}")
        page.evaluate(f"{grow}, {painted}")
        assert page.evaluate(stays)
    page.reload()
    page.evaluate("box = (selector) => document.querySelector(selector).getBoundingClientRect()")
    page.wait(f"document.querySelectorAll('.cell .verdict').length === 3 && {in_view}")


def test_the_latest_lines_of_long_output_stay_in_view(playground: Playground, tmp_path: Path) -> None:
    page = playground.page
    (tmp_path / "go.txt").write_text("go")
    playground.start("for n in range(500): print(n)\n" + UNTIL_GO + "\nfor n in range(100_000): print(n)")
    stream = "document.querySelector('.stream')"
    below = f"{stream} && {stream}.innerText.includes('begun') && {stream}.scrollHeight - {stream}.scrollTop - {stream}.clientHeight"
    page.wait(f"(([high, below]) => high && below < 2)([{stream}?.scrollTop > 300, {below}])")
    page.choose(tmp_path / "go.txt", "#upload")
    playground.ended()
    page.wait(f"{stream}.innerText.includes('99999') && {stream}.scrollHeight - {stream}.scrollTop - {stream}.clientHeight < 2")


def test_a_reader_of_long_output_is_left_in_peace(playground: Playground, tmp_path: Path) -> None:
    page = playground.page
    (tmp_path / "go.txt").write_text("go")
    playground.start("for n in range(500): print(n)\n" + UNTIL_GO)
    page.wait("document.querySelector('.stream')?.scrollTop > 300 && document.querySelector('.stream').innerText.includes('begun')")
    page.evaluate("document.querySelector('.stream').scrollTop = 100")
    page.evaluate("new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")
    page.choose(tmp_path / "go.txt", "#upload")
    assert "gone on" in playground.ended()
    assert page.evaluate("document.querySelector('.stream').scrollTop") == 100


def test_a_reload_returns_to_the_session_with_its_cells_and_outputs(playground: Playground) -> None:
    page = playground.page
    playground.run("x = 20; print('one'); display('two'); print('three')")
    playground.run("1 / 0")
    page.click("#checkpoint")
    page.wait("document.querySelector('.notice')")
    playground.start("name = input('Who? ')\nprint('Hello', name, input('And? '))")
    page.wait("document.activeElement.closest('.ask')")
    page.write("Ada")
    page.press("Enter")
    page.wait("document.querySelector('.ask')?.innerText && document.querySelector('.cell:last-child .stream').innerText.includes('And?')")
    name, before = page.text("#session-name"), page.text(".cell")
    page.reload()
    page.wait("document.querySelectorAll('.cell').length === 3 && document.querySelectorAll('.ask').length === 1")
    page.write("Bob")
    page.press("Enter")
    assert "Hello Ada Bob" in playground.ended()
    assert (page.text("#session-name"), page.text(".cell")) == (name, before)
    assert page.text(".cell:nth-child(2) .error-title") == "ZeroDivisionError: division by zero"
    assert page.text(".notice") == "Checkpoint #1 is taken."
    assert "22" in playground.run("x + 2")
    assert (playground.state(), page.text(".empty")) == ("kept", "")
    page.press("Alt+ArrowUp")
    page.press("Alt+ArrowUp")
    assert "input" in page.evaluate("document.activeElement.value")


def test_a_session_that_another_client_drives_shows_its_cells(playground: Playground, server: Server) -> None:
    page = playground.page
    with httpx.Client(base_url=server.endpoint, headers={"authorization": f"Bearer {KEY}"}, timeout=120) as http:

        def send(code: str) -> None:
            query = {"api-version": "2025-10-02-preview", "identifier": "an-agent's"}
            assert http.post("/executions", params=query, json={"code": code}).status_code == 200

        before = page.evaluate("document.querySelectorAll('.session').length")
        query = {"api-version": "2025-10-02-preview", "identifier": "a-session-with-a-file"}
        assert http.post("/files", params=query, files={"file": ("a.txt", b"1")}).status_code == 200
        send("print('from elsewhere')\n6 * 7")
        page.click("#new-name")
        page.write("an-agent's")
        page.wait(f"document.querySelectorAll('.session').length >= {before} + 2")  # the page knows it by now
        page.press("Enter")
        page.wait("document.querySelector('.cell')")
        assert page.text(".cell .output").split() == ["from", "elsewhere", "42"]
        assert "an-agent" not in page.text("body")
        playground.cells = 1
        assert "43" in playground.run("_ + 1")
        send("'meanwhile'")
        page.wait("document.querySelectorAll('.cell').length === 3")
        assert "'meanwhile'" in page.text(".cell:last-child")
        page.click("#new-name")
        page.write("a-session-with-a-file")
        page.press("Enter")
        page.wait("document.querySelector('.empty')?.innerText === 'This session is live. No cell was sent to it yet.'")


def test_a_session_is_renamed_in_every_tab_and_keeps_its_identifier(playground: Playground, browser: Browser, server: Server) -> None:
    page = playground.page
    page.click("#new-name")
    page.write("Quarterly numbers")
    page.press("Enter")
    page.wait("document.querySelector('#session-name').innerText === 'Quarterly numbers'")
    playground.run("x = 1")
    with opened(browser, server) as other:
        other.page.click(".session[data-name='Quarterly numbers']")
        other.page.wait("document.querySelector('.cell')")
        other.page.click("#rename")
        refused = "document.querySelector('#rename-form .refusal')?.innerText"
        for bad, told in {"y" * 65: "at most 64 characters, this one has 65", "a\u202eb": "cannot be shown"}.items():
            other.page.evaluate("document.querySelector('#rename-to').select()")
            other.page.write(bad)
            other.page.press("Enter")
            assert told in other.page.wait(f"{refused}?.includes({told!r}) && {refused}")
        other.page.evaluate("document.querySelector('#rename-to').select()")
        other.page.write("Überblick <b>")
        other.page.press("Enter")
        other.page.wait("document.activeElement.id === 'rename'")
        for tab in (other.page, page):
            tab.wait("document.querySelector('#session-name').innerText === 'Überblick <b>'")
        other.cells = 1
        assert "1" in other.run("print(x)")
        other.page.click("#rename")
        other.page.press("Escape")
        assert other.page.text("#session-name") == "Überblick <b>"
        other.page.click("#rename")
        other.page.press("Backspace")
        other.page.press("Enter")
        other.page.wait("/^[a-z]+ [a-z]+$/.test(document.querySelector('#session-name').innerText)")


def test_a_new_session_gets_its_name_though_its_reader_turns_away(playground: Playground) -> None:
    page = playground.page
    playground.run("x = 1")
    first = page.text("#session-name")
    page.click("#new-name")
    page.write("Orders")
    page.press("Enter")
    page.wait("document.querySelector('#session-name').innerText === 'Orders'")
    playground.cells = 0
    playground.start("import os, time\nwhile not os.path.exists('go'): time.sleep(0.05)")
    page.click(f".session[data-name='{first}']")
    page.wait(f"document.querySelector('#session-name').innerText === '{first}'")
    page.wait("document.querySelector(\".session[data-name='Orders']\")")


def test_an_error_shows_its_last_line_first_and_folds_frames_of_libraries(playground: Playground) -> None:
    shown = playground.run("import json\ndef read():\n    return json.loads('{')\nread()").partition("Edit")[2].split("\n")
    shown = [line for line in shown if line.strip()]
    assert shown[0].startswith("JSONDecodeError: Expecting property name")
    assert (shown[1].startswith("Cell In["), shown[-2:][0].startswith("Failed in")) == (True, True)
    assert ("3 frames of libraries" in shown, any("raw_decode" in line for line in shown)) == (True, False)
    playground.page.click(".error summary")
    playground.page.wait("document.querySelector('.error').innerText.includes('raw_decode')")
    compiled = playground.run("import pandas; pandas.DataFrame()['absent']").partition("Edit")[2]
    assert ("KeyError: 'absent'" in compiled, ".pyx" in compiled) == (True, False)
    included = playground.run("exec(compile('def f(): 1 / 0', 'pandas/_libs/helper.pxi', 'exec'))\nf()").partition("Edit")[2]
    assert ("ZeroDivisionError" in included, ".pxi:1" in included, "1 frame of a library" in included) == (True, False, True)


def test_a_long_chain_of_errors_scrolls_in_one_box(playground: Playground) -> None:
    body = "    try:\n        if n: f(n - 1)\n        1 / 0\n    except Exception as e: raise ValueError(n) from e"
    playground.run(f"def f(n):\n{body}\nf(12)")
    heights = "[...document.querySelectorAll('.error .stream')].map((one) => [one.scrollHeight, one.clientHeight])"
    assert [pair for pair in playground.page.evaluate(heights) if pair[0] > pair[1] + 1] == []
    assert playground.page.evaluate("(({ scrollHeight, clientHeight }) => scrollHeight > clientHeight)(document.querySelector('.error'))")


def test_edit_can_be_undone_and_unsent_text_outlives_a_reload(playground: Playground) -> None:
    page = playground.page
    playground.run("x = 1")
    page.write("my draft")
    page.click(".cell .of-cell button:last-child")
    assert page.evaluate("document.querySelector('#source').value") == "x = 1"
    page.evaluate("document.execCommand('undo')")
    assert page.evaluate("document.querySelector('#source').value") == "my draft"
    page.reload()
    page.wait("document.querySelector('#source')?.value === 'my draft' && document.querySelector('.cell')")
    assert page.text("#mirror").strip() == "my draft"


@pytest.mark.usefixtures("light")
def test_the_cells_of_a_session_that_ended_stay_until_they_are_dropped(browser: Browser) -> None:
    with Server("--port", "0", "--api-key", KEY) as own, opened(browser, own) as playground:
        page = playground.page
        playground.run("import sys; x = 20; print('out'); print('err', file=sys.stderr); display('shown'); x + 1")
        playground.run("1 / 0")
        page.wait("document.querySelector('#variables').innerText.includes('20')")
        playground.run("display({'text/plain': 'x' * 1_100_000}, raw=True)")
        before = page.evaluate("[...document.querySelectorAll('.cell')].map((one) => one.innerText)")
        name = page.text("#session-name")
        for _ in range(2):
            page.click(f"[aria-label='End session {name}']")
        page.wait("document.querySelector('.state-of-session.ended') && document.querySelector('.notice')")
        page.wait("document.querySelector('#variables').innerText === 'No variables yet.'")
        page.click("#new-session button")
        page.wait("!document.querySelector('.cell')")
        page.reload()
        page.click(f".session[data-name='{name}']")
        page.wait("document.querySelectorAll('.cell').length === 3")
        *shown, large = page.evaluate("[...document.querySelectorAll('.cell')].map((one) => one.innerText)")
        assert shown == before[:2]
        assert large.endswith("Its output is not kept.")
        assert page.text(".notice").startswith("This session has ended")
        page.click("#export")
        cells = json.loads(_downloaded(browser.downloads / f"{name}.ipynb"))["cells"]
        assert cells[2]["outputs"] == [{"output_type": "stream", "name": "stderr", "text": "[Its output is not kept.]\n"}]
        playground.cells = 3
        assert "False" in playground.run("'x' in globals()")
        assert playground.state() == "lost: terminated"
        page.reload()
        page.wait("document.querySelector('.cell .verdict')")
        assert playground.state() == "lost: terminated"
        for _ in range(2):
            page.click(f"[aria-label='End session {name}']")
        page.wait("document.querySelector('.state-of-session.ended')")
        for _ in range(2):
            page.click(f"[aria-label='Drop the cells of session {name}']")
        page.wait("!document.querySelector('.cell') && !document.querySelector('.state-of-session.ended')")


def test_the_page_says_that_sessions_have_no_network(playground: Playground) -> None:
    playground.page.wait("document.querySelector('#network').innerText === 'no network'")
    shown = playground.run("import urllib.request; urllib.request.urlopen('https://example.org')")
    assert "Sessions of this server have no network." in shown
    assert "no network" not in playground.run("1 / 0")


@pytest.mark.parametrize("code", ["%pip install ./no-such.whl", "%pip install ./no-such.whl\n'goes on'"])
def test_an_installation_that_failed_is_not_green(playground: Playground, code: str) -> None:
    playground.run(code)
    verdict = "document.querySelector('.verdict')"
    assert playground.page.evaluate(f"[{verdict}.classList.contains('good'), /failed/i.test({verdict}.innerText)]") == [False, True]
    assert "install packages in the panel Packages" in playground.page.text(".cell .note")


@pytest.fixture
def alpha(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let servers install the package `alpha`, and no other."""
    make_wheel(tmp_path / "wheels", "alpha")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ACASessions__Packages__WheelFolder", str(tmp_path / "wheels"))


@pytest.mark.usefixtures("light", "alpha")
def test_a_package_is_installed_in_its_panel(browser: Browser) -> None:
    with Server("--port", "0", "--api-key", KEY) as own, opened(browser, own) as playground:
        page = playground.page
        playground.run("1")
        for name, outcome in (("beta", "#install .refusal"), ("alpha", "#packages .row")):
            page.evaluate("document.querySelector('#requirement').select()")
            page.write(name)
            page.press("Enter")
            page.wait(f"document.querySelector('{outcome}')?.innerText.includes('{name}')")
        assert page.text("#packages .row").split() == ["alpha", "1.0"]
        assert "1.0" in playground.run("import alpha; alpha.version")


@pytest.mark.usefixtures("light", "alpha")
def test_a_missing_module_can_be_installed_below_its_error(browser: Browser) -> None:
    with Server("--port", "0", "--api-key", KEY) as own, opened(browser, own) as playground:
        page = playground.page
        install = "document.querySelector('.cell .note button')"
        playground.run("import json.part")  # json is there
        assert page.evaluate(f"{install}") is None
        playground.run("import beta.part")
        assert page.evaluate(f"{install}.innerText") == "Install beta"
        page.click(".cell .note button")
        page.wait("document.querySelector('.refusal')?.innerText.includes('beta')")
        assert page.evaluate(f"[{install}.innerText, {install}.disabled]") == ["Install beta", False]
        playground.run("import alpha; alpha.version")
        page.click(".cell:last-child .note button")
        page.wait("document.querySelector('.notice')?.innerText === 'Installed: alpha.'")
        page.wait("[...document.querySelectorAll('.cell .note')].at(-1).innerText === 'alpha is installed now. Run again'")
        page.click(".cell:nth-child(3) .note button")
        playground.cells += 1
        page.wait("document.querySelectorAll('.cell').length === 4")
        assert "1.0" in playground.ended()


@pytest.mark.usefixtures("light", "alpha")
def test_pip_in_a_cell_installs_by_the_server(browser: Browser) -> None:
    with Server("--port", "0", "--api-key", KEY) as own, opened(browser, own) as playground:
        page = playground.page
        playground.start("!pip install -q 'alpha>=1' # once\nimport alpha\norder = [alpha.version]")
        shown = playground.run("order + [2]")
        assert "['1.0', 2]" in shown
        page.wait("document.querySelector('#packages .row')?.innerText.includes('alpha')")
        assert "Requirement already satisfied: alpha>=1" in page.text(".cell")
        assert page.text(".cell .verdict").startswith("Done in")
        assert page.text(".notice") == "Installed: alpha>=1."
        assert "The cell was not run: not installed:" in playground.run("%pip install beta\n1")
        assert "'1.0'" in playground.run("%pip install -qU alpha\n%pip install --upgrade alpha\nalpha.version")
        assert page.evaluate("[...document.querySelectorAll('.notice')].at(-1).innerText").startswith(
            "There already, and left as it is: alpha"
        )
        refused = "The cell was not run: %pip install takes names here, and the options -q and -U, but not -r."
        assert refused in playground.run("%pip install -r wanted.txt\n1")
        page.reload()
        page.wait("document.querySelectorAll('.cell').length === 3")


@pytest.mark.parametrize("device", [{"width": 1280, "height": 700}, {"width": 390, "height": 700, "mobile": True}], ids=["desk", "phone"])
def test_the_field_of_a_question_is_in_view(playground: Playground, device: dict[str, int]) -> None:
    page = playground.page
    page.size(**device)
    for _ in range(3):
        playground.run("print('line\\n' * 40)")
    page.evaluate(
        "document.querySelector('#transcript').scrollTop = 0; scrollTo(0, 0); document.querySelector('#session-name').scrollIntoView()"
    )
    playground.start("print('line\\n' * 100); input('Who? ')")
    page.wait("document.activeElement.closest('.ask')")
    page.wait(
        "(() => { const box = document.activeElement.getBoundingClientRect();"
        " return document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2) === document.activeElement; })()"
    )
    page.press("Enter")
    playground.ended()


def test_a_refusal_is_shown_beside_the_button_that_caused_it(playground: Playground, tmp_path: Path) -> None:
    page = playground.page
    playground.run("import threading, time, os\nos.mkdir('a'); open('a/b.txt', 'w').close()")
    page.wait("document.querySelector('#files .row')")
    playground.run("import shutil; shutil.rmtree('a')\nt = threading.Thread(target=time.sleep, args=(1e6,), daemon=True); t.start()")
    page.click("#checkpoint")
    page.wait("document.querySelector('#tools > .refusal')?.innerText.includes('thread')")
    assert page.text("#problem") == ""
    page.wait("!document.querySelector('#files .row')")
    playground.run("open('b.txt', 'w').close()")
    page.wait("document.querySelector('#files .row') && !document.querySelector('.refusal')")
    session = page.evaluate("JSON.parse(sessionStorage.getItem('aca-sessions /')).session")
    gone = f"files/b.txt?api-version=2025-10-02-preview&identifier={session}"
    download = (
        "document.querySelector(\"[aria-label='Download b.txt']\")"  # found first: the page may see at any moment that the file is gone
    )
    delete = f"fetch('{gone}', {{ method: 'DELETE', headers: {{ authorization: 'Bearer {KEY}' }} }})"
    page.evaluate(f"{{ const download = {download}; {delete}.then(() => download.click()); }}")
    page.wait("!document.querySelector('#files .row') && document.querySelector('#problem').innerText.includes('no file at this path')")
    page.click("#new-name")
    page.write("x" * 65)
    page.press("Enter")
    page.wait("document.querySelector('#new-session .refusal')?.innerText.includes('at most 64')")


def test_the_variables_leave_out_types_and_modules(playground: Playground) -> None:
    classes = "class Mine: pass\nclass Colour(enum.Enum):\n    RED = 1"
    playground.run(f"import os, enum\nfrom pathlib import Path\n{classes}\nmine = Mine(); text = 'a'; kind = int")
    playground.page.wait("document.querySelector('#variables tbody')")
    names = playground.page.evaluate("[...document.querySelectorAll('#variables tbody th')].map((one) => one.innerText)")
    assert names == ["mine", "text"]


def test_running_and_waiting_cells_can_be_interrupted_where_they_are(playground: Playground) -> None:
    page = playground.page
    playground.start("import time\nwhile True: time.sleep(0.1)")
    playground.start("after = 1")
    page.wait("/^Running/.test(document.querySelector('.cell .running')?.innerText)")
    page.click(".cell:last-child .ending button")
    page.wait("document.querySelector('.cell:last-child .running').innerText === 'Cancelled: it will not run.'")
    page.click(".cell:first-child .ending button")
    playground.ended()
    shown = page.evaluate("[...document.querySelectorAll('.cell .outcome')].map((one) => one.innerText.split(' ')[0])")
    assert (shown[0], page.evaluate("document.querySelectorAll('.ending button').length")) == ("Interrupted", 0)
    assert "False" in playground.run("'after' in globals()")


def test_cells_that_wait_are_not_run_after_one_that_failed(playground: Playground, tmp_path: Path) -> None:
    (tmp_path / "go.txt").write_text("go")
    playground.start(f"{UNTIL_GO}\nprint(missing)")
    playground.start("after = 1")
    playground.page.wait("document.querySelector('.stream')?.innerText === 'begun\\n'")
    playground.page.choose(tmp_path / "go.txt", "#upload")
    assert "A cell before this one failed." in playground.ended()
    assert playground.page.text(".cell:last-child .outcome") == "Not run."
    assert playground.page.evaluate("document.querySelectorAll('.cell:last-child .error').length") == 0
    assert "False" in playground.run("'after' in globals()")
    playground.page.click(".cell:nth-child(2) .of-cell button")
    playground.cells += 1
    playground.page.wait("document.querySelectorAll('.cell').length === 4")
    playground.ended()
    assert "True" in playground.run("'after' in globals()")


def test_only_a_second_interrupt_ends_an_interpreter_that_does_not_react(playground: Playground) -> None:
    page = playground.page
    playground.run("x = 1")
    playground.start("sum(range(10**12))")
    page.wait("/^Running/.test(document.querySelector('.cell .running')?.innerText)")
    page.click(".ending button")
    page.wait("document.querySelector('.ending button').innerText === 'End the interpreter'")
    page.wait("parseInt(document.querySelector('.cell .running').innerText.replace('Running … ', '')) >= 8")  # past the grace period
    page.click(".ending button")
    playground.ended()
    assert playground.state() == "lost: killed"


def test_cells_run_in_the_order_in_which_they_were_sent(playground: Playground, browser: Browser, server: Server) -> None:
    playground.run("seen = []")
    with opened(browser, server) as other:
        other.page.click(".session")
        for number in range(20):
            playground.page.write(f"seen.append({number})")
            playground.page.press("Shift+Enter")
        playground.cells += 20
        assert f"{[*range(20)]}" in playground.run("seen").replace("\n", " ")


def test_an_answer_is_there_after_a_reload(playground: Playground) -> None:
    playground.start("name = input('Who? ')")
    playground.page.wait("document.querySelector('.ask')")
    playground.page.write("Ada")
    playground.page.press("Enter")
    playground.ended()
    playground.page.reload()
    playground.page.wait("document.querySelector('.cell .output')?.innerText.includes('Who? Ada')")


def test_a_question_for_a_secret_is_shown_and_a_refused_cell_goes_back_to_the_editor(playground: Playground) -> None:
    page = playground.page
    playground.start("import getpass; key = getpass.getpass('API key: ')")
    page.wait("document.querySelector('.ask label')?.innerText.includes('API key:')")
    page.write("secret")
    page.press("Enter")
    playground.ended()
    assert page.evaluate("[...document.querySelectorAll('.changes li')].map((one) => one.innerText)") == ["key added: str 6"]
    page.wait("document.querySelector('#variables .worth')?.innerText === '••••'")
    for _ in range(2):
        page.reload()
        page.wait("document.querySelector('.cell .output')?.innerText.includes('API key: ••••')")
        page.wait("document.querySelector('#variables .worth')?.innerText === '••••'")
    page.click("#branch")
    page.wait("document.querySelector('.past .cell')")
    playground.run("z = 1")
    page.wait("/^z/m.test(document.querySelector('#variables').innerText)")
    assert page.text("#variables .worth") == "••••"
    page.click(".past .notice button")
    page.wait("!document.querySelector('.past')")
    playground.cells = 1
    assert "other" in playground.run("key = 'other'; key")  # another value is shown
    page.wait("document.querySelector('#variables .worth')?.innerText.includes('other')")
    assert "The cell was not run" in playground.run("%pip install -r more.txt\n1")
    page.wait("document.querySelector('#source').value === '%pip install -r more.txt\\n1'")


def test_an_upload_names_what_it_replaced(playground: Playground, tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("1")
    for _ in range(2):
        playground.page.choose(tmp_path / "data.csv", "#upload")
        playground.page.wait("document.querySelector('#files .row')")
    playground.page.wait("document.querySelector('.notice')?.innerText === 'Replaced: data.csv.'")


def test_a_cell_without_memory_gets_advice(playground: Playground) -> None:
    assert "Work on smaller parts of the data" in playground.run("b'0' * 10**11")


def test_a_table_that_is_too_wide_has_a_shadow_at_its_edge(playground: Playground) -> None:
    frame = "document.querySelector('.cell:last-child .framed')"
    for columns, is_wide in ((3, False), (80, True)):
        playground.run(f"import pandas as pd; pd.set_option('display.max_columns', 80); pd.DataFrame([range({columns})])")
        playground.page.wait(f"{frame}?.style.height")
        assert playground.page.evaluate(f"{frame}.classList.contains('wide')") is is_wide


def test_cells_of_a_table_have_the_colours_of_a_styler(playground: Playground) -> None:
    playground.run("import pandas as pd; frame = pd.DataFrame({'a': [1, 2], 'b': [3, 0]})")
    playground.run("frame.style.highlight_max(color='yellow').map(lambda value: 'color: #ff0000; font-weight: bold' if value == 0 else '')")
    assert playground.page.styles_in_frame("td[bgcolor]", "background-color") == ["rgb(255, 255, 0)"]
    assert playground.page.styles_in_frame("td[bgcolor] font", "color") == ["rgb(0, 0, 0)"]  # in the dark as well
    assert playground.page.styles_in_frame("td:not([bgcolor]) b font", "color") == ["rgb(255, 0, 0)"]
    assert playground.page.evaluate("document.querySelectorAll('.output .note').length") == 0


def test_styles_that_are_not_shown_are_reported(playground: Playground) -> None:
    playground.run("import pandas as pd; pd.DataFrame({'a': [1, 2]})")
    assert playground.page.evaluate("document.querySelectorAll('.output .note').length") == 0
    playground.run("pd.DataFrame({'a': [1, 2]}).style.bar()")
    assert "This page shows no styles of outputs but colours of cells." in playground.page.text(".cell:last-child .output .note")


def test_a_chart_that_scripts_draw_can_be_saved_as_a_file(playground: Playground, browser: Browser) -> None:
    html = "<div id=chart></div><script>document.title = 'é'</script>"
    playground.run(f"from IPython.display import HTML; HTML({html!r})")
    assert "Scripts of this output do not run by themselves" in playground.page.text(".output .note")
    playground.page.click(".output .note button:last-child")
    assert _downloaded(browser.downloads / "output.html").decode() == html
    assert playground.page.evaluate("document.title") != "é"
    playground.page.click(".output .note button")
    assert playground.page.styles_in_frame("#chart", "display") == ["block"]
    name = playground.page.text("#session-name")
    playground.page.click("#new-session button")
    playground.page.wait("!document.querySelector('.drawn')")
    playground.page.click(f".session[data-name='{name}']")
    playground.page.wait("document.querySelector('.drawn')")
    assert playground.page.styles_in_frame("#chart", "display") == ["block"]
    playground.page.click("#export")
    [cell] = json.loads(_downloaded(browser.downloads / f"{name}.ipynb"))["cells"]
    assert [[*one["data"]] for one in cell["outputs"]] == [["text/plain"]]  # an empty frame would hide the text
    assert cell["outputs"][0]["data"]["text/plain"].startswith("[An interactive output, which needs scripts, is not in this file.")


def test_charts_of_plotly_are_small_and_are_drawn_again_after_a_reload(playground: Playground, browser: Browser) -> None:
    page = playground.page
    playground.run("import plotly.graph_objects as go; go.Figure(go.Bar(y=[3, 1, 2], name='lamps'), dict(title='Sales'))")
    for number in range(4):
        playground.run(f"go.Figure(go.Scatter(y=[{number}, 1]))")
    playground.run("go.Figure(go.Scatter(y=[1]), dict(images=[dict(source='//outside.example/x.png')]))")
    page.click(".cell .output .note button")
    assert page.styles_in_frame(".main-svg", "display") == ["block"]
    page.reload()
    page.wait("document.querySelectorAll('.cell .verdict').length === 6")
    assert page.text(".cell:first-child .output").startswith("plotly Figure Sales [bar lamps]\n\nScripts of this output do not run")
    page.click(".cell .output .note button")
    page.wait("document.querySelectorAll('.drawn').length === 1")
    page.click(".cell .output .note button")  # of all outputs
    page.wait("document.querySelectorAll('.drawn').length === 6")
    assert page.styles_in_frame(".main-svg", "display") == ["block"]
    assert "Run" not in "".join(page.evaluate("[...document.querySelectorAll('.output .note')].map((one) => one.innerText)"))
    page.click("#export")
    content = _downloaded(browser.downloads / f"{page.text('#session-name')}.ipynb")
    charts = [cell["outputs"][0]["data"] for cell in json.loads(content)["cells"]]
    data = [chart.get("application/vnd.plotly.v1+json", {}).get("data") for chart in charts]
    assert [one and one[0]["type"] for one in data] == ["bar", *["scatter"] * 4, None]
    assert "text/html" not in charts[0]
    assert charts[5]["text/plain"].startswith("[An interactive output, which needs scripts, is not in this file.")
    assert len(content) < 200_000


def test_an_output_that_the_server_dropped_is_named_in_its_cell(playground: Playground, browser: Browser) -> None:
    page = playground.page
    for number in range(4):
        playground.run(f"from IPython.display import HTML\nHTML('<!--' + 'x' * 5_000_000 + '--><b>{number}</b>')")
    page.reload()
    page.wait("document.querySelectorAll('.cell .verdict').length === 4")
    notes = page.evaluate("[...document.querySelectorAll('.cell .note')].map((one) => one.innerText)")
    assert notes == ["5.0 MB of output are not kept: run the cell again to see it"]
    assert page.evaluate("document.querySelectorAll('.cell .framed').length") == 3
    assert page.text(".empty") == ""
    page.click("#export")
    cells = json.loads(_downloaded(browser.downloads / f"{page.text('#session-name')}.ipynb"))["cells"]
    assert [cell["outputs"][0].get("text") for cell in cells if "data" not in cell["outputs"][0]] == [f"[{notes[0]}]\n"]


def test_a_notebook_is_exported_that_runs_and_loads_nothing(playground: Playground, browser: Browser) -> None:
    page = playground.page
    playground.run("print('\\x1b[31mred\\x1b[0m\\x1b]0;title\\x07'); 6 * 7")
    playground.run(
        "from IPython.display import HTML, SVG, Javascript\n"
        "display(HTML('<b onclick=alert(1)>bold</b><script>alert(1)</script><img src=http://outside.example>'))\n"
        "display(SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"><script>alert(1)</script></svg>'), Javascript('alert(1)'))\n"
        "h = display('first', display_id=True); h.update('second')"
    )
    playground.run(PLOT)
    playground.run("1 / 0")
    name = page.text("#session-name")
    page.click("#export")
    notebook = nbformat.reads(_downloaded(browser.downloads / f"{name}.ipynb").decode(), as_version=4)
    nbformat.validate(notebook)
    first, shown, plot, failed = notebook.cells
    assert [cell.execution_count for cell in notebook.cells] == [1, 2, 3, 4]
    assert page.evaluate("[...document.querySelectorAll('.number')].map((one) => one.innerText)") == ["[1]", "[2]", "[3]", "[4]"]
    assert (first.outputs[-1].execution_count, "Cell In[4], line 1" in "".join(failed.outputs[0].traceback)) == (1, True)
    assert first.source == "print('\\x1b[31mred\\x1b[0m\\x1b]0;title\\x07'); 6 * 7"
    assert [one.get("text", one.get("data")) for one in first.outputs] == ["\x1b[31mred\x1b[0m]0;title\n", {"text/plain": "42"}]
    html = shown.outputs[0].data["text/html"]
    assert ("<b>bold</b>" in html, "script" in html, "outside" in html, "onclick" in html) == (True, False, False, False)
    drawing = shown.outputs[1].data["text/html"]
    assert (drawing.startswith('<img alt="" src="data:image/svg+xml,'), "<script" in drawing) == (True, False)
    kinds = {kind for cell in notebook.cells for one in cell.outputs for kind in one.get("data", {})}
    assert kinds == {"text/plain", "text/html", "image/png"}
    assert [one.data["text/plain"] for one in shown.outputs if "second" in str(one)] == ["'second'"]
    assert "image/png" in plot.outputs[0].data
    assert (failed.outputs[0].ename, failed.outputs[0].evalue) == ("ZeroDivisionError", "division by zero")
    assert page.evaluate("JSON.parse(sessionStorage.getItem('aca-sessions /')).session") not in json.dumps(notebook)


def test_an_interrupt_keeps_the_variables(playground: Playground) -> None:
    playground.run("x = 42")
    playground.start("while True: pass")
    playground.page.wait("/^Running/.test(document.querySelector('.cell .running')?.innerText)")
    playground.page.click("#interrupt")
    shown = playground.ended()
    assert (shown.count("KeyboardInterrupt"), "Cell In[2], line 1" in shown, "Interrupted after" in shown) == (1, True, True)
    assert (playground.state(), playground.page.evaluate("document.activeElement.id")) == ("kept", "source")
    playground.start("while True: pass")
    playground.page.wait("/^Running/.test(document.querySelector('.cell .running')?.innerText)")
    playground.page.press("Control+c")
    assert "Interrupted after" in playground.ended()
    assert "42" in playground.run("x")


def test_an_interrupt_is_shown_in_every_tab(playground: Playground, browser: Browser, server: Server) -> None:
    playground.start("print('begun', flush=True)\nwhile True: pass")
    name = playground.page.wait("document.querySelector('.stream') && document.querySelector('.session[aria-current]').dataset.name")
    with opened(browser, server) as other:
        other.page.click(f".session[data-name='{name}']")
        other.page.wait("document.querySelector('.stream')")
        playground.page.press("Control+c")
        for tab in (playground, other):
            assert "Interrupted after" in tab.ended()
        other.page.reload()
        other.page.wait("document.querySelector('.verdict')?.innerText.startsWith('Interrupted after')")
        assert "Failed in" in playground.run("raise KeyboardInterrupt")  # no caller interrupted this


def test_a_changed_state_is_shown(playground: Playground) -> None:
    playground.run("x = 1; import os")
    assert "State lost (exit): variables from before are gone, files are kept." in playground.run("os._exit(3)")
    assert playground.state() == "lost: exit"
    assert "NameError" in playground.run("x")
    assert playground.state() == "kept"
    playground.page.click("#transactional")
    assert "as before the cell that failed" in playground.run("y = 2; 1 / 0")
    assert playground.state().startswith("rolled_back")


def test_rollback_and_branches(playground: Playground, browser: Browser) -> None:
    page = playground.page
    playground.run("x = 1")
    page.click("#checkpoint")
    page.wait("document.querySelectorAll('#checkpoints .row').length === 1")
    playground.run("x = 2")
    parent = page.text("#session-name")
    page.click("#branch")
    page.wait(f"document.querySelector('.past .notice')?.innerText.includes('Branched here from {parent}')")
    assert page.evaluate("[...document.querySelectorAll('.past .source code')].map((one) => one.innerText)") == ["x = 1", "x = 2"]
    assert not page.evaluate("document.querySelector('#export').disabled")
    assert "2" in playground.run("print(x)")
    page.reload()
    page.wait("document.querySelectorAll('.past .cell').length === 2 && document.querySelectorAll('.cell').length === 3")
    page.click(".past .notice button")
    page.wait("document.querySelectorAll('.cell').length === 2")
    assert page.text("#session-name") == parent
    undone = "[...document.querySelectorAll('.cell.undone .source code')].map((one) => one.innerText)"
    assert page.evaluate(undone) == []
    page.click("#undo")
    assert page.text("#undo") == "Really go back"
    page.click("#undo")
    page.wait("document.querySelector('.notice.warn')?.innerText.includes('Back at checkpoint #1')")
    page.wait(f"JSON.stringify({undone}) === '[\"x = 2\"]'")
    page.reload()
    page.wait(f"JSON.stringify({undone}) === '[\"x = 2\"]'")
    assert page.evaluate("document.querySelector('.cell.undone .tag').title") == "Undone by going back to checkpoint #1"
    page.click("#export")
    cells = json.loads(_downloaded(browser.downloads / f"{parent}.ipynb"))["cells"]
    assert [cell["source"].partition(":")[0] for cell in cells] == ["x = 1", "*Undone by going back to checkpoint #1", "x = 2"]
    assert [cell["metadata"] for cell in cells] == [{}, {}, {"aca_sessions": {"rolled_back": True}}]
    playground.cells = 2
    assert "1" in playground.run("print(x)")
    page.wait("document.querySelector('#undo').disabled && document.querySelector('#undo').title === 'There is no checkpoint.'")


@pytest.mark.usefixtures("light")
def test_a_saved_session_goes_on_at_another_server(browser: Browser, tmp_path: Path) -> None:
    store = ("--store", f"file://{tmp_path}/store")
    with Server("--port", "0", "--api-key", KEY, *store) as own, opened(browser, own) as playground:
        playground.run("x = 41; lines = (line for line in 'ab')")
        playground.page.click("#save")
        playground.page.wait("document.querySelector('.notice')?.innerText.startsWith('Saved: 1 variable and the files, ')")
        assert "Not saved: lines (" in playground.page.text(".notice")
        assert playground.page.text("#saved").startswith("None that is not live.")
        name = playground.page.text("#session-name")
    with Server("--port", "0", "--api-key", KEY, *store) as own, opened(browser, own) as playground:
        page = playground.page
        page.wait("document.querySelector('#saved .row')")
        assert page.text("#saved .row").startswith(name)
        page.click("#saved .row button")
        page.wait(f"document.querySelector('#session-name').innerText === '{name}'")
        assert page.text(".empty").endswith("Its next cell goes on from there: 1 variable and its files.")
        assert page.text(f".session[data-name='{name}']").split("\n")[1:] == ["saved", "goes on with its next cell"]
        assert "42" in playground.run("x + 1")
        assert playground.state() == "restored: restart"
        page.wait("document.querySelector('#saved .empty')")
        page.click("#new-session button")
        page.wait(f"document.querySelector('#session-name').innerText !== '{name}'")
        page.click(f".session[data-name='{name}'] + button")
        page.click(f".session[data-name='{name}'] + button")  # which asks once more
        page.wait(f"document.querySelector(\".session[data-name='{name}']\").innerText.includes('ended')")
        assert page.text("#saved").startswith("None that is not live.")  # it was ended on purpose


def test_a_reset_asks_for_confirmation_and_keeps_the_files(playground: Playground) -> None:
    playground.run("x = 1; open('a.txt', 'w').close()")
    playground.page.click("#reset")
    assert playground.page.text("#reset") == "Really reset"
    playground.page.click("#reset")
    playground.page.wait("document.querySelector('.notice')")
    assert "['a.txt']" in playground.run("import os; 'x' in globals() or os.listdir()")


def test_the_keyboard_is_enough_for_everything(browser: Browser, server: Server) -> None:
    page = browser.open(server.endpoint)
    page.wait("document.activeElement.id === 'key'")
    page.write(KEY)
    page.press("Enter")
    page.wait("document.activeElement.id === 'source'")
    playground = Playground(page)
    page.write("for n in range(2):")
    page.press("Enter")
    assert "0\n2" in playground.run("print(n * 2)", "Control+Enter", goes_on=True)
    page.press("Alt+ArrowUp")
    assert page.evaluate("document.activeElement.value") == "for n in range(2):\n    print(n * 2)"
    page.press("Alt+ArrowDown")
    page.write("people = 709")
    playground.run("", goes_on=True)
    page.write("peop")
    page.press("Tab")
    page.wait("document.activeElement.value === 'people'")
    page.write("\n")
    page.press("Tab")
    assert page.evaluate("document.activeElement.value") == "people\n    "
    page.press("Escape")
    page.press("Tab")
    page.wait("document.activeElement.id === 'transactional'")
    page.press("Tab")
    assert page.evaluate("document.activeElement.id") == "run"
    page.close()


def test_keys_of_notebooks_and_consoles_work(playground: Playground) -> None:
    page = playground.page
    playground.run("first = 1")
    playground.run("second = 2\nsecond", "Alt+Enter")

    def pressed(*keys: str) -> str:
        for key in keys:
            page.press(key)
        return str(page.evaluate("document.activeElement.value"))

    assert [pressed("ArrowUp") for _ in range(3)] == ["second = 2\nsecond", "second = 2\nsecond", "first = 1"]
    assert [pressed("ArrowDown"), pressed("ArrowDown")] == ["second = 2\nsecond", ""]
    page.write("if 1:\n    a")
    assert pressed("ArrowUp", "ArrowUp", "ArrowUp") == "if 1:\n    a"  # what is being written stays
    assert [pressed("Control+/"), pressed("Control+/")] == ["# if 1:\n    a", "if 1:\n    a"]
    page.evaluate("document.activeElement.select()")
    assert pressed("Control+/") == "# if 1:\n    # a"


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_scrolls_in_one_direction(playground: Playground, width: int) -> None:
    playground.run("import pandas as pd\ndisplay(pd.DataFrame([range(40)]))\nprint('x' * 500)")
    playground.run(PLOT + "\nraise ValueError('y' * 300)")
    playground.page.size(width, 800, scale=2, mobile=True)
    playground.page.evaluate("new Promise(requestAnimationFrame)")
    assert playground.page.evaluate("document.documentElement.scrollWidth") == width


def test_colours_and_overwritten_lines_are_shown_as_in_a_terminal(playground: Playground) -> None:
    playground.run("print('\\x1b[31mred\\x1b[0m plain\\x1b]0;title\\x07')")
    text = playground.run("for n in range(3): print(f'\\r{n} of 3', end='', flush=True)")
    assert [playground.page.text(place) for place in (".stream", ".ansi-1")] == ["red plain\n", "red"]
    assert ("2 of 3" in text, "0 of 3" in text) == (True, False)


def test_displays_are_updated_and_cleared(playground: Playground) -> None:
    shown = playground.run("h = display('one', display_id=True); h.update('two'); display({'a': 1})")
    assert ("'two'" in shown, "'one'" in shown.partition("Edit")[2], "{'a': 1}" in shown) == (True, False, True)
    cleared = playground.run("from IPython.display import clear_output\ndisplay('gone'); clear_output(); display('stays')")
    assert ("'gone'" in cleared.partition("Edit")[2], "'stays'" in cleared) == (False, True)
    assert "This page shows no frames" in playground.run("from IPython.display import IFrame\nIFrame('https://example.org', 9, 9)")


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make servers of these tests start and stop fast."""
    monkeypatch.setenv("ACASessions__Sandbox__Preload", "[]")
    monkeypatch.setenv("ACASessions__Sandbox__Spares", "0")


@pytest.mark.usefixtures("light")
def test_a_plain_server_shows_what_it_does_not_support(browser: Browser) -> None:
    with Server("--port", "0", "--api-key", KEY, "--plain") as plain, opened(browser, plain) as playground:
        page = playground.page
        assert "Interrupts, checkpoints and branches cannot be had here." in page.text("#limits")
        for id in ("interrupt", "checkpoint", "undo", "branch", "transactional"):
            disabled, title, described = page.evaluate(
                f"(() => {{ const one = document.querySelector('#{id}'); return [one.disabled, one.title, one.ariaDescription]; }})()"
            )
            assert (disabled, title == described, "nothing more" in title) == (True, True, True)
        assert "out" in playground.run("x = 5; print('out'); x")
        assert playground.state() == "untold"
        page.wait("document.querySelector('#variables').innerText.includes('x')")
        assert "ZeroDivisionError" in playground.run("1 / 0")
        playground.run("import os; os._exit(1)")
        assert playground.state() == "lost: crash"
        page.reload()
        page.wait("document.querySelector('.empty')?.innerText.startsWith('This session is live. What ran in it before is not kept')")


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize("options", [[], ["--plain"]], ids=["extended", "plain"])
def test_a_session_that_ended_meanwhile_is_reported(browser: Browser, options: list[str]) -> None:
    with Server("--port", "0", "--api-key", KEY, "--cooldown", "0.5", *options) as short, opened(browser, short) as playground:
        playground.run("x = 1")
        _all_ended(short)
        shown = playground.run("x")
        assert ("NameError" in shown, "It expired, or the server was restarted" in shown) == (True, True)
        assert playground.state() == "lost: expired"


@pytest.mark.usefixtures("light")
def test_a_full_server_says_so_and_a_session_that_is_gone_is_named(browser: Browser) -> None:
    with Server("--port", "0", "--api-key", KEY, "--max-sessions", "1") as small, opened(browser, small) as playground:
        page = playground.page
        playground.start("while True: pass")  # a session in use, which the server does not end for a new one
        page.wait("document.querySelector('.state-of-session.running')")
        name, id = page.text("#session-name"), page.evaluate("JSON.parse(sessionStorage.getItem('aca-sessions /')).session")
        page.click("#new-session button")
        page.wait("!document.querySelector('.cell')")
        playground.cells = 0
        assert "The cell was not run: the server is full (1 of 1 sessions)" in playground.run("1")
        query = {"api-version": "2025-10-02-preview", "identifier": id}
        httpx.delete(f"{small.endpoint}/session", params=query, headers={"authorization": f"Bearer {KEY}"}).raise_for_status()
        page.wait(f"document.querySelector('.notice')?.innerText.startsWith('The session {name} is not there any more')")
        assert "1" in playground.run("print(1)")


@pytest.mark.usefixtures("light")
def test_after_a_restart_with_another_key_the_page_asks_for_it_and_goes_on(browser: Browser) -> None:
    with Server("--port", "0", "--api-key", KEY) as first, opened(browser, first) as playground:
        page = playground.page
        playground.run("x = 42")
        page.wait("document.querySelector('#isolation').innerText === 'full isolation'")
        page.write("print('kept')")
        first.process.kill()
        first.process.wait()
        page.wait("document.querySelector('#isolation').innerText === '' && document.querySelector('#problem').innerText")
        assert page.evaluate("getComputedStyle(document.querySelector('.state-of-session')).visibility") == "hidden"
        with Server("--port", first.endpoint.rpartition(":")[2], "--api-key", "the key of the second"):
            page.wait("document.activeElement.id === 'key'")
            told = page.text("#door")
            assert ("does not take the key that this page had" in told, "Authorization" in told) == (True, False)
            for key, problem in (("wrong", "does not take this key"), ("the key of the second", "")):
                page.evaluate("document.querySelector('#key').select()")
                page.write(key)
                page.press("Enter")
                page.wait(f"document.querySelector('#key-problem').innerText.includes({problem!r})")
            page.wait("document.activeElement.id === 'source' && document.querySelector('#isolation').innerText === 'full isolation'")
            assert page.evaluate("document.activeElement.value") == "print('kept')"
            shown = playground.run("; 'x' in globals()", goes_on=True)
            assert ("kept" in shown, "False" in shown, "x = 42" in page.text(".cell")) == (True, True, True)


@pytest.mark.usefixtures("light")
def test_after_the_server_is_gone_the_state_is_shown_as_unknown(browser: Browser) -> None:
    with Server("--port", "0", "--api-key", KEY) as doomed, opened(browser, doomed) as playground:
        playground.start("print('begun', flush=True)\nwhile True: pass")
        playground.page.wait("document.querySelector('.stream')?.innerText === 'begun\\n'")
        doomed.process.kill()
        assert "Whether the cell ran is not known" in playground.ended()
        assert playground.state() == "unknown: no reply"
        assert "The cell was not run: the server did not answer: check that it still runs." in playground.run("1")


@pytest.mark.usefixtures("light")
def test_without_namespaces_there_is_no_time_travel(browser: Browser, public_python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACASessions__Sandbox__Isolation", "no-namespaces")
    monkeypatch.setenv("ACASessions__Sandbox__Python", public_python)
    with Server("--port", "0", "--api-key", KEY) as bare, opened(browser, bare) as playground:
        playground.page.wait("document.querySelector('#isolation').innerText === 'isolation: no-namespaces'")
        playground.page.wait("document.querySelector('#limits').innerText.startsWith('Checkpoints and branches cannot')")
        assert "42" in playground.run("6 * 7")


def test_a_screenshot_is_taken(playground: Playground, tmp_path: Path) -> None:
    """Write the picture for the documentation if `make picture` runs this."""
    page = playground.page
    page.size(1320, 1070, scale=1.5)
    (tmp_path / "cities.csv").write_text("city,people,founded\nOslo,709,1040\nBergen,291,1070\nTrondheim,212,997\nTromsø,78,1794\n")
    page.click("#new-name")
    page.write("cities")
    page.press("Enter")
    page.wait("document.querySelector('.session[aria-current]')?.title === 'cities'")
    page.drop(tmp_path / "cities.csv", "#transcript")
    page.wait("document.querySelector('#files .row')")
    playground.run("import pandas as pd\ncities = pd.read_csv('cities.csv')\ncities")
    page.click("#checkpoint")
    page.wait("document.querySelector('#checkpoints .row')")
    playground.run(_CHART)
    page.wait("document.querySelector('.cell img')?.complete && document.querySelector('.framed iframe')")
    page.wait("document.querySelector('#variables').innerText.includes('chart')")
    page.wait("document.querySelector('#sessions').innerText.includes('idle')")
    page.evaluate("document.querySelector('#source').focus()")
    page.send("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)
    page.write("cities.groupby(cities.founded < 1100).people.mean()")
    page.evaluate("new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")
    picture = page.picture()
    folder = ROOT / "docs" / "pictures" if os.environ.get("PLAYGROUND_PICTURE") else tmp_path
    (folder / "playground.png").write_bytes(picture)
    assert (picture[:4], len(picture) > 50_000) == (b"\x89PNG", True)


def _downloaded(file: Path) -> bytes:
    deadline = time.monotonic() + 120
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return file.read_bytes()


def _sent(playground: Playground, part: str) -> list[str]:
    urls = [one["request"]["url"] for one in playground.page.happened("Network.requestWillBeSent") if one["request"]["method"] == "POST"]
    return [url for url in urls if part in url]


def _described(server: Server) -> dict[str, str]:
    listing = f"{server.endpoint}/listSessions?api-version=2025-10-02-preview"
    return httpx.get(listing, headers={"authorization": f"Bearer {KEY}"}).json()["sessions"][0]


def _all_ended(server: Server) -> None:
    deadline, listing = time.monotonic() + 120, f"{server.endpoint}/listSessions?api-version=2025-10-02-preview"
    while httpx.get(listing, headers={"authorization": f"Bearer {KEY}"}).json()["sessions"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
