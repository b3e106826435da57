"""The page when something is wrong: no service, no model, a question that is refused."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route, expect

from browser_support import Visit, chromium, visit
from query_support import Running, make_place, products, running

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(make_place(tmp_path_factory.mktemp("troubles"))) as found:
        yield found


@pytest.fixture
def visitor(browser: Browser, service: Running) -> Iterator[Visit]:
    with visit(browser, service.rest) as found:
        yield found.open()


@pytest.mark.parametrize("width", [360, 1280])
def test_names_of_one_long_word_stay_on_the_page(
    browser: Browser, tmp_path: Path, width: int
) -> None:
    # The heading of what is similar made the page 4,000 pixels wide.
    frame = products(60)
    frame["title"] = [f"{number:02d}{'W' * 200}" for number in range(60)]
    place = make_place(tmp_path, frame=frame)
    with running(place) as found, visit(browser, found.rest, width=width) as visitor:
        page = visitor.open().page
        page.locator("form ul.found button").first.click()
        visitor.settled()
        page.locator("ol.list .acts").first.get_by_text("Similar").click()
        expect(page.get_by_text("Similar to")).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_service_that_is_gone_is_told_of(visitor: Visit) -> None:
    visitor.settled()
    visitor.expected = ("ERR_INTERNET_DISCONNECTED",)
    visitor.page.context.set_offline(True)
    visitor.page.locator("#dial").fill("0.5")
    expect(visitor.page.get_by_text("The service can't be reached.")).to_be_visible()
    visitor.page.context.set_offline(False)
    visitor.page.locator("#dial").fill("0.6")
    expect(visitor.page.get_by_text("The service can't be reached.")).to_be_hidden()


def test_the_page_goes_on_when_there_is_a_model(browser: Browser, tmp_path: Path) -> None:
    # It said that there was none until it was loaded anew, and filters never came.
    place = make_place(tmp_path)
    (tmp_path / "registry").rename(tmp_path / "away")
    with running(place, "--look-every", "0.2") as found, visit(browser, found.rest) as visitor:
        visitor.expected = ("503",)
        page = visitor.open().page
        expect(page.get_by_text("No model can be served yet.")).to_be_visible()
        (tmp_path / "away").rename(tmp_path / "registry")
        assert len(visitor.listed()) == 20
        expect(page.get_by_text("No model can be served yet.")).to_be_hidden()
        expect(page.get_by_label("Category", exact=True)).to_be_visible()


def test_what_is_no_lack_of_a_model_is_told_as_it_is(visitor: Visit) -> None:
    # A shop whose data can't be read, or a service with too much to do: all were "No model".
    visitor.settled()
    visitor.expected = ("503",)
    words = "the shop's data can't be read now"

    def unreadable(route: Route) -> None:
        route.fulfill(status=503, json={"error": words})

    visitor.page.route("**/v1/recommend", unreadable)
    visitor.page.locator("#dial").fill("0.5")
    expect(visitor.page.get_by_text(words)).to_be_visible()


def test_a_refusal_is_seen_as_long_as_the_list_is_an_older_one(
    browser: Browser, service: Running
) -> None:
    # It stood above what is seen of a phone, and the next search took it away.
    with visit(browser, service.rest, width=360) as visitor:
        page = visitor.open().page
        visitor.settled()
        visitor.expected = ("422",)
        page.get_by_text("Only list").first.click()
        page.fill("#price-from", "50")
        page.fill("#price-to", "1")
        problem = page.get_by_text("price_from is above price_to")
        expect(problem).to_be_in_viewport()
        page.fill("#query", "tea")
        expect(page.locator("#found")).to_contain_text("the most popular first")
        expect(problem).to_be_visible()
        page.fill("#price-to", "60")
        expect(problem).to_be_hidden()
