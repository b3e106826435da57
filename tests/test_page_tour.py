"""Takes the README's pictures of the page, where they are asked for: ``make tour``.

``FEDTAIL_TOUR`` names the folder of a demo run that has a registry, as ``make serve`` makes it.
"""

import os
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from browser_support import Visit, chromium, visit
from query_support import started

TOUR = os.environ.get("FEDTAIL_TOUR", "")
PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
LARGEST = 150_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not TOUR, reason="pictures are taken on demand: make tour"),
]


def picture(page: Page, name: str) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.mouse.move(1, 1)
    path = PICTURES / f"{name}.png"
    page.screenshot(path=path)
    assert path.stat().st_size < LARGEST


def scroll_to(page: Page, selector: str) -> None:
    page.locator(selector).first.evaluate(
        "element => scrollTo(0, element.getBoundingClientRect().top + scrollY - 12)"
    )


def shop_for_coffee(visitor: Visit) -> None:
    page = visitor.open().page
    for words, place in (("coffee ground", 0), ("coffee filters", 0), ("cream fluid", 1)):
        page.fill("#query", words)
        visitor.settled()
        page.locator("form ul.found > li button:enabled").nth(place).click()
    page.locator("#dial").fill("0.45")
    visitor.settled()


def test_take_the_pictures() -> None:
    run = Path(TOUR)
    command = [sys.executable, "-m", "server", "serve", str(run / "registry")]
    command += ["--catalogue", str(run / "catalogue"), "--report", str(run / "report.json")]
    with started(command) as found, chromium() as browser:
        with visit(browser, found.rest) as visitor:
            page = visitor.page
            page.set_viewport_size({"width": 1024, "height": 760})
            shop_for_coffee(visitor)
            badge = page.locator(".badge").filter(visible=True)
            first = page.locator("ol.list > li").filter(has=badge).first
            first.locator(".acts button").first.click()
            first.locator("tfoot").wait_for()
            scroll_to(page, ".columns")
            picture(page, "recommend")
            visitor.open("federation")
            page.wait_for_function("() => document.querySelector('[data-chart=exposure]')?.data")
            page.wait_for_timeout(500)
            scroll_to(page, ".plots")
            picture(page, "federation")
            visitor.open("map")
            page.wait_for_function(
                "() => document.getElementById('product-map').data?.length > 3", timeout=240_000
            )
            page.wait_for_timeout(500)
            picture(page, "map")
        with visit(browser, found.rest, lang="zh", width=360, scheme="dark") as visitor:
            page = visitor.page
            page.set_viewport_size({"width": 360, "height": 740})
            shop_for_coffee(visitor)
            expect(page.locator("#dial-effect")).to_contain_text("长尾")
            scroll_to(page, ".dial")
            picture(page, "phone-chinese-dark")
