"""A real browser for tests: a headless Chromium, driven through its DevTools protocol. Tests skip where there is none."""

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_chromium():
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One page of a running browser; `requests` are the addresses it asked for beside data in the page itself."""

    def __init__(self, address):
        import websocket

        self.socket = websocket.create_connection(address, timeout=60, suppress_origin=True)
        self.ids, self.requests, self.problems = itertools.count(1), [], []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        number = next(self.ids)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while (message := json.loads(self.socket.recv())).get("id") != number:
            self._note(message)
        assert "error" not in message, message
        return message["result"]

    def _note(self, message):
        if message["method"] == "Network.requestWillBeSent" and not message["params"]["request"]["url"].startswith("data:"):
            self.requests.append(message["params"]["request"]["url"])
        if message["method"] in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.problems.append(message["params"])

    def open(self, address):
        self.call("Page.navigate", url=address)
        for _ in range(600):
            if self.run("document.readyState") == "complete" and self.run("location.href").startswith(address.split("#")[0]):
                return
            time.sleep(0.05)
        raise TimeoutError(address)

    def run(self, expression):
        """Evaluate JavaScript and return its value."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def click(self, selector):
        """Click with the mouse at the middle of the first element that matches."""
        x, y = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def resize(self, width, height):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]))


@contextlib.contextmanager
def chromium(profile):
    """Start a browser with its profile in a folder and yield a page of it."""
    pytest.importorskip("websocket", reason="websocket-client, which jupyter brings, is not installed")
    if (program := find_chromium()) is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed (Debian: apt-get install chromium)")
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [
        program, "--headless=new", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage", "--remote-debugging-port=0",
        f"--user-data-dir={profile}", *root, "about:blank",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port_file = profile / "DevToolsActivePort"
        for _ in range(1200):
            if port_file.is_file() and port_file.read_text().count("\n"):
                break
            assert process.poll() is None, f"{program} ended at once with code {process.returncode}"
            time.sleep(0.05)
        port = int(port_file.read_text().splitlines()[0])
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=60) as answer:
            target = next(one for one in json.load(answer) if one["type"] == "page")
        page = Page(target["webSocketDebuggerUrl"])
        yield page
        page.socket.close()
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
