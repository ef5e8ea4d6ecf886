"""A headless browser for the tests that look at pages as a reader does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no chromium or chrome on PATH; `make browser` installs one on Debian"
)


def answer_of(page: str, folder: Path) -> tuple[Any, str]:
    """What a page's scripts leave as JSON in ``<pre id="answer">``, and what the browser said.

    Args:
        page: HTML, which may look into files that it has in frames.
        folder: an empty one, for the page and the browser's profile.
    """
    assert BROWSER is not None
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [
            BROWSER,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
            *("--no-first-run", "--disable-background-networking"),
            *("--disable-component-update", "--disable-sync"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", "--allow-file-access-from-files"),
            *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=20000"),
            *(f"--user-data-dir={folder / 'profile'}", "--dump-dom", path.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    (answer,) = re.findall(r'<pre id="answer">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    text = answer.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    return json.loads(text), done.stderr
