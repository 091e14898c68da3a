"""The browser that tests open pages in: one that was installed with the system; none is downloaded."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser

_NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def started_browser() -> Iterator[Browser]:
    """The browser, for as long as the block runs."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, _NAMES)), None)
    assert path is not None, "no browser: tests/install_debian.sh installs one, as root"
    with sync_playwright() as playwright:
        # As root, as in a container, chromium refuses to start with its sandbox.
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()
