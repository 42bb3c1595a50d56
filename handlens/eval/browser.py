"""Pictures of web pages: layouts by an engine that no training picture comes from.

A headless Chromium is told what to draw through its debugging pipe: messages of JSON with a zero byte behind each, on
the file descriptors 3 and 4 (Chrome DevTools Protocol). It loads nothing from a network; fonts are inside the pages.
"""

import base64
import io
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from PIL import Image

from handlens.data.sample import HELD_OUT
from handlens.data.sources import Font, Sources
from handlens.errors import HandlensError
from handlens.eval.suite import Missing

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SWITCHES = ("--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-lcd-text")
#: Becomes Chromium with two pipes as its descriptors 3 and 4; both are moved out of the way of each other first.
PIPED = """import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for number, end in enumerate(ends, 3):
    os.dup2(end, number)
os.execv(sys.argv[3], [*sys.argv[3:], "--remote-debugging-pipe"])
"""
#: Seconds in which a page has to be drawn.
PATIENCE = 60


class Browser:
    """A running Chromium; a context manager that ends it."""

    def __enter__(self) -> "Browser":
        program = next(filter(None, map(shutil.which, PROGRAMS)), None)
        if program is None:
            raise Missing(f"no Chromium was found (looked for {', '.join(PROGRAMS)}); install one, on Debian: chromium")
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        inside, self._write = os.pipe()
        self._read, outside = os.pipe()
        # Root may not run Chromium's sandbox; the pages are our own.
        switches = [*SWITCHES, *["--no-sandbox"] * (os.geteuid() == 0), f"--user-data-dir={self._profile.name}"]
        self._process = subprocess.Popen(
            [sys.executable, "-IS", "-c", PIPED, str(inside), str(outside), program, *switches],
            pass_fds=(inside, outside),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(inside)
        os.close(outside)
        self._rest, self._sent, self._session = b"", 0, None
        try:
            target = self._call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            self._frame = self._call("Page.getFrameTree")["frameTree"]["frame"]["id"]
            self.version: str = self._call("Browser.getVersion")["product"]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *failure) -> None:
        os.close(self._write)
        os.close(self._read)
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._profile.cleanup()

    def draw(self, html: str, width: int, script: str = "() => null") -> tuple[np.ndarray, Any]:
        """The page, as wide as told and as high as it is, uint8 [H, W, 3]; and what the function `script` returns,
        which runs when the page is laid out and may still change it."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=10, deviceScaleFactor=1, mobile=False)
        self._call("Page.setDocumentContent", frameId=self._frame, html=html)
        inside = (
            f"document.fonts.ready.then(() => {{ const told = ({script})(); return [told,"
            " Math.ceil(document.documentElement.getBoundingClientRect().height)]; })"
        )
        result = self._call("Runtime.evaluate", expression=inside, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise HandlensError(f"Chromium could not run a page's script: {result['exceptionDetails']}")
        told, height = result["result"]["value"]
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self._call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        with Image.open(io.BytesIO(base64.b64decode(shot["data"]))) as image:
            return np.asarray(image.convert("RGB")), told

    def _call(self, method: str, **params) -> dict:
        """The result of one command; events on the way are passed over."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        data = memoryview(json.dumps(message).encode() + b"\0")
        try:
            while data:
                data = data[os.write(self._write, data) :]
        except BrokenPipeError:
            raise HandlensError("Chromium ended while it was drawing") from None
        deadline = time.monotonic() + PATIENCE
        while True:
            while b"\0" not in self._rest:
                if not select.select([self._read], [], [], max(0, deadline - time.monotonic()))[0]:
                    raise HandlensError(f"Chromium did not answer {method} in {PATIENCE} seconds")
                more = os.read(self._read, 1 << 20)
                if not more:
                    raise HandlensError("Chromium ended while it was drawing")
                self._rest += more
            answer, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(answer)
            if answer.get("id") == self._sent:
                if "error" in answer:
                    raise HandlensError(f"Chromium refused {method}: {answer['error'].get('message')}")
                return answer["result"]


def css(sources: Sources, face: Font) -> str:
    """CSS rules that make the font, and the bold one of its family if there is one, the family "held-out"."""
    bold = [
        font
        for font in sources.faces
        if (font.family, font.split, font.italic) == (face.family, HELD_OUT, face.italic)
        and font.weight >= 600 > face.weight
    ]
    rules = [(face, "normal"), *((font, "bold") for font in bold[:1])]
    return "".join(
        f"@font-face {{ font-family: held-out; font-weight: {weight}; src: url(data:font/ttf;base64,"
        f"{base64.b64encode(font.path.read_bytes()).decode()}) }}\n"
        for font, weight in rules
    )
