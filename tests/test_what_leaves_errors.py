"""What leaves a shop that cannot answer: a fixed code, and no word of why."""

import shutil
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest
from flwr.common.constant import ErrorCode

from client.settings import read_settings
from deployment_support import PLAN, SECONDS, SHOP, Deployed
from leaving_recording import PLANTED, Recording, planted_products, planted_sales
from leaving_support import Watch, occurrences, recorded
from simulations.loopback.deployment import change
from simulations.loopback.layout import lay_out_operator, lay_out_shop
from simulations.loopback.programs import Programs

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(2400)]

SHOPS = ("well", "damaged", "broken", "poor", "killed", "full")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recording]:
    """A run of one shop that is well, and of five that are not, each in its own way."""
    folder = tmp_path_factory.mktemp("leaves")
    with Programs(folder) as programs:
        federation = Deployed(folder, programs)
        plan = {**PLAN, "rounds": 1, "min_shops": 1, "timeout_seconds": 900.0}
        lay_out_operator(federation, {**plan, "wait_seconds": SECONDS}, planted_products())
        for name in SHOPS:
            lay_out_shop(federation, name, planted_sales(name, 6, 0), SHOP)
        _damage(federation)
        with recorded(federation, list(federation.shops.values())) as recorders:
            federation.up()
            for shop in federation.shops.values():
                federation.open(shop)
            with Watch(federation, list(federation.shops.values())) as watch:
                for shop in federation.shops.values():
                    federation.wait_until_connected(shop, SECONDS)
                federation.train()
                _kill_while_it_trains(federation)
                status, said = federation.finish(1500)
                assert status == 0, said
            for shop in federation.shops.values():
                federation.close(shop)
            yield Recording(federation, recorders, watch, said, folder / "calls")


def _damage(federation: Deployed) -> None:
    """Break what is broken: records, a ledger, a cap, and a place to unpack bundles at."""
    shops = federation.shops
    data = shops["damaged"].folder / "data" / "interactions.csv"
    data.write_text(data.read_text().replace("1700000003", PLANTED[3]))
    ledger = read_settings(shops["broken"].settings).ledger
    ledger.parent.mkdir(exist_ok=True)
    ledger.write_bytes(PLANTED[3].encode() * 100)
    change(shops["poor"].settings, {"cap_epsilon": 0.01})
    flower = shops["full"].folder / "flwr"
    shutil.rmtree(flower, ignore_errors=True)
    flower.mkdir(mode=0o700)
    # As a full disk does, it has the unpacking of a bundle fail, with a path in the words.
    (flower / "apps").write_text("in the way")


def _kill_while_it_trains(federation: Deployed) -> None:
    """Kill the process of a shop in which torch is being loaded: it has a message to answer.

    One that is killed before it has taken its message is started anew by Flower, and no error ever
    leaves; other exchanges are over so soon that a kill may come after the answer.
    """
    shop = federation.shops["killed"]
    found: list[psutil.Process] = []

    def at_work() -> bool:
        found[:] = [app for app in federation.client_apps(shop) if _loads_torch(app)]
        return bool(found)

    federation.programs.wait_until(at_work, "its training", SECONDS)
    found[0].kill()


def _loads_torch(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return any("libtorch" in part.path for part in process.memory_maps())
    return False


def test_each_failure_is_one_fixed_code(run: Recording) -> None:
    replies = {name: run.replies(name) for name in SHOPS}
    told = {
        name: [(r.kind, r.header.status if r.header else r.error) for r in found]
        for name, found in replies.items()
    }
    assert [code for _, code in told["well"]] == ["ok"] * 4, told
    assert ("train.release", "data-error") in told["damaged"], told
    assert told["broken"][0] == ("query.join", "ledger-error"), told
    assert told["poor"][0] == ("query.join", "over-budget"), told
    # It was killed while it trained, and answers the other exchanges.
    assert [code for _, code in told["killed"]].count(ErrorCode.CLIENT_APP_CRASHED) == 1, told
    assert told["full"][0] == ("query.join", ErrorCode.CLIENT_APP_RAISED_EXCEPTION), told
    for name in SHOPS:
        if name not in ("well", "killed"):
            assert not any(reply.arrays for reply in replies[name]), told


def test_no_request_has_other_fields_than_those_of_a_shop_that_is_well(run: Recording) -> None:
    for recorder in run.recorders.values():
        run.check_requests(recorder)


def test_no_word_of_what_is_wrong_leaves(run: Recording) -> None:
    words = [
        *PLANTED,
        str(run.federation.folder),
        "Traceback",
        "Error",
        "Errno",
        "interactions.csv",
        "apps",
    ]
    for recorder in run.recorders.values():
        assert occurrences(recorder.sent, [word.encode() for word in words]) == []


def test_the_words_stay_where_the_shops_engineer_finds_them(run: Recording) -> None:
    shops = run.federation.shops
    for name, words in (
        ("full", "NotADirectoryError"),
        ("damaged", "data-error"),
        ("broken", "ledger-error"),
        ("poor", "over-budget"),
    ):
        logs = "".join(p.read_text() for p in (shops[name].folder / "logs").glob("*.log"))
        assert words in logs or words.replace("NotADirectory", "FileExists") in logs, name
