"""The page of a report in a browser: Debian's chromium, through Playwright.

How long a page takes to open is not tested, since it depends on the machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest

import torchquilt as tq
from browsers import started_browser
from reported import Quantized, Residual, comparison, search, sensitivity

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.long

PHONE = {"width": 390, "height": 844}
HOSTILE = ("</script><script>broken=1</script>", "<img src=x onerror=broken=1>")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One for all tests."""
    with started_browser() as found:
        yield found


@attrs.frozen(eq=False)
class Opened:
    """A page that is open, with all that went wrong, and all that it asked the network for."""

    page: Page
    errors: list[str]
    requests: list[str]

    @classmethod
    def of(cls, browser: Browser, path: Path, *, address: str = "", **options: Any) -> Opened:
        """Open a page and wait until its scripts are through."""
        page = browser.new_context(**options).new_page()
        errors: list[str] = []
        requests: list[str] = []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri() + address)
        page.wait_for_selector("html[data-complete]", state="attached")
        return cls(page, errors, requests)

    def texts(self, selector: str) -> list[str]:
        """Texts of all elements that a selector finds."""
        return self.page.locator(selector).all_inner_texts()

    def check(self) -> None:
        """Nothing went wrong, nothing was asked for, and the page is as wide as the window."""
        assert self.errors == []
        outside = [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))]
        assert outside == []
        assert self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.fixture(scope="module")
def large() -> Quantized:
    """A model of 500 operators."""
    found = Quantized.of(Residual(83), batches=1)
    assert len(found.ledger) == 502
    return found


@pytest.fixture(scope="module")
def page_of_large(large: Quantized, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its page, with all that can be handed in."""
    path = tmp_path_factory.mktemp("large") / "report.html"
    ledger = large.ledger
    tq.report(
        large.exported,
        large.converted,
        compare=comparison(ledger),
        sensitivity=sensitivity(ledger),
        search=search(),
        prepared=large.prepared,
    ).save(path)
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a small model whose module has a script for a name, without anything else."""
    path = tmp_path_factory.mktemp("small") / "report.html"
    model = Quantized.of(Residual(2, names=HOSTILE))
    plain = comparison(model.ledger)
    for row in plain["operators"]:
        row["reason"] = HOSTILE[0]
    tq.report(None, model.converted, compare=plain, title=HOSTILE[1]).save(path)
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, {"width": 1440, "height": 900}], ids=["phone", "desktop"])
def test_a_model_of_500_operators_is_there(
    browser: Browser, page_of_large: Path, viewport: Any, scheme: Any
) -> None:
    """Each is a node and a row, and nothing is wider than the window."""
    opened = Opened.of(browser, page_of_large, viewport=viewport, color_scheme=scheme)
    assert opened.page.locator("#drawing [data-node]").count() == 504
    assert opened.page.locator("[data-table=operators] tbody tr").count() == 502
    opened.check()


def test_a_table_filters_and_sorts(browser: Browser, page_of_large: Path) -> None:
    """By words in any column, by a choice, and by a heading: up, down, and as it was."""
    opened = Opened.of(browser, page_of_large)
    table = opened.page.locator("[data-table=operators]")
    nodes = "[data-table=operators] tbody tr th"
    before = opened.texts(nodes)
    table.get_by_placeholder("words in any column").fill("blocks.7. conv2d_relu")
    assert opened.texts(nodes) == ["conv2d_15"]
    assert table.get_by_role("status").inner_text() == "1 of 502"
    table.get_by_placeholder("words in any column").fill("")
    table.get_by_label("quantizer").select_option("=float")
    assert table.locator("tbody tr").count() == 84
    table.get_by_label("quantizer").select_option("*")
    heading = table.get_by_role("button", name="isolated SQNR")
    heading.click()
    assert opened.texts(nodes)[0] == "conv2d_2"
    assert opened.texts(f"{nodes}:first-child")[-1] in before
    heading.click()
    assert opened.texts(nodes)[417] == "conv2d_2"
    heading.click()
    assert opened.texts(nodes) == before
    opened.check()


