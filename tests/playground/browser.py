"""Drive a headless Chromium by the DevTools protocol over two pipes: no port, no driver, no library."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections import deque
from pathlib import Path
from typing import Any, Self

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe"),
)
_KEYS = {"Enter": 13, "Tab": 9, "Escape": 27, "ArrowUp": 38, "ArrowDown": 40, "Backspace": 8}
_MODIFIERS = {"Alt": 1, "Control": 2, "Meta": 4, "Shift": 8}
_WAIT = 120_000  # milliseconds

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: sudo apt install chromium")


class Browser:
    """A browser process with a profile of its own."""

    def __init__(self, folder: Path, *flags: str) -> None:
        """Start the browser with its profile and downloads in a folder."""
        self.downloads = folder / "downloads"
        theirs, self._writing = os.pipe()
        reading, ours = os.pipe()
        start = f'exec "$@" 3<&{theirs} 4>&{ours}'  # the protocol's own descriptors
        command = ["bash", "-c", start, "bash", str(CHROMIUM), *_FLAGS, *flags, f"--user-data-dir={folder / 'profile'}", "about:blank"]
        environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        self._process = subprocess.Popen(
            command, pass_fds=(theirs, ours), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        os.close(theirs)
        os.close(ours)
        self._reading = os.fdopen(reading, "rb")
        self._buffer = b""
        self._number = 0
        self.events: deque[dict[str, Any]] = deque(maxlen=10_000)

    def send(self, method: str, session: str | None = None, **parameters: object) -> dict[str, Any]:
        """Send a command and return its answer."""
        self._write(method, session, **parameters)
        number = self._number
        while (answer := self._received()).get("id") != number:
            if "method" in answer:
                self.events.append(answer)
            if answer.get("method") == "Page.javascriptDialogOpening":  # until the dialog is closed, the page answers nothing
                self._write("Page.handleJavaScriptDialog", answer["sessionId"], accept=True)
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def open(self, address: str, beside: "Page | None" = None, **device: object) -> "Page":
        """Open a tab in a context of its own, or beside another tab, which shares its storage with it."""
        context = beside.context if beside is not None else self.send("Target.createBrowserContext")["browserContextId"]
        self.send("Browser.setDownloadBehavior", behavior="allow", browserContextId=context, downloadPath=str(self.downloads))
        target = self.send("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session, target, context)
        page.size(**({"width": 1280, "height": 800} | device))
        page.go(address)
        return page

    def _write(self, method: str, session: str | None, **parameters: object) -> None:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self._writing, json.dumps(message).encode() + b"\0")

    def _received(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            read = self._reading.read1(1 << 20)
            assert read, "the browser has ended"
            self._buffer += read
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.send("Browser.close")
        self._process.wait(timeout=120)
        self._reading.close()
        os.close(self._writing)


class Page:
    """One tab, used as a person does: keys, clicks, and what is visible."""

    def __init__(self, browser: Browser, session: str, target: str, context: str) -> None:
        """Record what the page logs."""
        self._browser, self._session, self._target, self.context = browser, session, target, context
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: object) -> dict[str, Any]:
        """Send a command to this tab."""
        return self._browser.send(method, self._session, **parameters)

    def go(self, address: str) -> None:
        """Open an address."""
        answer = self.send("Page.navigate", url=address)
        assert "errorText" not in answer, answer
        self.wait("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """Evaluate JavaScript, await it, and return its value."""
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str) -> Any:
        """Wait until some JavaScript is true, and return its value."""
        tries = (
            f"(async () => {{ const end = Date.now() + {_WAIT}; let found; while (!(found = {condition}) && Date.now() < end) "
            "await new Promise((go) => setTimeout(go, 20)); return found instanceof Node || found; })()"
        )
        found = self.evaluate(tries)
        assert found, f"not so within {_WAIT / 1000:g} s: {condition}\n{self.text('body')[-2000:]}"
        return found

    def text(self, selector: str) -> str:
        """Return the visible text of an element."""
        return self.evaluate(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def click(self, selector: str) -> None:
        """Click the mouse on the middle of an element. If the element has moved away meanwhile, click again, as a person would."""
        place, hit = f"document.querySelector({json.dumps(selector)})", False
        while hit is False:  # not None: the click has left the page
            self.wait(f"{place} && !{place}.disabled")
            x, y = self.evaluate(
                f"(() => {{ const one = {place}; one.scrollIntoView({{ block: 'center' }}); const box = one.getBoundingClientRect(); "
                f"const hit = ({{ target }}) => {{ window.hit = Boolean(target.closest({json.dumps(selector)})); }}; "
                "window.hit = false; window.addEventListener('click', hit, { capture: true, once: true }); "
                "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
            )
            for kind in ("mousePressed", "mouseReleased"):
                self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
            hit = self.evaluate("window.hit")

    def write(self, text: str) -> None:
        """Insert text without pressing keys."""
        self.send("Input.insertText", text=text)

    def press(self, keys: str) -> None:
        """Press a key while others are held: `Shift+Enter`."""
        *held, key = keys.split("+")
        modifiers = sum(_MODIFIERS[name] for name in held)
        text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
        code = _KEYS.get(key, ord(key.upper()[0]))
        common = {"key": key, "code": key, "modifiers": modifiers, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **common, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def _first_frame(self) -> str | None:
        targets = self._browser.send("Target.getTargets")["targetInfos"]
        return next((one["targetId"] for one in targets if one["type"] == "iframe" and one["browserContextId"] == self.context), None)

    def _attach_to_frame(self) -> tuple[str, str]:
        deadline = time.monotonic() + _WAIT / 1000
        while (frame := self._first_frame()) is None:  # the process of a frame may start later than its element appears
            assert time.monotonic() < deadline, "the page has no frame with a process of its own"
            time.sleep(0.05)
        return frame, self._browser.send("Target.attachToTarget", targetId=frame, flatten=True)["sessionId"]

    def frame(self) -> "Page":
        """Return the page's first frame, which has a process of its own."""
        target, session = self._attach_to_frame()
        return Page(self._browser, session, target, self.context)

    def styles_in_frame(self, selector: str, *names: str) -> list[str]:
        """Return computed styles of an element in the page's first frame. It has a process of its own, and no script can look into it."""
        deadline = time.monotonic() + _WAIT / 1000
        _, session = self._attach_to_frame()
        for domain in ("DOM", "CSS"):
            self._browser.send(f"{domain}.enable", session)
        node = 0
        while node == 0:  # its document may come later, too
            assert time.monotonic() < deadline, f"the frame has no {selector}"
            root = self._browser.send("DOM.getDocument", session)["root"]["nodeId"]
            with contextlib.suppress(AssertionError):  # the document has given way to another
                node = self._browser.send("DOM.querySelector", session, nodeId=root, selector=selector)["nodeId"]
        styles = self._browser.send("CSS.getComputedStyleForNode", session, nodeId=node)["computedStyle"]
        return [next(style["value"] for style in styles if style["name"] == name) for name in names]

    def reload(self) -> None:
        """Load the page anew, and wait until its old document is gone."""
        self.evaluate("globalThis.isOld = true")
        self.send("Page.reload")
        self.wait("globalThis.isOld === undefined && document.readyState === 'complete'")

    def drop(self, file: Path, selector: str) -> None:
        """Drag a file from the desktop onto an element."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = self.evaluate(f"(() => {{ const box = {box}; return [box.x + 20, box.y + 20]; }})()")
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.send("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def choose(self, file: Path, selector: str) -> None:
        """Choose a file for a file input."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def size(self, width: int, height: int, scale: float = 1, mobile: bool = False) -> None:
        """Set the size of the window, or of a phone's screen."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile)

    def prefer(self, scheme: str) -> None:
        """Set the colour scheme: light or dark."""
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self) -> bytes:
        """Return a screenshot as PNG."""
        return base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])

    def happened(self, method: str) -> list[dict[str, Any]]:
        """Return the events of this tab so far, by the protocol's name for them."""
        self.evaluate("1")
        return [event["params"] for event in self._browser.events if event.get("sessionId") == self._session and event["method"] == method]

    def close(self) -> None:
        """Close the tab."""
        self._browser.send("Target.closeTarget", targetId=self._target)
