"""Every byte that a shop sends over a whole run of the real deployment, accounted for."""

import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator

import pytest
from flwr.proto import fleet_pb2, message_pb2

from client.settings import read_settings
from common.protocol import shop_key
from deployment_support import PLAN, SECONDS, SHOP, Deployed
from leaving_account import FLEET, request, size
from leaving_recording import PLANTED, Recording, planted_products, planted_sales
from leaving_support import Request, Watch, occurrences, recorded
from simulations.loopback.layout import lay_out_operator, lay_out_shop
from simulations.loopback.programs import Programs

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(2400)]

_STRACE = ("strace", "-D", "-f", "--seccomp-bpf", "-qq", "-e", "trace=connect,sendto,sendmsg")


def _traces() -> bool:
    """Whether system calls can be watched here."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-f", "-qq", "true"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recording]:
    """A run of three shops: one with planted data, an empty one, one of twice the customers."""
    folder = tmp_path_factory.mktemp("leaves")
    north = PLANTED[4]
    with Programs(folder) as programs:
        federation = Deployed(folder, programs)
        plan = {**PLAN, "rounds": 1, "min_shops": 3, "evaluate": True, "timeout_seconds": 900.0}
        lay_out_operator(federation, {**plan, "wait_seconds": SECONDS}, planted_products())
        more = "\n[evaluation]\nepsilon = 1.0\n"
        for name, customers, first in ((north, 9, 0), ("empty", 0, 0), ("twice", 18, 11)):
            lay_out_shop(federation, name, planted_sales(name, customers, first), SHOP, more)
        shop = federation.shops[north]
        (shop.folder / "data" / "notes.txt").write_text(PLANTED[3])
        calls = folder / "calls"
        with recorded(federation, list(federation.shops.values())) as recorders:
            federation.up()
            within = (*_STRACE, "-o", str(calls)) if _traces() else ()
            for one in federation.shops.values():
                federation.open(one, within if one is shop else ())
            with Watch(federation, list(federation.shops.values())) as watch:
                for one in federation.shops.values():
                    federation.wait_until_connected(one, SECONDS)
                federation.train()
                status, said = federation.finish(1500)
                assert status == 0, said
            for one in federation.shops.values():
                federation.close(one)
            yield Recording(federation, recorders, watch, said, calls)


def test_every_request_is_of_a_known_kind_with_known_fields(run: Recording) -> None:
    for recorder in run.recorders.values():
        kinds = run.check_requests(recorder)
        assert {"activate-node", "pull-messages", "push-messages", "push-object"} <= kinds


def test_a_shop_is_named_by_its_key_alone(run: Recording) -> None:
    for recorder in run.recorders.values():
        keys = {dict(one.headers)["flwr-public-key"] for one in recorder.requests()}
        assert len(keys) == 1
    everyone = [dict(r.requests()[0].headers)["flwr-public-key"] for r in run.recorders.values()]
    assert len(set(everyone)) == 3


def test_what_a_shop_names_it_was_sent(run: Recording) -> None:
    """Ids of objects, runs' bundles and sessions are the federation's own."""
    for recorder in run.recorders.values():
        received = recorder.received
        for one in recorder.requests():
            asked = request(one.path, one.body)
            for name in ("hash_str", "session_id", "message_object_id"):
                if value := getattr(asked, name, ""):
                    assert value.encode() in received
            if isinstance(asked, message_pb2.PullObjectRequest):
                assert asked.object_id.encode() in received


def test_every_answer_is_the_planned_records(run: Recording) -> None:
    for name in run.recorders:
        replies = run.replies(name)
        kinds = [reply.kind for reply in replies]
        assert kinds[:3] == ["query.join", "train.release", "train.update"]
        assert sorted(kinds[3:]) == ["query.evaluate", "query.home"]
        for reply in replies:
            assert reply.header is not None
            assert reply.header.status == "ok"
            assert reply.header.shop == shop_key(name)
        arrays = {reply.kind: set(reply.arrays) for reply in replies}
        assert arrays["train.release"] == {"popularity"}
        assert arrays["train.update"] == {"item_embedding"}
        assert arrays["query.evaluate"] == {"evaluation"}
        assert not arrays["query.join"]
        assert not arrays["query.home"]


def test_sizes_do_not_depend_on_the_data(run: Recording) -> None:
    """An empty shop, one of nine and one of eighteen customers send requests of equal sizes."""
    asked: dict[str, set[frozenset[int]]] = defaultdict(set)
    answered: set[tuple[tuple[str, int], ...]] = set()
    for recorder in run.recorders.values():
        sizes: dict[str, set[int]] = defaultdict(set)
        sent = []
        for one in recorder.requests():
            path = one.path.removeprefix(FLEET)
            if path.startswith("push-"):
                kind = _kind(one)
                if kind != "MetricRecord":
                    sent.append((kind, size(one.path, one.body)))
            else:
                sizes[path].add(size(one.path, one.body))
        for path, found in sizes.items():
            asked[path].add(frozenset(found))
        answered.add(tuple(sorted(sent)))
    assert all(len(found) == 1 for kinds in asked.values() for found in kinds), asked
    assert all(len(kinds) == 1 for kinds in asked.values()), asked
    assert len(answered) == 1, answered


def _kind(one: Request) -> str:
    asked = request(one.path, one.body)
    if isinstance(asked, message_pb2.PushObjectRequest):
        return str(asked.object_content.split(b" ")[0].decode())
    assert isinstance(asked, fleet_pb2.PushMessagesRequest)
    return str(asked.messages_list[0].metadata.message_type)


def test_nothing_planted_occurs_in_what_left(run: Recording) -> None:
    for name, recorder in run.recorders.items():
        shop = run.federation.shops[name]
        secrets = [
            *(text.encode() for text in PLANTED),
            *(line.encode() for line in (shop.folder / "keys" / "node.key").read_text().split()
              if len(line) > 30),
            (shop.folder / "secrets" / "superexec").read_bytes().strip(),
            str(shop.folder).encode(),
            str(read_settings(shop.settings).ledger).encode(),
        ]  # fmt: skip
        assert occurrences(recorder.sent, secrets) == []
        bodies = [one.body for one in recorder.requests()]
        assert not [b for b in bodies if occurrences(b, secrets)]
        # What did leave is found this way.
        assert occurrences(recorder.sent, [shop_key(name).encode()])
        # The catalogue, and with it the products' numbers, is public and came with the model.
        assert occurrences(recorder.received, [b"item_embedding"])


def test_processes_speak_with_the_federation_and_each_other(run: Recording) -> None:
    assert run.watch.looks > 5
    assert {ip for _, _, ip in run.watch.listening} == {"127.0.0.1"}
    assert {name for _, name, _ in run.watch.listening} == {"client.node"}
    assert {ip for _, _, ip, _ in run.watch.seen} == {"127.0.0.1"}
    for shop, recorder in run.recorders.items():
        programs = {
            name for s, name, _, port in run.watch.seen if (s, port) == (shop, recorder.port)
        }
        assert programs == {"client.node"}, f"who speaks with the federation: {programs}"
    assert {name for _, name, _, _ in run.watch.seen} >= {"flwr-clientapp", "flower-superexec"}


def test_no_process_tries_to_reach_anything_else(run: Recording) -> None:
    """Every system call that names an address, of everything that one shop has started."""
    if not run.calls.exists():
        pytest.skip("strace is not installed, or may not be used here")
    calls = run.calls.read_text(errors="replace")
    inet = re.findall(r"sin6?_port=htons\((\d+)\).*?\"([^\"]+)\"", calls)
    assert {address for _, address in inet} == {"127.0.0.1"}
    recorder = run.recorders[PLANTED[4]]
    assert str(recorder.port) in {port for port, _ in inet}
    # One more: the node's own interface, which the executor and the apps speak with.
    assert len({port for port, _ in inet} - {str(recorder.port)}) == 1, inet[-5:]
    assert not re.search(r"AF_INET6|htons\(53\)", calls)
