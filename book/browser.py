"""The browser of this system, and pages served to it: what the PDF and the tests of the site need.

python book/browser.py    # install Chromium where no browser of its family is found
"""

import http.server
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Thread

from playwright.sync_api import Browser, Error, Playwright, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
VARIABLE = "TOPOPRUNE_BROWSER"
CURE = f"install one ({', '.join(NAMES)}), or name it: {VARIABLE}=/path/to/chromium"


def main() -> None:
    """Install Debian's Chromium if no browser is found, nor named; an error is one line."""
    try:
        found = executable()
    except RuntimeError as error:
        raise SystemExit(f"browser.py: {error}") from None
    if found is None:
        _install()
    if executable() is None:
        raise SystemExit(f"browser.py: found no browser and could not install Chromium: {CURE}")


def executable() -> str | None:
    """The browser that TOPOPRUNE_BROWSER names, or else the first of `NAMES` on the PATH.

    Raises:
        RuntimeError: the one that is named does not exist.
    """
    if named := os.environ.get(VARIABLE):
        if shutil.which(named) is None:
            raise RuntimeError(f"{VARIABLE} names {named}, which is no program: correct it, or unset it")
        return shutil.which(named)
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def opened() -> Iterator[Browser]:
    """Open the browser without a window.

    Raises:
        RuntimeError: there is none, or it does not start.
    """
    path = executable()
    if path is None:
        raise RuntimeError(f"found no browser: {CURE}")
    with sync_playwright() as playwright:
        browser = _launched(playwright, path)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on a free port of this machine, to this machine alone, and yield its address."""
    handler = partial(_Silent, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def _launched(playwright: Playwright, path: str) -> Browser:
    try:
        return playwright.chromium.launch(executable_path=path)
    except Error as error:
        cause = error.message.splitlines()[0]
        raise RuntimeError(f"{path} does not start ({cause}): let {VARIABLE} name a Chromium or Chrome") from None


class _Silent(http.server.SimpleHTTPRequestHandler):
    """Answers requests without a line in the terminal for each."""

    def log_message(self, format: str, *args: object) -> None:
        pass


def _install() -> None:
    as_root = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
    for words in (["update", "-qq"], ["install", "--yes", "-qq", "--no-install-recommends", "chromium"]):
        command = [*as_root, "apt-get", *words]
        if shutil.which(command[0]) is None or shutil.which("apt-get") is None:
            return
        print(f"browser.py: {' '.join(command)}", file=sys.stderr, flush=True)
        subprocess.run(command, stdout=subprocess.DEVNULL, env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"})


if __name__ == "__main__":
    main()