def test_an_operator_that_is_clicked_is_described(browser: Browser, page_of_large: Path) -> None:
    """In the graph or in the table: decision, group, range, histogram, and values."""
    opened = Opened.of(browser, page_of_large, viewport={"width": 1440, "height": 900})
    page = opened.page
    page.locator("#drawing [data-node]").nth(2).click()
    detail = page.locator("#detail")
    assert detail.locator("h3").inner_text() == "conv2d_1"
    told = (
        "blocks.0.first",
        "XNNPACKQuantizer",
        "conv2d_relu",
        "range −",
        "a reason for conv2d_1",
        "group 2",
    )
    for text in told:
        assert text in detail.inner_text()
    page.wait_for_selector("[data-plot=histogram][data-drawn]")
    page.wait_for_selector("[data-plot=scatter][data-drawn]")
    assert page.locator("[data-plot=histogram] .bars .point").count() == 64
    assert page.locator("[data-plot=scatter] .points .point").count() == 20
    page.locator("[data-table=operators] tbody th button", has_text="softmax").click()
    assert detail.locator("h3").inner_text() == "softmax"
    assert "unsupported_op" in detail.inner_text()
    assert page.locator("#drawing .op.chosen").get_attribute("aria-label").startswith("softmax")  # type: ignore[union-attr]
    opened.check()


def test_the_graph_is_coloured_by_what_is_chosen(browser: Browser, page_of_large: Path) -> None:
    """By the error, where it was measured, or by backend; one operator is below 10 dB."""
    opened = Opened.of(browser, page_of_large)
    page = opened.page
    assert page.locator("#drawing .c-e4").count() == 1
    assert "below 10 dB" in opened.texts("#legend span")
    page.locator("#colouring").select_option("backend")
    assert page.locator("#drawing .c-b0").count() == 418
    assert page.locator("#drawing .c-float").count() == 84
    assert opened.texts("#legend span") == ["XNNPACKQuantizer", "float", "input or output"]
    page.locator("#colouring").select_option("noise")
    assert page.locator("#drawing .c-e4").count() == 1
    opened.check()


def test_the_graph_zooms_and_finds(browser: Browser, page_of_large: Path) -> None:
    """With buttons and with keys; what is looked for comes into view."""
    opened = Opened.of(browser, page_of_large, viewport={"width": 1440, "height": 900})
    page = opened.page

    def width() -> float:
        return float(page.locator("#drawing svg").get_attribute("width") or 0)

    first = width()
    page.get_by_role("button", name="Zoom in").click()
    assert width() == pytest.approx(1.3 * first)
    page.get_by_role("button", name="Zoom out").click()
    assert width() == pytest.approx(first)
    page.locator("#drawing").focus()
    page.keyboard.press("0")
    assert page.evaluate("document.querySelector('#drawing svg').clientHeight") <= 900
    page.locator("#find-node").fill("blocks.70.second")
    page.keyboard.press("Enter")
    assert page.locator("#detail h3").inner_text() == "conv2d_142"
    box = page.locator("#drawing .op.chosen").bounding_box()
    frame = page.locator("#drawing").bounding_box()
    assert box is not None
    assert frame is not None
    assert frame["y"] <= box["y"] <= frame["y"] + frame["height"]
    opened.check()


