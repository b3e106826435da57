"""The page of a shop's own service in a real Chromium: what it has beyond the central one's."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from browser_support import LOCALES, chromium, visit
from home_support import START, N, purchases
from test_shop_service import made, serving

pytestmark = pytest.mark.e2e
OWN = {"en": "Own product", "zh": "自有商品"}
TITLE = {"en": "20 products for this customer", "zh": "为这位顾客推荐的 20 件商品"}


def test_a_customers_list_is_named_so_and_marks_what_the_shop_alone_sells(tmp_path: Path) -> None:
    shop = made(tmp_path, "")
    bought = [(f"u{user:02}", f"house-{k}", START) for user in range(4, 20) for k in range(6)]
    shop.sell([*purchases(), *bought])
    rows = [f"house-{k},t{k % 5},House {k}" for k in range(6)]
    (shop.folder / "data" / "products.csv").write_text("\n".join(["item_id,type,title", *rows]))
    with serving(shop) as service, chromium() as browser, visit(browser, service.rest) as visitor:
        page = visitor.open().page
        page.fill("#customer", "u03")
        listed = visitor.listed()
        own = [item for item in listed if item.startswith("house")]
        assert own
        assert len(own) < len(listed)
        for language in LOCALES:
            page.get_by_role("combobox").first.select_option(language)
            expect(page.locator("#results-title")).to_contain_text(TITLE[language])
            for item in listed:
                row = page.locator(f"ol.list > li[data-item='{item}']")
                marks = row.locator(".badge").filter(has_text=OWN[language])
                assert marks.filter(visible=True).count() == (item in own)
            assert visitor.trespasses() == []
        page.fill("#customer", "nobody")
        visitor.listed()
        expect(page.locator("#results-title")).to_contain_text("适合所有人")
        assert visitor.complaints == []
        assert visitor.strangers == []


def test_a_shop_with_numbers_of_its_own_is_asked_by_them(tmp_path: Path) -> None:
    # Answers go by the catalogue's numbers; a question by those is about products nobody knows.
    shop = made(tmp_path, "")
    shop.sell([(user, item.replace("i", "own-"), at) for user, item, at in purchases()])
    mapping = [f"own-{k:02},i{k:02}" for k in range(N)]
    (shop.folder / "map.csv").write_text("\n".join(["item_id,catalogue_item_id", *mapping]))
    shop.configure('[catalogue_mapping]\ntable = "map.csv"\n')
    with serving(shop) as service, chromium() as browser, visit(browser, service.rest) as visitor:
        page = visitor.open().page
        visitor.add("i03")
        listed = visitor.listed()
        assert "i03" not in listed
        expect(page.get_by_text("not in the catalogue")).not_to_be_visible()
        first = page.locator(f"ol.list > li[data-item='{listed[0]}']")
        first.get_by_role("button", name="Why").click()
        expect(first.locator(".why tbody")).to_contain_text("Product 3 (i03)")
        first.get_by_role("button", name="similar").click()
        expect(first.locator("ul.found > li").first).to_be_visible()
        first.locator(".acts button").last.click()
        expect(page.locator(f"ul.basket > li[data-item='{listed[0]}']")).to_be_visible()
        assert listed[0] not in visitor.listed()
