"""A headless Chromium for tests, spoken to over its DevTools pipe: standard library only."""

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

MISSING = "chromium is not installed; these tests need it: apt-get install -y chromium"


class Browser:
    """One page in one browser. `problems` collects console errors, exceptions and refused loads."""

    def __init__(self):
        program = shutil.which("chromium")
        if program is None:
            raise RuntimeError(MISSING)
        self.folder = tempfile.TemporaryDirectory(prefix="kinema-browser-", ignore_cleanup_errors=True)
        hear, self.send_end = os.pipe()
        self.read_end, speak = os.pipe()
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
            "--disable-component-update --disable-sync --hide-scrollbars --remote-debugging-pipe"
        )
        # the pipe's ends are descriptors 3 and 4 in the browser
        command = f'exec "$0" {flags} --user-data-dir="$1" about:blank 3<&{hear} 4>&{speak}'
        self.process = subprocess.Popen(
            ["bash", "-c", command, program, self.folder.name],
            pass_fds=(hear, speak),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(hear)
        os.close(speak)
        self.buffer, self.count, self.session, self.events, self.problems = b"", 0, None, [], []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params):
        """One DevTools command and its result."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.send_end, json.dumps(message).encode() + b"\0")
        return self._until(lambda answer: answer.get("id") == self.count)

    def open(self, path: Path, width: int = 1000, height: int = 900, dark: bool = False, still: bool = False):
        """Load a file at a size, in light or dark, for readers who like motion or not."""
        self.problems.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=width < 500
        )
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
        ]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        if "Page.loadEventFired" not in self.events:
            self._until(lambda answer: answer.get("method") == "Page.loadEventFired")
        self.run("document.fonts.ready.then(() => 1)")
        return self

    def run(self, script: str):
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise AssertionError(result["exceptionDetails"]["exception"].get("description", result))
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = 10):
        """Until an expression in the page holds."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < end, f"still not so after {seconds} s: {condition}"
            time.sleep(0.05)

    def press(self, key: str):
        """A key on what has the focus."""
        text = {" ": " ", "Enter": "\r"}.get(key, "")
        code = "Space" if key == " " else key
        codes = {" ": 32, "Enter": 13, "Tab": 9, "ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35}
        base = {"key": key, "code": code, "windowsVirtualKeyCode": codes[key]}
        self.call("Input.dispatchKeyEvent", type="keyDown", **base, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **base)

    def screenshot(self, path: Path, of: str = "document.documentElement"):
        """A PNG of the whole page, or of one element."""
        x, y, width, height = self.run(
            f"(r => [r.x + scrollX, r.y + scrollY, r.width, r.height])({of}.getBoundingClientRect())"
        )
        clip = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))

    def close(self):
        os.close(self.send_end)  # the browser leaves when its pipe closes
        os.close(self.read_end)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.folder.cleanup()

    def _until(self, wanted, seconds: float = 60):
        end = time.monotonic() + seconds
        while True:
            while b"\0" in self.buffer:
                raw, _, self.buffer = self.buffer.partition(b"\0")
                answer = json.loads(raw)
                self._note(answer)
                if wanted(answer):
                    if "error" in answer:
                        raise AssertionError(answer["error"])
                    return answer.get("result", {})
            ready, _, _ = select.select([self.read_end], [], [], max(0, end - time.monotonic()))
            data = os.read(self.read_end, 1 << 20) if ready else b""
            if not data:
                raise AssertionError("the browser does not answer" if not ready else "the browser has gone")
            self.buffer += data

    def _note(self, message: dict):
        method, params = message.get("method", ""), message.get("params", {})
        self.events.append(method)
        if method == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("data:", "file:", "about:")):
                self.problems.append(f"asked the network for {url}")
