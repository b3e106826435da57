"""One customer more in a shop's files: all that moves is what that customer adds, and never more.

From files on, as pandas and databases write them: the type of a column follows from all rows, and
so does what a reader makes of it, if it is not careful.
"""

import csv
import sqlite3
from collections.abc import Callable
from decimal import Decimal
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from client.data import records as shop_records
from client.data.source import FolderSource, read_shop
from client.rounds.participation import answer
from client.rounds.popularity_release import whole_popularity
from client.settings import ShopSettings, read_settings
from client.training import whole_gradients
from common.errors import DataError
from common.features import Catalogue
from common.model import initial_state
from common.protocol import (
    EVALUATE,
    JOIN,
    POPULARITY,
    RELEASE,
    TRAIN,
    Arrays,
    ModelPlan,
    TrainingPlan,
)
from common.schema import ShopEvents
from common.tables.contract import BadRows
from common.tables.csv_files import BLOCK_BYTES
from common.tables.csv_rows import MAX_ROW_BYTES
from common.tables.folders import read_folder
from participation_support import World

N, FIRST = 12, 4_006_381_333_931
CATALOGUE = Catalogue.of(
    pd.DataFrame({"item_id": [str(FIRST + k) for k in range(N)], "type": list("abcd") * 3})
)
MODEL = {"dimension": 3, "customer_rows": 64}
TRAINING = TrainingPlan.model_validate(
    {
        "private": True,
        "noise_multiplier": 1.0,
        "popularity_noise_multiplier": 1.0,
        "rounds": 1,
        "max_grad_norm": 0.05,
        "model": MODEL,
    }
)
Row = dict[str, Any]


