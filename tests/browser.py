"""A page as a browser without a screen lays it out."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")

# A window of Chromium is at least 500 pixels wide, and a frame in it as wide as it is told to be.
_AROUND = """<!doctype html><iframe width="{width}" height="800" srcdoc="{page}"></iframe><script>
addEventListener("load", () => {{
  const frame = document.querySelector("iframe"), page = frame.contentDocument;
  const box = (one) => {{
    const {{left, right, width, height}} = one.getBoundingClientRect();
    return {{left, right, width, height, text: one.textContent}};
  }};
  const all = (name) => [...page.querySelectorAll(name)].map(box);
  document.body.dataset.found = JSON.stringify({{
    window: frame.contentWindow.innerWidth,
    width: page.documentElement.scrollWidth,
    words: page.body.innerText,
    pictures: all("svg"),
    letters: all("svg text"),
    headings: all("h2"),
    verdict: box(page.querySelector("strong")),
    needs: frame.contentWindow.performance.getEntriesByType("resource").map((one) => one.name),
  }});
}});
</script>"""


def program() -> str | None:
    """The browser of this machine, if it has one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def laid_out(page: str, width: int, folder: Path) -> dict[str, Any]:
    """What a page of HTML is in a window of this width, in pixels: its figures, words and needs."""
    around = folder / f"around_{width}.html"
    around.write_text(_AROUND.format(width=width, page=escape(page)))
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000"]
    where = [f"--user-data-dir={folder / 'profile'}", "--dump-dom", around.resolve().as_uri()]
    command = [str(program()), *options, *where]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    match = re.search(r'data-found="([^"]*)"', done.stdout)
    assert match is not None, done.stderr
    return json.loads(unescape(match[1]))
