"""The roster of secure sums: written by the operator, looked at and accepted by shops."""

from pathlib import Path

import pandas as pd
import pytest

from cli_support import document_of, status_of
from client.__main__ import app as client_app
from client.joining.keys import make_keys, renew_keys
from client.joining.roster import own_roster
from client.joining.starting import start_shop
from client.settings import read_settings
from common.errors import ConfigError, RunError
from common.protocol import TrainingPlan
from common.secure_sum.members import read_roster
from federation_support import make_settings
from server.__main__ import app as server_app
from server.catalogue.publishing import publish
from server.catalogue.versions import Catalogues
from server.operating.folder import Federation, make_federation
from server.operating.shops import Shops
from server.operating.sum_roster import members, needed_shops, write_roster
from server.settings import read_home
from simulations.loopback.deployment import change

NAMES = ("corner", "Bäcker & Söhne", "harbour")


class Place:
    """An operator's folder and shops' folders, enrolled; nothing runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.federation: Federation = make_federation(
            folder / "federation", "test", "shops.example.org:8443", superlink_port=9092
        )
        self.shops = {name: folder / "shops" / str(n) for n, name in enumerate(NAMES)}
        for name, shop in self.shops.items():
            start_shop(shop, name, "shops.example.org:8443")
            Shops(self.federation.shops).enrol(name, shop / "keys" / "node.pub")

    def take_part(self, name: str, more: str = "") -> Path:
        """Take the # off the line of [secure_sum]; return the shop's settings."""
        settings = self.shops[name] / "shop.toml"
        text = settings.read_text(encoding="utf-8")
        assert "\n# [secure_sum]\n" in text
        text = text.replace("\n# [secure_sum]\n", f"\n[secure_sum]\n{more}")
        settings.write_text(text, encoding="utf-8")
        return settings

    def accept(self, name: str, file: Path) -> int:
        return status_of(client_app, "roster", self.shops[name] / "shop.toml", file, "--accept")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_what_the_operator_hands_out_is_what_every_shop_accepts(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = place.folder / "sent"
    where = ("--federation", place.federation.folder)
    first = document_of(capsys, server_app, "roster", "--out", sent, *where)
    assert [one["shop"] for one in first["shops"]] == sorted(NAMES)
    assert first["new"]
    home = read_home({"FEDTAIL_SERVER": str(place.federation.folder)})
    assert read_roster(home.roster_file).digest == first["digest"]
    assert sent.read_bytes() == home.roster_file.read_bytes()
    for name in NAMES:
        settings = place.take_part(name)
        looked = document_of(capsys, client_app, "roster", settings, sent)
        assert (looked["digest"], looked["own"]) == (first["digest"], "there")
        assert not looked["accepted"]
        assert not (place.shops[name] / "roster").exists()
        assert place.accept(name, sent) == 0
        told = capsys.readouterr().out
        assert first["digest"] in told
        assert "on it with its own key" in told
        found = read_settings(settings).secure_sum
        assert found is not None
        assert own_roster(name, found).digest == first["digest"]
        assert document_of(capsys, client_app, "roster", settings)["accepted"]
        # Operator and shop show each other the same numbers.
        assert [one["key"] for one in looked["shops"]] == [one["key"] for one in first["shops"]]
    assert status_of(server_app, "roster", *where) == 0
    assert "as it was: no shop need do anything" in capsys.readouterr().out


def test_a_roster_of_nobody_is_not_the_accepted_one_where_there_is_none(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, file = place.take_part("corner"), place.folder / "nobody.txt"
    file.touch()
    found = document_of(capsys, client_app, "roster", settings, file)
    assert (found["shops"], found["own"], found["accepted"]) == ([], "missing", False)
    assert status_of(client_app, "roster", settings, file) == 0
    assert "has accepted it" not in capsys.readouterr().out


def test_a_roster_whose_copy_could_not_be_written_is_not_the_one_that_counts(place: Place) -> None:
    # Said again it would be "as it was: no shop need do anything", and no shop would have it.
    (place.folder / "taken").mkdir()
    (place.folder / "taken" / "by").touch()
    for out in (place.folder / "taken", place.folder / "nowhere" / "roster"):
        with pytest.raises(ConfigError, match="cannot write the roster"):
            write_roster(place.federation, out)
        assert not place.federation.roster.exists()
    assert write_roster(place.federation, place.folder / "sent")["added"] == sorted(NAMES)


def test_a_roster_that_changed_says_what_changed(
    place: Place, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    settings = place.take_part("corner")
    write_roster(place.federation, tmp_path / "first")
    assert place.accept("corner", tmp_path / "first") == 0
    shops = Shops(place.federation.shops)
    shops.remove("harbour")
    (tmp_path / "new").mkdir()
    shops.enrol("mill", make_keys(tmp_path / "new" / "node.key"))
    # What was handed out stays in force until there is a new one.
    before = members(place.federation)
    assert (before.not_on_it, before.gone) == (("mill",), ("harbour",))
    assert any("mill" in note for note in before.notes())
    second = write_roster(place.federation, tmp_path / "second")
    assert (second["added"], second["gone"]) == (["mill"], ["harbour"])
    looked = document_of(capsys, client_app, "roster", settings, tmp_path / "second")
    assert [one["shop"] for one in looked["shops"] if one["new"]] == ["mill"]
    assert looked["gone"] == ["harbour"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("own line away", "does not name this shop, 'corner'"),
        ("own key another", "has another key for this shop"),
        ("one key twice", "has the same key as"),
        ("one name twice", "a second time"),
        ("rubbish", "line 2: no key and name"),
        ("cut", "no key and name"),
        ("missing", "cannot read the roster"),
        ("binary", "no plain text|not plain text"),
        # In a terminal such a name hides the lines behind it: shops that the server made up.
        ("a name that hides others", r"characters that cannot be printed: 'harbour\x1b[8m'"),
    ],
)
def test_a_roster_that_cannot_be_right_is_not_accepted(
    place: Place, capsys: pytest.CaptureFixture[str], damage: str, words: str, tmp_path: Path
) -> None:
    place.take_part("corner")
    sent = tmp_path / "sent"
    write_roster(place.federation, sent)
    assert place.accept("corner", sent) == 0
    accepted = (place.shops["corner"] / "roster").read_bytes()
    lines = sent.read_text().splitlines()
    own = next(n for n, line in enumerate(lines) if line.endswith(" corner"))
    other = next(n for n, line in enumerate(lines) if line.endswith(" harbour"))
    if damage == "own line away":
        del lines[own]
    elif damage == "own key another":
        lines[own] = f"{lines[other].rpartition(' ')[0]} corner"
        del lines[other]
    elif damage == "one key twice":
        lines[other] = f"{lines[own].rpartition(' ')[0]} harbour"
    elif damage == "one name twice":
        lines.append(lines[other])
    elif damage == "a name that hides others":
        lines[other] += "%1B%5B8m"
    elif damage == "rubbish":
        lines[1] = "a line of something"
    elif damage == "cut":
        lines[-1] = lines[-1][:40]
    sent.write_text("\n".join(lines) + "\n")
    if damage == "missing":
        sent.unlink()
    elif damage == "binary":
        sent.write_bytes(b"\xff\xfe\x00")
    capsys.readouterr()
    assert place.accept("corner", sent) == 2
    told = capsys.readouterr().err
    assert any(word in told for word in words.split("|")), told
    assert (place.shops["corner"] / "roster").read_bytes() == accepted
    assert not list(place.shops["corner"].glob(".roster*"))


def test_a_shop_is_told_what_keeps_it_out_of_sums(
    place: Place, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sent = tmp_path / "sent"
    write_roster(place.federation, sent)
    # Accepting alone is no consent: that is the section.
    assert place.accept("corner", sent) == 0
    assert "takes part in no sums" in capsys.readouterr().out
    settings = place.take_part("corner")
    assert status_of(client_app, "roster", settings, sent, "--accept") == 0
    assert "takes part in no sums" not in capsys.readouterr().out
    found = read_settings(settings).secure_sum
    assert found is not None
    assert own_roster("corner", found)
    renew_keys(found.key)
    with pytest.raises(ConfigError, match="another key for this shop"):
        own_roster("corner", found)
    found.roster.unlink()
    with pytest.raises(ConfigError, match="accepted no roster"):
        own_roster("corner", found)
    assert status_of(client_app, "roster", settings) == 2
    assert status_of(client_app, "roster", settings, "--accept") == 2


@pytest.mark.parametrize(
    ("honest", "colluding", "words"),
    [
        (3, 1, "take 4 shops, and 3 of the roster are enrolled"),
        (4, 0, "take 4 shops, and 3 of the roster are enrolled"),
        (2, 0, ""),
        (3, 0, ""),
        (2, 1, ""),
    ],
)
def test_a_run_needs_as_many_shops_as_its_sums_take(
    place: Place, honest: int, colluding: int, words: str
) -> None:
    with pytest.raises(ConfigError, match="needs a roster"):
        members(place.federation)
    write_roster(place.federation)
    found = members(place.federation)
    plan = TrainingPlan(trust="federation", honest_shops=honest, colluding_shops=colluding)
    settings = make_settings(clients_per_round=1.0)
    if words:
        with pytest.raises(RunError, match=words):
            needed_shops(found, plan, settings)
        return
    needed = needed_shops(found, plan, settings)
    assert needed == max(honest + colluding, (3 + colluding) // 2 + 1)
    if needed == 3:
        with pytest.raises(ConfigError, match=r"clients_per_round.*asks 2 of 3"):
            needed_shops(found, plan, make_settings(clients_per_round=0.5))
        Shops(place.federation.shops).remove("harbour")
        with pytest.raises(RunError, match=r"sum takes 3|are enrolled"):
            needed_shops(members(place.federation), plan, settings)


def test_what_a_run_of_sums_needs_is_said_before_it_is_asked_for(
    place: Place,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Packing the code takes seconds, and is tested where it matters.
    monkeypatch.setattr("server.training.request.build", lambda: b"code")
    products = tmp_path / "products"
    products.mkdir()
    frame = pd.DataFrame({"item_id": [f"p{n}" for n in range(9)], "type": "t", "brand": "b"})
    frame.to_csv(products / "products.csv", index=False)
    publish(Catalogues(place.federation.catalogue), products)
    change(place.federation.plan, {"trust": "federation", "honest_shops": 2, "rounds": 1})
    words = ("train", "--plan-only", "--federation", place.federation.folder)
    first = document_of(capsys, server_app, *words)
    assert 'it cannot be run yet: trust = "federation" needs a roster' in first["notes"][-1]
    digest = write_roster(place.federation)["digest"]
    second = document_of(capsys, server_app, *words)
    assert second["notes"][-1] == (
        f"every sum takes 2 of the 3 shops on the roster; its digest is {digest}"
    )
    privacy = second["privacy"]
    assert (privacy["trust"], privacy["honest_shops"]) == ("federation", 2)
    change(place.federation.plan, {"colluding_shops": 2})
    third = document_of(capsys, server_app, *words)
    assert "it cannot be run yet: honest_shops = 2 and colluding" in third["notes"][-1]
    # What is asked for on the command line is in the plan that is shown, too.
    assert [found["server"]["evaluate"] for found in (first, second, third)] == [False] * 3
    assert document_of(capsys, server_app, *words, "--evaluate")["server"]["evaluate"] is True


def test_no_roster_without_shops(tmp_path: Path) -> None:
    empty = make_federation(tmp_path / "f", "test", "shops.example.org:8443", superlink_port=9092)
    with pytest.raises(ConfigError, match="no shop is enrolled"):
        write_roster(empty)
    assert not empty.roster.exists()


@pytest.mark.parametrize(
    ("more", "colluding", "reason"),
    [
        (None, 0, "has no [secure_sum] section"),
        ("", 0, ""),
        ("colluding_shops = 1\n", 0, "the shop demands 1"),
        ("colluding_shops = 1\n", 1, ""),
    ],
)
def test_a_plan_of_secure_sums_is_priced_for_a_shop(
    place: Place,
    capsys: pytest.CaptureFixture[str],
    more: str | None,
    colluding: int,
    reason: str,
) -> None:
    settings = place.shops["corner"] / "shop.toml"
    if more is not None:
        place.take_part("corner", more)
    words: list[object] = ["plan", settings, "--target-epsilon", 4, "--rounds", 3]
    words += ["--trust", "federation", "--honest-shops", 2, "--colluding-shops", colluding]
    found = document_of(capsys, client_app, *words)
    names = [part["mechanism"] for part in found["cost"]["mechanisms"]]
    assert names == ["shared-gaussian-histogram", "shared-gaussian-step"]
    assert (found["plan"]["honest_shops"], found["plan"]["colluding_shops"]) == (2, colluding)
    assert 3.9 < found["cost"]["epsilon"] <= 4
    shop = found["shops"][0]
    assert reason in shop["reason"]
    assert shop["joins"] == (not reason)
    assert status_of(client_app, *words) == 0
    assert "each shop adds 1/2 of its variance" in capsys.readouterr().out


def test_a_damaged_roster_is_written_anew(
    place: Place, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # The command that writes it stopped at it, and none of those that read it said what to do.
    digest = write_roster(place.federation, tmp_path / "sent")["digest"]
    whole = place.federation.roster.read_bytes()
    place.federation.roster.write_bytes(whole[:-40])
    with pytest.raises(
        ConfigError, match=r"line 3: no key and name(.|\n)*`python -m server roster`"
    ):
        members(place.federation)
    where = ("--federation", place.federation.folder)
    assert status_of(server_app, "rename", "harbour", "port", *where) == 2
    assert "`python -m server roster`" in capsys.readouterr().err
    assert status_of(server_app, "roster", *where) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "The one that was there could not be read" in text
    assert digest in text
    assert place.federation.roster.read_bytes() == whole
