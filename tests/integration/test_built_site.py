"""The built site: in a browser, and its notebooks in a kernel.

As in the tests of the report, the browser is Debian's chromium, through Playwright. It searches, filters the
support matrix, is as narrow as a phone, dark, and without network. The kernel is a fresh process of IPython.
"""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from browsers import started_browser
from page_blocks import is_printed, notebook_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.long

DOCS = Path(__file__).parents[2] / "docs"
PHONE = {"width": 390, "height": 844}


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make docs`` builds it: a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-j", "2", "-b", "html"]
    done = subprocess.run(
        [*command, "-d", str(folder / "cache"), str(DOCS), str(folder / "html")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return folder / "html"


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Address of a server of this machine that has the site; search reads files, which needs one."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests."""
    with started_browser() as found:
        yield found


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A page on which nothing fails, and which asks no other server for anything."""
    context = browser.new_context()
    opened = context.new_page()
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("requestfailed", lambda request: problems.append(request.url))
    opened.on(
        "request",
        lambda request: None if request.url.startswith((address, "data:")) else problems.append(request.url),
    )
    yield opened
    context.close()
    assert problems == []


def shown_rows(page: Page) -> list[dict[str, str]]:
    """The data of the rows of the matrix that are shown."""
    return [
        dict(found)
        for found in page.eval_on_selector_all(
            "#support-matrix tbody tr:not([hidden])", "rows => rows.map(row => ({...row.dataset}))"
        )
    ]


def test_a_search_finds_a_reason_code(page: Page, address: str) -> None:
    """From the first page to what a code means, and what to do."""
    page.goto(f"{address}/index.html")
    page.fill("input.sidebar-search", "not_profitable")
    page.press("input.sidebar-search", "Enter")
    page.click("#search-results a:has-text('Reason codes')")
    assert "It is cheap" in page.inner_text("article")


def test_the_matrix_is_filtered_and_its_address_keeps_the_choice(page: Page, address: str) -> None:
    """By name, mode and bits; all rows that are left fit, and another reader of the address sees the same."""
    page.goto(f"{address}/reference/support-matrix.html")
    total = len(shown_rows(page))
    page.fill("[data-filter=names]", "torch.nn.modules.linear.Linear")
    page.select_option("[data-filter=mode]", "dynamic")
    page.select_option("[data-filter=bits]", "w4")
    page.select_option("[data-filter=target]", "executorch")
    found = shown_rows(page)
    assert 0 < len(found) < total
    assert {row["mode"] for row in found} == {"dynamic"}
    assert all("w4" in row["bits"].split() and "executorch" in row["target"].split() for row in found)
    assert page.inner_text("#support-filters output") == f"{len(found)} of {total} rows"
    kept = page.url
    page.goto("about:blank")
    page.goto(kept)
    assert shown_rows(page) == found
    page.fill("[data-filter=names]", "")
    for name in ("mode", "bits", "target"):
        page.select_option(f"[data-filter={name}]", "")
    assert len(shown_rows(page)) == total


@pytest.mark.parametrize(
    "name",
    [
        "index",
        "tutorials/first-model",
        "reference/support-matrix",
        "reference/torchquilt",
        "reference/commands",
    ],
)
def test_a_page_fits_a_phone(page: Page, address: str, name: str) -> None:
    """Nothing is wider than the screen, and the menu opens."""
    page.set_viewport_size(PHONE)
    page.goto(f"{address}/{name}.html")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.click("label.nav-overlay-icon >> visible=true")
    page.wait_for_function("document.querySelector('.sidebar-drawer').getBoundingClientRect().left >= 0")


def test_the_site_is_dark_where_the_system_is(page: Page, address: str) -> None:
    """The background is darker than the text, and the other way in a light system."""
    page.emulate_media(color_scheme="dark")
    page.goto(f"{address}/index.html")
    shade = "getComputedStyle(document.body).{}.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)"
    sums = {
        scheme: (page.evaluate(shade.format("backgroundColor")), page.evaluate(shade.format("color")))
        for scheme in ("dark", "light")
        if page.emulate_media(color_scheme=scheme) is None
    }
    assert sums["dark"][0] < sums["dark"][1]
    assert sums["light"][0] > sums["light"][1]


def test_a_notebook_can_be_downloaded_and_a_block_copied(page: Page, address: str) -> None:
    """A page with code has a notebook with its code, a script, and a button beside each block."""
    page.goto(f"{address}/tutorials/first-model.html")
    with page.expect_download() as download:
        page.click("a:has-text('Jupyter notebook')")
    notebook = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert any("tq.convert_pt2e" in "".join(cell["source"]) for cell in notebook["cells"])
    link = page.locator("a:has-text('Python script')").bounding_box()
    heading = page.locator("article h2").first.bounding_box()
    assert link is not None
    assert heading is not None
    assert link["y"] < heading["y"]  # below the title, where a reader sees it
    blocks = page.locator("div.highlight-python").count()
    assert 0 < blocks <= page.locator("button.copybtn").count()


def test_the_index_of_the_site_has_each_public_name(site: Path) -> None:
    """Another project can link to it, and the search finds it."""
    from sphinx.util.inventory import InventoryFile

    import torchquilt as tq

    with (site / "objects.inv").open("rb") as file:
        inventory = InventoryFile.load(file, "", lambda base, name: name)
    names = {name for kind, found in inventory.items() if kind.startswith("py:") for name in found}
    modules = {"qat", "recovery"}
    assert {f"torchquilt.{name}" for name in tq.__all__} - names == {
        f"torchquilt.{name}" for name in ("__version__", *modules)
    }


def wrong_outputs(notebook: str, folder: Path) -> list[tuple[str, str]]:
    """Run a notebook in a fresh kernel, in an empty folder; the outputs that differ: shown, printed."""
    import nbformat
    from nbclient import NotebookClient

    shown = nbformat.reads(notebook, as_version=4)
    done = nbformat.reads(notebook, as_version=4)
    NotebookClient(done, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    pairs = [
        (_stdout(one), _stdout(other))
        for one, other in zip(shown.cells, done.cells, strict=True)
        if one.cell_type == "code" and one.outputs
    ]
    assert pairs
    return [pair for pair in pairs if not is_printed(*pair)]


def _stdout(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


@pytest.mark.parametrize("name", ["tutorials-several-machines", "tutorials-why-float"])
def test_a_downloaded_notebook_runs_in_a_fresh_kernel(site: Path, tmp_path: Path, name: str) -> None:
    """Each cell that has an output in the file prints it."""
    (notebook,) = (site / "_downloads").rglob(f"{name}.ipynb")
    assert wrong_outputs(notebook.read_text(encoding="utf-8"), tmp_path) == []


def test_a_notebook_that_prints_something_else_is_seen(tmp_path: Path) -> None:
    """The outputs of the file are compared with those of the kernel."""
    page = "# A page\n\n```python\nx = 1 + 1\nprint(x)\n```\n\n```output\n3\n```\n"
    assert wrong_outputs(notebook_of(page), tmp_path) == [("3\n", "2\n")]
