"""Takes the pictures of the pages in docs/pages: of a demo that serves them, in Chromium (`make screenshots`)."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parent.parent / "docs/pages"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
PICTURES = {
    "owner of the panel": {
        "home": "/home",
        "day": "/systems/1?day=2015-11-11",
        "statement": "/systems/1/statements/2015-11",
    },
    "owner of the storage node": {"node": "/nodes/2"},
    "member 1": {"dao": "/dao?ended=yes", "order": "/dao/orders/1"},
    "operator": {"fleet": "/fleet"},
}


@contextmanager
def demo() -> Iterator[str]:
    """Serve a demo; return where."""
    program = Path(sys.executable).with_name("maxgreen")
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "demo", "--dir", f"{folder}/demo", "--serve"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            found = (re.search(r"pages: (\S+)/", line) for line in process.stderr or ())
            yield next(one[1] for one in found if one)
        finally:
            process.terminate()
            process.wait()


def main() -> None:
    """Take them all."""
    FOLDER.mkdir(exist_ok=True)
    with demo() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=ARGUMENTS)
        for who, pages in PICTURES.items():
            context = browser.new_context(base_url=url, viewport={"width": 1000, "height": 700})
            page = context.new_page()
            page.goto("/sign-in")
            page.get_by_role("button", name=f"Trial: {who}", exact=True).click()
            page.wait_for_url("**/home")
            for name, path in pages.items():
                page.goto(path)
                page.wait_for_timeout(1_000)
                page.screenshot(path=FOLDER / f"{name}.png")
            context.close()
        browser.close()


if __name__ == "__main__":
    main()