def bought(user: object, *items: object, **more: object) -> list[Row]:
    """Return a customer's records, a basket of two products each."""
    base = {"user_id": user, "timestamp": 1_700_000_000, "behavior": "rating", "rating": 4.5}
    return [{**base, "item_id": i, "session_id": k // 2, **more} for k, i in enumerate(items)]


def person(user: object, age: object, share: object = None, member: object = None) -> Row:
    return {"user_id": user, "age": age, "share": share, "member": member}


Shop = tuple[list[Row], list[Row]]
KEPT: dict[str, Shop] = {
    "plain": (bought(100, FIRST, FIRST + 1, FIRST + 5), [person(100, 25, Decimal("1.5"), True)]),
    # Who is unlike all others must not change what is read of them.
    "an unknown age": (bought(100, FIRST, FIRST + 1), [person(100, None)]),
    "no product at all": (bought(100, 12.5, FIRST + 2), [person(100, 2.5, Decimal("0.125"))]),
    "no id": (bought(None, FIRST), [person(None, 30)]),
    "a huge id": (bought(10**15, 10**15, 3.0), [person(10**15, 2**53)]),
}
PLAIN: Shop = (
    [row for u in range(6) for row in bought(u, *(FIRST + (u + k) % N for k in range(4)))],
    [person(u, 20 + u, Decimal(u), u % 2 == 0) for u in range(6)],
)
OTHERS: dict[str, Shop] = {
    "none": ([], []),
    "plain": PLAIN,
    "missing values": (
        [*PLAIN[0], *bought(None, FIRST), *bought(7, None)],
        [*PLAIN[1], person(7, None), person(None, 3)],
    ),
    "fractions": (
        [*PLAIN[0], *bought(7.5, FIRST + 0.5), *bought(8, 1e22, 1e-9)],
        [*PLAIN[1], person(7.5, 30.25, Decimal("0.0625"))],
    ),
    "no numbers": (
        [*PLAIN[0], *bought(8, FIRST, rating=float("inf")), *bought(9, float("inf"))],
        [*PLAIN[1], person(9, float("nan")), person(8, float("-inf"))],
    ),
}
# Where all is text, its words can be any.
IN_WORDS: dict[str, Shop] = {
    "no times": (
        [*PLAIN[0], *(bought(8, FIRST, timestamp=t)[0] for t in ("today", "now", "0x10", " 5"))],
        PLAIN[1],
    ),
    "fine times": (
        [*PLAIN[0], *bought(8, FIRST, timestamp="2024-01-31T14:00:00.123456789Z", rating="NAN")],
        [*PLAIN[1], person("x", "y"), person("8", "NULL")],
    ),
}
KINDS = ("csv", "parquet", "text.parquet", "sql")


def write(folder: Path, kind: str, shop: Shop) -> ShopSettings:
    """Write a shop's tables as a program would; pandas chooses one type for each column."""
    folder.mkdir()
    columns = {
        "interactions": ["user_id", "item_id", "timestamp", "behavior", "rating", "session_id"],
        "customers": ["user_id", "age", "share", "member"],
    }
    lines = 'merchant_id = "m"\ncatalogue = "c"\nledger = "l"\ncap_epsilon = 8.0\n'
    lines += 'bad_rows = "set-aside"\n'
    for (name, names), rows in zip(columns.items(), shop, strict=True):
        if kind == "csv":
            with (folder / f"{name}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, names)
                writer.writeheader()
                writer.writerows(rows)
        elif kind == "sql":
            with sqlite3.connect(folder / "shop.db") as database:
                database.execute(f"CREATE TABLE {name} ({', '.join(names)})")
                values = [
                    tuple(str(v) if isinstance(v, Decimal) else v for v in map(row.get, names))
                    for row in rows
                ]
                places = ", ".join("?" * len(names))
                database.executemany(f"INSERT INTO {name} VALUES ({places})", values)
            database.close()
        else:
            frame = pd.DataFrame(rows, columns=names)
            if kind == "text.parquet":
                words = [[None if v is None else str(v) for v in map(r.get, names)] for r in rows]
                frame = pd.DataFrame(words, columns=names, dtype=str)
            frame.to_parquet(folder / f"{name}.parquet")
    if kind == "sql":
        lines += '[database]\nurl = "sqlite:///shop.db"\n[[database.interactions]]\n'
        lines += 'table = "interactions"\n[database.customers]\ntable = "customers"\n'
        lines += 'columns = { age = "age", share = "share", member = "member" }\n'
    else:
        lines += 'data = "."\n'
    (folder / "shop.toml").write_text(lines)
    return read_settings(folder / "shop.toml")


def whole(plan: TrainingPlan, events: ShopEvents) -> Arrays:
    """Return the exact sums that leave a shop under noise, in whole steps."""
    rates = np.random.default_rng(0).pareto(1.5, N) + 0.05
    state = {
        **initial_state(plan.model, N),
        POPULARITY: (rates / rates.sum()).astype(np.float32),
    }
    sums = dict(whole_gradients(plan, 1, state, events, CATALOGUE, np.random.default_rng(3)))
    return {**sums, POPULARITY: whole_popularity(plan, events, N)}


@pytest.fixture(scope="module")
def of_others(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Arrays]:
    """(kind, name) -> the sums of others alone, read once."""

    @cache
    def sums(kind: str, name: str) -> Arrays:
        folder = tmp_path_factory.mktemp("others") / "shop"
        settings = write(folder, kind, (OTHERS | IN_WORDS)[name])
        return whole(TRAINING, read_shop(settings, CATALOGUE))

    return sums


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("kind", KINDS)
def test_a_customer_adds_the_same_bits_whoever_else_is_in_the_files(
    tmp_path: Path, kind: str, kept: str, of_others: Callable[[str, str], Arrays]
) -> None:
    shops = OTHERS if kind == "parquet" else OTHERS | IN_WORDS
    added: dict[str, Arrays] = {}
    for place, (name, (records, people)) in enumerate(shops.items()):
        own_records, own_people = KEPT[kept]
        beside = (records + own_records, people + own_people)
        events = read_shop(write(tmp_path / str(place), kind, beside), CATALOGUE)
        after, before = whole(TRAINING, events), of_others(kind, name)
        added[name] = {array: after[array] - before[array] for array in after}
    first = added["none"]
    assert kept != "plain" or all(first[array].any() for array in first)
    for name, parts in added.items():
        for array, part in parts.items():
            np.testing.assert_array_equal(part, first[array], err_msg=f"{array} beside {name}")
    gradient = sum(
        float((part.astype(np.float64) ** 2).sum())
        for array, part in first.items()
        if array != POPULARITY
    )
    popularity = float((first[POPULARITY].astype(np.float64) ** 2).sum())
    assert max(gradient, popularity) <= TRAINING.noise_steps**2


def test_all_sources_read_the_same(tmp_path: Path) -> None:
    read = {
        kind: read_shop(write(tmp_path / kind, kind, OTHERS["fractions"]), CATALOGUE)
        for kind in KINDS
    }
    first = read["csv"]
    assert first.attributes["age"].tolist() == [str(20 + u) for u in range(6)]
    for kind, events in read.items():
        assert events.user_ids.tolist() == first.user_ids.tolist(), kind
        assert events.items.tolist() == first.items.tolist(), kind
        assert events.attributes["age"].tolist() == first.attributes["age"].tolist(), kind


# --- what the text of one row does to the others ------------------------------------------------

COLUMNS = "user_id,item_id,timestamp,behavior,note\n"
LINE = "u{:06d},i1,1700000000,view,fine\n"
SEVERAL_LINES = 'B,i1,1700000000,view,"first\nC,i1,1700000000,view,last"\n'


def users(folder: Path, text: str, bad_rows: BadRows = "refuse") -> list[str]:
    (folder / "interactions.csv").write_text(text, newline="")
    source = FolderSource(folder, now=1_800_000_000, bad_rows=bad_rows, merchant_id="m")
    return [str(name) for name in source.tables().interactions["user_id"]]


def test_where_others_rows_put_a_value_of_several_lines_changes_nothing(tmp_path: Path) -> None:
    """Files are read in blocks, and how long all rows before are decides where one ends."""
    before = (BLOCK_BYTES - len(COLUMNS)) // len(LINE.format(0)) - 2
    for pad in range(0, 2 * len(LINE.format(0)), 5):
        own = f"A,i1,1700000000,view,{'p' * pad}\n"
        lines = [LINE.format(k) for k in range(before)]
        found = users(tmp_path, COLUMNS + own + "".join(lines) + SEVERAL_LINES + LINE.format(0))
        assert [found[0], *found[-2:]] == ["A", "B", "u000000"], pad
        assert len(found) == before + 3, pad


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bad_rows", ["refuse", "set-aside"])
@pytest.mark.parametrize(
    "row",
    [
        'B,i1,1700000000,view,"open',
        'B,i1,1700000000,"view,open',
        'B,"i1,1700000000,view,open',
        # The next mark ends it, in another's value.
        'B,i1,1700000000,view,"open\nC,i1,1700000000,view,"open',
        'B,i1,1700000000,view,"open\nC,i1,1700000000,view,of 6" or so',
    ],
)
def test_no_row_takes_in_those_that_follow(
    tmp_path: Path, row: str, bad_rows: BadRows, end: str
) -> None:
    """They would be gone without a word, and one customer's mark would move all others' sums."""
    lines = [LINE.format(k) for k in range(20)]
    text = (COLUMNS + "".join(lines[:10])).replace("\n", end)
    rest = "".join(lines[10:]).replace("\n", end)
    assert len(users(tmp_path, text + rest, bad_rows)) == 20
    with pytest.raises(DataError):
        users(tmp_path, text + row.replace("\n", end) + end + rest, bad_rows)
    people = "user_id,age,note\nu000001,7,fine\n" + ('B,8,"open\nC,9,fine\nD,1,"open\nE,2,fine\n')
    (tmp_path / "customers.csv").write_text(people.replace("\n", end), newline="")
    with pytest.raises(DataError, match="quotation mark in line 3"):
        users(tmp_path, text + rest, bad_rows)


def test_marks_that_take_in_nothing_are_no_fault(tmp_path: Path) -> None:
    fine = ['"say ""hi"",\nand go"', 'of 6" or so', '"a"b', '""', '"a ""b"""', '""""', "a\n"]
    rows = [f"u{k},i1,1700000000,view,{note}\n" for k, note in enumerate(fine)]
    found = users(tmp_path, "\ufeff" + COLUMNS.replace("user_id", '"user_id"') + "".join(rows))
    assert found == [f"u{k}" for k in range(len(fine))]


ROW_LENGTHS = {
    "few values": None,
    "a value that Python's csv module refuses": 131_200,
    "the longest": MAX_ROW_BYTES,
    "one byte more": MAX_ROW_BYTES + 1,
    # Such rows were read or not by where in a block others' rows let them begin.
    "a block": BLOCK_BYTES,
    "more than a block": BLOCK_BYTES + 4096,
    "nearly two blocks": 2 * BLOCK_BYTES - 4096,
    "several blocks": 5 * BLOCK_BYTES + 17,
}


def row_of(kind: str, begins: str, length: int | None) -> str:
    """Return a customer's row of that many bytes: of words, lines or doubled marks."""
    if length is None:
        return begins.rpartition(",")[0] + "\n"
    room = length - len(begins)
    if kind == "words":
        return begins + "w" * room + "\n"
    inside = (""""",\n""" if kind == "marks and lines" else "line\n") * room
    value = inside[: room - 2]
    if value.endswith('"') and not value.endswith('""'):
        value = value[:-1] + "x"
    return f'{begins}"{value}"\n'


@pytest.mark.parametrize("kind", ["words", "lines", "marks and lines"])
@pytest.mark.parametrize("what", ROW_LENGTHS)
@pytest.mark.parametrize("table", ["interactions", "customers"])
def test_whether_a_row_is_read_follows_from_that_row_alone(
    tmp_path: Path, table: str, what: str, kind: str
) -> None:
    """Wherever others' rows let it begin; and a row that is not read takes no other's with it."""
    length = ROW_LENGTHS[what]
    read = length is not None and length <= MAX_ROW_BYTES
    if table == "interactions":
        header, line, begins = COLUMNS, LINE, "B,i1,1700000000,view,"
    else:
        header, line, begins = "user_id,age,note\n", "u{:06d},7,fine\n", "B,8,"
        (tmp_path / "interactions.csv").write_text(COLUMNS + LINE.format(0))
    path = tmp_path / f"{table}.csv"
    own = row_of(kind, begins, length)
    assert length is None or len(own) == length + 1
    block = BLOCK_BYTES // len(line.format(0))
    for before in (0, 3, block // 2, block - 4, block - 1):
        lines = [line.format(k) for k in range(before)]
        path.write_text(header + "".join(lines) + own + line.format(before) * 2, newline="")
        source = FolderSource(tmp_path, now=1_800_000_000, bad_rows="set-aside", merchant_id="m")
        tables = source.tables()
        frame = tables.interactions if table == "interactions" else tables.customers
        assert frame is not None
        names = frame["user_id"].astype(str).tolist()
        doubled = table == "interactions"  # Customers are there once.
        others = before + 1 + doubled
        assert ("B" in names) == read, before
        assert len(names) == others + read, before
        reasons = {key: n for key, n in tables.set_aside.items() if "there already" not in key}
        assert sum(reasons.values()) == (not read), before
        if read:
            continue
        strict = FolderSource(tmp_path, now=1_800_000_000, merchant_id="m")
        fault = "has . values" if length is None else f"is {length:,} bytes long"
        with pytest.raises(DataError, match=rf"{table}.csv: row {before + 1} {fault}.*: 'B,.*do:"):
            strict.tables()


@pytest.mark.parametrize("table", ["interactions", "customers", "products"])
def test_an_open_mark_is_refused_in_the_last_row_as_in_any_other(
    tmp_path: Path, table: str
) -> None:
    """Where it stands follows from others' rows; it is no row of its own that could be left out."""
    header, row = "merchant_id," + COLUMNS, "m," + LINE.format(1)
    (tmp_path / "interactions.csv").write_text(header + row)
    (tmp_path / "products.csv").write_text("item_id,brand\ni1,b\n")
    if table != "interactions":
        header, row = "user_id,item_id,note\n", "u,i1,fine\n"
    for end in ("\n", "\r\n", "\r", ""):
        text = header + row + row.strip().replace("fine", '"open')
        (tmp_path / f"{table}.csv").write_text(text.replace("\n", end or "\n") + end, newline="")
        with pytest.raises(DataError, match=rf"{table}.csv cannot be read: .* in line 3"):
            read_folder(tmp_path, now=1_800_000_000, bad_rows="set-aside")


# Strings of one SipHash under pandas' own key.
TWINS = "e38279c9a3a8f1cf", "4d473feb66b692ec"


@pytest.mark.parametrize("kind", ["csv", "parquet", "sql"])
@pytest.mark.parametrize("column", ["item_id", "user_id", "session_id"])
def test_no_id_is_taken_for_another(tmp_path: Path, kind: str, column: str) -> None:
    """A record of a product that nobody knows, or a customer, made to look like another's."""
    catalogue = Catalogue.of(pd.DataFrame({"item_id": ["a0", TWINS[0]]}))
    unit = "basket" if column == "session_id" else "customer"
    plan = TRAINING.model_copy(update={"unit": unit, "rounds": 0})
    base = {"timestamp": 1_700_000_000, "behavior": "purchase", "session_id": "s"}
    records = [{**base, "user_id": f"u{k}", "item_id": TWINS[0]} for k in range(9)]
    records[0][column] = TWINS[0]
    more = {**records[0], column: TWINS[1]}
    counts = []
    for number, rows in enumerate((records, [more, *records])):
        settings = write(tmp_path / str(number), kind, (rows, []))
        events = read_shop(settings, catalogue)
        sums = whole_popularity(plan, events, catalogue.size) / plan.noise_steps
        counts.append(np.rint(sums).tolist())
    added = 0 if column == "item_id" else 1
    assert counts == [[0, 9], [0, 9 + added]]


# --- what a status tells ----------------------------------------------------------------------

HEADER = "merchant_id,user_id,item_id,timestamp,behavior"
OWN = "m0,u,i01,1577836800,purchase"
PLAN = TrainingPlan(
    rounds=2,
    noise_multiplier=4.0,
    popularity_noise_multiplier=4.0,
    model=ModelPlan(dimension=4),
)
BASKET = PLAN.model_copy(update={"unit": "basket"})
LATE = PLAN.model_copy(update={"train_from": 1_600_000_000})


@pytest.mark.parametrize(
    ("header", "without", "more", "plan", "status"),
    [
        (HEADER, [], {}, PLAN, "ok"),
        (HEADER, [OWN.replace("m0", "other")], {}, PLAN, "ok"),
        (HEADER, [OWN.replace("i01", "outside").replace(",u,", ",v,")], {}, PLAN, "ok"),
        (HEADER, [], {}, LATE, "ok"),
        (HEADER, [], {"customers.csv": "user_id,age\n"}, PLAN, "ok"),
        (HEADER, [], {"stock.csv": "merchant_id,item_id\n"}, PLAN, "ok"),
        (HEADER.replace("merchant_id,", ""), [], {}, PLAN, "ok"),
        (HEADER + ",session_id", [], {}, BASKET, "ok"),
        # The columns decide who can take part, not whether there are rows beneath them.
        (HEADER, [], {}, BASKET, "refused-config"),
        (HEADER, [OWN.replace("m0", "other")], {}, BASKET, "refused-config"),
    ],
)
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_no_status_tells_the_first_customer_from_none(
    tmp_path: Path,
    header: str,
    without: list[str],
    more: dict[str, str],
    plan: TrainingPlan,
    status: str,
    mapped: bool,
    kind: str,
) -> None:
    world = World(tmp_path)
    own = OWN + ",s" * ("session_id" in header)
    if "merchant_id" not in header:
        own = own.removeprefix("m0,")
    for number, rows in enumerate((without, [*without, own.replace("m0", "m1")])):
        folder = world.shop(number, unit=plan.unit)
        with (folder / "shop.toml").open("a") as file:
            file.write("\n[evaluation]\nepsilon = 1.0\n")
        if mapped:
            (folder / "map.csv").write_text("item_id,catalogue_item_id\ni01,i01\n")
            with (folder / "shop.toml").open("a") as file:
                file.write('\n[catalogue_mapping]\ntable = "map.csv"\n')
        lines = [row.replace("m0", f"m{number}") for row in rows]
        text = "\n".join([header, *lines]) + "\n"
        (folder / "data" / "interactions.csv").write_text(text)
        for name, content in more.items():
            (folder / "data" / name).write_text(content)
        if kind == "parquet":
            for path in list((folder / "data").glob("*.csv")):
                pd.read_csv(path).to_parquet(path.with_suffix(".parquet"))
                path.unlink()
    shop_records.forget()
    for exchange, server_round in ((JOIN, 0), (RELEASE, 0), (TRAIN, 1), (EVALUATE, 2)):
        asked = {
            "run_id": "r1",
            "server_round": server_round,
            "plan_json": plan.model_dump_json(),
            "catalogue_fingerprint": world.catalogue.fingerprint,
        }
        state = partial(initial_state, plan.model, world.catalogue.size)
        told = [answer(exchange, asked, state, world.node(k))[0].status for k in (0, 1)]
        expected = "ok" if exchange == JOIN else status
        if exchange == EVALUATE and plan.unit == "basket":
            expected = "refused-config"  # Figures are of whole customers, whoever they are.
        assert told == [expected, expected], (exchange, told)


MALFORMED = ("u,7", "u,7,x,y", "u,7," + "x" * 200_000, "u,7," + "x" * 2_000_000)


def test_no_status_tells_that_a_customers_row_is_malformed(tmp_path: Path) -> None:
    """Where such rows are set aside, whoever they are of; not one of them stops the shop."""
    world = World(tmp_path)
    for number, row in enumerate(("u,7,fine", *MALFORMED)):
        folder = world.shop(number, bad_rows="set-aside")
        lines = [HEADER, OWN.replace("m0", f"m{number}")]
        (folder / "data" / "interactions.csv").write_text("\n".join(lines) + "\n")
        (folder / "data" / "customers.csv").write_text(f"user_id,age,note\n{row}\nv,8,fine\n")
    shop_records.forget()
    for exchange, server_round in ((JOIN, 0), (RELEASE, 0), (TRAIN, 1)):
        asked = {
            "run_id": "r1",
            "server_round": server_round,
            "plan_json": PLAN.model_dump_json(),
            "catalogue_fingerprint": world.catalogue.fingerprint,
        }
        state = partial(initial_state, PLAN.model, world.catalogue.size)
        told = [answer(exchange, asked, state, world.node(k))[0].status for k in range(5)]
        assert told == ["ok"] * 5, exchange
