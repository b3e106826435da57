"""All words of the page stand in its two tables, and both say the same."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import server.query.page

ASSETS = Path(server.query.page.__file__).with_name("assets")
TABLES = {
    lang: json.loads((ASSETS / "strings" / f"{lang}.json").read_text(encoding="utf-8"))
    for lang in ("en", "zh")
}
CODE = {path.name: path.read_text(encoding="utf-8") for path in ASSETS.glob("*.js")}
PAGE = (ASSETS / "index.html").read_text(encoding="utf-8")
#: What is the same in every language.
SIGNS = {"ε", "δ", "·", "←", "→", "↑", "↓", "fedtail"}
#: Attributes that people read or hear.
SPOKEN = {"aria-label", "aria-valuetext", "aria-description", "placeholder", "title", "alt"}


class Words(HTMLParser):
    """Collects what the page's file itself says."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._open: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.found += [str(named[name]) for name in SPOKEN & named.keys() if named[name]]
        if tag not in ("meta", "link", "input", "img"):
            self._open.append((tag, named))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        text = data.strip()
        tags = {tag for tag, _ in self._open}
        # Commands are typed as they are; a language calls itself by its own name.
        said_so = {"code", "noscript"} & tags or any(
            "lang" in named for _, named in self._open[-1:]
        )
        if text and text not in SIGNS and not said_so:
            self.found.append(text)


def used() -> tuple[set[str], set[str]]:
    """Return the keys that are named whole, and the beginnings of those that are put together."""
    whole, begun = set(), set()
    text = "\n".join([PAGE, *CODE.values()])
    whole |= set(re.findall(r"""(?=['"`]([a-z]+(?:[._][\w@.-]+)*)['"`])""", text))
    begun |= {key.split("${")[0] for key in re.findall(r"`([a-z_.]+\.\$\{)", text)}
    begun |= set(re.findall(r"'([a-z]+\.)' \+", text))
    begun |= {f"{kind}." for kind in re.findall(r"""known\(['"](\w+)['"]""", text)}
    # The notice of who sees a basket: t(where() + '.who').
    begun |= {"federation.", "shop."}
    return whole, begun


def test_both_languages_have_the_same_keys_and_places() -> None:
    assert TABLES["en"].keys() == TABLES["zh"].keys()
    for key, words in TABLES["en"].items():
        other = TABLES["zh"][key]
        assert words.strip()
        assert other.strip()
        assert set(re.findall(r"\{\w+\}", words)) == set(re.findall(r"\{\w+\}", other)), key
        if re.search(r"[a-z]{3}", words) and "ndcg" not in words:
            assert re.search(r"[一-鿿]", other), key


def test_the_file_of_the_page_holds_no_words_of_its_own() -> None:
    words = Words()
    words.feed(PAGE)
    assert words.found == []


@pytest.mark.parametrize("name", ["index.html", *CODE])
def test_every_key_that_is_asked_for_is_there(name: str) -> None:
    text = PAGE if name == "index.html" else CODE[name]
    asked = re.findall(r"""\bt\(\s*['"]([\w.@-]+)['"]\s*[,)]""", text)
    asked += re.findall(r"""\bt\([^()'"]*\? '([\w.]+)' : '([\w.]+)'\)""", text)
    flat = [key for found in asked for key in ([found] if isinstance(found, str) else found)]
    assert [key for key in flat if key not in TABLES["en"]] == []
    if name == "index.html":
        assert len(flat) > 80


def test_no_words_are_left_that_nobody_asks_for() -> None:
    whole, begun = used()
    left = [key for key in TABLES["en"] if key not in whole and not key.startswith(tuple(begun))]
    assert left == []


def test_what_was_taken_from_elsewhere_says_so() -> None:
    vendored = sorted(path.name for path in (ASSETS / "vendor").iterdir())
    assert vendored == ["LICENSE-alpine.md", "alpine-csp-3.17.4.min.js"]
    assert "MIT" in (ASSETS / "vendor" / "LICENSE-alpine.md").read_text(encoding="utf-8")
    for name, text in {**CODE, "index.html": PAGE}.items():
        assert not re.search(r"https?://", text), name
