"""The page in a real Chromium: every control, two languages, a phone's width, by keyboard."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from browser_support import VIEWS, Visit, chromium, visit
from common.statement import at_most
from query_support import Place, Running, make_place, products, running, write_model
from report_support import whole_run
from server.query.page import POLICY
from server.query.security import Keys
from simulations.documents import to_json
from simulations.report.building import build_report

pytestmark = pytest.mark.e2e

BASKET = ("p0003", "p0100")
EVALUATION = {
    "together": {
        "shops": 3,
        "customers": 1234.0,
        "customers_error": 20.0,
        "figures": {
            "ndcg@20": {"mean": 0.123, "noise_error": 0.001, "error": 0.004},
            "tail_ndcg@20": None,
        },
    },
    "shops": {"north": {"customers": 1234.0}},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    made = make_place(tmp_path_factory.mktemp("page"))
    model = write_model(made.root / "model-2", made.catalogue, 2)
    made.registry.publish(model, evaluation=EVALUATION)
    made.publish(3)
    made.registry.pin(2)
    (made.root / "report.json").write_text(to_json(build_report(whole_run())), encoding="utf-8")
    (made.root / "stock.json").write_text(json.dumps({"corner": ["p0001", "p0002", "p0003"]}))
    return made


@pytest.fixture(scope="module")
def service(place: Place) -> Iterator[Running]:
    stock, report = place.root / "stock.json", place.root / "report.json"
    with running(place, "--report", str(report), "--stock", str(stock)) as found:
        yield found


@pytest.fixture
def api(service: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.rest, timeout=30) as client:
        yield client


@pytest.fixture
def visitor(browser: Browser, service: Running) -> Iterator[Visit]:
    with visit(browser, service.rest) as found:
        yield found.open()


def recommended(api: httpx.Client, **body: Any) -> list[str]:
    history = [{"item_id": item} for item in BASKET]
    answer = api.post("/v1/recommend", json={"history": history, **body}).raise_for_status()
    return [item["item_id"] for item in answer.json()["items"]]


def number(text: str) -> float:
    return float(text.replace("−", "-").replace(",", ""))


def test_a_basket_brings_recommendations_and_the_dial_turns_them(
    visitor: Visit, api: httpx.Client
) -> None:
    page = visitor.page
    expect(page.locator("[role=note]").first).to_contain_text("central service can see the basket")
    expect(page.locator("[role=note]").first).to_contain_text("python -m client recommend")
    # The dial, its effect and badges speak of the tail: a first visitor has not met the word.
    expect(page.locator(".dial")).to_contain_text("all products but the fifth that is bought most")
    anyone = visitor.listed()
    visitor.add(*BASKET)
    assert visitor.listed() == recommended(api) != anyone
    expect(page.locator("#results-title")).to_contain_text("20 products for this basket")
    said = page.locator("[role=status][aria-live=polite]")
    expect(said).to_contain_text("20 products for this basket")
    page.locator("#dial").fill("1")
    turned = visitor.listed()
    assert turned == recommended(api, tail_dial=1.0) != recommended(api)
    answer = api.post(
        "/v1/recommend", json={"history": [{"item_id": i} for i in BASKET], "tail_dial": 1.0}
    ).json()
    expect(page.locator("#dial-effect")).to_contain_text(f"{answer['tail_share']:.0%} of this list")
    expect(page.locator("#dial-effect")).to_contain_text(
        f"({answer['tail_share_undialled']:.0%} by score alone)"
    )
    expect(said).to_contain_text("of this list is from the tail")


def test_reasons_add_up_to_the_score_that_is_shown(visitor: Visit, api: httpx.Client) -> None:
    visitor.add(*BASKET)
    first = visitor.listed()[0]
    row = visitor.page.locator(f"ol.list > li[data-item='{first}']")
    row.get_by_role("button", name="Why").click()
    row.locator("tfoot").wait_for()
    values = row.locator("tbody td.number").all_inner_texts()
    total = number(row.locator("tfoot td.number").inner_text())
    assert sum(map(number, values)) == pytest.approx(total, abs=len(values) * 5e-4)
    assert number(row.locator(".score span").last.inner_text()) == pytest.approx(total, abs=1e-2)
    words = row.locator("tbody th").all_inner_texts()
    # The basket's products are called by their names.
    assert any("Product 3 (p0003)" in text for text in words)
    body = {"item_id": first, "history": [{"item_id": item} for item in BASKET]}
    parts = api.post("/v1/explain", json=body).json()["parts"]
    assert len(parts) >= 3  # Two products and popularity at least.
    assert sorted(map(number, values)) == pytest.approx(
        sorted(part["value"] for part in parts), abs=5e-4
    )
    # Reasons that are open follow the basket.
    visitor.page.locator("ul.basket select").first.select_option("view")
    expect(row.locator("tfoot td.number")).not_to_have_text(f"{total}")
    row.get_by_role("button", name="Why").click()
    expect(row.locator("table")).to_have_count(0)
    # So do those that are still asked for when it changes.
    total = number(row.locator(".score span").last.inner_text())
    late: list[Route] = []
    visitor.page.route("**/v1/explain", lambda route: late.append(route), times=1)
    row.get_by_role("button", name="Why").click()
    visitor.page.locator("ul.basket select").first.select_option("purchase")
    expect(row.locator(".score span").last).not_to_have_text(f"{total}")
    late[0].continue_()
    row.locator("tfoot").wait_for()
    total = number(row.locator("tfoot td.number").inner_text())
    assert number(row.locator(".score span").last.inner_text()) == pytest.approx(total, abs=1e-2)


def test_each_filter_does_what_it_says(visitor: Visit, api: httpx.Client) -> None:
    page = visitor.page
    visitor.add(*BASKET)
    for control, value, filters in (
        ("#category", "tea", {"category": "tea"}),
        ("#brand", "B", {"category": "tea", "brand": "B"}),
    ):
        page.select_option(control, value)
        assert visitor.listed() == recommended(api, filters=filters)
    page.fill("#price-from", "5")
    page.fill("#price-to", "9.5")
    band = {"category": "tea", "brand": "B", "price_from": 5, "price_to": 9.5}
    page.fill("#k", "7")
    assert visitor.listed() == recommended(api, filters=band, k=7)
    page.get_by_role("button", name="Reset").click()
    assert visitor.listed() == recommended(api)
    # Of 500 it listed 100, and the field went on saying 500.
    page.fill("#k", "500")
    assert len(visitor.listed()) == 100
    expect(page.locator("#k")).to_have_value("100")
    page.get_by_role("button", name="Reset").click()
    page.select_option("#shop", "corner")
    assert visitor.listed() == recommended(api, filters={"merchant_id": "corner"})
    page.select_option("#shop", "")
    page.fill("#price-to", "1")
    page.fill("#price-from", "5")
    expect(page.locator("p.problem[role=alert]").last).to_contain_text("price_from is above")
    page.fill("#price-from", "")
    expect(page.locator("p.problem[role=alert]").last).to_be_hidden()
    visitor.expected = ("422",)


def test_a_basket_is_changed_and_emptied(visitor: Visit, api: httpx.Client) -> None:
    page = visitor.page
    anyone = visitor.listed()
    visitor.add(*BASKET, "p0007")
    page.get_by_role("button", name="Remove Product 7 (p0007) from the basket").click()
    page.get_by_label("What the customer did with Product 3 (p0003)").select_option("view")
    history = [{"item_id": "p0003", "weight": 0.1}, {"item_id": "p0100"}]
    assert visitor.listed() == recommended(api, history=history)
    row = page.locator("ol.list > li").first
    row.get_by_role("button", name="Similar").click()
    similar = api.post("/v1/similar", json={"item_id": visitor.listed()[0], "k": 10}).json()
    expect(row.locator(".inside .name")).to_have_text(
        [item["product"]["title"] for item in similar["items"]]
    )
    row.locator(".inside li button").first.click()
    expect(page.locator("#basket-title")).to_have_text("Basket (3)")
    page.locator("ol.list > li").first.get_by_role("button", name="to the basket").first.click()
    expect(page.locator("#basket-title")).to_have_text("Basket (4)")
    page.get_by_role("button", name="Empty the basket").click()
    expect(page.locator("#basket-title")).to_have_text("Basket (0)")
    assert visitor.listed() == anyone


def test_one_is_not_spoken_of_as_many(visitor: Visit) -> None:
    page = visitor.page
    page.fill("#k", "1")
    expect(page.locator("#results-title")).to_contain_text("1 product for anyone")
    page.fill("#query", "p0003")
    expect(page.locator("#found")).to_contain_text("1 of 1 product,")


def test_words_find_products(visitor: Visit, place: Place) -> None:
    page = visitor.page
    teas = (place.catalogue.products["category"] == "tea").sum()
    page.fill("#query", "PRODUCT, tea")
    page.get_by_role("button", name="Search").click()
    expect(page.locator("#found")).to_have_text(f"30 of {teas} products, the most popular first")
    for text in page.locator("form ul.found .note").all_inner_texts():
        assert " · tea · " in text
    page.fill("#query", "p0123")
    expect(page.locator("form ul.found .name")).to_have_text(["Product 123"])
    page.fill("#query", "nothing like it")
    expect(page.locator("#found")).to_have_text("No product holds these words.")


def test_models_tell_what_they_cost(visitor: Visit, api: httpx.Client) -> None:
    page = visitor.open("models").page
    rows = page.locator("#models-title ~ .scroll tbody tr")
    expect(rows).to_have_count(3)
    expect(rows.nth(1).get_by_text("Served")).to_be_visible()
    expect(rows.nth(1).get_by_text("Pinned")).to_be_visible()
    expect(rows.nth(0).get_by_text("Served")).to_be_hidden()
    expect(rows.nth(0).get_by_text("Published by force")).to_be_hidden()
    epsilon = api.get("/v1/models").json()["models"][1]["epsilon"]
    expect(rows.nth(1)).to_contain_text(at_most(epsilon))
    button = page.get_by_role("button", name="Privacy statement of version 2")
    button.click()
    expect(page.locator("#statement")).to_be_focused()
    expect(page.locator("#statement")).to_contain_text(f"ε = {at_most(epsilon)}")
    expect(page.locator("#statement")).to_contain_text("one customer of one shop")
    page.locator("#statement summary").click()
    expect(page.locator("#statement pre")).to_contain_text("Not covered:")
    page.get_by_role("button", name="Close").click()
    expect(page.locator("#statement")).to_be_hidden()
    page.get_by_text("The served model in a few rules").click()
    tree = api.get("/v1/models/0/tree").json()
    expect(page.locator("details ol.lines > li")).to_have_text(tree["rules"])
    overlap = f"{tree['fidelity']['top_20_overlap']:.0%} of the model's 20 best"
    expect(page.locator("details [role=status]")).to_contain_text(overlap)
    page.select_option("#language", "zh")
    rules = page.locator("details ol.lines > li")
    expect(rules).to_have_count(len(tree["rules"]))
    expect(rules.first).to_have_text(re.compile(r"约在列表的前 [\d.]+%：.*倍$"))


def drawn(page: Page, selector: str) -> list[dict[str, Any]]:
    """Return the traces that plotly drew, once it has."""
    page.wait_for_function("selector => document.querySelector(selector)?.data", arg=selector)
    found: list[dict[str, Any]] = page.evaluate(
        "selector => document.querySelector(selector).data.map(({name, x, y}) => ({name, x, y}))",
        selector,
    )
    return found


def test_the_federation_is_shown_from_what_was_released(visitor: Visit, place: Place) -> None:
    page = visitor.open("federation").page
    released = page.get_by_role("region", name="Figures that shops released").locator("tbody tr")
    expect(released).to_have_count(1)
    expect(released).to_contain_text("0.123 ± 0.004")
    expect(released).to_contain_text("hidden by the noise")
    report = json.loads((place.root / "report.json").read_text())
    by_name = {trace["name"]: trace for trace in drawn(page, "[data-chart=quality]")}
    rounds = report["rounds"]["federated-dp"]
    assert by_name["federated-dp ndcg@20"]["y"] == [point["ndcg@20"] for point in rounds]
    assert [t["y"] for t in drawn(page, "[data-chart=spent]")][-1] == [2.0, 4.0]
    fifths = {trace["name"]: trace["y"] for trace in drawn(page, "[data-chart=fifths]")}
    assert fifths["local"] == report["arms"]["local"]["quintiles"]["ndcg@20"]
    assert len(drawn(page, "[data-chart=exposure]")) == 2
    for table in page.locator("figure summary").all():
        table.click()
    expect(page.locator("figure table").nth(1)).to_contain_text("4")
    arms = page.get_by_role("region", name="Every way to recommend").locator("tbody tr")
    expect(arms).to_have_count(5)
    # No shop by itself: neither the report's nor the release's.
    assert "north" not in page.content()
    answer = page.request.get(f"{visitor.url}/v1/report").json()["report"]
    assert "per_shop" not in answer["arms"]["local"]


def test_without_a_report_the_page_says_so(browser: Browser, place: Place) -> None:
    with running(place) as service, visit(browser, service.rest) as visitor:
        page = visitor.open("federation").page
        expect(page.get_by_text("No report given.")).to_be_visible()
        expect(page.locator("figure")).to_have_count(0)


def test_the_map_shows_products_and_the_basket(visitor: Visit, place: Place) -> None:
    visitor.add(*BASKET)
    first = visitor.listed()[0]
    page = visitor.open("map").page
    page.wait_for_function("() => document.getElementById('product-map').data?.length > 3")
    traces = {trace["name"]: trace for trace in drawn(page, "#product-map")}
    assert len(traces["In the basket"]["x"]) == 2
    plain = {name: t for name, t in traces.items() if name not in ("In the basket", "Recommended")}
    assert set(plain) == {"tea", "coffee", "bread"}
    assert sum(len(trace["x"]) for trace in plain.values()) == place.catalogue.size
    assert len(traces["Recommended"]["x"]) == 20
    assert first
    page.select_option("#group", "tea")
    page.wait_for_function(
        "() => document.getElementById('product-map').data"
        ".filter(t => t.marker.opacity === 0.08).length === 2"
    )

    def span() -> tuple[float, float]:
        low, high = page.evaluate("document.getElementById('product-map').layout.xaxis.range")
        return low, high

    whole = span()
    page.get_by_role("button", name="Closer").click()
    closer = span()
    assert closer[1] - closer[0] < whole[1] - whole[0]
    for name, further in (("Right", 1), ("Left", -1)):
        before = span()
        page.get_by_role("button", name=name, exact=True).click()
        assert (span()[0] - before[0]) * further > 0
    for name in ("Up", "Down", "Farther"):
        page.get_by_role("button", name=name, exact=True).click()
    assert span()[1] - span()[0] > closer[1] - closer[0]
    page.get_by_role("button", name="Whole map").click()
    assert span() == pytest.approx(whole, abs=0.05)
    point_at_a_star(page)
    expect(page.locator("#product-map .hovertext").first).to_contain_text("Product")
    page.mouse.down()
    page.mouse.up()
    expect(page.locator("#map-title ~ .card strong")).to_contain_text("Product")


def point_at_a_star(page: Page) -> None:
    page.locator("#product-map").scroll_into_view_if_needed()
    box = page.locator("#product-map .scatterlayer .trace path.point").last.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)


def test_the_map_s_labels_are_in_the_page_s_language_and_the_basket_s_come_first(
    browser: Browser, service: Running
) -> None:
    # The column was named as in the table, and a phone cut the legend where the basket stands.
    with visit(browser, service.rest, lang="zh", width=360) as visitor:
        visitor.open().add(*BASKET)
        page = visitor.open("map").page
        expect(page.locator("label[for=group]")).to_have_text("只看一种：类别")
        expect(page.locator("#product-map .legendtext").nth(0)).to_have_text("购物篮中")
        expect(page.locator("#product-map .legendtext").nth(1)).to_have_text("推荐的")


def test_a_catalogue_s_words_are_no_markup_on_the_map(browser: Browser, tmp_path: Path) -> None:
    # plotly.js makes links of such words, to wherever whoever wrote them likes.
    words = '<a href="https://elsewhere.example">Tea</a>'
    frame = products()
    frame["category"] = frame["category"].replace(frame["category"].iloc[0], words)
    frame["title"] = words
    with (
        running(make_place(tmp_path, frame=frame)) as service,
        visit(browser, service.rest) as found,
    ):
        page = found.open("map").page
        expect(page.locator(".legendtext", has_text=words)).to_have_count(1, timeout=30_000)
        assert page.locator("svg a").count() == 0


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("width", [1280, 360])
def test_every_control_has_a_name_and_axe_finds_nothing(
    browser: Browser, service: Running, lang: str, width: int
) -> None:
    scheme = "dark" if width == 360 else "light"
    with visit(browser, service.rest, lang=lang, width=width, scheme=scheme) as visitor:
        visitor.open().add(*BASKET)
        visitor.settled()
        first = visitor.page.locator("ol.list > li").first
        for place in (0, 1):
            first.locator(".acts button").nth(place).click()
        for details in visitor.page.locator("details:not([open]) > summary").all():
            if details.is_visible():
                details.click()
        for view in VIEWS:
            visitor.open(view)
            if view == "models":
                visitor.page.locator("tbody button").first.click()
                visitor.page.locator("#statement summary").click()
            if view == "federation":
                drawn(visitor.page, "[data-chart=exposure]")
            if view == "map":
                drawn(visitor.page, "#product-map")
            names = visitor.names()
            assert len(names) > 8
            assert all(names.values())
            told = visitor.page.locator("main").inner_text()
            assert not re.search(r"\b(nav|basket|why|map|part|models|statement)\.[a-z_]+", told)
            if lang == "zh":
                foreign = [n for n in names.values() if not re.search(r"[一-鿿]", n)]
                assert foreign == ["English"] or not [n for n in foreign if n != "English中文"]
            if (width, lang) in ((1280, "en"), (360, "zh")):  # Each takes seconds.
                assert visitor.trespasses() == []
            wide: int = visitor.page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width


def test_language_and_colours_are_switched_and_kept(visitor: Visit) -> None:
    page = visitor.page
    visitor.add(*BASKET)
    page.select_option("#language", "zh")
    expect(page.locator("h2#recommend-title")).to_have_text("推荐")
    expect(page.locator("html")).to_have_attribute("lang", "zh-CN")
    expect(page.locator("#basket-title")).to_have_text("购物篮（2）")
    expect(page).to_have_title("推荐 · fedtail 长尾推荐")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.select_option("#theme", "dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert light != dark
    page.reload()
    expect(page.locator("h2#recommend-title")).to_have_text("推荐")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark
    expect(page.locator("#basket-title")).to_have_text("购物篮（0）")
    kept = page.evaluate("({...localStorage})")
    assert kept == {"fedtail.lang": "zh", "fedtail.theme": "dark"}


def press_until(page: Page, selector: str, key: str = "Tab", most: int = 60) -> None:
    """Go on by one key until an element has the focus; the focus must be seen all the way."""
    for _ in range(most):
        page.keyboard.press(key)
        seen = page.evaluate(
            "() => { const s = getComputedStyle(document.activeElement);"
            " return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2; }"
        )
        assert seen, page.evaluate("document.activeElement.outerHTML.slice(0, 200)")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    pytest.fail(f"{most} times {key} do not reach {selector}")


def test_the_keyboard_alone_is_enough(browser: Browser, service: Running) -> None:
    with visit(browser, service.rest) as visitor:
        page = visitor.open().page
        visitor.settled()
        press_until(page, ".skip")
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
        press_until(page, "#query")
        page.keyboard.type("p0003")
        page.keyboard.press("Enter")
        expect(page.locator("form ul.found > li")).to_have_count(1)
        press_until(page, "form ul.found button")
        page.keyboard.press("Enter")
        expect(page.locator("#basket-title")).to_have_text("Basket (1)")
        # The basket lay behind as many stops as products were found: thirty.
        press_until(page, ".card .skip", key="Shift+Tab", most=2)
        page.keyboard.press("Enter")
        expect(page.locator("#basket-title")).to_be_focused()
        press_until(page, "ul.basket select")
        page.keyboard.press("v")
        expect(page.locator("ul.basket select")).to_have_value("view")
        press_until(page, "#category")
        page.keyboard.type("tea")
        press_until(page, "#dial")
        before = visitor.listed()
        page.keyboard.press("End")
        assert visitor.listed() != before
        press_until(page, "ol.list .acts button")
        page.keyboard.press("Enter")
        expect(page.locator("ol.list > li").first.locator("table")).to_be_visible()
        press_until(page, "ul.basket button", key="Shift+Tab", most=30)
        page.keyboard.press("Enter")
        expect(page.locator("#basket-title")).to_have_text("Basket (0)")
        expect(page.locator("#query")).to_be_focused()
        press_until(page, "nav a[href='#models']", key="Shift+Tab")
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
        expect(page.locator("tbody button")).to_have_count(3)
        press_until(page, "tbody button")
        page.keyboard.press("Enter")
        expect(page.locator("#statement")).to_be_focused()
        press_until(page, "#statement summary")
        page.keyboard.press("Enter")
        expect(page.locator("#statement pre")).to_be_visible()
        press_until(page, "nav a[href='#map']", key="Shift+Tab")
        page.keyboard.press("Enter")
        drawn(page, "#product-map")
        press_until(page, "#group")
        page.keyboard.type("tea")
        press_until(page, ".buttons button")
        page.keyboard.press("Enter")


def test_what_is_pressed_and_gone_hands_the_focus_on(visitor: Visit) -> None:
    # Left to itself, the focus falls to the body: a screen reader begins again at the top.
    page = visitor.page
    visitor.settled()
    found = page.locator("form ul.found button").first
    found.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#basket-title")).to_have_text("Basket (1)")
    visitor.settled()
    expect(found).to_be_focused()
    expect(found).to_have_attribute("aria-disabled", "true")
    page.keyboard.press("Enter")
    visitor.settled()
    expect(page.locator("#basket-title")).to_have_text("Basket (1)")
    row = page.locator("ol.list > li").first
    row.locator(".acts button").last.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#basket-title")).to_have_text("Basket (2)")
    visitor.settled()
    expect(page.locator("#results-title")).to_be_focused()
    visitor.open("models")
    button = page.get_by_role("button", name="Privacy statement of version 2")
    button.click()
    # It takes the focus itself when it is there; from then on the focus is the person's.
    expect(page.locator("#statement")).to_be_focused()
    page.get_by_role("button", name="Close").focus()
    page.keyboard.press("Enter")
    expect(button).to_be_focused()


def test_numbers_are_written_in_the_language_of_the_page(browser: Browser, tmp_path: Path) -> None:
    # Elsewhere 2.400 is two thousand four hundred, which no English page says so.
    with (
        running(make_place(tmp_path, size=2400)) as service,
        visit(browser, service.rest, locale="de-DE") as visitor,
    ):
        page = visitor.open().page
        visitor.settled()
        expect(page.locator("#found")).to_have_text("The 30 most popular of 2,400 products")
        page = visitor.open("map").page
        status = page.locator("#map-title ~ p[role=status]")
        expect(status).to_contain_text("2,400 of 2,400 products")


def test_a_key_is_asked_for_and_kept_in_memory_alone(
    browser: Browser, place: Place, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    key = Keys(keys).add("visitor")
    with (
        running(place, "--keys", str(keys)) as service,
        visit(browser, service.rest) as visitor,
    ):
        visitor.expected = ("401",)
        page = visitor.open().page
        expect(page.get_by_label("API key")).to_be_visible()
        assert visitor.trespasses() == []
        page.get_by_label("API key").fill("ft_wrong")
        page.get_by_role("button", name="Use this key").click()
        expect(page.get_by_text("The service does not know this key.")).to_be_visible()
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Use this key").click()
        expect(page.locator("main")).to_be_focused()
        assert len(visitor.listed()) == 20
        expect(page.get_by_label("API key")).to_be_hidden()
        stored = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
        assert key not in stored
        assert page.context.cookies() == []
        page.reload()
        expect(page.get_by_label("API key")).to_be_visible()


def test_the_page_may_ask_its_own_service_alone(api: httpx.Client) -> None:
    for path in ("/", "/page/app.js", "/page/strings/zh.json", "/page/vendor/plotly.min.js"):
        answer = api.get(path).raise_for_status()
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        again = api.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
    assert "unsafe" not in POLICY
    assert "http" not in POLICY
    assert len(api.get("/page/vendor/plotly.min.js").content) > 10**6
    for path in ("/page/../rest.py", "/page/%2e%2e/rest.py", "/page/none", "/page/"):
        assert api.get(path).status_code == 404
