"""A real Chromium that looks at the page; the package is installed where that can be done."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from debian_support import install

VIEWS = ("recommend", "models", "federation", "map")
LOCALES = {"en": "en-GB", "zh": "zh-CN"}
#: What a person can operate, and that has a name of its own.
CONTROLS = "a[href], button, input, select, summary, [tabindex='0']"


def find_chromium() -> str:
    """Return Chromium's path; install the package where it is missing."""
    if found := shutil.which("chromium"):
        return found
    if not install("chromium", "fonts-noto-cjk"):
        pytest.fail("Chromium is not installed: install Debian's package chromium")
    return shutil.which("chromium") or pytest.fail("chromium was installed and is not found")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Yield a browser; it ends with the block."""
    arguments = ["--no-sandbox", "--disable-background-networking", "--disable-dev-shm-usage"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=arguments)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """One visitor of the page, and what the browser had to say.

    Attributes
    ----------
    complaints
        Errors and warnings of the console, and of scripts.
    strangers
        Requests that went anywhere but to the page's own origin.
    expected
        Words of complaints that the test itself brings about.
    """

    page: Page
    url: str
    complaints: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    expected: tuple[str, ...] = ()

    def open(self, view: str = "recommend") -> "Visit":
        """Go to one view, from wherever the visitor is."""
        self.page.goto(f"{self.url}/#{view}")
        self.page.locator(f"#{view}-title").wait_for()
        return self

    def listed(self) -> list[str]:
        """Return the item_ids of the recommendations, in their order."""
        self.settled()
        found: list[str] = self.page.locator("ol.list > li").evaluate_all(
            "rows => rows.map(row => row.dataset.item)"
        )
        return found

    def settled(self) -> None:
        """Wait until no question is on its way."""
        self.page.wait_for_timeout(450)  # The longest that a control waits before it asks.
        self.page.wait_for_load_state("networkidle")
        self.page.locator(".results[aria-busy='false'] ol.list > li").first.wait_for()

    def add(self, *items: str) -> None:
        """Search products by their numbers, and put them into the basket."""
        for item in items:
            self.page.fill("#query", item)
            self.page.locator(f"form ul.found > li[data-item='{item}'] button").click()
        self.page.locator(f"ul.basket > li[data-item='{items[-1]}']").wait_for()

    def names(self) -> dict[str, str]:
        """Return the accessible name of each control that can be seen, by what it is."""
        found: dict[str, str] = self.page.evaluate(_NAMES, CONTROLS)
        return found

    def trespasses(self) -> list[str]:
        """Return what axe finds wrong with what is shown now (WCAG 2.2 A and AA)."""
        tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
        results: dict[str, Any] = (
            Axe().run(self.page, options={"runOnly": {"type": "tag", "values": tags}}).response
        )
        return [
            f"{found['id']}: {node['target']} {node['html'][:200]}"
            for found in results["violations"]
            for node in found["nodes"]
        ]


# Names as a screen reader would say them: label, aria-label, or what stands in the control.
_NAMES = """selector => Object.fromEntries([...document.querySelectorAll(selector)]
  .filter(element => element.checkVisibility())
  .map((element, place) => {
    const labels = [...(element.labels ?? [])].map(label => label.textContent);
    const named = (element.getAttribute('aria-labelledby') ?? '').split(' ')
      .map(id => document.getElementById(id)?.textContent ?? '');
    const name = element.getAttribute('aria-label') ?? [...labels, ...named].join(' ').trim();
    return [`${place} ${element.tagName} ${element.id}`, (name || element.textContent).trim()];
  }))"""


@contextmanager
def visit(
    browser: Browser,
    url: str,
    *,
    lang: str = "en",
    width: int = 1280,
    scheme: str = "light",
    locale: str = "",
) -> Iterator[Visit]:
    """Yield a new visitor; afterwards the browser must not have complained, nor strayed."""
    context = browser.new_context(
        viewport={"width": width, "height": 900},
        locale=locale or LOCALES[lang],
        color_scheme=scheme,  # type: ignore[arg-type]
        reduced_motion="reduce",
    )
    # A processor that is busy elsewhere is slow, not wrong.
    context.set_default_timeout(60_000)
    expect.set_options(timeout=30_000)
    found = Visit(context.new_page(), url)
    origin = urlsplit(url).netloc
    found.page.on(
        "console",
        lambda message: (
            found.complaints.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
    context.on(
        "request",
        lambda request: (
            found.strangers.append(request.url) if urlsplit(request.url).netloc != origin else None
        ),
    )
    try:
        yield found
        complaints = [c for c in found.complaints if not any(e in c for e in found.expected)]
        assert not complaints
        assert not found.strangers
    finally:
        context.close()