def test_the_keyboard_is_enough(browser: Browser, small: Path) -> None:
    """Arrows go along the edges of the graph, Enter chooses, a heading sorts, a module unfolds."""
    opened = Opened.of(browser, small)
    page = opened.page
    page.locator("#drawing").focus()
    for _ in range(2):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.locator("#detail h3").inner_text() == "conv2d_1"
    page.keyboard.press("ArrowUp")
    page.keyboard.press(" ")
    assert page.locator("#detail h3").inner_text() == "conv2d"
    page.locator("[data-table=operators] thead button").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("[data-table=operators] th[aria-sort=ascending]").count() == 1
    page.locator(".tree details details summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator(".tree details details[open]").count() == 1
    opened.check()


def test_names_do_not_run(browser: Browser, small: Path) -> None:
    """A title, modules and reasons that are scripts are shown as texts."""
    opened = Opened.of(browser, small)
    page = opened.page
    page.locator("#drawing [data-node]").nth(2).click()
    assert HOSTILE[0] in page.locator("#detail").inner_text()
    assert page.locator("h1").inner_text() == HOSTILE[1]
    assert page.title().startswith(HOSTILE[1])
    assert page.evaluate("window.broken") is None
    assert page.locator("img").count() == 0
    opened.check()


def test_a_script_that_got_into_the_page_would_not_run(browser: Browser, small: Path, tmp_path: Path) -> None:
    """The policy of the page knows its own scripts."""
    path = tmp_path / "report.html"
    text = small.read_text(encoding="utf-8")
    path.write_text(text.replace("</main>", "<script>window.broken = 1</script></main>"), encoding="utf-8")
    opened = Opened.of(browser, path)
    assert opened.page.evaluate("window.broken") is None
    assert any("Content Security Policy" in error for error in opened.errors)


def test_the_frontier_is_drawn_when_it_is_scrolled_to(browser: Browser, page_of_large: Path) -> None:
    """Each point of it; the one that was chosen is marked in the table."""
    opened = Opened.of(browser, page_of_large)
    opened.page.locator("#search").scroll_into_view_if_needed()
    opened.page.wait_for_selector("#frontier-plot[data-drawn]")
    assert opened.page.locator("#frontier-plot .points .point").count() == 3
    assert opened.texts("[data-table=frontier] tbody td:nth-child(2)") == ["", "chosen", ""]
    opened.check()


def test_an_operator_can_be_linked_to(browser: Browser, small: Path) -> None:
    """By its name in the address."""
    opened = Opened.of(browser, small, address="#node=group_norm")
    assert opened.page.locator("#detail h3").inner_text() == "group_norm"
    opened.check()


def test_the_page_prints(browser: Browser, page_of_large: Path) -> None:
    """Light, also where the screen is dark, without controls, and afterwards it is as it was."""
    opened = Opened.of(browser, page_of_large, color_scheme="dark")
    page = opened.page

    def background() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    dark = background()
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert background() == "rgb(251, 251, 250)"
    assert page.locator(".tree details:not([open])").count() == 0
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert background() == dark
    assert page.locator(".tree details[open]").count() == 1
    page.emulate_media(media="print")
    assert not page.locator("#graph-controls").is_visible()
    assert len(page.pdf()) > 10_000
    opened.check()


def test_a_graph_of_5000_operators_is_drawn_where_it_is_looked_at(browser: Browser, tmp_path: Path) -> None:
    """As nodes where they can be read, as outlines from afar; rows come when they are asked for."""
    names = [f"op_{index}" for index in range(5000)]
    report = tq.report(None, Quantized.of(Residual(1)).converted)
    # The flow takes minutes for such a model; the page only sees its data.
    from torchquilt.accuracy.report import rendering
    from torchquilt.accuracy.report.placement import HEIGHT, WIDTH, placed

    found = placed(len(names), [(index, index + 1) for index in range(len(names) - 1)])
    data = dict(report.data)
    data["operators"] = [
        {"name": name, "op": "aten.relu.default", "module": f"m{index // 50}", "macs": index}
        for index, name in enumerate(names)
    ]
    data["graph"] = {
        "nodes": [
            {"name": name, "kind": "operator", "x": x, "y": y, "operator": index}
            for index, (name, (x, y)) in enumerate(zip(names, found.centres, strict=True))
        ],
        "routes": [[a, b, [part for point in points for part in point]] for a, b, points in found.routes],
        "far": [],
        "width": found.size[0],
        "height": found.size[1],
        "nodeWidth": WIDTH,
        "nodeHeight": HEIGHT,
    }
    before, _, rest = report.html.partition('<script type="application/json" id="data">')
    path = tmp_path / "report.html"
    text = rendering.json_in_page(data)
    path.write_text(
        f'{before}<script type="application/json" id="data">{text}{rest[rest.index("</script>") :]}',
        encoding="utf-8",
    )
    opened = Opened.of(browser, path, viewport={"width": 1440, "height": 900})
    page = opened.page
    assert 5 < page.locator("#drawing [data-node]").count() < 100
    assert page.locator("[data-table=operators] tbody tr").count() == 1000
    page.get_by_role("button", name="Show all 5,000").click()
    assert page.locator("[data-table=operators] tbody tr").count() == 5000
    page.get_by_role("button", name="Show all of the graph").click()
    assert page.locator("#drawing path.c-float").count() == 1
    page.locator("#find-node").fill("op_4321")
    page.keyboard.press("Enter")
    page.wait_for_selector("#drawing .op.chosen")
    assert page.locator("#drawing .op.chosen").get_attribute("aria-label") == "op_4321, relu, float"
    assert page.locator("#drawing [data-node]").count() < 100
    opened.check()


def test_a_long_text_unfolds_with_its_row(browser: Browser, page_of_large: Path) -> None:
    """By a click, and with Enter."""
    opened = Opened.of(browser, page_of_large, viewport=PHONE)
    row = opened.page.locator("[data-table=capabilities] tbody tr").first
    row.scroll_into_view_if_needed()
    folded = row.bounding_box()
    row.click()
    unfolded = row.bounding_box()
    row.focus()
    opened.page.keyboard.press("Enter")
    again = row.bounding_box()
    assert folded is not None
    assert unfolded is not None
    assert again is not None
    assert unfolded["height"] > folded["height"] == again["height"]
    opened.check()
