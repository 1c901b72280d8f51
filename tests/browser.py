"""A page in headless Chromium: what it says to the console, and how wide it is on a screen."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TIMEOUT_S = 120
_WIDTHS = '<pre id="measured"></pre><script>document.getElementById("measured").textContent = "widths " + \
document.documentElement.scrollWidth + " " + document.documentElement.clientWidth</script>'


def _run(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    quiet = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={page}.profile",
    )
    command = (CHROMIUM or "chromium", *quiet, *options, page.resolve().as_uri())
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)


def console(page: Path) -> list[str]:
    """Whatever the page or the browser wrote to the page's console: errors of scripts, of styles, of missing files."""
    done = _run(page, "--dump-dom")
    assert "</html>" in done.stdout, done.stderr[-2000:]
    return [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def widths(page: Path, screen: int) -> tuple[int, int]:
    """Pixels that the page takes, and that a window of `screen` pixels shows of it."""
    probe = page.with_name("probe.html")
    probe.write_text(page.read_text(encoding="utf-8").replace("</body>", f"{_WIDTHS}</body>"), encoding="utf-8")
    found = re.search(r"widths (\d+) (\d+)", _run(probe, "--dump-dom", f"--window-size={screen},900").stdout)
    assert found
    return int(found[1]), int(found[2])
