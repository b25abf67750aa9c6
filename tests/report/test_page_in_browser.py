"""The report page in a real browser: what a reader can do with it, and what it must not do."""

from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

import reported
from benchmarks.page import CHROMIUM, FLAGS
from reranker.report import page as report_page
from reranker.report.comparison_page import comparison_page

MANY = 120
"""Queries beside those of `reported`, each a loss smaller than the one before it."""

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    numbers = reported.numbers()
    one = numbers.queries[-1]
    losses = [
        one._replace(
            query_id=f"lost/{number:03}",
            text=f"how to read the table number {number}",
            ndcg={**one.ndcg, "retriever": 0.45, "reranker": number / 1000},
        )
        for number in range(MANY)
    ]
    path = tmp_path_factory.mktemp("report") / "index.html"
    html = report_page.page(numbers._replace(queries=[*numbers.queries, *losses]), reported.pictures())
    path.write_text(html, encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the page of the comparison."""
    path = tmp_path_factory.mktemp("report") / "comparison.html"
    html = comparison_page(reported.COMPARISON, reported.COSTS, reported.cost_pictures())
    path.write_text(html, encoding="utf-8")
    return path.as_uri()


class Visit:
    """A page of its own, with all that it asks for and complains of."""

    def __init__(self, browser: Browser, address: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append("a dialog"), dialog.dismiss()))
        self.page.goto(address)


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Visit]:
    visit = Visit(browser, address, color_scheme="light")
    expect(visit.page.locator("#list a").first).to_be_visible()
    yield visit
    visit.context.close()
    assert visit.complaints == []
    assert [url.partition("#")[0] for url in visit.requests] == [address] * len(visit.requests)


@pytest.fixture
def page(visit: Visit) -> Page:
    return visit.page


def listed(page: Page) -> list[str]:
    return page.locator("#list a bdi").all_inner_texts()


def test_worst_losses_are_first_and_fifty_a_page(page: Page) -> None:
    assert listed(page)[:3] == ["Read a file of numbers", *(f"how to read the table number {n}" for n in (0, 1))]
    assert len(listed(page)) == 50
    assert page.locator("#list a").first.inner_text().startswith("−0.500")
    expect(page.locator("#page")).to_have_text(f"1 to 50 of {MANY + 1}")
    page.get_by_role("button", name="Next").click()
    assert listed(page)[0] == "how to read the table number 49"
    page.get_by_role("button", name="Next").click()
    expect(page.locator("#page")).to_have_text(f"101 to {MANY + 1} of {MANY + 1}")
    expect(page.get_by_role("button", name="Next")).to_be_disabled()


def test_search_finds_words_of_the_query_and_of_its_passages_in_any_order(page: Page) -> None:
    page.get_by_label("Show").select_option("all")
    search = page.get_by_role("searchbox")
    search.fill("APPLES graph")
    assert listed(page) == ["graph with apples"]
    search.fill("p12 passage")  # only a missed relevant passage has it
    assert listed(page) == [reported.HOSTILE]
    search.fill("nobody wrote this")
    assert listed(page) == []
    expect(page.locator("#page")).to_have_text("No query")
    expect(page.get_by_role("status")).to_contain_text("0 shown")


def test_outcomes_are_against_the_chosen_system(page: Page) -> None:
    page.get_by_label("Show").select_option("won")
    assert listed(page) == ["sort a list", "graph with apples"]
    page.get_by_label("Show").select_option("tied")
    assert listed(page) == [reported.HOSTILE]
    page.locator("#against").select_option(label=reported.HOSTILE)
    page.get_by_label("Show").select_option("won")
    page.get_by_label("Order").select_option("gains first")
    assert set(listed(page)) == {query.text for query in reported.numbers().queries}
    page.get_by_role("button", name="The worst 50 losses first").click()
    assert listed(page)[0] == "Read a file of numbers"
    assert len(listed(page)) == 50


def test_chosen_query_shows_both_rankings_with_marks_and_moves(page: Page) -> None:
    page.get_by_role("link", name="Read a file of numbers").click()
    assert page.url.endswith("#q=q3")
    expect(page.get_by_role("heading", name="Read a file of numbers")).to_be_focused()
    before, after = page.locator("#chosen section").all()
    assert before.locator("li").count() == after.locator("li").count() == 10
    first = before.locator("li").first
    expect(first).to_contain_text("✓ relevant")
    expect(first).to_contain_text("→ 8")
    moves = after.locator(".move").all_inner_texts()
    assert moves == ["▲3", "▲7", "=", "▲4", "▼3", "▲1", "new, ▲5 from 12", "▼7", "▼3", "new, ▲1 from 11"]
    expect(after.locator("li").nth(7)).to_contain_text("✓ relevant")
    expect(page.locator("#chosen")).to_contain_text("Retriever: rank 1; reranker: rank 8")


def test_link_leads_to_its_query_and_an_unknown_one_says_so(browser: Browser, address: str) -> None:
    visit = Visit(browser, f"{address}#q=lost%2F077")
    expect(visit.page.get_by_role("heading", name="how to read the table number 77")).to_be_focused()
    visit.page.goto(f"{address}#q=gone")
    expect(visit.page.locator("#chosen")).to_have_text("No test query has the id gone.")
    visit.page.goto(f"{address}#q=%E0")
    expect(visit.page.locator("#chosen")).to_have_text("No test query has the id %E0.")
    assert visit.complaints == []
    visit.context.close()


def test_guess_is_told(page: Page) -> None:
    page.get_by_label("Show").select_option("tied")
    page.locator("#list a").click()
    expect(page.locator("#chosen .guess")).to_contain_text("relevant passage not retrieved")
    expect(page.locator("#chosen")).to_contain_text("Not retrieved")


def test_markup_in_texts_is_shown_as_text(page: Page) -> None:
    page.get_by_label("Show").select_option("tied")
    page.locator("#list a").click()
    assert page.locator("#chosen h3").inner_text() == reported.HOSTILE
    assert "of <b>sorted</b> lists. <script>" in page.locator("#chosen section p bdi").first.inner_text()
    assert page.locator("#explorer script, #explorer b b, #explorer bdi *").count() == 0


def test_keyboard_alone_searches_opens_and_comes_back(page: Page) -> None:
    page.get_by_role("searchbox").focus()
    page.keyboard.type("table number")
    for _ in range(4):
        page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="The worst 50 losses first")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    for key in ("ArrowDown", "ArrowDown", "ArrowUp", "End", "Home", "ArrowDown"):
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="how to read the table number 1", exact=True)).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#list a[aria-current]")).to_be_focused()
    expect(page.locator("#list a[aria-current] bdi")).to_have_text("how to read the table number 1")


def test_point_of_a_figure_says_what_it_is_when_it_has_the_focus_or_is_pointed_at(
    browser: Browser, compared: str
) -> None:
    visit = Visit(browser, compared)
    page, tip = visit.page, visit.page.locator(".tip")
    expect(tip).to_be_hidden()
    point = page.get_by_role("img", name="Reranker (shipped: fused): NDCG@10 0.642, 53M parameters")
    point.focus()
    expect(tip).to_have_text("Reranker (shipped: fused): NDCG@10 0.642, 53M parameters")
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    page.get_by_role("img", name=reported.HOSTILE).last.hover()
    expect(tip).to_contain_text("72 ms a query")
    page.mouse.move(0, 0)
    expect(tip).to_be_hidden()
    assert visit.complaints == []
    visit.context.close()


@pytest.mark.parametrize("options", [{"java_script_enabled": False}, {"media": "print"}], ids=["no script", "print"])
def test_table_of_losses_stands_there_without_script_and_in_print(
    browser: Browser, address: str, options: dict[str, Any]
) -> None:
    media = options.pop("media", None)
    visit = Visit(browser, address, **options)
    if media:
        expect(visit.page.locator("#list a").first).to_be_visible()
        visit.page.emulate_media(media=media)
    expect(visit.page.get_by_role("table", name="The largest losses against the retriever")).to_be_visible()
    expect(visit.page.locator("#explorer")).to_be_hidden()
    visit.context.close()


def test_names_stay_on_a_phone_when_figures_are_scrolled_into_view(browser: Browser, address: str) -> None:
    visit = Visit(browser, address, viewport={"width": 375, "height": 800})
    table = visit.page.get_by_role("region", name="The candidates as the retriever returned them")
    name = table.get_by_role("rowheader", name="Reranker (shipped: fused)")
    before = name.bounding_box()
    assert table.evaluate("table => { table.scrollLeft = 100; return table.scrollLeft }") > 0
    assert before is not None
    assert name.bounding_box() == before
    visit.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_page_fits_the_screen_and_has_no_serious_fault_of_accessibility(
    browser: Browser, address: str, scheme: str, width: int
) -> None:
    visit = Visit(browser, f"{address}#q=q3", color_scheme=scheme, viewport={"width": width, "height": 800})
    expect(visit.page.get_by_role("heading", name="Read a file of numbers")).to_be_focused()
    assert_fits_and_is_accessible(visit)
    visit.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_page_of_the_comparison_does_so_too(browser: Browser, compared: str, scheme: str, width: int) -> None:
    visit = Visit(browser, compared, color_scheme=scheme, viewport={"width": width, "height": 800})
    assert_fits_and_is_accessible(visit)
    visit.context.close()


def assert_fits_and_is_accessible(visit: Visit) -> None:
    assert visit.page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    found = Axe().run(visit.page).response["violations"]
    told = [(fault["id"], fault["nodes"][0]["html"]) for fault in found if fault["impact"] in ("serious", "critical")]
    assert told == []
    assert visit.complaints == []
